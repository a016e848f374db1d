//! The content of one file: conditions, ranges, and a stream from the disk in bounded memory.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, IF_RANGE, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use tokio::task::spawn_blocking;

use crate::serve::answer::{empty, error};
use crate::serve::bounds::Bounds;
use crate::serve::catalog::Item;
use crate::serve::listen::Alone;
use crate::serve::range::{Part, part};
use crate::serve::spare::Spare;
use crate::serve::xet::Xorb;
use crate::serve::{Site, Traffic};

/// How much is read at a time for whoever comes when less than [`FEW`] are being sent to.
const LARGE_CHUNK: u64 = 512 << 10;
const FEW: u64 = 8;
/// How much is read at a time.
const CHUNK: u64 = 256 << 10;
/// How much is read at a time for whoever comes when [`MANY`] are being sent to, so that all fit into the memory.
const SMALL_CHUNK: u64 = 64 << 10;
const MANY: u64 = 48;
/// How much is read at a time for a client that is alone.
const IN_PLACE: u64 = 128 << 10;
/// How many chunks of one answer are in memory at most: one on its way out, one being read.
const CHUNKS_AHEAD: usize = 2;

/// Sends `item`, or the part of it that the request asks for, with `headers` added to every good answer.
///
/// `etag` names the content, without quotes. The file on the disk must have the length that the index
/// says: otherwise something is wrong with it, and nothing is sent.
pub(crate) async fn send(
    site: &Site,
    item: &Item,
    etag: Option<String>,
    headers: HeaderMap,
    request: &Parts,
) -> Response {
    let opened = match open(site, item).await {
        Ok(opened) => opened,
        Err(refusal) => return *refusal,
    };
    let etag = etag.and_then(|etag| HeaderValue::from_str(&format!("\"{etag}\"")).ok());
    let mut response = match evaluate(request, etag.as_ref(), opened.len()) {
        Outcome::NotModified => empty(StatusCode::NOT_MODIFIED),
        Outcome::Unsatisfiable => return unsatisfiable(opened.len()),
        Outcome::Send { range, status } => body(site, request, opened, range, status),
    };
    if let Some(etag) = etag {
        response.headers_mut().insert(ETAG, etag);
    }
    response.headers_mut().extend(headers);
    response
}

/// Sends `item` as the xorb that Xet's clients put it together from, or a part of that.
pub(crate) async fn send_xorb(site: &Site, item: &Item, request: &Parts) -> Response {
    let opened = match open(site, item).await {
        Ok(opened) => Opened { xorb: Some(Xorb::of(opened.len)), ..opened },
        Err(refusal) => return *refusal,
    };
    match evaluate(request, None, opened.len()) {
        Outcome::NotModified => empty(StatusCode::NOT_MODIFIED),
        Outcome::Unsatisfiable => unsatisfiable(opened.len()),
        Outcome::Send { range, status } => body(site, request, opened, range, status),
    }
}

/// The answer to a request for bytes that a content of `len` bytes does not have.
pub(crate) fn unsatisfiable(len: u64) -> Response {
    let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
    set(response.headers_mut(), CONTENT_RANGE, &format!("bytes */{len}"));
    response
}

/// A content that can be sent.
pub(crate) struct Opened {
    file: std::fs::File,
    /// The file's length.
    len: u64,
    /// What is sent in its stead.
    xorb: Option<Xorb>,
}

impl Opened {
    /// How many bytes there are to send.
    pub(crate) fn len(&self) -> u64 {
        self.xorb.map_or(self.len, Xorb::len)
    }

    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        match self.xorb {
            None => self.file.read_exact_at(bytes, at),
            Some(xorb) => xorb.read(bytes, at, |bytes, at| self.file.read_exact_at(bytes, at)),
        }
    }
}

/// Opens the content of `item`, which must have the length that the index says; else answers why not.
pub(crate) async fn open(site: &Site, item: &Item) -> Result<Opened, Box<Response>> {
    let Some(path) = item.content().cloned() else {
        return Err(Box::new(not_here(&item.name)));
    };
    let bounds = Arc::clone(&site.catalog.bounds);
    let opened = match spawn_blocking(move || open_file(&bounds, &path)).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(cause)) => return Err(Box::new(unreadable(&item.name, &cause))),
        Err(_) => return Err(Box::new(error(StatusCode::INTERNAL_SERVER_ERROR, None, "Reading was interrupted"))),
    };
    if item.size.is_some_and(|size| size != opened.len) {
        return Err(Box::new(wrong_length(&item.name, item.size, opened.len)));
    }
    Ok(opened)
}

fn open_file(bounds: &Bounds, path: &Path) -> io::Result<Opened> {
    let file = bounds.open(path)?;
    let len = file.metadata()?.len();
    // Only advice: reading works without it.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    Ok(Opened { file, len, xorb: None })
}

enum Outcome {
    NotModified,
    Unsatisfiable,
    Send { range: Range<u64>, status: StatusCode },
}

fn evaluate(request: &Parts, etag: Option<&HeaderValue>, len: u64) -> Outcome {
    let headers = &request.headers;
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = etag.and_then(|etag| etag.to_str().ok());
    if text(IF_NONE_MATCH).is_some_and(|known| matches_any(known, etag)) {
        return Outcome::NotModified;
    }
    // A range of a content that the client has not begun with would make a mixture.
    let same_content = text(IF_RANGE).is_none_or(|known| Some(known) == etag);
    let range = text(RANGE).filter(|_| same_content && request.method == Method::GET);
    match part(range, len) {
        Part::Whole => Outcome::Send { range: 0..len, status: StatusCode::OK },
        Part::Bytes(range) => Outcome::Send { range, status: StatusCode::PARTIAL_CONTENT },
        Part::Unsatisfiable => Outcome::Unsatisfiable,
    }
}

fn matches_any(known: &str, etag: Option<&str>) -> bool {
    let Some(etag) = etag else {
        return false;
    };
    known.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag)
}

fn body(site: &Site, request: &Parts, opened: Opened, range: Range<u64>, status: StatusCode) -> Response {
    let mut response = empty(status);
    let headers = response.headers_mut();
    set(headers, CONTENT_LENGTH, &(range.end - range.start).to_string());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        set(headers, CONTENT_RANGE, &format!("bytes {}-{}/{}", range.start, range.end - 1, opened.len()));
    }
    if request.method != Method::HEAD {
        let client = request.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
        let pace = site.paces.of(client.map(|client| client.to_canonical()));
        let traffic = Arc::clone(&site.traffic);
        let chunks = match request.extensions.get::<Alone>() {
            Some(Alone) => read_in_place(opened, range, traffic).boxed(),
            None => read(opened, range, traffic).boxed(),
        };
        let paced = chunks.then(move |chunk| {
            let pace = pace.clone();
            async move {
                pace.pass(chunk.as_ref().map_or(0, Bytes::len)).await;
                chunk
            }
        });
        *response.body_mut() = Body::from_stream(paced);
    }
    response
}

/// Reads a chunk or two ahead of what the network has taken. A file that became shorter ends the answer with an error.
fn read(opened: Opened, range: Range<u64>, traffic: Arc<Traffic>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let opened = Arc::new(opened);
    let end = range.end;
    let sending = Sending::new(traffic);
    let chunk = match sending.others {
        ..FEW => LARGE_CHUNK,
        FEW..MANY => CHUNK,
        MANY.. => SMALL_CHUNK,
    };
    let spare = Spare::of(chunk.min(end - range.start) as usize);
    let starts = stream::iter((range.start..end).step_by(chunk as usize));
    let chunks = starts.map(move |start| {
        let (opened, spare, len) = (Arc::clone(&opened), spare.clone(), chunk.min(end - start) as usize);
        async move {
            let read = spawn_blocking(move || spare.fill(len, |bytes| opened.read_exact_at(bytes, start)));
            read.await.unwrap_or_else(|interrupted| Err(io::Error::other(interrupted)))
        }
    });
    chunks.buffered(CHUNKS_AHEAD).inspect(move |chunk| sending.traffic.add_bytes(chunk.as_ref().map_or(0, Bytes::len)))
}

/// Reads what is to be sent next, without a thread for it: a chunk goes out while it is still in the processor's cache.
fn read_in_place(opened: Opened, range: Range<u64>, traffic: Arc<Traffic>) -> impl Stream<Item = io::Result<Bytes>> {
    let (end, sending) = (range.end, Sending::new(traffic));
    let spare = Spare::of(IN_PLACE.min(end - range.start) as usize);
    stream::iter((range.start..end).step_by(IN_PLACE as usize)).map(move |start| {
        let len = IN_PLACE.min(end - start) as usize;
        let chunk = spare.fill(len, |bytes| opened.read_exact_at(bytes, start));
        sending.traffic.add_bytes(chunk.as_ref().map_or(0, Bytes::len));
        chunk
    })
}

/// One of those that are being sent to, until it is dropped.
struct Sending {
    traffic: Arc<Traffic>,
    /// How many there were before.
    others: u64,
}

impl Sending {
    fn new(traffic: Arc<Traffic>) -> Self {
        let others = traffic.begin_to_send();
        Self { traffic, others }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.traffic.end_sending();
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Not `EntryNotFound`: clients would remember that the repository has no such file.
fn not_here(name: &str) -> Response {
    error(StatusCode::NOT_FOUND, Some("NotHere"), &format!("{name} exists, but this machine does not have it"))
}

fn unreadable(name: &str, cause: &io::Error) -> Response {
    tracing::warn!(name, %cause, "cannot be served");
    if crate::fsio::is_absent(cause) {
        return not_here(name);
    }
    error(StatusCode::INTERNAL_SERVER_ERROR, None, &format!("{name} cannot be read on this machine"))
}

fn wrong_length(name: &str, expected: Option<u64>, actual: u64) -> Response {
    tracing::warn!(name, expected, actual, "cannot be served: wrong length");
    let message = format!("{name} is damaged on this machine: it has {actual} bytes there");
    error(StatusCode::INTERNAL_SERVER_ERROR, None, &message)
}
