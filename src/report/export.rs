//! Files as other tools want to be told of them.

mod cyclonedx;
mod metalink;
mod sums;

pub use cyclonedx::{Described, bom};
pub use metalink::metalink;
pub use sums::sums;

use std::path::{Path, PathBuf};

use crate::export::Entry;

/// How paths are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// From the root of the file system.
    Absolute,
    /// Below the root of their store.
    WithinStore,
    /// Below a folder that has the store's name.
    ByStore,
}

impl Naming {
    fn name(self, entry: &Entry) -> PathBuf {
        match self {
            Naming::Absolute => entry.path.clone(),
            Naming::WithinStore => entry.within.clone(),
            Naming::ByStore => Path::new(&entry.store).join(&entry.within),
        }
    }
}
