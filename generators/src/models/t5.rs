//! The encoders of T5 (1.0 and 1.1) and UMT5: text towers with positions in the attention alone.
//!
//! Papers: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
//! <https://arxiv.org/abs/1910.10683>; Chung et al., "UniMax", <https://arxiv.org/abs/2304.09151>. References:
//! `T5EncoderModel` and `UMT5EncoderModel` of transformers (Apache-2.0).

use candle_core::{DType, Result, Tensor};
use serde::Deserialize;

use crate::elementwise::gelu;
use crate::layers::{Embedding, Linear, RmsNorm, attention, merge_heads, split_heads};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, sizes};
use crate::weights::{Param, Weights};

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Tokens.
    pub vocab_size: usize,
    /// Width.
    pub d_model: usize,
    /// Width of an attention head.
    pub d_kv: usize,
    /// Width inside the feed-forward.
    pub d_ff: usize,
    /// Layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Kinds of distance between two tokens.
    #[serde(default = "thirty_two")]
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all are of one kind.
    #[serde(default = "hundred_and_twenty_eight")]
    pub relative_attention_max_distance: usize,
    /// Added to mean squares.
    #[serde(default = "millionth")]
    pub layer_norm_epsilon: f64,
    /// The feed-forward.
    #[serde(default)]
    pub feed_forward_proj: FeedForwardKind,
    /// `umt5` where every layer has its own positions.
    #[serde(default)]
    pub model_type: String,
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            // Half of the kinds look ahead, half of those are single distances.
            ("relative_attention_num_buckets", self.relative_attention_num_buckets / 4),
            ("relative_attention_max_distance", self.relative_attention_max_distance),
        ])
    }
}

fn thirty_two() -> usize {
    32
}

fn hundred_and_twenty_eight() -> usize {
    128
}

fn millionth() -> f64 {
    1e-6
}

/// The feed-forwards of the family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedForwardKind {
    /// One matrix and its positive part (T5 1.0).
    #[default]
    Relu,
    /// Two matrices, one of which gates the other (T5 1.1, UMT5).
    GatedGelu,
}

/// The encoder.
pub struct Encoder {
    tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    config: Config,
}

impl Encoder {
    /// Claims the tensors of `T5EncoderModel` or `UMT5EncoderModel`; the decoder of a whole T5 may lie beside them.
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let encoder = weights.at("encoder");
        // The same table under a second name.
        encoder.ignore("embed_tokens.weight");
        weights.ignore_below("decoder");
        weights.ignore_below("lm_head");
        let own = |i| i == 0 || config.model_type == "umt5";
        let layer = |i| Layer::new(config, own(i), &encoder.at("block").at(i).at("layer"));
        Self {
            tokens: Embedding::new(config.vocab_size, config.d_model, &weights.at("shared")),
            layers: (0..config.num_layers).map(layer).collect(),
            norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, &encoder.at("final_layer_norm")),
            config: config.clone(),
        }
    }

    /// Texts (batch, length) of token numbers to their states (batch, length, `d_model`).
    ///
    /// `mask` (batch, length) is 1 for tokens and 0 for padding; without it, padding is text too.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let mut states = self.tokens.forward(ids)?;
        let kinds = self.distances(ids.dim(1)?);
        let hidden = mask.map(|mask| hiding(mask, states.dtype())).transpose()?;
        let mut positions = None;
        for layer in &self.layers {
            if let Some(own) = layer.positions(&kinds)? {
                positions = Some(match &hidden {
                    Some(hidden) => own.broadcast_add(hidden)?,
                    None => own,
                });
            }
            states = layer.forward(&states, positions.as_ref())?;
        }
        self.norm.forward(&states)
    }

    /// The kind of distance from every token to every other, row by row.
    fn distances(&self, length: usize) -> Vec<u32> {
        let pairs = (0..length).flat_map(|from| (0..length).map(move |to| to as i64 - from as i64));
        pairs.map(|distance| self.kind(distance)).collect()
    }

    /// Half of the kinds look ahead; half of each half are single distances, the others grow geometrically.
    fn kind(&self, distance: i64) -> u32 {
        let half = self.config.relative_attention_num_buckets / 2;
        let (ahead, single) = (if distance > 0 { half } else { 0 }, half / 2);
        let far = distance.unsigned_abs() as usize;
        if far < single {
            return (ahead + far) as u32;
        }
        let most = self.config.relative_attention_max_distance as f32 / single as f32;
        let steps = (far as f32 / single as f32).ln() / most.ln() * (half - single) as f32;
        (ahead + (single + steps as usize).min(half - 1)) as u32
    }
}

/// A large negative number where there is padding: (batch, 1, 1, length).
fn hiding(mask: &Tensor, dtype: DType) -> Result<Tensor> {
    let padding = (1.0 - mask.to_dtype(DType::F32)?)?;
    let lowest = if dtype == DType::F16 { -6e4 } else { -1e30 };
    (padding * lowest)?.unsqueeze(1)?.unsqueeze(1)?.to_dtype(dtype)
}

struct Layer {
    norm1: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    positions: Option<Param>,
    norm2: RmsNorm,
    feed_forward: FeedForward,
    heads: usize,
    scale: f64,
}

impl Layer {
    fn new(config: &Config, own_positions: bool, weights: &Weights) -> Self {
        let (width, inner, eps) = (config.d_model, config.num_heads * config.d_kv, config.layer_norm_epsilon);
        let attn = weights.at("0.SelfAttention");
        let project = |name| Linear::without_bias(width, inner, &attn.at(name));
        let positions = own_positions.then(|| {
            let table = [config.relative_attention_num_buckets, config.num_heads];
            attn.at("relative_attention_bias").param("weight", &table)
        });
        Self {
            norm1: RmsNorm::new(width, eps, &weights.at("0.layer_norm")),
            q: project("q"),
            k: project("k"),
            v: project("v"),
            out: Linear::without_bias(inner, width, &attn.at("o")),
            positions,
            norm2: RmsNorm::new(width, eps, &weights.at("1.layer_norm")),
            feed_forward: FeedForward::new(config, &weights.at("1.DenseReluDense")),
            heads: config.num_heads,
            // These models do not divide the scores by the root of the width; ours does.
            scale: (config.d_kv as f64).sqrt(),
        }
    }

    /// What the layer adds to the scores for distances: (1, heads, length, length).
    fn positions(&self, kinds: &[u32]) -> Result<Option<Tensor>> {
        let Some(table) = &self.positions else { return Ok(None) };
        let length = kinds.len().isqrt();
        let scores = table.gather(kinds)?.reshape((length, length, self.heads))?;
        Ok(Some(scores.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?))
    }

    fn forward(&self, x: &Tensor, positions: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let heads = |linear: &Linear| split_heads(&linear.forward(&normed)?, self.heads);
        let q = (heads(&self.q)? * self.scale)?;
        let attended = attention(&q, &heads(&self.k)?, &heads(&self.v)?, positions)?;
        let x = (x + self.out.forward(&merge_heads(&attended)?)?)?;
        &x + self.feed_forward.forward(&self.norm2.forward(&x)?)?
    }
}

struct FeedForward {
    first: Linear,
    gated: Option<Linear>,
    second: Linear,
}

impl FeedForward {
    fn new(config: &Config, weights: &Weights) -> Self {
        let inward = |name| Linear::without_bias(config.d_model, config.d_ff, &weights.at(name));
        let (first, gated) = match config.feed_forward_proj {
            FeedForwardKind::Relu => (inward("wi"), None),
            FeedForwardKind::GatedGelu => (inward("wi_0"), Some(inward("wi_1"))),
        };
        Self { first, gated, second: Linear::without_bias(config.d_ff, config.d_model, &weights.at("wo")) }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let first = self.first.forward(x)?;
        let inner = match &self.gated {
            Some(gated) => (gelu(&first)? * gated.forward(x)?)?,
            None => first.relu()?,
        };
        self.second.forward(&inner)
    }
}
