//! The layers that models are made of. Each claims its tensors when it is made and decodes them when it runs.

use candle_core::{Module as _, Result, Tensor};

use crate::attention::by_pieces;
use crate::elementwise::{gelu, normalised, scaled_and_moved, softmax, to_gelu, unit_mean_square};
use crate::product::{Then, product, product_then};
use crate::weights::{Param, Weights};

/// Rows of attention scores that are held at a time, so that a long sequence does not need its whole square.
const SCORES: usize = 1 << 24;

/// Numbers that a convolution over images lays out at a time: at 1024 pixels a whole picture would take gigabytes, and
/// candle's kernel for GPUs counts them in 32 bits.
const UNFOLDED: usize = 1 << 24;

/// `x · weightᵀ + bias` over the last dimension.
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
}

impl Linear {
    /// Claims `weight` (outputs, inputs) and `bias` (outputs).
    pub fn new(inputs: usize, outputs: usize, weights: &Weights) -> Self {
        Self { bias: Some(weights.param("bias", &[outputs])), ..Self::without_bias(inputs, outputs, weights) }
    }

    /// Claims `weight` (outputs, inputs) alone.
    pub fn without_bias(inputs: usize, outputs: usize, weights: &Weights) -> Self {
        Self { weight: weights.param("weight", &[outputs, inputs]), bias: None }
    }

    /// Makes a layer of tensors that are not called `weight` and `bias`.
    pub fn from_params(weight: Param, bias: Option<Param>) -> Self {
        Self { weight, bias }
    }

    /// (…, inputs) to (…, outputs).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        turned(&self.weight, x, self.bias.as_ref(), None)
    }

    /// The same, and GELU (by the hyperbolic tangent) of it.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        turned(&self.weight, x, self.bias.as_ref(), Some(Then { here: to_gelu, elsewhere: gelu }))
    }
}

/// `x` (…, inputs) times the transpose of `weight` (outputs, inputs), plus `bias` (outputs), and `then` what is done to
/// each number: (…, outputs).
fn turned(weight: &Param, x: &Tensor, bias: Option<&Param>, then: Option<Then>) -> Result<Tensor> {
    let (outputs, inputs) = (weight.shape()[0], weight.shape()[1]);
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let rows = x.reshape(((), inputs))?.contiguous()?;
    let bias = bias.map(Param::tensor).transpose()?;
    if let Some(packed) = weight.packed()? {
        let made = packed.forward(&rows)?;
        let made = bias.map_or(Ok(made.clone()), |bias| made.broadcast_add(&bias))?;
        return then.map_or(Ok(made.clone()), |then| (then.elsewhere)(&made))?.reshape(shape);
    }
    let parts = weight.pieces().into_iter().map(|piece| {
        let bias = bias.as_ref().map(|bias| bias.narrow(0, piece.start, piece.len())).transpose()?;
        product_then(&rows, &weight.rows(piece)?.t()?, bias.as_ref(), then)
    });
    let parts: Vec<Tensor> = parts.collect::<Result<_>>()?;
    if parts.len() == 1 { parts[0].reshape(shape) } else { Tensor::cat(&parts, 1)?.reshape(shape) }
}

/// Rows of a table, looked up by number.
pub struct Embedding {
    table: Param,
}

impl Embedding {
    /// Claims `weight` (entries, width).
    pub fn new(entries: usize, width: usize, weights: &Weights) -> Self {
        Self { table: weights.param("weight", &[entries, width]) }
    }

    /// Numbers (batch, length) to (batch, length, width).
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, length) = ids.dims2()?;
        let flat = ids.flatten_all()?.to_dtype(candle_core::DType::U32)?.to_vec1::<u32>()?;
        self.table.gather(&flat)?.reshape((batch, length, ()))
    }

    /// How well states fit each entry: (…, width) to (…, entries).
    pub fn scores(&self, x: &Tensor) -> Result<Tensor> {
        turned(&self.table, x, None, None)
    }
}

/// Normalisation to mean 0 and variance 1 over the last dimension, with or without weights.
pub struct LayerNorm {
    affine: Option<(Param, Param)>,
    eps: f64,
}

impl LayerNorm {
    /// Claims `weight` and `bias` (width).
    pub fn new(width: usize, eps: f64, weights: &Weights) -> Self {
        let bias = weights.param("bias", &[width]);
        Self { affine: Some((weights.param("weight", &[width]), bias)), eps }
    }

    /// Needs no tensors.
    pub fn plain(eps: f64) -> Self {
        Self { affine: None, eps }
    }

    /// (…, width) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some((weight, bias)) = &self.affine else { return normalised(x, self.eps) };
        scaled_and_moved(x, &weight.tensor()?, &bias.tensor()?, self.eps)
    }
}

/// Division by the root mean square over the last dimension.
pub struct RmsNorm {
    weight: Param,
    eps: f64,
}

impl RmsNorm {
    /// Claims `weight` (width).
    pub fn new(width: usize, eps: f64, weights: &Weights) -> Self {
        Self { weight: weights.param("weight", &[width]), eps }
    }

    /// (…, width) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        unit_mean_square(x, &self.weight.tensor()?, self.eps)
    }
}

/// Normalisation over groups of channels.
pub struct GroupNorm {
    weight: Param,
    bias: Param,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Claims `weight` and `bias` (channels).
    pub fn new(groups: usize, channels: usize, eps: f64, weights: &Weights) -> Self {
        Self { weight: weights.param("weight", &[channels]), bias: weights.param("bias", &[channels]), groups, eps }
    }

    /// (batch, channels, …) to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels) = (x.dim(0)?, x.dim(1)?);
        let grouped = x.reshape((batch, self.groups, ()))?;
        let normed = LayerNorm::plain(self.eps).forward(&grouped)?.reshape(x.shape())?;
        let mut affine = vec![1; x.rank()];
        affine[1] = channels;
        let (weight, bias) = (self.weight.tensor()?.reshape(affine.as_slice())?, self.bias.tensor()?.reshape(affine)?);
        normed.broadcast_mul(&weight)?.broadcast_add(&bias)
    }
}

/// How a convolution moves over its input.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// Zeros added on both sides.
    pub padding: usize,
    /// Distance between outputs, in inputs.
    pub stride: usize,
    /// Distance between the taps of the kernel, in inputs.
    pub dilation: usize,
}

impl Default for Steps {
    fn default() -> Self {
        Self { padding: 0, stride: 1, dilation: 1 }
    }
}

/// Convolution over images.
pub struct Conv2d {
    weight: Param,
    bias: Option<Param>,
    steps: Steps,
}

impl Conv2d {
    /// Claims `weight` (outputs, inputs, kernel, kernel) and `bias` (outputs).
    pub fn new(inputs: usize, outputs: usize, kernel: usize, steps: Steps, weights: &Weights) -> Self {
        let bias = Some(weights.param("bias", &[outputs]));
        Self { bias, ..Self::without_bias(inputs, outputs, kernel, steps, weights) }
    }

    /// Claims `weight` (outputs, inputs, kernel, kernel) alone.
    pub fn without_bias(inputs: usize, outputs: usize, kernel: usize, steps: Steps, weights: &Weights) -> Self {
        Self { weight: weights.param("weight", &[outputs, inputs, kernel, kernel]), bias: None, steps }
    }

    /// (batch, inputs, height, width) to (batch, outputs, height', width').
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        add_channels(over_images(x, &self.weight.tensor()?, self.steps)?, self.bias.as_ref())
    }
}

/// The convolution of images, in bands where they are large.
///
/// `x` (batch, inputs, height, width), `weight` (outputs, inputs, kernel, kernel): (batch, outputs, height', width').
pub(crate) fn over_images(x: &Tensor, weight: &Tensor, steps: Steps) -> Result<Tensor> {
    let Steps { padding, stride, dilation } = steps;
    let reach = dilation * (weight.dim(2)? - 1);
    let (_, inputs, height, width) = x.dims4()?;
    let along = |side: usize| (side + 2 * padding).saturating_sub(reach + 1) / stride + 1;
    let (rows, columns) = (along(height), along(width));
    // What one row of outputs is made of, laid out for the product.
    let row = inputs * weight.dim(2)? * weight.dim(3)? * columns;
    let step = (UNFOLDED / row.max(1)).max(1);
    if step >= rows {
        return x.contiguous()?.conv2d(weight, padding, stride, dilation, 1);
    }
    let padded = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let bands = (0..rows).step_by(step).map(|start| {
        let of = (rows - start).min(step);
        let band = padded.narrow(2, start * stride, (of - 1) * stride + reach + 1)?.contiguous()?;
        band.conv2d(weight, 0, stride, dilation, 1)
    });
    Tensor::cat(&bands.collect::<Result<Vec<_>>>()?, 2)
}

/// Convolution over sequences.
pub struct Conv1d {
    weight: Param,
    bias: Option<Param>,
    steps: Steps,
}

impl Conv1d {
    /// Claims `weight` (outputs, inputs, kernel) and `bias` (outputs).
    pub fn new(inputs: usize, outputs: usize, kernel: usize, steps: Steps, weights: &Weights) -> Self {
        let bias = Some(weights.param("bias", &[outputs]));
        Self { bias, ..Self::without_bias(inputs, outputs, kernel, steps, weights) }
    }

    /// Claims `weight` (outputs, inputs, kernel) alone.
    pub fn without_bias(inputs: usize, outputs: usize, kernel: usize, steps: Steps, weights: &Weights) -> Self {
        Self { weight: weights.param("weight", &[outputs, inputs, kernel]), bias: None, steps }
    }

    /// (batch, inputs, length) to (batch, outputs, length').
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Steps { padding, stride, dilation } = self.steps;
        let weight = self.weight.tensor()?;
        let y = if stride == 1 && x.device().is_cpu() {
            tap_by_tap(&x.pad_with_zeros(2, padding, padding)?, &weight, dilation)?
        } else {
            x.contiguous()?.conv1d(&weight, padding, stride, dilation, 1)?
        };
        add_channels(y, self.bias.as_ref())
    }
}

/// A convolution by steps of 1 as a sum of matrix products, one for each tap: on a processor many times as fast as
/// laying out the input for one product.
///
/// `x` (batch, inputs, length), `weight` (outputs, inputs, kernel): (batch, outputs, length - dilation · (kernel - 1)).
fn tap_by_tap(x: &Tensor, weight: &Tensor, dilation: usize) -> Result<Tensor> {
    let ((batch, inputs, length), (outputs, _, kernel)) = (x.dims3()?, weight.dims3()?);
    let Some(made) = length.checked_sub(dilation * (kernel - 1)).filter(|made| *made > 0) else {
        candle_core::bail!("a convolution over {length} numbers reaches further")
    };
    let taps = (0..kernel).map(|tap| {
        let weight = weight.narrow(2, tap, 1)?.reshape((1, outputs, inputs))?.expand((batch, outputs, inputs))?;
        product(&weight, &x.narrow(2, tap * dilation, made)?)
    });
    taps.reduce(|sum, next| sum? + next?).unwrap_or_else(|| candle_core::bail!("An empty kernel"))
}

/// How a transposed convolution lengthens its input.
#[derive(Debug, Clone, Copy)]
pub struct Lengthening {
    /// Outputs that one input reaches.
    pub kernel: usize,
    /// Distance between the outputs of neighbouring inputs.
    pub stride: usize,
    /// Outputs cut off on both sides.
    pub padding: usize,
}

/// Transposed convolution over sequences: lengthens them by its stride.
pub struct ConvTranspose1d {
    weight: Param,
    bias: Param,
    by: Lengthening,
}

impl ConvTranspose1d {
    /// Claims `weight` (inputs, outputs, kernel) and `bias` (outputs).
    pub fn new(inputs: usize, outputs: usize, by: Lengthening, weights: &Weights) -> Self {
        let weight = weights.param("weight", &[inputs, outputs, by.kernel]);
        Self { weight, bias: weights.param("bias", &[outputs]), by }
    }

    /// (batch, inputs, length) to (batch, outputs, (length - 1) · stride + kernel - 2 · padding).
    ///
    /// One matrix product makes what every input adds to the outputs it reaches; these are cut into windows of one
    /// stride, shifted to their places and summed.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Lengthening { kernel, stride, padding } = self.by;
        let ((batch, inputs, length), windows) = (x.dims3()?, kernel.div_ceil(stride));
        let taps = self.weight.tensor()?.pad_with_zeros(2, 0, windows * stride - kernel)?;
        let taps = taps.reshape((inputs, ()))?.t()?.contiguous()?;
        let added = taps.broadcast_matmul(&x.contiguous()?)?.reshape(vec![
            batch,
            self.bias.shape()[0],
            windows,
            stride,
            length,
        ])?;
        let shifted = (0..windows).map(|window| {
            let placed = added.narrow(2, window, 1)?.squeeze(2)?.transpose(2, 3)?;
            placed.pad_with_zeros(2, window, windows - 1 - window)
        });
        let sum = shifted.reduce(|sum, next| sum? + next?).unwrap_or_else(|| candle_core::bail!("An empty kernel"))?;
        let whole = sum.contiguous()?.reshape((batch, (), (length + windows - 1) * stride))?;
        let kept = ((length - 1) * stride + kernel).saturating_sub(2 * padding);
        add_channels(whole.narrow(2, padding, kept)?.contiguous()?, Some(&self.bias))
    }
}

/// Adds a number to each channel, the second dimension, where there is a bias.
pub(crate) fn add_channels(y: Tensor, bias: Option<&Param>) -> Result<Tensor> {
    let Some(bias) = bias else { return Ok(y) };
    let mut shape = vec![1; y.rank()];
    shape[1] = bias.shape()[0];
    y.broadcast_add(&bias.tensor()?.reshape(shape)?)
}

/// `x · sigmoid(1.702 x)`, the approximation of GELU that the first CLIP models use.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    x * candle_nn::ops::sigmoid(&(x * 1.702)?)?
}

/// The periodic activation `x + sin²(α x) / β` of audio models.
///
/// `x` (batch, channels, length); `alpha` and `beta` (1, channels, 1), not as logarithms.
pub fn snake(x: &Tensor, alpha: &Tensor, beta: &Tensor) -> Result<Tensor> {
    x + x.broadcast_mul(alpha)?.sin()?.sqr()?.broadcast_div(&(beta + 1e-9)?)?
}

/// Divides the last dimension into heads: (batch, length, heads · width) to (batch, heads, length, width).
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, length, width) = x.dims3()?;
    x.reshape((batch, length, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// The reverse of [`split_heads`]: (batch, heads, length, width) to (batch, length, heads · width).
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, length, width) = x.dims4()?;
    x.transpose(1, 2)?.reshape((batch, length, heads * width))
}

/// Softmax attention, scaled by the square root of the head's width; in pieces where the sequences are long.
///
/// `q` (batch, heads, length, width), `k` and `v` (batch, heads, other length, width), `mask` added to the scores
/// and broadcast to (batch, heads, length, other length). Returns the shape of `q`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, heads, length, width) = q.dims4()?;
    if mask.is_none()
        && let Some(made) = by_pieces(q, k, v)?
    {
        return Ok(made);
    }
    let keys = k.t()?;
    // Queries are fewer than scores.
    let q = (q * (1.0 / (width as f64).sqrt()))?;
    let step = (SCORES / (batch * heads * k.dim(2)?).max(1)).clamp(1, length.max(1));
    let pieces = (0..length).step_by(step).map(|start| {
        let rows = step.min(length - start);
        let scores = product(&q.narrow(2, start, rows)?, &keys)?;
        let scores = match mask {
            Some(mask) if mask.dim(2)? == length => scores.broadcast_add(&mask.narrow(2, start, rows)?)?,
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        product(&softmax(&scores)?, v)
    });
    let pieces: Vec<Tensor> = pieces.collect::<Result<_>>()?;
    if pieces.len() == 1 { Ok(pieces[0].clone()) } else { Tensor::cat(&pieces, 2) }
}

/// Cosines, then sines, of `t` at `width / 2` frequencies that fall geometrically from 1 to 1/10000.
///
/// `t` (batch) to (batch, width), in single precision.
pub fn sinusoid(t: &Tensor, width: usize) -> Result<Tensor> {
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| (-(10000_f32.ln()) * i as f32 / half as f32).exp()).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?;
    let angles = t.to_dtype(candle_core::DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    Tensor::cat(&[angles.cos()?, angles.sin()?], 1)
}
