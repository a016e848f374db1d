//! A registry on the loopback for one image and one server: what larder may not write itself, the server pulls from here.
//!
//! Ollama knows no tokens, so the names of everything contain a secret. Two addresses of the loopback, because Ollama asks
//! for a blob once without a range, and only to be sent to another host for its content: no byte is read twice.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use rustls::crypto::aws_lc_rs;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::fetch::Spans;
use super::{JobError, Run};
use crate::artifact::{Artifact, MANIFEST_TYPE, OllamaName, Remote};
use crate::digest::Sha256;
use crate::monitor::{Event, Monitor};
use crate::pace::Pacer;
use crate::retry::{Backoff, RetryPolicy};
use crate::sources::{ByteRange, SourceError, Sources};

/// Where manifests are told, and where contents are.
const TELLS: Ipv4Addr = Ipv4Addr::LOCALHOST;
const GIVES: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// What the namespaces of all mirrors begin with.
const NAMESPACE: &str = "larder-";
/// Pieces between a source and the server: what a slow server lets pile up for each of its connections.
const QUEUE: usize = 4;

/// A registry that is there as long as this is.
pub(super) struct Mirror {
    shelf: Arc<Shelf>,
    port: u16,
    _open: DropGuard,
}

/// What the registry has.
struct Shelf {
    item: String,
    /// The secret namespace.
    namespace: String,
    manifest: String,
    /// By digest: the file's number, its length, and where it comes from.
    blobs: HashMap<Sha256, Blob>,
    /// Where contents are given: host and port.
    gives_at: String,
    sources: Arc<Sources>,
    monitor: Arc<dyn Monitor>,
    pacer: Arc<Pacer>,
    retry: RetryPolicy,
    stop: CancellationToken,
    moved: AtomicU64,
    trouble: Mutex<Option<SourceError>>,
}

struct Blob {
    number: usize,
    size: u64,
    from: Vec<Remote>,
    handed: Mutex<Spans>,
}

impl Mirror {
    /// Opens a registry of `artifact`, whose file of each number comes from the places of that number in `from`.
    pub(super) async fn open(run: &Run, artifact: &Artifact, from: Vec<Vec<Remote>>) -> Result<Self, JobError> {
        let unopened = |error| JobError::io("No mirror can be opened on the loopback for the Ollama server")(error);
        let tells = TcpListener::bind((TELLS, 0)).await.map_err(unopened)?;
        let gives = TcpListener::bind((GIVES, 0)).await.map_err(unopened)?;
        let port = tells.local_addr().map_err(unopened)?.port();
        let stop = run.means.stop.child_token();
        let shelf = Arc::new(Shelf {
            item: artifact.name.clone(),
            namespace: secret_namespace(),
            manifest: artifact.ollama.as_ref().and_then(|manifest| manifest.bytes.clone()).unwrap_or_default(),
            blobs: blobs(artifact, from),
            gives_at: gives.local_addr().map_err(unopened)?.to_string(),
            sources: Arc::clone(&run.means.sources),
            monitor: Arc::clone(&run.means.monitor),
            pacer: Arc::clone(&run.pacer),
            retry: run.means.retry,
            stop: stop.clone(),
            moved: AtomicU64::new(0),
            trouble: Mutex::default(),
        });
        let tell = Router::new().fallback(tell).with_state(Arc::clone(&shelf));
        let give = Router::new().fallback(give).with_state(Arc::clone(&shelf));
        for (listener, router) in [(tells, tell), (gives, give)] {
            let stopped = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = axum::serve(listener, router) => {}
                    () = stopped.cancelled() => {}
                }
            });
        }
        Ok(Self { shelf, port, _open: stop.drop_guard() })
    }

    /// What the server is to pull in order to get `name`.
    pub(super) fn name(&self, name: &OllamaName) -> OllamaName {
        let (host, namespace) = (format!("{TELLS}:{}", self.port), self.shelf.namespace.clone());
        OllamaName { host, namespace, ..name.clone() }
    }

    /// `installed` as a name, where it is one that an earlier mirror gave to `name`.
    pub(super) fn left_name(installed: &str, name: &OllamaName) -> Option<OllamaName> {
        let left: OllamaName = installed.parse().ok()?;
        let is_ours = left.host.starts_with(&format!("{TELLS}:")) && left.namespace.starts_with(NAMESPACE);
        (is_ours && left.model == name.model && left.tag == name.tag).then_some(left)
    }

    /// Bytes that came from the sources.
    pub(super) fn moved(&self) -> u64 {
        self.shelf.moved.load(Ordering::Relaxed)
    }

    /// Why the last content could not be given, where one could not.
    pub(super) fn trouble(&self) -> Option<SourceError> {
        self.shelf.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the file of this number is to come through here.
    pub(super) fn hands_over(&self, number: usize) -> bool {
        self.blob(number).is_some()
    }

    /// Whether the server took all of the file of this number from here.
    pub(super) fn has_handed_over(&self, number: usize) -> bool {
        let reach = |blob: &Blob| blob.handed.lock().unwrap_or_else(PoisonError::into_inner).reach(0);
        self.blob(number).is_some_and(|blob| reach(blob) >= blob.size)
    }

    fn blob(&self, number: usize) -> Option<&Blob> {
        self.shelf.blobs.values().find(|blob| blob.number == number)
    }
}

fn blobs(artifact: &Artifact, from: Vec<Vec<Remote>>) -> HashMap<Sha256, Blob> {
    let files = artifact.files.iter().zip(from).enumerate().filter(|(_, (_, from))| !from.is_empty());
    let blobs = files.filter_map(|(number, (file, from))| {
        let blob = Blob { number, size: file.size?, from, handed: Mutex::default() };
        Some((file.digests.sha256?, blob))
    });
    blobs.collect()
}

/// A namespace that nobody guesses: other users of this machine reach the loopback too.
fn secret_namespace() -> String {
    let mut bytes = [0; 16];
    let filled = aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    filled.expect("the system has random bytes: without them nothing of TLS could be used either");
    bytes.iter().fold(NAMESPACE.to_owned(), |name, byte| name + &format!("{byte:02x}"))
}

/// What a path asks for.
enum Asked<'a> {
    Manifest,
    Blob(&'a Blob),
}

impl Shelf {
    /// Only who knows the secret learns that anything is here.
    fn find(&self, path: &str) -> Option<(Sha256, Asked<'_>)> {
        let (model, what) =
            path.strip_prefix("/v2/")?.strip_prefix(&self.namespace)?.strip_prefix('/')?.split_once('/')?;
        if model.is_empty() {
            return None;
        }
        if what.starts_with("manifests/") {
            return Some((Sha256::of(self.manifest.as_bytes()), Asked::Manifest));
        }
        let digest: Sha256 = what.strip_prefix("blobs/sha256:")?.parse().ok()?;
        Some((digest, Asked::Blob(self.blobs.get(&digest)?)))
    }

    /// Sends the bytes `at..end` of a blob to who listens, from one place after the other, going on where one broke off.
    async fn pour(&self, digest: Sha256, mut at: u64, end: u64, listener: mpsc::Sender<io::Result<Bytes>>) {
        let Some(blob) = self.blobs.get(&digest).filter(|_| at < end) else { return };
        let mut last = SourceError::NoUpstream { what: self.item.clone() };
        for remote in &blob.from {
            let mut backoff = Backoff::new(self.retry);
            loop {
                let before = at;
                let poured = tokio::select! {
                    poured = self.pour_from(blob, remote, (&mut at, end), &listener) => poured,
                    () = listener.closed() => return,
                    () = self.stop.cancelled() => return,
                };
                let Err(error) = poured else { return };
                backoff.progressed_by(at - before, Some(end - before));
                let pause = if error.is_permanent() { None } else { backoff.next(error.wait()) };
                let Some(pause) = pause else {
                    last = error;
                    break;
                };
                let (reason, pause_ms) = (error.to_string(), u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
                self.monitor.event(Event::Retrying { item: &self.item, reason: &reason, pause_ms });
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = listener.closed() => return,
                    () = self.stop.cancelled() => return,
                }
            }
        }
        let broken = io::Error::other(last.to_string());
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        // Breaks the connection: a server that counts bytes knows that some are missing.
        let _ = listener.send(Err(broken)).await;
    }

    async fn pour_from(
        &self,
        blob: &Blob,
        remote: &Remote,
        (at, end): (&mut u64, u64),
        listener: &mpsc::Sender<io::Result<Bytes>>,
    ) -> Result<(), SourceError> {
        let what = || remote.reference.to_string();
        let source = self.sources.for_reference(&remote.reference)?;
        let mut body = source.open(remote, ByteRange { start: *at, end: Some(end) }).await?;
        if let Some(actual) = body.total.filter(|total| *total != blob.size) {
            return Err(SourceError::Changed { what: what(), expected: blob.size, actual });
        }
        let (begun, mut skip) = (*at, at.saturating_sub(body.start));
        while let Some(chunk) = body.stream.next().await {
            let mut chunk = chunk?;
            self.pacer.pass(chunk.len()).await;
            self.moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            // A source that ignores ranges sends more than it was asked for, before and behind.
            let known = skip.min(chunk.len() as u64);
            skip -= known;
            let _ = chunk.split_to(known as usize);
            chunk.truncate((end - *at).min(chunk.len() as u64) as usize);
            let len = chunk.len() as u64;
            if len == 0 {
                continue;
            }
            if listener.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
            self.monitor.event(Event::Advanced { item: &self.item, bytes: len });
            blob.handed.lock().unwrap_or_else(PoisonError::into_inner).insert(*at..*at + len);
            *at += len;
            if *at == end {
                return Ok(());
            }
        }
        Err(SourceError::CutShort { what: what(), expected: end - begun, got: *at - begun })
    }
}

/// Manifests, lengths of blobs, and where their content is to be had.
async fn tell(State(shelf): State<Arc<Shelf>>, request: Request) -> Response {
    let path = request.uri().path();
    let response = Response::builder();
    let response = match (request.method(), shelf.find(path)) {
        (&Method::GET | &Method::HEAD, Some((_, Asked::Manifest))) => {
            response.header(CONTENT_TYPE, MANIFEST_TYPE).body(Body::from(shelf.manifest.clone()))
        }
        (&Method::HEAD, Some((_, Asked::Blob(blob)))) => {
            response.header(CONTENT_LENGTH, blob.size).header(ACCEPT_RANGES, "bytes").body(Body::empty())
        }
        (&Method::GET, Some((_, Asked::Blob(_)))) => {
            let there = format!("http://{}{path}", shelf.gives_at);
            response.status(StatusCode::TEMPORARY_REDIRECT).header(LOCATION, there).body(Body::empty())
        }
        _ => response.status(StatusCode::NOT_FOUND).body(Body::empty()),
    };
    or_fault(response)
}

/// An answer that cannot be put into words is a fault of ours, and no empty content.
fn or_fault(response: Result<Response, axum::http::Error>) -> Response {
    response.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// Contents, whole and in ranges.
async fn give(State(shelf): State<Arc<Shelf>>, request: Request) -> Response {
    let found = shelf.find(request.uri().path());
    let (&Method::GET, Some((digest, Asked::Blob(blob)))) = (request.method(), found) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
    let (start, end) = range.and_then(|range| part(range, blob.size)).unwrap_or((0, blob.size));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let response = match range {
        None => Response::builder(),
        Some(_) => Response::builder()
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, format!("bytes {start}-{}/{}", end.saturating_sub(1), blob.size)),
    };
    let response = response.header(CONTENT_LENGTH, end - start).header(CONTENT_TYPE, "application/octet-stream");
    let pouring = Arc::clone(&shelf);
    tokio::spawn(async move { pouring.pour(digest, start, end, sender).await });
    let chunks = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    or_fault(response.body(Body::from_stream(chunks)))
}

/// The bytes that `bytes=FIRST-LAST` means, as Ollama and every other client of registries writes it.
fn part(range: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.saturating_add(1).min(size) };
    (first < end).then_some((first, end))
}
