//! Ranges of a file that were never written.

use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// How many holes are told of one file: a file in more pieces was written by a program that leaves out zeros.
const MAX_HOLES: usize = 1 << 16;

/// The holes of a file, in order: ranges that take no room because nothing was ever written there.
///
/// Reads no content. Empty where the file system cannot tell. What was allocated beforehand counts as a hole
/// until it is written, on the file systems that know it: they forget to say so of what the page cache has, where nothing
/// but reading brought it there, so that they are asked for their extents too.
pub fn holes(path: &Path) -> io::Result<Vec<Range<u64>>> {
    let file = fs_err::File::open(path)?;
    let len = file.metadata()?.len();
    let seek = |to| match rustix::fs::seek(&file, to) {
        Ok(at) => Ok(Some(at)),
        // Beyond the last data, or a file system that does not know the question.
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(io::Error::from(error)),
    };
    let mut holes = Vec::new();
    let mut at = 0;
    while at < len && holes.len() < MAX_HOLES {
        let Some(start) = seek(SeekFrom::Hole(at))? else { break };
        if start >= len {
            break;
        }
        at = seek(SeekFrom::Data(start))?.unwrap_or(len).min(len);
        if at <= start {
            break;
        }
        holes.push(start..at);
    }
    let unwritten = larder_metal::unwritten(file.file(), MAX_HOLES).unwrap_or_default();
    let within = |part: Range<u64>| part.start..part.end.min(len);
    Ok(joined(holes.into_iter().chain(unwritten.into_iter().map(within))))
}

/// In order, and neighbours as one; empty ones are left out.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = ranges.filter(|range| range.start < range.end).collect();
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use super::*;

    #[test]
    fn only_what_was_never_written_is_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        file.write_all(&[0; 1 << 16]).unwrap();
        file.seek(SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(&[1; 1 << 16]).unwrap();
        file.set_len(1 << 30).unwrap();
        file.sync_all().unwrap();
        let found = holes(&path).unwrap();
        assert_eq!(found, [1 << 16..1 << 20, (1 << 20) + (1 << 16)..1 << 30]);
        assert!(holes(&dir.path().join("absent")).is_err());
    }
}
