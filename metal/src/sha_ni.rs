//! Two SHA-256 streams in lockstep with the SHA instructions of x86-64.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
};

use crate::sha256::{BLOCK, K};

/// Whether the processor has the instructions.
pub(crate) fn is_here() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
}

/// Takes equally many blocks of both streams; `false` where the processor has no SHA instructions.
pub(crate) fn compress_pair(
    a: &mut [u32; 8],
    a_blocks: &[[u8; BLOCK]],
    b: &mut [u32; 8],
    b_blocks: &[[u8; BLOCK]],
) -> bool {
    let can = is_here();
    if can {
        // SAFETY: the processor has just been asked for each feature that the function is compiled with
        // (sse2 belongs to x86-64), and nothing else is demanded of its caller.
        unsafe { compress(a, a_blocks, b, b_blocks) };
    }
    can
}

/// One stream between two blocks: the eight words as the instructions want them.
#[derive(Clone, Copy)]
struct State {
    abef: __m128i,
    cdgh: __m128i,
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn compress(a: &mut [u32; 8], a_blocks: &[[u8; BLOCK]], b: &mut [u32; 8], b_blocks: &[[u8; BLOCK]]) {
    let (mut first, mut second) = (load(a), load(b));
    for (a_block, b_block) in a_blocks.iter().zip(b_blocks) {
        (first, second) = one_block_each(first, a_block, second, b_block);
    }
    store(first, a);
    store(second, b);
}

/// The message words of four rounds, which follow from those of the sixteen rounds before.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn schedule(w: [__m128i; 4]) -> __m128i {
    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[0], w[1]), _mm_alignr_epi8::<4>(w[3], w[2]));
    _mm_sha256msg2_epu32(sum, w[3])
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn four_rounds(state: &mut State, words: __m128i, k: __m128i) {
    let wk = _mm_add_epi32(words, k);
    state.cdgh = _mm_sha256rnds2_epu32(state.cdgh, state.abef, wk);
    state.abef = _mm_sha256rnds2_epu32(state.abef, state.cdgh, _mm_shuffle_epi32::<0x0e>(wk));
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
#[inline]
fn one_block_each(a: State, a_block: &[u8; BLOCK], b: State, b_block: &[u8; BLOCK]) -> (State, State) {
    let (mut first, mut second) = (a, b);
    let (mut v, mut w) = (words(a_block), words(b_block));
    // What each line begins with does not depend on the other stream, so both are under way at once.
    macro_rules! rounds {
        ($line:literal) => {
            let k = constants($line);
            four_rounds(&mut first, v[0], k);
            four_rounds(&mut second, w[0], k);
            v = [v[1], v[2], v[3], if $line < 12 { schedule(v) } else { v[0] }];
            w = [w[1], w[2], w[3], if $line < 12 { schedule(w) } else { w[0] }];
        };
    }
    rounds!(0);
    rounds!(1);
    rounds!(2);
    rounds!(3);
    rounds!(4);
    rounds!(5);
    rounds!(6);
    rounds!(7);
    rounds!(8);
    rounds!(9);
    rounds!(10);
    rounds!(11);
    rounds!(12);
    rounds!(13);
    rounds!(14);
    rounds!(15);
    let _ = (v, w);
    (sum(a, first), sum(b, second))
}

#[target_feature(enable = "sse2")]
#[inline]
fn sum(before: State, after: State) -> State {
    State { abef: _mm_add_epi32(before.abef, after.abef), cdgh: _mm_add_epi32(before.cdgh, after.cdgh) }
}

#[target_feature(enable = "sse2")]
#[inline]
fn constants(line: usize) -> __m128i {
    let [k0, k1, k2, k3] = K[line].map(u32::cast_signed);
    _mm_set_epi32(k3, k2, k1, k0)
}

/// The sixteen words of a block, which are big-endian.
#[target_feature(enable = "sse2,ssse3")]
#[inline]
fn words(block: &[u8; BLOCK]) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let quarters = block.as_chunks::<16>().0;
    let load = |quarter: &[u8; 16]| {
        let both = u128::from_le_bytes(*quarter);
        _mm_shuffle_epi8(_mm_set_epi64x((both >> 64) as i64, both as i64), swap)
    };
    [load(&quarters[0]), load(&quarters[1]), load(&quarters[2]), load(&quarters[3])]
}

#[target_feature(enable = "sse2")]
fn load(state: &[u32; 8]) -> State {
    let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
    State { abef: _mm_set_epi32(a, b, e, f), cdgh: _mm_set_epi32(c, d, g, h) }
}

#[target_feature(enable = "sse2,sse4.1")]
fn store(from: State, to: &mut [u32; 8]) {
    let State { abef, cdgh } = from;
    let words = [
        _mm_extract_epi32::<3>(abef),
        _mm_extract_epi32::<2>(abef),
        _mm_extract_epi32::<3>(cdgh),
        _mm_extract_epi32::<2>(cdgh),
        _mm_extract_epi32::<1>(abef),
        _mm_extract_epi32::<0>(abef),
        _mm_extract_epi32::<1>(cdgh),
        _mm_extract_epi32::<0>(cdgh),
    ];
    *to = words.map(i32::cast_unsigned);
}
