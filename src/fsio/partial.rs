//! Unfinished content that grows from its first byte on: appended to, proven, then renamed into place.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::journal::{Journal, remove_journal};
use super::{Owner, create_dir_all, give_to, open_own, remove_file};
use crate::artifact::Found;
use crate::digest::{ChunkDigests, ContentHasher, DigestMismatch, Digests};

/// How much is read or copied at a time.
const CHUNK: usize = 1 << 20;

/// Content that is being written on the file system of its target.
///
/// The file is named by what it will contain, so a later run continues where this one stopped.
/// Hold the [`super::FileLock`] of the same key while writing.
#[derive(Debug)]
pub struct Partial {
    file: fs_err::File,
    path: PathBuf,
    len: u64,
    /// Has taken exactly the bytes in the file; gone once the partial was measured.
    hasher: Option<ContentHasher>,
}

/// Why content is not what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The length is wrong.
    #[error("{actual} bytes arrived, {expected} were expected")]
    Length {
        /// Wanted.
        expected: u64,
        /// Got.
        actual: u64,
    },
    /// A digest is wrong.
    #[error("the content is wrong")]
    Content(#[source] DigestMismatch),
    /// The content could not be read back.
    #[error("the content cannot be read back")]
    Io(#[from] io::Error),
}

/// A partial that could not be proven, with the reason; it is still on disk as it was.
#[derive(Debug)]
pub struct Unproven {
    /// Why.
    pub error: ProofError,
    /// Finished with, except for [`Partial::restart`] and [`Partial::discard`].
    pub partial: Partial,
}

impl Partial {
    /// The file that holds unfinished content under `key` in `staging`.
    pub fn path_of(staging: &Path, key: &str) -> PathBuf {
        staging.join(format!("{key}.partial"))
    }

    /// Opens, or creates, the partial for `key`, and hashes what it already holds with `hasher`.
    ///
    /// Parts that an [`super::Assembly`] left are thrown away: they do not begin at the first byte.
    pub fn open(staging: &Path, key: &str, hasher: ContentHasher, owner: Option<Owner>) -> io::Result<Self> {
        Self::open_while(staging, key, hasher, owner, &mut |_| true)
    }

    /// The same, as long as `go_on` answers yes, which is asked with the bytes that were hashed since it was last asked.
    ///
    /// Fails with [`io::ErrorKind::Interrupted`] where it does not.
    pub fn open_while(
        staging: &Path,
        key: &str,
        hasher: ContentHasher,
        owner: Option<Owner>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Self> {
        create_dir_all(staging, owner)?;
        let path = Self::path_of(staging, key);
        let mut file = open_own(&path)?;
        give_to(&path, owner)?;
        let mut state = hasher;
        // Most partials are new, and small files are many: no buffer is made to read nothing.
        let len = match file.metadata()?.len() {
            0 => 0,
            _ if fs_err::symlink_metadata(Journal::path_of(staging, key)).is_ok() => {
                file.set_len(0)?;
                remove_journal(&Journal::path_of(staging, key))?;
                0
            }
            _ => hash_into(&mut file, &mut state, go_on)?,
        };
        Ok(Self { file, path, len, hasher: Some(state) })
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends and hashes the next bytes.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        Ok(())
    }

    /// Throws everything away and starts again with `hasher`.
    pub fn restart(&mut self, hasher: ContentHasher) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.len = 0;
        self.hasher = Some(hasher);
        Ok(())
    }

    /// Replaces the content by that of `from`, sharing blocks where the file system can, and hashes it.
    ///
    /// Returns whether blocks are shared.
    pub fn fill_from(&mut self, from: &Path, hasher: ContentHasher) -> io::Result<bool> {
        self.restart(hasher.clone())?;
        self.continue_from(from, hasher, &mut |_| true)
    }

    /// Goes on with the content of `from` where the partial ends, or, where the file system can, shares all its
    /// blocks, which are then hashed by `hasher`.
    ///
    /// `go_on` is asked after each piece with the new bytes; where it answers no, this fails with
    /// [`io::ErrorKind::Interrupted`], and what came is kept. Returns whether blocks are shared.
    pub fn continue_from(
        &mut self,
        from: &Path,
        hasher: ContentHasher,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<bool> {
        let mut source = fs_err::File::open(from)?;
        let shared = rustix::fs::ioctl_ficlone(self.file.file(), source.file()).is_ok();
        if shared {
            self.file.seek(SeekFrom::Start(0))?;
            let mut state = hasher;
            self.len = hash_into(&mut self.file, &mut state, go_on)?;
            self.hasher = Some(state);
            return Ok(true);
        }
        source.seek(SeekFrom::Start(self.len))?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match source.read(&mut buffer)? {
                0 => return Ok(false),
                n => {
                    self.append(&buffer[..n])?;
                    if !go_on(n as u64) {
                        return Err(stopped());
                    }
                }
            }
        }
    }

    /// Compares length and digests, and makes the content durable.
    ///
    /// With `expected` empty, the measured digests are all that is known afterwards. On error the
    /// partial stays on disk as it is; call [`Partial::discard`] when it can be of no use.
    pub fn prove(mut self, size: Option<u64>, expected: &Digests) -> Result<Proven, Box<Unproven>> {
        match self.measure(size, expected) {
            Ok((digests, chunks)) => Ok(Proven { path: self.path, journal: None, size: self.len, digests, chunks }),
            Err(error) => Err(Box::new(Unproven { error, partial: self })),
        }
    }

    fn measure(
        &mut self,
        size: Option<u64>,
        expected: &Digests,
    ) -> Result<(Digests, Option<ChunkDigests>), ProofError> {
        if let Some(expected) = size.filter(|expected| *expected != self.len) {
            return Err(ProofError::Length { expected, actual: self.len });
        }
        let hasher = self.hasher.take().ok_or_else(|| io::Error::other("the content was hashed already"))?;
        let (digests, chunks) = hasher.finish_with_chunks();
        expected.check(&digests).map_err(ProofError::Content)?;
        self.file.sync_all()?;
        Ok((digests, chunks))
    }

    /// Removes the unfinished content.
    pub fn discard(self) -> io::Result<()> {
        remove_file(&self.path)
    }
}

/// Content whose length and digests were compared and which is on the disk, but under no name of its own yet.
#[derive(Debug)]
#[must_use = "proven content is of use only once it is persisted"]
pub struct Proven {
    pub(super) path: PathBuf,
    /// Of no use any more.
    pub(super) journal: Option<PathBuf>,
    pub(super) size: u64,
    pub(super) digests: Digests,
    pub(super) chunks: Option<ChunkDigests>,
}

impl Proven {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digests as measured.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }

    /// The digests of its chunks, where they were taken.
    pub fn take_chunks(&mut self) -> Option<ChunkDigests> {
        self.chunks.take()
    }

    /// The file as it is now, under its name in our own folder.
    pub fn found(&self) -> io::Result<Found> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("{} is gone", self.path.display()));
        super::find_itself(&self.path)?.ok_or_else(gone)
    }

    /// Gives the content, which is on the disk already, its final name, replacing what is there.
    ///
    /// `target` must lie on the partial's file system. Missing folders are created for `owner`. A power
    /// cut may undo the renaming, never harm the content, until [`super::sync_dir`] was called for the
    /// target's folder: many files of one folder need that only once.
    pub fn persist(self, target: &Path, mode: u32, owner: Option<Owner>) -> io::Result<PathBuf> {
        create_dir_all(target.parent().unwrap_or(Path::new(".")), owner)?;
        fs_err::set_permissions(&self.path, std::fs::Permissions::from_mode(mode))?;
        give_to(&self.path, owner)?;
        // Killed between the two, the next run finds whole content without a journal, and hashes it.
        self.journal.as_deref().map_or(Ok(()), remove_journal)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "fsio is where files are renamed; the caller syncs many at once"
        )]
        fs_err::rename(&self.path, target)?;
        Ok(target.to_owned())
    }
}

/// Reads a whole file through `hasher`; returns what was measured and the length.
pub fn hash_file(path: &Path, hasher: ContentHasher) -> io::Result<(Digests, u64)> {
    hash_file_while(path, hasher, &mut |_| true)
}

/// The same, as long as `go_on` answers yes; fails with [`io::ErrorKind::Interrupted`] where it does not.
pub fn hash_file_while(
    path: &Path,
    mut hasher: ContentHasher,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> io::Result<(Digests, u64)> {
    let mut file = fs_err::File::open(path)?;
    let len = hash_into(&mut file, &mut hasher, go_on)?;
    Ok((hasher.finish(), len))
}

fn hash_into(
    file: &mut fs_err::File,
    hasher: &mut ContentHasher,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut len = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(len),
            n => {
                hasher.update(&buffer[..n]);
                len += n as u64;
                if !go_on(n as u64) {
                    return Err(stopped());
                }
            }
        }
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "it was stopped")
}

/// Copies `from` into the partial of `key`, proves it, and returns it ready to be persisted.
pub fn reuse_copy(
    staging: &Path,
    key: &str,
    from: &Path,
    expected: (Option<u64>, &Digests),
    owner: Option<Owner>,
) -> Result<Proven, ProofError> {
    let (size, digests) = expected;
    let hasher = || ContentHasher::to_compare(digests, size);
    let mut partial = Partial::open(staging, key, hasher(), owner)?;
    partial.fill_from(from, hasher())?;
    partial.prove(size, digests).map_err(|unproven| {
        // A copy of wrong content is of no use to anybody; the original stays where it is.
        let _ = unproven.partial.discard();
        unproven.error
    })
}
