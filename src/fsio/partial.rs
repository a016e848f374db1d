//! Unfinished content that grows from its first byte on: appended to, proven, then renamed into place.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use larder_metal::begin_writing;

use super::journal::{Journal, remove_journal};
use super::{Owner, create_dir_all, give_to, is_absent, open_own, remove_file};
use crate::artifact::Found;
use crate::digest::{ChunkDigests, ContentHasher, DigestMismatch, Digests};

/// How much is read or copied at a time.
const CHUNK: usize = 1 << 20;
/// The kernel begins to write after so much of a copy. Otherwise a slow drive would have gigabytes to write at the end,
/// in a sync that no signal ends.
const WRITE_EVERY: u64 = 8 << 20;

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
    /// What it was to be copied from could not be read.
    #[error("the original cannot be read")]
    Original(#[source] io::Error),
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

    /// Removes what an earlier run left under `key` in `staging`, where there is anything.
    pub fn forget(staging: &Path, key: &str) -> io::Result<()> {
        for path in [Self::path_of(staging, key), Journal::path_of(staging, key)] {
            match remove_file(&path) {
                Err(error) if !is_absent(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens, or creates, the partial for `key`, and hashes what it already holds with `hasher`.
    ///
    /// Parts that an [`super::Assembly`] left are thrown away: they do not begin at the first byte.
    pub fn open(staging: &Path, key: &str, hasher: ContentHasher, owner: Option<Owner>) -> io::Result<Self> {
        Self::open_by(staging, key, hasher, owner, &mut |_| Ok(()))
    }

    /// The same, asking `pass` before each piece that is hashed, which moves no bytes.
    fn open_by(
        staging: &Path,
        key: &str,
        hasher: ContentHasher,
        owner: Option<Owner>,
        pass: Pass<'_>,
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
            _ => hash_pieces(&mut file, &mut state, &mut |_| pass(0))?,
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

    /// Goes on with the content of `from` behind what is here already; where nothing is, blocks are shared with it
    /// if the file system can.
    ///
    /// `pass` is asked before each piece with its length, and may wait, or stop with an error. Returns whether
    /// blocks are shared. What fails on the side of `from` is [`ProofError::Original`].
    fn fill_from(&mut self, from: &Path, pass: Pass<'_>) -> Result<bool, ProofError> {
        let mut source = fs_err::File::open(from).map_err(ProofError::Original)?;
        if self.is_empty() && rustix::fs::ioctl_ficlone(self.file.file(), source.file()).is_ok() {
            let mut state = self.hasher.take().unwrap_or_default();
            // The blocks are the original's.
            self.len = hash_pieces(&mut self.file, &mut state, &mut |_| pass(0)).map_err(ProofError::Original)?;
            self.hasher = Some(state);
            return Ok(true);
        }
        source.seek(SeekFrom::Start(self.len)).map_err(ProofError::Original)?;
        let (mut buffer, mut begun) = (vec![0; CHUNK], self.len);
        loop {
            match source.read(&mut buffer).map_err(ProofError::Original)? {
                0 => return Ok(false),
                n => {
                    pass(n as u64)?;
                    self.append(&buffer[..n])?;
                }
            }
            if self.len - begun >= WRITE_EVERY {
                begin_writing(self.file.file(), begun, self.len - begun);
                begun = self.len;
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
    hash_file_by(path, hasher, &mut |_| Ok(()))
}

/// The same, asking `pass` before each piece.
pub fn hash_file_by(path: &Path, mut hasher: ContentHasher, pass: Pass<'_>) -> io::Result<(Digests, u64)> {
    let mut file = fs_err::File::open(path)?;
    let len = hash_pieces(&mut file, &mut hasher, pass)?;
    Ok((hasher.finish(), len))
}

fn hash_pieces(file: &mut fs_err::File, hasher: &mut ContentHasher, pass: Pass<'_>) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut len = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(len),
            n => {
                pass(n as u64)?;
                hasher.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
}

/// Asked before each piece with its length; may wait, or stop with an error.
pub type Pass<'a> = &'a mut dyn FnMut(u64) -> io::Result<()>;

/// A file of this machine whose content is to lie in another place too.
#[derive(Debug, Clone, Copy)]
pub struct Copying<'a> {
    /// The file.
    pub from: &'a Path,
    /// Our own folder on the file system of the other place.
    pub staging: &'a Path,
    /// What the unfinished copy is called there; hold the [`super::FileLock`] of it.
    pub key: &'a str,
    /// Who owns the copy.
    pub owner: Option<Owner>,
    /// The length it must have, where that is known.
    pub size: Option<u64>,
    /// The digests it must have.
    pub digests: &'a Digests,
}

impl Copying<'_> {
    /// Bytes that an earlier, stopped copy left.
    pub fn resumed(&self) -> u64 {
        fs_err::metadata(Partial::path_of(self.staging, self.key)).map_or(0, |partial| partial.len())
    }

    /// Copies, behind what a stopped run left, and proves: ready to be persisted.
    ///
    /// Where what was left does not fit, all of it is copied again. After an error of `pass` what was copied stays; a
    /// copy of wrong content is removed, and the original stays where it is.
    pub fn copy(&self, hasher: impl Fn() -> ContentHasher, pass: Pass<'_>) -> Result<Proven, ProofError> {
        let mut partial = Partial::open_by(self.staging, self.key, hasher(), self.owner, pass)?;
        let mut is_resumed = !partial.is_empty();
        loop {
            partial.fill_from(self.from, pass)?;
            let unproven = match partial.prove(self.size, self.digests) {
                Ok(proven) => return Ok(proven),
                Err(unproven) => *unproven,
            };
            partial = unproven.partial;
            match unproven.error {
                error @ (ProofError::Io(_) | ProofError::Original(_)) => return Err(error),
                error if !is_resumed => {
                    // A copy of wrong content is of no use to anybody.
                    let _ = partial.discard();
                    return Err(error);
                }
                _ => partial.restart(hasher())?,
            }
            is_resumed = false;
        }
    }
}
