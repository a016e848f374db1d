//! What must hold at every moment, also right after a kill: the rules of the programs that read the stores.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha1::Digest as _;

use crate::lab::{COMMIT, Content, Lab, hub_files, image_manifest, images, plain_files};

/// Fails if any program could see something wrong in any store.
#[track_caller]
pub(crate) fn nothing_visible_is_wrong(lab: &Lab) {
    hub_cache(&lab.store("huggingface"));
    ollama(&lab.store("ollama"));
    plain(&lab.store("plain"), &plain_files());
}

/// Fails unless everything is there as programs read it, byte for byte.
#[track_caller]
pub(crate) fn everything_is_there(lab: &Lab) {
    nothing_visible_is_wrong(lab);
    for file in hub_files() {
        let path = lab.repo().join("snapshots").join(COMMIT).join(&file.path);
        assert!(fs_err::read(&path).unwrap() == *file.bytes, "{}", path.display());
    }
    assert_eq!(fs_err::read_to_string(lab.repo().join("refs/main")).unwrap(), COMMIT);
    for (source, files) in images() {
        let tag = source.rsplit(':').next().unwrap();
        let path = lab.store("ollama").join("manifests/registry.ollama.ai/library/guard").join(tag);
        assert_eq!(fs_err::read_to_string(&path).unwrap(), image_manifest(files), "{}", path.display());
    }
    for file in plain_files() {
        assert!(fs_err::read(lab.store("plain").join(&file.path)).unwrap() == *file.bytes, "{}", file.path);
    }
}

/// Below `root`: every name of a file, link or folder, with what it is. Empty where `root` is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Folder { mode: u32 },
    Link { target: PathBuf },
    File { sha256: String, mode: u32, owner: (u32, u32) },
    Other,
}

/// Everything below `root`, by path.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    if !root.exists() {
        return BTreeMap::new();
    }
    let entries = walkdir::WalkDir::new(root).min_depth(1).into_iter().map(Result::unwrap);
    entries.map(|entry| (entry.path().strip_prefix(root).unwrap().to_owned(), look(entry.path()).unwrap())).collect()
}

/// What lies at `path`, links not followed.
pub(crate) fn look(path: &Path) -> Option<Entry> {
    let found = fs_err::symlink_metadata(path).ok()?;
    let mode = found.permissions().mode() & 0o7777;
    Some(if found.is_dir() {
        Entry::Folder { mode }
    } else if found.is_symlink() {
        Entry::Link { target: fs_err::read_link(path).unwrap() }
    } else if found.is_file() {
        Entry::File { sha256: sha256(&fs_err::read(path).unwrap()), mode, owner: (found.uid(), found.gid()) }
    } else {
        Entry::Other
    })
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn hub_cache(root: &Path) {
    for name in names(root) {
        assert!(
            name == ".locks" || name == "CACHEDIR.TAG" || name.starts_with("models--"),
            "a foreign name at the top of the hub cache: {name}"
        );
        if name == "CACHEDIR.TAG" {
            let tag = fs_err::read(root.join(&name)).unwrap();
            assert!(tag.starts_with(b"Signature: 8a477f597d28d172789f06886806bc55"));
        }
    }
    for repo in names(root).iter().filter(|name| name.starts_with("models--")).map(|name| root.join(name)) {
        for name in names(&repo) {
            assert!(["blobs", "refs", "snapshots", "trees"].contains(&name.as_str()), "{name} in {}", repo.display());
        }
        hub_repository(&repo);
    }
}

#[track_caller]
fn hub_repository(repo: &Path) {
    for name in names(&repo.join("blobs")) {
        let bytes = fs_err::read(repo.join("blobs").join(&name)).unwrap();
        let measured = if name.len() == 40 { git_sha1(&bytes) } else { sha256(&bytes) };
        assert_eq!(measured, name, "a blob is not what its name says");
    }
    for (path, entry) in tree(&repo.join("snapshots")) {
        if let Entry::Link { target } = &entry {
            let link = repo.join("snapshots").join(&path);
            assert!(fs_err::metadata(&link).is_ok(), "{} leads to {}", path.display(), target.display());
        }
        let is_expected = matches!(entry, Entry::Folder { .. } | Entry::Link { .. });
        assert!(is_expected, "{} is {entry:?}", path.display());
    }
    let expected: Vec<PathBuf> = hub_files().iter().map(|file| file.path.clone().into()).collect();
    let snapshot = tree(&repo.join("snapshots").join(COMMIT));
    for (path, _) in snapshot.iter().filter(|(_, entry)| matches!(entry, Entry::Link { .. })) {
        assert!(expected.contains(path), "{} is no file of the repository", path.display());
    }
    for name in names(&repo.join("refs")) {
        let text = fs_err::read_to_string(repo.join("refs").join(&name)).unwrap();
        assert_eq!((name.as_str(), text.as_str()), ("main", COMMIT), "40 hexadecimal digits and no newline");
        let linked = snapshot.values().filter(|entry| matches!(entry, Entry::Link { .. })).count();
        assert_eq!(linked, expected.len(), "a reference names a snapshot that is not whole");
    }
    for name in names(&repo.join("trees")) {
        let text = fs_err::read(repo.join("trees").join(&name)).unwrap();
        let list: Value = serde_json::from_slice(&text).unwrap();
        let listed: Vec<PathBuf> = list["files"].as_object().unwrap().keys().map(PathBuf::from).collect();
        assert_eq!((name, listed), (format!("{COMMIT}.json"), expected.clone()));
    }
}

#[track_caller]
fn ollama(root: &Path) {
    for name in names(root) {
        assert!([".larder", "blobs", "manifests"].contains(&name.as_str()), "{name} in {}", root.display());
    }
    for name in names(&root.join("blobs")) {
        let bytes = fs_err::read(root.join("blobs").join(&name)).unwrap();
        assert_eq!(format!("sha256-{}", sha256(&bytes)), name, "a blob is not what its name says");
    }
    for (path, entry) in tree(&root.join("manifests")) {
        if !matches!(entry, Entry::File { .. }) {
            assert!(matches!(entry, Entry::Folder { .. }), "{} is {entry:?}", path.display());
            continue;
        }
        assert_eq!(path.components().count(), 4, "{} is no name of an image", path.display());
        assert!(["1b", "8b"].iter().any(|tag| path.ends_with(tag)), "{} is no image of the lab", path.display());
        let manifest: Value =
            serde_json::from_slice(&fs_err::read(root.join("manifests").join(&path)).unwrap()).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        for layer in layers.iter().chain([&manifest["config"]]) {
            let blob = root.join("blobs").join(layer["digest"].as_str().unwrap().replace(':', "-"));
            let length = fs_err::metadata(&blob).map(|found| found.len()).ok();
            assert_eq!(length, layer["size"].as_u64(), "{} of {}", blob.display(), path.display());
        }
    }
}

#[track_caller]
fn plain(root: &Path, expected: &[Content]) {
    for (path, entry) in tree(root) {
        if path.starts_with(".larder") || matches!(entry, Entry::Folder { .. }) {
            continue;
        }
        let wanted = expected.iter().find(|file| Path::new(&file.path) == path);
        let wanted = wanted.unwrap_or_else(|| panic!("{} does not belong there", path.display()));
        let Entry::File { sha256: measured, .. } = entry else { panic!("{} is {entry:?}", path.display()) };
        assert_eq!(measured, wanted.sha256.to_string(), "{} is wrong", path.display());
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn git_sha1(bytes: &[u8]) -> String {
    let mut state = sha1::Sha1::new();
    state.update(format!("blob {}\0", bytes.len()));
    state.update(bytes);
    hex(&state.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
