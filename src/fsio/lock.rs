//! Advisory locks between processes, compatible with `flock(2)` as other programs use it.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Owner, create_dir_all, open_own};

/// An exclusive lock on a file, released when dropped or when the process dies.
///
/// The lock file is created if missing, never truncated, and left in place: Hugging Face's
/// `filelock` does the same, so both keep each other out.
#[derive(Debug)]
pub struct FileLock {
    _file: fs_err::File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock if nobody holds it.
    pub fn try_acquire(path: &Path, owner: Option<Owner>) -> io::Result<Option<Self>> {
        if let Some(parent) = path.parent() {
            create_dir_all(parent, owner)?;
        }
        let is_new = !path.exists();
        let file = open_own(path)?;
        if let (true, Some(owner)) = (is_new, owner) {
            owner.apply(path)?;
        }
        match file.file().try_lock() {
            Ok(()) => Ok(Some(Self { _file: file, path: path.to_owned() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(io::Error::new(error.kind(), format!("cannot lock {}: {error}", path.display())))
            }
        }
    }

    /// Waits for the lock, however long the run is to go on: see [`FileLock::acquire_unless`].
    pub fn acquire(path: &Path, owner: Option<Owner>, patience: Duration, waiting: impl FnOnce()) -> io::Result<Self> {
        Self::acquire_unless(path, owner, patience, waiting, || false)
    }

    /// Waits for the lock; `waiting` is called once if somebody else holds it.
    ///
    /// Gives up with `TimedOut` after `patience`, and with `Interrupted` once `stopped` says so.
    pub fn acquire_unless(
        path: &Path,
        owner: Option<Owner>,
        patience: Duration,
        waiting: impl FnOnce(),
        stopped: impl Fn() -> bool,
    ) -> io::Result<Self> {
        let begin = Instant::now();
        if let Some(lock) = Self::try_acquire(path, owner)? {
            return Ok(lock);
        }
        waiting();
        loop {
            std::thread::sleep(Duration::from_millis(50));
            if let Some(lock) = Self::try_acquire(path, owner)? {
                return Ok(lock);
            }
            if stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if begin.elapsed() > patience {
                let message = format!("{} is still locked by another program after {patience:?}", path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        }
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
