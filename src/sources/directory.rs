//! Stub.
use async_trait::async_trait;

use super::{Body, ByteRange, Listing, Source, SourceError};
use crate::artifact::{Reference, Remote};

/// Stub.
pub struct DirectorySource {}

#[async_trait]
impl Source for DirectorySource {
    async fn list(&self, _reference: &Reference) -> Result<Listing, SourceError> {
        todo!()
    }
    async fn check(&self, _remote: &Remote) -> Result<(), SourceError> {
        todo!()
    }
    async fn open(&self, _remote: &Remote, _range: ByteRange) -> Result<Body, SourceError> {
        todo!()
    }
}

/// Stub.
pub fn find_on_drive(
    _drive: &std::path::Path,
    _artifact: &crate::artifact::Artifact,
    _file: &crate::artifact::File,
) -> Option<std::path::PathBuf> {
    None
}
