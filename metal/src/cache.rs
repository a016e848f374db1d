//! What the page cache holds of a file.

use std::os::fd::AsFd;

/// How many pages of the bytes `start..start + len` of `file` are in the page cache.
///
/// `None` where the kernel does not tell: before Linux 6.5, on other systems, for files of others that
/// may not be written, and on some file systems.
#[cfg(target_os = "linux")]
pub fn cached_pages(file: impl AsFd, start: u64, len: u64) -> Option<u64> {
    use std::os::fd::AsRawFd;

    /// `cachestat(2)` has the same number on all architectures.
    const CACHESTAT: libc::c_long = 451;

    /// `struct cachestat_range`.
    #[repr(C)]
    struct Range {
        start: u64,
        len: u64,
    }

    /// `struct cachestat`: counts of pages.
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }

    if len == 0 {
        return Some(0);
    }
    let range = Range { start, len };
    let mut counts = Counts::default();
    let fd = file.as_fd();
    let flags: libc::c_uint = 0;
    // SAFETY: the kernel reads one `Range` and writes at most one `Counts`; both are laid out as it
    // declares them, live on this stack until the call returns, and `fd` is borrowed so long.
    let result = unsafe { libc::syscall(CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut counts, flags) };
    (result == 0).then_some(counts.cached)
}

/// How many pages of the bytes `start..start + len` of `file` are in the page cache: nobody knows here.
#[cfg(not(target_os = "linux"))]
pub fn cached_pages(_file: impl AsFd, _start: u64, _len: u64) -> Option<u64> {
    None
}
