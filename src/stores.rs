//! Stores: places on this machine, in layouts that other programs read.
//!
//! Every layout implements [`Store`] and passes the contract suite in `tests/contract/store.rs`.
//! Stores do file-system work only and know nothing of networks.

use std::io;
use std::path::{Path, PathBuf};

use crate::artifact::{Artifact, File, Found, Pattern};
use crate::fsio::{Owner, Proven};
use crate::inventory::{Layout, StoreConfig};

mod folder;
mod hf_cache;
mod look;
mod ollama;
mod presence;
mod set;

pub use folder::FolderStore;
pub use hf_cache::HfCacheStore;
pub use ollama::OllamaStore;
pub use presence::{Absence, StoreMark, look_for_root};
pub use set::{OpenStore, Stores};

/// A place on this machine that holds artifacts in a layout other programs read.
pub trait Store: Send + Sync {
    /// The store's name in the inventory.
    fn name(&self) -> &str;

    /// Its layout.
    fn layout(&self) -> Layout;

    /// Its root folder, which may not exist yet.
    fn root(&self) -> &Path;

    /// Who must own what is written here.
    fn owner(&self) -> Option<Owner>;

    /// Our own folder on the same file system, which no other program looks into.
    ///
    /// Holds partials, locks, the store mark and files that were set aside.
    fn staging(&self) -> PathBuf;

    /// Looks at every file of `artifact`, without reading contents.
    ///
    /// The result has one state per file, in order. What cannot be looked at is
    /// [`FileState::Unreadable`], not an error.
    fn observe(&self, artifact: &Artifact) -> Observed;

    /// Where the content of `file` is, or will be, once placed.
    fn content_path(&self, artifact: &Artifact, file: &File) -> PathBuf;

    /// The name under which programs read `file`, whether it is here or not.
    fn visible_path(&self, artifact: &Artifact, file: &File) -> PathBuf {
        self.content_path(artifact, file)
    }

    /// Where programs find `artifact`: the file or the folder that all of it is in, whether it is here or not.
    fn location(&self, artifact: &Artifact) -> PathBuf;

    /// Lock files that other programs hold while they write the same content.
    fn foreign_locks(&self, artifact: &Artifact, file: &File) -> Vec<PathBuf>;

    /// Moves proven content to its place, and returns that. Doing it again is harmless.
    ///
    /// The content is on the disk before it becomes visible. Its name is durable once
    /// [`crate::fsio::sync_dir`] was called for the folder of the returned path, or after `publish`.
    ///
    /// A different file that is in the way is never lost: see [`crate::fsio::set_aside`].
    fn place(&self, artifact: &Artifact, file: &File, content: Proven) -> Result<PathBuf, StoreError>;

    /// Makes `artifact` visible to the programs that read this layout. All its content is in place.
    ///
    /// Idempotent; refuses with [`StoreError::Incomplete`] when content is missing.
    fn publish(&self, artifact: &Artifact) -> Result<(), StoreError>;

    /// What in the store shows that its program keeps it in a layout which larder must not write.
    ///
    /// Reading goes on as far as larder knows that layout. Fails where it cannot be looked at.
    fn foreign_layout(&self) -> io::Result<Option<PathBuf>> {
        Ok(None)
    }

    /// Files in the store that match `pattern`.
    fn matching(&self, pattern: &Pattern) -> io::Result<Vec<Found>>;
}

/// What was seen of one artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// One state per file of the artifact, in its order.
    pub files: Vec<FileState>,
    /// Whether programs that read the layout find the artifact; `Err` says what is missing or wrong.
    pub published: Result<(), Unpublished>,
}

/// Why programs do not find an artifact whose content is here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpublished {
    /// The entry that makes it visible is not there.
    #[error("{what} is missing")]
    Missing {
        /// For example `refs/main`.
        what: String,
    },
    /// The entry is there and says something else.
    #[error("{what} is {actual}, wanted is {wanted}")]
    Different {
        /// For example `refs/main`.
        what: String,
        /// What it says.
        actual: String,
        /// What it should say.
        wanted: String,
    },
    /// The store could not be looked at.
    #[error("{what} cannot be read: {reason}")]
    Unreadable {
        /// What.
        what: String,
        /// The system's reason.
        reason: String,
    },
}

/// What lies in one file's place, judged by names, links and sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// Visible and of the right length.
    Present(Found),
    /// The content is here, proven on arrival, but not yet visible under its name.
    Staged(Found),
    /// The store's running server says that it has it; larder itself may not look.
    Held,
    /// Nothing is there.
    Missing,
    /// Something is there that cannot be the file.
    Wrong {
        /// What is wrong.
        defect: Defect,
        /// What lies there, where it can be looked at.
        found: Option<Box<Found>>,
    },
    /// Something is there and cannot be looked at, so it is neither present nor missing.
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Whether it is a matter of rights, and not of the disk.
        is_denied: bool,
        /// The system's reason.
        reason: String,
    },
}

/// Why something in a file's place cannot be the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// No bytes at all, as `wget` leaves it after an error.
    #[error("it is empty")]
    Empty,
    /// Another length than it must have.
    #[error("it has {actual} bytes, {expected} are right")]
    Size {
        /// The right length.
        expected: u64,
        /// The length found.
        actual: u64,
    },
    /// A link to nothing.
    #[error("it is a link to {target}, which does not exist")]
    Dangling {
        /// Where it points.
        target: String,
    },
    /// Another program's unfinished download.
    #[error("it is an unfinished download ({evidence})")]
    Unfinished {
        /// For example the control file beside it.
        evidence: String,
    },
    /// The text that stands for an LFS file in git.
    #[error("it is a git-lfs pointer, not the file")]
    LfsPointer,
    /// A web page, usually a login or an error.
    #[error("it is a web page, not the file")]
    Html,
    /// A folder or device where a file should be.
    #[error("it is not a file")]
    NotAFile,
}

/// A store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("{what} in store `{store}`")]
    Io {
        /// The store's name.
        store: String,
        /// What was attempted.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// `publish` before all content was placed.
    #[error("{artifact} cannot be published in store `{store}`: {missing} is not there")]
    Incomplete {
        /// The store's name.
        store: String,
        /// The artifact.
        artifact: String,
        /// The first missing file.
        missing: String,
    },
    /// The layout is one that larder must not write.
    #[error("store `{store}` has a layout larder does not write: {what}")]
    ForeignLayout {
        /// The store's name.
        store: String,
        /// What was found.
        what: String,
    },
    /// The artifact cannot live in this layout.
    #[error("{artifact} cannot be kept in store `{store}`: {reason}")]
    Unsuitable {
        /// The store's name.
        store: String,
        /// The artifact.
        artifact: String,
        /// Why.
        reason: String,
    },
}

impl StoreError {
    /// Whether the cause is a full disk or a lack of rights, which trying again does not mend.
    pub fn is_permanent(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
            ),
            _ => true,
        }
    }
}

/// Where a store in `layout` at `root`, on whatever machine, may keep the content of `file`: the likeliest place first.
///
/// Nothing on disk is looked at.
pub fn places_of(layout: Layout, root: &Path, artifact: &Artifact, file: &File) -> Vec<PathBuf> {
    match layout {
        Layout::HfCache => hf_cache::places_of(root, artifact, file),
        Layout::Ollama => ollama::places_of(root, file),
        Layout::Folder => vec![file.path.under(root)],
    }
}

/// Opens the store that `config` describes; nothing on disk is touched.
pub fn open(name: &str, config: &StoreConfig, owner: Option<Owner>) -> Box<dyn Store> {
    let (name, root) = (name.to_owned(), config.path.clone());
    match config.layout {
        Layout::HfCache => Box::new(HfCacheStore::new(name, root, owner)),
        Layout::Ollama => Box::new(OllamaStore::new(name, root, owner)),
        Layout::Folder => Box::new(FolderStore::new(name, root, owner)),
    }
}
