//! The Hugging Face hub cache, as huggingface_hub 1.31 and 2.4 read and write it.
//!
//! ```text
//! models--owner--name/blobs/<etag>                  content, or a link into the cache-wide <cache>/blobs
//! models--owner--name/snapshots/<commit>/<path>     a relative link to the blob, or a regular file
//! models--owner--name/refs/<branch or tag>          the commit, without a newline
//! models--owner--name/trees/<commit>.json           all files of the commit
//! .locks/models--owner--name/<etag>.lock            held by whoever writes the blob
//! ```
//! Our own files live in `.locks/.larder`: every other new name at the top makes `hf cache ls` warn.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::artifact::{Artifact, File, Found, Pattern};
use crate::fsio::{self, Owner, Proven, WriteOptions};
use crate::inventory::Layout;
use crate::stores::look::{self, look_at};
use crate::stores::{Defect, FileState, Observed, Store, StoreError, Unpublished};

mod names;
mod tree;

use names::{RepoPlaces, blob_name, blob_names, is_commit, link_target};

/// The standard's signature, and where to read about it: https://bford.info/cachedir/
const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by larder.\n\
    # For information about cache directory tags, see:\n\
    #\thttps://bford.info/cachedir/\n";

/// A Hugging Face hub cache: the folder that `HF_HUB_CACHE` names.
#[derive(Debug)]
pub struct HfCacheStore {
    name: String,
    root: PathBuf,
    owner: Option<Owner>,
}

impl HfCacheStore {
    /// Opens the store at `root`; nothing on disk is touched.
    pub fn new(name: String, root: PathBuf, owner: Option<Owner>) -> Self {
        Self { name, root, owner }
    }

    fn places(&self, artifact: &Artifact) -> Result<RepoPlaces, StoreError> {
        RepoPlaces::of(&self.root, artifact).map_err(|reason| self.unsuitable(artifact, reason))
    }

    fn unsuitable(&self, artifact: &Artifact, reason: String) -> StoreError {
        StoreError::Unsuitable { store: self.name.clone(), artifact: artifact.name.clone(), reason }
    }

    fn io(&self, what: impl Into<String>) -> impl FnOnce(io::Error) -> StoreError {
        let (store, what) = (self.name.clone(), what.into());
        move |source| StoreError::Io { store, what, source }
    }

    /// Makes what every client expects of a cache and of a repository in it.
    fn prepare(&self, repo: &RepoPlaces) -> io::Result<()> {
        // A repository without this folder counts as corrupt, and a first `place` may be all that happens today.
        fsio::create_dir_all(&repo.snapshots(), self.owner)?;
        let tag = self.root.join("CACHEDIR.TAG");
        if fs_err::symlink_metadata(&tag).is_ok() {
            return Ok(());
        }
        self.write(&tag, CACHEDIR_TAG.as_bytes())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let staging = self.staging();
        fsio::write_atomic(path, bytes, &WriteOptions { mode: None, owner: self.owner, staging: Some(&staging) })
    }

    /// Makes the snapshot's entry for `file` a link to the blob `name`; what was there is kept aside.
    fn link(&self, repo: &RepoPlaces, commit: &str, file: &File, name: &str) -> io::Result<()> {
        let (entry, target) = (file.path.under(&repo.snapshot(commit)), link_target(&file.path, name));
        let says_so = || fs_err::read_link(&entry).is_ok_and(|found| found == target);
        match fs_err::symlink_metadata(&entry) {
            Ok(found) if found.is_symlink() && says_so() => return Ok(()),
            // A client without links puts the content itself here; it may be the only copy of something.
            Ok(found) if !found.is_symlink() && !look::is_worthless(&entry, file) => self.set_aside(&entry)?,
            _ => {}
        }
        let staging = self.staging();
        fsio::symlink_staged(&target, &entry, &WriteOptions { mode: None, owner: self.owner, staging: Some(&staging) })
    }

    fn set_aside(&self, path: &Path) -> io::Result<()> {
        let within = path.strip_prefix(&self.root).unwrap_or(path);
        fsio::set_aside(path, &look::aside_path(&self.staging(), within), self.owner)
    }

    /// Points the snapshot at the blob just placed, where something else is there or only the link can name it.
    ///
    /// An entry that is a regular file, or a link to another blob, would go on being read instead.
    fn relink(&self, repo: &RepoPlaces, file: &File, name: &str) -> io::Result<()> {
        let Some(commit) = repo.commit.as_deref() else {
            return Ok(());
        };
        let entry = file.path.under(&repo.snapshot(commit));
        let is_nameless = blob_name(file, &file.digests).is_none();
        if !is_nameless && fs_err::symlink_metadata(&entry).is_err() {
            return Ok(());
        }
        self.link_all(repo, commit, &[(file, name.to_owned())])
    }

    /// Makes all links, then makes them durable, folder by folder.
    fn link_all(&self, repo: &RepoPlaces, commit: &str, links: &[(&File, String)]) -> io::Result<()> {
        let (snapshots, snapshot) = (repo.snapshots(), repo.snapshot(commit));
        let mut folders = BTreeSet::new();
        for (file, name) in links {
            self.link(repo, commit, file, name)?;
            let entry = file.path.under(&snapshot);
            let above = entry.ancestors().skip(1).take_while(|folder| folder.starts_with(&snapshots));
            folders.extend(above.map(Path::to_owned));
        }
        folders.iter().try_for_each(|folder| fsio::sync_dir(folder))
    }

    fn write_tree(&self, repo: &RepoPlaces, commit: &str, artifact: &Artifact) -> io::Result<()> {
        let path = repo.tree_file(commit);
        // A list that a client wrote knows more, such as the xet hashes.
        match tree::tree_text(artifact) {
            Some(text) if fs_err::symlink_metadata(&path).is_err() => self.write(&path, &text),
            _ => Ok(()),
        }
    }
}

/// Blobs under every name that a client may have given them, and what the snapshot leads to.
pub(super) fn places_of(root: &Path, artifact: &Artifact, file: &File) -> Vec<PathBuf> {
    let Ok(repo) = RepoPlaces::of(root, artifact) else { return Vec::new() };
    let snapshot = repo.commit.as_deref().map(|commit| file.path.under(&repo.snapshot(commit)));
    blob_names(file).map(|name| repo.blob(&name)).chain(snapshot).collect()
}

impl Store for HfCacheStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn layout(&self) -> Layout {
        Layout::HfCache
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn owner(&self) -> Option<Owner> {
        self.owner
    }

    fn staging(&self) -> PathBuf {
        self.root.join(".locks/.larder")
    }

    fn observe(&self, artifact: &Artifact) -> Observed {
        let repo = match RepoPlaces::of(&self.root, artifact) {
            Ok(repo) => repo,
            Err(what) => {
                let files = artifact.files.iter().map(|_| FileState::Missing).collect();
                return Observed { files, published: Err(Unpublished::Missing { what }) };
            }
        };
        let reference = read_ref(&repo);
        let commit = wanted_commit(&repo, &reference);
        let snapshot = commit.as_deref().map(|commit| repo.snapshot(commit));
        let files = look::at_each(&artifact.files, |file| file_state(&repo, snapshot.as_deref(), file));
        let published = published(&repo, artifact, &files, &reference);
        Observed { files, published }
    }

    /// The blob, or the snapshot's entry where no digest names the blob yet.
    fn content_path(&self, artifact: &Artifact, file: &File) -> PathBuf {
        let Ok(repo) = RepoPlaces::of(&self.root, artifact) else {
            return file.path.under(&self.root.join(&artifact.name));
        };
        match blob_name(file, &file.digests) {
            Some(name) => repo.blob(&name),
            None => {
                let reference = read_ref(&repo);
                let commit = wanted_commit(&repo, &reference).unwrap_or(Cow::Borrowed("unknown"));
                file.path.under(&repo.snapshot(&commit))
            }
        }
    }

    fn visible_path(&self, artifact: &Artifact, file: &File) -> PathBuf {
        let place = RepoPlaces::of(&self.root, artifact).ok();
        let snapshot = place.and_then(|repo| repo.commit.as_deref().map(|commit| repo.snapshot(commit)));
        snapshot.map_or_else(|| self.content_path(artifact, file), |snapshot| file.path.under(&snapshot))
    }

    /// The repository's folder: which snapshot in it is read, `refs` says.
    fn location(&self, artifact: &Artifact) -> PathBuf {
        self.places(artifact).map_or_else(|_| self.root.clone(), |repo| repo.dir)
    }

    fn foreign_locks(&self, artifact: &Artifact, file: &File) -> Vec<PathBuf> {
        let Ok(repo) = RepoPlaces::of(&self.root, artifact) else {
            return Vec::new();
        };
        let locks = self.root.join(".locks").join(&repo.folder);
        blob_name(file, &file.digests).map(|name| locks.join(format!("{name}.lock"))).into_iter().collect()
    }

    /// Writes `blobs/<etag>` by renaming.
    ///
    /// Where `blobs/<etag>` is a link into the cache-wide store, the link gives way to a regular file:
    /// the payload behind it is read-only, serves other repositories, and may be wrong for them too, so
    /// it is neither written nor removed; every client accepts a regular file in this place.
    fn place(&self, artifact: &Artifact, file: &File, content: Proven) -> Result<PathBuf, StoreError> {
        let repo = self.places(artifact)?;
        look::admit(&self.name, file, &content)?;
        let name = blob_name(file, &file.digests).or_else(|| blob_name(file, content.digests()));
        let name =
            name.ok_or_else(|| self.unsuitable(artifact, format!("no digest names the blob of {}", file.path)))?;
        self.prepare(&repo).map_err(self.io(format!("Cannot prepare {}", repo.dir.display())))?;
        let blob = repo.blob(&name);
        if fs_err::symlink_metadata(&blob).is_ok_and(|found| found.is_dir()) {
            self.set_aside(&blob).map_err(self.io(format!("Cannot move the folder {} away", blob.display())))?;
        }
        content
            .persist(&blob, fsio::default_file_mode(), self.owner)
            .map_err(self.io(format!("Cannot put {} in its place", file.path)))?;
        self.relink(&repo, file, &name).map_err(self.io(format!("Cannot link {} to its content", file.path)))?;
        Ok(blob)
    }

    fn publish(&self, artifact: &Artifact) -> Result<(), StoreError> {
        let repo = self.places(artifact)?;
        let Some(commit) = repo.commit.as_deref() else {
            return Err(self.unsuitable(artifact, "its commit is not known yet; find it with: larder lock".to_owned()));
        };
        let incomplete = |missing: String| StoreError::Incomplete {
            store: self.name.clone(),
            artifact: artifact.name.clone(),
            missing,
        };
        // A reference to a snapshot that does not exist makes clients ignore the whole repository.
        if artifact.files.is_empty() {
            return Err(incomplete("its list of files".to_owned()));
        }
        let snapshot = repo.snapshot(commit);
        let mut links = Vec::new();
        for file in &artifact.files {
            match file_state(&repo, Some(&snapshot), file) {
                FileState::Present(_) => {}
                FileState::Staged(found) => links.push((file, file_name(&found.path))),
                _ => return Err(incomplete(file.path.to_string())),
            }
        }
        let failed = |what: &str| self.io(format!("Cannot write {what} of {}", repo.dir.display()));
        self.prepare(&repo).map_err(failed("the folders"))?;
        // Placed contents must outlast a power cut before anything that leads to them can.
        fsio::sync_dir(&repo.dir.join("blobs")).map_err(failed("the blobs"))?;
        self.link_all(&repo, commit, &links).map_err(failed("the links"))?;
        self.write_tree(&repo, commit, artifact).map_err(failed("the list of files"))?;
        if ref_is(&repo, commit) {
            return Ok(());
        }
        // Last, because the reference is what programs ask first. It also keeps `hf cache prune`, which
        // removes commits that no reference names, from removing this one.
        self.write(&repo.ref_file(), commit.as_bytes()).map_err(failed(&repo.ref_label()))
    }

    fn matching(&self, pattern: &Pattern) -> io::Result<Vec<Found>> {
        look::matching(&self.root, &pattern.glob, ".locks")
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Looks at `file` through the snapshot, which is what programs read, and only then for its blob.
fn file_state(repo: &RepoPlaces, snapshot: Option<&Path>, file: &File) -> FileState {
    let seen = snapshot.map_or(FileState::Missing, |snapshot| look_at(file.path.under(snapshot), file));
    if matches!(seen, FileState::Present(_) | FileState::Unreadable { .. }) {
        return seen;
    }
    let mut cause = None;
    for name in blob_names(file) {
        match look_at(repo.blob(&name), file) {
            FileState::Present(found) => return FileState::Staged(found),
            FileState::Missing => {}
            other => cause = cause.or(Some(other)),
        }
    }
    match (&seen, cause) {
        // What is wrong with the blob says more than that the link to it leads nowhere.
        (FileState::Missing | FileState::Wrong { defect: Defect::Dangling { .. }, .. }, Some(cause)) => cause,
        _ => seen,
    }
}

/// What the reference's file says; `None` where there is none.
fn read_ref(repo: &RepoPlaces) -> io::Result<Option<String>> {
    match fs_err::read(repo.ref_file()) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if fsio::is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn ref_is(repo: &RepoPlaces, commit: &str) -> bool {
    read_ref(repo).is_ok_and(|reference| reference.as_deref() == Some(commit))
}

/// The artifact's commit, or, while nobody has looked it up, the one that programs would find here.
fn wanted_commit<'a>(repo: &'a RepoPlaces, reference: &'a io::Result<Option<String>>) -> Option<Cow<'a, str>> {
    let found = || reference.as_ref().ok()?.as_deref().filter(|commit| is_commit(commit));
    repo.commit.as_deref().or_else(found).map(Cow::Borrowed)
}

fn published(
    repo: &RepoPlaces,
    artifact: &Artifact,
    files: &[FileState],
    reference: &io::Result<Option<String>>,
) -> Result<(), Unpublished> {
    let missing = |what: String| Err(Unpublished::Missing { what });
    let unlinked = artifact.files.iter().zip(files).find(|(_, state)| !matches!(state, FileState::Present(_)));
    if let Some((file, _)) = unlinked {
        return missing(format!("{} in the snapshot", file.path));
    }
    let what = repo.ref_label();
    match (reference, repo.commit.as_deref()) {
        (Err(error), _) => Err(Unpublished::Unreadable { what, reason: look::reason(error) }),
        (Ok(None), _) => missing(what),
        (Ok(Some(actual)), Some(wanted)) if actual != wanted => {
            let actual = actual.chars().take(60).collect::<String>().escape_debug().to_string();
            Err(Unpublished::Different { what, actual, wanted: wanted.to_owned() })
        }
        _ => Ok(()),
    }
}
