//! Writing into a file that other programs read: only over parts that are known to be wrong.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_OMIT, futimens};

use super::{Owner, WriteOptions, found, remove_file, write_atomic};
use crate::artifact::Found;

/// A file of which parts are overwritten in place.
///
/// What is overwritten is on the disk beside it first, so that everything can be taken back. A kill leaves each part
/// as it was, as it must be, or torn: in each case a part that was wrong before, which the next verification names.
/// The time of change stays: the file becomes what it was at that time.
#[derive(Debug)]
pub struct Overwrite {
    file: fs_err::File,
    found: Found,
    modified: Timespec,
    aside: PathBuf,
    key: String,
    owner: Option<Owner>,
    saved: Vec<(u64, PathBuf)>,
}

impl Overwrite {
    /// Opens the content at `expected`'s path, links followed; `None` where it is not that very file any more.
    ///
    /// What is overwritten is kept in the folder `aside`, below names that begin with `key`.
    pub fn open(expected: &Found, aside: &Path, key: &str, owner: Option<Owner>) -> io::Result<Option<Self>> {
        // The last part of the name must not be exchanged for a link between looking and opening.
        let path = fs_err::canonicalize(&expected.path)?;
        let mut options = fs_err::OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&path)?;
        let stat = rustix::fs::fstat(&file)?;
        let now = found(expected.path.clone(), &stat);
        let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
        let is_same = now == *expected;
        let (aside, key, saved) = (aside.to_owned(), key.to_owned(), Vec::new());
        Ok(is_same.then(|| Self { file, found: now, modified, aside, key, owner, saved }))
    }

    /// Replaces the bytes from `offset` on by `bytes`, durably; the length never changes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.found.size);
        if end.is_none() {
            let what = format!("{} ends before byte {offset} and {} more", self.found.path.display(), bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.save(offset, bytes.len())?;
        self.file.file().write_all_at(bytes, offset)?;
        self.file.sync_data()?;
        self.keep_time()
    }

    fn save(&mut self, offset: u64, len: usize) -> io::Result<()> {
        let backup = self.aside.join(format!("{}.{offset}", self.key));
        // What an earlier run saved and did not finish with is older, and so the better one.
        if !backup.exists() {
            let mut old = vec![0; len];
            if self.file.file().read_exact_at(&mut old, offset).is_err() {
                // What cannot be read can neither be kept nor lost.
                return Ok(());
            }
            write_atomic(&backup, &old, &WriteOptions { owner: self.owner, ..WriteOptions::default() })?;
        }
        self.saved.push((offset, backup));
        Ok(())
    }

    fn keep_time(&self) -> io::Result<()> {
        let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access, last_modification: self.modified };
        Ok(futimens(self.file.file(), &times)?)
    }

    /// Puts everything back as it was.
    pub fn undo(self) -> io::Result<()> {
        for (offset, backup) in &self.saved {
            self.file.file().write_all_at(&fs_err::read(backup)?, *offset)?;
        }
        self.file.sync_data()?;
        self.keep_time()?;
        self.saved.iter().try_for_each(|(_, backup)| remove_file(backup))
    }

    /// Forgets what was overwritten, in earlier runs too: the whole is proven to be right. Returns what the file
    /// is like now.
    pub fn finish(self) -> io::Result<Found> {
        if self.aside.is_dir() {
            for entry in fs_err::read_dir(&self.aside)? {
                let entry = entry?;
                // Also what a kill left of saving: the key is a digest, so no other name has it in it.
                if entry.file_name().to_string_lossy().contains(&self.key) {
                    remove_file(&entry.path())?;
                }
            }
        }
        Ok(found(self.found.path.clone(), &rustix::fs::fstat(&self.file)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(content: &[u8]) -> (tempfile::TempDir, PathBuf, Found) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        write_atomic(&path, content, &WriteOptions::default()).unwrap();
        let seen = crate::fsio::find(&path).unwrap().unwrap();
        (dir, path, seen)
    }

    #[test]
    fn parts_are_replaced_and_can_be_taken_back() {
        let (dir, path, seen) = lab(b"one bad three");
        let aside = dir.path().join("aside");
        let mut file = Overwrite::open(&seen, &aside, "key", None).unwrap().unwrap();
        file.write(4, b"two").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"one two three");
        assert_eq!(fs_err::read(aside.join("key.4")).unwrap(), b"bad", "what was there is kept first");
        assert!(file.write(12, b"too long").is_err());
        file.undo().unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"one bad three");
        let mut file = Overwrite::open(&seen, &aside, "key", None).unwrap().unwrap();
        file.write(4, b"two").unwrap();
        assert_eq!(file.finish().unwrap(), seen, "the same file of the same time");
        assert!(fs_err::read_dir(&aside).unwrap().next().is_none());
    }

    #[test]
    fn a_file_that_changed_is_not_touched() {
        let (dir, path, seen) = lab(b"one bad three");
        write_atomic(&path, b"somebody's own", &WriteOptions::default()).unwrap();
        assert!(Overwrite::open(&seen, dir.path(), "key", None).unwrap().is_none());
    }
}
