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

/// The model's content: without pattern, so that every displaced byte shows.
pub(crate) fn content() -> Arc<Vec<u8>> {
    static CONTENT: LazyLock<Arc<Vec<u8>>> = LazyLock::new(|| {
        let blocks = (0_u64..).flat_map(|n| *Sha256::of(&n.to_le_bytes()).as_bytes());
        Arc::new(blocks.take(SIZE).collect())
    });
    Arc::clone(&CONTENT)
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

/// What a good server answers.
pub(crate) fn honest(kind: Kind, port: u16, asked: &Asked) -> Answer {
    let content = content();
    let sha256 = Sha256::of(&content).to_string();
    match (kind, phase(asked)) {
        (Kind::Hub, Phase::Listing) if asked.path().contains("/revision/") => {
            Answer::json(&json!({"id": "lab/model", "sha": COMMIT}))
        }
        (Kind::Hub, Phase::Listing) => Answer::json(&json!([tree_entry("weights.bin", &sha256)])),
        (Kind::Hub, Phase::Check | Phase::Content) => {
            let to = format!("http://localhost:{port}/elsewhere/weights.bin?signature=secret");
            let size = SIZE.to_string();
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
        let server = Hostile::start(|_| Answer::default());
        let machine = Machine::new(&inventory(&server.origin(), sources), &manifest(kind, &server.origin()));
        let bench = Self { kind, machine, server };
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

    /// From now on the server is honest; counting begins anew.
    pub(crate) fn behave(&self) {
        let (kind, port) = (self.kind, self.server.port);
        self.server.now(move |asked| honest(kind, port, asked));
    }

    /// From now on `habit` answers what it wants to, and the rest is honest.
    pub(crate) fn misbehave(&self, habit: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) {
        let (kind, port) = (self.kind, self.server.port);
        self.server.now(move |asked| habit(asked).unwrap_or_else(|| honest(kind, port, asked)));
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
        let sha256 = Sha256::of(&content()).to_string();
        match self.kind {
            Kind::Hub => format!("stores/hub/models--lab--model/snapshots/{COMMIT}/weights.bin"),
            Kind::Http => "stores/plain/model/weights.bin".to_owned(),
            Kind::Ollama => format!("stores/ollama/blobs/sha256-{sha256}"),
        }
    }

    /// Whether a program would find the model; never, with other content than the right one.
    #[track_caller]
    pub(crate) fn has_it(&self) -> bool {
        for (path, bytes) in visible(&self.machine.path("stores")) {
            let is_model = bytes == *content();
            let is_small = bytes.len() < 1000;
            assert!(is_model || is_small, "{path} has {} bytes that are not the model's", bytes.len());
            assert!(is_model || !path.contains("weights"), "{path} is not the model");
        }
        let place = self.machine.path(&self.place());
        place.exists().then(|| assert!(fs_err::read(&place).unwrap() == *content())).is_some()
    }

    /// What was said, without what differs from run to run.
    pub(crate) fn told(&self, said: &Said) -> String {
        let out = said.out.lines().filter(|line| tells(line)).collect::<Vec<_>>().join("\n");
        let text = format!("exit code {}\n{}\n{}", said.code.unwrap_or(-1), out, errors(&said.err));
        without_amounts(self.normal(&text).trim())
    }

    /// A text without ports, folders and digests. Signatures must never be in one.
    pub(crate) fn normal(&self, text: &str) -> String {
        let port = self.server.port;
        let text =
            text.replace(&format!("127.0.0.1:{port}"), "SERVER").replace(&format!("localhost:{port}"), "ELSEWHERE");
        let text = text.replace(&Sha256::of(&content()).to_string(), "SHA256").replace(COMMIT, "COMMIT");
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

fn manifest(kind: Kind, origin: &str) -> String {
    let head = "[[section]]\nname = \"lab\"\ntitle = \"Lab\"\n\n[[artifact]]\nname = \"model\"\n";
    match kind {
        Kind::Hub => format!("{head}source = \"hf:lab/model\"\nstore = \"hub\"\n"),
        Kind::Ollama => format!("{head}source = \"ollama:model:1b\"\nstore = \"ollama\"\n"),
        Kind::Http => format!(
            "{head}store = \"plain\"\nfolder = \"model\"\nsource = \"{origin}/files/weights.bin\"\n  [[artifact.file]]\n  \
             path = \"weights.bin\"\n  size = {SIZE}\n  sha256 = \"{}\"\n",
            Sha256::of(&content())
        ),
    }
}
