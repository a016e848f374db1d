//! What the lab keeps: artifacts, their files, and the references that say where they come from.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digest::{Digests, Sha256, XetHash};
use crate::relpath::RelPath;

mod image;
mod reference;

pub use image::{MANIFEST_LIMIT, MANIFEST_TYPE, ParseManifestError, blob_name, parse_manifest};
pub use reference::{HubKind, HubRepo, OLLAMA_HOST, OllamaName, ParseReferenceError, Reference};

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct File {
    /// Where the file lies within the artifact's place in its store.
    pub path: RelPath,
    /// Its length in bytes, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What is known of its content.
    #[serde(default, skip_serializing_if = "Digests::is_empty")]
    pub digests: Digests,
    /// The digest was measured here at the first fetch, because no record had one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first_use: bool,
    /// Whether the hub stores the file by LFS (and names its content by sha256) or in git.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lfs: Option<bool>,
    /// What the hub names the content by in Xet. Other programs ask for it by this name; it proves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xet: Option<XetHash>,
    /// What an Ollama layer is: `config`, or the end of its media type such as `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Where this file comes from, if not from the artifact's own source: see [`Artifact::source_of`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ///
    /// Few files name one: boxed, it costs the others eight bytes.
    pub source: Option<Box<Reference>>,
    /// Other places with the same bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Reference>,
}

impl File {
    /// A file of which only the path is known.
    pub fn named(path: RelPath) -> Self {
        Self {
            path,
            size: None,
            digests: Digests::default(),
            first_use: false,
            lfs: None,
            xet: None,
            role: None,
            source: None,
            mirrors: Vec::new(),
        }
    }
}

impl File {
    /// A name for the file's content that is the same in every run and for every artifact that shares it.
    ///
    /// The digest where one is known; else a digest of where the content comes from.
    pub fn content_key(&self, artifact: &Artifact) -> String {
        if let Some(digest) = self.digests.sha256 {
            return digest.to_string();
        }
        if let Some(digest) = self.digests.git_sha1 {
            return format!("git-{digest}");
        }
        let origin = artifact.remotes(self).first().map(|remote| remote.reference.to_string());
        let origin = origin.unwrap_or_else(|| format!("{}/{}", artifact.name, self.path));
        format!("from-{}", &Sha256::of(origin.as_bytes()).to_string()[..32])
    }
}

/// Where an artifact's list of files was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// In the manifests alone: nothing upstream has confirmed it yet.
    Pins,
    /// At the source itself.
    Upstream,
}

/// Ollama's own manifest of an image, kept byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OllamaManifest {
    /// SHA-256 of the manifest's bytes: what `ollama list` prints the beginning of.
    pub digest: Sha256,
    /// The bytes as the registry sent them. Absent while only the digest is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

/// A model as the lab knows it, at one revision: an entry of the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Artifact {
    /// The lab's name for it.
    pub name: String,
    /// The store it belongs in, by its name in the inventory.
    pub store: String,
    /// The folder of the store that stands for the top of the source; none where paths are the same in both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<RelPath>,
    /// Where it comes from.
    pub source: Reference,
    /// Fingerprint of what the manifest says; differs once the manifest was changed after locking.
    pub declared: String,
    /// The exact revision: a commit of a hub repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Where the list of files was read.
    pub origin: Origin,
    /// Whether `files` names every file that the artifact needs.
    pub complete: bool,
    /// Whether `files` is the whole repository, not a part of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// No other source has it: never fetched again, never removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub irreplaceable: bool,
    /// The Ollama manifest, for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ollama: Option<OllamaManifest>,
    /// Files that are known by a pattern only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    /// The files, by path.
    pub files: Vec<File>,
}

/// Files known by a pattern and a number, such as LoRAs made in the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// Glob of paths within the store.
    pub glob: String,
    /// How many files must match.
    pub count: usize,
}

/// One thing that can be fetched: what to ask for, and what it must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where to ask. A hub reference names the exact revision and the path.
    pub reference: Reference,
    /// The expected length.
    pub size: Option<u64>,
    /// The expected content.
    pub digests: Digests,
}

impl Artifact {
    /// The same artifact with other files; its own are not copied.
    #[must_use]
    pub fn with_files(&self, files: Vec<File>) -> Self {
        Self {
            name: self.name.clone(),
            store: self.store.clone(),
            folder: self.folder.clone(),
            source: self.source.clone(),
            declared: self.declared.clone(),
            revision: self.revision.clone(),
            origin: self.origin,
            complete: self.complete,
            whole: self.whole,
            irreplaceable: self.irreplaceable,
            ollama: self.ollama.clone(),
            pattern: self.pattern.clone(),
            files,
        }
    }

    /// Total of the known file sizes, and whether every size is known.
    pub fn size(&self) -> (u64, bool) {
        let known = self.files.iter().filter_map(|file| file.size).sum();
        (known, self.complete && self.files.iter().all(|file| file.size.is_some()))
    }

    /// Where `file` comes from: what it names itself, else its path without the artifact's folder at the
    /// artifact's source and revision.
    pub fn source_of(&self, file: &File) -> Option<Reference> {
        if let Some(own) = &file.source {
            return Some(Reference::clone(own));
        }
        let inner = self.folder.as_ref().and_then(|folder| file.path.within(folder));
        self.source.file(inner.as_ref().unwrap_or(&file.path), self.revision.as_deref())
    }

    /// Everywhere `file` can be fetched from, the artifact's own source first.
    ///
    /// Empty for files without upstream. References to the hub carry the locked revision.
    pub fn remotes(&self, file: &File) -> Vec<Remote> {
        self.source_of(file)
            .into_iter()
            .chain(file.mirrors.iter().cloned())
            .filter(Reference::has_upstream)
            .map(|reference| Remote { reference, size: file.size, digests: file.digests })
            .collect()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Pins => "pins",
            Origin::Upstream => "upstream",
        })
    }
}

/// A file or folder at a given place, with what identifies its content for the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it was looked at: the name that programs read. All else is said of the content, links followed.
    pub path: PathBuf,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change, nanoseconds since 1970; what lies before 1678 or after 2261 is that year.
    pub mtime_ns: i64,
    /// Inode number.
    pub inode: u64,
    /// Device number of the file system.
    pub device: u64,
    /// User and group that own it.
    pub owner: (u32, u32),
}
