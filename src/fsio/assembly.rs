//! Unfinished content that is put together from parts in any order: written anywhere, journaled by chunks,
//! hashed from its first byte on as far as it reaches, proven, then renamed into place.
//!
//! Why a crash costs time and never truth: nothing in the order of writes is relied upon. A journal may
//! speak of chunks that a power cut took back, and chunks may be there that it does not speak of. So what
//! an earlier run left counts only after it was read again and has the digest that was taken on arrival,
//! which costs nothing, because the SHA-256 must read it anyway. Syncing the content before the journal,
//! and both of them often, only keeps small what must be fetched again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fs_err::os::unix::fs::FileExt as _;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;

use super::direct::Direct;
use super::journal::{Journal, Told};
use super::partial::{Partial, ProofError, Proven};
use super::{Owner, allocated, create_dir_all, free_space, give_to, open_own};
use crate::digest::{Blake3, CHUNK_LEN, ChunkDigests, ContentHasher, Digests, chunk_count, chunk_range};

/// How much is read at a time where nothing must be compared first.
const READ: u64 = 1 << 20;

/// Content of known length that is being put together on the file system of its target.
///
/// Its room is reserved when it is opened. Hold the [`super::FileLock`] of the same key meanwhile.
#[derive(Debug)]
pub struct Assembly {
    file: fs_err::File,
    path: PathBuf,
    size: u64,
    /// Once more, past the page cache.
    direct: Option<Direct>,
    notes: Mutex<Notes>,
    /// The journal once more, so that syncing it holds up nobody who writes there.
    journal: fs_err::File,
}

/// What earlier runs left of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    /// Its parts, in order: first byte and first byte after it.
    pub parts: Vec<std::ops::Range<u64>>,
}

impl Earlier {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
    }
}

#[derive(Debug)]
struct Notes {
    journal: Journal,
    chunks: Vec<Chunk>,
}

/// What is known of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// Not all of it is here.
    Missing,
    /// An earlier run left it, and did not say what it is.
    Unknown,
    /// An earlier run left it, and said what it is.
    Claimed(Blake3),
    /// Written or read in this run.
    Seen(Blake3),
}

impl Chunk {
    fn seen(&self) -> Option<Blake3> {
        match self {
            Chunk::Seen(digest) => Some(*digest),
            _ => None,
        }
    }
}

/// A chunk that an earlier run left is not what its journal said; it counts as missing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfit {
    /// Index of the chunk.
    pub chunk: u64,
}

impl Assembly {
    /// Opens, or creates, the content of `size` bytes that `key` names, and says what is here already.
    ///
    /// Fails with `StorageFull` where there is no room for all of it. What cannot be continued is emptied.
    pub fn open(staging: &Path, key: &str, size: u64, owner: Option<Owner>) -> io::Result<(Self, Earlier)> {
        create_dir_all(staging, owner)?;
        // The journal first: content that stands alone was left by a `Partial`, from its first byte on.
        let (journal, told) = Journal::open(staging, key, size, owner)?;
        let path = Partial::path_of(staging, key);
        let file = open_own(&path)?;
        give_to(&path, owner)?;
        let len = file.metadata()?.len();
        let second = fs_err::File::open(journal.path())?;
        let notes = Mutex::new(Notes { journal, chunks: Vec::new() });
        let direct = Direct::open(&path);
        let assembly = Self { file, path, size, direct, notes, journal: second };
        assembly.reserve(len)?;
        assembly.notes().chunks = known_chunks(told, len, size);
        let earlier = assembly.earlier();
        if earlier.parts.is_empty() && len > 0 {
            assembly.restart()?;
        }
        Ok((assembly, earlier))
    }

    /// Length of the whole content in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes `bytes` at `offset`; from any thread.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Writes `bytes` at `offset` like [`Assembly::write_at`], and leaves as little of it in the page cache as the
    /// file system allows: for bytes that nobody will read soon.
    pub fn write_past_cache(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let written = self.direct.as_ref().map_or(Ok(0), |direct| direct.write(bytes, offset))?;
        self.write_at(&bytes[written..], offset + written as u64)
    }

    /// Notes that all bytes of chunk `index` were written, and their digest.
    pub fn note(&self, index: u64, digest: Blake3) -> io::Result<()> {
        let mut notes = self.notes();
        notes.set(index, Chunk::Seen(digest));
        notes.journal.note(index, &digest)
    }

    /// Makes durable what was written before, then what was noted of it. Others may go on writing.
    ///
    /// After a failure nobody knows what is on the disk: then what is in memory is given up where the
    /// system allows it, so that a later run reads what is really there.
    pub fn sync(&self) -> io::Result<()> {
        let synced = self.file.sync_data().and_then(|()| self.journal.sync_data());
        synced.inspect_err(|_| {
            let _ = fadvise(self.file.file(), 0, None, Advice::DontNeed);
        })
    }

    /// Throws everything away.
    pub fn restart(&self) -> io::Result<()> {
        let mut notes = self.notes();
        notes.chunks.fill(Chunk::Missing);
        self.file.set_len(0)?;
        notes.journal.begin()?;
        self.reserve(0)
    }

    /// Takes chunks back: they count as missing from now on, also for a later run.
    pub fn forget(&self, chunks: &[u64]) -> io::Result<()> {
        let mut notes = self.notes();
        for chunk in chunks {
            notes.set(*chunk, Chunk::Missing);
            // The last note counts, and no content has this digest.
            notes.journal.note(*chunk, &Blake3::from_bytes([0; 32]))?;
        }
        Ok(())
    }

    /// The digest of each chunk that was written or read in this run.
    pub fn chunk_digests(&self) -> Vec<Option<Blake3>> {
        self.notes().chunks.iter().map(Chunk::seen).collect()
    }

    /// What is here, as far as it is known.
    pub fn earlier(&self) -> Earlier {
        let mut parts: Vec<std::ops::Range<u64>> = Vec::new();
        for (index, _) in self.notes().chunks.iter().enumerate().filter(|(_, chunk)| **chunk != Chunk::Missing) {
            let range = chunk_range(index as u64, self.size);
            match parts.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => parts.push(range),
            }
        }
        Earlier { parts }
    }

    /// Begins to hash, with `hasher`, from the first byte on.
    pub fn hash(self: &Arc<Self>, hasher: ContentHasher) -> Prefix {
        Prefix { assembly: self.clone(), hasher, at: 0, buffer: Vec::new() }
    }

    /// Compares length and digests, and makes the content durable. It stays on the disk as it is.
    pub fn prove(&self, prefix: Prefix, expected: &Digests) -> Result<Proven, ProofError> {
        let (size, actual) = (self.size, prefix.at.min(self.file.metadata()?.len()));
        if actual != size {
            return Err(ProofError::Length { expected: size, actual });
        }
        let digests = prefix.hasher.finish();
        expected.check(&digests).map_err(ProofError::Content)?;
        self.file.sync_all()?;
        let notes = self.notes();
        let (path, journal) = (self.path.clone(), Some(notes.journal.path().to_owned()));
        Ok(Proven { path, journal, size, digests, chunks: notes.digests(size) })
    }

    /// Takes the room for all of it, so that a full disk is known before the first byte comes.
    fn reserve(&self, len: u64) -> io::Result<()> {
        let no_room =
            |error: io::Error| io::Error::new(error.kind(), format!("no room for {}: {error}", self.path.display()));
        // Asked first: an attempt that fails takes all the room that others need, if only for a moment.
        if self.size.saturating_sub(allocated(&self.file.metadata()?)) > free_space(&self.path)?.bytes {
            return Err(no_room(Errno::NOSPC.into()));
        }
        match fallocate(self.file.file(), FallocateFlags::empty(), 0, self.size) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.file.set_len(self.size),
            Err(error) => {
                // What was taken so far is of use to others.
                self.file.set_len(len)?;
                Err(no_room(error.into()))
            }
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Nothing panics between two changes that belong together.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notes {
    fn chunk(&self, index: u64) -> Chunk {
        usize::try_from(index).ok().and_then(|index| self.chunks.get(index)).map_or(Chunk::Missing, |chunk| *chunk)
    }

    fn set(&mut self, index: u64, chunk: Chunk) {
        if let Some(place) = usize::try_from(index).ok().and_then(|index| self.chunks.get_mut(index)) {
            *place = chunk;
        }
    }

    fn digests(&self, size: u64) -> Option<ChunkDigests> {
        ChunkDigests::new(size, self.chunks.iter().map(Chunk::seen).collect::<Option<_>>()?)
    }
}

/// What the journal told, as far as the file of `len` bytes can hold it.
fn known_chunks(told: Told, len: u64, size: u64) -> Vec<Chunk> {
    let fits = |index: usize| chunk_range(index as u64, size).end <= len;
    let count = usize::try_from(chunk_count(size)).unwrap_or(0);
    match told {
        Told::Chunks(chunks) => {
            let claimed = |(index, digest): (usize, Option<Blake3>)| digest.filter(|_| fits(index)).map(Chunk::Claimed);
            chunks.into_iter().enumerate().map(|chunk| claimed(chunk).unwrap_or(Chunk::Missing)).collect()
        }
        Told::Nothing if len <= size => {
            (0..count).map(|index| if fits(index) { Chunk::Unknown } else { Chunk::Missing }).collect()
        }
        Told::Nothing | Told::Nonsense => vec![Chunk::Missing; count],
    }
}

/// Hashes an [`Assembly`] from its first byte on, as far as it reaches.
#[derive(Debug)]
pub struct Prefix {
    assembly: Arc<Assembly>,
    hasher: ContentHasher,
    at: u64,
    buffer: Vec<u8>,
}

impl Prefix {
    /// First byte that was not hashed yet.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Hashes `bytes`, which were written at [`Prefix::at`], from memory.
    pub fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
    }

    /// Reads and hashes on, a few MiB at most and never beyond `end`.
    ///
    /// A chunk that an earlier run left is compared with what its journal said before it is hashed; the
    /// inner result tells one that differs.
    pub fn read_on(&mut self, end: u64) -> io::Result<Result<(), Unfit>> {
        let index = self.at / CHUNK_LEN;
        let assembly = self.assembly.clone();
        let chunk = assembly.notes().chunk(index);
        let whole = chunk_range(index, assembly.size);
        let is_old = matches!(chunk, Chunk::Unknown | Chunk::Claimed(_));
        let end = if is_old { whole.end } else { end.min(whole.end).min(self.at + READ) };
        self.buffer.resize(usize::try_from(end.saturating_sub(self.at)).unwrap_or(0), 0);
        assembly.file.read_exact_at(&mut self.buffer, self.at)?;
        if is_old && let Err(unfit) = assembly.look_again(index, chunk, &self.buffer)? {
            return Ok(Err(unfit));
        }
        self.hasher.update(&self.buffer);
        self.at = end;
        Ok(Ok(()))
    }
}

impl Assembly {
    fn look_again(&self, index: u64, chunk: Chunk, bytes: &[u8]) -> io::Result<Result<(), Unfit>> {
        let measured = Blake3::of(bytes);
        match chunk {
            Chunk::Claimed(digest) if digest != measured => {
                self.notes().set(index, Chunk::Missing);
                return Ok(Err(Unfit { chunk: index }));
            }
            Chunk::Unknown => self.note(index, measured)?,
            _ => self.notes().set(index, Chunk::Seen(measured)),
        }
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256;
    use crate::fsio::{WriteOptions, write_atomic};

    const SIZE: u64 = 3 * CHUNK_LEN + 7;

    fn content() -> Vec<u8> {
        (0..SIZE).map(|at| ((at * 31) >> 7) as u8).collect()
    }

    fn open(dir: &Path) -> (Arc<Assembly>, Earlier) {
        let (assembly, earlier) = Assembly::open(dir, "key", SIZE, None).unwrap();
        (Arc::new(assembly), earlier)
    }

    fn write(assembly: &Assembly, content: &[u8], index: u64) {
        let range = chunk_range(index, SIZE);
        let bytes = &content[range.start as usize..range.end as usize];
        assembly.write_at(bytes, range.start).unwrap();
        assembly.note(index, Blake3::of(bytes)).unwrap();
    }

    fn read_all(prefix: &mut Prefix) -> Vec<u64> {
        let mut unfit = Vec::new();
        while prefix.at() < SIZE && unfit.is_empty() {
            unfit.extend(prefix.read_on(SIZE).unwrap().err().map(|unfit| unfit.chunk));
        }
        unfit
    }

    #[test]
    fn parts_in_any_order_become_the_content_and_nothing_else_is_left() {
        let (dir, content) = (tempfile::tempdir().unwrap(), content());
        let (assembly, earlier) = open(dir.path());
        assert_eq!(earlier.bytes(), 0);
        [3, 1].iter().for_each(|index| write(&assembly, &content, *index));
        drop(assembly);
        let (assembly, earlier) = open(dir.path());
        assert_eq!(earlier.parts, [CHUNK_LEN..2 * CHUNK_LEN, 3 * CHUNK_LEN..SIZE]);
        [0, 2].iter().for_each(|index| write(&assembly, &content, *index));
        let mut prefix = assembly.hash(ContentHasher::new());
        assert!(read_all(&mut prefix).is_empty());
        let mut proven = assembly.prove(prefix, &Digests::sha256(Sha256::of(&content))).unwrap();
        assert_eq!(proven.take_chunks().unwrap().digests().len(), 4);
        let target = dir.path().join("models/model");
        proven.persist(&target, 0o644, None).unwrap();
        assert!(fs_err::read(&target).unwrap() == content);
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1, "only the folder of the model");
    }

    #[test]
    fn a_bit_that_flipped_between_two_runs_costs_its_chunk() {
        let (dir, content) = (tempfile::tempdir().unwrap(), content());
        let (assembly, _) = open(dir.path());
        (0..4).for_each(|index| write(&assembly, &content, index));
        let at = 2 * CHUNK_LEN + 5;
        assembly.write_at(&[content[at as usize] ^ 1], at).unwrap();
        drop(assembly);
        let (assembly, earlier) = open(dir.path());
        assert_eq!(earlier.bytes(), SIZE, "nothing is known of it yet");
        let mut prefix = assembly.hash(ContentHasher::new());
        assert_eq!(read_all(&mut prefix), [2]);
        assert_eq!(prefix.at(), 2 * CHUNK_LEN);
        write(&assembly, &content, 2);
        assert!(read_all(&mut prefix).is_empty());
        assembly.prove(prefix, &Digests::sha256(Sha256::of(&content))).unwrap().take_chunks().unwrap();
    }

    #[test]
    fn a_chunk_that_was_taken_back_is_missing_for_this_run_and_counts_for_no_later_one() {
        let (dir, content) = (tempfile::tempdir().unwrap(), content());
        let (assembly, _) = open(dir.path());
        (0..4).for_each(|index| write(&assembly, &content, index));
        assembly.forget(&[1]).unwrap();
        assert_eq!(assembly.earlier().parts, [0..CHUNK_LEN, 2 * CHUNK_LEN..SIZE]);
        assert_eq!(assembly.chunk_digests().iter().filter(|digest| digest.is_none()).count(), 1);
        drop(assembly);
        let (assembly, _) = open(dir.path());
        assert_eq!(read_all(&mut assembly.hash(ContentHasher::new())), [1]);
        write(&assembly, &content, 1);
        assert_eq!(assembly.earlier().bytes(), SIZE);
    }

    #[test]
    fn content_without_a_journal_counts_from_its_first_byte_and_with_a_foreign_one_not_at_all() {
        let (dir, content) = (tempfile::tempdir().unwrap(), content());
        let path = Partial::path_of(dir.path(), "key");
        write_atomic(&path, &content[..2 * CHUNK_LEN as usize + 9], &WriteOptions::default()).unwrap();
        let (assembly, earlier) = open(dir.path());
        assert_eq!(earlier.parts, std::slice::from_ref(&(0..2 * CHUNK_LEN)));
        [2, 3].iter().for_each(|index| write(&assembly, &content, *index));
        let mut prefix = assembly.hash(ContentHasher::new());
        assert!(read_all(&mut prefix).is_empty());
        let proven = assembly.prove(prefix, &Digests::sha256(Sha256::of(&content))).unwrap();
        assert_eq!(proven.size(), SIZE);
        write_atomic(&dir.path().join("key.journal"), b"foreign", &WriteOptions::default()).unwrap();
        assert_eq!(open(dir.path()).1.bytes(), 0);
        assert_eq!(Partial::open(dir.path(), "key", ContentHasher::new(), None).unwrap().len(), 0);
        assert!(!dir.path().join("key.journal").exists());
    }

    #[test]
    fn all_its_room_is_taken_at_once() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (_assembly, _) = open(dir.path());
        let found = fs_err::metadata(Partial::path_of(dir.path(), "key")).unwrap();
        assert!(found.len() == SIZE && found.blocks() * 512 >= SIZE, "{} blocks", found.blocks());
        let error = Assembly::open(dir.path(), "huge", 1 << 52, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        assert_eq!(fs_err::metadata(Partial::path_of(dir.path(), "huge")).unwrap().len(), 0);
    }
}
