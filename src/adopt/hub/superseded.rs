//! Revisions of a hub cache that were replaced: their repository has a newer one, and nobody names them any more.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::{is_blob, linked_by, within};
use crate::adopt::{Known, Seen, StoreSurvey, Superseded};
use crate::resolve::is_commit;

/// Finds superseded revisions, with what only they and their like lead to.
///
/// A repository in which no branch and no tag leads to a snapshot is left alone: what is there was asked for by its
/// commit, and will be again. Where something cannot be read, nobody knows what it names: then nothing is found.
pub(super) fn look(root: &Path, repos: &[PathBuf], known: &Known, found: &mut StoreSurvey) {
    found.superseded = superseded(root, repos, known).unwrap_or_default();
}

fn superseded(root: &Path, repos: &[PathBuf], known: &Known) -> Option<Vec<Superseded>> {
    let (mut replaced, mut kept) = (Vec::new(), Vec::new());
    for repo in repos {
        let (named, commits) = (named(repo)?, snapshots(repo)?);
        let is_followed = commits.iter().any(|commit| named.contains(commit));
        for commit in commits {
            let is_named = named.contains(&commit) || known.revisions.contains(&commit);
            if is_followed && !is_named && is_commit(&commit) {
                replaced.push((repo, commit));
            } else {
                kept.push(repo.join("snapshots").join(commit));
            }
        }
    }
    let needed = linked_by(kept.into_iter())?;
    // Links lead out of a store as well, to what is not of this cache.
    let real_root = fs_err::canonicalize(root).ok()?;
    let blobs = Blobs { root: &real_root, needed, known };
    replaced.into_iter().map(|(repo, commit)| revision(root, repo, &commit, &blobs)).collect()
}

/// The contents of a cache, and which of them stay.
struct Blobs<'a> {
    root: &'a Path,
    needed: HashSet<PathBuf>,
    known: &'a Known,
}

impl Blobs<'_> {
    fn may_go(&self, blob: &Path) -> bool {
        let name = blob.file_name().unwrap_or_default().to_string_lossy();
        is_blob(&name)
            && blob.starts_with(self.root)
            && !self.needed.contains(blob)
            && !self.known.contents.contains(name.as_ref())
    }

    /// Those below `snapshot` that may go, in the order of their names.
    fn only_of(&self, snapshot: &Path) -> Option<Vec<Seen>> {
        let led_to: BTreeSet<PathBuf> = linked_by(std::iter::once(snapshot.to_owned()))?.into_iter().collect();
        let seen = |blob: PathBuf| {
            let size = own_size(&blob);
            Seen { path: within(self.root, &blob), size, what: "only replaced revisions have it".to_owned() }
        };
        Some(led_to.into_iter().filter(|blob| self.may_go(blob)).map(seen).collect())
    }
}

fn revision(root: &Path, repo: &Path, commit: &str, blobs: &Blobs<'_>) -> Option<Superseded> {
    let folder = repo.join("snapshots").join(commit);
    let what = "of a revision that was replaced, and that nobody names";
    let mut files = Vec::new();
    for entry in WalkDir::new(&folder).sort_by_file_name() {
        let entry = entry.ok()?;
        if !entry.file_type().is_dir() {
            files.push(entry.into_path());
        }
    }
    let list = repo.join("trees").join(format!("{commit}.json"));
    files.extend(fs_err::symlink_metadata(&list).is_ok().then_some(list));
    let seen = |path: PathBuf| Seen { path: within(root, &path), size: own_size(&path), what: what.to_owned() };
    let files = files.into_iter().map(seen).collect();
    Some(Superseded { path: within(root, &folder), files, blobs: blobs.only_of(&folder)? })
}

/// A link takes no room to speak of; what it leads to is counted by itself.
fn own_size(path: &Path) -> u64 {
    fs_err::symlink_metadata(path).map_or(0, |it| if it.is_file() { it.len() } else { 0 })
}

/// The commits that branches, tags and pull requests of a repository mean.
fn named(repo: &Path) -> Option<BTreeSet<String>> {
    let refs = repo.join("refs");
    let mut named = BTreeSet::new();
    for entry in WalkDir::new(&refs).into_iter().take_while(|_| refs.exists()) {
        let entry = entry.ok()?;
        if !entry.file_type().is_dir() {
            named.insert(fs_err::read_to_string(entry.path()).ok()?.trim().to_owned());
        }
    }
    Some(named)
}

/// The names of its snapshots.
fn snapshots(repo: &Path) -> Option<Vec<String>> {
    let folder = repo.join("snapshots");
    if !folder.exists() {
        return Some(Vec::new());
    }
    fs_err::read_dir(folder).ok()?.map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}
