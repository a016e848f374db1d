//! `larder copy` of stores as programs make them over time: revisions that share contents, snapshots that were begun,
//! images that share layers. What arrives is read by the real clients offline, or by the store's own rules.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use larder::artifact::{Artifact, File, Origin};
use larder::digest::{ContentHasher, Digests, Sha256};
use larder::lock::Lock;

#[path = "support/ollama_image.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod ollama_image;
#[path = "support/parts.rs"]
mod parts;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod program;
#[path = "support/python.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod python;
#[path = "support/sshd.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod sshd;

use ollama_image::Image;
use parts::skip;
use program::{INVENTORY, Lab, Said};
use sshd::{Sshd, remote_words};

const REPO: &str = "models--acme--hand";

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let word = |n: u64| *Sha256::of(&(n ^ (seed << 32)).to_le_bytes()).as_bytes();
    (0..len as u64).flat_map(word).take(len).collect()
}

/// One file of a revision: its path, its content, and whether the hub names it by SHA-256.
type Content = (&'static str, Vec<u8>, bool);

/// One revision of the repository, by the branch that leads to it.
struct Revision {
    branch: &'static str,
    commit: String,
    files: Vec<Content>,
}

impl Revision {
    fn new(branch: &'static str, digit: char, files: Vec<Content>) -> Self {
        Self { branch, commit: digit.to_string().repeat(40), files }
    }

    fn artifact(&self) -> Artifact {
        let file = |(path, bytes, lfs): &Content| {
            let digests = digests(bytes);
            let digests =
                if *lfs { Digests { git_sha1: None, ..digests } } else { Digests { sha256: None, ..digests } };
            File { size: Some(bytes.len() as u64), digests, lfs: Some(*lfs), ..File::named(path.parse().unwrap()) }
        };
        Artifact {
            name: format!("hand-{}", self.branch),
            store: "cache".to_owned(),
            source: format!("hf:acme/hand@{}", self.branch).parse().unwrap(),
            declared: String::new(),
            revision: Some(self.commit.clone()),
            origin: Origin::Upstream,
            complete: true,
            whole: true,
            folder: None,
            irreplaceable: false,
            ollama: None,
            pattern: None,
            files: self.files.iter().map(file).collect(),
        }
    }

    /// Puts the files at `paths` into a cache, as the hub's clients do.
    fn put(&self, lab: &Lab, paths: &[&str]) {
        let repo = format!("home/hub/{REPO}");
        lab.write(&format!("{repo}/refs/{}", self.branch), &self.commit);
        for (path, bytes, lfs) in self.files.iter().filter(|(path, ..)| paths.contains(path)) {
            let digests = digests(bytes);
            let name = if *lfs { digests.sha256.unwrap().to_string() } else { digests.git_sha1.unwrap().to_string() };
            lab.write(&format!("{repo}/blobs/{name}"), bytes);
            let link = lab.path(&format!("{repo}/snapshots/{}/{path}", self.commit));
            larder::fsio::create_dir_all(link.parent().unwrap(), None).unwrap();
            larder::fsio::symlink_atomic(Path::new(&format!("../../blobs/{name}")), &link, None).unwrap();
        }
    }
}

fn digests(bytes: &[u8]) -> Digests {
    let mut hasher = ContentHasher::new().with_git_sha1(bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

/// Two revisions with the same weights; a third with other ones.
fn revisions() -> [Revision; 3] {
    let (weights, others) = (noise(1, 300_000), noise(2, 200_000));
    let of = |config: &str, weights: &[u8]| -> Vec<Content> {
        vec![
            ("config.json", config.as_bytes().to_vec(), false),
            ("model.safetensors", weights.to_vec(), true),
            ("tokenizer.json", b"[\"the same in all\"]".to_vec(), false),
        ]
    };
    [
        Revision::new("main", 'a', of("{\"revision\": 3}", &weights)),
        Revision::new("v2", 'b', of("{\"revision\": 2}", &weights)),
        Revision::new("v1", 'c', of("{\"revision\": 1}", &others)),
    ]
}

fn manifest(artifacts: &[Artifact]) -> String {
    let one = |artifact: &Artifact| {
        format!(
            "[[artifact]]\nname = \"{}\"\nsource = \"{}\"\nstore = \"{}\"\n",
            artifact.name, artifact.source, artifact.store
        )
    };
    artifacts.iter().map(one).collect()
}

/// A machine that wants these, and has nothing.
fn machine(artifacts: &[Artifact]) -> Lab {
    let lab = Lab::new(INVENTORY, &manifest(artifacts));
    Lock { artifacts: artifacts.to_vec() }.write(&lab.path("inventory.lock")).unwrap();
    lab
}

fn copy(here: &Lab, there: &Lab, sshd: &Sshd, arguments: &[&str]) -> Said {
    let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &there.path(""));
    let mut command = here.command(&["copy", "--ssh", &sshd.client(), "--remote-larder", &words, "--yes", "--json"]);
    program::said(command.args(arguments).env("PATH", "/usr/bin:/bin"), &here.path(""))
}

#[track_caller]
fn outcome(said: &Said) -> serde_json::Value {
    serde_json::from_str(&said.out).unwrap()
}

/// What `huggingface_hub` reads of a revision without a network: path and digest of every file.
fn loaded(python: &Path, home: &Path, revision: &str) -> BTreeMap<String, String> {
    let script = format!(
        "import hashlib, pathlib\n\
         from huggingface_hub import snapshot_download\n\
         root = pathlib.Path(snapshot_download('acme/hand', revision='{revision}', local_files_only=True))\n\
         for path in sorted(root.rglob('*')):\n    \
             print('FILE', path.relative_to(root), hashlib.sha256(path.read_bytes()).hexdigest())\n"
    );
    let said = python::output(python::client(python, home).args(["-c", &script]));
    let lines = said.lines().filter_map(|line| line.strip_prefix("FILE ")?.split_once(' '));
    lines.map(|(path, digest)| (path.to_owned(), digest.to_owned())).collect()
}

fn wanted(revision: &Revision) -> BTreeMap<String, String> {
    let file = |(path, bytes, _): &Content| ((*path).to_owned(), Sha256::of(bytes).to_string());
    revision.files.iter().map(file).collect()
}

#[test]
fn revisions_that_share_contents_arrive_once_and_load_each_for_itself() {
    let Some(sshd) = Sshd::start() else { return };
    let revisions = revisions();
    let artifacts: Vec<Artifact> = revisions.iter().map(Revision::artifact).collect();
    let (here, there) = (machine(&artifacts), machine(&artifacts));
    let all = ["config.json", "model.safetensors", "tokenizer.json"];
    revisions.iter().for_each(|revision| revision.put(&there, &all));
    let copied = copy(&here, &there, &sshd, &["pc9:"]);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    let contents: BTreeSet<&[u8]> =
        revisions.iter().flat_map(|revision| &revision.files).map(|(_, bytes, _)| bytes.as_slice()).collect();
    let each_once: usize = contents.iter().map(|bytes| bytes.len()).sum();
    assert_eq!(outcome(&copied)["moved_bytes"], each_once, "{}", copied.out);
    let blobs = std::fs::read_dir(here.path(&format!("home/hub/{REPO}/blobs"))).unwrap().count();
    assert_eq!(blobs, contents.len());
    for name in python::CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        for revision in &revisions {
            for asked in [revision.branch, &revision.commit] {
                assert_eq!(loaded(&python, &here.path("home"), asked), wanted(revision), "{name}: {asked}");
            }
        }
    }
    let again = copy(&here, &there, &sshd, &["pc9:"]);
    assert_eq!((again.code, &outcome(&again)["moved_bytes"]), (0, &0.into()), "{}{}", again.out, again.err);
}

/// A download that somebody broke off on the other machine is not taken for the whole; what it has is taken.
#[test]
fn of_a_snapshot_that_was_begun_there_comes_what_is_there_and_the_rest_is_named() {
    let Some(sshd) = Sshd::start() else { return };
    let [revision, ..] = revisions();
    let artifacts = [revision.artifact()];
    let (here, there) = (machine(&artifacts), machine(&artifacts));
    revision.put(&there, &["config.json", "tokenizer.json"]);
    let (_, weights, _) = &revision.files[1];
    let incomplete = format!("home/hub/{REPO}/blobs/{}.incomplete", Sha256::of(weights));
    there.write(&incomplete, &weights[..100_000]);
    let copied = copy(&here, &there, &sshd, &["pc9:"]);
    assert_eq!(copied.code, 4, "{}{}", copied.out, copied.err);
    let placed = serde_json::json!(["hand-main/config.json", "hand-main/tokenizer.json"]);
    let mut names = outcome(&copied)["placed"].clone();
    names.as_array_mut().unwrap().sort_by(|one, other| one.as_str().cmp(&other.as_str()));
    assert_eq!((names, &outcome(&copied)["published"]), (placed, &serde_json::json!([])));
    for name in python::CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        let script = "
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
try:
    hf_hub_download('acme/hand', 'model.safetensors', local_files_only=True)
    print('THERE')
except LocalEntryNotFoundError:
    print('LACKING')
";
        let said = python::output(python::client(&python, &here.path("home")).args(["-c", script]));
        assert!(said.contains("LACKING"), "{name}: {said}");
    }
    // Over there somebody went on: only that comes.
    larder::fsio::remove_file(&there.path(&incomplete)).unwrap();
    revision.put(&there, &["model.safetensors"]);
    let copied = copy(&here, &there, &sshd, &["pc9:"]);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    assert_eq!(outcome(&copied)["moved_bytes"], weights.len(), "{}", copied.out);
    for name in python::CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        assert_eq!(loaded(&python, &here.path("home"), "main"), wanted(&revision), "{name}");
    }
}

/// Every manifest below `models` that Ollama would list, with all of its blobs compared; and the number of blobs.
fn read_as_ollama_does(models: &Path) -> (BTreeMap<String, Sha256>, usize) {
    let mut manifests = BTreeMap::new();
    let mut blobs = 0;
    for entry in std::fs::read_dir(models.join("blobs")).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        assert_eq!(entry.file_name().to_str().unwrap(), format!("sha256-{}", Sha256::of(&bytes)));
        blobs += 1;
    }
    let root = models.join("manifests");
    for entry in walkdir::WalkDir::new(&root).min_depth(4).max_depth(4) {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        for file in larder::artifact::parse_manifest(&bytes).unwrap() {
            let blob = std::fs::metadata(models.join(file.path.as_str())).unwrap();
            assert_eq!(Some(blob.len()), file.size, "{}", file.path);
        }
        let name = entry.path().strip_prefix(&root).unwrap().display().to_string();
        manifests.insert(name, Sha256::of(&bytes));
    }
    (manifests, blobs)
}

/// Both ways.
#[test]
fn images_that_share_layers_arrive_once_and_are_what_ollama_lists() {
    let Some(sshd) = Sshd::start() else { return };
    let images = [("tiny:1b", Image::new(7, 300_000)), ("tiny:3b", Image::new(8, 200_000))];
    let artifacts: Vec<Artifact> = images.iter().map(|(name, image)| image.artifact(name)).collect();
    let full = machine(&artifacts);
    for (name, image) in &images {
        let tag = name.split_once(':').unwrap().1;
        full.write(&format!("home/ollama/manifests/registry.ollama.ai/library/tiny/{tag}"), &image.manifest);
        for blob in &image.blobs {
            full.write(&format!("home/ollama/blobs/sha256-{}", Sha256::of(blob)), blob);
        }
    }
    let blobs: BTreeSet<&[u8]> = images.iter().flat_map(|(_, image)| &image.blobs).map(Vec::as_slice).collect();
    assert!(blobs.len() < images.iter().map(|(_, image)| image.blobs.len()).sum(), "they share some");
    let each_once: usize = blobs.iter().map(|blob| blob.len()).sum();
    let expected = read_as_ollama_does(&full.path("home/ollama"));
    assert_eq!(expected, (expected.0.clone(), blobs.len()));
    let (taking, given) = (machine(&artifacts), machine(&artifacts));
    let taken = copy(&taking, &full, &sshd, &["pc9:"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    let gave = copy(&full, &given, &sshd, &["--to", "pc9:"]);
    assert_eq!(gave.code, 0, "{}{}", gave.out, gave.err);
    for (lab, said) in [(&taking, &taken), (&given, &gave)] {
        assert_eq!(outcome(said)["moved_bytes"], each_once, "{}", said.out);
        assert_eq!(read_as_ollama_does(&lab.path("home/ollama")), expected);
    }
}
