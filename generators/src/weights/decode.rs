//! From stored bytes to `f32`: the number formats of checkpoints, decoded by all cores.

use half::f16;
use half::slice::HalfFloatSliceExt as _;
use rayon::prelude::{IndexedParallelIterator as _, ParallelIterator as _, ParallelSlice as _, ParallelSliceMut as _};

/// Elements that one task decodes: small enough to stay in a core's cache, large enough to be worth a task.
const BLOCK: usize = 1 << 15;

/// How the numbers of one tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Encoding {
    /// IEEE single precision, little-endian.
    F32,
    /// IEEE half precision, little-endian.
    F16,
    /// The upper half of an `f32`, little-endian.
    Bf16,
    /// One byte: sign, four exponent bits (bias 7), three mantissa bits; no infinities.
    F8E4m3 {
        /// What every decoded number is multiplied by; 1 where the file has no scale.
        scale: f32,
    },
}

impl Encoding {
    /// Bytes that one number takes.
    pub fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4m3 { .. } => 1,
        }
    }

    /// Decodes `bytes` into `out`, on all cores.
    ///
    /// # Panics
    /// When `bytes` is not exactly `out.len()` numbers long.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.width(), "stored bytes and decoded numbers differ in length");
        let table = self.table();
        let blocks = out.par_chunks_mut(BLOCK).zip(bytes.par_chunks(BLOCK * self.width()));
        blocks.for_each(|(numbers, stored)| self.decode_block(&table, stored, numbers));
    }

    fn decode_block(self, table: &[f32; 256], bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => decode_f32(bytes, out),
            Self::F16 => decode_f16(bytes, out),
            Self::Bf16 => decode_bf16(bytes, out),
            Self::F8E4m3 { .. } => {
                out.iter_mut().zip(bytes).for_each(|(number, &code)| *number = table[usize::from(code)]);
            }
        }
    }

    fn table(self) -> [f32; 256] {
        let Self::F8E4m3 { scale } = self else { return [0.0; 256] };
        std::array::from_fn(|code| f8_e4m3(code as u8) * scale)
    }
}

fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<4>();
    out.iter_mut().zip(words).for_each(|(number, word)| *number = f32::from_le_bytes(*word));
}

fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let (pairs, _) = bytes.as_chunks::<2>();
    let mut halves = [f16::ZERO; 1024];
    for (numbers, stored) in out.chunks_mut(halves.len()).zip(pairs.chunks(1024)) {
        halves.iter_mut().zip(stored).for_each(|(half, pair)| *half = f16::from_le_bytes(*pair));
        halves[..numbers.len()].convert_to_f32_slice(numbers);
    }
}

fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    let (pairs, _) = bytes.as_chunks::<2>();
    // A plain shift, unlike `bf16::to_f32`, which looks for signalling NaNs and is several times slower for it.
    let widened = |pair: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(pair)) << 16);
    out.iter_mut().zip(pairs).for_each(|(number, pair)| *number = widened(*pair));
}

/// The number that an F8 E4M3FN code stands for.
pub fn f8_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 0xf), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}
