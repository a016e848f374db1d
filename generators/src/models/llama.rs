//! Llama (2, 3, Llama Guard 3) and Qwen3: decoders that write text.
//!
//! Papers: Grattafiori et al., "The Llama 3 Herd of Models", <https://arxiv.org/abs/2407.21783>; Yang et al., "Qwen3
//! Technical Report", <https://arxiv.org/abs/2505.09388>. References: `LlamaForCausalLM`, `Qwen3ForCausalLM` of
//! transformers (Apache-2.0); names and metadata of GGUF files: llama.cpp (MIT).

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::elementwise::softmax;
use crate::layers::{Embedding, Linear, RmsNorm, merge_heads, split_heads};
pub use crate::models::llama_config::{Config, FrequencyScaling, Turning, Unsupported};
use crate::product::product;
use crate::weights::{Param, Renamed, View, WeightSource, Weights};

/// The decoder with its head.
pub struct Decoder {
    tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Option<Linear>,
    turns: Turns,
}

/// What a decoder remembers of the tokens before: keys and values of every layer.
#[derive(Default)]
pub struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    length: usize,
}

impl Cache {
    /// How many tokens are remembered.
    pub fn length(&self) -> usize {
        self.length
    }
}

impl Decoder {
    /// Claims the tensors of `LlamaForCausalLM` or `Qwen3ForCausalLM`.
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let (model, width) = (weights.at("model"), config.width);
        if config.tied {
            // The same table under a second name.
            weights.at("lm_head").ignore("weight");
        }
        let head = || Linear::without_bias(width, config.vocabulary, &weights.at("lm_head"));
        Self {
            tokens: Embedding::new(config.vocabulary, width, &model.at("embed_tokens")),
            layers: (0..config.layers).map(|i| Layer::new(config, &model.at("layers").at(i))).collect(),
            norm: RmsNorm::new(width, config.eps, &model.at("norm")),
            head: (!config.tied).then(head),
            turns: Turns::new(config, weights),
        }
    }

    /// Texts (batch, length) of token numbers, which follow those in the cache, to their states (batch, length, width).
    pub fn forward(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let (length, before) = (ids.dim(1)?, cache.length);
        let mut states = self.tokens.forward(ids)?;
        let turns = self.turns.at(before, length, &states)?;
        let mask = causal(length, before, states.dtype(), states.device())?;
        for (i, layer) in self.layers.iter().enumerate() {
            let before = cache.layers.get(i).cloned();
            let (after, kept) = layer.forward(&states, &turns, &mask, before)?;
            states = after;
            match cache.layers.get_mut(i) {
                Some(place) => *place = kept,
                None => cache.layers.push(kept),
            }
        }
        cache.length += length;
        self.norm.forward(&states)
    }

    /// States (…, width) to a score for every token (…, vocabulary).
    pub fn scores(&self, states: &Tensor) -> Result<Tensor> {
        match &self.head {
            Some(head) => head.forward(states),
            None => self.tokens.scores(states),
        }
    }
}

/// Minus infinity where a token would look ahead: (1, 1, length, before + length).
fn causal(length: usize, before: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let cell = |i: usize, j: usize| if j > before + i { f32::NEG_INFINITY } else { 0.0 };
    let cells: Vec<f32> = (0..length).flat_map(|i| (0..before + length).map(move |j| cell(i, j))).collect();
    Tensor::from_vec(cells, (1, 1, length, before + length), device)?.to_dtype(dtype)
}

/// How queries and keys are turned by their positions.
struct Turns {
    frequencies: Vec<f32>,
    /// What the frequencies are divided by, where the file tells it.
    factors: Option<Param>,
    turning: Turning,
}

impl Turns {
    fn new(config: &Config, weights: &Weights) -> Self {
        let frequencies = config.frequencies();
        let has = weights.has("rope_freqs.weight");
        let factors = has.then(|| weights.param("rope_freqs.weight", &[frequencies.len()]));
        Self { frequencies, factors, turning: config.turning }
    }

    /// Cosines and sines for some positions: (length, half of the head's width).
    fn at(&self, first: usize, length: usize, like: &Tensor) -> Result<Turned> {
        let frequencies = Tensor::new(self.frequencies.as_slice(), like.device())?;
        let frequencies = match &self.factors {
            Some(factors) => (frequencies / factors.tensor()?.to_dtype(DType::F32)?)?,
            None => frequencies,
        };
        let positions: Vec<f32> = (first..first + length).map(|position| position as f32).collect();
        let positions = Tensor::from_vec(positions, (length, 1), like.device())?;
        let angles = positions.broadcast_mul(&frequencies.unsqueeze(0)?)?;
        let (cos, sin) = (angles.cos()?.to_dtype(like.dtype())?, angles.sin()?.to_dtype(like.dtype())?);
        Ok(Turned { cos, sin, turning: self.turning })
    }
}

struct Turned {
    cos: Tensor,
    sin: Tensor,
    turning: Turning,
}

impl Turned {
    /// (batch, heads, length, head's width) to the same shape.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        match self.turning {
            Turning::Neighbours => candle_nn::rotary_emb::rope_i(x, &self.cos, &self.sin),
            Turning::Halves => candle_nn::rotary_emb::rope(x, &self.cos, &self.sin),
        }
    }
}

type Kept = (Tensor, Tensor);

struct Layer {
    norm1: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    heads: usize,
    kv_heads: usize,
}

impl Layer {
    fn new(config: &Config, weights: &Weights) -> Self {
        let (width, inner, eps) = (config.width, config.inner, config.eps);
        let (q_width, kv_width) = (config.heads * config.head_width, config.kv_heads * config.head_width);
        let attn = weights.at("self_attn");
        let project = |name, inputs, outputs| match config.attention_bias {
            true => Linear::new(inputs, outputs, &attn.at(name)),
            false => Linear::without_bias(inputs, outputs, &attn.at(name)),
        };
        let feed = |name, inputs, outputs| Linear::without_bias(inputs, outputs, &weights.at("mlp").at(name));
        let norm = |name| RmsNorm::new(config.head_width, eps, &attn.at(name));
        Self {
            norm1: RmsNorm::new(width, eps, &weights.at("input_layernorm")),
            q: project("q_proj", width, q_width),
            k: project("k_proj", width, kv_width),
            v: project("v_proj", width, kv_width),
            out: project("o_proj", q_width, width),
            norms: config.head_norms.then(|| (norm("q_norm"), norm("k_norm"))),
            norm2: RmsNorm::new(width, eps, &weights.at("post_attention_layernorm")),
            gate: feed("gate_proj", width, inner),
            up: feed("up_proj", width, inner),
            down: feed("down_proj", inner, width),
            heads: config.heads,
            kv_heads: config.kv_heads,
        }
    }

    fn forward(&self, x: &Tensor, turns: &Turned, mask: &Tensor, before: Option<Kept>) -> Result<(Tensor, Kept)> {
        let normed = self.norm1.forward(x)?;
        let (mut q, mut k) = (
            split_heads(&self.q.forward(&normed)?, self.heads)?,
            split_heads(&self.k.forward(&normed)?, self.kv_heads)?,
        );
        let v = split_heads(&self.v.forward(&normed)?, self.kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = (turns.turn(&q)?, turns.turn(&k)?);
        let (k, v) = match before {
            Some((keys, values)) => (Tensor::cat(&[&keys, &k], 2)?, Tensor::cat(&[&values, &v], 2)?),
            None => (k, v),
        };
        let attended = grouped_attention(&q, &k, &v, mask)?;
        let x = (x + self.out.forward(&merge_heads(&attended)?)?)?;
        let normed = self.norm2.forward(&x)?;
        let inner = (self.gate.forward(&normed)?.silu()? * self.up.forward(&normed)?)?;
        Ok(((x + self.down.forward(&inner)?)?, (k, v)))
    }
}

/// Attention in which several query heads share a head of keys and values.
///
/// `q` (batch, heads, length, width), `k` and `v` (batch, fewer heads, other length, width), `mask` (1, 1, length,
/// other length). Returns the shape of `q`.
fn grouped_attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (batch, heads, length, width) = q.dims4()?;
    let (kv_heads, others) = (k.dim(1)?, k.dim(2)?);
    let together = (batch, kv_heads, heads / kv_heads * length, ());
    let scores = (product(&q.reshape(together)?, &k.t()?)? / (width as f64).sqrt())?;
    let scores = scores.reshape((batch, heads, length, others))?.broadcast_add(mask)?;
    let weights = softmax(&scores)?.reshape(together)?;
    product(&weights, v)?.reshape((batch, heads, length, width))
}

/// Gives the tensors of a GGUF file the names of the transformers layout.
pub fn from_gguf(source: Arc<dyn WeightSource>) -> Renamed {
    Renamed::new(source, |stored| renamed(stored).map(|name| (name, View::whole(stored))).into_iter().collect())
}

fn renamed(stored: &str) -> Option<String> {
    let whole = match stored {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Some(name.to_owned());
    }
    let (layer, rest) = stored.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, name) = LAYER.iter().find(|(gguf, _)| *gguf == part)?;
    Some(format!("model.layers.{layer}.{name}.{kind}"))
}

/// The parts of a layer: in GGUF files, in transformers.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
