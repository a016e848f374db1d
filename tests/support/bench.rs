//! A machine that wants one model, and a hostile server that has it: as a hub, behind an address, or as an
//! Ollama registry.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use larder::digest::Sha256;
use serde_json::json;

use crate::hostile::{Answer, Asked, Hostile};
use crate::machine::{Machine, Said};

pub(crate) const COMMIT: &str = "00c0ffee00000000000000000000000000c0ffee";
/// Five times 64 KiB and a little more.
pub(crate) const SIZE: usize = 330_001;

/// What kind of source the model comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A hub, which sends for its content to another origin.
    Hub,
    /// A plain address.
    Http,
    /// An Ollama registry.
    Ollama,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::Hub, Kind::Http, Kind::Ollama];

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Which files there are.
    Listing,
    /// Whether the content may be read.
    Check,
    /// The content, or where it is.
    Content,
    /// The content, at the place that the hub sent for.
    Elsewhere,
}

/// A model of one length. Copies are the same model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) size: usize,
}

/// Comes in one stream.
pub(crate) const SMALL: Model = Model { size: SIZE };
/// Comes in parts: four chunks and a bit.
pub(crate) const LARGE: Model = Model { size: (17 << 20) + 12_345 };

impl Model {
    /// The model's content: without pattern, so that every displaced byte shows.
    pub(crate) fn content(self) -> Arc<Vec<u8>> {
        static SMALL_CONTENT: LazyLock<Arc<Vec<u8>>> = LazyLock::new(|| {
            let blocks = (0_u64..).flat_map(|n| *Sha256::of(&n.to_le_bytes()).as_bytes());
            Arc::new(blocks.take(SIZE).collect())
        });
        static LARGE_CONTENT: LazyLock<Arc<Vec<u8>>> = LazyLock::new(|| {
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            };
            Arc::new(std::iter::repeat_with(&mut next).flatten().take(LARGE.size).collect())
        });
        Arc::clone(if self == SMALL { &SMALL_CONTENT } else { &LARGE_CONTENT })
    }

    pub(crate) fn sha256(self) -> String {
        static SMALL_SUM: LazyLock<String> = LazyLock::new(|| Sha256::of(&SMALL.content()).to_string());
        static LARGE_SUM: LazyLock<String> = LazyLock::new(|| Sha256::of(&LARGE.content()).to_string());
        if self == SMALL { SMALL_SUM.clone() } else { LARGE_SUM.clone() }
    }
}

/// The small model's content.
pub(crate) fn content() -> Arc<Vec<u8>> {
    SMALL.content()
}

/// The small second layer of the Ollama image.
const CONFIG: &[u8] = b"{\"model_format\":\"gguf\"}";

pub(crate) fn phase(asked: &Asked) -> Phase {
    let path = asked.path();
    if path.starts_with("/elsewhere/") {
        Phase::Elsewhere
    } else if path.starts_with("/api/") || path.contains("/manifests/") {
        Phase::Listing
    } else if asked.method == "HEAD" {
        Phase::Check
    } else {
        Phase::Content
    }
}

/// Whether the request is for the model's bytes, where they really are.
pub(crate) fn is_content(kind: Kind, asked: &Asked) -> bool {
    let config = Sha256::of(CONFIG).to_string();
    let wanted = if kind == Kind::Hub { Phase::Elsewhere } else { Phase::Content };
    phase(asked) == wanted && asked.method == "GET" && !asked.path().contains(&config)
}

/// What a good server answers that has the small model.
pub(crate) fn honest(kind: Kind, port: u16, asked: &Asked) -> Answer {
    honest_with(SMALL, kind, port, asked)
}

/// What a good server answers.
pub(crate) fn honest_with(model: Model, kind: Kind, port: u16, asked: &Asked) -> Answer {
    let (content, sha256) = (model.content(), model.sha256());
    match (kind, phase(asked)) {
        (Kind::Hub, Phase::Listing) if asked.path().contains("/revision/") => {
            Answer::json(&json!({"id": "lab/model", "sha": COMMIT}))
        }
        (Kind::Hub, Phase::Listing) => Answer::json(&json!([tree_entry("weights.bin", &sha256)])),
        (Kind::Hub, Phase::Check | Phase::Content) => {
            let to = format!("http://localhost:{port}/elsewhere/weights.bin?signature=secret");
            let size = model.size.to_string();
            let headers = [("Location", to.as_str()), ("X-Linked-Etag", &sha256), ("X-Linked-Size", &size)];
            Answer::new(302, &headers, b"")
        }
        (Kind::Ollama, Phase::Listing) => {
            let kind = "application/vnd.docker.distribution.manifest.v2+json";
            Answer::new(200, &[("Content-Type", kind)], image().as_bytes())
        }
        (Kind::Ollama, Phase::Check | Phase::Content) if asked.path().ends_with(&Sha256::of(CONFIG).to_string()) => {
            Answer::file(asked, CONFIG, &[])
        }
        _ => Answer::file(asked, &content, &[]),
    }
}

pub(crate) fn tree_entry(path: &str, sha256: &str) -> serde_json::Value {
    let oid = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
    json!({"type": "file", "path": path, "oid": oid, "size": SIZE,
        "lfs": {"oid": sha256, "size": SIZE, "pointerSize": 131}})
}

fn image() -> String {
    let layer = |kind: &str, bytes: &[u8]| {
        let digest = format!("sha256:{}", Sha256::of(bytes));
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": layer("application/vnd.docker.container.image.v1+json", CONFIG),
        "layers": [layer("application/vnd.ollama.image.model", &content())],
    })
    .to_string()
}

/// The machine and its server.
pub(crate) struct Bench {
    pub(crate) kind: Kind,
    pub(crate) model: Model,
    pub(crate) machine: Machine,
    pub(crate) server: Hostile,
}

impl Bench {
    /// A machine that has nothing and no lock, and an honest server.
    pub(crate) fn new(kind: Kind) -> Self {
        Self::with(kind, "")
    }

    /// The same with more lines in `[sources]`.
    pub(crate) fn with(kind: Kind, sources: &str) -> Self {
        Self::with_model(SMALL, kind, sources)
    }

    fn with_model(model: Model, kind: Kind, sources: &str) -> Self {
        let server = Hostile::start(|_| Answer::default());
        let machine = Machine::new(&inventory(&server.origin(), sources), &manifest(model, kind, &server.origin()));
        let bench = Self { kind, model, machine, server };
        bench.behave();
        bench
    }

    /// The same with a lock.
    pub(crate) fn locked(kind: Kind) -> Self {
        Self::locked_with(kind, "")
    }

    pub(crate) fn locked_with(kind: Kind, sources: &str) -> Self {
        let bench = Self::with(kind, sources);
        bench.machine.larder(&["lock"]).must_be(0);
        bench.behave();
        bench
    }

    /// A machine with a lock that wants the large model from a plain address, over four connections from the beginning.
    pub(crate) fn large(sources: &str) -> Self {
        let sources = format!("connections = 4\nfirst-connections = 4\n{sources}");
        let bench = Self::with_model(LARGE, Kind::Http, &sources);
        bench.machine.larder(&["lock"]).must_be(0);
        bench.behave();
        bench
    }

    /// From now on the server is honest; counting begins anew.
    pub(crate) fn behave(&self) {
        let (model, kind, port) = (self.model, self.kind, self.server.port);
        self.server.now(move |asked| honest_with(model, kind, port, asked));
    }

    /// From now on `habit` answers what it wants to, and the rest is honest.
    pub(crate) fn misbehave(&self, habit: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) {
        let (model, kind, port) = (self.model, self.kind, self.server.port);
        self.server.now(move |asked| habit(asked).unwrap_or_else(|| honest_with(model, kind, port, asked)));
    }

    pub(crate) fn apply(&self) -> Said {
        self.machine.larder(&["apply", "--yes"])
    }

    /// Requests for the model's bytes.
    pub(crate) fn content_requests(&self) -> usize {
        self.server.served().iter().filter(|served| is_content(self.kind, &served.asked)).count()
    }

    /// Bytes that were sent for them.
    pub(crate) fn content_sent(&self) -> usize {
        let served = self.server.served();
        served.iter().filter(|served| is_content(self.kind, &served.asked)).map(|served| served.sent).sum()
    }

    fn place(&self) -> String {
        let sha256 = self.model.sha256();
        match self.kind {
            Kind::Hub => format!("stores/hub/models--lab--model/snapshots/{COMMIT}/weights.bin"),
            Kind::Http => "stores/plain/model/weights.bin".to_owned(),
            Kind::Ollama => format!("stores/ollama/blobs/sha256-{sha256}"),
        }
    }

    /// Whether a program would find the model; never, with other content than the right one.
    #[track_caller]
    pub(crate) fn has_it(&self) -> bool {
        let content = self.model.content();
        for (path, bytes) in visible(&self.machine.path("stores")) {
            let is_model = bytes == *content;
            let is_small = bytes.len() < 1000;
            assert!(is_model || is_small, "{path} has {} bytes that are not the model's", bytes.len());
            assert!(is_model || !path.contains("weights"), "{path} is not the model");
        }
        let place = self.machine.path(&self.place());
        place.exists().then(|| assert!(fs_err::read(&place).unwrap() == *content)).is_some()
    }

    /// What lies in larder's own folders: whether anything unfinished is kept for the next run.
    pub(crate) fn kept(&self) -> &'static str {
        let files = walkdir::WalkDir::new(self.machine.path("stores")).into_iter().filter_map(Result::ok);
        let mut unfinished = files.filter(|entry| entry.path().extension().is_some_and(|end| end == "partial"));
        let len = |path: &Path| fs_err::metadata(path).map_or(0, |found| found.len());
        // Of what comes in parts, the room is taken beforehand: the journal says what of it is there.
        let has_bytes = |entry: walkdir::DirEntry| match len(&entry.path().with_extension("journal")) {
            0 => len(entry.path()) > 0,
            journal => larder::fsio::journaled_bytes(journal) > 0,
        };
        if unfinished.any(has_bytes) { "something unfinished is kept" } else { "nothing unfinished is kept" }
    }

    /// How much went over the wire, as far as chance has no part in it: who hangs up early leaves more or less of an
    /// answer in the buffers, and of several connections any may be the first to be answered.
    pub(crate) fn crossed(&self, has_it: bool) -> String {
        let (requests, bytes, size) = (self.content_requests(), self.content_sent(), self.model.size);
        let bytes = match bytes {
            _ if !has_it => "",
            _ if self.model == LARGE => {
                assert!(bytes < 5 * size, "{bytes} bytes for {size}");
                ""
            }
            _ if bytes < size + size / 4 => ", about all of the bytes",
            _ if bytes < 2 * size + size / 4 => ", up to twice the bytes",
            _ => ", more than twice the bytes",
        };
        match requests {
            1 if self.model == SMALL => format!("1 request{bytes}, {}", self.kept()),
            _ if self.model == SMALL => format!("{requests} requests{bytes}, {}", self.kept()),
            0..=16 => "up to 16 requests".to_owned(),
            _ => "more than 16 requests".to_owned(),
        }
    }

    /// What was said, without what differs from run to run.
    pub(crate) fn told(&self, said: &Said) -> String {
        let out = said.out.lines().filter(|line| tells(line)).collect::<Vec<_>>().join("\n");
        let text = format!("exit code {}\n{}\n{}", said.code.unwrap_or(-1), out, errors(&said.err));
        let told = without_amounts(self.normal(&text).trim());
        if self.model == SMALL { told } else { without_chance(&told) }
    }

    /// A text without ports, folders and digests. Signatures must never be in one.
    pub(crate) fn normal(&self, text: &str) -> String {
        let port = self.server.port;
        let text =
            text.replace(&format!("127.0.0.1:{port}"), "SERVER").replace(&format!("localhost:{port}"), "ELSEWHERE");
        let text = text.replace(&self.model.sha256(), "SHA256").replace(COMMIT, "COMMIT");
        let text = text.replace(self.machine.home().to_str().unwrap(), "~");
        assert!(!text.contains("signature"), "a signature was printed:\n{text}");
        text
    }
}

/// Lines about what happened: the plan before them is another test's.
fn tells(line: &str) -> bool {
    let plan = ["  artifact ", "  move ", "pc ·"];
    !line.trim().is_empty()
        && !plan.iter().any(|start| line.starts_with(start))
        && !line.contains(" free → ")
        && !(line.starts_with("  model") && (line.contains(" fetch ") || line.contains(" repair ")))
}

fn errors(err: &str) -> String {
    let lines = err.lines().filter(|line| ["error:", "hint:", "warning:"].iter().any(|start| line.starts_with(start)));
    lines.collect::<Vec<_>>().join("\n")
}

/// How much came before something broke depends on the network's mood.
fn without_amounts(text: &str) -> String {
    let line = |line: &str| match (line.find("broke off after "), line.find(", ")) {
        (Some(at), _) => {
            let rest = &line[at + "broke off after ".len()..];
            let end = rest.find(" bytes").map_or("", |end| &rest[end..]);
            format!("{}broke off after N of M{end}", &line[..at])
        }
        (None, Some(at)) if line.contains(" placed, ") && line.contains(" fetched") => {
            let rest = &line[line.find(" fetched").unwrap_or(at)..];
            format!("{}, SIZE{rest}", &line[..at])
        }
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Which of several connections is the first to be answered, and what of the others came by then.
fn without_chance(text: &str) -> String {
    let mut line = text.replace(", SIZE fetched", "");
    for unit in ["bytes ", "items "] {
        let Some(at) = line.find(&format!("its Content-Range is \"{unit}")) else { continue };
        let end = line[at..].find('\n').map_or(line.len(), |end| at + end);
        line.replace_range(at..end, &format!("its Content-Range is \"{unit}N-M/SIZE\" where another was asked for"));
    }
    line
}

/// Files that a program could find: those outside dot-folders.
fn visible(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let is_ours = |entry: &walkdir::DirEntry| entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.');
    let walk = walkdir::WalkDir::new(folder).follow_links(true).into_iter().filter_entry(|entry| !is_ours(entry));
    let files = walk.filter_map(Result::ok).filter(|entry| entry.file_type().is_file());
    files.map(|entry| (entry.path().display().to_string(), fs_err::read(entry.path()).unwrap())).collect()
}

fn inventory(origin: &str, sources: &str) -> String {
    let given = |key: &str| sources.lines().any(|line| line.trim_start().starts_with(key));
    let defaults =
        [("connect-timeout", "\"2 s\""), ("stall-timeout", "\"1 s\""), ("retries", "2"), ("retry-pause", "\"10 ms\"")];
    let defaults = defaults.iter().filter(|(key, _)| !given(key)).map(|(key, value)| format!("{key} = {value}\n"));
    format!(
        "manifests = [\"manifests/*.toml\"]\nmachine = \"pc\"\n\n[stores]\n\
         hub = {{ layout = \"hf-cache\", path = \"~/stores/hub\" }}\n\
         plain = {{ layout = \"folder\", path = \"~/stores/plain\" }}\n\
         ollama = {{ layout = \"ollama\", path = \"~/stores/ollama\" }}\n\n[machines]\npc = {{}}\n\n\
         [sources]\nhub = \"{origin}\"\nollama = \"{origin}\"\n{}{sources}\n",
        defaults.collect::<String>()
    )
}

fn manifest(model: Model, kind: Kind, origin: &str) -> String {
    let (size, sha256) = (model.size, model.sha256());
    let head = "[[section]]\nname = \"lab\"\ntitle = \"Lab\"\n\n[[artifact]]\nname = \"model\"\n";
    match kind {
        Kind::Hub => format!("{head}source = \"hf:lab/model\"\nstore = \"hub\"\n"),
        Kind::Ollama => format!("{head}source = \"ollama:model:1b\"\nstore = \"ollama\"\n"),
        Kind::Http => format!(
            "{head}store = \"plain\"\nfolder = \"model\"\nsource = \"{origin}/files/weights.bin\"\n  [[artifact.file]]\n  \
             path = \"weights.bin\"\n  size = {size}\n  sha256 = \"{sha256}\"\n"
        ),
    }
}
