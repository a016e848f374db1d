//! Whether a store is really there: an unmounted drive must never look like an empty store.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Store;
use crate::inventory::StoreConfig;

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
    /// The root exists and may not be read.
    #[error("{path} exists, but may not be read: {reason}")]
    Unreadable {
        /// The store's root.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// Files here must belong to a user that this process cannot act for.
    #[error("{path} belongs to another user ({owner}), and may not be written")]
    NotOurs {
        /// The store's root.
        path: String,
        /// Who owns it.
        owner: String,
    },
    /// The file system is read-only.
    #[error("{path} is on a read-only file system")]
    ReadOnly {
        /// The store's root.
        path: String,
    },
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
    pub fn read(_store: &dyn Store) -> std::io::Result<Option<Self>> {
        todo!()
    }

    /// Reads the mark of `store`, or makes one.
    pub fn ensure(_store: &dyn Store) -> std::io::Result<Self> {
        todo!()
    }

    /// Where the mark of `store` lies.
    pub fn path(_store: &dyn Store) -> PathBuf {
        todo!()
    }
}

/// Looks whether the store's root is really there, and, with `to_write`, whether it can be written.
///
/// `known_mark` is the id that larder remembers for this path. A root that does not exist yet, below
/// an existing folder that can be written, is fine.
pub fn look_for_root(
    _store: &dyn Store,
    _config: &StoreConfig,
    _known_mark: Option<&str>,
    _to_write: bool,
) -> Result<(), Absence> {
    todo!()
}

impl Absence {
    /// What a sysadmin can do about it.
    pub fn hint(&self) -> Option<String> {
        None
    }
}
