//! Answers that are not the content of a file.

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Response as HttpResponse, StatusCode};
use axum::response::Response;
use serde::Serialize;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
pub(crate) const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// An answer with nothing in it.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = HttpResponse::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// An answer with `value` as JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    // What is written here has text keys only, so it always has a JSON form.
    let text = serde_json::to_vec(value).unwrap_or_default();
    typed(status, "application/json", text)
}

/// An answer with `bytes` of the given media type.
pub(crate) fn typed(status: StatusCode, media_type: &'static str, bytes: impl Into<Body>) -> Response {
    let mut response = HttpResponse::new(bytes.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// An error as the hub tells it: a code for programs, a sentence for people.
pub(crate) fn error(status: StatusCode, code: Option<&'static str>, message: &str) -> Response {
    let mut response = json(status, &serde_json::json!({ "error": message }));
    if let Some(code) = code {
        response.headers_mut().insert(ERROR_CODE, HeaderValue::from_static(code));
    }
    // Names in requests may have characters that headers must not have.
    if let Ok(message) = HeaderValue::from_str(&message.escape_default().to_string()) {
        response.headers_mut().insert(ERROR_MESSAGE, message);
    }
    response
}

/// The path exists, but not for this method.
pub(crate) fn method_not_allowed(allowed: &[&str]) -> Response {
    let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
    if let Ok(allowed) = HeaderValue::from_str(&allowed.join(", ")) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// Goes with a request that came by https.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encrypted;

/// How the client calls this server, for addresses that it needs in full; `None` where it does not say.
///
/// A proxy that speaks https for this server says so. A client that claims to be one misleads itself alone.
pub(crate) fn origin(request: &Parts) -> Option<String> {
    let text = |name: HeaderName| request.headers.get(name)?.to_str().ok();
    let host: Authority = text(HOST)?.parse().ok()?;
    let told = text(FORWARDED_PROTO).and_then(|schemes| schemes.split(',').next());
    let is_https = request.extensions.get::<Encrypted>().is_some() || told == Some("https");
    let scheme = if is_https { "https" } else { "http" };
    Some(format!("{scheme}://{host}"))
}

/// Addresses cannot be given to who does not say how to reach this server.
pub(crate) fn no_origin() -> Response {
    error(StatusCode::BAD_REQUEST, None, "The request does not say which host it is for")
}
