//! What a registry means when it says no.

use reqwest::StatusCode;
use serde::Deserialize;

use super::{Ask, same_origin};
use crate::digest::Sha256;
use crate::sources::network::Answer;
use crate::sources::trail::plain;
use crate::sources::{SourceError, body};

/// So much of a refusal's text is read.
const REFUSAL_LIMIT: usize = 16 << 10;

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// An image's manifest.
    Manifest,
    /// One of its blobs.
    Blob(Sha256),
}

#[derive(Deserialize)]
struct Refusal {
    errors: Vec<Reason>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reason {
    code: String,
    message: String,
}

/// The error that an answer other than success stands for.
pub(super) async fn refusal(ask: &Ask<'_>, version: &str, response: Answer) -> SourceError {
    let status = response.status();
    let from_registry = same_origin(response.url(), &ask.address);
    let otherwise = body::refusal(status, response.headers(), &plain(response.url()));
    let reason = reason(response).await;
    let what = ask.what();
    match status {
        StatusCode::UNAUTHORIZED if from_registry => SourceError::TokenRefused { what },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => SourceError::Forbidden { what, message: reason.message },
        StatusCode::NOT_FOUND => {
            let whole = !matches!(ask.phase, Phase::Blob(_));
            SourceError::NotFound { what: missing(ask, &reason.code), whole }
        }
        StatusCode::PRECONDITION_FAILED => SourceError::NeedsNewerOllama { what, version: version.to_owned() },
        _ => otherwise,
    }
}

fn missing(ask: &Ask<'_>, code: &str) -> String {
    let name = ask.name;
    match (&ask.phase, code) {
        (Phase::Blob(_), _) => ask.what(),
        (Phase::Manifest, "NAME_UNKNOWN") => {
            format!("model {}/{} of registry {}", name.namespace, name.model, name.host)
        }
        (Phase::Manifest, "MANIFEST_UNKNOWN") => {
            format!("tag {} of model {}/{} of registry {}", name.tag, name.namespace, name.model, name.host)
        }
        (Phase::Manifest, _) => format!("model or tag {} of registry {}", name, name.host),
    }
}

async fn reason(mut response: Answer) -> Reason {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > REFUSAL_LIMIT {
            break;
        }
    }
    let told = serde_json::from_slice::<Refusal>(&bytes).ok().and_then(|refusal| refusal.errors.into_iter().next());
    let mut reason = told
        .unwrap_or_else(|| Reason { code: String::new(), message: String::from_utf8_lossy(&bytes).trim().to_owned() });
    reason.message = body::printable(&reason.message);
    if reason.message.is_empty() {
        reason.message = "the server gives no reason".to_owned();
    }
    reason
}
