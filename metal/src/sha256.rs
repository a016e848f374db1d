//! SHA-256 as a stream, with a state that can be kept and continued.

use sha2::block_api::compress256;

/// Bytes of one block.
pub const BLOCK: usize = 64;

const START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// SHA-256 of a stream of bytes.
#[derive(Debug, Clone)]
pub struct Sha256 {
    state: [u32; 8],
    /// Bytes taken, those in `rest` included.
    len: u64,
    /// The beginning of a block that is not full yet.
    rest: [u8; BLOCK],
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl Sha256 {
    /// The state before the first byte.
    pub fn new() -> Self {
        Self { state: START, len: 0, rest: [0; BLOCK] }
    }

    /// Continues after `len` bytes, which left `state`: see [`Sha256::midstate`].
    ///
    /// `None` where `len` does not end a block.
    pub fn resume(state: [u32; 8], len: u64) -> Option<Self> {
        len.is_multiple_of(BLOCK as u64).then_some(Self { state, len, rest: [0; BLOCK] })
    }

    /// The state to continue from, and the bytes taken so far; `None` in the middle of a block.
    pub fn midstate(&self) -> Option<([u32; 8], u64)> {
        (self.filled() == 0).then_some((self.state, self.len))
    }

    /// Bytes taken so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte was taken.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let bytes = self.fill_up(bytes);
        let (blocks, tail) = bytes.as_chunks::<BLOCK>();
        compress256(&mut self.state, blocks);
        self.len += (blocks.len() * BLOCK) as u64;
        self.keep(tail);
    }

    /// The digest of everything taken.
    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.len.wrapping_mul(8);
        let filled = self.filled();
        self.rest[filled] = 0x80;
        self.rest[filled + 1..].fill(0);
        if filled + 1 > BLOCK - 8 {
            compress256(&mut self.state, &[self.rest]);
            self.rest = [0; BLOCK];
        }
        self.rest[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
        compress256(&mut self.state, &[self.rest]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }

    fn filled(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }

    /// Completes the block that was begun; returns what is left of `bytes`.
    fn fill_up<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let filled = self.filled();
        if filled == 0 {
            return bytes;
        }
        let (now, later) = bytes.split_at(bytes.len().min(BLOCK - filled));
        self.rest[filled..filled + now.len()].copy_from_slice(now);
        self.len += now.len() as u64;
        if self.filled() == 0 {
            compress256(&mut self.state, &[self.rest]);
        }
        later
    }

    /// Begins a block with fewer bytes than it has.
    fn keep(&mut self, tail: &[u8]) {
        if tail.is_empty() {
            return;
        }
        let filled = self.filled();
        self.rest[filled..filled + tail.len()].copy_from_slice(tail);
        self.len += tail.len() as u64;
    }
}

/// Takes the next bytes of two independent streams, both at once where the processor can.
///
/// The same as two calls of [`Sha256::update`], whatever the lengths.
pub fn update_pair(first: &mut Sha256, bytes: &[u8], second: &mut Sha256, others: &[u8]) {
    let (bytes, others) = (first.fill_up(bytes), second.fill_up(others));
    let both = bytes.len().min(others.len()) / BLOCK;
    let (blocks, other_blocks) = (&bytes.as_chunks::<BLOCK>().0[..both], &others.as_chunks::<BLOCK>().0[..both]);
    let done = if compress_pair(&mut first.state, blocks, &mut second.state, other_blocks) { both * BLOCK } else { 0 };
    first.len += done as u64;
    second.len += done as u64;
    first.update(&bytes[done..]);
    second.update(&others[done..]);
}

#[cfg(target_arch = "x86_64")]
fn compress_pair(a: &mut [u32; 8], a_blocks: &[[u8; BLOCK]], b: &mut [u32; 8], b_blocks: &[[u8; BLOCK]]) -> bool {
    crate::sha_ni::compress_pair(a, a_blocks, b, b_blocks)
}

#[cfg(not(target_arch = "x86_64"))]
fn compress_pair(_: &mut [u32; 8], _: &[[u8; BLOCK]], _: &mut [u32; 8], _: &[[u8; BLOCK]]) -> bool {
    false
}
