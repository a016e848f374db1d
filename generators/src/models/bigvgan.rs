//! BigVGAN v2: from a mel spectrogram to a waveform.
//!
//! Paper: Lee et al., "BigVGAN: A Universal Neural Vocoder with Large-Scale Training",
//! <https://arxiv.org/abs/2206.04658>. Reference: NVIDIA/BigVGAN (MIT), and `MMAudioVocoder` of diffusers
//! (Apache-2.0), which is the same network without weight norm. The filters around the activations follow
//! alias-free-torch (Apache-2.0).

use candle_core::{Device, Result, Tensor};
use serde::Deserialize;

use crate::layers::{Conv1d, ConvTranspose1d, Lengthening, Steps, snake};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, list, sizes};
use crate::weights::{Param, Weights};

/// Taps of the filters around an activation.
const TAPS: usize = 12;
/// How much an activation's input is lengthened for it.
const RATIO: usize = 2;

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Bands of the spectrogram.
    pub num_mels: usize,
    /// Channels before the first lengthening; each halves them.
    pub upsample_initial_channel: usize,
    /// Factors by which the stages lengthen.
    pub upsample_rates: Vec<usize>,
    /// Kernels with which they do.
    pub upsample_kernel_sizes: Vec<usize>,
    /// Kernels of the parallel residual blocks.
    pub resblock_kernel_sizes: Vec<usize>,
    /// Dilations inside each of them.
    pub resblock_dilation_sizes: Vec<Vec<usize>>,
    /// The activation.
    #[serde(default)]
    pub activation: Activation,
    /// Whether the activation's parameters are stored as logarithms.
    #[serde(default = "yes")]
    pub snake_logscale: bool,
    /// Whether the last convolution has a bias.
    #[serde(default = "yes")]
    pub use_bias_at_final: bool,
    /// Whether the output goes through `tanh` instead of being cut off at ±1.
    #[serde(default = "yes")]
    pub use_tanh_at_final: bool,
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[("num_mels", self.num_mels), ("upsample_initial_channel", self.upsample_initial_channel)])?;
        list("upsample_rates", &self.upsample_rates, 0)?;
        list("upsample_kernel_sizes", &self.upsample_kernel_sizes, self.upsample_rates.len())?;
        list("resblock_kernel_sizes", &self.resblock_kernel_sizes, 0)?;
        if self.upsample_initial_channel.checked_shr(self.upsample_rates.len() as u32).unwrap_or(0) == 0 {
            return Err(Unsupported::new("upsample_initial_channel", self.upsample_initial_channel));
        }
        if let Some((kernel, rate)) =
            self.upsample_kernel_sizes.iter().zip(&self.upsample_rates).find(|(kernel, rate)| kernel < rate)
        {
            return Err(Unsupported::new("upsample_kernel_sizes", format!("{kernel} for a rate of {rate}")));
        }
        if self.resblock_dilation_sizes.len() != self.resblock_kernel_sizes.len() {
            return Err(Unsupported::new("resblock_dilation_sizes", format!("{:?}", self.resblock_dilation_sizes)));
        }
        self.resblock_dilation_sizes.iter().try_for_each(|dilations| list("resblock_dilation_sizes", dilations, 0))
    }
}

/// The activations that are supported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x + sin²(α x) / β`.
    #[default]
    Snakebeta,
}

fn yes() -> bool {
    true
}

/// The generator of the vocoder.
pub struct Vocoder {
    conv_in: Conv1d,
    stages: Vec<Stage>,
    activation_out: SmoothActivation,
    conv_out: Conv1d,
    tanh: bool,
}

impl Vocoder {
    /// Claims the tensors under the names of the reference, weight norm folded; see
    /// [`crate::weights::without_weight_norm`].
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let width = |stage| config.upsample_initial_channel >> stage;
        let stages = config.upsample_rates.len();
        let last = width(stages);
        let conv_out = match config.use_bias_at_final {
            true => Conv1d::new(last, 1, 7, same(7, 1), &weights.at("conv_post")),
            false => Conv1d::without_bias(last, 1, 7, same(7, 1), &weights.at("conv_post")),
        };
        Self {
            conv_in: Conv1d::new(config.num_mels, width(0), 7, same(7, 1), &weights.at("conv_pre")),
            stages: (0..stages).map(|i| Stage::new(config, i, width(i), weights)).collect(),
            activation_out: SmoothActivation::new(config, last, &weights.at("activation_post")),
            conv_out,
            tanh: config.use_tanh_at_final,
        }
    }

    /// The waveform (batch, 1, frames · product of the rates), from -1 to 1, of a spectrogram (batch, bands, frames)
    /// of natural logarithms.
    pub fn forward(&self, mel: &Tensor) -> Result<Tensor> {
        let x = self.conv_in.forward(mel)?;
        let x = self.stages.iter().try_fold(x, |x, stage| stage.forward(&x))?;
        let wave = self.conv_out.forward(&self.activation_out.forward(&x)?)?;
        if self.tanh { wave.tanh() } else { wave.clamp(-1.0, 1.0) }
    }
}

/// Zeros around a convolution that keeps the length.
fn same(kernel: usize, dilation: usize) -> Steps {
    Steps { padding: (kernel - 1) * dilation / 2, stride: 1, dilation }
}

/// One lengthening and the mean of the residual blocks after it.
struct Stage {
    lengthen: ConvTranspose1d,
    blocks: Vec<ResidualBlock>,
}

impl Stage {
    fn new(config: &Config, index: usize, inputs: usize, weights: &Weights) -> Self {
        let (rate, kernel) = (config.upsample_rates[index], config.upsample_kernel_sizes[index]);
        let by = Lengthening { kernel, stride: rate, padding: (kernel - rate) / 2 };
        let parallel = config.resblock_kernel_sizes.len();
        let blocks = config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes).enumerate();
        let block = |(i, (&kernel, dilations)): (usize, (&usize, &Vec<usize>))| {
            let weights = weights.at("resblocks").at(index * parallel + i);
            ResidualBlock::new(config, [inputs / 2, kernel], dilations, &weights)
        };
        Self {
            lengthen: ConvTranspose1d::new(inputs, inputs / 2, by, &weights.at("ups").at(index).at(0)),
            blocks: blocks.map(block).collect(),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.lengthen.forward(x)?;
        let outputs: Vec<Tensor> = self.blocks.iter().map(|block| block.forward(&x)).collect::<Result<_>>()?;
        let sum = outputs.iter().skip(1).try_fold(outputs[0].clone(), |sum, output| sum + output)?;
        sum / outputs.len() as f64
    }
}

/// Pairs of a dilated and a plain convolution, each after an activation.
struct ResidualBlock {
    dilated: Vec<Conv1d>,
    plain: Vec<Conv1d>,
    activations: Vec<SmoothActivation>,
}

impl ResidualBlock {
    fn new(config: &Config, [width, kernel]: [usize; 2], dilations: &[usize], weights: &Weights) -> Self {
        let conv = |name, i: usize, dilation| {
            Conv1d::new(width, width, kernel, same(kernel, dilation), &weights.at(name).at(i))
        };
        let activation = |i| SmoothActivation::new(config, width, &weights.at("activations").at(i));
        Self {
            dilated: dilations.iter().enumerate().map(|(i, &dilation)| conv("convs1", i, dilation)).collect(),
            plain: (0..dilations.len()).map(|i| conv("convs2", i, 1)).collect(),
            activations: (0..2 * dilations.len()).map(activation).collect(),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pairs = self.dilated.iter().zip(&self.plain).zip(self.activations.chunks(2));
        pairs.into_iter().try_fold(x.clone(), |x, ((dilated, plain), activations)| {
            let inner = dilated.forward(&activations[0].forward(&x)?)?;
            x + plain.forward(&activations[1].forward(&inner)?)?
        })
    }
}

/// An activation at twice the sampling rate, between two low-pass filters, so that it makes no aliases.
struct SmoothActivation {
    alpha: Param,
    beta: Param,
    log: bool,
    filter: Vec<f32>,
}

impl SmoothActivation {
    fn new(config: &Config, width: usize, weights: &Weights) -> Self {
        // The filters are stored too, but they are the same everywhere and follow from their design.
        weights.ignore("upsample.filter");
        weights.ignore("downsample.lowpass.filter");
        let act = weights.at("act");
        let (alpha, beta) = (act.param("alpha", &[width]), act.param("beta", &[width]));
        Self { alpha, beta, log: config.snake_logscale, filter: low_pass() }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, length) = x.dims3()?;
        let long = self.lengthen(&x.reshape((batch * channels, 1, length))?)?;
        let active = self.snake(&long.reshape((batch, channels, RATIO * length))?)?;
        let short = self.shorten(&active.reshape((batch * channels, 1, RATIO * length))?)?;
        short.reshape((batch, channels, length))
    }

    fn snake(&self, x: &Tensor) -> Result<Tensor> {
        let stored = |param: &Param| {
            let numbers = param.tensor()?.reshape((1, (), 1))?;
            if self.log { numbers.exp() } else { Ok(numbers) }
        };
        snake(x, &stored(&self.alpha)?, &stored(&self.beta)?)
    }

    /// Both phases of the lengthened sequence are short filters over the sequence itself: (rows, 1, length) to
    /// (rows, 1, 2 · length).
    fn lengthen(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, _, length) = x.dims3()?;
        let half = TAPS / RATIO;
        let tap = |i: usize| RATIO as f32 * self.filter[RATIO * (half - 1 - i % half) + i / half];
        let phases = kernel((0..TAPS).map(tap).collect(), (RATIO, 1, half), x)?;
        let padded = replicate(x, half - 1, half - 1)?;
        let both = padded.conv1d(&phases, 0, 1, 1, 1)?.transpose(1, 2)?.contiguous()?;
        both.reshape((rows, 1, ()))?.narrow(2, half - 1, RATIO * length)?.contiguous()
    }

    /// (rows, 1, 2 · length) to (rows, 1, length).
    fn shorten(&self, x: &Tensor) -> Result<Tensor> {
        let padded = replicate(x, TAPS / 2 - 1, TAPS / 2)?;
        padded.conv1d(&kernel(self.filter.clone(), (1, 1, TAPS), x)?, 0, RATIO, 1, 1)
    }
}

fn kernel(taps: Vec<f32>, shape: (usize, usize, usize), like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(taps, shape, &Device::Cpu)?.to_device(like.device())?.to_dtype(like.dtype())
}

/// Repeats the first and the last number of each row.
fn replicate(x: &Tensor, before: usize, after: usize) -> Result<Tensor> {
    x.pad_with_same(2, before, after)?.contiguous()
}

/// The taps of a Kaiser-windowed sinc that keeps the lower half of the frequencies; they sum to 1.
fn low_pass() -> Vec<f32> {
    let (cutoff, half_width, half) = (0.5 / RATIO as f64, 0.6 / RATIO as f64, TAPS / 2);
    let attenuation = 2.285 * (half as f64 - 1.0) * std::f64::consts::PI * 4.0 * half_width + 7.95;
    let beta = kaiser_beta(attenuation);
    let taps: Vec<f64> = (0..TAPS)
        .map(|i| {
            let place = 2.0 * i as f64 / (TAPS as f64 - 1.0) - 1.0;
            let window = bessel_i0(beta * (1.0 - place * place).sqrt()) / bessel_i0(beta);
            2.0 * cutoff * window * sinc(2.0 * cutoff * (i as f64 - half as f64 + 0.5))
        })
        .collect();
    let sum: f64 = taps.iter().sum();
    taps.into_iter().map(|tap| (tap / sum) as f32).collect()
}

fn kaiser_beta(attenuation: f64) -> f64 {
    match attenuation {
        a if a > 50.0 => 0.1102 * (a - 8.7),
        a if a >= 21.0 => 0.5842 * (a - 21.0).powf(0.4) + 0.07886 * (a - 21.0),
        _ => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    let angle = std::f64::consts::PI * x;
    if angle == 0.0 { 1.0 } else { angle.sin() / angle }
}

/// The modified Bessel function of the first kind and order 0, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let mut term = 1.0;
    let terms = (1..50).map(|k| {
        term *= (x / 2.0 / f64::from(k)).powi(2);
        term
    });
    1.0 + terms.sum::<f64>()
}
