//! A small hub in the real hub's redirecting manner, for tests. Shares no code with larder.
//!
//! Two listeners on loopback: the hub itself at `127.0.0.1`, and the "CDN" at `localhost` on another port.
//! Small files are answered by a relative 307 to `/api/resolve-cache`, LFS files by a 302 to a signed link
//! on the CDN. Every request is logged; faults are switched on one by one. Runs on a thread of its own, so
//! that it serves blocking tests and programs too.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use sha1::Digest as _;

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

fn api(call: &Call, kind: &str, parts: &[&str]) -> Response {
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
fn with_commit(
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

fn refusal(status: StatusCode, code: Option<&str>, message: &str) -> Response {
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

fn resolve(call: &Call, kind: &str, parts: &[&str]) -> Response {
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

fn gate(call: &Call, key: &str) -> Option<Response> {
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
fn cached(call: &Call, parts: &[&str]) -> Response {
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
fn signed(call: &Call) -> Response {
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
fn pointer(bytes: &[u8]) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n", sha256(bytes), bytes.len())
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
