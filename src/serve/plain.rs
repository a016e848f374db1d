//! larder's own face: files by artifact and path, content by digest, the lock, and what there is.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::http::request::Parts;
use axum::response::Response;
use serde_json::{Value, json};

use crate::digest::{CHUNK_LEN, ChunkDigests, ContentName, GitSha1, Sha256};
use crate::serve::answer::{error, json as json_answer, typed};
use crate::serve::catalog::{Catalog, Item};
use crate::serve::{Site, bring, content};

/// Says that the content is not here, and that asking for it by `bring` changes that.
const CAN_BE_BROUGHT: &str = "CanBeBrought";

/// What this is and what it has.
pub(crate) fn home(catalog: &Catalog) -> Value {
    json!({
        "name": "larder",
        "version": env!("CARGO_PKG_VERSION"),
        "artifacts": catalog.summaries,
    })
}

pub(crate) fn lock(catalog: &Catalog) -> Response {
    match &catalog.lock {
        Some(text) => typed(StatusCode::OK, "application/json", text.clone()),
        None => error(StatusCode::NOT_FOUND, None, "This server has no lock"),
    }
}

pub(crate) async fn file(site: &Site, artifact: &str, path: &str, request: &Parts) -> Response {
    let Some(files) = site.catalog.files.get(artifact) else {
        return error(StatusCode::NOT_FOUND, None, &format!("There is no artifact {artifact:?}"));
    };
    match files.get(path) {
        Some(item) => send(site, item, request).await,
        None => error(StatusCode::NOT_FOUND, None, &format!("{artifact:?} has no file {path:?}")),
    }
}

pub(crate) async fn blob(site: &Site, name: &ContentName, request: &Parts) -> Response {
    match site.catalog.blobs.get(name) {
        Some(item) if bring::can_be_brought(site, item) => error(
            StatusCode::NOT_FOUND,
            Some(CAN_BE_BROUGHT),
            &format!("{} is not here yet, but can be brought", item.name),
        ),
        Some(item) => send(site, item, request).await,
        None => no_content(name),
    }
}

/// Nobody here knows a content of this name.
pub(crate) fn no_content(name: &ContentName) -> Response {
    error(StatusCode::NOT_FOUND, None, &format!("There is no content {name}"))
}

/// The names of all content that is here, and of what can be brought: what another larder asks before it plans.
pub(crate) fn have(site: &Site) -> Value {
    let blobs = &site.catalog.blobs;
    let here = blobs.iter().filter(|(_, item)| item.content().is_some()).map(|(name, _)| *name);
    let mut told = names(here);
    if site.supply.is_some() {
        let brought = blobs.iter().filter(|(_, item)| bring::can_be_brought(site, item)).map(|(name, _)| *name);
        told["brings"] = names(brought);
    }
    told
}

fn names(names: impl Iterator<Item = ContentName> + Clone) -> Value {
    let sha256: BTreeSet<Sha256> = names
        .clone()
        .filter_map(|name| match name {
            ContentName::Sha256(digest) => Some(digest),
            ContentName::GitSha1(_) => None,
        })
        .collect();
    let git_sha1: BTreeSet<GitSha1> = names
        .filter_map(|name| match name {
            ContentName::Sha256(_) => None,
            ContentName::GitSha1(digest) => Some(digest),
        })
        .collect();
    json!({ "sha256": sha256, "git-sha1": git_sha1 })
}

/// The chunk digests of a content that is served here: what others find the liar among their sources by.
pub(crate) async fn chunks(site: &Site, digest: &str) -> Response {
    let unknown = || error(StatusCode::NOT_FOUND, None, &format!("The chunks of {digest:?} are not known here"));
    let Some(digest) =
        digest.parse::<Sha256>().ok().filter(|digest| site.catalog.blobs.contains_key(&ContentName::Sha256(*digest)))
    else {
        return unknown();
    };
    let Some(facts) = site.catalog.facts.clone() else { return unknown() };
    match tokio::task::spawn_blocking(move || facts.chunks(&digest)).await {
        Ok(Ok(Some(chunks))) => json_answer(StatusCode::OK, &describe(&chunks)),
        Ok(Ok(None)) | Err(_) => unknown(),
        Ok(Err(cause)) => {
            tracing::warn!(%cause, "chunk digests cannot be read");
            unknown()
        }
    }
}

fn describe(chunks: &ChunkDigests) -> Value {
    json!({ "size": chunks.content_len(), "chunk-len": CHUNK_LEN, "blake3": chunks.digests() })
}

async fn send(site: &Site, item: &Arc<Item>, request: &Parts) -> Response {
    let digests = item.digests;
    let etag = digests.sha256.map(|digest| digest.to_string()).or(digests.git_sha1.map(|digest| digest.to_string()));
    content::send(site, item, etag, HeaderMap::new(), request).await
}
