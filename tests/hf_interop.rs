//! The HF cache against the real Python clients: 1.31.0, the last with blobs per repository only, and the newest.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use larder::artifact::{Artifact, File, Origin};
use larder::digest::{ContentHasher, Digests};
use larder::fsio::{FileLock, Partial, WriteOptions, write_atomic};
use larder::stores::{FileState, HfCacheStore, Store, StoreMark};

#[path = "support/parts.rs"]
mod parts;
#[path = "support/python.rs"]
mod python;
#[path = "support/tiny_bert.rs"]
mod tiny_bert;

use python::{CLIENTS, client, output, script};
use tiny_bert::{CONFIG, repository};

const COMMIT: &str = "fedcba9876543210fedcba9876543210fedcba98";

fn described(path: &str, lfs: bool, content: &[u8]) -> File {
    let size = content.len() as u64;
    let mut hasher = ContentHasher::new().with_git_sha1(size);
    hasher.update(content);
    let measured = hasher.finish();
    let digests = if lfs { Digests { git_sha1: None, ..measured } } else { Digests { sha256: None, ..measured } };
    File { size: Some(size), digests, lfs: Some(lfs), ..File::named(path.parse().unwrap()) }
}

fn artifact(name: &str, whole: bool) -> Artifact {
    Artifact {
        name: name.to_owned(),
        store: "huggingface".to_owned(),
        source: format!("hf:acme/{name}").parse().unwrap(),
        declared: "0".to_owned(),
        revision: Some(COMMIT.to_owned()),
        origin: Origin::Upstream,
        complete: true,
        whole,
        folder: None,
        irreplaceable: false,
        ollama: None,
        pattern: None,
        files: repository().iter().map(|(path, lfs, content)| described(path, *lfs, content)).collect(),
    }
}

fn store(cache: &Path) -> HfCacheStore {
    HfCacheStore::new("huggingface".to_owned(), cache.to_owned(), None)
}

fn place(store: &dyn Store, artifact: &Artifact, file: &File, content: &[u8]) {
    let hasher = ContentHasher::to_compare(&file.digests, file.size);
    let mut partial = Partial::open(&store.staging(), "key", hasher, None).unwrap();
    partial.append(content).unwrap();
    drop(store.place(artifact, file, partial.prove(file.size, &file.digests).unwrap()).unwrap());
}

/// A cache as it is in the middle of larder's work: one repository done, one begun, a partial, the store's mark.
fn larder_writes(cache: &Path, whole: bool) -> Artifact {
    let (store, hand, begun) = (store(cache), artifact("hand", whole), artifact("begun", whole));
    for (file, (_, _, content)) in hand.files.iter().zip(repository()) {
        place(&store, &hand, file, &content);
    }
    store.publish(&hand).unwrap();
    place(&store, &begun, &begun.files[0], CONFIG.as_bytes());
    let mut partial = Partial::open(&store.staging(), "unfinished", ContentHasher::new(), None).unwrap();
    partial.append(b"half of it").unwrap();
    StoreMark::ensure(&store).unwrap();
    hand
}

fn must_be_complete(store: &dyn Store, artifact: &Artifact) {
    let observed = store.observe(artifact);
    assert_eq!(observed.published, Ok(()), "{observed:?}");
    assert!(observed.files.iter().all(|state| matches!(state, FileState::Present(_))), "{observed:?}");
}

#[test]
fn python_reads_what_larder_wrote_and_warns_of_nothing() {
    for name in CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        for whole in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let cache = home.path().join("hub");
            let hand = larder_writes(&cache, whole);
            let files = hand.files.iter().map(|file| file.path.as_str());
            let read = client(&python, home.path()).arg(script("read.py")).arg(&cache).arg(COMMIT).args(files).output();
            let read = read.unwrap();
            assert!(read.status.success(), "{name}: {}", String::from_utf8_lossy(&read.stderr));

            let hf = python.with_file_name("hf");
            let listed = output(client(&hf, home.path()).args(["cache", "ls", "--show-warnings"]));
            assert!(listed.contains("acme/hand") && listed.contains("main"), "{name}: {listed}");
            assert!(!listed.to_lowercase().contains("warning"), "{name}: {listed}");

            output(client(&hf, home.path()).args(["cache", "prune", "--yes"]));
            must_be_complete(&store(&cache), &hand);
            let partial = Partial::path_of(&store(&cache).staging(), "unfinished");
            assert_eq!(fs_err::read(partial).unwrap(), b"half of it", "{name}: prune took a partial of ours");
        }
    }
}

#[test]
fn transformers_loads_what_larder_wrote() {
    let Some(python) = parts::part("hf-latest/bin/python") else { return };
    let home = tempfile::tempdir().unwrap();
    larder_writes(&home.path().join("hub"), true);
    let said = output(client(&python, home.path()).arg(script("transform.py")));
    assert!(said.contains("tokens [2, 5, 6, 3]"), "{said}");
}

/// Lets the client's own functions fill a cache; returns what the script printed.
fn python_writes(python: &Path, home: &Path, setting: (&str, &str)) -> String {
    let mut command = client(python, home);
    command.env(setting.0, setting.1).arg(script("write.py")).arg(home.join("hub")).arg(COMMIT);
    for (index, (path, lfs, content)) in repository().into_iter().enumerate() {
        let from = home.join(format!("content-{index}"));
        write_atomic(&from, &content, &WriteOptions::default()).unwrap();
        let digests = described(path, lfs, &content).digests;
        let etag = digests.sha256.map_or_else(|| digests.git_sha1.unwrap().to_string(), |sha256| sha256.to_string());
        command.arg(path).arg(etag).arg(from);
    }
    output(&mut command)
}

#[test]
fn what_python_wrote_is_complete_for_larder() {
    for (name, setting, expected) in [
        ("hf-1.31", ("PLAIN", "1"), "shared 0"),
        ("hf-latest", ("PLAIN", "1"), "shared 0"),
        ("hf-latest", ("SHARE", "1"), "shared 1"),
        ("hf-latest", ("HF_HUB_DISABLE_SYMLINKS", "1"), "shared 0"),
    ] {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        let home = tempfile::tempdir().unwrap();
        let said = python_writes(&python, home.path(), setting);
        assert!(said.contains(expected), "{name} {setting:?}: {said}");
        let cache = home.path().join("hub");
        let before = names(&cache);
        must_be_complete(&store(&cache), &artifact("hand", true));
        assert_eq!(names(&cache), before, "looking changed the cache");
        assert_eq!(cache.join("blobs").exists(), setting.0 == "SHARE", "the case is what it says");
    }
}

fn names(dir: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path()).collect()
}

#[test]
fn larder_and_python_keep_each_other_out_by_the_same_lock() {
    for name in CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        let home = tempfile::tempdir().unwrap();
        let hand = artifact("hand", true);
        let lock = store(&home.path().join("hub")).foreign_locks(&hand, &hand.files[1]).swap_remove(0);
        let held = FileLock::try_acquire(&lock, None).unwrap().expect("nobody holds it");
        let refused = client(&python, home.path()).arg(script("lock.py")).arg(&lock).arg("0.2").output().unwrap();
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("Timeout"));
        drop(held);

        let mut holder = client(&python, home.path());
        holder.arg(script("lock.py")).arg(&lock).arg("30").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        assert!(FileLock::try_acquire(&lock, None).unwrap().is_none(), "{name} holds it");
        drop(holder.stdin.take());
        assert!(holder.wait().unwrap().success());
        assert!(FileLock::try_acquire(&lock, None).unwrap().is_some());
    }
}
