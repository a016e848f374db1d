//! BERT: the encoder of texts that sentence embeddings are made with.
//!
//! Paper: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
//! <https://arxiv.org/abs/1810.04805>. Reference: `BertModel` of transformers (Apache-2.0).

use candle_core::{DType, Result, Tensor};
use serde::Deserialize;

use crate::elementwise::gelu;
use crate::layers::{Embedding, LayerNorm, Linear, attention, merge_heads, split_heads};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, divided, sizes};
use crate::weights::{Param, Weights};

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Tokens.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the feed-forward.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Longest text.
    pub max_position_embeddings: usize,
    /// Kinds of text; the first is used.
    pub type_vocab_size: usize,
    /// The activation.
    #[serde(default)]
    pub hidden_act: Activation,
    /// How positions are told.
    #[serde(default)]
    pub position_embedding_type: Positions,
    /// Added to variances.
    #[serde(default = "trillionth")]
    pub layer_norm_eps: f64,
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ])?;
        divided(("hidden_size", self.hidden_size), self.num_attention_heads)
    }
}

fn trillionth() -> f64 {
    1e-12
}

/// The activations that the family has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU by the error function.
    #[default]
    Gelu,
    /// GELU by the hyperbolic tangent.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// The positive part.
    Relu,
}

/// How positions are told; other ways are not supported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learnt row for every place.
    #[default]
    Absolute,
}

/// The encoder, without the pooler, which sentence embeddings do not use.
pub struct Encoder {
    words: Embedding,
    places: Param,
    kinds: Param,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Encoder {
    /// Claims the tensors of `BertModel`.
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let embeddings = weights.at("embeddings");
        embeddings.ignore("position_ids");
        for name in ["weight", "bias"] {
            weights.at("pooler.dense").ignore(name);
        }
        let (width, at) = (config.hidden_size, |name| embeddings.at(name));
        let layer = |i| Layer::new(config, &weights.at("encoder.layer").at(i));
        Self {
            words: Embedding::new(config.vocab_size, width, &at("word_embeddings")),
            places: at("position_embeddings").param("weight", &[config.max_position_embeddings, width]),
            kinds: at("token_type_embeddings").param("weight", &[config.type_vocab_size, width]),
            norm: LayerNorm::new(width, config.layer_norm_eps, &at("LayerNorm")),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
        }
    }

    /// Texts (batch, length) of token numbers to their states (batch, length, width).
    ///
    /// `mask` (batch, length) is 1 for tokens and 0 for padding; without it there is no padding.
    ///
    /// # Errors
    /// When a text is longer than there are positions or a number is not that of a token.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let words = self.words.forward(ids)?;
        let places: Vec<u32> = (0..ids.dim(1)? as u32).collect();
        let states = words.broadcast_add(&self.places.gather(&places)?)?.broadcast_add(&self.kinds.gather(&[0])?)?;
        let hidden = mask.map(|mask| hiding(mask, states.dtype())).transpose()?;
        let states = self.norm.forward(&states)?;
        self.layers.iter().try_fold(states, |states, layer| layer.forward(&states, hidden.as_ref()))
    }
}

/// A large negative number where there is padding: (batch, 1, 1, length).
fn hiding(mask: &Tensor, dtype: DType) -> Result<Tensor> {
    let padding = (1.0 - mask.to_dtype(DType::F32)?)?;
    let lowest = if dtype == DType::F16 { -6e4 } else { -1e30 };
    (padding * lowest)?.unsqueeze(1)?.unsqueeze(1)?.to_dtype(dtype)
}

/// The mean of the states of a text's tokens: `states` (batch, length, width), `mask` (batch, length) 1 for tokens and
/// 0 for padding, to (batch, width).
pub fn mean(states: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = mask.to_dtype(states.dtype())?.unsqueeze(2)?;
    let counts = mask.sum(1)?.clamp(1e-9, f64::MAX)?;
    states.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&counts)
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm1: LayerNorm,
    inner: Linear,
    outer: Linear,
    norm2: LayerNorm,
    heads: usize,
    activation: Activation,
}

impl Layer {
    fn new(config: &Config, weights: &Weights) -> Self {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let project = |name| Linear::new(width, width, &weights.at("attention.self").at(name));
        Self {
            query: project("query"),
            key: project("key"),
            value: project("value"),
            out: Linear::new(width, width, &weights.at("attention.output.dense")),
            norm1: LayerNorm::new(width, eps, &weights.at("attention.output.LayerNorm")),
            inner: Linear::new(width, inner, &weights.at("intermediate.dense")),
            outer: Linear::new(inner, width, &weights.at("output.dense")),
            norm2: LayerNorm::new(width, eps, &weights.at("output.LayerNorm")),
            heads: config.num_attention_heads,
            activation: config.hidden_act,
        }
    }

    fn forward(&self, x: &Tensor, hidden: Option<&Tensor>) -> Result<Tensor> {
        let heads = |linear: &Linear| split_heads(&linear.forward(x)?, self.heads);
        let attended = attention(&heads(&self.query)?, &heads(&self.key)?, &heads(&self.value)?, hidden)?;
        let x = self.norm1.forward(&(x + self.out.forward(&merge_heads(&attended)?)?)?)?;
        let inner = self.inner.forward(&x)?;
        let inner = match self.activation {
            Activation::Gelu => inner.gelu_erf()?,
            Activation::GeluNew => gelu(&inner)?,
            Activation::Relu => inner.relu()?,
        };
        self.norm2.forward(&(&x + self.outer.forward(&inner)?)?)
    }
}
