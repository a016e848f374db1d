//! The local server of Hugging Face's own crates as the store behind the hub, with a metered face in front of it:
//! passes are checked, every request is logged, and faults are switched on there.
//!
//! Content is uploaded by `hf-xet`, so xorbs and shards are what the real client makes them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use tokio::runtime::Runtime;
use xet::xet_session::{Sha256Policy, XetConfig, XetSessionBuilder};
use xet_client::cas_client::{LocalServer, LocalServerConfig};
use xet_runtime::core::XetContext;

/// Content passes in pieces of this length.
const PIECE: usize = 16 << 10;

/// A running store; ends when dropped.
pub(crate) struct Cas {
    /// What the hub calls the store's address.
    pub(crate) address: String,
    shared: Arc<Shared>,
    scratch: tempfile::TempDir,
    /// The crates' server.
    back: Option<Runtime>,
}

/// One request at the store's face, as it was answered.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) user_agent: String,
    pub(crate) status: u16,
    /// Bytes of the body that were handed to the connection.
    pub(crate) sent: u64,
}

impl Logged {
    /// Whether it asked where content lies.
    pub(crate) fn is_question(&self) -> bool {
        self.path.contains("/reconstructions/")
    }

    /// Whether it asked for content.
    pub(crate) fn is_content(&self) -> bool {
        self.path.contains("/fetch_term")
    }
}

/// What goes wrong at the face.
#[derive(Default)]
struct Faults {
    /// How many questions a pass is good for.
    uses: Option<usize>,
    /// The middle byte of content is another one.
    wrong_byte: bool,
    /// The same, for one answer only.
    lies_once: bool,
    /// The store is gone once so many bytes of content were sent.
    dies_at: Option<u64>,
    /// No more content once so many bytes of it were sent; connections stay.
    stalls_at: Option<u64>,
    /// Before each piece of content.
    pause: Duration,
}

struct Shared {
    address: String,
    back: String,
    client: reqwest::Client,
    /// Uses left of each pass.
    passes: Mutex<HashMap<String, usize>>,
    faults: Mutex<Faults>,
    log: Mutex<Vec<Logged>>,
    death: Mutex<Option<Sender<()>>>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Vec<Logged>> {
        self.log.lock().unwrap()
    }

    /// Ends the face from within: listener and connections.
    fn die(&self) {
        drop(self.death.lock().unwrap().take());
    }

    fn sent(&self) -> u64 {
        self.log().iter().filter(|logged| logged.is_content()).map(|logged| logged.sent).sum()
    }
}

impl Cas {
    /// Starts an empty store, in memory or below `folder`.
    pub(crate) fn start(folder: Option<&Path>) -> Self {
        let (back, back_address) = start_back(folder);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (death, dead) = channel();
        let shared = Arc::new(Shared {
            address: address.clone(),
            back: back_address,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            passes: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            death: Mutex::new(Some(death)),
        });
        let router = axum::Router::new().fallback(relay).with_state(Arc::clone(&shared));
        std::thread::spawn(move || {
            let face = Runtime::new().unwrap();
            face.spawn(async move {
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
            });
            // Nothing is ever sent: it ends when the sender goes.
            let _ = dead.recv();
            face.shutdown_background();
        });
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { address, shared, scratch, back: Some(back) }
    }

    /// Uploads contents in one commit; their names in Xet, in the same order.
    pub(crate) fn upload(&self, contents: &[&[u8]]) -> Vec<String> {
        let runtime = self.back.as_ref().unwrap();
        runtime.block_on(async {
            let mut config = XetConfig::default();
            config.telemetry.enabled = false;
            let builder = XetSessionBuilder::new_with_config(config).with_cache_dir(self.scratch.path());
            let session = builder.with_tokio_handle(runtime.handle().clone()).build().unwrap();
            let commit = session.new_upload_commit().unwrap().with_endpoint(&self.shared.back);
            let commit = commit.with_token_info("upload", u64::MAX).build().await.unwrap();
            for (number, bytes) in contents.iter().enumerate() {
                let name = Some(number.to_string());
                commit.upload_bytes(bytes.to_vec(), Sha256Policy::Compute, name).await.unwrap();
            }
            let report = commit.commit().await.unwrap();
            let named = |number: usize| {
                let name = number.to_string();
                let mut uploads = report.uploads.values();
                uploads.find(|file| file.tracking_name.as_deref() == Some(&name)).unwrap().xet_info.hash().to_owned()
            };
            (0..contents.len()).map(named).collect()
        })
    }

    /// Gives passes as the hub does.
    pub(crate) fn passes(&self) -> Box<dyn Fn() -> (String, u64) + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        Box::new(move || {
            let uses = shared.faults.lock().unwrap().uses.unwrap_or(usize::MAX);
            let mut passes = shared.passes.lock().unwrap();
            let pass = format!("secret-pass-{}", passes.len() + 1);
            passes.insert(pass.clone(), uses);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            (pass, now + 3600)
        })
    }

    /// Passes given from now on are refused after so many questions.
    pub(crate) fn limit_passes(&self, uses: usize) {
        self.shared.faults.lock().unwrap().uses = Some(uses);
    }

    /// One byte of every answer with content is wrong from now on.
    pub(crate) fn send_wrong_bytes(&self) {
        self.shared.faults.lock().unwrap().wrong_byte = true;
    }

    /// One byte in the middle of the next answer with content is wrong, and everything else is right.
    pub(crate) fn lie_once(&self) {
        self.shared.faults.lock().unwrap().lies_once = true;
    }

    /// The store goes, listener and connections, once so many bytes of content were sent.
    pub(crate) fn die_at(&self, sent: u64) {
        self.shared.faults.lock().unwrap().dies_at = Some(sent);
    }

    /// No more content comes once so many bytes of it were sent; connections stay.
    pub(crate) fn stall_at(&self, sent: u64) {
        self.shared.faults.lock().unwrap().stalls_at = Some(sent);
    }

    /// The store goes now.
    pub(crate) fn die(&self) {
        self.shared.die();
    }

    /// Before each 16 KiB of content.
    pub(crate) fn set_pause(&self, pause: Duration) {
        self.shared.faults.lock().unwrap().pause = pause;
    }

    pub(crate) fn log(&self) -> Vec<Logged> {
        self.shared.log().clone()
    }

    pub(crate) fn clear_log(&self) {
        self.shared.log().clear();
    }

    /// Bytes of content that were handed to connections.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent()
    }

    /// How many requests match.
    pub(crate) fn count(&self, matches: impl Fn(&Logged) -> bool) -> usize {
        self.log().iter().filter(|logged| matches(logged)).count()
    }
}

impl Drop for Cas {
    fn drop(&mut self) {
        self.shared.die();
        if let Some(back) = self.back.take() {
            back.shutdown_background();
        }
    }
}

/// The crates' server on a free port.
fn start_back(folder: Option<&Path>) -> (Runtime, String) {
    let runtime = Runtime::new().unwrap();
    let address = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bound = listener.local_addr().unwrap();
        let config = LocalServerConfig {
            data_directory: folder.unwrap_or(Path::new("/nonexistent")).to_owned(),
            host: bound.ip().to_string(),
            port: bound.port(),
            in_memory: folder.is_none(),
        };
        let context = XetContext::from_external(tokio::runtime::Handle::current(), XetConfig::default());
        let server = LocalServer::new(context, config).await.unwrap();
        tokio::spawn(async move {
            // The sender lives as long as the task.
            let (_stop, stopped) = tokio::sync::oneshot::channel();
            let _ = server.serve_until_stopped(listener, stopped).await;
        });
        format!("http://{bound}")
    });
    (runtime, address)
}

/// Passes a request on to the crates' server, whose addresses then lead back here.
async fn relay(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
    let mut logged = Logged {
        method: parts.method.to_string(),
        path: path.clone(),
        authorization: text(header::AUTHORIZATION),
        user_agent: text(header::USER_AGENT).unwrap_or_default(),
        status: 0,
        sent: 0,
    };
    if logged.is_question() && !is_good(&shared, logged.authorization.as_deref()) {
        logged.status = 401;
        shared.log().push(logged);
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut asked = shared.client.request(parts.method.clone(), format!("{}{path}", shared.back));
    asked = asked.header(header::HOST, shared.address.trim_start_matches("http://"));
    if let Some(range) = text(header::RANGE) {
        asked = asked.header(header::RANGE, range);
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let answer = asked.body(body).send().await.unwrap();
    let status = answer.status();
    let bytes = answer.bytes().await.unwrap();
    logged.status = status.as_u16();
    let is_content = logged.is_content() && status.is_success();
    let entry = {
        let mut log = shared.log();
        log.push(logged);
        log.len() - 1
    };
    let body = if is_content { content(&shared, bytes, entry) } else { Body::from(bytes) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// Uses a pass, if it is one.
fn is_good(shared: &Shared, authorization: Option<&str>) -> bool {
    let mut passes = shared.passes.lock().unwrap();
    let pass = authorization.and_then(|text| text.strip_prefix("Bearer "));
    match pass.and_then(|pass| passes.get_mut(pass)) {
        Some(uses) if *uses > 0 => {
            *uses -= 1;
            true
        }
        _ => false,
    }
}

/// Content on its way, with whatever fault is switched on.
fn content(shared: &Arc<Shared>, bytes: Bytes, entry: usize) -> Body {
    let mut faults = shared.faults.lock().unwrap();
    let (dies_at, stalls_at, pause) = (faults.dies_at, faults.stalls_at, faults.pause);
    let mut bytes = bytes.to_vec();
    if std::mem::take(&mut faults.lies_once) || faults.wrong_byte {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x20;
    }
    let pieces: Vec<Bytes> = bytes.chunks(PIECE).map(Bytes::copy_from_slice).collect();
    let shared = Arc::clone(shared);
    Body::from_stream(stream::iter(pieces).then(move |piece| {
        let shared = Arc::clone(&shared);
        async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            if stalls_at.is_some_and(|at| shared.sent() >= at) {
                std::future::pending::<()>().await;
            }
            if dies_at.is_some_and(|at| shared.sent() >= at) {
                shared.die();
                return Err(std::io::Error::other("died for the test"));
            }
            if let Some(logged) = shared.log().get_mut(entry) {
                logged.sent += piece.len() as u64;
            }
            Ok(piece)
        }
    }))
}
