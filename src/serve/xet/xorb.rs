//! A file as a xorb: the same bytes, with eight bytes before each chunk of 64 KiB that say how long it is.
//!
//! No chunk is compressed, so the place of every byte follows from its number, and nothing needs to be kept.

use std::io;
use std::ops::Range;

/// What a chunk holds; the last one of a file holds what is left. The format allows twice as much.
const CHUNK: u64 = 64 << 10;
const HEADER: u64 = 8;
/// A chunk with what comes before it.
const STRIDE: u64 = HEADER + CHUNK;
/// Chunks of one term. Clients ask for a term at a time, many at once, and hold each in memory: 16 MiB.
const CHUNKS_OF_TERM: u64 = 256;

/// The xorb of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Xorb {
    /// Length of the file.
    content: u64,
}

/// Chunks that come one after the other.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) chunks: Range<u64>,
    /// Bytes of the file in them.
    pub(crate) unpacked: u64,
    /// Where they are in the xorb.
    pub(crate) bytes: Range<u64>,
}

/// How far into its chunk a byte of the file is.
pub(crate) fn offset_in_chunk(at: u64) -> u64 {
    at % CHUNK
}

impl Xorb {
    /// The xorb of a file with `content` bytes.
    pub(crate) fn of(content: u64) -> Self {
        Self { content }
    }

    /// Its length in bytes.
    pub(crate) fn len(self) -> u64 {
        self.content + self.content.div_ceil(CHUNK) * HEADER
    }

    /// The terms that hold these bytes of the file, which are not none.
    pub(crate) fn terms(self, range: &Range<u64>) -> impl Iterator<Item = Term> + use<> {
        let (first, end) = (range.start / CHUNK, range.end.min(self.content).div_ceil(CHUNK));
        let starts = (first..end).step_by(CHUNKS_OF_TERM as usize);
        starts.map(move |start| self.term(start..end.min(start + CHUNKS_OF_TERM)))
    }

    fn term(self, chunks: Range<u64>) -> Term {
        let unpacked = (chunks.end * CHUNK).min(self.content) - chunks.start * CHUNK;
        let bytes = chunks.start * STRIDE..(chunks.end * STRIDE).min(self.len());
        Term { chunks, unpacked, bytes }
    }

    /// Fills `bytes` with the xorb's bytes from `at` on, which it must have; `read` reads the file's.
    pub(crate) fn read(
        self,
        mut bytes: &mut [u8],
        mut at: u64,
        read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let (chunk, within) = (at / STRIDE, at % STRIDE);
            let left = if within < HEADER { HEADER - within } else { STRIDE - within };
            let (now, later) = bytes.split_at_mut(bytes.len().min(left as usize));
            if within < HEADER {
                now.copy_from_slice(&self.header(chunk)[within as usize..][..now.len()]);
            } else {
                read(now, chunk * CHUNK + within - HEADER)?;
            }
            at += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Version 0, the length as stored, scheme 0 (as it is), the length of the content.
    fn header(self, chunk: u64) -> [u8; HEADER as usize] {
        let len = self.content.saturating_sub(chunk * CHUNK).min(CHUNK);
        let [a, b, c, ..] = len.to_le_bytes();
        [0, a, b, c, 0, a, b, c]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, proptest};

    use super::*;

    fn content(len: u64) -> Vec<u8> {
        (0..len).map(|n| (n % 251) as u8).collect()
    }

    /// The xorb in one piece, written the simple way.
    fn whole(content: &[u8]) -> Vec<u8> {
        let mut xorb = Vec::new();
        for chunk in content.chunks(CHUNK as usize) {
            let len = (chunk.len() as u32).to_le_bytes();
            xorb.push(0);
            xorb.extend_from_slice(&len[..3]);
            xorb.push(0);
            xorb.extend_from_slice(&len[..3]);
            xorb.extend_from_slice(chunk);
        }
        xorb
    }

    fn read(content: &[u8], range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0xee; (range.end - range.start) as usize];
        let from_file = |bytes: &mut [u8], at: u64| {
            bytes.copy_from_slice(&content[at as usize..][..bytes.len()]);
            Ok(())
        };
        Xorb::of(content.len() as u64).read(&mut bytes, range.start, from_file).unwrap();
        bytes
    }

    #[test]
    fn lengths_at_the_edges_of_chunks() {
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17] {
            let content = content(len);
            let whole = whole(&content);
            assert_eq!(Xorb::of(len).len(), whole.len() as u64, "{len}");
            assert!(read(&content, 0..whole.len() as u64) == whole, "{len}");
        }
    }

    #[test]
    fn a_file_beyond_fifty_gigabytes_has_terms_that_clients_can_count() {
        let len = 61_343_809_536;
        let terms: Vec<Term> = Xorb::of(len).terms(&(0..len)).collect();
        assert_eq!(terms.iter().map(|term| term.unpacked).sum::<u64>(), len);
        assert!(
            terms.iter().all(|term| term.unpacked <= u64::from(u32::MAX) && term.chunks.end <= u64::from(u32::MAX))
        );
        assert_eq!(terms.last().map(|term| term.bytes.end), Some(Xorb::of(len).len()));
    }

    proptest! {
        #[test]
        fn any_part_is_that_of_the_whole(len in 1..4 * CHUNK, from in 0.0..1.0, share in 0.0..1.0) {
            let content = content(len);
            let whole = whole(&content);
            let start = (from * whole.len() as f64) as usize;
            let end = start + (share * (whole.len() - start) as f64) as usize;
            assert!(read(&content, start as u64..end as u64) == whole[start..end]);
        }

        #[test]
        fn terms_put_together_are_the_range(
            (len, start, end) in (1..900 * CHUNK).prop_flat_map(|len| (0..len).prop_flat_map(move |start| (start + 1..=len).prop_map(move |end| (len, start, end))))
        ) {
            let terms: Vec<Term> = Xorb::of(len).terms(&(start..end)).collect();
            let unpacked: u64 = terms.iter().map(|term| term.unpacked).sum();
            let first = start - offset_in_chunk(start);
            assert_eq!(terms[0].chunks.start * CHUNK, first);
            assert!(first + unpacked >= end && first + unpacked < end + CHUNK);
            for two in terms.windows(2) {
                assert_eq!((two[0].chunks.end, two[0].bytes.end), (two[1].chunks.start, two[1].bytes.start));
            }
            assert!(terms.iter().all(|term| term.bytes.end - term.bytes.start == term.unpacked + HEADER * (term.chunks.end - term.chunks.start)));
        }
    }
}
