//! From manifests to the lock: what each artifact exactly consists of.
//!
//! [`from_pins`] uses what the manifests say; [`resolve`] asks the sources and compares.

use std::collections::{HashMap, HashSet};

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::artifact::{Artifact, File, OllamaManifest, Origin, Reference};
use crate::digest::{DigestMismatch, Sha256};
use crate::inventory::Layout;
use crate::manifest::{Declared, DeclaredFile};
use crate::relpath::RelPath;
use crate::sources::{Listing, SourceError, Sources};

/// Why an artifact could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The source refused.
    #[error("{artifact} cannot be looked up")]
    Source {
        /// The artifact.
        artifact: String,
        /// The source's reason.
        #[source]
        source: SourceError,
    },
    /// The source has other content than the manifest pins.
    #[error("{artifact}: {path} is not what the manifest pins")]
    PinnedContent {
        /// The artifact.
        artifact: String,
        /// The file.
        path: String,
        /// What differs.
        #[source]
        source: DigestMismatch,
    },
    /// The source has another length than the manifest pins.
    #[error("{artifact}: {path} has {actual} bytes at the source, the manifest pins {pinned}")]
    PinnedSize {
        /// The artifact.
        artifact: String,
        /// The file.
        path: String,
        /// The manifest's length.
        pinned: u64,
        /// The source's length.
        actual: u64,
    },
    /// A file that the manifest names is not at the source.
    #[error("{artifact}: {source_name} has no file {path}")]
    NotListed {
        /// The artifact.
        artifact: String,
        /// The source.
        source_name: String,
        /// The file.
        path: String,
    },
    /// `include` selects nothing.
    #[error("{artifact}: none of the files of {source_name} is selected by `include`")]
    NothingSelected {
        /// The artifact.
        artifact: String,
        /// The source.
        source_name: String,
    },
}

impl ResolveError {
    /// What a sysadmin can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Source { source, .. } => source.hint(),
            Self::PinnedContent { artifact, .. } | Self::PinnedSize { artifact, .. } => Some(format!(
                "upstream has changed, or the pin was wrong: compare, then change the manifest's entry for {artifact}"
            )),
            Self::NotListed { .. } => Some("check the path and the revision in the manifest".to_owned()),
            Self::NothingSelected { .. } => Some("check the globs of `include` and `exclude`".to_owned()),
        }
    }
}

/// A fingerprint of everything in a declaration that changes what is locked.
pub fn fingerprint(declared: &Declared) -> String {
    let mut text = format!(
        "{:?}|{:?}|{:?}|{:?}|{:?}|{}|{:?}|{:?}|{:?}",
        declared.source.as_ref().map(ToString::to_string),
        declared.mirrors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        declared.include,
        declared.exclude,
        declared.complete,
        declared.store,
        declared.folder,
        declared.manifest,
        declared.pattern,
    );
    for file in &declared.file {
        let source = file.source.as_ref().map(ToString::to_string);
        let mirrors: Vec<String> = file.mirrors.iter().map(ToString::to_string).collect();
        text.push_str(&format!("|{}|{source:?}|{mirrors:?}|{:?}|{:?}", file.path, file.size, file.digests()));
    }
    Sha256::of(text.as_bytes()).to_string()[..16].to_owned()
}

/// Whether an artifact is only a note about files that another one provides, so that nothing is locked.
pub fn is_note(declared: &Declared) -> bool {
    declared.duplicate_of.is_some() || (declared.generated_by.is_some() && declared.file.is_empty())
}

/// What the manifest alone says: complete only where it lists every file.
pub fn from_pins(declared: &Declared, layout: Layout) -> Artifact {
    let source = declared.source.clone().unwrap_or(Reference::Unidentified);
    let mut artifact = Artifact {
        name: declared.name.clone(),
        store: declared.store.clone(),
        folder: declared.folder.clone().filter(|_| layout == Layout::Folder),
        declared: fingerprint(declared),
        revision: pinned_revision(&source),
        origin: Origin::Pins,
        complete: pins_are_complete(declared, &source),
        whole: false,
        irreplaceable: source == Reference::Local && declared.generated_by.is_none(),
        ollama: declared.manifest.map(|digest| OllamaManifest { digest, bytes: None }),
        pattern: declared.pattern.clone(),
        files: Vec::new(),
        source,
    };
    artifact.files = declared.file.iter().map(|file| pinned_file(declared, &artifact, file)).collect();
    if artifact.files.is_empty() {
        artifact.files.extend(file_of_url(declared, &artifact.source));
        artifact.complete |= !artifact.files.is_empty();
    }
    artifact.files.sort_by(|a, b| a.path.cmp(&b.path));
    artifact
}

/// Asks the sources what `declared` means now and compares with what it pins.
pub async fn resolve(declared: &Declared, layout: Layout, sources: &Sources) -> Result<Artifact, ResolveError> {
    let mut artifact = from_pins(declared, layout);
    let has_own_sources = !declared.file.is_empty() && declared.file.iter().all(|file| file.source.is_some());
    if has_own_sources || matches!(artifact.source, Reference::Url(_)) {
        resolve_each(&mut artifact, sources).await?;
    } else if artifact.source.has_upstream() {
        resolve_listing(declared, &mut artifact, layout, sources).await?;
    }
    Ok(artifact)
}

/// Keeps digests that were measured at the first fetch, while the revision and length are the same.
pub fn keep_first_use(artifact: &mut Artifact, previous: &Artifact) {
    if artifact.revision != previous.revision {
        return;
    }
    let known: HashMap<_, _> = previous.files.iter().filter(|file| file.first_use).map(|f| (&f.path, f)).collect();
    for file in &mut artifact.files {
        let Some(before) = known.get(&file.path) else { continue };
        if file.digests.sha256.is_none() && (file.size.is_none() || file.size == before.size) {
            file.digests = file.digests.or(before.digests);
            file.size = file.size.or(before.size);
            file.first_use = true;
        }
    }
}

/// Keeps what the hub named contents by in Xet, where the contents are the same and nobody says it now: mirrors need not.
pub fn keep_xet(artifact: &mut Artifact, previous: &Artifact) {
    let named = previous.files.iter().filter(|file| file.xet.is_some());
    let known: HashMap<_, _> = named.filter_map(|file| Some((file.digests.sha256?, file.xet))).collect();
    for file in artifact.files.iter_mut().filter(|file| file.xet.is_none()) {
        file.xet = file.digests.sha256.and_then(|digest| *known.get(&digest)?);
    }
}

fn pinned_revision(source: &Reference) -> Option<String> {
    match source {
        Reference::Hub { revision: Some(revision), .. } if is_commit(revision) => Some(revision.clone()),
        _ => None,
    }
}

/// Whether a revision is a full commit id, which never moves.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn pins_are_complete(declared: &Declared, source: &Reference) -> bool {
    let listed = !declared.file.is_empty();
    match source {
        Reference::Ollama(_) => false,
        _ if declared.pattern.is_some() => false,
        _ => declared.complete.unwrap_or(listed && declared.include.is_empty()) && listed,
    }
}

fn in_folder(artifact: &Artifact, path: &RelPath) -> RelPath {
    artifact.folder.as_ref().map_or_else(|| path.clone(), |folder| folder.join(path))
}

fn pinned_file(declared: &Declared, artifact: &Artifact, file: &DeclaredFile) -> File {
    let path = match (&artifact.source, file.sha256) {
        // People name a layer by its digest; in the store it is a blob.
        (Reference::Ollama(_), Some(digest)) => blob_path(digest),
        _ => in_folder(artifact, &file.path),
    };
    let mirrored = declared.mirrors.iter().filter_map(|mirror| mirror.file(&file.path, None));
    File {
        path,
        size: file.size.map(|size| size.0),
        digests: file.digests(),
        first_use: false,
        lfs: None,
        xet: None,
        role: file.role.clone(),
        source: file.source.clone().map(Box::new),
        mirrors: file.mirrors.iter().cloned().chain(mirrored).collect(),
    }
}

fn blob_path(digest: Sha256) -> RelPath {
    format!("blobs/sha256-{digest}").parse().expect("hexadecimal digits make a clean path")
}

/// An artifact that is one address needs no list of files: the file is called as the address ends.
fn file_of_url(declared: &Declared, source: &Reference) -> Option<File> {
    let Reference::Url(url) = source else { return None };
    let name: RelPath = url.path_segments()?.next_back()?.parse().ok()?;
    let path = declared.folder.as_ref().map_or_else(|| name.clone(), |folder| folder.join(&name));
    Some(File { size: None, ..File::named(path) })
}

/// Looks up every file at its own source.
async fn resolve_each(artifact: &mut Artifact, sources: &Sources) -> Result<(), ResolveError> {
    let name = artifact.name.clone();
    let source = artifact.source.clone();
    for file in &mut artifact.files {
        let reference = file.source.as_deref().unwrap_or(&source).clone();
        let listing = list(&name, &reference, sources).await?;
        let listed = listing.files.first().ok_or_else(|| ResolveError::NotListed {
            artifact: name.clone(),
            source_name: reference.to_string(),
            path: file.path.to_string(),
        })?;
        compare(&name, file, listed)?;
        merge(file, listed);
        // The lock names the exact commit, so that the file stays the same file.
        if let (Reference::Hub { repo, path, .. }, Some(revision)) = (&reference, &listing.revision) {
            let exact = Reference::Hub { repo: repo.clone(), revision: Some(revision.clone()), path: path.clone() };
            file.source = Some(Box::new(exact));
        }
    }
    artifact.origin = Origin::Upstream;
    artifact.complete = true;
    Ok(())
}

/// Looks up the whole repository or image and selects from it.
async fn resolve_listing(
    declared: &Declared,
    artifact: &mut Artifact,
    layout: Layout,
    sources: &Sources,
) -> Result<(), ResolveError> {
    let listing = list(&artifact.name, &artifact.source, sources).await?;
    let source_name = artifact.source.to_string();
    let total = listing.files.len();
    let pinned = std::mem::take(&mut artifact.files);
    artifact.revision = listing.revision.clone().or_else(|| artifact.revision.take());
    let wanted = Selection::new(declared);
    let by_path: HashMap<&RelPath, &File> = pinned.iter().map(|file| (&file.path, file)).collect();
    let mut files = Vec::new();
    for listed in listing.files.into_iter().filter(|file| wanted.has(&file.path)) {
        let path = in_folder(artifact, &listed.path);
        let mut file = by_path.get(&path).copied().cloned().unwrap_or_else(|| {
            let bare = DeclaredFile::named(listed.path.clone());
            pinned_file(declared, artifact, &bare)
        });
        if layout == Layout::Folder {
            file.source = None; // It was listed at the artifact's own source.
        }
        compare(&artifact.name, &file, &listed)?;
        merge(&mut file, &listed);
        files.push(file);
    }
    let is_image = listing.ollama_manifest.is_some();
    let listed: HashSet<&RelPath> = files.iter().map(|file| &file.path).collect();
    if let Some(missing) = pinned.iter().find(|pin| !is_image && !listed.contains(&pin.path)) {
        let path = missing.path.to_string();
        return Err(ResolveError::NotListed { artifact: artifact.name.clone(), source_name, path });
    }
    if files.is_empty() {
        return Err(ResolveError::NothingSelected { artifact: artifact.name.clone(), source_name });
    }
    artifact.whole = files.len() == total && matches!(artifact.source, Reference::Hub { path: None, .. });
    artifact.files = files;
    artifact.files.sort_by(|a, b| a.path.cmp(&b.path));
    take_ollama_manifest(artifact, listing.ollama_manifest)?;
    artifact.origin = Origin::Upstream;
    artifact.complete = true;
    Ok(())
}

fn take_ollama_manifest(artifact: &mut Artifact, bytes: Option<Vec<u8>>) -> Result<(), ResolveError> {
    let Some(bytes) = bytes else { return Ok(()) };
    let digest = Sha256::of(&bytes);
    if let Some(pinned) = artifact.ollama.as_ref().map(|manifest| manifest.digest).filter(|pinned| *pinned != digest) {
        let source =
            DigestMismatch { algorithm: Sha256::ALGORITHM, expected: pinned.to_string(), actual: digest.to_string() };
        let path = format!("the image {}", artifact.source);
        return Err(ResolveError::PinnedContent { artifact: artifact.name.clone(), path, source });
    }
    let bytes = String::from_utf8(bytes).map_err(|_| ResolveError::Source {
        artifact: artifact.name.clone(),
        source: SourceError::Protocol {
            what: artifact.source.to_string(),
            reason: "the manifest is not UTF-8 text".to_owned(),
        },
    })?;
    artifact.ollama = Some(OllamaManifest { digest, bytes: Some(bytes) });
    Ok(())
}

async fn list(artifact: &str, reference: &Reference, sources: &Sources) -> Result<Listing, ResolveError> {
    let refused = |source| ResolveError::Source { artifact: artifact.to_owned(), source };
    sources.list(reference).await.map_err(refused)
}

fn compare(artifact: &str, pinned: &File, listed: &File) -> Result<(), ResolveError> {
    let (artifact, path) = (artifact.to_owned(), pinned.path.to_string());
    if let (Some(pinned), Some(actual)) = (pinned.size, listed.size)
        && pinned != actual
    {
        return Err(ResolveError::PinnedSize { artifact, path, pinned, actual });
    }
    pinned.digests.check(&listed.digests).map_err(|source| ResolveError::PinnedContent { artifact, path, source })
}

fn merge(file: &mut File, listed: &File) {
    file.size = listed.size.or(file.size);
    file.digests = listed.digests.or(file.digests);
    file.lfs = listed.lfs.or(file.lfs);
    file.xet = listed.xet.or(file.xet);
    file.role = listed.role.clone().or_else(|| file.role.take());
}

/// Which files of a repository an artifact wants.
struct Selection<'a> {
    include: Option<GlobSet>,
    exclude: GlobSet,
    listed: &'a [DeclaredFile],
}

impl<'a> Selection<'a> {
    fn new(declared: &'a Declared) -> Self {
        Self {
            include: (!declared.include.is_empty()).then(|| glob_set(&declared.include)),
            exclude: glob_set(&declared.exclude),
            listed: &declared.file,
        }
    }

    fn has(&self, path: &RelPath) -> bool {
        let included = match &self.include {
            Some(globs) => globs.is_match(path.as_str()),
            None => self.listed.is_empty() || self.listed.iter().any(|file| file.path == *path),
        };
        included && !self.exclude.is_match(path.as_str())
    }
}

/// Globs were checked when the manifest was read; a trailing `/` means everything below.
fn glob_set(globs: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let glob = if glob.ends_with('/') { format!("{glob}**") } else { glob.clone() };
        if let Ok(glob) = Glob::new(&glob) {
            set.add(glob);
        }
    }
    set.build().unwrap_or_else(|_| GlobSet::empty())
}
