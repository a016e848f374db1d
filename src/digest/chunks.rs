//! Digests of a content's chunks: they give a fault an address, and let one file be checked by several cores.

use super::Blake3;

/// Length of every chunk but the last: what a repair fetches for one wrong bit.
pub const CHUNK_LEN: u64 = 4 << 20;

/// BLAKE3 of every chunk of one content, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkDigests {
    len: u64,
    digests: Vec<Blake3>,
}

impl ChunkDigests {
    /// The chunk digests of a content of `len` bytes; `None` where they are not as many as it has chunks.
    pub fn new(len: u64, digests: Vec<Blake3>) -> Option<Self> {
        (digests.len() as u64 == chunk_count(len)).then_some(Self { len, digests })
    }

    /// Length of the whole content in bytes.
    pub fn content_len(&self) -> u64 {
        self.len
    }

    /// The digests, one for each chunk.
    pub fn digests(&self) -> &[Blake3] {
        &self.digests
    }

    /// All digests one after the other, as they are stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.digests.iter().flat_map(|digest| *digest.as_bytes()).collect()
    }

    /// Reads what [`ChunkDigests::to_bytes`] wrote for a content of `len` bytes.
    pub fn from_bytes(len: u64, bytes: &[u8]) -> Option<Self> {
        let (digests, rest) = bytes.as_chunks::<32>();
        let digests = digests.iter().copied().map(Blake3::from_bytes).collect();
        rest.is_empty().then(|| Self::new(len, digests)).flatten()
    }
}

/// How many chunks a content of `len` bytes has. The empty one has none.
pub fn chunk_count(len: u64) -> u64 {
    len.div_ceil(CHUNK_LEN)
}

/// First byte of chunk `index`, and the first byte after it, in a content of `len` bytes.
pub fn chunk_range(index: u64, len: u64) -> std::ops::Range<u64> {
    let start = (index * CHUNK_LEN).min(len);
    start..(start + CHUNK_LEN).min(len)
}

/// Takes chunk digests as content passes by from its first byte to its last.
#[derive(Debug, Clone, Default)]
pub struct ChunkHasher {
    state: blake3::Hasher,
    len: u64,
    digests: Vec<Blake3>,
}

impl ChunkHasher {
    /// Takes the next bytes of the content.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = CHUNK_LEN - self.len % CHUNK_LEN;
            let now = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            self.state.update(&bytes[..now]);
            self.len += now as u64;
            bytes = &bytes[now..];
            if self.len.is_multiple_of(CHUNK_LEN) {
                self.end_chunk();
            }
        }
    }

    /// Continues after whole chunks that had these digests.
    pub(super) fn resume(digests: Vec<Blake3>) -> Self {
        Self { state: blake3::Hasher::new(), len: digests.len() as u64 * CHUNK_LEN, digests }
    }

    /// The digests of the chunks that are whole.
    pub(super) fn so_far(&self) -> &[Blake3] {
        &self.digests
    }

    /// The digests of everything taken so far.
    pub fn finish(mut self) -> ChunkDigests {
        if !self.len.is_multiple_of(CHUNK_LEN) {
            self.end_chunk();
        }
        ChunkDigests { len: self.len, digests: self.digests }
    }

    fn end_chunk(&mut self) {
        self.digests.push(Blake3::from_bytes(self.state.finalize().into()));
        self.state.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests_of(content: &[u8], step: usize) -> ChunkDigests {
        let mut hasher = ChunkHasher::default();
        content.chunks(step).for_each(|bytes| hasher.update(bytes));
        hasher.finish()
    }

    #[test]
    fn chunks_do_not_depend_on_how_the_content_comes() {
        let chunk = CHUNK_LEN as usize;
        for len in [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 2 * chunk + 5] {
            let content: Vec<u8> = (0..len).map(|at| ((at * 31) >> 3) as u8).collect();
            let expected: Vec<Blake3> = content.chunks(chunk).map(Blake3::of).collect();
            for step in [chunk / 3, chunk, 3 * chunk] {
                let digests = digests_of(&content, step);
                assert_eq!(digests.digests(), expected, "{len} bytes in steps of {step}");
                assert_eq!(ChunkDigests::from_bytes(len as u64, &digests.to_bytes()), Some(digests));
            }
        }
    }

    #[test]
    fn ranges_cover_the_content_without_gaps() {
        for len in [1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN] {
            let ranges: Vec<_> = (0..chunk_count(len)).map(|index| chunk_range(index, len)).collect();
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, len));
            assert!(
                ranges.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end - pair[0].start == CHUNK_LEN)
            );
        }
    }

    #[test]
    fn a_wrong_number_of_digests_is_refused() {
        assert_eq!(ChunkDigests::from_bytes(CHUNK_LEN + 1, &[0; 32]), None);
        assert_eq!(ChunkDigests::from_bytes(5, &[0; 33]), None);
        assert_eq!(ChunkDigests::new(0, Vec::new()).map(|digests| digests.content_len()), Some(0));
    }
}
