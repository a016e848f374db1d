//! The registry's face, for Ollama and for everybody who speaks the registry API: manifests byte for byte, and layers.

use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::digest::Sha256;
use crate::serve::answer::{self, typed};
use crate::serve::catalog::{ImageManifest, Images};
use crate::serve::route::RegistryItem;
use crate::serve::{Site, content};

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// That this is a registry, and that nobody need log in.
pub(crate) fn version() -> Response {
    let mut response = answer::json(StatusCode::OK, &json!({}));
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

pub(crate) async fn answer(site: &Site, repository: &str, item: &RegistryItem, request: &Parts) -> Response {
    let Some(images) = site.catalog.registry.get(repository) else {
        return refused("NAME_UNKNOWN", "repository name not known to registry", repository);
    };
    match item {
        RegistryItem::Manifest { reference } => match find_manifest(images, reference) {
            Some(manifest) => send_manifest(manifest),
            None => refused("MANIFEST_UNKNOWN", "manifest unknown", reference),
        },
        RegistryItem::Blob { digest } => send_blob(site, images, digest, request).await,
        RegistryItem::Tags => list(&request.uri, images.tags.keys(), |tags| json!({"name": repository, "tags": tags})),
    }
}

/// The names of everything that this registry has.
pub(crate) fn list_repositories(site: &Site, uri: &Uri) -> Response {
    list(uri, site.catalog.registry.keys(), |names| json!({ "repositories": names }))
}

/// As many of `names` as are asked for with `n`, after the one that is `last`; the rest is a link.
fn list<'a>(uri: &Uri, names: impl Iterator<Item = &'a String>, told: impl FnOnce(&[&String]) -> Value) -> Response {
    let query = |wanted: &str| {
        let mut pairs = form_urlencoded::parse(uri.query().unwrap_or("").as_bytes());
        pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
    };
    let last = query("last").unwrap_or_default();
    let mut names: Vec<&String> = names.filter(|name| **name > last).collect();
    let wanted = match query("n").map(|number| number.parse::<usize>()) {
        None => names.len(),
        Some(Ok(number)) => number,
        Some(Err(_)) => {
            return answer::json(
                StatusCode::BAD_REQUEST,
                &errors("PAGINATION_NUMBER_INVALID", "invalid number of results requested", None),
            );
        }
    };
    let has_more = names.len() > wanted;
    names.truncate(wanted);
    let mut response = answer::json(StatusCode::OK, &told(&names));
    if let Some(last) = names.last().filter(|_| has_more) {
        let next = form_urlencoded::Serializer::new(String::new())
            .append_pair("n", &wanted.to_string())
            .append_pair("last", last)
            .finish();
        let link = format!("<{}?{next}>; rel=\"next\"", uri.path());
        response.headers_mut().extend(HeaderValue::from_str(&link).ok().map(|link| (LINK, link)));
    }
    response
}

/// Answers that come from elsewhere have no body that clients of registries understand: they get one.
pub(crate) fn in_its_words(response: Response) -> Response {
    let (code, message) = match response.status() {
        StatusCode::UNAUTHORIZED => ("UNAUTHORIZED", "this mirror asks for its token"),
        StatusCode::FORBIDDEN => ("DENIED", "this address may not read from this mirror"),
        StatusCode::METHOD_NOT_ALLOWED => ("UNSUPPORTED", "this mirror is read-only"),
        StatusCode::NOT_FOUND if !response.headers().contains_key(CONTENT_TYPE) => {
            ("NAME_UNKNOWN", "nothing of a registry has this address")
        }
        _ => return response,
    };
    let (mut head, _) = response.into_parts();
    let told = answer::json(head.status, &errors(code, message, None));
    head.headers.extend(told.headers().clone());
    Response::from_parts(head, told.into_body())
}

fn find_manifest<'a>(images: &'a Images, reference: &str) -> Option<&'a ImageManifest> {
    let by_digest = |digest: Sha256| images.tags.values().find(|manifest| manifest.digest == digest);
    let found = match digest(reference) {
        Some(digest) => by_digest(digest),
        None => images.tags.get(reference),
    };
    found.map(AsRef::as_ref)
}

fn send_manifest(manifest: &ImageManifest) -> Response {
    let mut response = typed(StatusCode::OK, MANIFEST_TYPE, manifest.bytes.clone());
    name_content(response.headers_mut(), manifest.digest);
    response
}

async fn send_blob(site: &Site, images: &Images, wanted: &str, request: &Parts) -> Response {
    let Some((digest, item)) = digest(wanted).and_then(|digest| Some((digest, images.blobs.get(&digest)?))) else {
        return refused("BLOB_UNKNOWN", "blob unknown to registry", wanted);
    };
    if item.content().is_none() {
        return refused("BLOB_UNKNOWN", "blob unknown to registry: this machine does not have it", wanted);
    }
    let mut headers = HeaderMap::new();
    name_content(&mut headers, digest);
    let mut response = content::send(site, item, Some(format!("sha256:{digest}")), headers, request).await;
    // Ollama asks for the whole blob once, and takes the address for its ranges from here even with 200.
    let is_whole = request.method == Method::GET && response.status() == StatusCode::OK;
    if let Some(path) = HeaderValue::from_str(request.uri.path()).ok().filter(|_| is_whole) {
        response.headers_mut().insert(LOCATION, path);
    }
    response
}

fn digest(text: &str) -> Option<Sha256> {
    text.strip_prefix("sha256:")?.parse().ok()
}

fn name_content(headers: &mut HeaderMap, digest: Sha256) {
    if let Ok(digest) = HeaderValue::from_str(&format!("sha256:{digest}")) {
        headers.insert(CONTENT_DIGEST, digest);
    }
}

fn refused(code: &str, message: &str, detail: &str) -> Response {
    answer::json(StatusCode::NOT_FOUND, &errors(code, message, Some(detail)))
}

fn errors(code: &str, message: &str, detail: Option<&str>) -> Value {
    json!({"errors": [{"code": code, "message": message, "detail": detail}]})
}
