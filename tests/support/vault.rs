//! A lab with files of several chunks in all three kinds of store, and a metered upstream for all of them.

use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, LazyLock};

use larder::artifact::{Artifact, File, OllamaManifest, Origin};
use larder::digest::{ContentHasher, Sha256};
use larder::facts::Facts;
use larder::fsio::{WriteOptions, write_atomic};
use larder::serve::{Index, Served};
use serde_json::{Value, json};

#[path = "upstream.rs"]
mod upstream;

pub(crate) use upstream::Upstream;

/// The commit of the hub repository.
pub(crate) const COMMIT: &str = "00c0ffee00000000000000000000000000c0ffee";
pub(crate) const CHUNK: u64 = larder::digest::CHUNK_LEN;

const HUB_CONFIG: &[u8] = b"{\"a\": 1}\n";
const IMAGE_CONFIG: &[u8] = br#"{"model_format":"gguf"}"#;

/// The large files: one in each store. The last two have the same content.
pub(crate) const FILES: [Kept; 4] = [Kept::Hub, Kept::Image, Kept::Plain, Kept::Twin];

/// Files of less than a chunk.
pub(crate) const SMALL: [Kept; 2] = [Kept::HubSmall, Kept::ImageSmall];

/// One of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Hub,
    Image,
    Plain,
    Twin,
    HubSmall,
    ImageSmall,
}

/// Of the first and the last the lengths are the same.
static CONTENTS: LazyLock<[Arc<Vec<u8>>; 3]> = LazyLock::new(|| {
    let lengths = [2 * CHUNK as usize + 123_457, 3 * CHUNK as usize, 2 * CHUNK as usize + 123_457];
    let mut seed = 0;
    lengths.map(|len| {
        seed += 1;
        Arc::new(noise(len, seed))
    })
});

impl Kept {
    pub(crate) fn bytes(self) -> Arc<Vec<u8>> {
        let index = match self {
            Kept::Hub => 0,
            Kept::Image => 1,
            Kept::Plain | Kept::Twin => 2,
            Kept::HubSmall => return Arc::new(HUB_CONFIG.to_vec()),
            Kept::ImageSmall => return Arc::new(IMAGE_CONFIG.to_vec()),
        };
        Arc::clone(&CONTENTS[index])
    }

    pub(crate) fn len(self) -> u64 {
        self.bytes().len() as u64
    }

    pub(crate) fn sha256(self) -> Sha256 {
        Sha256::of(&self.bytes())
    }

    pub(crate) fn artifact(self) -> &'static str {
        match self {
            Kept::Hub | Kept::HubSmall => "paint",
            Kept::Image | Kept::ImageSmall => "guard:1b",
            Kept::Plain => "vae",
            Kept::Twin => "twin",
        }
    }

    /// Its path as the lock calls it.
    pub(crate) fn path(self) -> String {
        match self {
            Kept::Hub => "unet/model.bin".to_owned(),
            Kept::HubSmall => "config.json".to_owned(),
            Kept::Image | Kept::ImageSmall => format!("blobs/sha256-{}", self.sha256()),
            Kept::Plain => "vae/vae.pth".to_owned(),
            Kept::Twin => "twin/same.pth".to_owned(),
        }
    }
}

/// The lab.
pub(crate) struct Vault {
    dir: tempfile::TempDir,
    /// Where the stores are.
    pub(crate) machine: PathBuf,
    pub(crate) upstream: Upstream,
    /// What upstream knows of its contents: nothing, unless a test tells it.
    pub(crate) upstream_knows: Arc<Facts>,
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

    #[track_caller]
    pub(crate) fn must_be(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The faults of a verification.
    #[track_caller]
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let verdict = self.json();
        let text = |fault: &Value, key: &str| fault[key].as_str().unwrap_or("").to_owned();
        let range = |range: &Value| range["start"].as_u64().unwrap()..range["end"].as_u64().unwrap();
        let faults = verdict["faults"].as_array().unwrap().iter();
        let mut faults: Vec<Fault> = faults
            .map(|fault| Fault {
                artifact: text(fault, "artifact"),
                path: text(fault, "path"),
                kind: text(fault, "kind"),
                ranges: fault["ranges"].as_array().into_iter().flatten().map(range).collect(),
            })
            .collect();
        faults.sort_by(|a, b| (&a.artifact, &a.path).cmp(&(&b.artifact, &b.path)));
        faults
    }
}

/// A fault as a verification names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) artifact: String,
    pub(crate) path: String,
    pub(crate) kind: String,
    pub(crate) ranges: Vec<Range<u64>>,
}

impl Fault {
    pub(crate) fn of(file: Kept, kind: &str, ranges: Vec<Range<u64>>) -> Self {
        Self { artifact: file.artifact().to_owned(), path: file.path(), kind: kind.to_owned(), ranges }
    }
}

impl Vault {
    /// Provisioned, and nothing verified yet.
    pub(crate) fn filled() -> Self {
        let vault = Self::empty(None);
        vault.larder(&["apply", "--yes"]).must_be(0);
        vault.upstream.take_asked();
        vault
    }

    /// Locked; its stores do not exist yet, and will lie below `machine` where that is given.
    pub(crate) fn empty(machine: Option<&Path>) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let upstream_knows = Arc::new(Facts::in_memory().unwrap());
        let facts = Some(Arc::clone(&upstream_knows));
        let upstream = Upstream::start(Index { facts, ..Index::of(models(dir.path()), ["/"]) });
        let machine = machine.map_or_else(|| dir.path().join("machine"), Path::to_owned);
        let vault = Self { dir, machine, upstream, upstream_knows };
        vault.write_inventory("");
        vault.write("lab/manifests/models.toml", &vault.manifest());
        vault.larder(&["lock"]).must_be(0);
        vault
    }

    /// Writes the inventory; `more` is added to its sources.
    pub(crate) fn write_inventory(&self, more: &str) {
        let address = self.upstream.address;
        let stores = [("huggingface", "hf-cache"), ("ollama", "ollama"), ("plain", "folder")].map(|(name, layout)| {
            format!(
                "{name} = {{ layout = \"{layout}\", path = {:?} }}\n",
                self.machine.join(name).display().to_string()
            )
        });
        let sources = format!("[sources]\nhub = \"http://{address}\"\nollama = \"http://{address}\"\n{more}");
        let text = format!("manifests = [\"manifests/*.toml\"]\n[stores]\n{}\n{sources}", stores.concat());
        self.write("lab/inventory.toml", &text);
    }

    fn write(&self, path: &str, text: &str) {
        write_atomic(&self.dir.path().join(path), text.as_bytes(), &WriteOptions::default()).unwrap();
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn facts(&self) -> PathBuf {
        self.dir.path().join("state/facts.sqlite")
    }

    /// Where the content lies.
    pub(crate) fn place(&self, file: Kept) -> PathBuf {
        match file {
            Kept::Hub => self.machine.join("huggingface/models--lab--paint/blobs").join(file.sha256().to_string()),
            Kept::HubSmall => {
                let snapshot = self.machine.join("huggingface/models--lab--paint/snapshots").join(COMMIT);
                fs_err::canonicalize(snapshot.join(file.path())).unwrap()
            }
            Kept::Image | Kept::ImageSmall => self.machine.join("ollama").join(file.path()),
            Kept::Plain | Kept::Twin => self.machine.join("plain").join(file.path()),
        }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(args).arg("--inventory").arg(self.dir.path().join("lab/inventory.toml"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.dir.path());
        command.env("LARDER_STATE", self.dir.path().join("state")).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn larder(&self, args: &[&str]) -> Said {
        Said::of(&self.command(args).output().unwrap())
    }

    /// The faults that `larder verify` names; its exit code says whether there are any.
    #[track_caller]
    pub(crate) fn faults(&self, more: &[&str]) -> Vec<Fault> {
        let said = self.larder(&[&["verify", "--json"], more].concat());
        let faults = said.faults();
        assert_eq!(said.code, Some(if faults.is_empty() { 0 } else { 3 }), "{said:?}");
        faults
    }

    /// Fails unless every large file has the bytes it must have.
    #[track_caller]
    pub(crate) fn everything_is_right(&self) {
        for file in FILES {
            assert!(fs_err::read(self.place(file)).unwrap() == *file.bytes(), "{file:?}");
        }
    }

    fn manifest(&self) -> String {
        let (vae, address) = (Kept::Plain.sha256(), self.upstream.address);
        let length = Kept::Plain.len();
        let plain = |name: &str, path: &str| {
            let (folder, file) = path.split_once('/').unwrap();
            format!(
                "[[artifact]]\nname = \"{name}\"\nsource = \"http://{address}/files/{name}/vae.pth\"\nstore = \"plain\"\n\
                 folder = \"{folder}\"\n  [[artifact.file]]\n  path = \"{file}\"\n  size = {length}\n  sha256 = \"{vae}\"\n\
                 source = \"http://{address}/files/vae.pth/vae.pth\"\n"
            )
        };
        let all = [
            "[[artifact]]\nname = \"paint\"\nsource = \"hf:lab/paint\"\nstore = \"huggingface\"\n".to_owned(),
            "[[artifact]]\nname = \"guard:1b\"\nsource = \"ollama:guard:1b\"\nstore = \"ollama\"\n".to_owned(),
            plain("vae", &Kept::Plain.path()),
            plain("twin", &Kept::Twin.path()),
        ];
        all.join("\n")
    }
}

fn models(root: &Path) -> Vec<Served> {
    let hub = [("config.json", Kept::HubSmall.bytes()), ("unet/model.bin", Kept::Hub.bytes())];
    let hub = hub.map(|(path, bytes)| (path.to_owned(), bytes));
    let image = [Kept::Image.bytes(), Kept::ImageSmall.bytes()]
        .map(|bytes| (format!("blobs/sha256-{}", Sha256::of(&bytes)), bytes));
    let manifest = image_manifest(&image);
    let mut served = vec![
        serve(root, "paint", "hf:lab/paint", &hub),
        serve(root, "guard", "ollama:guard:1b", &image),
        serve(root, "vae.pth", "local", &[("vae.pth".to_owned(), Kept::Plain.bytes())]),
    ];
    served[1].artifact.ollama = Some(OllamaManifest { digest: Sha256::of(manifest.as_bytes()), bytes: Some(manifest) });
    served
}

fn serve(root: &Path, name: &str, source: &str, files: &[(String, Arc<Vec<u8>>)]) -> Served {
    let is_hub = source.starts_with("hf:");
    let places: Vec<PathBuf> = files.iter().map(|(path, _)| root.join("upstream").join(name).join(path)).collect();
    for ((_, bytes), place) in files.iter().zip(&places) {
        write_atomic(place, bytes, &WriteOptions::default()).unwrap();
    }
    let describe = |(path, bytes): &(String, Arc<Vec<u8>>)| {
        let mut hasher = ContentHasher::new().with_git_sha1(bytes.len() as u64);
        hasher.update(bytes);
        let mut digests = hasher.finish();
        let lfs = path.ends_with(".bin");
        if is_hub && !lfs {
            digests.sha256 = None
        } else {
            digests.git_sha1 = None
        }
        File {
            size: Some(bytes.len() as u64),
            digests,
            lfs: is_hub.then_some(lfs),
            ..File::named(path.parse().unwrap())
        }
    };
    let artifact = Artifact {
        name: name.to_owned(),
        store: "upstream".to_owned(),
        source: source.parse().unwrap(),
        declared: String::new(),
        revision: is_hub.then(|| COMMIT.to_owned()),
        origin: Origin::Upstream,
        complete: true,
        whole: is_hub,
        irreplaceable: false,
        ollama: None,
        pattern: None,
        folder: None,
        files: files.iter().map(describe).collect(),
    };
    Served { artifact, content: places.into_iter().map(Some).collect() }
}

fn image_manifest(files: &[(String, Arc<Vec<u8>>)]) -> String {
    let entry = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": format!("sha256:{}", Sha256::of(bytes)), "size": bytes.len()});
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": entry("application/vnd.docker.container.image.v1+json", &files[1].1),
        "layers": [entry("application/vnd.ollama.image.model", &files[0].1)],
    })
    .to_string()
}

/// Bytes without pattern (xorshift).
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

/// Changes bytes of a file where they lie, as a disk does: length and time of change stay.
pub(crate) fn rot(path: &Path, offset: u64, change: impl FnOnce(&mut [u8]), len: usize) {
    let before = fs_err::metadata(path).unwrap();
    if before.permissions().mode() & 0o200 == 0 {
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let mut file = fs_err::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; len];
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    change(&mut bytes);
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    file.file().set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(fs_err::metadata(path).unwrap().mtime_nsec(), before.mtime_nsec());
}

/// Flips one bit.
pub(crate) fn flip(path: &Path, bit: u64) {
    rot(path, bit / 8, |bytes| bytes[0] ^= 1 << (bit % 8), 1);
}

/// The chunk that byte `offset` of a file of `len` bytes lies in.
pub(crate) fn chunk_of(offset: u64, len: u64) -> Range<u64> {
    let start = offset / CHUNK * CHUNK;
    start..(start + CHUNK).min(len)
}
