//! What waits in the page cache to be written.

use std::os::fd::AsFd;

/// Lets the kernel begin to write the bytes `start..start + len` of `file` to the disk, without waiting for it.
///
/// It promises nothing of what is on the disk afterwards: only a sync does. Where too much is on its way to the disk
/// already, it waits for that; where the system cannot do it, nothing happens.
#[cfg(target_os = "linux")]
pub fn begin_writing(file: impl AsFd, start: u64, len: u64) {
    use std::os::fd::AsRawFd;

    let (Ok(start), Ok(len)) = (libc::off64_t::try_from(start), libc::off64_t::try_from(len)) else { return };
    if len == 0 {
        // To the kernel, that is all the rest of the file.
        return;
    }
    let fd = file.as_fd();
    // SAFETY: the call takes four integers and touches no memory of this process; `fd` is borrowed so long.
    let _ = unsafe { libc::sync_file_range(fd.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Lets the kernel begin to write: not possible here.
#[cfg(not(target_os = "linux"))]
pub fn begin_writing(_file: impl AsFd, _start: u64, _len: u64) {}
