//! A reading that was stopped in the middle of a content, kept so that another run continues there.

use larder_metal::Sha256 as Sha256State;

use super::chunks::{CHUNK_LEN, ChunkHasher};
use super::{Blake3, ContentHasher};

/// How far a content was hashed: whole chunks only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that need not be read again.
    pub bytes: u64,
    /// The state of SHA-256 after them.
    pub sha256: [u32; 8],
    /// The digests of their chunks, where they are taken.
    pub chunks: Option<Vec<Blake3>>,
}

impl Progress {
    /// The state's words as they are stored, big-endian.
    pub fn state_to_bytes(&self) -> Vec<u8> {
        self.sha256.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// The chunks' digests one after the other, as they are stored; nothing where they are not taken.
    pub fn chunks_to_bytes(&self) -> Vec<u8> {
        self.chunks.iter().flatten().flat_map(|digest| *digest.as_bytes()).collect()
    }

    /// Reads what [`Progress::state_to_bytes`] and [`Progress::chunks_to_bytes`] wrote after `bytes`.
    pub fn from_bytes(bytes: u64, state: &[u8], chunks: &[u8]) -> Option<Self> {
        let (words, rest) = state.as_chunks::<4>();
        let sha256: Vec<u32> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
        let (digests, left) = chunks.as_chunks::<32>();
        let fits = digests.is_empty() || digests.len() as u64 * CHUNK_LEN == bytes;
        let is_whole = rest.is_empty() && left.is_empty() && bytes.is_multiple_of(CHUNK_LEN) && fits;
        let chunks = digests.iter().copied().map(Blake3::from_bytes).collect::<Vec<_>>();
        let chunks = (bytes == 0 || !chunks.is_empty()).then_some(chunks);
        is_whole.then_some(Self { bytes, sha256: sha256.try_into().ok()?, chunks })
    }
}

impl ContentHasher {
    /// What to keep so that the reading can go on from here.
    ///
    /// `None` in the middle of a chunk, and where other algorithms than SHA-256 run along: they are asked for with
    /// small files, which are read again.
    pub fn progress(&self) -> Option<Progress> {
        let (sha256, bytes) = self.sha256.midstate()?;
        let is_alone = self.git_sha1.is_none() && self.md5.is_none();
        let chunks = self.chunks.as_ref().map(|chunks| chunks.so_far().to_vec());
        (is_alone && bytes.is_multiple_of(CHUNK_LEN)).then_some(Progress { bytes, sha256, chunks })
    }

    /// A hasher for SHA-256 that has taken what `progress` says, with chunks where it has them.
    pub fn resume(progress: Progress) -> Self {
        // Whole chunks end with a whole block.
        let sha256 = Sha256State::resume(progress.sha256, progress.bytes).unwrap_or_default();
        let chunks = progress.chunks.map(|chunks| Box::new(ChunkHasher::resume(chunks)));
        Self { sha256, git_sha1: None, md5: None, chunks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_goes_on_where_it_was_stopped() {
        let chunk = CHUNK_LEN as usize;
        let content: Vec<u8> = (0..2 * chunk + 77).map(|at| ((at * 37) >> 4) as u8).collect();
        let mut whole = ContentHasher::new().with_chunks();
        whole.update(&content);
        let expected = whole.finish_with_chunks();
        for done in [0, chunk, 2 * chunk] {
            let mut first = ContentHasher::new().with_chunks();
            first.update(&content[..done]);
            let kept = first.progress().unwrap();
            let (state, chunks) = (kept.state_to_bytes(), kept.chunks_to_bytes());
            assert_eq!(Progress::from_bytes(done as u64, &state, &chunks).as_ref(), Some(&kept));
            let mut second = ContentHasher::resume(kept);
            second.update(&content[done..]);
            assert_eq!(second.progress(), None, "in the middle of a chunk");
            assert_eq!(second.finish_with_chunks(), expected, "{done}");
        }
    }

    #[test]
    fn what_cannot_be_a_state_is_refused() {
        assert_eq!(Progress::from_bytes(0, &[0; 31], &[]), None);
        assert_eq!(Progress::from_bytes(CHUNK_LEN, &[0; 32], &[0; 33]), None);
        assert_eq!(Progress::from_bytes(CHUNK_LEN, &[0; 32], &[0; 64]), None);
        assert_eq!(Progress::from_bytes(5, &[0; 32], &[]), None);
        assert_eq!(ContentHasher::new().with_chunks().with_md5().progress(), None);
    }
}
