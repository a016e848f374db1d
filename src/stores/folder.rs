//! Stub.
use std::path::{Path, PathBuf};

use super::{Observed, Store, StoreError};
use crate::artifact::{Artifact, File, Found, Pattern};
use crate::fsio::{Owner, Proven};
use crate::inventory::Layout;

/// Stub.
pub struct FolderStore {
    name: String,
    root: PathBuf,
    owner: Option<Owner>,
}

impl FolderStore {
    /// Opens the store at `root`; nothing on disk is touched.
    pub fn new(name: String, root: PathBuf, owner: Option<Owner>) -> Self {
        Self { name, root, owner }
    }
}

impl Store for FolderStore {
    fn name(&self) -> &str {
        &self.name
    }
    fn layout(&self) -> Layout {
        todo!()
    }
    fn root(&self) -> &Path {
        &self.root
    }
    fn owner(&self) -> Option<Owner> {
        self.owner
    }
    fn staging(&self) -> PathBuf {
        todo!()
    }
    fn observe(&self, _artifact: &Artifact) -> Observed {
        todo!()
    }
    fn content_path(&self, _artifact: &Artifact, _file: &File) -> PathBuf {
        todo!()
    }
    fn foreign_locks(&self, _artifact: &Artifact, _file: &File) -> Vec<PathBuf> {
        todo!()
    }
    fn place(&self, _artifact: &Artifact, _file: &File, _content: Proven) -> Result<PathBuf, StoreError> {
        todo!()
    }
    fn publish(&self, _artifact: &Artifact) -> Result<(), StoreError> {
        todo!()
    }
    fn matching(&self, _pattern: &Pattern) -> std::io::Result<Vec<Found>> {
        todo!()
    }
}
