//! What is done to each number or to each row of numbers, on the processor in one go: by all cores, many numbers at a
//! time, and without a pass over memory for each operation. Elsewhere, and in other number formats, candle does it.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::{ParallelSlice as _, ParallelSliceMut as _};

/// Numbers that one thread takes at a time, at least.
pub(crate) const PIECE: usize = 1 << 14;
/// Numbers that are summed side by side.
const LANES: usize = 16;

/// GELU in its approximation by the hyperbolic tangent, of every number.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let op = ByRows("gelu", |from: &[f32], to: &mut [f32]| from.iter().zip(to).for_each(|(x, y)| *y = gelu_of(*x)));
    if is_here(x) { op.apply(x) } else { x.gelu() }
}

/// The same in place.
pub(crate) fn to_gelu(numbers: &mut [f32]) {
    numbers.iter_mut().for_each(|number| *number = gelu_of(*number));
}

fn gelu_of(x: f32) -> f32 {
    // Written with the logistic function: 1 + tanh(u) = 2 / (1 + exp(-2 u)).
    x / (1.0 + exp(-1.595_769 * (x + 0.044_715 * x * x * x)))
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if !is_here(x) {
        return candle_nn::ops::softmax_last_dim(x);
    }
    let op = ByRows("softmax", |from: &[f32], to: &mut [f32]| {
        to.copy_from_slice(from);
        to_softmax(to);
    });
    op.apply(x)
}

/// Softmax over some numbers, in place.
pub(crate) fn to_softmax(row: &mut [f32]) {
    let most = most(row);
    row.iter_mut().for_each(|x| *x = exp(*x - most));
    let part = 1.0 / sum(row, |x| x);
    row.iter_mut().for_each(|x| *x *= part);
}

/// The largest number; what is none counts for nothing here.
fn most(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let whole = row.chunks_exact(LANES);
    let rest = whole.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for group in whole {
        lanes.iter_mut().zip(group).for_each(|(lane, x)| *lane = lane.max(*x));
    }
    lanes.into_iter().fold(rest, f32::max)
}

/// Moves every row along the last dimension to mean 0 and divides it to variance 1.
pub fn normalised(x: &Tensor, eps: f64) -> Result<Tensor> {
    if !is_here(x) {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        return centred.broadcast_div(&(variance + eps)?.sqrt()?);
    }
    let op = ByRows("normalised", move |from: &[f32], to: &mut [f32]| {
        let (mean, part) = mean_and_part(from, eps);
        from.iter().zip(to).for_each(|(x, y)| *y = (x - mean) * part);
    });
    op.apply(x)
}

/// The mean of some numbers, and what brings their variance to 1.
fn mean_and_part(row: &[f32], eps: f64) -> (f32, f32) {
    let mean = sum(row, |x| x) / row.len() as f32;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
    (mean, 1.0 / (variance + eps as f32).sqrt())
}

/// The same as [`normalised`], each number times its own of `scale`, plus its own of `shift`: each of (width), or of
/// (batch, 1, width) for `x` (batch, length, width).
pub(crate) fn scaled_and_moved(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    if ![x, scale, shift].into_iter().all(is_here) {
        return normalised(x, eps)?.broadcast_mul(scale)?.broadcast_add(shift);
    }
    let op = Beside("scaled and moved", move |from: &[f32], [scale, shift]: [&[f32]; 2], to: &mut [f32]| {
        let (mean, part) = mean_and_part(from, eps);
        let both = scale.iter().zip(shift);
        from.iter().zip(both).zip(to).for_each(|((x, (scale, shift)), y)| *y = (x - mean) * part * scale + shift);
    });
    op.apply(x, scale, shift)
}

/// `x` (batch, length, width) plus `y` of its shape, each number of which is multiplied by its own of `gate` (batch, 1, width).
pub(crate) fn gated_sum(x: &Tensor, y: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if ![x, y, gate].into_iter().all(is_here) {
        return x + y.broadcast_mul(gate)?;
    }
    let op = Beside("gated sum", |x: &[f32], [y, gate]: [&[f32]; 2], to: &mut [f32]| {
        let both = y.iter().zip(gate);
        x.iter().zip(both).zip(to).for_each(|((x, (y, gate)), to)| *to = x + y * gate);
    });
    op.apply(x, &y.contiguous()?, gate)
}

/// Divides every row along the last dimension by its root mean square, and multiplies it by `weight` (width).
pub fn unit_mean_square(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if !is_here(x) || !is_here(weight) {
        let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?;
        return x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(weight);
    }
    let op = Beside("unit mean square", move |from: &[f32], [weight, _]: [&[f32]; 2], to: &mut [f32]| {
        let part = 1.0 / (sum(from, |x| x * x) / from.len() as f32 + eps as f32).sqrt();
        from.iter().zip(weight).zip(to).for_each(|((x, weight), y)| *y = x * part * weight);
    });
    op.apply(x, weight, weight)
}

/// Whether this module, and not candle, computes with a tensor.
pub(crate) fn is_here(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Something done to each row along the last dimension.
struct ByRows<F>(&'static str, F);

impl<F: Fn(&[f32], &mut [f32]) + Send + Sync> ByRows<F> {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(self)
    }
}

impl<F: Fn(&[f32], &mut [f32]) + Send + Sync> CustomOp1 for ByRows<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(numbers), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("{} is for contiguous numbers in single precision", self.0)
        };
        let mut made = vec![0.0; end - start];
        let width = layout.dims().last().copied().unwrap_or(1).max(1);
        let piece = width * PIECE.div_ceil(width);
        let pieces = numbers[start..end].par_chunks(piece).zip(made.par_chunks_mut(piece));
        pieces.for_each(|(from, to)| {
            from.chunks(width).zip(to.chunks_mut(width)).for_each(|(from, to)| (self.1)(from, to));
        });
        Ok((CpuStorage::F32(made), layout.shape().clone()))
    }
}

/// Something done to each row along the last dimension with the rows of two other tensors that belong to it.
struct Beside<F>(&'static str, F);

/// Where the rows of another tensor lie: one for each row, one for all rows of a text or picture, or one for all.
struct Rows<'a> {
    numbers: &'a [f32],
    /// Rows of the first tensor that share one of these.
    shared: usize,
    step: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    fn of(storage: &'a CpuStorage, layout: &Layout, like: &[usize]) -> Result<Self> {
        let CpuStorage::F32(numbers) = storage else { bail!("not in single precision") };
        let width = like.last().copied().unwrap_or(1);
        let (shared, step) = match (layout.dims(), like, layout.stride()) {
            (dims, like, _) if dims == like && layout.is_contiguous() => (1, width),
            ([one], _, [1]) if *one == width => (usize::MAX, 0),
            ([batch, 1, own], [of, length, _], [step, _, 1]) if batch == of && *own == width => (*length, *step),
            (dims, ..) => bail!("{dims:?} has no row for each of {like:?}"),
        };
        Ok(Self { numbers: &numbers[layout.start_offset()..], shared, step, width })
    }

    fn at(&self, row: usize) -> &'a [f32] {
        let start = row / self.shared.max(1) * self.step;
        &self.numbers[start..start + self.width]
    }
}

impl<F: Fn(&[f32], [&[f32]; 2], &mut [f32]) + Send + Sync> Beside<F> {
    fn apply(&self, x: &Tensor, one: &Tensor, other: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op3_no_bwd(one, other, self)
    }
}

impl<F: Fn(&[f32], [&[f32]; 2], &mut [f32]) + Send + Sync> CustomOp3 for Beside<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        one: &CpuStorage,
        one_lies: &Layout,
        other: &CpuStorage,
        other_lies: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(numbers), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("{} is for contiguous numbers in single precision", self.0)
        };
        let (one, other) = (Rows::of(one, one_lies, layout.dims())?, Rows::of(other, other_lies, layout.dims())?);
        let mut made = vec![0.0; end - start];
        let width = one.width.max(1);
        let rows = PIECE.div_ceil(width);
        let pieces = numbers[start..end].par_chunks(width * rows).zip(made.par_chunks_mut(width * rows)).enumerate();
        pieces.for_each(|(piece, (from, to))| {
            for (i, (from, to)) in from.chunks(width).zip(to.chunks_mut(width)).enumerate() {
                let row = piece * rows + i;
                (self.1)(from, [one.at(row), other.at(row)], to);
            }
        });
        Ok((CpuStorage::F32(made), layout.shape().clone()))
    }
}

/// The sum of a function of all numbers, in lanes, so that the processor's wide registers can do it.
fn sum(numbers: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0_f32; LANES];
    let whole = numbers.chunks_exact(LANES);
    let rest: f32 = whole.remainder().iter().map(|x| of(*x)).sum();
    for group in whole {
        lanes.iter_mut().zip(group).for_each(|(lane, x)| *lane += of(*x));
    }
    lanes.iter().sum::<f32>() + rest
}

/// The exponential function, within two units in the last place; a compiler can do many at once, unlike the system's.
fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let inside = x.clamp(-87.3, 88.3);
    let shifted = inside * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    // The logarithm of 2 in two parts, the first with few digits, so that its product is exact.
    let rest = inside - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let series = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let tail = series.iter().fold(0.0, |sum, factor| sum * rest + factor);
    let number = (tail * rest * rest + rest + 1.0) * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 { 0.0 } else { number }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn rows() -> Tensor {
        let numbers: Vec<f32> = (0..40_000).map(|i| ((i * 7919 % 2003) as f32 / 1000.0 - 1.0) * 6.0).collect();
        Tensor::from_vec(numbers, (8, 50, 100), &Device::Cpu).unwrap()
    }

    fn farthest(found: &Tensor, right: &Tensor) -> f64 {
        let right = right.to_dtype(DType::F64).unwrap();
        let apart = (found.to_dtype(DType::F64).unwrap() - &right).unwrap().abs().unwrap().max_all().unwrap();
        apart.to_scalar::<f64>().unwrap() / right.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap()
    }

    #[test]
    fn each_is_what_candle_computes_in_double_precision() {
        let x = rows();
        // A strided view too: what is given need not lie in one piece.
        for x in [x.clone(), x.transpose(0, 1).unwrap()] {
            let exact = x.to_dtype(DType::F64).unwrap();
            assert!(farthest(&gelu(&x).unwrap(), &gelu(&exact).unwrap()) < 5e-7);
            let right = candle_nn::ops::softmax(&exact, D::Minus1).unwrap();
            assert!(farthest(&softmax(&x).unwrap(), &right) < 5e-7);
            assert!(farthest(&normalised(&x, 1e-6).unwrap(), &normalised(&exact, 1e-6).unwrap()) < 5e-7);
        }
    }

    #[test]
    fn rows_beside_others_are_what_candle_computes_in_double_precision() {
        let x = rows();
        let exact = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        // Of each text, and cut from wider ones; of all; of each row.
        let of_texts = x.narrow(1, 3, 2).unwrap().reshape((8, 1, 200)).unwrap().narrow(2, 40, 100).unwrap();
        let others = [of_texts, x.get(0).unwrap().get(1).unwrap()];
        for x in [x.clone(), x.transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap()] {
            for other in &others {
                let right = scaled_and_moved(&exact(&x), &exact(other), &exact(other), 1e-6).unwrap();
                assert!(farthest(&scaled_and_moved(&x, other, other, 1e-6).unwrap(), &right) < 5e-7);
                let right = gated_sum(&exact(&x), &exact(&x), &exact(other)).unwrap();
                assert!(farthest(&gated_sum(&x, &x, other).unwrap(), &right) < 5e-7);
            }
            let right = unit_mean_square(&exact(&x), &exact(&others[1]), 1e-6).unwrap();
            assert!(farthest(&unit_mean_square(&x, &others[1], 1e-6).unwrap(), &right) < 5e-7);
        }
        assert!(scaled_and_moved(&x, &x.narrow(2, 0, 99).unwrap(), &others[1], 1e-6).is_err());
    }

    #[test]
    fn the_exponential_is_exact_to_the_last_digits_and_ends_as_it_should() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let right = f64::from(x).exp();
            assert!((f64::from(exp(x)) / right - 1.0).abs() < 2.5e-7, "{x}: {} instead of {right}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn masked_numbers_count_nothing_and_undefined_ones_are_not_hidden() {
        let of = |numbers: &[f32]| Tensor::new(numbers, &Device::Cpu).unwrap();
        let list = |x: Tensor| x.to_vec1::<f32>().unwrap();
        assert_eq!(list(softmax(&of(&[1.0, f32::NEG_INFINITY, 1.0])).unwrap()), [0.5, 0.0, 0.5]);
        assert!(list(softmax(&of(&[1.0, f32::NAN])).unwrap()).iter().all(|number| number.is_nan()));
        assert!(list(gelu(&of(&[f32::NAN])).unwrap())[0].is_nan());
        assert!(list(normalised(&of(&[f32::NAN, 1.0]), 1e-6).unwrap())[1].is_nan());
    }
}
