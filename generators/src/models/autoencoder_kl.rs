//! The image autoencoder of latent diffusion: eight pixels along each side become one of 4 or 16 channels.
//!
//! Paper: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
//! <https://arxiv.org/abs/2112.10752>. Reference: `AutoencoderKL` of diffusers (Apache-2.0).

use std::sync::Arc;

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::layers::{Conv2d, GroupNorm, Linear, Steps, attention};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, divided, list, sizes};
use crate::weights::{Renamed, View, WeightSource, Weights};

const EPS: f64 = 1e-6;
const SAME: Steps = Steps { padding: 1, stride: 1, dilation: 1 };
const HALVING: Steps = Steps { padding: 0, stride: 2, dilation: 1 };
const POINT: Steps = Steps { padding: 0, stride: 1, dilation: 1 };

/// `vae/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Channels of the image.
    pub in_channels: usize,
    /// Channels of the image made.
    pub out_channels: usize,
    /// Channels at each resolution, from the image inwards.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Groups of the group norms.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// What a latent is multiplied by before a denoiser sees it.
    pub scaling_factor: f64,
    /// What is subtracted from it before that.
    #[serde(default)]
    pub shift_factor: Option<f64>,
    /// Whether a 1x1 convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the middle of both halves has attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
}

fn thirty_two() -> usize {
    32
}

fn yes() -> bool {
    true
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ])?;
        list("block_out_channels", &self.block_out_channels, 0)?;
        if self.block_out_channels.len() > 8 {
            return Err(Unsupported::new("block_out_channels", format!("{:?}", self.block_out_channels)));
        }
        let width = |width: &usize| divided(("block_out_channels", *width), self.norm_num_groups);
        self.block_out_channels.iter().try_for_each(width)
    }
}

/// Encoder and decoder.
pub struct Autoencoder {
    encoder: Encoder,
    decoder: Decoder,
    quant: Option<Conv2d>,
    post_quant: Option<Conv2d>,
    config: Config,
}

impl Autoencoder {
    /// Claims the tensors of the diffusers layout.
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let latent = config.latent_channels;
        let point = |wanted: bool, width, name| wanted.then(|| Conv2d::new(width, width, 1, POINT, &weights.at(name)));
        Self {
            encoder: Encoder::new(config, &weights.at("encoder")),
            decoder: Decoder::new(config, &weights.at("decoder")),
            quant: point(config.use_quant_conv, 2 * latent, "quant_conv"),
            post_quant: point(config.use_post_quant_conv, latent, "post_quant_conv"),
            config: config.clone(),
        }
    }

    /// The mean and the logarithm of the variance of an image's latent, each (batch, latent channels, height / 8,
    /// width / 8).
    ///
    /// `image` (batch, channels, height, width), from -1 to 1.
    pub fn encode(&self, image: &Tensor) -> Result<(Tensor, Tensor)> {
        let moments = applied(self.quant.as_ref(), &self.encoder.forward(image)?)?;
        let channels = self.config.latent_channels;
        let mean = moments.narrow(1, 0, channels)?.contiguous()?;
        Ok((mean, moments.narrow(1, channels, channels)?.contiguous()?.clamp(-30.0, 20.0)?))
    }

    /// The image of a latent (batch, latent channels, height, width): (batch, channels, 8 height, 8 width), about
    /// -1 to 1.
    pub fn decode(&self, latent: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&applied(self.post_quant.as_ref(), latent)?)
    }

    /// A latent as denoisers see it, from one as the encoder makes it. Same shape.
    pub fn scaled(&self, latent: &Tensor) -> Result<Tensor> {
        (latent - self.config.shift_factor.unwrap_or(0.0))? * self.config.scaling_factor
    }

    /// The reverse of [`Autoencoder::scaled`].
    pub fn unscaled(&self, latent: &Tensor) -> Result<Tensor> {
        (latent / self.config.scaling_factor)? + self.config.shift_factor.unwrap_or(0.0)
    }
}

fn applied(conv: Option<&Conv2d>, x: &Tensor) -> Result<Tensor> {
    conv.map_or_else(|| Ok(x.clone()), |conv| conv.forward(x))
}

struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    fn new(groups: usize, inputs: usize, outputs: usize, weights: &Weights) -> Self {
        let shortcut =
            (inputs != outputs).then(|| Conv2d::new(inputs, outputs, 1, POINT, &weights.at("conv_shortcut")));
        Self {
            norm1: GroupNorm::new(groups, inputs, EPS, &weights.at("norm1")),
            conv1: Conv2d::new(inputs, outputs, 3, SAME, &weights.at("conv1")),
            norm2: GroupNorm::new(groups, outputs, EPS, &weights.at("norm2")),
            conv2: Conv2d::new(outputs, outputs, 3, SAME, &weights.at("conv2")),
            shortcut,
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.conv1.forward(&self.norm1.forward(x)?.silu()?)?;
        let inner = self.conv2.forward(&self.norm2.forward(&inner)?.silu()?)?;
        applied(self.shortcut.as_ref(), x)? + inner
    }
}

/// Attention of every pixel to every other, with one head.
struct PixelAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl PixelAttention {
    fn new(groups: usize, width: usize, weights: &Weights) -> Self {
        let linear = |name| Linear::new(width, width, &weights.at(name));
        Self {
            norm: GroupNorm::new(groups, width, EPS, &weights.at("group_norm")),
            q: linear("to_q"),
            k: linear("to_k"),
            v: linear("to_v"),
            out: linear("to_out.0"),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pixels = self.norm.forward(x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let one_head = |linear: &Linear| linear.forward(&pixels)?.unsqueeze(1);
        let attended = attention(&one_head(&self.q)?, &one_head(&self.k)?, &one_head(&self.v)?, None)?;
        let out = self.out.forward(&attended.squeeze(1)?)?;
        x + out.transpose(1, 2)?.reshape(x.shape())?
    }
}

struct Middle {
    first: ResidualBlock,
    attention: Option<PixelAttention>,
    second: ResidualBlock,
}

impl Middle {
    fn new(config: &Config, width: usize, weights: &Weights) -> Self {
        let groups = config.norm_num_groups;
        let attention = || PixelAttention::new(groups, width, &weights.at("attentions.0"));
        Self {
            first: ResidualBlock::new(groups, width, width, &weights.at("resnets.0")),
            attention: config.mid_block_add_attention.then(attention),
            second: ResidualBlock::new(groups, width, width, &weights.at("resnets.1")),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.first.forward(x)?;
        let x = self.attention.as_ref().map_or_else(|| Ok(x.clone()), |attention| attention.forward(&x))?;
        self.second.forward(&x)
    }
}

/// Residual blocks at one resolution, and the convolution that leads to the next.
struct Level {
    blocks: Vec<ResidualBlock>,
    resample: Option<Conv2d>,
}

impl Level {
    fn new(groups: usize, [inputs, outputs, count]: [usize; 3], weights: &Weights) -> Self {
        let width = |i| if i == 0 { inputs } else { outputs };
        let block = |i| ResidualBlock::new(groups, width(i), outputs, &weights.at("resnets").at(i));
        Self { blocks: (0..count).map(block).collect(), resample: None }
    }

    fn with_resample(self, steps: Steps, width: usize, weights: &Weights) -> Self {
        Self { resample: Some(Conv2d::new(width, width, 3, steps, weights)), ..self }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.blocks.iter().try_fold(x.clone(), |x, block| block.forward(&x))
    }
}

struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(config: &Config, weights: &Weights) -> Self {
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let level = |(i, &outputs): (usize, &usize)| {
            let weights = weights.at("down_blocks").at(i);
            let inputs = widths[i.saturating_sub(1)];
            let level = Level::new(groups, [inputs, outputs, config.layers_per_block], &weights);
            match i + 1 < widths.len() {
                true => level.with_resample(HALVING, outputs, &weights.at("downsamplers.0.conv")),
                false => level,
            }
        };
        Self {
            conv_in: Conv2d::new(config.in_channels, first, 3, SAME, &weights.at("conv_in")),
            levels: widths.iter().enumerate().map(level).collect(),
            middle: Middle::new(config, last, &weights.at("mid_block")),
            norm_out: GroupNorm::new(groups, last, EPS, &weights.at("conv_norm_out")),
            conv_out: Conv2d::new(last, 2 * config.latent_channels, 3, SAME, &weights.at("conv_out")),
        }
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for level in &self.levels {
            x = level.forward(&x)?;
            if let Some(conv) = &level.resample {
                // The reference pads below and to the right only.
                x = conv.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&self.middle.forward(&x)?)?.silu()?)
    }
}

struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(config: &Config, weights: &Weights) -> Self {
        let groups = config.norm_num_groups;
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let level = |(i, &outputs): (usize, &usize)| {
            let weights = weights.at("up_blocks").at(i);
            let inputs = widths[i.saturating_sub(1)];
            let level = Level::new(groups, [inputs, outputs, config.layers_per_block + 1], &weights);
            match i + 1 < widths.len() {
                true => level.with_resample(SAME, outputs, &weights.at("upsamplers.0.conv")),
                false => level,
            }
        };
        Self {
            conv_in: Conv2d::new(config.latent_channels, first, 3, SAME, &weights.at("conv_in")),
            middle: Middle::new(config, first, &weights.at("mid_block")),
            levels: widths.iter().enumerate().map(level).collect(),
            norm_out: GroupNorm::new(groups, last, EPS, &weights.at("conv_norm_out")),
            conv_out: Conv2d::new(last, config.out_channels, 3, SAME, &weights.at("conv_out")),
        }
    }

    fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        let mut x = self.middle.forward(&self.conv_in.forward(latent)?)?;
        for level in &self.levels {
            x = level.forward(&x)?;
            if let Some(conv) = &level.resample {
                let (_, _, height, width) = x.dims4()?;
                x = conv.forward(&x.upsample_nearest2d(2 * height, 2 * width)?)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x)?.silu()?)
    }
}

/// Gives a checkpoint with the names of the first latent diffusion programs those of the diffusers layout.
///
/// `source` holds the autoencoder's tensors without their `first_stage_model.` prefix; `levels` is the number of
/// resolutions, as the old names count them from the image in both halves.
pub fn from_single_file(source: Arc<dyn WeightSource>, levels: usize) -> Renamed {
    Renamed::new(source, |stored| renamed(stored, levels).into_iter().collect())
}

/// Gives a folder that an old diffusers wrote (attention called `query`, `key`, `value`, `proj_attn`) today's names.
pub fn from_old_names(source: Arc<dyn WeightSource>) -> Renamed {
    Renamed::new(source, |stored| {
        let today = replaced(&OLD_ATTENTION, stored).map(|name| (name, View::squeezed(stored, 2)));
        today.into_iter().collect()
    })
}

const OLD_ATTENTION: [(&str, &str); 4] =
    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];

const SINGLE_FILE: [(&str, &str); 12] = [
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
    (".mid.attn_1.q.", ".mid_block.attentions.0.to_q."),
    (".mid.attn_1.k.", ".mid_block.attentions.0.to_k."),
    (".mid.attn_1.v.", ".mid_block.attentions.0.to_v."),
    (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
    (".norm_out.", ".conv_norm_out."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".downsample.conv.", ".downsamplers.0.conv."),
    (".upsample.conv.", ".upsamplers.0.conv."),
    (".block.", ".resnets."),
];

fn renamed(stored: &str, levels: usize) -> Option<(String, View)> {
    let mut name = counted(stored, levels)?;
    while let Some(better) = replaced(&SINGLE_FILE, &name) {
        name = better;
    }
    let matrix = name.contains(".attentions.0.to_") && name.ends_with(".weight");
    Some((name, if matrix { View::squeezed(stored, 2) } else { View::whole(stored) }))
}

/// Turns `down.<i>` into `down_blocks.<i>` and `up.<i>` into `up_blocks.<levels - 1 - i>`.
fn counted(stored: &str, levels: usize) -> Option<String> {
    if let Some(rest) = stored.strip_prefix("encoder.down.") {
        return Some(format!("encoder.down_blocks.{rest}"));
    }
    let Some(rest) = stored.strip_prefix("decoder.up.") else { return Some(stored.to_owned()) };
    let (index, rest) = rest.split_once('.')?;
    let index = levels.checked_sub(1)?.checked_sub(index.parse().ok()?)?;
    Some(format!("decoder.up_blocks.{index}.{rest}"))
}

fn replaced(table: &[(&str, &str)], name: &str) -> Option<String> {
    table.iter().find(|(from, _)| name.contains(from)).map(|(from, to)| name.replace(from, to))
}
