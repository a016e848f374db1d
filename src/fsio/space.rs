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
    /// Where it is mounted, as far as the folders above tell.
    pub path: PathBuf,
    /// Bytes that this user may still write; [`Space::UNKNOWN`] where the file system does not say.
    pub bytes: u64,
    /// Files that may still be created; `None` where the file system has no fixed number.
    pub inodes: Option<u64>,
}

impl Space {
    /// The room of a file system that does not tell its size, as some by FUSE do not: only writing shows whether it is full.
    pub const UNKNOWN: u64 = u64::MAX;
}

/// Asks the file system that holds, or will hold, `path`.
pub fn free_space(path: &Path) -> io::Result<Space> {
    let path = existing_ancestor(path);
    let device = fs_err::metadata(&path)?.dev();
    let path = mount_point(&path, device);
    let numbers = rustix::fs::statvfs(&path).map_err(|error| {
        io::Error::new(
            io::Error::from(error).kind(),
            format!("cannot ask for the free space of {}: {error}", path.display()),
        )
    })?;
    Ok(Space {
        device,
        path,
        bytes: match numbers.f_blocks {
            0 => Space::UNKNOWN,
            _ => numbers.f_bavail.saturating_mul(numbers.f_frsize),
        },
        // btrfs and others report no inodes at all, which does not mean that none is left.
        inodes: (numbers.f_files > 0).then_some(numbers.f_favail),
    })
}

/// The longest file that the file system of `path` can hold, where that is less than models need.
///
/// Known before the first byte: FAT itself says no only once 4 GiB of a file are written.
pub fn longest_file(path: &Path) -> Option<u64> {
    let numbers = rustix::fs::statfs(existing_ancestor(path).as_path()).ok()?;
    longest_of(numbers.f_type as u64)
}

/// The same of a kind of file system, by its number.
fn longest_of(kind: u64) -> Option<u64> {
    /// What Linux calls every kind of FAT but exFAT.
    const FAT: u64 = 0x4d44;
    (kind == FAT).then_some(u64::from(u32::MAX))
}

/// The highest folder above `path` that lies on the same file system.
fn mount_point(path: &Path, device: u64) -> PathBuf {
    let absolute = fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let same = |ancestor: &&Path| fs_err::metadata(ancestor).is_ok_and(|metadata| metadata.dev() == device);
    absolute.ancestors().take_while(same).last().unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_tells_no_size_is_not_full() {
        assert_eq!(free_space(Path::new("/proc")).unwrap().bytes, Space::UNKNOWN);
        assert_ne!(free_space(tempfile::tempdir().unwrap().path()).unwrap().bytes, Space::UNKNOWN);
    }

    #[test]
    fn fat_holds_four_gibibytes_less_one_byte() {
        let (fat, exfat, ext4) = (0x4d44, 0x2011_bab0, 0xef53);
        assert_eq!([fat, exfat, ext4].map(longest_of), [Some((4 << 30) - 1), None, None]);
        assert_eq!(longest_file(tempfile::tempdir().unwrap().path()), None);
    }
}
