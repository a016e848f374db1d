//! The Hugging Face hub's face: what `huggingface_hub` needs to list, download and verify a repository.
//!
//! Every file is answered at once with 200, its content's name as `ETag` and the commit. Where the file's name in
//! Xet is known it is mentioned, and leads to Xet's face of this server: clients take the bytes from here either way.

use axum::body::{Body, to_bytes};
use axum::http::header::{HeaderMap, HeaderName, HeaderValue, LINK};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::artifact::HubRepo;
use crate::serve::answer::{error, json as json_answer, origin};
use crate::serve::catalog::Repository;
use crate::serve::listing::{Snapshot, entry, list, sibling};
use crate::serve::patience::is_late;
use crate::serve::route::{HubAsk, HubRequest};
use crate::serve::{Site, content, xet};

const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
/// Entries on one page of a listing, as on the hub.
const PAGE: usize = 1000;
const PAGE_EXPANDED: usize = 50;
/// The longest list of paths that is read from a request.
const MAX_PATHS_BODY: usize = 1 << 20;

/// Nobody is logged in: there are no users here.
pub(crate) fn nobody() -> Response {
    error(StatusCode::UNAUTHORIZED, None, "This mirror has no users; no token is needed")
}

/// Answers the first reading whose repository is known.
pub(crate) async fn answer(site: &Site, asked: Vec<HubRequest>, request: &Parts, body: Body) -> Response {
    let hub = &site.catalog.hub;
    let Some((HubRequest { repo, ask }, repository)) =
        asked.into_iter().find_map(|asked| hub.get(&asked.repo).map(|repository| (asked, repository)))
    else {
        return error(StatusCode::NOT_FOUND, Some("RepoNotFound"), "Repository not found on this mirror");
    };
    let repository = Known { repo: &repo, repository };
    match ask {
        HubAsk::Refs => json_answer(StatusCode::OK, &refs(&repository, &request.uri)),
        HubAsk::Summary { revision } => repository.with(revision.as_deref().unwrap_or("main"), |at| {
            json_answer(StatusCode::OK, &summary(at, flag(&request.uri, "blobs")))
        }),
        HubAsk::Tree { revision, path } => repository.with(&revision, |at| tree(at, &path, request)),
        HubAsk::PathsInfo { revision } => match paths(request, body).await {
            Ok(paths) => repository.with(&revision, |at| paths_info(at, &paths)),
            Err((status, reason)) => error(status, None, &reason),
        },
        HubAsk::XetPass { revision } => repository.with(&revision, |_| xet::pass(site, request)),
        HubAsk::Resolve { revision, path } => resolve(site, &repository, &revision, &path, request).await,
    }
}

/// A repository together with its name.
struct Known<'a> {
    repo: &'a HubRepo,
    repository: &'a Repository,
}

/// A repository at one commit.
struct At<'a> {
    repo: &'a HubRepo,
    commit: &'a str,
    files: &'a Snapshot,
}

impl<'a> Known<'a> {
    fn at(&self, revision: &str) -> Option<At<'a>> {
        let repository = self.repository;
        let commit = repository.names.get(revision).map_or(revision, String::as_str);
        let (commit, files) = repository.snapshots.get_key_value(commit)?;
        Some(At { repo: self.repo, commit, files })
    }

    fn with(&self, revision: &str, answer: impl FnOnce(&At<'a>) -> Response) -> Response {
        self.at(revision).map_or_else(|| self.no_revision(revision), |at| answer(&at))
    }

    fn no_revision(&self, revision: &str) -> Response {
        let message = format!("{} has no revision {revision:?} on this mirror", self.repo);
        error(StatusCode::NOT_FOUND, Some("RevisionNotFound"), &message)
    }
}

impl At<'_> {
    fn headers(&self) -> HeaderMap {
        HeaderValue::from_str(self.commit).map(|commit| (REPO_COMMIT, commit)).into_iter().collect()
    }

    fn no_entry(&self, path: &str) -> Response {
        let message = format!("{} has no {path:?} at {} on this mirror", self.repo, self.commit);
        let mut response = error(StatusCode::NOT_FOUND, Some("EntryNotFound"), &message);
        response.headers_mut().extend(self.headers());
        response
    }
}

fn summary(at: &At<'_>, with_blobs: bool) -> Value {
    let siblings: Vec<Value> = at.files.iter().map(|(path, file)| sibling(path, file, with_blobs)).collect();
    json!({
        "id": at.repo.id,
        "modelId": at.repo.id,
        "sha": at.commit,
        "siblings": siblings,
        "private": false,
        "gated": false,
        "disabled": false,
        "tags": [],
    })
}

fn tree(at: &At<'_>, path: &str, request: &Parts) -> Response {
    let uri = &request.uri;
    let Some(entries) = list(at.files, path.trim_end_matches('/'), flag(uri, "recursive")) else {
        return at.no_entry(path);
    };
    let largest = if flag(uri, "expand") { PAGE_EXPANDED } else { PAGE };
    let limit = query(uri, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(largest).clamp(1, largest);
    let Some(start) = query(uri, "cursor").map_or(Some(0), |cursor| cursor.parse::<usize>().ok()) else {
        return error(StatusCode::BAD_REQUEST, None, "The cursor is not one of this mirror");
    };
    let page: Vec<Value> = entries.iter().skip(start).take(limit).map(|entry| entry.to_json()).collect();
    let mut response = json_answer(StatusCode::OK, &page);
    response.headers_mut().extend(at.headers());
    let next = start.saturating_add(limit);
    if next < entries.len() {
        response.headers_mut().extend(next_page(request, next).map(|link| (LINK, link)));
    }
    response
}

/// The same question with another cursor. Clients need the whole address, so it is built from `Host`.
fn next_page(request: &Parts, cursor: usize) -> Option<HeaderValue> {
    let uri = &request.uri;
    let origin = origin(request).unwrap_or_default();
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs(uri).filter(|(name, _)| name != "cursor"));
    query.append_pair("cursor", &cursor.to_string());
    HeaderValue::from_str(&format!("<{origin}{}?{}>; rel=\"next\"", uri.path(), query.finish())).ok()
}

fn refs(known: &Known<'_>, uri: &Uri) -> Value {
    let one = |name: &str, commit: &str, full: String| json!({"name": name, "ref": full, "targetCommit": commit});
    let names = known.repository.names.iter();
    let (special, branches): (Vec<_>, Vec<_>) = names.partition(|(name, _)| name.starts_with("refs/"));
    let branches: Vec<Value> =
        branches.into_iter().map(|(name, commit)| one(name, commit, format!("refs/heads/{name}"))).collect();
    let mut refs = json!({"branches": branches, "tags": [], "converts": []});
    if flag(uri, "include_prs") {
        refs["pullRequests"] = special.into_iter().map(|(name, commit)| one(name, commit, name.clone())).collect();
    }
    refs
}

async fn resolve(site: &Site, known: &Known<'_>, revision: &str, path: &str, request: &Parts) -> Response {
    let Some(at) = known.at(revision) else {
        return known.no_revision(revision);
    };
    match at.files.get(path) {
        Some(file) => {
            let mut headers = at.headers();
            headers.extend(xet::announcement(at.repo, at.commit, file, request));
            content::send(site, &file.item, Some(file.id.etag()), headers, request).await
        }
        None => at.no_entry(path),
    }
}

fn paths_info(at: &At<'_>, paths: &[String]) -> Response {
    let found: Vec<Value> = paths.iter().filter_map(|path| Some(entry(at.files, path)?.to_json())).collect();
    json_answer(StatusCode::OK, &found)
}

/// The paths of a form (`paths=a&paths=b`) or of a JSON object (`{"paths": ["a", "b"]}`).
async fn paths(request: &Parts, body: Body) -> Result<Vec<String>, (StatusCode, String)> {
    #[derive(Deserialize)]
    struct Paths {
        paths: Vec<String>,
    }
    let media_type = request.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
    let is_json = media_type.starts_with("application/json");
    let body = to_bytes(body, MAX_PATHS_BODY).await.map_err(|error| unread(&error))?;
    if is_json {
        let read = serde_json::from_slice::<Paths>(&body).map(|body| body.paths);
        return read.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()));
    }
    Ok(form_urlencoded::parse(&body).filter(|(name, _)| name == "paths").map(|(_, path)| path.into_owned()).collect())
}

fn unread(cause: &axum::Error) -> (StatusCode, String) {
    if is_late(cause) {
        return (StatusCode::REQUEST_TIMEOUT, "The list of paths did not come in time".to_owned());
    }
    let reason = format!("The list of paths cannot be read, or has more than {MAX_PATHS_BODY} bytes");
    (StatusCode::BAD_REQUEST, reason)
}

fn pairs(uri: &Uri) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(uri.query().unwrap_or("").as_bytes())
}

fn query(uri: &Uri, wanted: &str) -> Option<String> {
    pairs(uri).find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
}

fn flag(uri: &Uri, wanted: &str) -> bool {
    query(uri, wanted).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | ""))
}
