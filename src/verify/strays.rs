//! Files in the stores that no artifact has: other people's, and what other programs left half-done.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use walkdir::WalkDir;

use crate::artifact::Artifact;
use crate::inventory::Layout;
use crate::stores::{Store, Stores};

/// Endings of what downloaders leave when they are stopped.
const LEFTOVERS: [&str; 6] = [".aria2", ".incomplete", ".part", ".partial", ".tmp", ".crdownload"];
/// Our own folders, and what belongs to a cache as such.
const OURS: [&str; 3] = [".larder", ".locks", "CACHEDIR.TAG"];

/// A file that no artifact has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stray {
    /// The store.
    pub store: String,
    /// Where it lies.
    pub place: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What it looks like.
    pub kind: StrayKind,
}

/// What a stray looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrayKind {
    /// Somebody's own.
    Foreign,
    /// What a stopped download of another program left.
    Leftover,
}

/// Walks through those of `stores` that `is_concerned` and names every file that none of `artifacts` has, by path.
///
/// Strays are no faults: larder neither wrote them nor touches them. What cannot be looked at is left out.
pub fn strays(stores: &Stores, artifacts: &[Artifact], is_concerned: &dyn Fn(&str) -> bool) -> Vec<Stray> {
    let mut strays = Vec::new();
    for (name, open) in stores.iter().filter(|(name, _)| is_concerned(name)) {
        let store = open.store.as_ref();
        let own = own_files(store, artifacts.iter().filter(|artifact| artifact.store == name));
        let walk = WalkDir::new(store.root()).min_depth(1).sort_by_file_name();
        let entries = walk.into_iter().filter_entry(|entry| !OURS.iter().any(|ours| entry.file_name() == *ours));
        for entry in entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_file()) {
            let path = entry.path();
            if own.contains(path) || is_bookkeeping(store, path) {
                continue;
            }
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            strays.push(Stray { store: name.to_owned(), place: path.to_owned(), bytes, kind: kind(path) });
        }
    }
    strays
}

fn own_files<'a>(store: &dyn Store, artifacts: impl Iterator<Item = &'a Artifact>) -> HashSet<PathBuf> {
    let mut own = HashSet::new();
    for artifact in artifacts {
        own.extend(artifact.files.iter().map(|file| store.content_path(artifact, file)));
        let matches = artifact.pattern.as_ref().and_then(|pattern| store.matching(pattern).ok());
        own.extend(matches.into_iter().flatten().map(|found| found.path));
        // What the layout shows under another name than the content has.
        let observed = store.observe(artifact).files;
        own.extend(observed.into_iter().filter_map(|state| match state {
            crate::stores::FileState::Present(found) | crate::stores::FileState::Staged(found) => Some(found.path),
            _ => None,
        }));
    }
    own
}

/// What a layout keeps beside content.
fn is_bookkeeping(store: &dyn Store, path: &Path) -> bool {
    let below = path.strip_prefix(store.root()).unwrap_or(path);
    let mut parts = below.components().map(|part| part.as_os_str());
    match store.layout() {
        Layout::Folder => false,
        Layout::Ollama => parts.next().is_some_and(|part| part == "manifests"),
        Layout::HfCache => parts.nth(1).is_some_and(|part| part == "refs" || part == "trees" || part == ".no_exist"),
    }
}

fn kind(path: &Path) -> StrayKind {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Ollama names its parts `…-partial` and `…-partial-3`.
    let is_part = name.contains("-partial") || LEFTOVERS.iter().any(|ending| name.ends_with(ending));
    if is_part { StrayKind::Leftover } else { StrayKind::Foreign }
}
