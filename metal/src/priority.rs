//! The disk's scheduling class.

use std::io;

/// Lets everybody else's requests to the disk go first, for this thread and those it starts.
///
/// It counts where the disk's scheduler knows classes (bfq, mq-deadline).
#[cfg(target_os = "linux")]
pub fn read_when_idle() -> io::Result<()> {
    const THIS_THREAD: (libc::c_int, libc::c_int) = (1, 0);
    const IDLE_CLASS: libc::c_int = 3 << 13;
    let (which, who) = THIS_THREAD;
    // SAFETY: the call takes three integers and touches no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, which, who, IDLE_CLASS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets everybody else's requests to the disk go first: not possible here.
#[cfg(not(target_os = "linux"))]
pub fn read_when_idle() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
