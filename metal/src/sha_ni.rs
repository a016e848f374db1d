//! Two SHA-256 streams in lockstep with the SHA instructions of x86-64.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
};

use crate::BLOCK;

/// The round constants, four rounds a line.
#[rustfmt::skip]
const K: [[u32; 4]; 16] = [
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

/// Takes equally many blocks of both streams; `false` where the processor has no SHA instructions.
pub(crate) fn compress_pair(
    a: &mut [u32; 8],
    a_blocks: &[[u8; BLOCK]],
    b: &mut [u32; 8],
    b_blocks: &[[u8; BLOCK]],
) -> bool {
    let can =
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1");
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
