//! Hub caches: folder names, references and blob names say what they hold.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::propose::{Proposal, ProposedFile};
use super::{Known, Seen, StoreSurvey, authority};
use crate::artifact::{HubKind, HubRepo, Reference};
use crate::fsio::hops;
use crate::resolve::is_commit;
use crate::stores::Store;

mod superseded;

/// Files that a snapshot has and that are no model.
const UNFINISHED: &str = ".incomplete";

/// Looks at every repository of the cache.
pub(super) fn look(store: &dyn Store, known: &mut Known, found: &mut StoreSurvey) -> Vec<Proposal> {
    let mut proposals = Vec::new();
    let entries = match fs_err::read_dir(store.root()) {
        Ok(entries) => entries,
        Err(error) => {
            found.unreadable.push(Seen { path: String::new(), size: 0, what: error.to_string() });
            return proposals;
        }
    };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let mut repos = Vec::new();
    for name in names {
        let place = store.root().join(&name);
        if let Some(repo) = repo_of(&name) {
            proposals.extend(look_at(store.root(), &name, &repo, known, found));
            repos.push(place);
        } else if place.join("blobs").is_dir() && place.join("snapshots").is_dir() {
            look_at_nameless(&place, &name, known, found);
            repos.push(place);
        }
    }
    orphans(store.root(), &repos, known, found);
    superseded::look(store.root(), known, found);
    proposals
}

/// Blobs that no snapshot of any repository leads to and that no lock and no manifest names: of revisions that are gone.
fn orphans(root: &Path, repos: &[PathBuf], known: &Known, found: &mut StoreSurvey) {
    // What a snapshot that cannot be looked into leads to, nobody knows.
    let Some(linked) = linked(repos) else { return };
    for repo in repos {
        let blobs = WalkDir::new(repo.join("blobs")).min_depth(1).max_depth(1).sort_by_file_name();
        for entry in blobs.into_iter().filter_map(Result::ok).filter(|entry| entry.file_type().is_file()) {
            let name = entry.file_name().to_string_lossy();
            if !is_blob(&name) || known.contents.contains(name.as_ref()) {
                continue;
            }
            if fs_err::canonicalize(entry.path()).is_ok_and(|place| !linked.contains(&place)) {
                let size = entry.metadata().map_or(0, |metadata| metadata.len());
                let path = within(root, entry.path());
                found.leftovers.push(Seen { path, size, what: "no snapshot leads to it".to_owned() });
            }
        }
    }
}

/// Whether a file of a `blobs` folder is called by the digest of its content.
fn is_blob(name: &str) -> bool {
    [40, 64].contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn within(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// Everything that snapshots lead to; `None` where one of them cannot be looked into.
fn linked(repos: &[PathBuf]) -> Option<HashSet<PathBuf>> {
    linked_by(repos.iter().map(|repo| repo.join("snapshots")))
}

/// Everything that links below `folders` lead to, by way of what; `None` where one of them cannot be looked into.
fn linked_by(folders: impl Iterator<Item = PathBuf>) -> Option<HashSet<PathBuf>> {
    let mut linked = HashSet::new();
    for folder in folders.filter(|folder| folder.exists()) {
        for entry in WalkDir::new(folder) {
            let entry = entry.ok()?;
            if entry.file_type().is_symlink() {
                linked.extend(hops(entry.path()));
                match fs_err::canonicalize(entry.path()) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return None,
                    _ => {}
                }
            }
        }
    }
    Some(linked)
}

/// `models--owner--name` and `datasets--owner--name`.
fn repo_of(folder: &str) -> Option<HubRepo> {
    let (kind, id) = folder.split_once("--")?;
    let kind = [HubKind::Model, HubKind::Dataset].into_iter().find(|known| known.plural() == kind)?;
    Some(HubRepo { kind, id: id.replace("--", "/") })
}

fn look_at(root: &Path, folder: &str, repo: &HubRepo, known: &mut Known, found: &mut StoreSurvey) -> Option<Proposal> {
    let dir = root.join(folder);
    leftovers(root, &dir, found);
    let commits = commits(&dir);
    let source = Reference::Hub { repo: repo.clone(), revision: commits.first().cloned(), path: None };
    let Some(commit) = commits.first() else {
        let what = "it has no snapshot: nothing can load it".to_owned();
        found.leftovers.push(Seen { path: folder.to_owned(), size: 0, what });
        return None;
    };
    let files = files(&dir.join("snapshots").join(commit), folder, found);
    let size = files.iter().map(|file| file.size).sum();
    let seen = |what: String| Seen { path: folder.to_owned(), size, what };
    for other in &commits[1..] {
        found.unknown.push(Seen {
            path: format!("{folder}/snapshots/{other}"),
            size: 0,
            what: "another revision".to_owned(),
        });
    }
    if let Some(artifact) = known.sources.get(&(found.store.clone(), authority(&source))) {
        found.known.push(seen(artifact.clone()));
        return None;
    }
    let likeness = likeness(&files, known);
    if let Some(artifact) = likeness.all_of() {
        found.elsewhere.push(seen(format!("the files of {artifact}, as a repository of another name")));
        return None;
    }
    found.unknown.push(seen(format!("{source}{}", likeness.told())));
    let name = known.new_name(repo.id.rsplit('/').next().unwrap_or(&repo.id));
    let note = "found in the cache; whether all of the repository is needed is for you to say".to_owned();
    Some(Proposal { name, store: found.store.clone(), source, files, manifest: None, note })
}

/// A repository under a name that says nothing: what it is, only its contents tell.
fn look_at_nameless(dir: &Path, folder: &str, known: &Known, found: &mut StoreSurvey) {
    let Some(commit) = commits(dir).into_iter().next() else { return };
    let files = files(&dir.join("snapshots").join(commit), folder, found);
    let size = files.iter().map(|file| file.size).sum();
    let likeness = likeness(&files, known);
    let seen = |what: String| Seen { path: folder.to_owned(), size, what };
    match likeness.all_of() {
        Some(artifact) => found.elsewhere.push(seen(format!("the files of {artifact}, in a folder of another name"))),
        None => found.unknown.push(seen(format!("a repository whose folder does not say which{}", likeness.told()))),
    }
}

/// How many large files of a snapshot are known by their digests, and of which artifact most of them are.
struct Likeness {
    known: usize,
    of: usize,
    artifact: Option<String>,
}

impl Likeness {
    /// The artifact that has all of them.
    fn all_of(&self) -> Option<&str> {
        self.artifact.as_deref().filter(|_| self.known == self.of)
    }

    fn told(&self) -> String {
        match &self.artifact {
            Some(artifact) => format!("; {} of its {} large files are those of {artifact}", self.known, self.of),
            None => String::new(),
        }
    }
}

/// Compares the names of blobs, which are the digests of their contents. Small files are named in another way, and many
/// repositories have the same ones.
fn likeness(files: &[ProposedFile], known: &Known) -> Likeness {
    let large: Vec<_> = files.iter().filter_map(|file| file.sha256).collect();
    let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
    for digest in &large {
        for owner in known.owners(digest) {
            *owners.entry(owner).or_default() += 1;
        }
    }
    let most = owners.into_iter().max_by_key(|(name, files)| (*files, std::cmp::Reverse(*name)));
    let (artifact, known) = most.map_or((None, 0), |(name, files)| (Some(name.to_owned()), files));
    Likeness { known, of: large.len(), artifact }
}

/// The commits that have a snapshot; the one that `main` means first.
fn commits(dir: &Path) -> Vec<String> {
    let main = fs_err::read_to_string(dir.join("refs/main")).unwrap_or_default();
    let entries = fs_err::read_dir(dir.join("snapshots")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut commits: Vec<String> = names.filter(|name| is_commit(name)).collect();
    commits.sort_by_key(|commit| (commit != main.trim(), commit.clone()));
    commits
}

/// The files of a snapshot; the name of the blob that each leads to is its digest.
fn files(snapshot: &Path, folder: &str, found: &mut StoreSurvey) -> Vec<ProposedFile> {
    let mut files = Vec::new();
    for entry in WalkDir::new(snapshot).sort_by_file_name().into_iter().filter_map(Result::ok) {
        let within = entry.path().strip_prefix(snapshot).unwrap_or(entry.path()).display().to_string();
        if entry.file_type().is_dir() {
            continue;
        }
        let Ok(metadata) = fs_err::metadata(entry.path()) else {
            let what = "a link to nothing".to_owned();
            found.leftovers.push(Seen { path: format!("{folder}: {within}"), size: 0, what });
            continue;
        };
        let Ok(path) = within.parse() else { continue };
        let blob =
            fs_err::read_link(entry.path()).ok().and_then(|target| target.file_name()?.to_str().map(str::to_owned));
        let blob = blob.unwrap_or_default();
        files.push(ProposedFile { path, size: metadata.len(), sha256: blob.parse().ok(), git_sha1: blob.parse().ok() });
    }
    files
}

fn leftovers(root: &Path, dir: &Path, found: &mut StoreSurvey) {
    for entry in fs_err::read_dir(dir.join("blobs")).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.to_string_lossy().ends_with(UNFINISHED) {
            let size = entry.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            let path = within(root, &path);
            found.leftovers.push(Seen { path, size, what: "an unfinished download".to_owned() });
        }
    }
}
