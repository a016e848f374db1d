//! A lab of one machine with all three kinds of store, provisioned by the real program from a metered
//! server on loopback. What it holds is the same in every run.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, LazyLock};

use larder::artifact::{Artifact, File, OllamaManifest, Origin};
use larder::digest::{ContentHasher, Sha256};
use larder::fsio::{WriteOptions, write_atomic};
use larder::serve::{Index, Served};
use serde_json::{Value, json};

#[path = "upstream.rs"]
mod upstream;

pub(crate) use upstream::Upstream;

/// The commit of the hub repositories.
pub(crate) const COMMIT: &str = "00c0ffee00000000000000000000000000c0ffee";
/// The stores, by name and folder.
pub(crate) const STORES: [(&str, &str); 3] = [("huggingface", "hf-cache"), ("ollama", "ollama"), ("plain", "folder")];

/// One file that upstream has.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) path: String,
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) sha256: Sha256,
}

impl Content {
    fn new(path: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { path: path.into(), sha256: Sha256::of(&bytes), bytes: Arc::new(bytes) }
    }

    fn at(&self, path: impl Into<String>) -> Self {
        Self { path: path.into(), ..self.clone() }
    }
}

/// A model as upstream has it.
struct Model {
    name: &'static str,
    source: &'static str,
    files: Vec<Content>,
}

/// What `larder` answered.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Fails, with everything that was said, unless the exit code is this one.
    #[track_caller]
    pub(crate) fn must_be(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// What was printed, in one line: tables break sentences.
    pub(crate) fn line(&self) -> String {
        self.out.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The object of `--json`.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {:?}\n{}{}", self.code, self.out, self.err)
    }
}

/// The lab.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    /// Where the stores are.
    pub(crate) machine: PathBuf,
    pub(crate) upstream: Upstream,
}

impl Lab {
    /// A locked lab whose stores do not exist yet.
    pub(crate) fn start() -> Self {
        Self::with_stores_in(None)
    }

    /// The same with the stores below `machine`, which may be another file system.
    pub(crate) fn with_stores_in(machine: Option<&Path>) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let served = models().iter().map(|model| serve(dir.path(), model)).collect();
        let upstream = Upstream::start(Index::of(served, ["/"]));
        let machine = machine.map_or_else(|| dir.path().join("machine"), Path::to_owned);
        let lab = Self { dir, machine, upstream };
        lab.write_inventory(|_| String::new());
        lab.write("lab/manifests/models.toml", &manifest(&lab.upstream));
        lab.larder(&["lock"]).must_be(0);
        lab
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn inventory(&self) -> PathBuf {
        self.dir.path().join("lab/inventory.toml")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn store(&self, name: &str) -> PathBuf {
        self.machine.join(name)
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.store("huggingface").join("models--lab--paint")
    }

    /// Writes the inventory; `more` adds keys to a store, such as `, owner = "ollama"`.
    pub(crate) fn write_inventory(&self, more: impl Fn(&str) -> String) {
        let mut text = String::from("manifests = [\"manifests/*.toml\"]\nmachine = \"pc2\"\n\n[stores]\n");
        for (name, layout) in STORES {
            let path = self.store(name).display().to_string();
            text.push_str(&format!("{name} = {{ layout = \"{layout}\", path = {path:?}{} }}\n", more(name)));
        }
        let address = self.upstream.address;
        text.push_str(&format!(
            "\n[machines]\npc2 = {{}}\n\n[sources]\nhub = \"http://{address}\"\nollama = \"http://{address}\"\n"
        ));
        self.write("lab/inventory.toml", &text);
    }

    fn write(&self, path: &str, text: &str) {
        write_atomic(&self.dir.path().join(path), text.as_bytes(), &WriteOptions::default()).unwrap();
    }

    /// The program, with nothing of the caller's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        self.prepare(&mut command, args);
        command
    }

    /// The program as another user, by number.
    pub(crate) fn command_as(&self, user: u32, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.uid(user).gid(user);
        command
    }

    fn prepare(&self, command: &mut Command, args: &[&str]) {
        command.args(args).arg("--inventory").arg(self.inventory());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.dir.path());
        command.env("LARDER_STATE", self.state()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// Runs the program to its end.
    pub(crate) fn larder(&self, args: &[&str]) -> Said {
        Said::of(&self.command(args).output().unwrap())
    }

    pub(crate) fn apply(&self) -> Said {
        self.larder(&["apply", "--yes"])
    }

    /// The faults that a full verification names: artifact, path, kind.
    #[track_caller]
    pub(crate) fn faults(&self) -> Vec<(String, String, String)> {
        faults(&self.larder(&["verify", "--full", "--json"]))
    }

    /// Removes the machine and what larder remembers of it.
    pub(crate) fn start_over(&self) {
        for folder in [&self.machine, &self.state()] {
            if folder.exists() {
                #[expect(clippy::disallowed_methods, reason = "the test's own folder")]
                std::fs::remove_dir_all(folder).unwrap();
            }
        }
    }

    /// Content that must cross the wire to provision the machine, each digest once.
    pub(crate) fn bytes_to_fetch() -> u64 {
        let mut seen = std::collections::HashSet::new();
        let files = models().iter().flat_map(|model| &model.files);
        files.filter(|file| seen.insert(file.sha256)).map(|file| file.bytes.len() as u64).sum()
    }
}

#[track_caller]
pub(crate) fn faults(said: &Said) -> Vec<(String, String, String)> {
    let text = |fault: &Value, key: &str| fault[key].as_str().unwrap_or("").to_owned();
    let verdict = said.json();
    let faults: Vec<_> = verdict["faults"].as_array().unwrap().to_vec();
    assert_eq!(said.code, Some(if faults.is_empty() { 0 } else { 3 }), "{said}");
    faults.iter().map(|fault| (text(fault, "artifact"), text(fault, "path"), text(fault, "kind"))).collect()
}

/// What must lie in the plain folder, by path.
pub(crate) fn plain_files() -> Vec<Content> {
    let model = |name: &str| models().iter().find(|model| model.name == name).unwrap();
    let mut files: Vec<Content> =
        model("voice").files.iter().map(|file| file.at(format!("voice/{}", file.path))).collect();
    files.push(model("vae.pth").files[0].at("vae/vae.pth"));
    let encoder = model("paint").files.iter().find(|file| file.path.starts_with("text_encoder")).unwrap();
    files.push(encoder.at("clip/encoder.safetensors"));
    files
}

/// What the snapshot of the hub repository must have, by path.
pub(crate) fn hub_files() -> &'static [Content] {
    &models()[0].files
}

/// The length of the content that has this sha256.
pub(crate) fn length_of(sha256: &str) -> Option<u64> {
    let mut files = models().iter().flat_map(|model| &model.files);
    files.find(|file| file.sha256.to_string() == sha256).map(|file| file.bytes.len() as u64)
}

/// The images' manifests and layers.
pub(crate) fn images() -> impl Iterator<Item = (&'static str, &'static [Content])> {
    models().iter().filter(|model| model.source.starts_with("ollama:")).map(|m| (m.source, m.files.as_slice()))
}

/// Bytes without pattern (xorshift): compressible content hides damage.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// Made once: it takes longer than serving it.
fn models() -> &'static [Model] {
    static MODELS: LazyLock<Vec<Model>> = LazyLock::new(make_models);
    &MODELS
}

fn make_models() -> Vec<Model> {
    let content = |path: &str, bytes: &[u8]| Content::new(path, bytes.to_vec());
    let shard = |n| format!("weights-0000{n}-of-00002.safetensors");
    let index = json!({"metadata": {}, "weight_map": {"a": shard(1), "b": shard(2)}}).to_string();
    vec![
        Model {
            name: "paint",
            source: "hf:lab/paint",
            files: vec![
                content("__init__.py", b""),
                content("model_index.json", b"{\"_class_name\": \"Paint\"}\n"),
                content("text_encoder/model.safetensors", &noise(400_001, 1)),
                content("tokenizer/vocab.json", b"{\"a\": 0}\n"),
                content(&format!("unet/{}", shard(1)), &noise(1_500_000, 2)),
                content(&format!("unet/{}", shard(2)), &noise(900_000, 3)),
                content("unet/weights.safetensors.index.json", index.as_bytes()),
            ],
        },
        Model { name: "guard-1b", source: "ollama:guard:1b", files: image(4, 1_000_000) },
        Model { name: "guard-8b", source: "ollama:guard:8b", files: image(5, 700_000) },
        Model {
            name: "voice",
            source: "hf:lab/voice",
            files: vec![
                content("config.json", b"{\"vocab_size\": 8197}\n"),
                content("model.safetensors", &noise(800_000, 6)),
            ],
        },
        Model { name: "vae.pth", source: "local", files: vec![content("vae.pth", &noise(600_000, 7))] },
    ]
}

/// Layers of an image, the config last; all images have template and licence in common.
fn image(seed: u64, len: usize) -> Vec<Content> {
    let config = format!("{{\"model_format\":\"gguf\",\"model_type\":\"{seed}\"}}");
    let layers = [noise(len, seed), b"{{ .Prompt }}".to_vec(), b"MIT".to_vec(), config.into_bytes()];
    layers.map(|bytes| Content::new(format!("blobs/sha256-{}", Sha256::of(&bytes)), bytes)).into()
}

fn serve(root: &Path, model: &Model) -> Served {
    let is_hub = model.source.starts_with("hf:");
    let places: Vec<PathBuf> =
        model.files.iter().map(|file| root.join("upstream").join(model.name).join(&file.path)).collect();
    for (file, place) in model.files.iter().zip(&places) {
        write_atomic(place, &file.bytes, &WriteOptions::default()).unwrap();
    }
    let mut artifact = Artifact {
        name: model.name.to_owned(),
        store: "upstream".to_owned(),
        source: model.source.parse().unwrap(),
        declared: String::new(),
        revision: is_hub.then(|| COMMIT.to_owned()),
        origin: Origin::Upstream,
        complete: true,
        whole: is_hub,
        folder: None,
        irreplaceable: false,
        ollama: None,
        pattern: None,
        files: model.files.iter().map(|file| describe(file, is_hub)).collect(),
    };
    if model.source.starts_with("ollama:") {
        let bytes = image_manifest(&model.files);
        artifact.ollama = Some(OllamaManifest { digest: Sha256::of(bytes.as_bytes()), bytes: Some(bytes) });
    }
    Served { artifact, content: places.into_iter().map(Some).collect() }
}

fn describe(file: &Content, is_hub: bool) -> File {
    let mut hasher = ContentHasher::new().with_git_sha1(file.bytes.len() as u64);
    hasher.update(&file.bytes);
    let mut digests = hasher.finish();
    let lfs = file.path.ends_with(".safetensors");
    if is_hub && !lfs {
        digests.sha256 = None;
    } else {
        digests.git_sha1 = None;
    }
    let size = Some(file.bytes.len() as u64);
    File { size, digests, lfs: is_hub.then_some(lfs), ..File::named(file.path.parse().unwrap()) }
}

/// The manifest of an image, as a registry keeps it: with a blank that no program of ours would write.
pub(crate) fn image_manifest(files: &[Content]) -> String {
    let entry = |kind: &str, file: &Content| json!({"mediaType": kind, "digest": format!("sha256:{}", file.sha256), "size": file.bytes.len()});
    let kinds = ["model", "template", "license"].map(|kind| format!("application/vnd.ollama.image.{kind}"));
    let layers: Vec<Value> = kinds.iter().zip(files).map(|(kind, file)| entry(kind, file)).collect();
    let config = entry("application/vnd.docker.container.image.v1+json", files.last().unwrap());
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    format!(
        "{{ \"schemaVersion\":2,\"mediaType\":\"{kind}\",\"config\":{config},\"layers\":{}}}\n",
        Value::Array(layers)
    )
}

fn manifest(upstream: &Upstream) -> String {
    let vae = models()[4].files[0].sha256;
    let address = upstream.address;
    format!(
        r#"[[section]]
name = "lab"
title = "Lab"

[[artifact]]
name = "paint"
source = "hf:lab/paint"
store = "huggingface"

[[artifact]]
name = "encoder"
store = "plain"
  [[artifact.file]]
  path = "clip/encoder.safetensors"
  source = "hf:lab/paint/text_encoder/model.safetensors"

[[artifact]]
name = "guard:1b"
source = "ollama:guard:1b"
store = "ollama"

[[artifact]]
name = "guard:8b"
source = "ollama:guard:8b"
store = "ollama"

[[artifact]]
name = "voice"
source = "hf:lab/voice"
store = "plain"
folder = "voice"

[[artifact]]
name = "vae"
source = "http://{address}/files/vae.pth/vae.pth"
store = "plain"
folder = "vae"
  [[artifact.file]]
  path = "vae.pth"
  size = 600000
  sha256 = "{vae}"
"#
    )
}
