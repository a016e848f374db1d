//! The configuration of Llama and Qwen3: from `config.json`, or from the metadata of a GGUF file.

use std::f32::consts::TAU;

use serde::Deserialize;

use crate::weights::{Gguf, Value, WeightSource as _};

/// What a decoder is made of; reads `config.json` of transformers 4 and 5.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Config {
    /// Tokens.
    pub vocabulary: usize,
    /// Width.
    pub width: usize,
    /// Width inside the feed-forward.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Added to mean squares.
    pub eps: f64,
    /// What the wavelengths of positions grow by from the first to the last.
    pub theta: f32,
    /// How slow frequencies are slowed further (Llama 3.1 and later).
    pub scaling: Option<FrequencyScaling>,
    /// Which numbers of a head positions turn together.
    pub turning: Turning,
    /// Whether the head is the table of tokens.
    pub tied: bool,
    /// Whether queries and keys are normed for each head (Qwen3).
    pub head_norms: bool,
    /// Whether the attention's linear layers have biases.
    pub attention_bias: bool,
    /// Longest text.
    pub longest: usize,
}

/// Which numbers of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turning {
    /// Those half a head apart.
    Halves,
    /// Those beside each other, as in GGUF files of Llama.
    Neighbours,
}

/// How Llama 3.1 and later slow down the frequencies of positions.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct FrequencyScaling {
    /// What slow frequencies are divided by.
    pub factor: f32,
    /// Wavelengths longer than the original context divided by this are stretched fully.
    pub low_freq_factor: f32,
    /// Wavelengths shorter than the original context divided by this are not stretched.
    pub high_freq_factor: f32,
    /// The context that the model was first trained with.
    pub original_max_position_embeddings: f32,
}

/// A configuration that is not supported or lacks something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The configuration's {key} is missing or not supported ({found})")]
pub struct Unsupported {
    /// The key.
    pub key: String,
    /// What it is.
    pub found: String,
}

impl Unsupported {
    pub(crate) fn new(key: impl Into<String>, found: impl ToString) -> Self {
        Self { key: key.into(), found: found.to_string() }
    }
}

#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the file has them")]
struct Stored {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
    max_position_embeddings: usize,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    #[serde(flatten)]
    scaling: Option<FrequencyScaling>,
}

impl TryFrom<Stored> for Config {
    type Error = Unsupported;

    fn try_from(stored: Stored) -> Result<Self, Unsupported> {
        stored.check()?;
        let rope = stored.rope_parameters.as_ref().or(stored.rope_scaling.as_ref());
        Ok(Self {
            vocabulary: stored.vocab_size,
            width: stored.hidden_size,
            inner: stored.intermediate_size,
            layers: stored.num_hidden_layers,
            heads: stored.num_attention_heads,
            kv_heads: stored.num_key_value_heads.unwrap_or(stored.num_attention_heads),
            head_width: stored.head_dim.unwrap_or(stored.hidden_size / stored.num_attention_heads.max(1)),
            eps: stored.rms_norm_eps,
            theta: rope.and_then(|rope| rope.rope_theta).or(stored.rope_theta).unwrap_or(10_000.0),
            scaling: rope.map(Rope::scaling).transpose()?.flatten(),
            turning: Turning::Halves,
            tied: stored.tie_word_embeddings,
            head_norms: stored.model_type == "qwen3",
            attention_bias: stored.attention_bias,
            longest: stored.max_position_embeddings,
        })
    }
}

impl Stored {
    fn check(&self) -> Result<(), Unsupported> {
        if !["llama", "qwen3"].contains(&self.model_type.as_str()) {
            return Err(Unsupported::new("model_type", &self.model_type));
        }
        if self.use_sliding_window || self.mlp_bias {
            return Err(Unsupported::new("use_sliding_window or mlp_bias", true));
        }
        let activation = self.hidden_act.as_deref().unwrap_or("silu");
        if activation != "silu" {
            return Err(Unsupported::new("hidden_act", activation));
        }
        sensible(self.num_attention_heads, self.num_key_value_heads.unwrap_or(self.num_attention_heads))
    }
}

/// Every head of keys and values must serve the same number of query heads.
fn sensible(heads: usize, kv_heads: usize) -> Result<(), Unsupported> {
    let fits = heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads);
    if fits { Ok(()) } else { Err(Unsupported::new("number of heads", format!("{heads} and {kv_heads}"))) }
}

impl Rope {
    fn scaling(&self) -> Result<Option<FrequencyScaling>, Unsupported> {
        match (self.rope_type.as_deref(), self.scaling) {
            (None | Some("default"), _) => Ok(None),
            (Some("llama3"), Some(scaling)) => Ok(Some(scaling)),
            (Some(other), _) => Err(Unsupported::new("rope_type", other)),
        }
    }
}

impl Config {
    /// Reads the metadata of a GGUF file, whose `general.architecture` must be `llama` or `qwen3`.
    ///
    /// # Errors
    /// When a key is missing, or asks for what is not supported.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, Unsupported> {
        let architecture = gguf.metadata().get("general.architecture").and_then(Value::text).unwrap_or_default();
        if !["llama", "qwen3"].contains(&architecture) {
            return Err(Unsupported::new("general.architecture", architecture));
        }
        let keys = Keys { gguf, architecture };
        let (width, heads) = (keys.count("embedding_length")?, keys.count("attention.head_count")?);
        let head_width = keys.count("attention.key_length").unwrap_or(width / heads.max(1));
        let kv_heads = keys.count("attention.head_count_kv").unwrap_or(heads);
        sensible(heads, kv_heads)?;
        keys.check(head_width)?;
        Ok(Self {
            vocabulary: keys.vocabulary()?,
            width,
            inner: keys.count("feed_forward_length")?,
            layers: keys.count("block_count")?,
            heads,
            kv_heads,
            head_width,
            eps: keys.number("attention.layer_norm_rms_epsilon")?,
            theta: keys.number("rope.freq_base").unwrap_or(10_000.0) as f32,
            scaling: None,
            turning: if architecture == "llama" { Turning::Neighbours } else { Turning::Halves },
            tied: gguf.shape("output.weight").is_none(),
            head_norms: architecture == "qwen3",
            attention_bias: gguf.shape("blk.0.attn_q.bias").is_some(),
            longest: keys.count("context_length")?,
        })
    }

    /// How far a position turns each pair of a head's numbers.
    pub(crate) fn frequencies(&self) -> Vec<f32> {
        let width = self.head_width;
        let plain = (0..width / 2).map(|i| 1.0 / self.theta.powf((2 * i) as f32 / width as f32));
        plain.map(|frequency| self.scaling.map_or(frequency, |scaling| scaling.apply(frequency))).collect()
    }
}

impl FrequencyScaling {
    fn apply(&self, frequency: f32) -> f32 {
        let turns = self.original_max_position_embeddings * frequency / TAU;
        if turns > self.high_freq_factor {
            return frequency;
        }
        if turns < self.low_freq_factor {
            return frequency / self.factor;
        }
        let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - kept) * frequency / self.factor + kept * frequency
    }
}

struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn get<T>(&self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T, Unsupported> {
        let key = format!("{}.{key}", self.architecture);
        let value = self.gguf.metadata().get(&key);
        let found = || value.map_or_else(|| "not there".to_owned(), |value| format!("{value:?}"));
        value.and_then(read).ok_or_else(|| Unsupported::new(key.clone(), found()))
    }

    fn count(&self, key: &str) -> Result<usize, Unsupported> {
        self.get(key, Value::count)
    }

    fn number(&self, key: &str) -> Result<f64, Unsupported> {
        self.get(key, Value::number)
    }

    fn vocabulary(&self) -> Result<usize, Unsupported> {
        let table = self.gguf.shape("token_embd.weight").and_then(|shape| shape.first().copied());
        table.ok_or_else(|| Unsupported::new("token_embd.weight", "not there"))
    }

    /// Refuses what would be computed wrongly.
    fn check(&self, head_width: usize) -> Result<(), Unsupported> {
        let turned = self.count("rope.dimension_count").unwrap_or(head_width);
        let values = self.count("attention.value_length").unwrap_or(head_width);
        if turned != head_width || values != head_width {
            return Err(Unsupported::new("width of a head", format!("{head_width}, {turned} turned, {values} values")));
        }
        let scaling = self.get("rope.scaling.type", |value| value.text().map(str::to_owned)).unwrap_or_default();
        let experts = self.count("expert_count").unwrap_or(0);
        match (scaling.as_str(), experts) {
            ("" | "none", 0) => Ok(()),
            ("" | "none", _) => Err(Unsupported::new("expert_count", experts)),
            _ => Err(Unsupported::new("rope.scaling.type", scaling)),
        }
    }
}
