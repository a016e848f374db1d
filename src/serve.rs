//! The LAN server: read-only, over what lies in this machine's stores.
//!
//! One router with three faces: the Hugging Face hub's API (`HF_ENDPOINT=http://HOST:PORT`), the Ollama
//! registry's API (`ollama pull --insecure HOST:PORT/library/qwen3:4b`), and larder's own: files by
//! artifact and path, content by SHA-256, and the lock.
//!
//! What can be asked for is decided by an [`Index`] that the caller makes. A name in a request is looked
//! up there and nowhere else: no part of a request ever becomes a path on the disk.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

use crate::artifact::Artifact;

mod answer;
mod catalog;
mod content;
mod hub;
mod listing;
mod plain;
mod range;
mod registry;
mod route;

use answer::{empty, json};
use catalog::Catalog;
use route::Route;

/// What the server may hand out.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// The artifacts. Where two of them claim the same name, the first one has it.
    pub artifacts: Vec<Served>,
    /// The text of the lock, for other larders.
    pub lock: Option<String>,
}

/// One artifact and where its content lies.
#[derive(Debug, Clone)]
pub struct Served {
    /// The artifact, as locked.
    pub artifact: Artifact,
    /// Where the bytes of the file with the same number are; `None` for one that is not here.
    pub content: Vec<Option<PathBuf>>,
}

/// Counts what a router was asked and what it sent.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    /// Requests so far, whatever they were answered with.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of file contents handed to the network so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The server could not begin to listen, or had to stop.
#[derive(Debug, thiserror::Error)]
#[error("Cannot listen on {addr}")]
pub struct ServeError {
    addr: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// A socket that accepts connections as soon as [`Server::run`] is called.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
}

impl Server {
    /// Takes the address. With port 0 the system chooses one: see [`Server::local_addr`].
    pub async fn bind(addr: SocketAddr) -> Result<Self, ServeError> {
        let failed = |source| ServeError { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, local_addr })
    }

    /// The address that was taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers requests until `shutdown` completes and the answers under way have ended.
    ///
    /// Drop the future to end at once.
    pub async fn run(
        self,
        router: Router,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        // Head and content are written one after the other: with Nagle's algorithm the content would wait for the
        // client to acknowledge the head, which it delays by 40 ms. Without it, all works, more slowly.
        let listener = self.listener.tap_io(|connection| drop(connection.set_nodelay(true)));
        let serving = axum::serve(listener, service).with_graceful_shutdown(shutdown);
        serving.await.map_err(|source| ServeError { addr: self.local_addr, source })
    }
}

/// What every answer needs.
#[derive(Debug, Clone)]
struct Site {
    catalog: Arc<Catalog>,
    traffic: Arc<Traffic>,
}

/// The three faces over `index`. Counts in `traffic`, which tests and progress displays may read.
///
/// Looks at the sizes of files whose size the index does not know, once.
pub fn router(index: Index, traffic: Arc<Traffic>) -> Router {
    let site = Site { catalog: Arc::new(Catalog::new(index)), traffic };
    Router::new().fallback(answer_request).with_state(site)
}

async fn answer_request(State(site): State<Site>, request: Request) -> Response {
    site.traffic.requests.fetch_add(1, Ordering::Relaxed);
    let method = request.method().clone();
    // Queries may carry tokens, so only the path is logged. It is still percent-encoded.
    let path = request.uri().path().to_owned();
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.to_string());
    let response = dispatch(&site, request).await;
    let status = response.status().as_u16();
    tracing::info!(peer = peer.unwrap_or_default(), %method, path, status, "request");
    if method == Method::HEAD { head_only(response) } else { response }
}

/// The answer to GET without its content, but with the content's length.
fn head_only(mut response: Response) -> Response {
    if let Some(len) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from(len));
    }
    response.map(|_| Body::empty())
}

async fn dispatch(site: &Site, request: Request) -> Response {
    let (request, body) = request.into_parts();
    let request = &request;
    let route = Route::parse(request.uri.path());
    if !route.allows(&request.method) {
        return answer::method_not_allowed(route.methods());
    }
    match route {
        Route::Hub(asked) => hub::answer(site, asked, request, body).await,
        Route::WhoAmI => hub::nobody(),
        Route::RegistryVersion => registry::version(),
        Route::Registry { repository, item } => registry::answer(site, &repository, &item, request).await,
        Route::File { artifact, path } => plain::file(site, &artifact, &path, request).await,
        Route::Blob { digest } => plain::blob(site, &digest, request).await,
        Route::Home => json(StatusCode::OK, &plain::home(&site.catalog)),
        Route::Lock => plain::lock(&site.catalog),
        Route::Nothing => empty(StatusCode::NOT_FOUND),
    }
}
