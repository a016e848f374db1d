//! CLIP as open_clip trains and stores it, such as DFN5B ViT-H-14: the same towers as [`crate::models::clip`], under
//! other names.
//!
//! Paper: Fang et al., "Data Filtering Networks", <https://arxiv.org/abs/2309.17425>. Reference: `CLIP` of open_clip
//! (MIT).

use std::sync::Arc;

use serde::Deserialize;

use crate::models::clip::{self, Activation};
use crate::models::llama::Unsupported;
use crate::models::settings::{Settings, divided, sizes};
use crate::weights::{Renamed, View, WeightSource};

/// `open_clip_config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// The towers.
    pub model_cfg: ModelConfig,
}

impl Settings for Config {
    fn check(&self) -> std::result::Result<(), Unsupported> {
        let ModelConfig { vision_cfg, text_cfg, .. } = &self.model_cfg;
        sizes(&[("embed_dim", self.model_cfg.embed_dim), ("head_width", vision_cfg.head_width)])?;
        sizes(&[("vision_cfg.width", vision_cfg.width), ("text_cfg.width", text_cfg.width)])?;
        divided(("vision_cfg.width", vision_cfg.width), vision_cfg.head_width)?;
        self.model_cfg.to_clip().check()
    }
}

/// Both towers.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelConfig {
    /// Width of the common space.
    pub embed_dim: usize,
    /// The image tower.
    pub vision_cfg: VisionConfig,
    /// The text tower.
    pub text_cfg: TextConfig,
    /// Whether the activation is the approximate one of the first CLIP models.
    #[serde(default)]
    pub quick_gelu: bool,
}

/// The image tower.
#[derive(Debug, Clone, Deserialize)]
pub struct VisionConfig {
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Layers.
    pub layers: usize,
    /// Width.
    pub width: usize,
    /// Width of an attention head.
    #[serde(default = "sixty_four")]
    pub head_width: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width inside the feed-forward, as a multiple.
    #[serde(default = "four")]
    pub mlp_ratio: f64,
}

/// The text tower.
#[derive(Debug, Clone, Deserialize)]
pub struct TextConfig {
    /// Longest text.
    pub context_length: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Width.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Width inside the feed-forward, as a multiple.
    #[serde(default = "four")]
    pub mlp_ratio: f64,
}

fn sixty_four() -> usize {
    64
}

fn four() -> f64 {
    4.0
}

impl ModelConfig {
    /// The same model in the words of [`clip::Clip`].
    pub fn to_clip(&self) -> clip::Config {
        let (text, vision) = (&self.text_cfg, &self.vision_cfg);
        let hidden_act = if self.quick_gelu { Activation::QuickGelu } else { Activation::Gelu };
        clip::Config {
            text_config: clip::TextConfig {
                vocab_size: text.vocab_size,
                hidden_size: text.width,
                intermediate_size: (text.width as f64 * text.mlp_ratio) as usize,
                num_hidden_layers: text.layers,
                num_attention_heads: text.heads,
                max_position_embeddings: text.context_length,
                hidden_act,
                // open_clip takes the largest token for the end of a text.
                eos_token_id: 2,
                ..clip::TextConfig::default()
            },
            vision_config: clip::VisionConfig {
                hidden_size: vision.width,
                intermediate_size: (vision.width as f64 * vision.mlp_ratio) as usize,
                num_hidden_layers: vision.layers,
                num_attention_heads: vision.width / vision.head_width,
                image_size: vision.image_size,
                patch_size: vision.patch_size,
                hidden_act,
                ..clip::VisionConfig::default()
            },
            projection_dim: self.embed_dim,
        }
    }
}

/// Gives an open_clip checkpoint the names that [`clip::Clip`] claims.
pub fn renamed(source: Arc<dyn WeightSource>) -> Renamed {
    Renamed::new(source, views)
}

const OUTSIDE: [(&str, &str); 12] = [
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("ln_final.weight", "text_model.final_layer_norm.weight"),
    ("ln_final.bias", "text_model.final_layer_norm.bias"),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    ("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"),
    ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
    ("visual.ln_post.weight", "vision_model.post_layernorm.weight"),
    ("visual.ln_post.bias", "vision_model.post_layernorm.bias"),
    ("logit_scale", "logit_scale"),
];

const IN_LAYER: [(&str, &str); 5] = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];

fn views(stored: &str) -> Vec<(String, View)> {
    let transposed = |name: &str| vec![(name.to_owned(), View::Transposed { stored: stored.to_owned() })];
    match stored {
        "text_projection" => return transposed("text_projection.weight"),
        "visual.proj" => return transposed("visual_projection.weight"),
        _ => {}
    }
    let outside = OUTSIDE.iter().find(|(from, _)| *from == stored);
    if let Some((_, to)) = outside {
        return vec![((*to).to_owned(), View::whole(stored))];
    }
    in_layer(stored).unwrap_or_default()
}

fn in_layer(stored: &str) -> Option<Vec<(String, View)>> {
    let (tower, rest) = match stored.strip_prefix("visual.transformer.resblocks.") {
        Some(rest) => ("vision_model", rest),
        None => ("text_model", stored.strip_prefix("transformer.resblocks.")?),
    };
    let (index, inside) = rest.split_once('.')?;
    let layer = format!("{tower}.encoder.layers.{index}.");
    if let Some(kind) = inside.strip_prefix("attn.in_proj_") {
        let third = |(i, part)| (format!("{layer}self_attn.{part}_proj.{kind}"), View::parts(stored, &[(i, 3)]));
        return Some(["q", "k", "v"].into_iter().enumerate().map(third).collect());
    }
    let (from, to) = IN_LAYER.iter().find(|(from, _)| inside.starts_with(from))?;
    Some(vec![(format!("{layer}{to}{}", &inside[from.len()..]), View::whole(stored))])
}
