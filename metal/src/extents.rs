//! Which ranges of a file have room on the disk that nobody has written yet.

use std::fs::File;
use std::ops::Range;

/// The parts of `file` that were allocated beforehand and never written, in order; `None` where its file system does not
/// tell (`FIEMAP`). At most `most` of them are told.
///
/// What the page cache has of the file and the disk has not yet is written first, so that it does not count.
pub fn unwritten(file: &File, most: usize) -> Option<Vec<Range<u64>>> {
    imp::unwritten(file, most)
}

#[cfg(target_os = "linux")]
mod imp {
    use std::fs::File;
    use std::ops::Range;
    use std::os::fd::AsRawFd;

    /// `_IOWR('f', 11, struct fiemap)`: the same number on x86-64 and ARM.
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    const FLAG_SYNC: u32 = 1;
    const LAST: u32 = 1;
    const UNWRITTEN: u32 = 0x800;
    /// Extents of one answer.
    const BATCH: usize = 64;

    /// `struct fiemap_extent`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved_too: [u32; 3],
    }

    /// `struct fiemap`, with room for its answer.
    #[repr(C)]
    struct Question {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [Extent; BATCH],
    }

    pub(super) fn unwritten(file: &File, most: usize) -> Option<Vec<Range<u64>>> {
        let mut found = Vec::new();
        let mut start = 0;
        while found.len() < most {
            let extents = ask(file, start)?;
            let Some(last) = extents.last().copied() else { break };
            let unwritten = extents.iter().filter(|extent| extent.flags & UNWRITTEN != 0);
            found.extend(unwritten.map(|extent| extent.logical..extent.logical.saturating_add(extent.length)));
            let next = last.logical.saturating_add(last.length);
            if last.flags & LAST != 0 || next <= start {
                break;
            }
            start = next;
        }
        found.truncate(most);
        Some(found)
    }

    /// The extents from byte `start` on, as many as fit into one answer.
    fn ask(file: &File, start: u64) -> Option<Vec<Extent>> {
        let mut question = Question {
            start,
            length: u64::MAX - start,
            flags: FLAG_SYNC,
            mapped: 0,
            count: BATCH as u32,
            reserved: 0,
            extents: [Extent::default(); BATCH],
        };
        // SAFETY: the number says that a `struct fiemap` is read and written, which is how `question` begins; the kernel
        // writes at most `count` extents behind it, which is how many there is room for; the file is open meanwhile.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut question) };
        let mapped = (question.mapped as usize).min(BATCH);
        (answer == 0).then(|| question.extents[..mapped].to_vec())
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::fs::File;
    use std::ops::Range;

    pub(super) fn unwritten(_: &File, _: usize) -> Option<Vec<Range<u64>>> {
        None
    }
}
