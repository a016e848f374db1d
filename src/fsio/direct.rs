//! Writes that go past the page cache, where the file system is one that gains by it.
//!
//! Content that comes once and is not read again soon costs a copy into the page cache, the bookkeeping of its pages,
//! and whatever they push out. Past the cache the disk takes it from where it is.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{OFlags, fstatfs};
use rustix::io::Errno;

/// What addresses, offsets and lengths must be multiples of: no disk asks for more than a page.
const ALIGNMENT: usize = 4096;

/// Local file systems whose direct writes are what they promise to be. Over a network each write would wait for the
/// server's disk, and others refuse or imitate it.
const EXT4: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;
const F2FS: u64 = 0xF2F5_2010;

/// A file that is written past the page cache.
///
/// Others may write elsewhere in the same file through the cache at the same time; the system keeps both in step as
/// long as they do not touch the same page.
#[derive(Debug)]
pub(super) struct Direct {
    file: fs_err::File,
    was_refused: AtomicBool,
}

impl Direct {
    /// Opens the file at `path`, which exists; `None` where it cannot or should not be written this way.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let mut options = fs_err::OpenOptions::new();
        options.write(true).custom_flags((OFlags::NOFOLLOW | OFlags::DIRECT).bits().cast_signed());
        let file = options.open(path).ok()?;
        let kind = fstatfs(file.file()).ok()?.f_type as u64;
        [EXT4, XFS, F2FS].contains(&kind).then(|| Self { file, was_refused: AtomicBool::new(false) })
    }

    /// Writes as many of `bytes` from the first one on as may go this way, and says how many.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let fits = bytes.as_ptr().align_offset(ALIGNMENT) == 0 && offset.is_multiple_of(ALIGNMENT as u64);
        if !fits || self.was_refused.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let whole = bytes.len() / ALIGNMENT * ALIGNMENT;
        match self.file.file().write_all_at(&bytes[..whole], offset) {
            Ok(()) => Ok(whole),
            // It asks for a larger alignment, or cannot do it for this file.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                self.was_refused.store(true, Ordering::Relaxed);
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsio::{WriteOptions, write_atomic};

    #[test]
    fn what_fits_goes_past_the_cache_and_what_does_not_is_left_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        write_atomic(&path, &[1; 3 * ALIGNMENT], &WriteOptions::default()).unwrap();
        let Some(direct) = Direct::open(&path) else { return };
        let memory = vec![2_u8; 4 * ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let aligned = &memory[start..];
        assert_eq!(direct.write(&aligned[..ALIGNMENT + 9], ALIGNMENT as u64).unwrap(), ALIGNMENT);
        assert_eq!(direct.write(&aligned[..ALIGNMENT], 7).unwrap(), 0);
        assert_eq!(direct.write(&aligned[1..=ALIGNMENT], 0).unwrap(), 0);
        let found = fs_err::read(&path).unwrap();
        assert!(found[ALIGNMENT..2 * ALIGNMENT].iter().all(|byte| *byte == 2));
        assert_eq!(found.iter().filter(|byte| **byte == 2).count(), ALIGNMENT);
    }
}
