//! Whether a store is really there: an unmounted drive must never look like an empty store.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fsio::{self, FileLock, Owner, WriteOptions};
use crate::inventory::StoreConfig;
use crate::stores::{Store, look};

/// Why a store must not be written, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// `mounted` names a folder that is not a mount point now.
    #[error("{path} is not mounted")]
    NotMounted {
        /// The mount point.
        path: String,
    },
    /// larder has seen this store before, and its mark is gone: another disk, or an empty mount point.
    #[error("{path} is not the store larder knows: its mark is missing")]
    MarkMissing {
        /// The store's root.
        path: String,
    },
    /// larder has seen another store here before.
    #[error("{path} is not the store larder knows: its mark is {found}, {expected} was left here")]
    OtherStore {
        /// The store's root.
        path: String,
        /// The id that larder remembers.
        expected: String,
        /// The id that was found.
        found: String,
    },
    /// The root exists and may not be read.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// The store's root.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// The root may not be looked at, and the server that keeps it does not say what it has.
    #[error("{path} is kept by a server that cannot be asked: {reason}")]
    ServerSilent {
        /// The store's root.
        path: String,
        /// The server's address.
        server: String,
        /// What happened instead of an answer.
        reason: String,
    },
    /// Files here must belong to a user that this process cannot act for.
    #[error("{path} belongs to {owner} and may not be written")]
    NotOurs {
        /// The store's root.
        path: String,
        /// Who owns it, or must own what is written there.
        owner: String,
    },
    /// The inventory names an owner whom this machine does not know.
    #[error("files in {path} must belong to {user}, and this machine has no such user")]
    UnknownUser {
        /// The store's root.
        path: String,
        /// The name in the inventory.
        user: String,
    },
    /// The file system is read-only.
    #[error("{path} is on a read-only file system")]
    ReadOnly {
        /// The store's root.
        path: String,
    },
    /// Its program keeps it in another layout by now.
    #[error("{path} is kept in a newer layout, which larder does not write: {evidence} exists")]
    NewerLayout {
        /// The store's root.
        path: String,
        /// What shows it.
        evidence: String,
    },
}

impl Absence {
    /// What a person can do about it.
    pub fn hint(&self) -> String {
        match self {
            Absence::NotMounted { path } => {
                format!("mount {path}, or remove `mounted` from the store in inventory.toml")
            }
            Absence::MarkMissing { path } => format!(
                "attach the disk that held {path}; if it was emptied on purpose, delete larder's facts, which are only a cache"
            ),
            Absence::OtherStore { path, .. } => {
                format!("attach the disk that belongs at {path}, or check the store's path in inventory.toml")
            }
            Absence::Unreadable { path, .. } => {
                format!("run larder as a user who may read {path}, for example with: sudo larder …")
            }
            Absence::ServerSilent { path, server, .. } => format!(
                "start the server, or correct `api` in inventory.toml, which is {server}; or run larder as a user who may read {path}"
            ),
            Absence::NotOurs { owner, .. } => format!("run larder as {owner}, or as root: it then writes for {owner}"),
            Absence::UnknownUser { user, .. } => {
                format!("install the service that {user} belongs to, or change the store's owner in inventory.toml")
            }
            Absence::NewerLayout { .. } => {
                "let the running server install: give the store its address as `api` in inventory.toml, such as http://127.0.0.1:11434; or use `ollama pull`"
                    .to_owned()
            }
            Absence::ReadOnly { path } => format!("mount the file system of {path} for writing: mount -o remount,rw"),
        }
    }
}

/// The mark that larder leaves in a store, so that it recognises the store again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMark {
    /// Chosen at random when the mark was made.
    pub id: String,
    /// The store's name when the mark was made.
    pub name: String,
}

impl StoreMark {
    /// The mark of `store`, if it has one.
    pub fn read(store: &dyn Store) -> io::Result<Option<Self>> {
        let path = Self::path(store);
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if fsio::is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let broken = |error: toml::de::Error| {
            let message = format!("{} is not a store mark: {}", path.display(), error.message());
            io::Error::new(io::ErrorKind::InvalidData, message)
        };
        toml::from_str(&text).map(Some).map_err(broken)
    }

    /// Reads the mark of `store`, or makes one.
    pub fn ensure(store: &dyn Store) -> io::Result<Self> {
        if let Some(mark) = Self::read(store)? {
            return Ok(mark);
        }
        // Two larders that both find no mark must end with the same one.
        let lock = store.staging().join("store.lock");
        let _lock = FileLock::acquire(&lock, store.owner(), Duration::from_secs(30), || ())?;
        if let Some(mark) = Self::read(store)? {
            return Ok(mark);
        }
        let mark = Self { id: random_id(), name: store.name().to_owned() };
        let text = toml::to_string(&mark).map_err(io::Error::other)?;
        let text = format!("# larder knows this store by its id; do not copy this file to another disk.\n{text}");
        let options = WriteOptions { mode: None, owner: store.owner(), staging: None };
        fsio::write_atomic(&Self::path(store), text.as_bytes(), &options)?;
        Ok(mark)
    }

    /// Where the mark of `store` lies.
    pub fn path(store: &dyn Store) -> PathBuf {
        store.staging().join("store.toml")
    }
}

/// 128 bits that no other store has: std seeds each `RandomState` from the system's randomness.
fn random_id() -> String {
    let half = || {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(), half())
}

/// Looks whether the store's root is really there, and, with `to_write`, whether it can be written.
///
/// `known_mark` is the id that larder remembers for this path. A root that does not exist yet, below
/// an existing folder that can be written, is fine.
pub fn look_for_root(
    store: &dyn Store,
    config: &StoreConfig,
    known_mark: Option<&str>,
    to_write: bool,
) -> Result<(), Absence> {
    if let Some(mount) = &config.mounted {
        look_for_mount(mount)?;
    }
    let exists = look_at_root(store.root())?;
    if let Some(known) = known_mark {
        look_for_mark(store, known)?;
    }
    match (to_write, exists) {
        (false, _) => Ok(()),
        (true, true) => look_for_rights(store, store.root()),
        (true, false) => look_for_rights(store, &fsio::existing_ancestor(store.root())),
    }
}

fn unreadable(path: &Path, reason: impl Into<String>) -> Absence {
    Absence::Unreadable { path: path.display().to_string(), reason: reason.into() }
}

fn look_for_mount(path: &Path) -> Result<(), Absence> {
    match is_mount_point(path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Absence::NotMounted { path: path.display().to_string() }),
        Err(error) => Err(unreadable(path, look::reason(&error))),
    }
}

/// Another device than its parent's, or listed by the kernel: bind mounts keep the device.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let path = match fs_err::canonicalize(path) {
        Ok(path) => path,
        Err(error) if fsio::is_absent(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let found = fs_err::metadata(&path)?;
    let Some(parent) = path.parent() else {
        return Ok(true);
    };
    Ok(found.dev() != fs_err::metadata(parent)?.dev() || is_listed_as_mount(&path))
}

fn is_listed_as_mount(path: &Path) -> bool {
    let table = fs_err::read("/proc/self/mountinfo").unwrap_or_default();
    let mount_point = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(unescape_octal);
    table.split(|byte| *byte == b'\n').filter_map(mount_point).any(|listed| listed == path)
}

/// The kernel writes blanks and backslashes of a path as `\040`.
fn unescape_octal(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Whether the root exists; one that cannot be listed is an error, not an empty store.
fn look_at_root(root: &Path) -> Result<bool, Absence> {
    match std::fs::read_dir(root) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match std::fs::read_link(root) {
            Ok(target) => Err(unreadable(root, format!("it is a link to {}, which does not exist", target.display()))),
            Err(_) => Ok(false),
        },
        Err(error) => Err(unreadable(root, look::reason(&error))),
    }
}

fn look_for_mark(store: &dyn Store, known: &str) -> Result<(), Absence> {
    let path = store.root().display().to_string();
    match StoreMark::read(store) {
        Ok(Some(mark)) if mark.id == known => Ok(()),
        Ok(Some(mark)) => Err(Absence::OtherStore { path, expected: known.to_owned(), found: mark.id }),
        Ok(None) => Err(Absence::MarkMissing { path }),
        Err(error) => Err(unreadable(&StoreMark::path(store), look::reason(&error))),
    }
}

fn look_for_layout(store: &dyn Store) -> Result<(), Absence> {
    match store.foreign_layout() {
        Ok(None) => Ok(()),
        Ok(Some(evidence)) => Err(Absence::NewerLayout {
            path: store.root().display().to_string(),
            evidence: evidence.display().to_string(),
        }),
        Err(error) => Err(unreadable(store.root(), look::reason(&error))),
    }
}

fn look_for_rights(store: &dyn Store, dir: &Path) -> Result<(), Absence> {
    let path = store.root().display().to_string();
    let Err(error) = fsio::may_write(dir) else {
        return look_for_layout(store);
    };
    if error.kind() == io::ErrorKind::ReadOnlyFilesystem || fsio::is_read_only(dir) {
        return Err(Absence::ReadOnly { path });
    }
    let declared = store.owner().filter(|owner| !owner.can_be_served());
    match declared.map_or_else(|| Owner::of(dir), Ok) {
        Ok(owner) => Err(Absence::NotOurs { path, owner: owner.name() }),
        Err(error) => Err(unreadable(dir, look::reason(&error))),
    }
}
