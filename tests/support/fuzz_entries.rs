//! One function for each parser of foreign input: takes any bytes, and panics only where the parser broke a promise.
//!
//! Shared by `tests/fuzz_smoke.rs`, which runs everywhere, and by the targets in `fuzz/`, which search for long.

use std::io::Cursor;
use std::path::Path;

use larder::artifact::{OllamaName, Reference, parse_manifest};
use larder::facts::Facts;
use larder::fsio::{self, WriteOptions};
use larder::inventory::Inventory;
use larder::lock::Lock;
use larder::manifest::Manifests;
use larder::relpath::RelPath;
use larder::sources::{parse_commit, parse_tree};
use larder::stores::{FolderStore, Store, StoreMark};
use larder::weights::blank::find_blank;
use larder::weights::{self, WeightsError, gguf, safetensors, shards};

/// A parser and its name, which is also the name of its target in `fuzz/`.
pub type Entry = (&'static str, fn(&[u8]));

/// All of them.
pub const ENTRIES: &[Entry] = &[
    ("manifest", manifest),
    ("inventory", inventory),
    ("lock", lock),
    ("reference", reference),
    ("relpath", relpath),
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("shard_index", shard_index),
    ("weights", any_weights),
    ("torch", torch),
    ("pickle", pickle),
    ("numpy", numpy),
    ("blank", blank),
    ("hub_tree", hub_tree),
    ("hub_revision", hub_revision),
    ("ollama_manifest", ollama_manifest),
    ("facts", facts),
    ("store_mark", store_mark),
];

/// A manifest, as people write it.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Err(errors) = Manifests::parse(Path::new("manifest.toml"), text) {
        assert!(!errors.is_empty(), "refused without a reason");
    }
}

/// An inventory, as people write it.
pub fn inventory(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Err(errors) = Inventory::parse(Path::new("inventory.toml"), text) {
        assert!(!errors.is_empty(), "refused without a reason");
    }
}

/// A lock; one that is accepted must survive being written and read again.
pub fn lock(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(lock) = Lock::parse(Path::new("inventory.lock"), text) else { return };
    let again = Lock::parse(Path::new("inventory.lock"), &lock.to_text());
    assert_eq!(again.as_ref(), Ok(&lock));
}

/// A reference; one that is accepted must mean the same after printing.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse(), Ok(reference));
    }
    if let Ok(name) = text.parse::<OllamaName>() {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
}

/// A path; one that is accepted must stay below the folder it is joined to.
pub fn relpath(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(path) = text.parse::<RelPath>() else { return };
    let joined = path.under(Path::new("/root/of"));
    let clean = joined.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    assert!(clean && joined.starts_with("/root/of"), "{text:?} leads to {}", joined.display());
}

/// A safetensors file; the tensors of one that is accepted lie within it.
pub fn safetensors(bytes: &[u8]) {
    let Ok(header) = safetensors::read_safetensors(&mut Cursor::new(bytes), bytes.len() as u64) else { return };
    let end = header.tensors.iter().map(|tensor| tensor.end).max().unwrap_or(0);
    assert_eq!(header.data_start + end, bytes.len() as u64);
}

/// A GGUF file; the tensors of one that is accepted lie within it.
pub fn gguf(bytes: &[u8]) {
    let Ok(header) = gguf::read_gguf(&mut Cursor::new(bytes), bytes.len() as u64) else { return };
    for tensor in &header.tensors {
        assert!(header.data_start + tensor.offset + tensor.size.unwrap_or(0) <= bytes.len() as u64, "{tensor:?}");
    }
}

/// A shard index.
pub fn shard_index(bytes: &[u8]) {
    let Ok(index) = shards::read_index(&mut Cursor::new(bytes), bytes.len() as u64) else { return };
    let place: RelPath = "folder/model.safetensors.index.json".parse().expect("a clean path");
    assert!(index.shards(&place).iter().all(|shard| shard.as_str().starts_with("folder/")));
}

/// Whatever a file may be.
pub fn any_weights(bytes: &[u8]) {
    let _ = weights::check(&mut Cursor::new(bytes), bytes.len() as u64);
}

/// A file of torch; the tensors of one that is accepted lie within it.
pub fn torch(bytes: &[u8]) {
    let Ok(kind) = weights::check(&mut Cursor::new(bytes), bytes.len() as u64) else { return };
    for tensor in kind.tensors() {
        assert!(tensor.place.start <= tensor.place.end && tensor.place.end <= bytes.len() as u64, "{tensor:?}");
    }
}

/// A pickle; what is unsafe in it is told in words.
pub fn pickle(bytes: &[u8]) {
    if let Some(WeightsError::UnsafePickle { findings, .. }) =
        weights::unsafe_text_pickle(&mut Cursor::new(bytes), bytes.len() as u64)
    {
        assert!(!findings.is_empty(), "refused without a reason");
    }
    any_weights(bytes);
}

/// An array of numpy, or an archive of them.
pub fn numpy(bytes: &[u8]) {
    any_weights(bytes);
}

/// A file with tensors, looked at for pages of zeros: what is called blank lies within it.
pub fn blank(bytes: &[u8]) {
    let len = bytes.len() as u64;
    let tensors = weights::check(&mut Cursor::new(bytes), len).map(|kind| kind.tensors()).unwrap_or_default();
    let hole = len / 2..len;
    if let Ok(Some(blank)) = find_blank(&mut Cursor::new(bytes), len, &tensors, std::slice::from_ref(&hole)) {
        assert!(blank.first.start <= blank.first.end && blank.first.end <= len, "{blank:?}");
    }
}

/// A list of files as the hub sends it; the paths of one that is accepted are different, and stay below their folder.
pub fn hub_tree(bytes: &[u8]) {
    let Ok(files) = parse_tree(bytes) else { return };
    let mut paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    paths.sort_unstable();
    assert!(paths.windows(2).all(|pair| pair[0] != pair[1]), "one path twice");
    paths.iter().for_each(|path| relpath(path.as_bytes()));
}

/// What the hub says of a revision; a commit that is accepted can be part of a path and of an address as it is.
pub fn hub_revision(bytes: &[u8]) {
    let Some(commit) = parse_commit(bytes) else { return };
    assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{commit:?}");
}

/// A manifest as Ollama's registry sends it; each blob of one that is accepted has a digest and a size.
pub fn ollama_manifest(bytes: &[u8]) {
    let Ok(files) = parse_manifest(bytes) else { return };
    let total = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size?));
    assert!(total.is_some() && files.iter().all(|file| file.digests.sha256.is_some()), "{files:?}");
}

/// A facts database, or whatever lies in its place: it can always be opened, and what it says is read or refused.
pub fn facts(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("facts.sqlite");
    fsio::write_atomic(&path, bytes, &WriteOptions::default()).expect("a file in it");
    match Facts::open(&path) {
        Ok(facts) => {
            let _ = (facts.below(Path::new("/store")), facts.store_mark(Path::new("/store")));
        }
        Err(error) => assert!(error.to_string().contains("facts.sqlite"), "{error}"),
    }
}

/// The mark of a store; one that is accepted is not replaced by another.
pub fn store_mark(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = FolderStore::new("s".to_owned(), dir.path().to_owned(), None);
    let path = store.staging().join("store.toml");
    fsio::write_atomic(&path, bytes, &WriteOptions::default()).expect("a file in it");
    match StoreMark::read(&store) {
        Ok(mark) => assert_eq!(StoreMark::ensure(&store).ok(), mark),
        Err(error) => assert!(error.to_string().contains("store.toml"), "{error}"),
    }
}
