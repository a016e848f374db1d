//! Oobleck, the autoencoder of Stable Audio: 2048 stereo samples become one step of 64 channels.
//!
//! Paper: Evans et al., "Fast Timing-Conditioned Latent Audio Diffusion", <https://arxiv.org/abs/2402.04825>.
//! Reference: `AutoencoderOobleck` of diffusers (Apache-2.0), stable-audio-tools (MIT).

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::layers::{Conv1d, ConvTranspose1d, Lengthening, Steps, snake};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, list, sizes};
use crate::weights::{Param, Renamed, View, WeightSource, Weights, without_weight_norm};

/// Steps that are decoded at a time, besides those that they depend on.
const PIECE: usize = 32;
/// The dilations of the residual units; each has a kernel of 7.
const DILATIONS: [usize; 3] = [1, 3, 9];

/// `vae/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Channels at the full sampling rate, in the encoder; its output has as many.
    pub encoder_hidden_size: usize,
    /// Factors by which the encoder shortens.
    pub downsampling_ratios: Vec<usize>,
    /// Channels after each of them, as multiples.
    pub channel_multiples: Vec<usize>,
    /// Channels at the full sampling rate, in the decoder.
    pub decoder_channels: usize,
    /// Channels of the latent.
    pub decoder_input_channels: usize,
    /// Channels of the sound.
    pub audio_channels: usize,
    /// Samples a second.
    pub sampling_rate: usize,
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[
            ("encoder_hidden_size", self.encoder_hidden_size),
            ("decoder_channels", self.decoder_channels),
            ("decoder_input_channels", self.decoder_input_channels),
            ("audio_channels", self.audio_channels),
            ("sampling_rate", self.sampling_rate),
        ])?;
        list("downsampling_ratios", &self.downsampling_ratios, 0)?;
        list("channel_multiples", &self.channel_multiples, self.downsampling_ratios.len())
    }
}

impl Config {
    /// Channels at every rate, from the sound inwards.
    fn widths(&self, first: usize) -> Vec<usize> {
        [1].iter().chain(&self.channel_multiples).map(|multiple| first * multiple).collect()
    }

    /// Samples of one latent step.
    pub fn hop(&self) -> usize {
        self.downsampling_ratios.iter().product()
    }

    /// How many latent steps away a decoded sample's causes lie at most.
    fn reach(&self) -> usize {
        let unit: usize = DILATIONS.iter().map(|dilation| 3 * dilation).sum();
        let (mut rate, mut reach) = (1.0, 3.0);
        for &stride in self.downsampling_ratios.iter().rev() {
            reach += 1.0 / rate;
            rate *= stride as f64;
            reach += unit as f64 / rate;
        }
        (reach + 3.0 / rate).ceil() as usize
    }
}

/// Encoder and decoder.
pub struct Autoencoder {
    encoder: Encoder,
    decoder: Decoder,
    config: Config,
}

impl Autoencoder {
    /// Claims the tensors of the diffusers layout, weight norm folded: see [`from_folder`] and [`from_single_file`].
    pub fn new(config: &Config, weights: &Weights) -> Self {
        Self {
            encoder: Encoder::new(config, &weights.at("encoder")),
            decoder: Decoder::new(config, &weights.at("decoder")),
            config: config.clone(),
        }
    }

    /// The mean and the standard deviation of a sound's latent, each (batch, latent channels, length / hop).
    ///
    /// `sound` (batch, channels, length), from -1 to 1.
    pub fn encode(&self, sound: &Tensor) -> Result<(Tensor, Tensor)> {
        let parts = self.encoder.forward(sound)?.chunk(2, 1)?;
        let deviation = ((parts[1].exp()? + 1.0)?.log()? + 1e-4)?;
        Ok((parts[0].contiguous()?, deviation))
    }

    /// The sound of a latent (batch, latent channels, length): (batch, channels, hop · length), about -1 to 1.
    ///
    /// Long latents are decoded in pieces, each with all that its samples depend on, so that the result is that of
    /// the whole and memory stays small.
    pub fn decode(&self, latent: &Tensor) -> Result<Tensor> {
        let length = latent.dim(2)?;
        if length <= PIECE || self.is_uneven() {
            self.decoder.forward(latent)
        } else {
            self.decode_steps(latent, 0..length)
        }
    }

    /// The samples `from..to` of the sound of a latent; what they do not depend on is not computed.
    ///
    /// # Errors
    /// When the latent is shorter than that.
    pub fn decode_part(&self, latent: &Tensor, [from, to]: [usize; 2]) -> Result<Tensor> {
        let (length, hop) = (latent.dim(2)?, self.config.hop());
        let wanted = from / hop..to.div_ceil(hop).min(length);
        if wanted == (0..length) || wanted.is_empty() || self.is_uneven() {
            return self.decode(latent)?.narrow(2, from, to.saturating_sub(from));
        }
        let begin = wanted.start * hop;
        self.decode_steps(latent, wanted)?.narrow(2, from - begin, to - from)
    }

    /// An odd factor loses a sample, so that pieces would not line up.
    fn is_uneven(&self) -> bool {
        self.config.downsampling_ratios.iter().any(|stride| stride % 2 == 1)
    }

    fn decode_steps(&self, latent: &Tensor, steps: Range<usize>) -> Result<Tensor> {
        let piece = |start| self.decode_piece(latent, start..steps.end.min(start + PIECE));
        Tensor::cat(&steps.clone().step_by(PIECE).map(piece).collect::<Result<Vec<_>>>()?, 2)
    }

    fn decode_piece(&self, latent: &Tensor, Range { start, end }: Range<usize>) -> Result<Tensor> {
        let (length, reach, hop) = (latent.dim(2)?, self.config.reach(), self.config.hop());
        let (from, to) = (start.saturating_sub(reach), length.min(end + reach));
        let sound = self.decoder.forward(&latent.narrow(2, from, to - from)?)?;
        sound.narrow(2, (start - from) * hop, (end - start) * hop)?.contiguous()
    }
}

/// The periodic activation with parameters stored as logarithms.
struct Snake {
    alpha: Param,
    beta: Param,
}

impl Snake {
    fn new(width: usize, weights: &Weights) -> Self {
        Self { alpha: weights.param("alpha", &[1, width, 1]), beta: weights.param("beta", &[1, width, 1]) }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        snake(x, &self.alpha.tensor()?.exp()?, &self.beta.tensor()?.exp()?)
    }
}

struct ResidualUnit {
    snake1: Snake,
    conv1: Conv1d,
    snake2: Snake,
    conv2: Conv1d,
}

impl ResidualUnit {
    /// The three units `res_unit1` to `res_unit3`.
    fn three(width: usize, weights: &Weights) -> Vec<Self> {
        let unit = |(i, dilation)| Self::new(width, dilation, &weights.at(format!("res_unit{}", i + 1)));
        DILATIONS.into_iter().enumerate().map(unit).collect()
    }

    fn new(width: usize, dilation: usize, weights: &Weights) -> Self {
        let steps = Steps { padding: 3 * dilation, stride: 1, dilation };
        Self {
            snake1: Snake::new(width, &weights.at("snake1")),
            conv1: Conv1d::new(width, width, 7, steps, &weights.at("conv1")),
            snake2: Snake::new(width, &weights.at("snake2")),
            conv2: Conv1d::new(width, width, 1, Steps::default(), &weights.at("conv2")),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.conv1.forward(&self.snake1.forward(x)?)?;
        x + self.conv2.forward(&self.snake2.forward(&inner)?)?
    }
}

fn through(units: &[ResidualUnit], x: Tensor) -> Result<Tensor> {
    units.iter().try_fold(x, |x, unit| unit.forward(&x))
}

struct Shorten {
    units: Vec<ResidualUnit>,
    snake: Snake,
    conv: Conv1d,
}

struct Encoder {
    conv_in: Conv1d,
    blocks: Vec<Shorten>,
    snake: Snake,
    conv_out: Conv1d,
}

/// A convolution that keeps the length.
fn same(kernel: usize) -> Steps {
    Steps { padding: kernel / 2, ..Steps::default() }
}

impl Encoder {
    fn new(config: &Config, weights: &Weights) -> Self {
        let widths = config.widths(config.encoder_hidden_size);
        let last = widths[widths.len() - 1];
        let block = |(i, &stride): (usize, &usize)| {
            let weights = weights.at("block").at(i);
            let steps = Steps { padding: stride.div_ceil(2), stride, dilation: 1 };
            Shorten {
                units: ResidualUnit::three(widths[i], &weights),
                snake: Snake::new(widths[i], &weights.at("snake1")),
                conv: Conv1d::new(widths[i], widths[i + 1], 2 * stride, steps, &weights.at("conv1")),
            }
        };
        Self {
            conv_in: Conv1d::new(config.audio_channels, widths[0], 7, same(7), &weights.at("conv1")),
            blocks: config.downsampling_ratios.iter().enumerate().map(block).collect(),
            snake: Snake::new(last, &weights.at("snake1")),
            conv_out: Conv1d::new(last, config.encoder_hidden_size, 3, same(3), &weights.at("conv2")),
        }
    }

    fn forward(&self, sound: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(sound)?;
        for block in &self.blocks {
            x = block.conv.forward(&block.snake.forward(&through(&block.units, x)?)?)?;
        }
        self.conv_out.forward(&self.snake.forward(&x)?)
    }
}

struct Lengthen {
    snake: Snake,
    conv: ConvTranspose1d,
    units: Vec<ResidualUnit>,
}

struct Decoder {
    conv_in: Conv1d,
    blocks: Vec<Lengthen>,
    snake: Snake,
    conv_out: Conv1d,
}

impl Decoder {
    fn new(config: &Config, weights: &Weights) -> Self {
        let widths: Vec<usize> = config.widths(config.decoder_channels).into_iter().rev().collect();
        let last = widths[widths.len() - 1];
        let block = |(i, &stride): (usize, &usize)| {
            let weights = weights.at("block").at(i);
            let by = Lengthening { kernel: 2 * stride, stride, padding: stride.div_ceil(2) };
            Lengthen {
                snake: Snake::new(widths[i], &weights.at("snake1")),
                conv: ConvTranspose1d::new(widths[i], widths[i + 1], by, &weights.at("conv_t1")),
                units: ResidualUnit::three(widths[i + 1], &weights),
            }
        };
        let conv_in = &weights.at("conv1");
        Self {
            conv_in: Conv1d::new(config.decoder_input_channels, widths[0], 7, same(7), conv_in),
            blocks: config.downsampling_ratios.iter().rev().enumerate().map(block).collect(),
            snake: Snake::new(last, &weights.at("snake1")),
            conv_out: Conv1d::without_bias(last, config.audio_channels, 7, same(7), &weights.at("conv2")),
        }
    }

    fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(latent)?;
        for block in &self.blocks {
            x = through(&block.units, block.conv.forward(&block.snake.forward(&x)?)?)?;
        }
        self.conv_out.forward(&self.snake.forward(&x)?)
    }
}

/// Folds the weight norm of a diffusers folder.
pub fn from_folder(source: Arc<dyn WeightSource>) -> Renamed {
    without_weight_norm(source)
}

/// Gives a checkpoint of stable-audio-tools the names of the diffusers layout, weight norm folded.
///
/// `source` holds the autoencoder's tensors without their `pretransform.model.` prefix; `blocks` is the number of
/// factors by which it shortens.
pub fn from_single_file(source: Arc<dyn WeightSource>, blocks: usize) -> Renamed {
    let renamed = Renamed::new(source, |stored| renamed(stored, blocks).into_iter().collect());
    without_weight_norm(Arc::new(renamed))
}

fn renamed(stored: &str, blocks: usize) -> Option<(String, View)> {
    let (half, rest) = stored.split_once(".layers.")?;
    let (index, rest) = rest.split_once('.')?;
    let name = match index.parse::<usize>().ok()? {
        0 => format!("{half}.conv1.{rest}"),
        last if last == blocks + 1 => format!("{half}.snake1.{rest}"),
        last if last == blocks + 2 => format!("{half}.conv2.{rest}"),
        block => format!("{half}.block.{}.{}", block - 1, in_block(half == "encoder", rest)?),
    };
    let channels = name.ends_with(".alpha") || name.ends_with(".beta");
    Some((name, if channels { View::Channels { stored: stored.to_owned() } } else { View::whole(stored) }))
}

fn in_block(encoder: bool, rest: &str) -> Option<String> {
    const ENCODER: [&str; 5] = ["res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"];
    const DECODER: [&str; 5] = ["snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"];
    const UNIT: [&str; 4] = ["snake1", "conv1", "snake2", "conv2"];
    let numbered = |rest: &'_ str| {
        let (index, rest) = rest.strip_prefix("layers.")?.split_once('.')?;
        Some((index.parse::<usize>().ok()?, rest.to_owned()))
    };
    let (index, rest) = numbered(rest)?;
    let part = if encoder { ENCODER } else { DECODER }.get(index).copied()?;
    let Some((inside, rest)) = numbered(&rest) else { return Some(format!("{part}.{rest}")) };
    Some(format!("{part}.{}.{rest}", UNIT.get(inside)?))
}
