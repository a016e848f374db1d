//! One SHA-256 stream, in the way that is the fastest on this processor.

use crate::sha256::BLOCK;

/// A way to hash one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `sha2`, which uses SHA instructions where the processor has them, and else plain arithmetic.
    Sha2,
    /// AWS-LC, which uses AVX or SSSE3 where the processor has no SHA instructions. Only on x86-64.
    AwsLc,
}

impl Way {
    /// The fastest one here.
    pub fn best() -> Self {
        if lacks_sha_instructions() { Way::AwsLc } else { Way::Sha2 }
    }

    /// Whether larder is built with it.
    pub fn is_here(self) -> bool {
        match self {
            Way::Sha2 => true,
            Way::AwsLc => cfg!(target_arch = "x86_64"),
        }
    }

    pub(crate) fn compress(self, state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
        match self {
            Way::Sha2 => sha2::block_api::compress256(state, blocks),
            Way::AwsLc => by_aws_lc(state, blocks),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn lacks_sha_instructions() -> bool {
    !crate::sha_ni::is_here()
}

/// Other processors are asked by `sha2`, whose code for them is as good.
#[cfg(not(target_arch = "x86_64"))]
fn lacks_sha_instructions() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn by_aws_lc(state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
    // Without a block the library's loop would begin all the same.
    if blocks.is_empty() {
        return;
    }
    // SAFETY: eight words are read and written at the first address, and at the second so many blocks of 64 bytes are
    // read, which is what both slices have; the function keeps neither, and asks the processor itself what it can.
    unsafe { aws_lc_sys::SHA256_TransformBlocks(state.as_mut_ptr(), blocks.as_ptr().cast(), blocks.len()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn by_aws_lc(state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
    sha2::block_api::compress256(state, blocks);
}
