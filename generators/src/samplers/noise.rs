//! Noise that is the same on every machine: from a seed, by splitmix64 and the Box-Muller transform.

use candle_core::{Device, Result, Shape, Tensor};

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Noise {
    state: u64,
}

impl Noise {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A tensor of numbers of mean 0 and variance 1; the next call gives others.
    pub fn tensor(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let mut numbers = Vec::with_capacity(shape.elem_count() + 1);
        while numbers.len() < shape.elem_count() {
            numbers.extend(self.pair());
        }
        numbers.truncate(shape.elem_count());
        Tensor::from_vec(numbers, shape, device)
    }

    /// Two independent numbers. Computed in double precision, so that rounding to single gives all machines the same.
    fn pair(&mut self) -> [f32; 2] {
        let (length, angle) = (self.uniform(), self.uniform());
        let length = (-2.0 * (1.0 - length).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * angle).sin_cos();
        [(length * cos) as f32, (length * sin) as f32]
    }

    /// From 0 up to, but not, 1.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
