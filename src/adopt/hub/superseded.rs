//! Revisions of a hub cache that were replaced: their repository has a newer one, and nobody names them any more.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::{is_blob, linked_by, within};
use crate::adopt::{Known, Seen, StoreSurvey, Superseded};
use crate::resolve::is_commit;

/// Finds superseded revisions, with what only they and their like lead to, and what is left of those that are gone.
///
/// A repository in which no branch and no tag leads to a snapshot is left alone: what is there was asked for by its
/// commit, and will be again. Where something cannot be read, nobody knows what it names: then nothing is found.
pub(super) fn look(root: &Path, known: &Known, found: &mut StoreSurvey) {
    found.superseded = superseded(root, known).unwrap_or_default();
}

fn superseded(root: &Path, known: &Known) -> Option<Vec<Superseded>> {
    // Links lead out of a store as well, to what is not of this cache.
    let real_root = fs_err::canonicalize(root).ok()?;
    let repos = repositories(&real_root)?;
    let (mut replaced, mut kept, mut lists) = (Vec::new(), Vec::new(), Vec::new());
    for repo in &repos {
        let (named, commits) = (named(repo)?, snapshots(repo)?);
        let is_named = |commit: &String| named.contains(commit) || known.revisions.contains(commit);
        lists.extend(lists_of_others(repo, &commits)?.into_iter().filter(|(_, commit)| !is_named(commit)));
        let is_followed = commits.iter().any(|commit| named.contains(commit));
        for commit in commits {
            if is_followed && !is_named(&commit) && is_commit(&commit) {
                replaced.push((repo, commit));
            } else {
                kept.push(repo.join("snapshots").join(commit));
            }
        }
    }
    let needed = linked_by(kept.into_iter())?;
    let blobs = Blobs { root: &real_root, needed, known };
    let mut all: Vec<Superseded> =
        replaced.iter().map(|(repo, commit)| revision(&real_root, repo, commit, &blobs)).collect::<Option<_>>()?;
    let by_replaced = linked_by(replaced.iter().map(|(repo, commit)| repo.join("snapshots").join(commit)))?;
    let lists = lists.into_iter().map(|(list, _)| list).collect();
    all.extend(blobs.remains(&repos, &by_replaced, lists)?);
    Some(all)
}

/// Everything at the top of a cache that may have links to its blobs.
fn repositories(root: &Path) -> Option<Vec<PathBuf>> {
    let entries: Vec<_> = fs_err::read_dir(root).ok()?.collect::<Result<_, _>>().ok()?;
    let is_repository = |place: &PathBuf| ["snapshots", "blobs"].iter().any(|folder| place.join(folder).is_dir());
    let mut repositories: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(is_repository).collect();
    repositories.sort();
    Some(repositories)
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

    /// What no snapshot leads by any more: a run that was killed took the snapshots away, or another program did.
    ///
    /// Of the blobs that repositories share, and of the links to them: what a repository has for itself is an orphan.
    /// `lists` tell what snapshots had that are gone.
    fn remains(
        &self,
        repos: &[PathBuf],
        by_replaced: &HashSet<PathBuf>,
        lists: Vec<PathBuf>,
    ) -> Option<Option<Superseded>> {
        let is_loose = |place: &PathBuf| !by_replaced.contains(place) && self.may_go(place);
        let links = repos.iter().map(|repo| files_in(&repo.join("blobs"))).collect::<Option<Vec<_>>>()?;
        let links = links.into_iter().flatten().filter(|place| place.is_symlink() && is_loose(place));
        let shared = files_in(&self.root.join("blobs"))?.into_iter().filter(is_loose);
        let seen = |place: PathBuf| {
            let what = "of a revision that is gone".to_owned();
            Seen { path: within(self.root, &place), size: own_size(&place), what }
        };
        let remains = Superseded {
            path: "blobs".to_owned(),
            files: lists.into_iter().chain(links).map(seen).collect(),
            blobs: shared.map(seen).collect(),
        };
        Some((!remains.files.is_empty() || !remains.blobs.is_empty()).then_some(remains))
    }
}

/// What lies in a folder, in the order of names; nothing where there is none.
fn files_in(folder: &Path) -> Option<Vec<PathBuf>> {
    if !folder.exists() {
        return Some(Vec::new());
    }
    let mut files: Vec<PathBuf> =
        fs_err::read_dir(folder).ok()?.map(|entry| Some(entry.ok()?.path())).collect::<Option<_>>()?;
    files.sort();
    Some(files)
}

fn revision(root: &Path, repo: &Path, commit: &str, blobs: &Blobs<'_>) -> Option<Superseded> {
    let folder = repo.join("snapshots").join(commit);
    let what = "of a revision that was replaced, and that nobody names";
    // First what says that the snapshot is whole.
    let list = repo.join("trees").join(format!("{commit}.json"));
    let mut files: Vec<PathBuf> = fs_err::symlink_metadata(&list).is_ok().then_some(list).into_iter().collect();
    for entry in WalkDir::new(&folder).sort_by_file_name() {
        let entry = entry.ok()?;
        // A stopped run may have left a folder that nothing lies in.
        if !entry.file_type().is_dir() || fs_err::read_dir(entry.path()).ok()?.next().is_none() {
            files.push(entry.into_path());
        }
    }
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

/// The lists of what snapshots had that are not among `commits`, with the commit of each.
fn lists_of_others(repo: &Path, commits: &[String]) -> Option<Vec<(PathBuf, String)>> {
    let lists = files_in(&repo.join("trees"))?.into_iter().filter_map(|list| {
        let commit = list.file_name()?.to_str()?.strip_suffix(".json")?.to_owned();
        (is_commit(&commit) && !commits.contains(&commit)).then_some((list, commit))
    });
    Some(lists.collect())
}

/// The names of its snapshots.
fn snapshots(repo: &Path) -> Option<Vec<String>> {
    let folder = repo.join("snapshots");
    if !folder.exists() {
        return Some(Vec::new());
    }
    fs_err::read_dir(folder).ok()?.map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}
