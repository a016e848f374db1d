//! Sixteen SHA-256 streams in lockstep: each register of AVX-512 holds one word of all of them.

use std::arch::x86_64::{
    __m512i, _mm_set_epi64x, _mm512_add_epi32, _mm512_broadcast_i32x4, _mm512_loadu_si512, _mm512_ror_epi32,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_srli_epi32,
    _mm512_storeu_si512, _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use crate::sha256::{BLOCK, K};

/// Streams that are taken at once.
pub(crate) const LANES: usize = 16;

/// A stream between two blocks, and the blocks that it takes next.
pub(crate) type Lane<'a, 'b> = (&'a mut [u32; 8], &'b [[u8; BLOCK]]);

/// Truth tables of three operands, by which one instruction combines them.
const CHOICE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;
const PARITY: i32 = 0x96;

/// Whether the processor has the instructions.
pub(crate) fn is_here() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// Takes the blocks of up to sixteen streams, of each as many as the one with the fewest has.
///
/// # Panics
///
/// Where there is no stream or more than sixteen, or the processor lacks the instructions.
pub(crate) fn compress(lanes: &mut [Lane<'_, '_>]) {
    assert!((1..=LANES).contains(&lanes.len()) && is_here());
    let blocks = lanes.iter().map(|(_, blocks)| blocks.len()).min().unwrap_or(0);
    // What is computed where there is no stream is that of the first, and thrown away.
    let lane = |number: usize| if number < lanes.len() { number } else { 0 };
    let mut words = [[0; LANES]; 8];
    for (word, row) in words.iter_mut().enumerate() {
        *row = std::array::from_fn(|number| lanes[lane(number)].0[word]);
    }
    let contents: [&[[u8; BLOCK]]; LANES] = std::array::from_fn(|number| &lanes[lane(number)].1[..blocks]);
    // SAFETY: the processor has just been asked for both features that the function is compiled with.
    unsafe { all_blocks(&mut words, &contents, blocks) };
    for (number, (state, _)) in lanes.iter_mut().enumerate() {
        **state = words.map(|row| row[number]);
    }
}

/// `words[i][n]` is word i of the state of stream n.
#[target_feature(enable = "avx512f,avx512bw")]
fn all_blocks(words: &mut [[u32; LANES]; 8], contents: &[&[[u8; BLOCK]]; LANES], blocks: usize) {
    let mut state = [_mm512_setzero_si512(); 8];
    for (register, row) in state.iter_mut().zip(&*words) {
        // SAFETY: a row has the 64 bytes that are read, and no alignment is demanded.
        *register = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    for number in 0..blocks {
        state = one_block_each(state, message(contents, number));
    }
    for (register, row) in state.iter().zip(words) {
        // SAFETY: a row has the 64 bytes that are written, and no alignment is demanded.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), *register) };
    }
}

/// The sixteen words, which are big-endian, of block `number` of each stream.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn message(contents: &[&[[u8; BLOCK]]; LANES], number: usize) -> [__m512i; 16] {
    let swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203));
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (row, blocks) in rows.iter_mut().zip(contents) {
        // SAFETY: a block has the 64 bytes that are read, and no alignment is demanded.
        let block = unsafe { _mm512_loadu_si512(blocks[number].as_ptr().cast()) };
        *row = _mm512_shuffle_epi8(block, swap);
    }
    transposed(rows)
}

/// Rows become columns: squares of 1, of 2 and of 4 words change their places with their neighbours.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let (mut twos, mut fours, mut columns) = (rows, rows, rows);
    for i in 0..8 {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        (twos[2 * i], twos[2 * i + 1]) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    for i in (0..16).step_by(4) {
        let [a, b, c, d] = [twos[i], twos[i + 1], twos[i + 2], twos[i + 3]];
        (fours[i], fours[i + 1]) = (_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c));
        (fours[i + 2], fours[i + 3]) = (_mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d));
    }
    for i in 0..4 {
        let [a, b, c, d] = [fours[i], fours[4 + i], fours[8 + i], fours[12 + i]];
        let (even, even_too) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        let (odd, odd_too) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
        columns[i] = _mm512_shuffle_i32x4::<0x88>(even, even_too);
        columns[4 + i] = _mm512_shuffle_i32x4::<0x88>(odd, odd_too);
        columns[8 + i] = _mm512_shuffle_i32x4::<0xdd>(even, even_too);
        columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_too);
    }
    columns
}

/// The words of sixteen rounds, which follow from those of the sixteen before.
#[target_feature(enable = "avx512f")]
#[inline]
fn schedule(w: &mut [__m512i; 16]) {
    // Written out, so that every word stays in a register of its own.
    macro_rules! word {
        ($($t:literal)*) => {$(
            let (early, late) = (w[($t + 1) % 16], w[($t + 14) % 16]);
            let early = parity(
                _mm512_ror_epi32::<7>(early), _mm512_ror_epi32::<18>(early), _mm512_srli_epi32::<3>(early),
            );
            let late = parity(
                _mm512_ror_epi32::<17>(late), _mm512_ror_epi32::<19>(late), _mm512_srli_epi32::<10>(late),
            );
            w[$t] = _mm512_add_epi32(_mm512_add_epi32(w[$t], early), _mm512_add_epi32(w[($t + 9) % 16], late));
        )*};
    }
    word!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

#[target_feature(enable = "avx512f")]
#[inline]
fn parity(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<PARITY>(a, b, c)
}

/// One round on the words a to h: all change their names by one place, and two their values.
#[target_feature(enable = "avx512f")]
#[inline]
fn round(state: [__m512i; 8], word: __m512i, constant: u32) -> [__m512i; 8] {
    let [a, b, c, d, e, f, g, h] = state;
    let turned = parity(_mm512_ror_epi32::<6>(e), _mm512_ror_epi32::<11>(e), _mm512_ror_epi32::<25>(e));
    let chosen = _mm512_ternarylogic_epi32::<CHOICE>(e, f, g);
    let given = _mm512_add_epi32(h, _mm512_add_epi32(word, _mm512_set1_epi32(constant.cast_signed())));
    let first = _mm512_add_epi32(_mm512_add_epi32(given, chosen), turned);
    let turned = parity(_mm512_ror_epi32::<2>(a), _mm512_ror_epi32::<13>(a), _mm512_ror_epi32::<22>(a));
    let most = _mm512_ternarylogic_epi32::<MAJORITY>(a, b, c);
    [_mm512_add_epi32(_mm512_add_epi32(first, turned), most), a, b, c, _mm512_add_epi32(d, first), e, f, g]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn one_block_each(before: [__m512i; 8], mut w: [__m512i; 16]) -> [__m512i; 8] {
    let mut state = before;
    for (line, constants) in K.as_chunks::<4>().0.iter().enumerate() {
        if line > 0 {
            schedule(&mut w);
        }
        macro_rules! rounds {
            ($($t:literal)*) => {$( state = round(state, w[$t], constants[$t / 4][$t % 4]); )*};
        }
        rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
    for (after, before) in state.iter_mut().zip(before) {
        *after = _mm512_add_epi32(*after, before);
    }
    state
}
