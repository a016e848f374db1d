//! The lock: the exact revision, files, sizes and digests of every artifact, written by larder.
//!
//! JSON with one file per line, in the manifests' order, so that a change is a small diff. What
//! follows from the artifact's own line is not said again for each file. Readers refuse another
//! `version`, and a field that they do not know.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::artifact::{Artifact, File};
use crate::fsio::{self, FileLock, Owner, WriteOptions};
use crate::manifest::{InputError, Place};
use crate::relpath::RelPath;

/// The format that this larder writes; one with another number cannot be read.
pub const VERSION: u32 = 1;
/// Grows when fields are added. A reader refuses a field that it does not know, and names it.
///
/// A lock that does without the newest fields is of the revision before them, and stays as it was.
pub const REVISION: u32 = 2;

/// How long another larder may change the lock: it reads, merges and writes, and asks nobody meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `inventory.lock` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// The artifacts, in the order of the manifests.
    pub artifacts: Vec<Artifact>,
}

#[derive(Deserialize)]
struct LockFile {
    version: u32,
    artifacts: Vec<Artifact>,
}

#[derive(Deserialize)]
struct Header {
    version: u32,
}

impl Lock {
    /// Reads the lock; `None` where there is none yet.
    pub fn read(path: &Path) -> Result<Option<Self>, InputError> {
        Ok(Self::read_with_text(path)?.map(|(lock, _)| lock))
    }

    /// The same, and the text as it was read: what a signature is compared with.
    pub fn read_with_text(path: &Path) -> Result<Option<(Self, String)>, InputError> {
        match fs_err::read_to_string(path) {
            Ok(text) => Self::parse(path, &text).map(|lock| Some((lock, text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(InputError::unreadable(path, &error)),
        }
    }

    /// Parses a lock's text; `path` is only named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, InputError> {
        let broken = |error: serde_json::Error| {
            let place = Place { path: path.to_owned(), line: error.line(), column: error.column().max(1) };
            let (message, hint) = explain(&error.to_string());
            InputError::new(place, message).hint(hint)
        };
        // A lock of another version need not look like this one, so its version alone is read where it does not.
        let file = serde_json::from_str(text);
        let version = match &file {
            Ok(LockFile { version, .. }) => *version,
            Err(_) => serde_json::from_str::<Header>(text).map_err(broken)?.version,
        };
        if version != VERSION {
            let message = format!("this is a lock of version {version}, this larder reads version {VERSION}");
            return Err(InputError::new(Place::file(path), message)
                .hint("use the larder that wrote it; or remove it, and write it anew with: larder lock"));
        }
        Ok(Self { artifacts: file.map_err(broken)?.artifacts })
    }

    /// The artifact called `name`.
    pub fn artifact(&self, name: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.name == name)
    }

    /// The text as it is written to disk.
    pub fn to_text(&self) -> String {
        let revision = self.revision();
        let mut text = format!("{{\"version\": {VERSION}, \"revision\": {revision}, \"artifacts\": [");
        for (index, artifact) in self.artifacts.iter().enumerate() {
            text.push_str(if index == 0 { "\n" } else { ",\n" });
            push_artifact(&mut text, artifact);
        }
        text.push_str("\n]}\n");
        text
    }

    /// Revision 2 brought `xet`.
    fn revision(&self) -> u32 {
        let mut files = self.artifacts.iter().flat_map(|artifact| &artifact.files);
        if files.any(|file| file.xet.is_some()) { REVISION } else { 1 }
    }

    /// Takes over the digests of a first fetch of `learned`, file by file; what is known already stays as it is.
    ///
    /// `false`, and nothing changes, where the lock has no such artifact, or another revision or declaration of it.
    pub fn learn(&mut self, learned: &Artifact) -> bool {
        let is_it = |entry: &&mut Artifact| {
            entry.name == learned.name && entry.declared == learned.declared && entry.revision == learned.revision
        };
        let Some(entry) = self.artifacts.iter_mut().find(is_it) else { return false };
        let learned: HashMap<&RelPath, &File> = learned.files.iter().map(|file| (&file.path, file)).collect();
        for known in &mut entry.files {
            if let Some(measured) = learned.get(&known.path) {
                learn_file(known, measured);
            }
        }
        true
    }

    /// Writes the lock atomically. It belongs to whoever owns the one that is there, or else its folder.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let options = WriteOptions { owner: Some(Owner::of(path)?), ..WriteOptions::default() };
        fsio::write_atomic(path, self.to_text().as_bytes(), &options)
    }

    /// Keeps other larders from changing the lock at `path` as long as the answer is held.
    ///
    /// Who wants to change it holds it, reads it anew, merges, and writes: nothing that another run wrote is lost.
    /// Fails where the folder cannot be written, or another larder holds it for a minute.
    pub fn hold(path: &Path) -> std::io::Result<FileLock> {
        FileLock::acquire(&held_by(path), Some(Owner::of(path)?), PATIENCE, || {})
    }
}

/// The file whose `flock` says that the lock at `path` is being changed: `.inventory.lock.flock`.
fn held_by(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.flock", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Two runs may have seen different contents under one name: the first that was pinned stays.
fn learn_file(known: &mut File, measured: &File) {
    let is_other = known.digests.check(&measured.digests).is_err()
        || known.size.is_some_and(|size| measured.size.is_some_and(|measured| measured != size));
    if is_other {
        return;
    }
    known.first_use |= measured.first_use && !known.digests.proves_content();
    known.digests = known.digests.or(measured.digests);
    known.size = known.size.or(measured.size);
    known.lfs = known.lfs.or(measured.lfs);
}

/// The reader's message without what the place says already, and what to do.
fn explain(message: &str) -> (String, &'static str) {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    match message.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", ")) {
        Some((field, _)) => {
            let hint = "a newer larder wrote it: use that one; or remove the lock, and write it anew with: larder lock";
            (format!("unknown field {field}"), hint)
        }
        None => (
            if message.starts_with("EOF") { "the file ends too early".to_owned() } else { message.to_owned() },
            "larder writes this file: restore it from git; or remove it, and write it anew with: larder lock",
        ),
    }
}

/// The artifact's own fields on one line, then one line for each file.
fn push_artifact(text: &mut String, artifact: &Artifact) {
    let head = artifact.with_files(Vec::new());
    let head = serde_json::to_string(&head).expect("an artifact has only text keys");
    let open = head.strip_suffix("[]}").expect("`files` is the last field and empty");
    text.push_str(open);
    text.push('[');
    for (index, file) in artifact.files.iter().enumerate() {
        text.push_str(if index == 0 { "\n  " } else { ",\n  " });
        text.push_str(&serde_json::to_string(file).expect("a file has only text keys"));
    }
    text.push_str("]}");
}
