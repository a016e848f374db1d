//! CLIP: a text tower and an image tower whose outputs lie in one space.
//!
//! Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
//! <https://arxiv.org/abs/2103.00020>. Reference: `CLIPModel`, `CLIPTextModelWithProjection` of transformers
//! (Apache-2.0).

use candle_core::{D, DType, Device, Result, Tensor};
use serde::Deserialize;

use crate::layers::{Conv2d, Embedding, LayerNorm, Linear, Steps, attention, merge_heads, quick_gelu, split_heads};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, divided, sizes};
use crate::weights::{Param, Weights};

/// `config.json` of a model with both towers.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// The text tower.
    pub text_config: TextConfig,
    /// The image tower.
    pub vision_config: VisionConfig,
    /// Width of the common space.
    #[serde(default = "width_512")]
    pub projection_dim: usize,
}

/// The text tower; also `config.json` of a text encoder by itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct TextConfig {
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
    /// Width of the common space, where the text encoder stands alone.
    pub projection_dim: usize,
    /// The activation.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// The token whose place carries the whole text. 2, in old configurations, means the largest number.
    pub eos_token_id: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            projection_dim: width_512(),
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

/// The image tower.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width inside the feed-forward.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Channels of the image.
    pub num_channels: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The activation.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl Settings for TextConfig {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("projection_dim", self.projection_dim),
        ])?;
        divided(("hidden_size", self.hidden_size), self.num_attention_heads)
    }
}

impl Settings for VisionConfig {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_channels", self.num_channels),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ])?;
        if self.patch_size > self.image_size {
            return Err(Unsupported::new("patch_size", self.patch_size));
        }
        divided(("hidden_size", self.hidden_size), self.num_attention_heads)
    }
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[("projection_dim", self.projection_dim)])?;
        self.text_config.check()?;
        self.vision_config.check()
    }
}

/// The activations that CLIP models have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// By the error function.
    Gelu,
}

fn width_512() -> usize {
    512
}

/// Both towers.
pub struct Clip {
    text: TextTower,
    vision: VisionTower,
    text_projection: Linear,
    visual_projection: Linear,
    logit_scale: Param,
}

impl Clip {
    /// Claims the tensors of `CLIPModel`.
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let (text, vision, common) = (&config.text_config, &config.vision_config, config.projection_dim);
        Self {
            text: TextTower::new(text, &weights.at("text_model")),
            vision: VisionTower::new(vision, &weights.at("vision_model")),
            text_projection: Linear::without_bias(text.hidden_size, common, &weights.at("text_projection")),
            visual_projection: Linear::without_bias(vision.hidden_size, common, &weights.at("visual_projection")),
            logit_scale: weights.param("logit_scale", &[]),
        }
    }

    /// Texts (batch, length) of token numbers to the common space (batch, `projection_dim`), not normalised.
    pub fn text_features(&self, ids: &Tensor) -> Result<Tensor> {
        self.text_projection.forward(&self.text.forward(ids)?.pooled)
    }

    /// Images (batch, channels, side, side), normalised as the preprocessor says, to the common space (batch,
    /// `projection_dim`), not normalised.
    pub fn image_features(&self, images: &Tensor) -> Result<Tensor> {
        self.visual_projection.forward(&self.vision.forward(images)?)
    }

    /// How well each text fits each image: (images, texts); a softmax over the last dimension gives probabilities.
    pub fn logits(&self, images: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (images, texts) = (unit(&self.image_features(images)?)?, unit(&self.text_features(ids)?)?);
        images.matmul(&texts.t()?)?.broadcast_mul(&self.logit_scale.tensor()?.exp()?)
    }

    /// The text tower, for its hidden states.
    pub fn text(&self) -> &TextTower {
        &self.text
    }
}

/// Divides rows by their length.
fn unit(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// The text tower with its projection, as diffusion models use it.
pub struct TextEncoder {
    text: TextTower,
    projection: Linear,
}

impl TextEncoder {
    /// Claims the tensors of `CLIPTextModelWithProjection`.
    pub fn new(config: &TextConfig, weights: &Weights) -> Self {
        let projection = &weights.at("text_projection");
        Self {
            text: TextTower::new(config, &weights.at("text_model")),
            projection: Linear::without_bias(config.hidden_size, config.projection_dim, projection),
        }
    }

    /// Texts (batch, length) of token numbers to the states before the last layer (batch, length, width) and the
    /// projected whole (batch, `projection_dim`).
    pub fn forward(&self, ids: &Tensor) -> Result<(Tensor, Tensor)> {
        let states = self.text.forward(ids)?;
        Ok((states.penultimate, self.projection.forward(&states.pooled)?))
    }
}

/// What a text tower makes of texts.
pub struct TextStates {
    /// After the last layer and its norm: (batch, length, width).
    pub last: Tensor,
    /// Before the last layer: (batch, length, width).
    pub penultimate: Tensor,
    /// `last` at the end of each text: (batch, width).
    pub pooled: Tensor,
}

/// The text tower.
pub struct TextTower {
    tokens: Embedding,
    positions: Param,
    layers: Vec<Layer>,
    norm: LayerNorm,
    eos: u32,
}

impl TextTower {
    /// Claims the tensors under `text_model`.
    pub fn new(config: &TextConfig, weights: &Weights) -> Self {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let shape = Shape {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps,
        };
        let embeddings = weights.at("embeddings");
        embeddings.ignore("position_ids");
        let positions = embeddings.at("position_embedding").param("weight", &[config.max_position_embeddings, width]);
        Self {
            tokens: Embedding::new(config.vocab_size, width, &embeddings.at("token_embedding")),
            positions,
            layers: Layer::stack(config.num_hidden_layers, shape, weights),
            norm: LayerNorm::new(width, eps, &weights.at("final_layer_norm")),
            eos: config.eos_token_id,
        }
    }

    /// Texts (batch, length) of token numbers to their states.
    ///
    /// # Errors
    /// When a text is longer than there are positions or a number is not that of a token.
    pub fn forward(&self, ids: &Tensor) -> Result<TextStates> {
        let (_, length) = ids.dims2()?;
        let tokens = self.tokens.forward(ids)?;
        let mut states = tokens.broadcast_add(&self.positions.tensor()?.narrow(0, 0, length)?)?;
        let mask = causal(length, states.dtype(), states.device())?;
        let mut penultimate = states.clone();
        for layer in &self.layers {
            penultimate = states;
            states = layer.forward(&penultimate, Some(&mask))?;
        }
        let last = self.norm.forward(&states)?;
        let pooled = self.pool(&last, ids)?;
        Ok(TextStates { last, penultimate, pooled })
    }

    /// The states at the end of each text.
    fn pool(&self, last: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let texts = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        let ends = texts.iter().enumerate().map(|(i, text)| last.get(i)?.get(self.end(text)));
        Tensor::stack(&ends.collect::<Result<Vec<_>>>()?, 0)
    }

    fn end(&self, text: &[u32]) -> usize {
        // Configurations from before 2023 say 2, which is no end; the largest token is.
        let end = if self.eos == 2 { text.iter().max().copied() } else { Some(self.eos) };
        text.iter().position(|&token| Some(token) == end).unwrap_or(0)
    }
}

/// Minus infinity where a token would look ahead: (1, 1, length, length).
fn causal(length: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let cell = |i: usize, j: usize| if j > i { f32::NEG_INFINITY } else { 0.0 };
    let cells: Vec<f32> = (0..length).flat_map(|i| (0..length).map(move |j| cell(i, j))).collect();
    Tensor::from_vec(cells, (1, 1, length, length), device)?.to_dtype(dtype)
}

/// The image tower.
pub struct VisionTower {
    patches: Conv2d,
    class: Param,
    positions: Param,
    norm_in: LayerNorm,
    layers: Vec<Layer>,
    norm_out: LayerNorm,
}

impl VisionTower {
    /// Claims the tensors under `vision_model`.
    pub fn new(config: &VisionConfig, weights: &Weights) -> Self {
        let (width, eps, patch) = (config.hidden_size, config.layer_norm_eps, config.patch_size);
        let shape = Shape {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps,
        };
        let steps = Steps { stride: patch, ..Steps::default() };
        let count = (config.image_size / patch).pow(2) + 1;
        let embeddings = weights.at("embeddings");
        embeddings.ignore("position_ids");
        let patches = &embeddings.at("patch_embedding");
        Self {
            patches: Conv2d::without_bias(config.num_channels, width, patch, steps, patches),
            class: embeddings.param("class_embedding", &[width]),
            positions: embeddings.at("position_embedding").param("weight", &[count, width]),
            // The reference misspells it.
            norm_in: LayerNorm::new(width, eps, &weights.at("pre_layrnorm")),
            layers: Layer::stack(config.num_hidden_layers, shape, weights),
            norm_out: LayerNorm::new(width, eps, &weights.at("post_layernorm")),
        }
    }

    /// Images (batch, channels, side, side) to (batch, width).
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let patches = self.patches.forward(images)?.flatten_from(2)?.transpose(1, 2)?;
        let (batch, _, width) = patches.dims3()?;
        let class = self.class.tensor()?.broadcast_as((batch, 1, width))?;
        let tokens = Tensor::cat(&[class, patches], 1)?.broadcast_add(&self.positions.tensor()?)?;
        let states = self.norm_in.forward(&tokens)?;
        let states = self.layers.iter().try_fold(states, |states, layer| layer.forward(&states, None))?;
        self.norm_out.forward(&states.narrow(1, 0, 1)?.squeeze(1)?)
    }
}

/// What the layers of a tower have in common.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    inner: usize,
    heads: usize,
    activation: Activation,
    eps: f64,
}

struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    shape: Shape,
}

impl Layer {
    fn stack(count: usize, shape: Shape, weights: &Weights) -> Vec<Self> {
        (0..count).map(|i| Self::new(shape, &weights.at("encoder.layers").at(i))).collect()
    }

    fn new(shape: Shape, weights: &Weights) -> Self {
        let Shape { width, inner, eps, .. } = shape;
        let projection = |name| Linear::new(width, width, &weights.at("self_attn").at(name));
        Self {
            norm1: LayerNorm::new(width, eps, &weights.at("layer_norm1")),
            q: projection("q_proj"),
            k: projection("k_proj"),
            v: projection("v_proj"),
            out: projection("out_proj"),
            norm2: LayerNorm::new(width, eps, &weights.at("layer_norm2")),
            fc1: Linear::new(width, inner, &weights.at("mlp.fc1")),
            fc2: Linear::new(inner, width, &weights.at("mlp.fc2")),
            shape,
        }
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let heads = |linear: &Linear| split_heads(&linear.forward(&normed)?, self.shape.heads);
        let attended = attention(&heads(&self.q)?, &heads(&self.k)?, &heads(&self.v)?, mask)?;
        let x = (x + self.out.forward(&merge_heads(&attended)?)?)?;
        let inner = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let inner = match self.shape.activation {
            Activation::QuickGelu => quick_gelu(&inner)?,
            Activation::Gelu => inner.gelu_erf()?,
        };
        x + self.fc2.forward(&inner)?
    }
}
