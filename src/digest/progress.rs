//! A reading that was stopped in the middle of a content, kept so that another run continues there.

use larder_metal::Sha256 as Sha256State;
use md5::Md5 as Md5State;
use sha1::Sha1 as Sha1State;
use sha1::digest::common::hazmat::{SerializableState, SerializedState};

use super::chunks::{CHUNK_LEN, ChunkHasher};
use super::{Blake3, ContentHasher};

/// What the states that run along begin with where they are stored.
const GIT_SHA1: u8 = b'g';
const MD5: u8 = b'm';

/// How far a content was hashed: whole chunks only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that need not be read again.
    pub bytes: u64,
    /// The state of SHA-256 after them.
    pub sha256: [u32; 8],
    /// The state of the git blob id, where it runs along.
    pub git_sha1: Option<Vec<u8>>,
    /// The state of MD5, where it runs along.
    pub md5: Option<Vec<u8>>,
    /// The digests of their chunks, where they are taken.
    pub chunks: Option<Vec<Blake3>>,
}

impl Progress {
    /// The states as they are stored: the words of SHA-256, big-endian, then what runs along, each after its letter.
    pub fn state_to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.sha256.iter().flat_map(|word| word.to_be_bytes()).collect();
        for (letter, state) in [(GIT_SHA1, &self.git_sha1), (MD5, &self.md5)] {
            if let Some(state) = state {
                bytes.push(letter);
                bytes.extend_from_slice(state);
            }
        }
        bytes
    }

    /// The chunks' digests one after the other, as they are stored; nothing where they are not taken.
    pub fn chunks_to_bytes(&self) -> Vec<u8> {
        self.chunks.iter().flatten().flat_map(|digest| *digest.as_bytes()).collect()
    }

    /// Reads what [`Progress::state_to_bytes`] and [`Progress::chunks_to_bytes`] wrote after `bytes`.
    pub fn from_bytes(bytes: u64, state: &[u8], chunks: &[u8]) -> Option<Self> {
        let (sha256, rest) = state.split_at_checked(32)?;
        let words = sha256.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
        let (git_sha1, rest) = along::<Sha1State>(GIT_SHA1, rest);
        let (md5, rest) = along::<Md5State>(MD5, rest);
        let (digests, left) = chunks.as_chunks::<32>();
        let fits = digests.is_empty() || digests.len() as u64 * CHUNK_LEN == bytes;
        let is_whole = rest.is_empty() && left.is_empty() && bytes.is_multiple_of(CHUNK_LEN) && fits;
        let chunks = digests.iter().copied().map(Blake3::from_bytes).collect::<Vec<_>>();
        let chunks = (bytes == 0 || !chunks.is_empty()).then_some(chunks);
        let sha256 = words.collect::<Vec<_>>().try_into().ok()?;
        is_whole.then_some(Self { bytes, sha256, git_sha1, md5, chunks })
    }

    /// Whether these are the states that `hasher`, which has not begun, would have.
    pub fn fits(&self, hasher: &ContentHasher) -> bool {
        let has = (self.git_sha1.is_some(), self.md5.is_some(), self.chunks.is_some());
        has == (hasher.git_sha1.is_some(), hasher.md5.is_some(), hasher.chunks.is_some())
    }
}

/// The state that `stored` begins with, where it begins with `letter`, and what follows.
fn along<S: SerializableState>(letter: u8, stored: &[u8]) -> (Option<Vec<u8>>, &[u8]) {
    let len = size_of::<SerializedState<S>>();
    match stored.split_first().filter(|(first, _)| **first == letter).and_then(|(_, rest)| rest.split_at_checked(len)) {
        Some((state, rest)) => (Some(state.to_vec()), rest),
        None => (None, stored),
    }
}

/// A state of `S` that was kept; `None` where it cannot be one.
fn restored<S: SerializableState>(state: &[u8]) -> Option<S> {
    S::deserialize(&SerializedState::<S>::try_from(state).ok()?).ok()
}

impl ContentHasher {
    /// What to keep so that the reading can go on from here; `None` in the middle of a chunk.
    pub fn progress(&self) -> Option<Progress> {
        let (sha256, bytes) = self.sha256.midstate()?;
        let chunks = self.chunks.as_ref().map(|chunks| chunks.so_far().to_vec());
        let git_sha1 = self.git_sha1.as_ref().map(|state| state.serialize().to_vec());
        let md5 = self.md5.as_ref().map(|state| state.serialize().to_vec());
        bytes.is_multiple_of(CHUNK_LEN).then_some(Progress { bytes, sha256, git_sha1, md5, chunks })
    }

    /// A hasher that has taken what `progress` says; `None` where that cannot be what was kept.
    pub fn resume(progress: Progress) -> Option<Self> {
        // Whole chunks end with a whole block.
        let sha256 = Sha256State::resume(progress.sha256, progress.bytes)?;
        let git_sha1 = progress.git_sha1.as_deref().map(|state| restored(state).ok_or(())).transpose().ok()?;
        let md5 = progress.md5.as_deref().map(|state| restored(state).ok_or(())).transpose().ok()?;
        let chunks = progress.chunks.map(|chunks| Box::new(ChunkHasher::resume(chunks)));
        Some(Self { sha256, git_sha1, md5, chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_goes_on_where_it_was_stopped() {
        let chunk = CHUNK_LEN as usize;
        let content: Vec<u8> = (0..2 * chunk + 77).map(|at| ((at * 37) >> 4) as u8).collect();
        let alone = || ContentHasher::new().with_chunks();
        let size = content.len() as u64;
        let ways: [&dyn Fn() -> ContentHasher; 4] =
            [&alone, &|| alone().with_git_sha1(size), &|| alone().with_md5(), &|| {
                alone().with_md5().with_git_sha1(size)
            }];
        for (way, done) in ways.iter().flat_map(|way| [0, chunk, 2 * chunk].map(|done| (way, done))) {
            let mut whole = way();
            whole.update(&content);
            let expected = whole.finish_with_chunks();
            let mut first = way();
            first.update(&content[..done]);
            let kept = first.progress().unwrap();
            let (state, chunks) = (kept.state_to_bytes(), kept.chunks_to_bytes());
            assert_eq!(Progress::from_bytes(done as u64, &state, &chunks).as_ref(), Some(&kept));
            assert!(kept.fits(&way()));
            let mut second = ContentHasher::resume(kept).unwrap();
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
        let kept = ContentHasher::new().with_chunks().with_md5().progress().unwrap();
        assert!(!kept.fits(&ContentHasher::new().with_chunks()), "what runs along must run along from the beginning");
        let state = kept.state_to_bytes();
        assert_eq!(Progress::from_bytes(0, &state[..state.len() - 1], &[]), None);
        assert_eq!(Progress::from_bytes(0, &[state.as_slice(), b"m"].concat(), &[]), None);
    }
}
