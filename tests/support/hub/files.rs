//! Files: redirects to where they lie, signed links, ranges, and what goes wrong on the way.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};

use super::api::{refusal, with_commit};
use super::{Access, Call, Content, Fault, git_sha1, key, sha256, split};

pub(super) fn resolve(call: &Call, kind: &str, parts: &[&str]) -> Response {
    let Some((id, _, [revision, path @ ..])) = split(parts, &["resolve"]) else {
        return refusal(StatusCode::NOT_FOUND, None, "Not found");
    };
    let path = path.join("/");
    with_commit(call, &key(kind, &id), revision, |commit, files| {
        if let Some(refused) = gate(call, &key(kind, &id)) {
            return refused;
        }
        let mut response = match files.get(&path) {
            Some(content) if content.lfs => to_cdn(call, content),
            Some(content) => to_cache(call, &format!("{kind}/{id}/{commit}"), content),
            None => refusal(StatusCode::NOT_FOUND, Some("EntryNotFound"), "Entry not found"),
        };
        let headers = response.headers_mut();
        headers.insert("x-repo-commit", commit.parse().unwrap());
        headers.entry("ratelimit").or_insert("\"resolvers\";r=2999;t=240".parse().unwrap());
        response
    })
}

pub(super) fn gate(call: &Call, key: &str) -> Option<Response> {
    let world = call.shared.world();
    let Access::Gated { accepted, known } = &world.repos.get(key)?.access else { return None };
    let has = |tokens: &[String]| call.token().is_some_and(|token| tokens.iter().any(|known| known == token));
    if has(accepted) {
        return None;
    }
    let status = if has(known) { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
    Some(refusal(status, Some("GatedRepo"), "Access to this model is restricted."))
}

/// `place` is `kind/id/commit`.
fn to_cache(call: &Call, place: &str, content: &Content) -> Response {
    // The path stays encoded as it was asked for.
    let path =
        call.path.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    let etag = git_sha1(&content.bytes);
    let location = format!("/api/resolve-cache/{place}/{path}?etag=%22{etag}%22");
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
}

/// Private caches ask for the token again, as the real hub does.
pub(super) fn cached(call: &Call, parts: &[&str]) -> Response {
    let [kind, rest @ ..] = parts else { return refusal(StatusCode::NOT_FOUND, None, "Not found") };
    let Some(at) = rest.iter().position(|part| part.len() == 40) else {
        return refusal(StatusCode::NOT_FOUND, None, "Not found");
    };
    let (key, commit, path) = (key(kind, &rest[..at].join("/")), rest[at], rest[at + 1..].join("/"));
    with_commit(call, &key, commit, |commit, files| {
        if let Some(refused) = gate(call, &key) {
            return refused;
        }
        let Some(content) = files.get(&path) else {
            return refusal(StatusCode::NOT_FOUND, Some("EntryNotFound"), "Gone");
        };
        let mut response = file(call, content.bytes.clone());
        let headers = response.headers_mut();
        headers.insert(header::ETAG, format!("\"{}\"", git_sha1(&content.bytes)).parse().unwrap());
        headers.insert("x-repo-commit", commit.parse().unwrap());
        response
    })
}

fn to_cdn(call: &Call, content: &Content) -> Response {
    let mut world = call.shared.world();
    let number = world.links.len() as u64 + 1;
    let uses = world.settings.link_uses;
    world.links.insert(number, (content.bytes.clone(), uses));
    let sha256 = sha256(&content.bytes);
    let location = format!("{}/xet-bridge-us/{sha256}?Expires=1&Signature=secret-signature-{number}", call.shared.cdn);
    let mut response = (StatusCode::FOUND, [(header::LOCATION, location)]).into_response();
    let headers = response.headers_mut();
    headers.insert("x-linked-etag", format!("\"{sha256}\"").parse().unwrap());
    headers.insert("x-linked-size", content.bytes.len().to_string().parse().unwrap());
    if let Some(hash) = world.settings.xet_hash(&content.bytes) {
        headers.insert("x-xet-hash", hash.parse().unwrap());
        let place = call.path.split_once("/resolve/").map_or("", |(id, _)| id);
        let revision = call.path.split_once("/resolve/").and_then(|(_, rest)| rest.split('/').next()).unwrap_or("");
        let mut links =
            format!("<{}/api/models{place}/xet-read-token/{revision}>; rel=\"xet-auth\"", call.shared.origin);
        if let Some(xet) = &world.settings.xet {
            let _ = write!(links, ", <{}/v1/reconstructions/{hash}>; rel=\"xet-reconstruction-info\"", xet.address);
        }
        headers.insert(header::LINK, links.parse().unwrap());
    }
    response
}

/// A file behind a signed link. Like the real one, the CDN has an entity tag of its own, and minds credentials.
pub(super) fn signed(call: &Call) -> Response {
    let bytes = {
        let mut world = call.shared.world();
        let number = call.query.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        match world.links.get_mut(&number) {
            Some((_, Some(0))) | None => None,
            Some((bytes, uses)) => {
                *uses = uses.map(|uses| uses - 1);
                Some(bytes.clone())
            }
        }
    };
    match bytes {
        _ if call.headers.contains_key(header::AUTHORIZATION) => StatusCode::BAD_REQUEST.into_response(),
        None => StatusCode::FORBIDDEN.into_response(),
        Some(bytes) => {
            let etag = cdn_tag(&bytes);
            let mut response = file(call, bytes);
            response.headers_mut().insert(header::ETAG, etag.parse().unwrap());
            response
        }
    }
}

fn cdn_tag(bytes: &[u8]) -> String {
    format!("\"{}\"", sha256(&[b"cdn", bytes].concat()))
}

/// A file's bytes, with ranges, and whatever fault is switched on.
fn file(call: &Call, bytes: Bytes) -> Response {
    let fault = call.fault(|_| true);
    let (bytes, kind) = disguise(fault.as_ref(), bytes);
    let size = bytes.len();
    let asked = call.headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(parse_range);
    // Only the CDN's tag is compared: a file that was exchanged behind it comes whole.
    let other = call
        .headers
        .get(header::IF_RANGE)
        .is_some_and(|tag| call.on_cdn && tag.as_bytes() != cdn_tag(&bytes).as_bytes());
    let asked = if other || matches!(fault, Some(Fault::IgnoreRange)) { None } else { asked };
    let mut response = match asked {
        Some((start, _)) if start >= size => {
            return (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, format!("bytes */{size}"))])
                .into_response();
        }
        Some((start, end)) => {
            let end = end.map_or(size, |last| (last + 1).min(size));
            let mut response = stream(call, bytes.slice(start..end), fault.as_ref());
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = match fault {
                Some(Fault::ContentRange(range)) => range.to_owned(),
                _ => format!("bytes {start}-{}/{size}", end - 1),
            };
            response.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
            response
        }
        None => stream(call, bytes, fault.as_ref()),
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, "bytes".parse().unwrap());
    headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
    if matches!(fault, Some(Fault::Gzip)) {
        headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
    }
    response
}

fn disguise(fault: Option<&Fault>, bytes: Bytes) -> (Bytes, &'static str) {
    const PAGE: &str = "<!DOCTYPE html>\n<html><title>Log in</title><form></form></html>\n";
    let stream = "application/octet-stream";
    match fault {
        Some(Fault::WrongByte) => {
            let mut wrong = bytes.to_vec();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 0x20;
            (wrong.into(), stream)
        }
        Some(Fault::Page { labelled: true }) => (Bytes::from_static(PAGE.as_bytes()), "text/html; charset=utf-8"),
        Some(Fault::Page { labelled: false }) => (Bytes::from_static(PAGE.as_bytes()), stream),
        Some(Fault::Pointer) => (pointer(&bytes).into(), "text/plain"),
        Some(Fault::Chunked { send }) => {
            let mut resized = bytes.to_vec();
            resized.resize(*send, b'+');
            (resized.into(), stream)
        }
        Some(Fault::Longer(by)) => ([bytes.as_ref(), &vec![b'+'; *by]].concat().into(), stream),
        _ => (bytes, stream),
    }
}

fn stream(call: &Call, bytes: Bytes, fault: Option<&Fault>) -> Response {
    let size = bytes.len();
    let (limit, silent) = match fault {
        Some(Fault::CutAt(at)) => (Some(*at), false),
        Some(Fault::StallAt(at)) => (Some(*at), true),
        _ => (None, false),
    };
    let head = call.method == Method::HEAD;
    let good = if head { Bytes::new() } else { bytes.slice(..limit.unwrap_or(size).min(size)) };
    let (shared, entry) = (Arc::clone(&call.shared), call.entry);
    let pieces: Vec<Bytes> = good.chunks(64 << 10).map(Bytes::copy_from_slice).collect();
    let sent = stream::iter(pieces).map(move |piece| {
        if let Some(logged) = shared.world().log.get_mut(entry) {
            logged.sent += piece.len() as u64;
        }
        Ok(piece)
    });
    let end = stream::once(async move {
        if silent {
            std::future::pending::<()>().await;
        }
        // Lets the connection send what it has before it is broken off.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("broken off for the test"))
    });
    let breaks = limit.is_some_and(|limit| limit < size) && !head;
    let body = if breaks { Body::from_stream(sent.chain(end)) } else { Body::from_stream(sent) };
    let mut response = Response::new(body);
    if !matches!(fault, Some(Fault::Chunked { .. })) {
        response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
    }
    response
}

fn parse_range(text: &str) -> Option<(usize, Option<usize>)> {
    let (start, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { None } else { Some(last.parse().ok()?) };
    Some((start.parse().ok()?, last))
}

/// The text that git holds in place of an LFS file.
pub(super) fn pointer(bytes: &[u8]) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n", sha256(bytes), bytes.len())
}
