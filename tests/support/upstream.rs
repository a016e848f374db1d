//! larder's own library server on loopback, metered: every byte of content is counted, and can be
//! paced or held back, so that something can happen in the middle of a transfer.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::stream::{self, StreamExt};
use larder::artifact::{Artifact, File, Origin};
use larder::serve::{Guests, Index, Served, Server, Traffic, router};
use tokio::sync::{oneshot, watch};

/// Content passes in pieces of this length.
const PIECE: usize = 16 << 10;
/// Longer than any test needs; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request for content.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// First byte that was asked for.
    pub(crate) from: u64,
    /// Bytes of the answer that were handed to the connection.
    pub(crate) sent: u64,
}

#[derive(Default)]
struct Wire {
    asked: Mutex<Vec<Asked>>,
    requests: AtomicU64,
    pause_us: AtomicU64,
    sent: watch::Sender<u64>,
    open: AtomicUsize,
    most_open: AtomicUsize,
    /// No byte passes once so many were sent.
    limit: watch::Sender<Option<u64>>,
}

/// A running server; ends when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    wire: Arc<Wire>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    /// Serves these files, each with its place, as the hub repository `lab/model`.
    pub(crate) fn of_repository(files: Vec<(File, PathBuf)>) -> Self {
        let (files, content) = files.into_iter().map(|(file, place)| (file, Some(place))).unzip();
        let artifact = Artifact {
            name: "model".to_owned(),
            store: "upstream".to_owned(),
            source: "hf:lab/model".parse().unwrap(),
            declared: String::new(),
            revision: Some("00c0ffee00000000000000000000000000c0ffee".to_owned()),
            origin: Origin::Upstream,
            complete: true,
            whole: true,
            irreplaceable: false,
            ollama: None,
            pattern: None,
            folder: None,
            files,
        };
        Self::start(Index::of(vec![Served { artifact, content }], ["/"]))
    }

    /// Serves `index` on a free port.
    pub(crate) fn start(index: Index) -> Self {
        let wire = Arc::new(Wire::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let shared = Arc::clone(&wire);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let server = Server::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
                tell.send(server.local_addr()).unwrap();
                let metered = router(index, Guests::default(), Arc::new(Traffic::default()))
                    .layer(axum::middleware::from_fn_with_state(shared, meter));
                tokio::select! {
                    () = server.run(metered, std::future::pending()) => (),
                    _ = stopped => {}
                }
            });
        });
        Self { address: told.recv().unwrap(), wire, stop: Some(stop), thread: Some(thread) }
    }

    /// Lets one piece of each answer pass every `pause`.
    pub(crate) fn set_pace(&self, pause: Duration) {
        self.wire.pause_us.store(pause.as_micros() as u64, Ordering::Relaxed);
    }

    /// Holds everything back after `bytes` more.
    pub(crate) fn hold_after(&self, bytes: u64) {
        self.wire.limit.send_replace(Some(self.sent() + bytes));
    }

    /// Lets everything pass again.
    pub(crate) fn release(&self) {
        self.wire.limit.send_replace(None);
    }

    /// Waits until so much was sent that everything is held back.
    pub(crate) fn wait_until_held(&self) {
        let limit = self.wire.limit.borrow().unwrap();
        let begin = Instant::now();
        while self.sent() < limit {
            assert!(begin.elapsed() < PATIENCE, "only {} of {limit} bytes were asked for", self.sent());
            std::thread::yield_now();
        }
    }

    /// Bytes of content that were sent so far.
    pub(crate) fn sent(&self) -> u64 {
        *self.wire.sent.borrow()
    }

    /// The most answers with content that were under way at the same time.
    pub(crate) fn most_open(&self) -> usize {
        self.wire.most_open.load(Ordering::Relaxed)
    }

    /// Waits until so much was sent in all, or `is_over`.
    pub(crate) fn wait_until_sent(&self, bytes: u64, mut is_over: impl FnMut() -> bool) {
        while self.sent() < bytes && !is_over() {
            std::thread::yield_now();
        }
    }

    /// Requests of any kind so far.
    pub(crate) fn requests(&self) -> u64 {
        self.wire.requests.load(Ordering::Relaxed)
    }

    /// Takes the requests for content out of the log.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.wire.asked.lock().unwrap())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn meter(State(wire): State<Arc<Wire>>, request: Request, next: Next) -> Response {
    wire.requests.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let is_content = ["/resolve/", "/blobs/", "/files/"].iter().any(|part| path.contains(part));
    if !is_content || request.method() != Method::GET {
        return next.run(request).await;
    }
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let from = range.and_then(|text| text.strip_prefix("bytes=")?.split('-').next()?.parse().ok()).unwrap_or(0);
    let entry = {
        let mut asked = wire.asked.lock().unwrap();
        asked.push(Asked { path: path.clone(), from, sent: 0 });
        asked.len() - 1
    };
    let (parts, body) = next.run(request).await.into_parts();
    let under_way = UnderWay::begin(&wire);
    let pieces = body.into_data_stream().flat_map(|chunk| stream::iter(cut(chunk.unwrap())));
    let metered = pieces.then(move |piece| {
        let (wire, path) = (Arc::clone(&wire), path.clone());
        // As long as the answer lives.
        let _ = &under_way;
        async move {
            wire.pass().await;
            wire.sent.send_modify(|sent| *sent += piece.len() as u64);
            if let Some(asked) = wire.asked.lock().unwrap().get_mut(entry).filter(|asked| asked.path == path) {
                asked.sent += piece.len() as u64;
            }
            Ok::<_, std::convert::Infallible>(piece)
        }
    });
    Response::from_parts(parts, Body::from_stream(metered))
}

/// One answer under way, until it is dropped.
struct UnderWay(Arc<Wire>);

impl UnderWay {
    fn begin(wire: &Arc<Wire>) -> Self {
        let open = wire.open.fetch_add(1, Ordering::Relaxed) + 1;
        wire.most_open.fetch_max(open, Ordering::Relaxed);
        Self(Arc::clone(wire))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn cut(mut chunk: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while !chunk.is_empty() {
        pieces.push(chunk.split_to(PIECE.min(chunk.len())));
    }
    pieces
}

impl Wire {
    /// Waits until the next piece may pass.
    async fn pass(&self) {
        let pause = Duration::from_micros(self.pause_us.load(Ordering::Relaxed));
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let mut limit = self.limit.subscribe();
        let _ = limit.wait_for(|limit| limit.is_none_or(|limit| *self.sent.borrow() < limit)).await;
    }
}
