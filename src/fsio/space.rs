//! Room on file systems.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::existing_ancestor;

/// What is free on the file system that holds a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Device number: equal for paths on one file system.
    pub device: u64,
    /// The path that was asked for, or its closest existing ancestor.
    pub path: PathBuf,
    /// Bytes that this user may still write.
    pub bytes: u64,
    /// Files that may still be created; `None` where the file system has no fixed number.
    pub inodes: Option<u64>,
}

/// Asks the file system that holds, or will hold, `path`.
pub fn free_space(path: &Path) -> io::Result<Space> {
    let path = existing_ancestor(path);
    let device = fs_err::metadata(&path)?.dev();
    let numbers = rustix::fs::statvfs(&path).map_err(|error| {
        io::Error::new(
            io::Error::from(error).kind(),
            format!("cannot ask for the free space of {}: {error}", path.display()),
        )
    })?;
    Ok(Space {
        device,
        path,
        bytes: numbers.f_bavail.saturating_mul(numbers.f_frsize),
        // btrfs and others report no inodes at all, which does not mean that none is left.
        inodes: (numbers.f_files > 0).then_some(numbers.f_favail),
    })
}
