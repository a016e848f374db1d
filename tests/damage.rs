//! Every kind of damage in every kind of place: `verify` names it, `apply` mends it or says why not, and
//! nothing else changes.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use larder::fsio::{WriteOptions, symlink_staged, write_atomic};
use rstest::rstest;

#[expect(dead_code, reason = "each test uses a part of the lab")]
#[path = "support/lab.rs"]
mod lab;
#[path = "support/rules.rs"]
mod rules;

use lab::{COMMIT, Lab, Said};
use rules::Entry;

/// `nobody` of Debian: somebody without rights, where the test runs as root.
const NOBODY: u32 = 65534;
const PAGE: &[u8] = b"<!DOCTYPE html>\n<html><title>Log in</title></html>\n";
const PRECIOUS: &[u8] = b"somebody's own work";
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1500000\n";

/// What happens to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Flip,
    Truncate,
    Empty,
    Delete,
    Dangling,
    Folder,
    Aria2,
    Page,
    Pointer,
    Closed,
}

/// Where it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    HubBlob,
    HubLink,
    HubRef,
    OllamaBlob,
    OllamaManifest,
    Plain,
}

use Damage::{Aria2, Closed, Dangling, Delete, Empty, Flip, Folder, Page, Pointer, Truncate};

const SHARD: &str = "unet/weights-00001-of-00002.safetensors";

impl Place {
    fn path(self, lab: &Lab) -> PathBuf {
        let layers = lab::images().next().unwrap().1;
        let shard = lab::hub_files().iter().find(|file| file.path == SHARD).unwrap();
        match self {
            Place::HubBlob => lab.repo().join("blobs").join(shard.sha256.to_string()),
            Place::HubLink => lab.repo().join("snapshots").join(COMMIT).join(SHARD),
            Place::HubRef => lab.repo().join("refs/main"),
            Place::OllamaBlob => lab.store("ollama").join(&layers[0].path),
            Place::OllamaManifest => lab.store("ollama").join("manifests/registry.ollama.ai/library/guard/1b"),
            Place::Plain => lab.store("plain").join("vae/vae.pth"),
        }
    }

    fn artifact(self) -> &'static str {
        match self {
            Place::HubBlob | Place::HubLink | Place::HubRef => "paint",
            Place::OllamaBlob | Place::OllamaManifest => "guard:1b",
            Place::Plain => "vae",
        }
    }

    fn staging(self, lab: &Lab) -> PathBuf {
        match self {
            Place::HubBlob | Place::HubLink | Place::HubRef => lab.store("huggingface").join(".locks/.larder"),
            Place::OllamaBlob | Place::OllamaManifest => lab.store("ollama").join(".larder"),
            Place::Plain => lab.store("plain").join(".larder"),
        }
    }

    /// What `verify` must call it; `None` where the damage is none in this place.
    fn kind(self, damage: Damage) -> Option<&'static str> {
        Some(match (self, damage) {
            (Place::HubRef | Place::OllamaManifest, Aria2)
            | (Place::HubBlob | Place::HubLink | Place::OllamaBlob, Aria2) => {
                return None;
            }
            (Place::HubRef | Place::OllamaManifest, _) => "unpublished",
            // Its content is here; only the name by which programs read it is not.
            (Place::HubLink, Truncate | Empty | Delete | Dangling | Folder | Page | Pointer) => "unpublished",
            (_, Flip) => "replaced",
            (_, Truncate | Empty) => "truncated",
            (Place::HubBlob, Delete) => "dangling",
            (_, Delete) => "missing",
            (_, Dangling) => "dangling",
            (_, Folder) => "wrong",
            (_, Aria2 | Page | Pointer) => "not-the-file",
            (_, Closed) => "unreadable",
        })
    }
}

fn remove(path: &Path) {
    #[expect(clippy::disallowed_methods, reason = "the test damages its own lab")]
    std::fs::remove_file(path).unwrap();
}

fn put(path: &Path, bytes: &[u8]) {
    write_atomic(path, bytes, &WriteOptions::default()).unwrap();
}

/// Does it.
fn damage(path: &Path, damage: Damage) {
    let whole = || fs_err::read(path).unwrap();
    match damage {
        Flip => {
            let mut bytes = whole();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            put(path, &bytes);
        }
        Truncate => put(path, &whole()[..whole().len() / 3]),
        Empty => put(path, b""),
        Delete => remove(path),
        Dangling => {
            let options = WriteOptions::default();
            symlink_staged(Path::new("nowhere/at-all"), path, &options).unwrap();
        }
        Folder => {
            remove(path);
            put(&path.join("somebody's file"), PRECIOUS);
        }
        Aria2 => put(&aria2(path), b"control"),
        Page => put(path, PAGE),
        Pointer => put(path, POINTER),
        Closed => fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o000)).unwrap(),
    }
}

/// What of a tree counts: larder's own folders may differ, folders themselves are no content.
fn visible(lab: &Lab) -> BTreeMap<PathBuf, Entry> {
    let mut tree = rules::tree(&lab.machine);
    tree.retain(|path, entry| !is_ours(path) && !matches!(entry, Entry::Folder { .. }));
    tree
}

fn is_ours(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == ".larder")
}

/// The contents that lie in `replaced`.
fn kept(staging: &Path) -> Vec<String> {
    let files = rules::tree(&staging.join("replaced")).into_values();
    files.filter_map(|entry| if let Entry::File { sha256, .. } = entry { Some(sha256) } else { None }).collect()
}

fn is_root() -> bool {
    larder::fsio::running_as().uid == 0
}

/// Gives everything to somebody without rights, and answers who that is.
fn give_away(lab: &Lab) -> u32 {
    if !is_root() {
        return larder::fsio::running_as().uid;
    }
    for entry in walkdir::WalkDir::new(lab.root()).into_iter().map(Result::unwrap) {
        std::os::unix::fs::lchown(entry.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    NOBODY
}

fn run(lab: &Lab, user: u32, args: &[&str]) -> Said {
    let mut command = if is_root() { lab.command_as(user, args) } else { lab.command(args) };
    Said::of(&command.output().unwrap())
}

#[rstest]
fn damage_is_named_and_mended(
    #[values(Place::HubBlob, Place::HubLink, Place::HubRef, Place::OllamaBlob, Place::OllamaManifest, Place::Plain)]
    place: Place,
) {
    let lab = Lab::start();
    lab.apply().must_be(0);
    let user = give_away(&lab);
    let right = visible(&lab);
    for kind in [Flip, Truncate, Empty, Delete, Dangling, Folder, Aria2, Page, Pointer, Closed] {
        let path = place.path(&lab);
        damage(&path, kind);
        give_away(&lab);
        let damaged = rules::look(&path);
        let case = format!("{kind:?} of {place:?}");
        let said = run(&lab, user, &["verify", "--full", "--json"]);
        let named = lab::faults(&said);
        assert_eq!(named.first().map(|(_, _, kind)| kind.as_str()), place.kind(kind), "{case}: {said}");
        assert!(named.iter().all(|(artifact, _, _)| artifact == place.artifact()), "{case}: {said}");
        let said = run(&lab, user, &["apply", "--yes"]);
        if kind == Aria2 && place != Place::Plain {
            remove(&aria2(&path));
        }
        if said.code != Some(0) {
            // What a folder holds nobody knows, and rights are set by people: larder says so and leaves it.
            assert!(matches!(kind, Folder | Closed) && matches!(said.code, Some(1 | 4)), "{case}: {said}");
            let told = said.line();
            let why = ["a folder is in its place", "Is a directory", "may not be read", "Permission denied"];
            assert!(why.iter().any(|why| told.contains(why)), "{case}: {said}");
            assert_eq!(rules::look(&path), damaged, "{case}");
            put_right(&path, kind);
            run(&lab, user, &["apply", "--yes"]).must_be(0);
        } else if kind == Folder {
            assert!(kept(&place.staging(&lab)).contains(&rules::sha256(PRECIOUS)), "{case}: what it held is lost");
        }
        let now = visible(&lab);
        assert!(now == right, "{case}: {:?}", difference(&right, &now));
        run(&lab, user, &["verify", "--full"]).must_be(0);
        rules::everything_is_there(&lab);
        if let (Some(Entry::File { sha256, .. }), Place::Plain, Flip | Truncate) = (damaged, place, kind) {
            assert!(kept(&place.staging(&lab)).contains(&sha256), "{case}: what lay there is lost");
        }
    }
}

fn aria2(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.aria2", path.file_name().unwrap().display()))
}

/// What a person does where larder will not.
fn put_right(path: &Path, kind: Damage) {
    if kind == Folder {
        #[expect(clippy::disallowed_methods, reason = "the test puts its own lab right")]
        std::fs::remove_dir_all(path).unwrap();
    } else {
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
}

fn difference(right: &BTreeMap<PathBuf, Entry>, now: &BTreeMap<PathBuf, Entry>) -> Vec<String> {
    let gone = right.iter().filter(|(path, entry)| now.get(*path) != Some(entry)).map(|e| format!("- {e:?}"));
    let new = now.iter().filter(|(path, entry)| right.get(*path) != Some(entry)).map(|e| format!("+ {e:?}"));
    gone.chain(new).collect()
}

/// Kinds of damage that an unfinished file of ours can suffer between two runs.
#[rstest]
fn a_damaged_unfinished_file_never_becomes_a_file(
    #[values(Flip, Truncate, Empty, Delete, Dangling, Folder, Page, Pointer, Closed)] kind: Damage,
) {
    let lab = Lab::start();
    lab.upstream.set_pace(std::time::Duration::from_millis(5));
    lab.upstream.hold_after(200_000);
    let mut child = lab.command(&["apply", "--yes", "--only", "vae"]).spawn().unwrap();
    lab.upstream.wait_until_held();
    child.kill().unwrap();
    child.wait().unwrap();
    lab.upstream.set_pace(std::time::Duration::ZERO);
    lab.upstream.release();
    lab.upstream.take_asked();
    let vae = lab::plain_files().into_iter().find(|file| file.path == "vae/vae.pth").unwrap();
    let partial = lab.store("plain").join(".larder").join(format!("{}.partial", vae.sha256));
    let length = fs_err::metadata(&partial).unwrap().len();
    assert!(length > 0);
    damage(&partial, kind);
    let user = give_away(&lab);
    let said = run(&lab, user, &["apply", "--yes", "--only", "vae"]);
    if said.code != Some(0) {
        assert!(matches!(kind, Folder | Closed | Dangling) && said.code == Some(1), "{kind:?}: {said}");
        assert!(said.out.contains(&vae.sha256.to_string()), "{kind:?}, what is in the way has a name: {said}");
        rules::nothing_visible_is_wrong(&lab);
        if kind == Dangling {
            remove(&partial)
        } else {
            put_right(&partial, kind)
        }
        run(&lab, user, &["apply", "--yes", "--only", "vae"]).must_be(0);
    }
    rules::nothing_visible_is_wrong(&lab);
    let place = lab.store("plain").join("vae/vae.pth");
    assert!(matches!(rules::look(&place), Some(Entry::File { .. })), "{kind:?}: a file of its own");
    assert!(fs_err::read(&place).unwrap() == *vae.bytes, "{kind:?}");
    let from: Vec<u64> = lab.upstream.take_asked().iter().map(|asked| asked.from).collect();
    let expected = match kind {
        // What was there is hashed with the rest; only then it shows that it was wrong.
        Flip => vec![length, 0],
        Truncate => vec![length / 3],
        Page => vec![PAGE.len() as u64, 0],
        Pointer => vec![POINTER.len() as u64, 0],
        Closed => vec![length],
        Empty | Delete | Dangling | Folder | Aria2 => vec![0],
    };
    assert_eq!(from, expected, "{kind:?}");
}

#[test]
fn a_link_in_the_place_of_an_unfinished_file_leads_nobody_to_another_file() {
    let lab = Lab::start();
    let vae = lab::plain_files().into_iter().find(|file| file.path == "vae/vae.pth").unwrap();
    let precious = lab.root().join("somebody's file");
    put(&precious, PRECIOUS);
    for ending in ["partial", "lock"] {
        let link = lab.store("plain").join(".larder").join(format!("{}.{ending}", vae.sha256));
        symlink_staged(&precious, &link, &WriteOptions::default()).unwrap();
        let said = lab.larder(&["apply", "--yes", "--only", "vae"]).must_be(1);
        assert!(said.out.contains("is a link, which larder does not follow"), "{said}");
        assert_eq!(fs_err::read(&precious).unwrap(), PRECIOUS);
        remove(&link);
    }
    lab.larder(&["apply", "--yes", "--only", "vae"]).must_be(0);
}
