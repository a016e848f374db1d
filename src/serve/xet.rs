//! The face of Xet: what `hf_xet` needs to read files of the hub's face in many ranges at once.
//!
//! Xet keeps content in xorbs, which are chunks one after the other, and tells clients from which of them a
//! file is put together. Here each file is a xorb of its own that is made as it is sent: see [`Xorb`]. Names are those
//! of the hub, from the lock; a file whose name there is not known is not mentioned.
//!
//! Whoever is admitted gets a pass from the hub's face, and for the pass signed links, as from the hub.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, LINK, RANGE};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;
use serde_json::json;
use url::form_urlencoded;

use crate::artifact::HubRepo;
use crate::digest::{Blake3, XetHash};
use crate::serve::answer::{error, json as json_answer, no_origin, origin};
use crate::serve::catalog::HubFile;
use crate::serve::range::{Part, part};
use crate::serve::route::{Question, XetAsk};
use crate::serve::{Site, content};

mod seal;
mod xorb;

pub use seal::Seal;
use xorb::Term;
pub(crate) use xorb::Xorb;

const HASH: HeaderName = HeaderName::from_static("x-xet-hash");
const STORE: HeaderName = HeaderName::from_static("x-xet-cas-url");
const PASS: HeaderName = HeaderName::from_static("x-xet-access-token");
const PASS_EXPIRES: HeaderName = HeaderName::from_static("x-xet-token-expiration");

/// Where this face begins. No repository's name can begin like this.
const PREFIX: &str = "/api/xet";
/// How long passes and links are good for, in seconds. Clients ask for new ones by themselves.
const LIFETIME: u64 = 3600;
/// What the seal of a pass is on.
const READING: &str = "pass";

/// Whether what the request brings makes up for the token: a pass, which was given to somebody who was admitted.
///
/// Links are looked at when they are answered: clients need to hear that one is refused, not that a token is missing.
pub(crate) fn vouches(seals: &Seal, ask: &XetAsk, headers: &HeaderMap) -> bool {
    match ask {
        XetAsk::Xorb { .. } => true,
        XetAsk::Reconstruction { .. } => {
            let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
            let pass = shown.and_then(|pass| pass.split_once('.'));
            pass.is_some_and(|(expires, seal)| seals.is_on(READING, expires, seal, now()))
        }
    }
}

/// What the hub says beside a file that lies in Xet; nothing where its name there is not known.
pub(crate) fn announcement(repo: &HubRepo, commit: &str, file: &HubFile, request: &Parts) -> HeaderMap {
    let told = || {
        let (hash, origin) = (file.in_xet()?, origin(request)?);
        let (kind, id) = (repo.kind.plural(), &repo.id);
        let links = format!(
            "<{origin}/api/{kind}/{id}/xet-read-token/{commit}>; rel=\"xet-auth\", \
             <{origin}{PREFIX}/v1/reconstructions/{hash}>; rel=\"xet-reconstruction-info\""
        );
        let text = |text: &str| HeaderValue::from_str(text).ok();
        Some([(HASH, text(&hash.to_string())?), (LINK, text(&links)?)])
    };
    told().into_iter().flatten().collect()
}

/// The right to ask this face for an hour, in the body and in headers: clients read one or the other.
pub(crate) fn pass(site: &Site, request: &Parts) -> Response {
    let Some(origin) = origin(request) else { return no_origin() };
    let (expires, store) = (now() + LIFETIME, format!("{origin}{PREFIX}"));
    let pass = format!("{expires}.{}", site.seal.on(READING, expires));
    let mut response = secret(&json!({ "accessToken": pass, "exp": expires, "casUrl": store }));
    let told = [(STORE, store), (PASS, pass), (PASS_EXPIRES, expires.to_string())];
    let told = told.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::from_str(&value).ok()?)));
    response.headers_mut().extend(told);
    response
}

pub(crate) async fn answer(site: &Site, ask: &XetAsk, request: &Parts) -> Response {
    match ask {
        XetAsk::Reconstruction { question, hash } => reconstruction(site, *question, hash, request).await,
        XetAsk::Xorb { hash } => xorb(site, hash, request).await,
    }
}

/// From which chunks the file, or the part of it that is asked for, is put together, and where they are.
async fn reconstruction(site: &Site, question: Question, hash: &XetHash, request: &Parts) -> Response {
    let Some(item) = site.catalog.xet.get(hash) else { return unknown(hash) };
    let len = match content::open(site, item).await {
        Ok(opened) => opened.len(),
        Err(refusal) => return *refusal,
    };
    let range = match part(request.headers.get(RANGE).and_then(|value| value.to_str().ok()), len) {
        Part::Whole => 0..len,
        Part::Bytes(range) => range,
        Part::Unsatisfiable => return content::unsatisfiable(len),
    };
    let Some(origin) = origin(request) else { return no_origin() };
    let expires = now() + LIFETIME;
    let signature = site.seal.on(&sealed(hash), expires);
    let url = format!("{origin}{PREFIX}/xorbs/{hash}?expires={expires}&signature={signature}");
    match question {
        Question::V1 => secret(&told_v1(hash, len, range, &url)),
        Question::V2 => secret(&told_v2(hash, len, range, &url)),
    }
}

/// A file as the xorb that it is put together from, to who has the link.
async fn xorb(site: &Site, hash: &XetHash, request: &Parts) -> Response {
    let given = |wanted: &str| query(&request.uri, wanted).unwrap_or_default();
    if !site.seal.is_on(&sealed(hash), &given("expires"), &given("signature"), now()) {
        return error(StatusCode::FORBIDDEN, None, "This link is not one of this mirror, or has run out");
    }
    match site.catalog.xet.get(hash) {
        Some(item) => content::send_xorb(site, item, request).await,
        None => unknown(hash),
    }
}

fn unknown(hash: &XetHash) -> Response {
    error(StatusCode::NOT_FOUND, None, &format!("There is no content {}:{hash}", XetHash::ALGORITHM))
}

/// What the seal of a link is on.
fn sealed(hash: &XetHash) -> String {
    format!("xorb {hash}")
}

/// An answer that is of use to whoever reads it, so that nobody between keeps it.
fn secret(value: &impl Serialize) -> Response {
    let mut response = json_answer(StatusCode::OK, value);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn query(uri: &Uri, wanted: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query().unwrap_or("").as_bytes());
    pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The name of the xorb. Clients may keep its chunks by this name, so no real xorb has it, and no other file.
fn xorb_name(hash: &XetHash) -> String {
    Blake3::of(format!("larder: {hash} as one xorb of 64 KiB chunks").as_bytes()).to_string()
}

#[derive(Serialize)]
struct Told<Places> {
    /// How many bytes of the first term come before what was asked for.
    offset_into_first_range: u64,
    terms: Vec<ToldTerm>,
    #[serde(flatten)]
    places: Places,
}

#[derive(Serialize)]
struct ToldTerm {
    hash: String,
    unpacked_length: u64,
    range: Span,
}

/// By xorb; each range by itself, so that no client makes one request of several.
#[derive(Serialize)]
struct PlacesV1<'a> {
    fetch_info: HashMap<String, Vec<PlaceV1<'a>>>,
}

#[derive(Serialize)]
struct PlacesV2<'a> {
    xorbs: HashMap<String, Vec<PlaceV2<'a>>>,
}

#[derive(Serialize)]
struct PlaceV1<'a> {
    range: Span,
    url: &'a str,
    url_range: Span,
}

#[derive(Serialize)]
struct PlaceV2<'a> {
    url: &'a str,
    ranges: [RangeV2; 1],
}

#[derive(Serialize)]
struct RangeV2 {
    chunks: Span,
    bytes: Span,
}

/// Of chunks: without the last number. Of bytes: with it, as in a `Range` header.
#[derive(Serialize)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    fn chunks(term: &Term) -> Self {
        Self { start: term.chunks.start, end: term.chunks.end }
    }

    fn bytes(term: &Term) -> Self {
        Self { start: term.bytes.start, end: term.bytes.end - 1 }
    }
}

fn told_v1<'a>(hash: &XetHash, len: u64, range: Range<u64>, url: &'a str) -> Told<PlacesV1<'a>> {
    let place = |term: &Term| PlaceV1 { range: Span::chunks(term), url, url_range: Span::bytes(term) };
    told(hash, len, range, |name, terms| PlacesV1 { fetch_info: [(name, terms.iter().map(place).collect())].into() })
}

fn told_v2<'a>(hash: &XetHash, len: u64, range: Range<u64>, url: &'a str) -> Told<PlacesV2<'a>> {
    let ranges = |term: &Term| [RangeV2 { chunks: Span::chunks(term), bytes: Span::bytes(term) }];
    let place = |term: &Term| PlaceV2 { url, ranges: ranges(term) };
    told(hash, len, range, |name, terms| PlacesV2 { xorbs: [(name, terms.iter().map(place).collect())].into() })
}

fn told<Places>(
    hash: &XetHash,
    len: u64,
    range: Range<u64>,
    places: impl FnOnce(String, &[Term]) -> Places,
) -> Told<Places> {
    let (name, xorb) = (xorb_name(hash), Xorb::of(len));
    let terms: Vec<Term> = xorb.terms(&range).collect();
    let told = |term: &Term| ToldTerm { hash: name.clone(), unpacked_length: term.unpacked, range: Span::chunks(term) };
    Told {
        offset_into_first_range: xorb::offset_in_chunk(range.start),
        terms: terms.iter().map(told).collect(),
        places: places(name.clone(), &terms),
    }
}
