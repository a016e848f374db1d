//! A small hub in the real hub's redirecting manner, for tests. Shares no code with larder.
//!
//! Two listeners on loopback: the hub itself at `127.0.0.1`, and the "CDN" at `localhost` on another port.
//! Small files are answered by a relative 307 to `/api/resolve-cache`, LFS files by a 302 to a signed link
//! on the CDN. Every request is logged; faults are switched on one by one. Runs on a thread of its own, so
//! that it serves blocking tests and programs too.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use sha1::Digest as _;

#[path = "hub/api.rs"]
mod api;
#[path = "hub/files.rs"]
mod files;

use api::api;
use files::{cached, pointer, resolve, signed};
/// A running hub; stops when dropped.
pub(crate) struct Hub {
    /// The address for `HF_ENDPOINT`.
    pub(crate) origin: String,
    /// The other origin, where LFS files come from.
    pub(crate) cdn: String,
    shared: Arc<Shared>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// One request, as it was answered.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub(crate) method: String,
    /// Path with query.
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) on_cdn: bool,
    pub(crate) authorized: bool,
    pub(crate) range: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) user_agent: String,
    /// Bytes of the body that were handed to the connection.
    pub(crate) sent: u64,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection breaks after so many bytes of a file.
    CutAt(usize),
    /// The connection stays open and silent after so many bytes of a file.
    StallAt(usize),
    /// The middle byte of a file is another one.
    WrongByte,
    /// A file's answer is whole, 200, whatever was asked.
    IgnoreRange,
    /// A file is sent with `Content-Encoding: gzip`.
    Gzip,
    /// A login page instead of the file, labelled so or not.
    Page { labelled: bool },
    /// The git-lfs pointer instead of the file.
    Pointer,
    /// The file has so many bytes more than listed.
    Longer(usize),
    /// No length is announced, and so many bytes are sent, with `+` after the file's own.
    Chunked { send: usize },
    /// A part comes with this `Content-Range`.
    ContentRange(&'static str),
    /// Any request is answered with this status.
    Status(u16),
    /// Any request is answered with this status and `Retry-After`.
    RetryAfter(u16, &'static str),
    /// 429 with `RateLimit: "resolvers";r=0;t=…`.
    RateLimited { seconds: u64 },
    /// In order, but the budget is spent: `r=0;t=…`.
    Spent { seconds: u64 },
    /// A redirect to this address.
    Redirect(String),
}

/// Who may read a repository.
#[derive(Debug, Clone, Default)]
pub(crate) enum Access {
    /// Everybody.
    #[default]
    Public,
    /// Who has one of these tokens; others are told that it does not exist.
    Private(Vec<String>),
    /// Files: who has one of `accepted`; `known` tokens are told to accept the licence.
    Gated { accepted: Vec<String>, known: Vec<String> },
    /// Nobody.
    Disabled,
}

#[derive(Default)]
struct Repo {
    access: Access,
    /// Branch or tag → commit.
    refs: BTreeMap<String, String>,
    commits: HashMap<String, BTreeMap<String, Content>>,
}

#[derive(Clone)]
struct Content {
    bytes: Bytes,
    lfs: bool,
}

struct Rule {
    needle: String,
    fault: Fault,
    times: usize,
}

/// What the hub has to say about content that lies in Xet.
pub(crate) struct Xet {
    /// The store's address.
    pub(crate) address: String,
    /// sha256 → the content's name in Xet.
    pub(crate) hashes: HashMap<String, String>,
    /// A fresh pass, and when it runs out in seconds since 1970.
    pub(crate) pass: Box<dyn Fn() -> (String, u64) + Send + Sync>,
}

struct Settings {
    page_size: usize,
    relative_links: bool,
    link_uses: Option<usize>,
    advertise_xet: bool,
    xet: Option<Xet>,
}

impl Settings {
    /// The content's name in Xet, where it is said to have one.
    fn xet_hash(&self, bytes: &[u8]) -> Option<String> {
        match &self.xet {
            Some(xet) => xet.hashes.get(&sha256(bytes)).cloned(),
            None => self.advertise_xet.then(|| sha256(pointer(bytes).as_bytes())),
        }
    }
}

#[derive(Default)]
struct World {
    repos: HashMap<String, Repo>,
    settings: Settings,
    rules: Vec<Rule>,
    /// Signed links: number → (content, uses left).
    links: HashMap<u64, (Bytes, Option<usize>)>,
    log: Vec<Logged>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { page_size: 1000, relative_links: false, link_uses: None, advertise_xet: false, xet: None }
    }
}

struct Shared {
    origin: String,
    cdn: String,
    world: Mutex<World>,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

impl Hub {
    /// Starts an empty hub.
    pub(crate) fn start() -> Self {
        let listen = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let port = listener.local_addr().unwrap().port();
            (listener, port)
        };
        let ((own, own_port), (cdn, cdn_port)) = (listen(), listen());
        let shared = Arc::new(Shared {
            origin: format!("http://127.0.0.1:{own_port}"),
            cdn: format!("http://localhost:{cdn_port}"),
            world: Mutex::default(),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || run(shared, own, cdn, stopped)
        });
        Self { origin: shared.origin.clone(), cdn: shared.cdn.clone(), shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Puts `files` (path, content, whether by LFS) into a new commit of `main`, and returns the commit.
    ///
    /// `id` is `owner/name`, or `datasets/owner/name`.
    pub(crate) fn commit(&self, id: &str, files: &[(&str, &[u8], bool)]) -> String {
        let mut naming = sha1::Sha1::new();
        let files: BTreeMap<String, Content> = files
            .iter()
            .map(|(path, bytes, lfs)| {
                naming.update(path);
                naming.update(bytes);
                ((*path).to_owned(), Content { bytes: Bytes::copy_from_slice(bytes), lfs: *lfs })
            })
            .collect();
        let commit = hex(&naming.finalize());
        let mut world = self.shared.world();
        let repo = world.repos.entry(id.to_owned()).or_default();
        repo.commits.insert(commit.clone(), files);
        repo.refs.insert("main".to_owned(), commit.clone());
        commit
    }

    /// Gives `commit` another name, such as `refs/pr/1`.
    pub(crate) fn tag(&self, id: &str, name: &str, commit: &str) {
        self.shared.world().repos.get_mut(id).unwrap().refs.insert(name.to_owned(), commit.to_owned());
    }

    pub(crate) fn allow(&self, id: &str, access: Access) {
        self.shared.world().repos.get_mut(id).unwrap().access = access;
    }

    /// Entries on one page of a tree.
    pub(crate) fn set_page_size(&self, entries: usize) {
        self.shared.world().settings.page_size = entries;
    }

    /// Whether `Link` headers name the next page without scheme and host.
    pub(crate) fn use_relative_links(&self) {
        self.shared.world().settings.relative_links = true;
    }

    /// How often a signed link may be used before the CDN answers 403.
    pub(crate) fn set_link_uses(&self, uses: usize) {
        self.shared.world().settings.link_uses = Some(uses);
    }

    /// Whether LFS files carry `X-Xet-Hash`. There is no xet service behind it.
    pub(crate) fn advertise_xet(&self) {
        self.shared.world().settings.advertise_xet = true;
    }

    /// Says of LFS files that they lie in Xet, and gives passes to it.
    pub(crate) fn keep_in_xet(&self, xet: Xet) {
        self.shared.world().settings.xet = Some(xet);
    }

    /// Lets the next `times` answers to requests whose address contains `needle` go wrong.
    pub(crate) fn fail(&self, needle: &str, fault: Fault, times: usize) {
        self.shared.world().rules.push(Rule { needle: needle.to_owned(), fault, times });
    }

    pub(crate) fn log(&self) -> Vec<Logged> {
        self.shared.world().log.clone()
    }

    pub(crate) fn clear_log(&self) {
        self.shared.world().log.clear();
    }

    /// How many requests match.
    pub(crate) fn count(&self, matches: impl Fn(&Logged) -> bool) -> usize {
        self.log().iter().filter(|logged| matches(logged)).count()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    shared: Arc<Shared>,
    own: std::net::TcpListener,
    cdn: std::net::TcpListener,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let hub = axum::Router::new().fallback(answer_hub).with_state(Arc::clone(&shared));
        let files = axum::Router::new().fallback(answer_cdn).with_state(shared);
        let own = axum::serve(tokio::net::TcpListener::from_std(own).unwrap(), hub);
        let cdn = axum::serve(tokio::net::TcpListener::from_std(cdn).unwrap(), files);
        tokio::select! {
            result = async { own.await } => result.unwrap(),
            result = async { cdn.await } => result.unwrap(),
            _ = stopped => {}
        }
    });
}

/// What a handler needs to know of a request.
struct Call {
    shared: Arc<Shared>,
    on_cdn: bool,
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
    body: Bytes,
    /// Place in the log.
    entry: usize,
}

impl Call {
    fn token(&self) -> Option<&str> {
        self.headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
    }

    fn whole_path(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }

    /// The fault that applies now to this request, if `which` picks it.
    fn fault(&self, which: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut world = self.shared.world();
        let whole = self.whole_path();
        let rule =
            world.rules.iter_mut().find(|rule| rule.times > 0 && whole.contains(&rule.needle) && which(&rule.fault))?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

async fn answer_hub(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    answer(shared, request, false).await
}

async fn answer_cdn(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    answer(shared, request, true).await
}

async fn answer(shared: Arc<Shared>, request: Request, on_cdn: bool) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let text =
        |name: header::HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut call = Call {
        on_cdn,
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or("").to_owned(),
        headers: parts.headers.clone(),
        body,
        entry: 0,
        shared: Arc::clone(&shared),
    };
    {
        let mut world = shared.world();
        call.entry = world.log.len();
        world.log.push(Logged {
            method: call.method.to_string(),
            path: call.whole_path(),
            status: 0,
            on_cdn,
            authorized: call.headers.contains_key(header::AUTHORIZATION),
            range: text(header::RANGE),
            if_range: text(header::IF_RANGE),
            user_agent: text(header::USER_AGENT).unwrap_or_default(),
            sent: 0,
        });
    }
    let response = respond(&call);
    if let Some(logged) = shared.world().log.get_mut(call.entry) {
        logged.status = response.status().as_u16();
    }
    response
}

fn respond(call: &Call) -> Response {
    let at_once = |fault: &Fault| {
        matches!(
            fault,
            Fault::Status(_)
                | Fault::RetryAfter(..)
                | Fault::RateLimited { .. }
                | Fault::Redirect(_)
                | Fault::Spent { .. }
        )
    };
    match call.fault(at_once) {
        Some(Fault::Status(status)) => {
            (StatusCode::from_u16(status).unwrap(), "refused for the test\n").into_response()
        }
        Some(Fault::RetryAfter(status, wait)) => {
            (StatusCode::from_u16(status).unwrap(), [(header::RETRY_AFTER, wait)]).into_response()
        }
        Some(Fault::RateLimited { seconds }) => {
            (StatusCode::TOO_MANY_REQUESTS, [("ratelimit", format!("\"resolvers\";r=0;t={seconds}"))]).into_response()
        }
        Some(Fault::Redirect(to)) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Some(Fault::Spent { seconds }) => {
            let mut response = route(call);
            response.headers_mut().insert("ratelimit", format!("\"resolvers\";r=0;t={seconds}").parse().unwrap());
            response
        }
        _ => route(call),
    }
}

fn route(call: &Call) -> Response {
    if call.on_cdn {
        return signed(call);
    }
    let parts: Vec<String> = call
        .path
        .trim_start_matches('/')
        .split('/')
        .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts[..] {
        ["api", "resolve-cache", ref rest @ ..] => cached(call, rest),
        ["api", kind @ ("models" | "datasets"), ref rest @ ..] => api(call, kind, rest),
        ["datasets", ref rest @ ..] => resolve(call, "datasets", rest),
        ref rest => resolve(call, "models", rest),
    }
}

/// Splits `owner/name/WORD/rest…`, or `name/WORD/rest…`, at a word that `known` lists.
fn split<'a>(parts: &'a [&'a str], known: &[&str]) -> Option<(String, &'a str, &'a [&'a str])> {
    let at = (1..=2).find(|at| parts.get(*at).is_some_and(|word| known.contains(word)))?;
    Some((parts[..at].join("/"), parts[at], &parts[at + 1..]))
}

fn key(kind: &str, id: &str) -> String {
    if kind == "datasets" { format!("datasets/{id}") } else { id.to_owned() }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    let mut state = sha1::Sha1::new();
    state.update(format!("blob {}\0", bytes.len()));
    state.update(bytes);
    hex(&state.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
