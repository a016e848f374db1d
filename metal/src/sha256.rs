//! SHA-256 as a stream, with a state that can be kept and continued.

use crate::one::Way;

/// Bytes of one block.
pub const BLOCK: usize = 64;

/// The round constants, four rounds a line.
#[rustfmt::skip]
pub(crate) const K: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];

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
    way: Way,
    /// Whether it is never hashed together with others.
    is_alone: bool,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl Sha256 {
    /// The state before the first byte.
    pub fn new() -> Self {
        Self { state: START, len: 0, rest: [0; BLOCK], way: Way::best(), is_alone: false }
    }

    /// The same, hashed in this way whatever the processor can; `None` where larder is built without it.
    pub fn by(way: Way) -> Option<Self> {
        way.is_here().then(|| Self { way, is_alone: true, ..Self::new() })
    }

    /// Continues after `len` bytes, which left `state`: see [`Sha256::midstate`].
    ///
    /// `None` where `len` does not end a block.
    pub fn resume(state: [u32; 8], len: u64) -> Option<Self> {
        len.is_multiple_of(BLOCK as u64).then(|| Self { state, len, ..Self::new() })
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
        self.way.compress(&mut self.state, blocks);
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
            self.way.compress(&mut self.state, &[self.rest]);
            self.rest = [0; BLOCK];
        }
        self.rest[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
        self.way.compress(&mut self.state, &[self.rest]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone
    }

    pub(crate) fn state(&mut self) -> &mut [u32; 8] {
        &mut self.state
    }

    /// Notes that so many whole blocks were taken, by who changed the state.
    pub(crate) fn took(&mut self, blocks: usize) {
        self.len += (blocks * BLOCK) as u64;
    }

    fn filled(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }

    /// Completes the block that was begun; returns what is left of `bytes`.
    pub(crate) fn fill_up<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let filled = self.filled();
        if filled == 0 {
            return bytes;
        }
        let (now, later) = bytes.split_at(bytes.len().min(BLOCK - filled));
        self.rest[filled..filled + now.len()].copy_from_slice(now);
        self.len += now.len() as u64;
        if self.filled() == 0 {
            self.way.compress(&mut self.state, &[self.rest]);
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
