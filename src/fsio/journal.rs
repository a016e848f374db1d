//! Which chunks of unfinished content have arrived, with their digests.
//!
//! A file beside the content: a header that says what content it is, then one record of fixed length for
//! each chunk, appended when its last byte was written. Every record proves itself by a check sum, and
//! the chunk it speaks of by its digest.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use super::{Owner, give_to, open_own, remove_file};
use crate::digest::{Blake3, CHUNK_LEN, chunk_count};

const MAGIC: &[u8; 8] = b"larderJ1";
/// Magic, length of the content, length of a chunk, digest of the key, check sum.
const HEADER_LEN: usize = 8 + 8 + 8 + 32 + CHECK_LEN;
/// Index, digest, check sum.
const RECORD_LEN: usize = 8 + 32 + CHECK_LEN;
const CHECK_LEN: usize = 8;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: fs_err::File,
    path: PathBuf,
    header: [u8; HEADER_LEN],
}

/// What a journal said when it was opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// There was none.
    Nothing,
    /// It was torn, or spoke of other content; it is empty now.
    Nonsense,
    /// The digests of the chunks that arrived, by index.
    Chunks(Vec<Option<Blake3>>),
}

impl Journal {
    /// The file that holds the journal of `key` in `staging`.
    pub(super) fn path_of(staging: &Path, key: &str) -> PathBuf {
        staging.join(format!("{key}.journal"))
    }

    /// Opens, or begins, the journal of the content of `size` bytes that `key` names.
    pub(super) fn open(staging: &Path, key: &str, size: u64, owner: Option<Owner>) -> io::Result<(Self, Told)> {
        let path = Self::path_of(staging, key);
        let was_there = fs_err::symlink_metadata(&path).is_ok();
        let mut file = open_own(&path)?;
        give_to(&path, owner)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // All its room, as for the content: a disk that fills up meanwhile does not stop what has begun.
        let room = HEADER_LEN as u64 + chunk_count(size) * RECORD_LEN as u64;
        let _ = fallocate(file.file(), FallocateFlags::KEEP_SIZE, 0, room);
        let mut journal = Self { file, path, header: header(key, size) };
        let told = match bytes.strip_prefix(&journal.header) {
            Some(records) => Told::Chunks(journal.read(records, size)),
            None if was_there => Told::Nonsense,
            None => Told::Nothing,
        };
        if matches!(told, Told::Chunks(_)) {
            // Behind a record that was torn, the next one begins where it would have begun.
            let records = (bytes.len() - HEADER_LEN) / RECORD_LEN;
            journal.file.seek(SeekFrom::Start((HEADER_LEN + records * RECORD_LEN) as u64))?;
        } else {
            journal.begin()?;
        }
        Ok((journal, told))
    }

    /// Forgets everything.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.header)
    }

    /// Notes that chunk `index` has arrived; of several notes of one chunk the last one counts.
    pub(super) fn note(&mut self, index: u64, digest: &Blake3) -> io::Result<()> {
        self.file.write_all(&self.record(index, digest))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn record(&self, index: u64, digest: &Blake3) -> [u8; RECORD_LEN] {
        let mut record = [0; RECORD_LEN];
        record[..8].copy_from_slice(&index.to_le_bytes());
        record[8..40].copy_from_slice(digest.as_bytes());
        let check = check_sum(&[&self.header, &record[..40]]);
        record[40..].copy_from_slice(&check);
        record
    }

    /// Reads what is whole; a record that a power cut tore or emptied is as good as none.
    fn read(&self, records: &[u8], size: u64) -> Vec<Option<Blake3>> {
        let mut chunks = vec![None; usize::try_from(chunk_count(size)).unwrap_or(0)];
        for record in records.as_chunks::<RECORD_LEN>().0 {
            let (index, digest) = parts(record);
            let place = usize::try_from(index).ok().and_then(|index| chunks.get_mut(index));
            if let Some(place) = place.filter(|_| self.record(index, &digest) == *record) {
                *place = Some(digest);
            }
        }
        chunks
    }
}

fn parts(record: &[u8; RECORD_LEN]) -> (u64, Blake3) {
    let (mut index, mut digest) = ([0; 8], [0; 32]);
    index.copy_from_slice(&record[..8]);
    digest.copy_from_slice(&record[8..40]);
    (u64::from_le_bytes(index), Blake3::from_bytes(digest))
}

fn header(key: &str, size: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&size.to_le_bytes());
    header[16..24].copy_from_slice(&CHUNK_LEN.to_le_bytes());
    header[24..56].copy_from_slice(Blake3::of(key.as_bytes()).as_bytes());
    let check = check_sum(&[&header[..56]]);
    header[56..].copy_from_slice(&check);
    header
}

fn check_sum(parts: &[&[u8]]) -> [u8; CHECK_LEN] {
    let digest = Blake3::of(&parts.concat());
    let mut sum = [0; CHECK_LEN];
    sum.copy_from_slice(&digest.as_bytes()[..CHECK_LEN]);
    sum
}

/// How many bytes of content a journal of `len` bytes speaks of, at most.
pub fn journaled_bytes(len: u64) -> u64 {
    len.saturating_sub(HEADER_LEN as u64) / RECORD_LEN as u64 * CHUNK_LEN
}

/// Removes the journal of `key` where there is one.
pub(super) fn remove_journal(path: &Path) -> io::Result<()> {
    match remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 5 * CHUNK_LEN + 1;

    fn digest(n: u8) -> Blake3 {
        Blake3::from_bytes([n; 32])
    }

    fn chunks(dir: &Path) -> Vec<Option<Blake3>> {
        let Told::Chunks(chunks) = Journal::open(dir, "key", SIZE, None).unwrap().1 else { panic!("no chunks") };
        chunks
    }

    #[test]
    fn what_was_noted_is_told_and_the_last_note_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, told) = Journal::open(dir.path(), "key", SIZE, None).unwrap();
        assert_eq!(told, Told::Nothing);
        for (index, n) in [(5, 1), (0, 2), (0, 3), (9, 4)] {
            journal.note(index, &digest(n)).unwrap();
        }
        drop(journal);
        assert_eq!(chunks(dir.path()), [Some(digest(3)), None, None, None, None, Some(digest(1))]);
        assert_eq!(journaled_bytes(fs_err::metadata(dir.path().join("key.journal")).unwrap().len()), 4 * CHUNK_LEN);
    }

    #[test]
    fn every_way_to_tear_it_leaves_only_true_notes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.journal");
        let (mut journal, _) = Journal::open(dir.path(), "key", SIZE, None).unwrap();
        (0..3).for_each(|n| journal.note(n, &digest(n as u8)).unwrap());
        let whole = fs_err::read(&path).unwrap();
        for len in 0..whole.len() {
            open_own(&path).unwrap().set_len(0).unwrap();
            open_own(&path).unwrap().write_all(&whole[..len]).unwrap();
            let (mut journal, told) = Journal::open(dir.path(), "key", SIZE, None).unwrap();
            assert_eq!(told == Told::Nonsense, len < HEADER_LEN, "{len} bytes");
            journal.note(4, &digest(4)).unwrap();
            let known = chunks(dir.path());
            assert_eq!(known[4], Some(digest(4)), "{len} bytes");
            let kept = len.saturating_sub(HEADER_LEN) / RECORD_LEN;
            assert_eq!(known.iter().flatten().count(), kept + 1, "{len} bytes");
        }
        for at in HEADER_LEN..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            open_own(&path).unwrap().set_len(0).unwrap();
            open_own(&path).unwrap().write_all(&flipped).unwrap();
            let known = chunks(dir.path());
            assert_eq!(known.iter().flatten().count(), 2, "flipped at {at}");
            assert!((0..3).all(|n| known[n].is_none_or(|known| known == digest(n as u8))), "flipped at {at}");
        }
    }

    #[test]
    fn a_journal_of_other_content_is_nonsense_and_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Journal::open(dir.path(), "key", SIZE, None).unwrap().0.note(0, &digest(1)).unwrap();
        assert_eq!(Journal::open(dir.path(), "key", SIZE + 1, None).unwrap().1, Told::Nonsense);
        let victim = dir.path().join("victim");
        open_own(&victim).unwrap().write_all(b"precious").unwrap();
        crate::fsio::symlink_atomic(&victim, &dir.path().join("other.journal"), None).unwrap();
        assert!(Journal::open(dir.path(), "other", SIZE, None).is_err());
        assert_eq!(fs_err::read(&victim).unwrap(), b"precious");
    }
}
