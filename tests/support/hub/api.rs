//! What the hub says about repositories: revisions, trees, and passes to Xet.

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::files::gate;
use super::{Access, Call, Content, git_sha1, key, pointer, sha256, split};

pub(super) fn api(call: &Call, kind: &str, parts: &[&str]) -> Response {
    let Some((id, question, rest)) = split(parts, &["revision", "tree", "paths-info", "refs", "xet-read-token"]) else {
        let id = parts.join("/");
        return with_commit(call, &key(kind, &id), "main", |commit, files| info(&id, commit, files));
    };
    let id = &id;
    match (question, rest) {
        ("revision", [revision]) => {
            with_commit(call, &key(kind, id), revision, |commit, files| info(id, commit, files))
        }
        ("tree", [revision, folder @ ..]) => {
            let folder = folder.join("/");
            with_commit(call, &key(kind, id), revision, |_, files| tree(call, files, &folder))
        }
        ("paths-info", [revision]) => with_commit(call, &key(kind, id), revision, |_, files| paths_info(call, files)),
        ("xet-read-token", [revision]) => match gate(call, &key(kind, id)) {
            Some(refused) => refused,
            None => with_commit(call, &key(kind, id), revision, |_, _| pass(call)),
        },
        ("refs", []) => refs(call, &key(kind, id)),
        _ => refusal(StatusCode::NOT_FOUND, None, "Not found"),
    }
}

/// Finds a commit among those that the caller may see, or refuses as the real hub does.
pub(super) fn with_commit(
    call: &Call,
    key: &str,
    revision: &str,
    answer: impl FnOnce(&str, &BTreeMap<String, Content>) -> Response,
) -> Response {
    let found = {
        let world = call.shared.world();
        let Some(repo) = world.repos.get(key) else { return unknown_repo(call) };
        match &repo.access {
            Access::Private(tokens) if !call.token().is_some_and(|token| tokens.iter().any(|t| t == token)) => {
                return unknown_repo(call);
            }
            Access::Disabled => {
                return refusal(StatusCode::FORBIDDEN, None, "Access to this resource is disabled.");
            }
            _ => {}
        }
        let commit = repo.refs.get(revision).map_or(revision, String::as_str).to_owned();
        repo.commits.get(&commit).map(|files| (commit, files.clone()))
    };
    match found {
        Some((commit, files)) => answer(&commit, &files),
        None => refusal(StatusCode::NOT_FOUND, Some("RevisionNotFound"), &format!("Invalid rev id: {revision}")),
    }
}

/// The hub does not tell strangers whether a repository exists.
fn unknown_repo(call: &Call) -> Response {
    match call.token() {
        None => refusal(StatusCode::UNAUTHORIZED, Some("RepoNotFound"), "Invalid username or password."),
        Some(_) => refusal(StatusCode::NOT_FOUND, Some("RepoNotFound"), "Repository not found"),
    }
}

pub(super) fn refusal(status: StatusCode, code: Option<&str>, message: &str) -> Response {
    let mut response = (status, json!({ "error": message }).to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    headers.insert("x-error-message", message.parse().unwrap());
    if let Some(code) = code {
        headers.insert("x-error-code", code.parse().unwrap());
    }
    response
}

fn json_answer(value: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE.as_str(), "application/json"), ("ratelimit", "\"api\";r=499;t=120")];
    (headers, value.to_string()).into_response()
}

fn info(id: &str, commit: &str, files: &BTreeMap<String, Content>) -> Response {
    let siblings: Vec<Value> = files.keys().map(|path| json!({ "rfilename": path })).collect();
    json_answer(&json!({
        "_id": "000000000000000000000000", "id": id, "modelId": id, "sha": commit, "private": false, "gated": false,
        "disabled": false, "tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z", "siblings": siblings,
    }))
}

/// A pass to Xet, in the body and in headers: clients read one or the other.
fn pass(call: &Call) -> Response {
    let world = call.shared.world();
    let Some(xet) = &world.settings.xet else {
        return refusal(StatusCode::NOT_FOUND, None, "Not found");
    };
    let (token, expires) = (xet.pass)();
    let mut response = json_answer(&json!({ "accessToken": token, "exp": expires, "casUrl": xet.address }));
    let headers = response.headers_mut();
    headers.insert("x-xet-access-token", token.parse().unwrap());
    headers.insert("x-xet-token-expiration", expires.into());
    headers.insert("x-xet-cas-url", xet.address.parse().unwrap());
    response
}

fn refs(call: &Call, key: &str) -> Response {
    let world = call.shared.world();
    let Some(repo) = world.repos.get(key) else { return unknown_repo(call) };
    let branches: Vec<Value> = repo
        .refs
        .iter()
        .map(|(name, commit)| json!({ "name": name, "ref": format!("refs/heads/{name}"), "targetCommit": commit }))
        .collect();
    json_answer(&json!({ "branches": branches, "tags": [], "converts": [], "pullRequests": [] }))
}

fn entry(call: &Call, path: &str, content: &Content) -> Value {
    if !content.lfs {
        return json!({ "type": "file", "path": path, "size": content.bytes.len(), "oid": git_sha1(&content.bytes) });
    }
    let pointer = pointer(&content.bytes);
    let mut entry = json!({
        "type": "file", "path": path, "size": content.bytes.len(), "oid": git_sha1(pointer.as_bytes()),
        "lfs": { "oid": sha256(&content.bytes), "size": content.bytes.len(), "pointerSize": pointer.len() },
    });
    if let Some(hash) = call.shared.world().settings.xet_hash(&content.bytes) {
        entry["xetHash"] = hash.into();
    }
    entry
}

fn tree(call: &Call, files: &BTreeMap<String, Content>, folder: &str) -> Response {
    let query: HashMap<String, String> = url::form_urlencoded::parse(call.query.as_bytes()).into_owned().collect();
    let recursive = query.get("recursive").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let mut folders = HashSet::new();
    let mut entries = Vec::new();
    for (path, content) in files {
        let inside = if folder.is_empty() { Some(path.as_str()) } else { path.strip_prefix(&format!("{folder}/")) };
        let Some(inside) = inside else { continue };
        for (at, _) in inside.match_indices('/').take(if recursive { usize::MAX } else { 1 }) {
            let name = &path[..path.len() - inside.len() + at];
            if folders.insert(name.to_owned()) {
                entries.push(json!({ "type": "directory", "path": name, "oid": git_sha1(name.as_bytes()), "size": 0 }));
            }
        }
        if recursive || !inside.contains('/') {
            entries.push(entry(call, path, content));
        }
    }
    let (size, relative) = {
        let settings = &call.shared.world().settings;
        (settings.page_size, settings.relative_links)
    };
    let from: usize = query.get("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
    let page: Vec<Value> = entries.iter().skip(from).take(size).cloned().collect();
    let mut response = json_answer(&Value::Array(page));
    if from + size < entries.len() {
        let host = if relative { "" } else { call.shared.origin.as_str() };
        let link =
            format!("<{host}{}?recursive={recursive}&expand=false&cursor={}>; rel=\"next\"", call.path, from + size);
        response.headers_mut().insert(header::LINK, link.parse().unwrap());
    }
    response
}

/// Takes a form, as Python sends it, or JSON, as hf-hub does.
fn paths_info(call: &Call, files: &BTreeMap<String, Content>) -> Response {
    let paths: Vec<String> = match serde_json::from_slice::<Value>(&call.body) {
        Ok(json) => {
            json["paths"].as_array().into_iter().flatten().filter_map(|p| p.as_str().map(str::to_owned)).collect()
        }
        Err(_) => {
            url::form_urlencoded::parse(&call.body).filter(|(k, _)| k == "paths").map(|(_, v)| v.into_owned()).collect()
        }
    };
    let found = paths.iter().filter_map(|path| Some(entry(call, path, files.get(path)?))).collect();
    json_answer(&Value::Array(found))
}
