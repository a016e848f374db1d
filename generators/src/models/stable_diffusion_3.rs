//! The transformer of Stable Diffusion 3 and 3.5 (MMDiT): text and image tokens attend to each other in one sequence.
//!
//! Paper: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
//! <https://arxiv.org/abs/2403.03206>. Reference: `SD3Transformer2DModel` of diffusers (Apache-2.0).
//!
//! 3.5 adds RMS norms on queries and keys (also those of the context in the last block) and, in Medium, a second
//! attention over the image alone in the first blocks.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::elementwise::{gated_sum, scaled_and_moved};
use crate::layers::{Conv2d, Linear, RmsNorm, Steps, attention, merge_heads, sinusoid};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, sizes};
use crate::weights::{Param, Renamed, View, WeightSource, Weights};

/// Width of the sinusoidal code of a timestep.
const TIME_WIDTH: usize = 256;
const EPS: f64 = 1e-6;

/// `transformer/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Pixels of the latent along one side of a patch.
    pub patch_size: usize,
    /// Channels of the latent.
    pub in_channels: usize,
    /// Channels predicted.
    pub out_channels: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Width of one attention head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the text tokens.
    pub joint_attention_dim: usize,
    /// Width of the text tokens inside the model; equal to the model's.
    pub caption_projection_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Largest side, in patches, that has positions.
    pub pos_embed_max_size: usize,
    /// Blocks with a second attention over the image alone.
    #[serde(default)]
    pub dual_attention_layers: Vec<usize>,
    /// `rms_norm` where queries and keys are normalised.
    #[serde(default)]
    pub qk_norm: Option<String>,
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        sizes(&[
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("num_layers", self.num_layers),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("caption_projection_dim", self.caption_projection_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
            ("pos_embed_max_size", self.pos_embed_max_size),
        ])
    }
}

impl Config {
    fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

/// The denoiser: predicts the velocity from noise to image.
pub struct Transformer {
    patches: Conv2d,
    positions: Param,
    time: Perceptron,
    pooled: Perceptron,
    context: Linear,
    blocks: Vec<Block>,
    modulation_out: Linear,
    out: Linear,
    config: Config,
}

impl Transformer {
    /// Claims the tensors of the diffusers layout.
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let width = config.width();
        let patch = Steps { stride: config.patch_size, ..Steps::default() };
        let embed = weights.at("pos_embed");
        let condition = weights.at("time_text_embed");
        let blocks = (0..config.num_layers).map(|i| Block::new(config, i, &weights.at("transformer_blocks").at(i)));
        let positions = [1, config.pos_embed_max_size * config.pos_embed_max_size, width];
        let pixels = config.patch_size * config.patch_size * config.out_channels;
        Self {
            patches: Conv2d::new(config.in_channels, width, config.patch_size, patch, &embed.at("proj")),
            positions: embed.param("pos_embed", &positions),
            time: Perceptron::new(TIME_WIDTH, width, &condition.at("timestep_embedder")),
            pooled: Perceptron::new(config.pooled_projection_dim, width, &condition.at("text_embedder")),
            context: Linear::new(config.joint_attention_dim, width, &weights.at("context_embedder")),
            blocks: blocks.collect(),
            modulation_out: Linear::new(width, 2 * width, &weights.at("norm_out").at("linear")),
            out: Linear::new(width, pixels, &weights.at("proj_out")),
            config: config.clone(),
        }
    }

    /// One evaluation.
    ///
    /// `latent` (batch, channels, height, width), `timestep` (batch) from 0 to 1000, `text` (batch, length,
    /// `joint_attention_dim`), `pooled` (batch, `pooled_projection_dim`). Returns the shape of `latent`.
    ///
    /// # Errors
    /// When a side of the latent is not a multiple of the patch or longer than there are positions.
    pub fn forward(&self, latent: &Tensor, timestep: &Tensor, text: &Tensor, pooled: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = latent.dims4()?;
        let size = (self.patches_along(height)?, self.patches_along(width)?);
        let code = sinusoid(timestep, TIME_WIDTH)?.to_dtype(latent.dtype())?;
        let condition = (self.time.forward(&code)? + self.pooled.forward(pooled)?)?.silu()?;
        let tokens = self.patches.forward(latent)?.flatten_from(2)?.transpose(1, 2)?;
        let mut image = tokens.broadcast_add(&self.positions_of(size)?)?.contiguous()?;
        let mut context = self.context.forward(text)?;
        for block in &self.blocks {
            (image, context) = block.forward(&image, &context, &condition)?;
        }
        let [scale, shift] = modulation(&self.modulation_out, &condition)?;
        let image = modulated(&image, &shift, &scale)?;
        self.unpatch(&self.out.forward(&image)?, size)
    }

    fn patches_along(&self, side: usize) -> Result<usize> {
        let (patch, most) = (self.config.patch_size, self.config.pos_embed_max_size);
        if !side.is_multiple_of(patch) || side / patch > most {
            candle_core::bail!("A latent side of {side} is not a multiple of {patch} up to {}", patch * most);
        }
        Ok(side / patch)
    }

    /// The middle of the table of positions: (1, height · width, model width).
    fn positions_of(&self, (height, width): (usize, usize)) -> Result<Tensor> {
        let most = self.config.pos_embed_max_size;
        let table = self.positions.tensor()?.reshape((1, most, most, ()))?;
        let middle = table.narrow(1, (most - height) / 2, height)?.narrow(2, (most - width) / 2, width)?;
        middle.contiguous()?.flatten(1, 2)
    }

    /// (batch, patches, pixels · channels) to (batch, channels, height, width).
    fn unpatch(&self, tokens: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        let (patch, channels) = (self.config.patch_size, self.config.out_channels);
        let batch = tokens.dim(0)?;
        let grid = tokens.reshape(vec![batch, height, width, patch, patch, channels])?;
        let image = grid.permute(vec![0, 5, 1, 3, 2, 4])?.contiguous()?;
        image.reshape((batch, channels, height * patch, width * patch))
    }
}

/// Two layers with a SiLU between them.
struct Perceptron {
    first: Linear,
    second: Linear,
}

impl Perceptron {
    fn new(inputs: usize, width: usize, weights: &Weights) -> Self {
        Self {
            first: Linear::new(inputs, width, &weights.at("linear_1")),
            second: Linear::new(width, width, &weights.at("linear_2")),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward(x)?.silu()?)
    }
}

struct FeedForward {
    first: Linear,
    second: Linear,
}

impl FeedForward {
    fn new(width: usize, weights: &Weights) -> Self {
        let net = weights.at("net");
        Self {
            first: Linear::new(width, 4 * width, &net.at("0.proj")),
            second: Linear::new(4 * width, width, &net.at("2")),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward_gelu(x)?)
    }
}

/// Queries, keys and values of one stream, each (batch, length, heads, head width): as they lie after the linear layers.
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
    heads: usize,
}

impl Projections {
    fn new(config: &Config, [q, k, v]: [&str; 3], norms: [&str; 2], weights: &Weights) -> Self {
        let linear = |name| Linear::new(config.width(), config.width(), &weights.at(name));
        let norm = |name| RmsNorm::new(config.attention_head_dim, EPS, &weights.at(name));
        let norms = config.qk_norm.as_ref().map(|_| (norm(norms[0]), norm(norms[1])));
        Self { q: linear(q), k: linear(k), v: linear(v), norms, heads: config.num_attention_heads }
    }

    fn of_image(config: &Config, weights: &Weights) -> Self {
        Self::new(config, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"], weights)
    }

    fn of_context(config: &Config, weights: &Weights) -> Self {
        let names = ["add_q_proj", "add_k_proj", "add_v_proj"];
        Self::new(config, names, ["norm_added_q", "norm_added_k"], weights)
    }

    fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let (batch, length, width) = x.dims3()?;
        let part = |linear: &Linear| linear.forward(x)?.reshape((batch, length, self.heads, width / self.heads));
        let (q, k, v) = (part(&self.q)?, part(&self.k)?, part(&self.v)?);
        match &self.norms {
            Some((of_q, of_k)) => Ok([of_q.forward(&q)?, of_k.forward(&k)?, v]),
            None => Ok([q, k, v]),
        }
    }
}

/// The second attention of Medium's first blocks, over the image alone.
struct ImageAttention {
    projections: Projections,
    out: Linear,
}

/// What follows the joint attention in one stream.
struct Tail {
    out: Linear,
    feed_forward: FeedForward,
}

struct Block {
    image_modulation: Linear,
    context_modulation: Linear,
    image: Projections,
    context: Projections,
    image_tail: Tail,
    /// The last block's context is not used after its attention.
    context_tail: Option<Tail>,
    second: Option<ImageAttention>,
}

impl Block {
    fn new(config: &Config, index: usize, weights: &Weights) -> Self {
        let (width, last) = (config.width(), index + 1 == config.num_layers);
        let attn = weights.at("attn");
        let square = |weights: Weights| Linear::new(width, width, &weights);
        let second = config.dual_attention_layers.contains(&index).then(|| ImageAttention {
            projections: Projections::of_image(config, &weights.at("attn2")),
            out: square(weights.at("attn2.to_out.0")),
        });
        let context_tail = (!last).then(|| Tail {
            out: square(attn.at("to_add_out")),
            feed_forward: FeedForward::new(width, &weights.at("ff_context")),
        });
        let image_parts = if second.is_some() { 9 } else { 6 };
        let context_parts = if last { 2 } else { 6 };
        Self {
            image_modulation: Linear::new(width, image_parts * width, &weights.at("norm1.linear")),
            context_modulation: Linear::new(width, context_parts * width, &weights.at("norm1_context.linear")),
            image: Projections::of_image(config, &attn),
            context: Projections::of_context(config, &attn),
            image_tail: Tail {
                out: square(attn.at("to_out.0")),
                feed_forward: FeedForward::new(width, &weights.at("ff")),
            },
            context_tail,
            second,
        }
    }

    /// `image` (batch, patches, width) and `context` (batch, length, width); `condition` (batch, width).
    fn forward(&self, image: &Tensor, context: &Tensor, condition: &Tensor) -> Result<(Tensor, Tensor)> {
        let (first, second) = self.image_parts(condition)?;
        let [shift, scale, gate, ..] = &first;
        let context_in = self.context_in(context, condition)?;
        let (of_image, of_context) = self.joint(&modulated(image, shift, scale)?, &context_in.normed)?;
        let mut added = gated_sum(image, &self.image_tail.out.forward(&of_image)?, gate)?;
        if let (Some(attention), Some([shift, scale, gate])) = (&self.second, second) {
            added = gated_sum(&added, &attention.forward(&modulated(image, &shift, &scale)?)?, &gate)?;
        }
        let image = self.image_tail.fed(&added, &first)?;
        let context = match (&self.context_tail, &context_in.parts) {
            (Some(tail), Some(parts)) => {
                tail.fed(&gated_sum(context, &tail.out.forward(&of_context)?, &parts[2])?, parts)?
            }
            _ => context.clone(),
        };
        Ok((image, context))
    }

    fn image_parts(&self, condition: &Tensor) -> Result<([Tensor; 6], Option<[Tensor; 3]>)> {
        if self.second.is_none() {
            return Ok((modulation(&self.image_modulation, condition)?, None));
        }
        let [a, b, c, d, e, f, g, h, i] = modulation(&self.image_modulation, condition)?;
        Ok(([a, b, c, d, e, f], Some([g, h, i])))
    }

    fn context_in(&self, context: &Tensor, condition: &Tensor) -> Result<ContextIn> {
        if self.context_tail.is_none() {
            let [scale, shift] = modulation(&self.context_modulation, condition)?;
            return Ok(ContextIn { normed: modulated(context, &shift, &scale)?, parts: None });
        }
        let parts: [Tensor; 6] = modulation(&self.context_modulation, condition)?;
        Ok(ContextIn { normed: modulated(context, &parts[0], &parts[1])?, parts: Some(parts) })
    }

    /// Attention over both streams at once; returns what belongs to each.
    fn joint(&self, image: &Tensor, context: &Tensor) -> Result<(Tensor, Tensor)> {
        let (ours, theirs) = (self.image.forward(image)?, self.context.forward(context)?);
        let both = |i: usize| Tensor::cat(&[&ours[i], &theirs[i]], 1)?.transpose(1, 2);
        let attended = merge_heads(&attention(&both(0)?, &both(1)?, &both(2)?, None)?)?;
        let (patches, words) = (image.dim(1)?, context.dim(1)?);
        Ok((attended.narrow(1, 0, patches)?, attended.narrow(1, patches, words)?))
    }
}

struct ContextIn {
    normed: Tensor,
    parts: Option<[Tensor; 6]>,
}

impl ImageAttention {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [q, k, v] = self.projections.forward(x)?;
        let heads = |x: Tensor| x.transpose(1, 2);
        self.out.forward(&merge_heads(&attention(&heads(q)?, &heads(k)?, &heads(v)?, None)?)?)
    }
}

impl Tail {
    /// Adds the feed-forward of the stream, modulated by the last three of its six parts.
    fn fed(&self, x: &Tensor, [_, _, _, shift, scale, gate]: &[Tensor; 6]) -> Result<Tensor> {
        gated_sum(x, &self.feed_forward.forward(&modulated(x, shift, scale)?)?, gate)
    }
}

/// The parts that a linear layer makes of the condition, each (batch, 1, width).
fn modulation<const N: usize>(linear: &Linear, condition: &Tensor) -> Result<[Tensor; N]> {
    let parts = linear.forward(condition)?.unsqueeze(1)?.chunk(N, 2)?;
    parts.try_into().map_err(|parts: Vec<_>| candle_core::Error::msg(format!("{} parts instead of {N}", parts.len())))
}

/// `x` (batch, length, width) normalised, and moved and scaled by parts of the condition, each (batch, 1, width).
fn modulated(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    scaled_and_moved(x, &(scale + 1.0)?, shift, EPS)
}

/// Gives a single-file checkpoint, as Stability AI and ComfyUI name it, the names of the diffusers layout.
///
/// `source` holds the transformer's tensors without their `model.diffusion_model.` prefix; `num_layers` is needed
/// because the last block stores shift and scale the other way round.
pub fn from_single_file(source: Arc<dyn WeightSource>, num_layers: usize) -> Renamed {
    Renamed::new(source, |stored| renamed(stored, num_layers))
}

const OUTSIDE: [(&str, &str); 9] = [
    ("pos_embed", "pos_embed.pos_embed"),
    ("x_embedder.proj.", "pos_embed.proj."),
    ("t_embedder.mlp.0.", "time_text_embed.timestep_embedder.linear_1."),
    ("t_embedder.mlp.2.", "time_text_embed.timestep_embedder.linear_2."),
    ("y_embedder.mlp.0.", "time_text_embed.text_embedder.linear_1."),
    ("y_embedder.mlp.2.", "time_text_embed.text_embedder.linear_2."),
    ("context_embedder.", "context_embedder."),
    ("final_layer.linear.", "proj_out."),
    ("final_layer.adaLN_modulation.1.", "norm_out.linear."),
];

const IN_BLOCK: [(&str, &str); 15] = [
    ("x_block.adaLN_modulation.1.", "norm1.linear."),
    ("x_block.attn.ln_q.", "attn.norm_q."),
    ("x_block.attn.ln_k.", "attn.norm_k."),
    ("x_block.attn.proj.", "attn.to_out.0."),
    ("x_block.attn2.ln_q.", "attn2.norm_q."),
    ("x_block.attn2.ln_k.", "attn2.norm_k."),
    ("x_block.attn2.proj.", "attn2.to_out.0."),
    ("x_block.mlp.fc1.", "ff.net.0.proj."),
    ("x_block.mlp.fc2.", "ff.net.2."),
    ("context_block.adaLN_modulation.1.", "norm1_context.linear."),
    ("context_block.attn.ln_q.", "attn.norm_added_q."),
    ("context_block.attn.ln_k.", "attn.norm_added_k."),
    ("context_block.attn.proj.", "attn.to_add_out."),
    ("context_block.mlp.fc1.", "ff_context.net.0.proj."),
    ("context_block.mlp.fc2.", "ff_context.net.2."),
];

const FUSED: [(&str, [&str; 3]); 3] = [
    ("x_block.attn.qkv.", ["attn.to_q.", "attn.to_k.", "attn.to_v."]),
    ("x_block.attn2.qkv.", ["attn2.to_q.", "attn2.to_k.", "attn2.to_v."]),
    ("context_block.attn.qkv.", ["attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."]),
];

fn renamed(stored: &str, num_layers: usize) -> Vec<(String, View)> {
    let Some((index, inside)) = stored.strip_prefix("joint_blocks.").and_then(|rest| rest.split_once('.')) else {
        let view = if stored.starts_with("final_layer.adaLN") { swapped(stored) } else { View::whole(stored) };
        return replaced(&OUTSIDE, stored).map(|name| (name, view)).into_iter().collect();
    };
    let block = format!("transformer_blocks.{index}.");
    if let Some((fused, parts)) = FUSED.iter().find(|(fused, _)| inside.starts_with(fused)) {
        let rest = &inside[fused.len()..];
        let third = |(i, part): (usize, &&str)| (format!("{block}{part}{rest}"), View::parts(stored, &[(i, 3)]));
        return parts.iter().enumerate().map(third).collect();
    }
    let last = index.parse() == Ok(num_layers - 1) && inside.starts_with("context_block.adaLN");
    let view = if last { swapped(stored) } else { View::whole(stored) };
    replaced(&IN_BLOCK, inside).map(|name| (format!("{block}{name}"), view)).into_iter().collect()
}

/// Shift and scale lie in this order in single files, and in the other in the diffusers layout.
fn swapped(stored: &str) -> View {
    View::parts(stored, &[(1, 2), (0, 2)])
}

fn replaced(table: &[(&str, &str)], name: &str) -> Option<String> {
    table.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}
