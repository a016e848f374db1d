//! Reads content without getting in others' way: what the page cache holds is taken from there, the rest
//! goes past it, so that a nightly check throws nothing out that other programs use.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use larder_metal::cached_pages;
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::artifact::Found;

/// How much is read at a time, at most.
pub const PIECE: usize = 1 << 20;
/// Reading past the cache wants addresses, offsets and lengths like this; larger sectors make it fail, and
/// then it is done without.
const ALIGNMENT: usize = 4096;
/// Where pages are larger, what is there as a whole looks as if it were there in part.
const PAGE: u64 = 4096;
/// `RWF_DONTCACHE` (Linux 6.14): pages that were not cached before are given back after the reading.
const DONT_CACHE: u32 = 0x80;
/// What a disk cannot read is narrowed down in these steps.
const STEPS: [u64; 2] = [64 << 10, 4 << 10];

/// A file that is read for its content.
#[derive(Debug)]
pub struct ContentReader {
    file: File,
    /// The same file, read past the page cache; `None` where its file system does not do that.
    direct: Option<File>,
    /// Whether the kernel gives pages back by itself.
    gives_back: AtomicBool,
    found: Found,
    /// Of each piece, how much of it was cached when the file was opened. Later the kernel may have read ahead of what
    /// was taken from the cache: who follows it there pulls the whole file in, piece after piece.
    cached: Vec<Cached>,
}

/// How much of a piece others have in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cached {
    Not,
    Part,
    Whole,
    Unknown,
}

fn cached_pieces(file: &File, size: u64) -> Vec<Cached> {
    let piece = |start| {
        let len = (PIECE as u64).min(size - start);
        match cached_pages(file, start, len) {
            None => Cached::Unknown,
            Some(0) => Cached::Not,
            Some(pages) if pages < len.div_ceil(PAGE) => Cached::Part,
            Some(_) => Cached::Whole,
        }
    };
    (0..size).step_by(PIECE).map(piece).collect()
}

/// Room for one piece.
#[derive(Debug)]
pub struct PieceBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Default for PieceBuffer {
    fn default() -> Self {
        Self::with_room(PIECE)
    }
}

impl PieceBuffer {
    /// Room for `len` bytes at a time: at least a page, at most [`PIECE`].
    pub fn with_room(len: usize) -> Self {
        let len = len.clamp(ALIGNMENT, PIECE).next_multiple_of(ALIGNMENT);
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start, len }
    }

    /// The first `len` bytes of what was read.
    pub fn filled(&self, len: usize) -> &[u8] {
        &self.bytes[self.start..self.start + len.min(self.len)]
    }

    fn room(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

impl ContentReader {
    /// Opens the regular file at `path`, links followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = fs_err::File::open(path)?;
        let found = super::found(path.to_owned(), &rustix::fs::fstat(&file)?);
        let (file, _) = file.into_parts();
        let mut options = fs_err::OpenOptions::new();
        options.read(true).custom_flags(OFlags::DIRECT.bits().cast_signed());
        let direct = options.open(path).ok().map(|file| file.into_parts().0);
        let cached = cached_pieces(&file, found.size);
        Ok(Self { file, direct, gives_back: AtomicBool::new(true), found, cached })
    }

    /// What was opened.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Whether the file is still as it was when it was opened: same length and time of change.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        let now = super::found(self.found.path.clone(), &rustix::fs::fstat(&self.file)?);
        Ok(now == self.found)
    }

    /// Reads up to `len` bytes from `offset` on, at most what the buffer has room for; fewer only at the file's end.
    ///
    /// Fails as soon as a part cannot be read: [`unreadable_parts`] tells which.
    pub fn read(&self, buffer: &mut PieceBuffer, offset: u64, len: usize) -> io::Result<usize> {
        let len = len.min(buffer.len);
        let cached = self.cached.get((offset / PIECE as u64) as usize).copied().unwrap_or(Cached::Unknown);
        // What is not known to be cached is read past the cache unless the kernel sorts it out itself.
        let is_cold = match cached {
            Cached::Not => true,
            Cached::Unknown => !self.gives_back.load(Ordering::Relaxed),
            Cached::Whole | Cached::Part => false,
        };
        if (is_cold || cached == Cached::Part)
            && offset.is_multiple_of(ALIGNMENT as u64)
            && let Some(direct) = &self.direct
        {
            match read_direct(direct, buffer, offset, len) {
                // Refused for its alignment, or another reason of its own: the ordinary way decides.
                Err(_) => {}
                Ok(got) => return Ok(got),
            }
        }
        let got = self.read_through_cache(buffer.room(len), offset)?;
        if is_cold && !self.gives_back.load(Ordering::Relaxed) {
            // A hint: that it is not taken harms nobody.
            let _ = fadvise(&self.file, offset, std::num::NonZeroU64::new(got as u64), Advice::DontNeed);
        }
        Ok(got)
    }

    fn read_through_cache(&self, room: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut got = 0;
        while got < room.len() {
            match self.read_some(&mut room[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(got)
    }

    fn read_some(&self, room: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.gives_back.load(Ordering::Relaxed) {
            let flags = ReadWriteFlags::from_bits_retain(DONT_CACHE);
            match preadv2(&self.file, &mut [IoSliceMut::new(room)], offset, flags) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.gives_back.store(false, Ordering::Relaxed),
                result => return result.map_err(io::Error::from),
            }
        }
        self.file.read_at(room, offset)
    }
}

fn read_direct(file: &File, buffer: &mut PieceBuffer, offset: u64, len: usize) -> io::Result<usize> {
    let whole = len.next_multiple_of(ALIGNMENT);
    let mut got = 0;
    while got < len {
        match file.read_at(&mut buffer.room(whole)[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        // A short answer that ends within a block is the file's end.
        if !got.is_multiple_of(ALIGNMENT) {
            break;
        }
    }
    Ok(got.min(len))
}

/// Which parts of `range` cannot be read, to 4 KiB, when reading it failed with `error`.
///
/// Only errors of the medium are narrowed down; where the file as a whole is out of reach, `error` is returned.
pub fn unreadable_parts(
    reader: &ContentReader,
    range: Range<u64>,
    error: io::Error,
) -> io::Result<(Vec<Range<u64>>, io::Error)> {
    if error.raw_os_error() != Some(Errno::IO.raw_os_error()) {
        return Err(error);
    }
    let mut bad = vec![range];
    for step in STEPS {
        let parts = bad.into_iter().flat_map(|range| split(range, step));
        bad = parts.filter(|part| !can_be_read(reader, part)).collect();
    }
    Ok((merged(bad), error))
}

fn can_be_read(reader: &ContentReader, part: &Range<u64>) -> bool {
    let mut room = vec![0; (part.end - part.start) as usize];
    reader.read_through_cache(&mut room, part.start).is_ok()
}

fn split(range: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = (range.start..range.end).step_by(step as usize);
    starts.map(move |start| start..(start + step).min(range.end))
}

/// Joins ranges that touch each other.
fn merged(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsio::{WriteOptions, write_atomic};

    fn noise(len: usize) -> Vec<u8> {
        (0..len).map(|at| ((at * 131) >> 5) as u8).collect()
    }

    #[test]
    fn every_byte_is_read_wherever_the_file_ends_and_whatever_is_cached() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("content");
        for len in [0, 1, 4095, 4096, 4097, PIECE - 1, PIECE, PIECE + 5000] {
            let content = noise(len);
            write_atomic(&path, &content, &WriteOptions::default()).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            for cold in [false, true] {
                if cold {
                    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
                }
                let reader = ContentReader::open(&path).unwrap();
                let (mut buffer, mut read) = (PieceBuffer::default(), Vec::new());
                loop {
                    let got = reader.read(&mut buffer, read.len() as u64, PIECE).unwrap();
                    read.extend_from_slice(buffer.filled(got));
                    if got < PIECE {
                        break;
                    }
                }
                assert!(read == content, "{len} bytes, cold: {cold}");
                assert!(reader.is_unchanged().unwrap());
            }
        }
    }

    #[test]
    fn what_was_not_cached_is_not_cached_afterwards_and_what_was_is() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("content");
        write_atomic(&path, &noise(8 * PIECE), &WriteOptions::default()).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let pages = || cached_pages(&file, 0, 8 * PIECE as u64);
        let Some(before) = pages() else { return };
        let half = noise(4 * PIECE);
        assert!(before < 8, "{before}");
        file.read_exact_at(&mut half.clone(), 0).unwrap();
        let used = pages().unwrap();
        let reader = ContentReader::open(&path).unwrap();
        let mut buffer = PieceBuffer::default();
        for piece in 0..8 {
            assert_eq!(reader.read(&mut buffer, piece * PIECE as u64, PIECE).unwrap(), PIECE);
        }
        assert_eq!(pages(), Some(used));
    }
}
