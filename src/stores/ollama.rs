//! Ollama's models directory: `manifests/<host>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>`.
//!
//! Ollama deletes what lies in `blobs/` without a manifest and stumbles over foreign names under
//! `manifests/`. So proven content waits in `.larder/ready/`, and only [`OllamaStore::publish`] moves
//! it: all blobs of an image at once, the config last, then the manifest, whose temporary file is
//! never beside it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::artifact::{Artifact, File, Found, Pattern, Reference, blob_name, parse_manifest};
use crate::digest::{ContentHasher, Sha256};
use crate::fsio::{self, FileLock, Owner, Proven};
use crate::inventory::Layout;
use crate::stores::look::{self, look_at};
use crate::stores::{Defect, FileState, Observed, Store, StoreError, Unpublished};

mod image;

use image::{ManifestPath, twin_in_other_case};

/// Our own folder at the root: neither `blobs/` nor `manifests/`, so Ollama never looks into it.
const OWN_FOLDER: &str = ".larder";
/// Permission bits of blobs and manifests: other users' servers read them.
const FILE_MODE: u32 = 0o644;
/// Permission bits of folders.
const DIR_MODE: u32 = 0o755;
/// Ollama spares unreferenced blobs that are younger than an hour; older ones are made young again.
const YOUNG: Duration = Duration::from_secs(30 * 60);
/// How long to wait for another larder that publishes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A models directory of Ollama.
pub struct OllamaStore {
    name: String,
    root: PathBuf,
    owner: Option<Owner>,
}

/// Where a blob was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In `.larder/ready/`.
    Ready,
    /// In `blobs/` under its name.
    Blob,
    /// In `blobs/` under the name that very old versions of Ollama gave it.
    Legacy,
}

/// One blob that is here.
struct Content {
    digest: Sha256,
    file: File,
    place: Place,
    found: Found,
}

impl OllamaStore {
    /// Opens the store at `root`; nothing on disk is touched.
    pub fn new(name: String, root: PathBuf, owner: Option<Owner>) -> Self {
        Self { name, root, owner }
    }

    fn blob(&self, digest: &Sha256) -> PathBuf {
        self.root.join("blobs").join(blob_name(digest))
    }

    fn legacy_blob(&self, digest: &Sha256) -> PathBuf {
        self.root.join("blobs").join(format!("sha256:{digest}"))
    }

    fn ready(&self, digest: &Sha256) -> PathBuf {
        self.staging().join("ready").join(blob_name(digest))
    }

    fn manifest_path(&self, artifact: &Artifact) -> Option<ManifestPath> {
        match &artifact.source {
            Reference::Ollama(name) => ManifestPath::of(&self.root, name),
            _ => None,
        }
    }

    /// Looks for a blob in the order of trust: what larder proved itself comes first.
    fn look(&self, digest: &Sha256, file: &File) -> (Place, FileState) {
        let ready = match look_at(self.ready(digest), file) {
            FileState::Present(found) => return (Place::Ready, FileState::Staged(found)),
            other => other,
        };
        let blob = look_at(self.blob(digest), file);
        if let FileState::Missing | FileState::Wrong { .. } = blob
            && let FileState::Present(found) = look_at(self.legacy_blob(digest), file)
        {
            return (Place::Legacy, FileState::Present(found));
        }
        match (blob, ready) {
            (FileState::Missing, unreadable @ FileState::Unreadable { .. }) => (Place::Ready, unreadable),
            (FileState::Missing, _) => (Place::Blob, self.leftovers(digest)),
            (blob, _) => (Place::Blob, blob),
        }
    }

    fn state(&self, file: &File) -> FileState {
        digest_of(file).map_or(FileState::Missing, |digest| self.look(&digest, file).1)
    }

    /// Ollama's own unfinished downloads are named, since a pull could still use them.
    fn leftovers(&self, digest: &Sha256) -> FileState {
        let name = format!("{}-partial", blob_name(digest));
        if self.root.join("blobs").join(&name).exists() {
            return FileState::Wrong { defect: Defect::Unfinished { evidence: format!("blobs/{name}") }, found: None };
        }
        FileState::Missing
    }

    /// Ollama leaves an image out whose blobs it cannot read, as it does without a manifest.
    fn published(&self, artifact: &Artifact, states: &[FileState]) -> Result<(), Unpublished> {
        for state in states {
            if let FileState::Unreadable { path, reason, .. } = state {
                return Err(Unpublished::Unreadable { what: path.display().to_string(), reason: reason.clone() });
            }
        }
        let Some(place) = self.manifest_path(artifact) else {
            return Err(Unpublished::Missing { what: format!("an Ollama name for {}", artifact.source) });
        };
        let unreadable = |error: io::Error| Unpublished::Unreadable { what: place.shown(), reason: error.to_string() };
        match place.read().map_err(unreadable)? {
            Some(bytes) => place.compare(&bytes, artifact.ollama.as_ref()),
            None => match twin_in_other_case(&place).map_err(unreadable)? {
                Some(twin) => Err(place.is_ambiguous(&twin)),
                None => Err(Unpublished::Missing { what: place.shown() }),
            },
        }
    }

    fn io(&self, what: String) -> impl FnOnce(io::Error) -> StoreError {
        let store = self.name.clone();
        move |source| StoreError::Io { store, what, source }
    }

    fn unsuitable(&self, artifact: &Artifact, reason: impl Into<String>) -> StoreError {
        StoreError::Unsuitable { store: self.name.clone(), artifact: artifact.name.clone(), reason: reason.into() }
    }

    /// Whether larder may write here: see [`Store::foreign_layout`].
    fn check_layout(&self) -> Result<(), StoreError> {
        let failed = |error| self.io(format!("cannot look into {}", self.root.display()))(error);
        match self.foreign_layout().map_err(failed)? {
            None => Ok(()),
            Some(evidence) => Err(StoreError::ForeignLayout {
                store: self.name.clone(),
                what: format!("{} exists; install with `ollama pull`", evidence.display()),
            }),
        }
    }

    /// The manifest to write and the blobs it names, the config last.
    fn wanted<'a>(&self, artifact: &'a Artifact) -> Result<(&'a str, Vec<File>), StoreError> {
        let unknown = "its manifest is not in the lock, only a digest of it at most; run `larder lock`";
        let manifest = artifact.ollama.as_ref().ok_or_else(|| self.unsuitable(artifact, unknown))?;
        let bytes = manifest.bytes.as_deref().ok_or_else(|| self.unsuitable(artifact, unknown))?;
        if Sha256::of(bytes.as_bytes()) != manifest.digest {
            let reason = "the manifest in the lock does not have the digest beside it; run `larder lock`";
            return Err(self.unsuitable(artifact, reason));
        }
        let mut files =
            parse_manifest(bytes.as_bytes()).map_err(|error| self.unsuitable(artifact, error.to_string()))?;
        files.rotate_left(1);
        Ok((bytes, files))
    }

    /// Finds every blob, or says which one is not there.
    fn gather(&self, artifact: &Artifact, files: &[File]) -> Result<Vec<Content>, StoreError> {
        let mut contents = Vec::with_capacity(files.len());
        for file in files {
            let missing = || StoreError::Incomplete {
                store: self.name.clone(),
                artifact: artifact.name.clone(),
                missing: file.path.to_string(),
            };
            let digest = digest_of(file).ok_or_else(missing)?;
            let (place, found) = match self.look(&digest, file) {
                (place, FileState::Present(found) | FileState::Staged(found)) => (place, found),
                (_, FileState::Unreadable { path, reason, .. }) => {
                    let what = format!("cannot look at {}", path.display());
                    return Err(self.io(what)(io::Error::new(io::ErrorKind::PermissionDenied, reason)));
                }
                _ => return Err(missing()),
            };
            contents.push(Content { digest, file: file.clone(), place, found });
        }
        Ok(contents)
    }

    /// Moves every blob that is not in its final place there, in one go.
    fn move_blobs(&self, contents: &[Content]) -> Result<(), StoreError> {
        let blobs = self.root.join("blobs");
        let cannot = || self.io(format!("cannot put blobs into {}", blobs.display()));
        fsio::create_dir_all_with_mode(&blobs, DIR_MODE, self.owner).map_err(cannot())?;
        contents.iter().for_each(|content| refresh(&content.found));
        let mut renames = Vec::new();
        for content in contents.iter().filter(|content| content.place != Place::Blob) {
            self.keep_what_is_in_the_way(content).map_err(cannot())?;
            renames.push((content.found.path.clone(), self.blob(&content.digest)));
        }
        fsio::rename_together(&renames).map_err(cannot())
    }

    /// Gives something else under the blob's name a second name, so that replacing it loses nothing.
    fn keep_what_is_in_the_way(&self, content: &Content) -> io::Result<()> {
        let path = self.blob(&content.digest);
        match fs_err::symlink_metadata(&path) {
            Err(error) if fsio::is_absent(&error) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) if look::is_worthless(&path, &content.file) => return Ok(()),
            // Only the same length can be the same content; reading it all is the price of being sure.
            Ok(old) if old.is_file() && old.len() == content.found.size => {
                let (digests, _) = fsio::hash_file(&path, ContentHasher::new())?;
                if digests.sha256 == Some(content.digest) {
                    return Ok(());
                }
            }
            Ok(_) => {}
        }
        self.set_aside(&path)
    }

    fn set_aside(&self, path: &Path) -> io::Result<()> {
        let relative = path.strip_prefix(&self.root).unwrap_or(path);
        fsio::set_aside(path, &look::aside_path(&self.staging(), relative), self.owner)
    }

    fn write_manifest(&self, place: &ManifestPath, bytes: &str) -> io::Result<()> {
        let folder = place.path.parent().unwrap_or(&self.root);
        fsio::create_dir_all_with_mode(folder, DIR_MODE, self.owner)?;
        if let Some(old) = place.read_own()? {
            if old == bytes.as_bytes() {
                return Ok(());
            }
            self.set_aside(&place.path)?;
        }
        let staging = self.staging();
        let options = fsio::WriteOptions { mode: Some(FILE_MODE), owner: self.owner, staging: Some(&staging) };
        fsio::write_atomic(&place.path, bytes.as_bytes(), &options)
    }
}

impl Store for OllamaStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn layout(&self) -> Layout {
        Layout::Ollama
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn owner(&self) -> Option<Owner> {
        self.owner
    }

    fn staging(&self) -> PathBuf {
        self.root.join(OWN_FOLDER)
    }

    fn observe(&self, artifact: &Artifact) -> Observed {
        let files: Vec<FileState> = artifact.files.iter().map(|file| self.state(file)).collect();
        Observed { published: self.published(artifact, &files), files }
    }

    fn content_path(&self, _artifact: &Artifact, file: &File) -> PathBuf {
        let Some(digest) = digest_of(file) else {
            return file.path.under(&self.root);
        };
        match self.look(&digest, file).1 {
            FileState::Present(found) | FileState::Staged(found) => found.path,
            FileState::Unreadable { path, .. } => path,
            // New content waits in the staging folder until the image is published.
            _ => self.ready(&digest),
        }
    }

    fn visible_path(&self, artifact: &Artifact, file: &File) -> PathBuf {
        digest_of(file).map_or_else(|| self.content_path(artifact, file), |digest| self.blob(&digest))
    }

    /// The manifest: the blobs that it names are the business of Ollama alone.
    fn location(&self, artifact: &Artifact) -> PathBuf {
        self.manifest_path(artifact).map_or_else(|| self.root.clone(), |place| place.path)
    }

    /// None: Ollama does not lock.
    fn foreign_locks(&self, _artifact: &Artifact, _file: &File) -> Vec<PathBuf> {
        Vec::new()
    }

    fn place(&self, artifact: &Artifact, file: &File, content: Proven) -> Result<PathBuf, StoreError> {
        self.check_layout()?;
        look::admit(&self.name, file, &content)?;
        let digest = digest_of(file).or(content.digests().sha256);
        let digest = digest.filter(|digest| content.digests().sha256 == Some(*digest)).ok_or_else(|| {
            self.unsuitable(artifact, format!("the content that arrived for {} has another sha256", file.path))
        })?;
        let ready = self.ready(&digest);
        content.persist(&ready, FILE_MODE, self.owner).map_err(self.io(format!("cannot place {}", ready.display())))
    }

    fn publish(&self, artifact: &Artifact) -> Result<(), StoreError> {
        self.check_layout()?;
        let place = self
            .manifest_path(artifact)
            .ok_or_else(|| self.unsuitable(artifact, "only images of an Ollama registry can be kept there"))?;
        let (bytes, files) = self.wanted(artifact)?;
        let cannot = || self.io(format!("cannot write {}", place.path.display()));
        let lock = self.staging().join("publish.lock");
        let _lock = FileLock::acquire(&lock, self.owner, PATIENCE, || ()).map_err(cannot())?;
        let contents = self.gather(artifact, &files)?;
        let in_place = contents.iter().all(|content| content.place == Place::Blob);
        if in_place && place.read_own().map_err(cannot())?.as_deref() == Some(bytes.as_bytes()) {
            return Ok(());
        }
        if let Some(twin) = twin_in_other_case(&place).map_err(cannot())? {
            return Err(self.unsuitable(artifact, place.is_ambiguous(&twin).to_string()));
        }
        self.move_blobs(&contents)?;
        self.write_manifest(&place, bytes).map_err(cannot())?;
        // A server that prunes or removes at this moment may have taken a blob that images share.
        self.gather(artifact, &files).map(|_| ())
    }

    /// A newer Ollama keeps manifests in another way, which must not be mixed with this one.
    fn foreign_layout(&self) -> io::Result<Option<PathBuf>> {
        let newer = self.root.join("manifests-v2");
        match fs_err::symlink_metadata(&newer) {
            Err(error) if fsio::is_absent(&error) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(newer)),
        }
    }

    fn matching(&self, pattern: &Pattern) -> io::Result<Vec<Found>> {
        look::matching(&self.root, &pattern.glob, OWN_FOLDER)
    }
}

/// The digest that names the file's blob: the pinned one, else the one in its path.
/// A layer's one place.
pub(super) fn places_of(root: &Path, file: &File) -> Vec<PathBuf> {
    digest_of(file).map(|digest| root.join(format!("blobs/sha256-{digest}"))).into_iter().collect()
}

fn digest_of(file: &File) -> Option<Sha256> {
    let named = || file.path.file_name().strip_prefix("sha256-")?.parse().ok();
    file.digests.sha256.or_else(named)
}

/// Makes an old file young, so that a server which starts now does not take it for an orphan.
///
/// Only a precaution: a file of another user cannot be touched, and is looked at again afterwards.
fn refresh(found: &Found) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let age = now.as_nanos() as i128 - i128::from(found.mtime_ns);
    if age > YOUNG.as_nanos() as i128 {
        let _ = fsio::touch(&found.path);
    }
}
