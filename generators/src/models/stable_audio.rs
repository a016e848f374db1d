//! Stable Audio Open 1.0: the diffusion transformer and the projection of what conditions it.
//!
//! Paper: Evans et al., "Stable Audio Open", <https://arxiv.org/abs/2407.14358>. Reference: `StableAudioDiTModel` and
//! `StableAudioProjectionModel` of diffusers (Apache-2.0), stable-audio-tools (MIT).

use std::f64::consts::PI;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use serde::Deserialize;

use crate::layers::{Conv1d, LayerNorm, Linear, Steps, attention, merge_heads, split_heads};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, divided, sizes};
use crate::weights::{Param, Renamed, View, WeightSource, Weights};

const EPS: f64 = 1e-5;
/// Width of the sinusoidal code of a duration.
const DURATION_WIDTH: usize = 256;

/// `transformer/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Steps of a whole latent.
    pub sample_size: usize,
    /// Channels of the latent.
    pub in_channels: usize,
    /// Channels predicted.
    pub out_channels: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Width of an attention head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Attention heads of keys and values towards the text.
    pub num_key_value_attention_heads: usize,
    /// Width of the text tokens inside the model.
    pub cross_attention_dim: usize,
    /// Width of the sinusoidal code of a timestep.
    pub time_proj_dim: usize,
    /// Width of the durations.
    pub global_states_input_dim: usize,
    /// Width of the text tokens.
    pub cross_attention_input_dim: usize,
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[
            ("sample_size", self.sample_size),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("num_layers", self.num_layers),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_attention_heads", self.num_key_value_attention_heads),
            ("cross_attention_dim", self.cross_attention_dim),
            ("time_proj_dim", self.time_proj_dim),
            ("global_states_input_dim", self.global_states_input_dim),
            ("cross_attention_input_dim", self.cross_attention_input_dim),
        ])?;
        divided(("attention_head_dim", self.attention_head_dim), 4)?;
        divided(("num_attention_heads", self.num_attention_heads), self.num_key_value_attention_heads)
    }
}

impl Config {
    fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

/// The denoiser.
pub struct Transformer {
    frequencies: Param,
    time: Perceptron,
    global: Perceptron,
    text: Perceptron,
    conv_in: Conv1d,
    project_in: Linear,
    blocks: Vec<Block>,
    project_out: Linear,
    conv_out: Conv1d,
    config: Config,
}

impl Transformer {
    /// Claims the tensors of the diffusers layout.
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let (width, cross) = (config.width(), config.cross_attention_dim);
        let block = |i| Block::new(config, &weights.at("transformer_blocks").at(i));
        // A table of stable-audio-tools that follows from the head's width.
        weights.ignore("transformer.rotary_pos_emb.inv_freq");
        let point = |channels, name| Conv1d::without_bias(channels, channels, 1, Steps::default(), &weights.at(name));
        let (global, text) = (weights.at("global_proj"), weights.at("cross_attention_proj"));
        Self {
            frequencies: weights.at("time_proj").param("weight", &[config.time_proj_dim / 2]),
            time: Perceptron::new(config.time_proj_dim, width, &weights.at("timestep_proj")),
            global: Perceptron::without_bias(config.global_states_input_dim, width, &global),
            text: Perceptron::without_bias(config.cross_attention_input_dim, cross, &text),
            conv_in: point(config.in_channels, "preprocess_conv"),
            project_in: Linear::without_bias(config.in_channels, width, &weights.at("proj_in")),
            blocks: (0..config.num_layers).map(block).collect(),
            project_out: Linear::without_bias(width, config.out_channels, &weights.at("proj_out")),
            conv_out: point(config.out_channels, "postprocess_conv"),
            config: config.clone(),
        }
    }

    /// One evaluation.
    ///
    /// `latent` (batch, channels, length), `timestep` (batch) from 0 to 1, `text` (batch, tokens,
    /// `cross_attention_input_dim`), `durations` (batch, 1, `global_states_input_dim`). Returns the shape of `latent`.
    pub fn forward(&self, latent: &Tensor, timestep: &Tensor, text: &Tensor, durations: &Tensor) -> Result<Tensor> {
        let text = self.text.forward(text)?;
        let time = self.time.forward(&self.code(timestep)?.to_dtype(latent.dtype())?)?;
        let whole = self.global.forward(durations)?.broadcast_add(&time.unsqueeze(1)?)?;
        let steps = (latent + self.conv_in.forward(latent)?)?.transpose(1, 2)?.contiguous()?;
        let mut states = Tensor::cat(&[whole, self.project_in.forward(&steps)?], 1)?;
        let turns = self.turns(states.dim(1)?, &states)?;
        for block in &self.blocks {
            states = block.forward(&states, &text, &turns)?;
        }
        let length = latent.dim(2)?;
        let steps = self.project_out.forward(&states.narrow(1, 1, length)?)?.transpose(1, 2)?.contiguous()?;
        &steps + self.conv_out.forward(&steps)?
    }

    /// Cosines, then sines, of the timestep at learnt frequencies: (batch, `time_proj_dim`).
    fn code(&self, timestep: &Tensor) -> Result<Tensor> {
        let frequencies = self.frequencies.tensor()?.to_dtype(DType::F32)?.unsqueeze(0)?;
        let angles = (timestep.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)? * (2.0 * PI))?;
        Tensor::cat(&[angles.cos()?, angles.sin()?], 1)
    }

    /// Cosines and sines that turn half of each head, by position: each (length, head width / 4).
    fn turns(&self, length: usize, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let turned = self.config.attention_head_dim / 2;
        let frequency = |i: usize| 1.0 / 10000_f32.powf(2.0 * i as f32 / turned as f32);
        let angles = (0..length).flat_map(|at| (0..turned / 2).map(move |i| at as f32 * frequency(i)));
        let angles = Tensor::from_vec(angles.collect::<Vec<f32>>(), (length, turned / 2), like.device())?;
        Ok((angles.cos()?.to_dtype(like.dtype())?, angles.sin()?.to_dtype(like.dtype())?))
    }
}

/// Two layers with a SiLU between them.
struct Perceptron {
    first: Linear,
    second: Linear,
}

impl Perceptron {
    fn new(inputs: usize, outputs: usize, weights: &Weights) -> Self {
        Self {
            first: Linear::new(inputs, outputs, &weights.at(0)),
            second: Linear::new(outputs, outputs, &weights.at(2)),
        }
    }

    fn without_bias(inputs: usize, outputs: usize, weights: &Weights) -> Self {
        Self {
            first: Linear::without_bias(inputs, outputs, &weights.at(0)),
            second: Linear::without_bias(outputs, outputs, &weights.at(2)),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward(x)?.silu()?)
    }
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
    key_heads: usize,
}

impl Attention {
    fn to_itself(config: &Config, weights: &Weights) -> Self {
        Self::new(config, config.width(), config.num_attention_heads, weights)
    }

    fn to_text(config: &Config, weights: &Weights) -> Self {
        Self::new(config, config.cross_attention_dim, config.num_key_value_attention_heads, weights)
    }

    fn new(config: &Config, inputs: usize, key_heads: usize, weights: &Weights) -> Self {
        let (width, keys) = (config.width(), key_heads * config.attention_head_dim);
        Self {
            q: Linear::without_bias(width, width, &weights.at("to_q")),
            k: Linear::without_bias(inputs, keys, &weights.at("to_k")),
            v: Linear::without_bias(inputs, keys, &weights.at("to_v")),
            out: Linear::without_bias(width, width, &weights.at("to_out.0")),
            heads: config.num_attention_heads,
            key_heads,
        }
    }

    fn forward(&self, x: &Tensor, other: &Tensor, turns: Option<&(Tensor, Tensor)>) -> Result<Tensor> {
        let q = split_heads(&self.q.forward(x)?, self.heads)?;
        let k = self.for_all_heads(&split_heads(&self.k.forward(other)?, self.key_heads)?)?;
        let v = self.for_all_heads(&split_heads(&self.v.forward(other)?, self.key_heads)?)?;
        let (q, k) = match turns {
            Some(turns) => (turned(&q, turns)?, turned(&k, turns)?),
            None => (q, k),
        };
        self.out.forward(&merge_heads(&attention(&q, &k, &v, None)?)?)
    }

    /// Gives several heads of queries the same head of keys: (batch, key heads, length, width) to (batch, heads, …).
    fn for_all_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, heads, length, width) = x.dims4()?;
        let each = self.heads / heads;
        let repeated = x.unsqueeze(2)?.broadcast_as(vec![batch, heads, each, length, width])?;
        repeated.contiguous()?.reshape((batch, self.heads, length, width))
    }
}

/// Turns the first half of each head by its position: (batch, heads, length, width) to the same shape.
fn turned(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
    let (quarter, width) = (cos.dim(1)?, x.dim(3)?);
    let (real, imaginary) = (x.narrow(3, 0, quarter)?, x.narrow(3, quarter, quarter)?);
    let first = (real.broadcast_mul(cos)? - imaginary.broadcast_mul(sin)?)?;
    let second = (imaginary.broadcast_mul(cos)? + real.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second, x.narrow(3, 2 * quarter, width - 2 * quarter)?], 3)
}

struct Block {
    norm1: LayerNorm,
    to_itself: Attention,
    norm2: LayerNorm,
    to_text: Attention,
    norm3: LayerNorm,
    feed_in: Linear,
    feed_out: Linear,
}

impl Block {
    fn new(config: &Config, weights: &Weights) -> Self {
        let width = config.width();
        let norm = |name| LayerNorm::new(width, EPS, &weights.at(name));
        Self {
            norm1: norm("norm1"),
            to_itself: Attention::to_itself(config, &weights.at("attn1")),
            norm2: norm("norm2"),
            to_text: Attention::to_text(config, &weights.at("attn2")),
            norm3: norm("norm3"),
            feed_in: Linear::new(width, 8 * width, &weights.at("ff.net.0.proj")),
            feed_out: Linear::new(4 * width, width, &weights.at("ff.net.2")),
        }
    }

    fn forward(&self, x: &Tensor, text: &Tensor, turns: &(Tensor, Tensor)) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let x = (x + self.to_itself.forward(&normed, &normed, Some(turns))?)?;
        let x = (&x + self.to_text.forward(&self.norm2.forward(&x)?, text, None)?)?;
        let parts = self.feed_in.forward(&self.norm3.forward(&x)?)?.chunk(2, 2)?;
        &x + self.feed_out.forward(&(&parts[0] * parts[1].silu()?)?)?
    }
}

/// `projection_model/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ProjectionConfig {
    /// Width of the text encoder.
    pub text_encoder_dim: usize,
    /// Width of what conditions the denoiser.
    pub conditioning_dim: usize,
    /// Shortest time in seconds.
    pub min_value: f64,
    /// Longest time in seconds.
    pub max_value: f64,
}

impl Settings for ProjectionConfig {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[("text_encoder_dim", self.text_encoder_dim), ("conditioning_dim", self.conditioning_dim)])
    }
}

/// Makes what conditions the denoiser from the text's states and two times.
pub struct Projection {
    text: Option<Linear>,
    start: Duration,
    end: Duration,
}

/// What conditions the denoiser.
pub struct Conditions {
    /// The text's tokens and the two times, as three sequences in one: (batch, tokens + 2, width).
    pub text: Tensor,
    /// The two times side by side: (batch, 1, 2 · width).
    pub durations: Tensor,
}

impl Projection {
    /// Claims the tensors of the diffusers layout.
    pub fn new(config: &ProjectionConfig, weights: &Weights) -> Self {
        let (from, to) = (config.text_encoder_dim, config.conditioning_dim);
        Self {
            text: (from != to).then(|| Linear::new(from, to, &weights.at("text_projection"))),
            start: Duration::new(config, &weights.at("start_number_conditioner.time_positional_embedding")),
            end: Duration::new(config, &weights.at("end_number_conditioner.time_positional_embedding")),
        }
    }

    /// `text` (batch, tokens, `text_encoder_dim`), `mask` (batch, tokens) 0 for padding, `start` and `end` (batch) in
    /// seconds.
    pub fn forward(&self, text: &Tensor, mask: &Tensor, [start, end]: [&Tensor; 2]) -> Result<Conditions> {
        let text = self.text.as_ref().map_or_else(|| Ok(text.clone()), |linear| linear.forward(text))?;
        let text = text.broadcast_mul(&mask.to_dtype(text.dtype())?.unsqueeze(2)?)?;
        let (start, end) = (self.start.forward(start, text.dtype())?, self.end.forward(end, text.dtype())?);
        let durations = Tensor::cat(&[&start, &end], 2)?;
        Ok(Conditions { text: Tensor::cat(&[text, start, end], 1)?, durations })
    }
}

/// The code of a time: itself, sines and cosines at learnt frequencies, and a linear layer.
struct Duration {
    frequencies: Param,
    linear: Linear,
    range: [f64; 2],
}

impl Duration {
    fn new(config: &ProjectionConfig, weights: &Weights) -> Self {
        Self {
            frequencies: weights.at(0).param("weights", &[DURATION_WIDTH / 2]),
            linear: Linear::new(DURATION_WIDTH + 1, config.conditioning_dim, &weights.at(1)),
            range: [config.min_value, config.max_value],
        }
    }

    /// Seconds (batch) to (batch, 1, width).
    fn forward(&self, seconds: &Tensor, dtype: DType) -> Result<Tensor> {
        let [shortest, longest] = self.range;
        let clamped = seconds.to_dtype(DType::F32)?.clamp(shortest, longest)?;
        let share = ((clamped - shortest)? / (longest - shortest))?.unsqueeze(1)?;
        let frequencies = self.frequencies.tensor()?.to_dtype(DType::F32)?.unsqueeze(0)?;
        let angles = (share.broadcast_mul(&frequencies)? * (2.0 * PI))?;
        let code = Tensor::cat(&[share, angles.sin()?, angles.cos()?], 1)?.to_dtype(dtype)?;
        self.linear.forward(&code)?.unsqueeze(1)
    }
}

/// Gives the transformer of a stable-audio-tools checkpoint the names of the diffusers layout.
///
/// `source` holds its tensors without their `model.model.` prefix.
pub fn from_single_file(source: Arc<dyn WeightSource>) -> Renamed {
    Renamed::new(source, renamed)
}

/// Gives the projection of a stable-audio-tools checkpoint the names of the diffusers layout.
///
/// `source` holds its tensors without their `conditioner.conditioners.` prefix.
pub fn projection_from_single_file(source: Arc<dyn WeightSource>) -> Renamed {
    Renamed::new(source, |stored| {
        let name =
            stored.replace("seconds_start.embedder.embedding", "start_number_conditioner.time_positional_embedding");
        let name = name.replace("seconds_total.embedder.embedding", "end_number_conditioner.time_positional_embedding");
        vec![(name, View::whole(stored))]
    })
}

const WORDS: [(&str, &str); 15] = [
    ("timestep_features", "time_proj"),
    ("to_timestep_embed", "timestep_proj"),
    ("to_global_embed", "global_proj"),
    ("to_cond_embed", "cross_attention_proj"),
    ("transformer.project_", "proj_"),
    ("transformer.layers", "transformer_blocks"),
    ("pre_norm", "norm1"),
    ("cross_attend_norm", "norm2"),
    ("ff_norm", "norm3"),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("to_out", "to_out.0"),
    ("ff.ff", "ff.net"),
    ("gamma", "weight"),
    ("beta", "bias"),
];

fn renamed(stored: &str) -> Vec<(String, View)> {
    let name = WORDS.iter().fold(stored.to_owned(), |name, (from, to)| name.replace(from, to));
    let parts = |fused: &str, parts: &[&str]| {
        let part = |(i, part): (usize, &&str)| (name.replace(fused, part), View::parts(stored, &[(i, parts.len())]));
        parts.iter().enumerate().map(part).collect()
    };
    if name.contains("to_qkv") {
        return parts("to_qkv", &["to_q", "to_k", "to_v"]);
    }
    if name.contains("to_kv") {
        return parts("to_kv", &["to_k", "to_v"]);
    }
    let view = if name == "time_proj.weight" { View::squeezed(stored, 1) } else { View::whole(stored) };
    vec![(name, view)]
}
