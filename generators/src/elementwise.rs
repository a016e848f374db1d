//! What is done to each number or to each row of numbers, on the processor in one go: by all cores, many numbers at a
//! time, and without a pass over memory for each operation. Elsewhere, and in other number formats, candle does it.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::{ParallelSlice as _, ParallelSliceMut as _};

/// Numbers that one thread takes at a time, at least.
const PIECE: usize = 1 << 14;
/// Numbers that are summed side by side.
const LANES: usize = 16;

/// GELU in its approximation by the hyperbolic tangent, of every number.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    // Written with the logistic function: 1 + tanh(u) = 2 / (1 + exp(-2 u)).
    let of = |x: f32| x / (1.0 + exp(-1.595_769 * (x + 0.044_715 * x * x * x)));
    let op = ByRows("gelu", move |from: &[f32], to: &mut [f32]| from.iter().zip(to).for_each(|(x, y)| *y = of(*x)));
    if is_here(x) { op.apply(x) } else { x.gelu() }
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if !is_here(x) {
        return candle_nn::ops::softmax_last_dim(x);
    }
    let op = ByRows("softmax", |from: &[f32], to: &mut [f32]| {
        let most = from.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        from.iter().zip(&mut *to).for_each(|(x, y)| *y = exp(x - most));
        let part = 1.0 / sum(to, |y| y);
        to.iter_mut().for_each(|y| *y *= part);
    });
    op.apply(x)
}

/// Moves every row along the last dimension to mean 0 and divides it to variance 1.
pub fn normalised(x: &Tensor, eps: f64) -> Result<Tensor> {
    if !is_here(x) {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        return centred.broadcast_div(&(variance + eps)?.sqrt()?);
    }
    let op = ByRows("normalised", move |from: &[f32], to: &mut [f32]| {
        let mean = sum(from, |x| x) / from.len() as f32;
        let variance = sum(from, |x| (x - mean) * (x - mean)) / from.len() as f32;
        let part = 1.0 / (variance + eps as f32).sqrt();
        from.iter().zip(to).for_each(|(x, y)| *y = (x - mean) * part);
    });
    op.apply(x)
}

/// Divides every row along the last dimension by its root mean square.
pub fn unit_mean_square(x: &Tensor, eps: f64) -> Result<Tensor> {
    if !is_here(x) {
        let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?;
        return x.broadcast_div(&mean.sqrt()?);
    }
    let op = ByRows("unit mean square", move |from: &[f32], to: &mut [f32]| {
        let part = 1.0 / (sum(from, |x| x * x) / from.len() as f32 + eps as f32).sqrt();
        from.iter().zip(to).for_each(|(x, y)| *y = x * part);
    });
    op.apply(x)
}

fn is_here(x: &Tensor) -> bool {
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
            candle_core::bail!("{} is for contiguous numbers in single precision", self.0)
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
            assert!(farthest(&unit_mean_square(&x, 1e-6).unwrap(), &unit_mean_square(&exact, 1e-6).unwrap()) < 5e-7);
        }
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
