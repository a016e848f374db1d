//! Stable Diffusion 3 and 3.5: three text encoders, the transformer, the autoencoder.
//!
//! Reference: `StableDiffusion3Pipeline` of diffusers (Apache-2.0).

use candle_core::{DType, Result, Tensor};

use crate::models::autoencoder_kl::Autoencoder;
use crate::models::stable_diffusion_3::Transformer;
use crate::models::{clip, t5};
use crate::pipelines::{for_batch, guided};
use crate::samplers::flow_match_euler::FlowMatchEuler;

/// A prompt as the three tokenizers number it, each (batch, length).
pub struct Prompt {
    /// For CLIP ViT-L, padded to its longest text.
    pub clip_l: Tensor,
    /// For CLIP ViT-bigG, padded to its longest text.
    pub clip_g: Tensor,
    /// For T5-XXL, padded to 256 or what the caller wants.
    pub t5: Tensor,
}

/// What the transformer is told of a prompt.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// The tokens of CLIP, widened with zeros, then those of T5: (batch, lengths, width of T5).
    pub text: Tensor,
    /// The whole, as both CLIP encoders see it: (batch, both widths).
    pub pooled: Tensor,
}

/// The text encoders.
pub struct TextEncoders {
    /// CLIP ViT-L.
    pub clip_l: clip::TextEncoder,
    /// CLIP ViT-bigG.
    pub clip_g: clip::TextEncoder,
    /// T5-XXL; without it, its tokens are zeros.
    pub t5: Option<t5::Encoder>,
    /// Width of T5's tokens: the transformer's `joint_attention_dim`.
    pub width: usize,
}

impl TextEncoders {
    /// Encodes prompts.
    pub fn encode(&self, prompt: &Prompt) -> Result<Conditions> {
        let (states_l, pooled_l) = self.clip_l.forward(&prompt.clip_l)?;
        let (states_g, pooled_g) = self.clip_g.forward(&prompt.clip_g)?;
        let clip = Tensor::cat(&[states_l, states_g], 2)?;
        let clip = clip.pad_with_zeros(2, 0, self.width.saturating_sub(clip.dim(2)?))?;
        let (batch, length) = prompt.t5.dims2()?;
        let t5 = match &self.t5 {
            Some(t5) => t5.forward(&prompt.t5, None)?,
            None => Tensor::zeros((batch, length, self.width), clip.dtype(), clip.device())?,
        };
        Ok(Conditions { text: Tensor::cat(&[clip, t5], 1)?, pooled: Tensor::cat(&[pooled_l, pooled_g], 1)? })
    }
}

/// What to draw, and what not to.
pub struct Guidance<'a> {
    /// The wanted prompt.
    pub wanted: &'a Conditions,
    /// The unwanted prompt, with as many tokens; without it, or with a scale up to 1, there is no guidance.
    pub unwanted: Option<&'a Conditions>,
    /// How far to move away from the unwanted.
    pub scale: f64,
}

impl Guidance<'_> {
    /// The conditions of one evaluation: of both prompts at once where there is guidance.
    fn conditions(&self) -> Result<(Conditions, bool)> {
        let Some(unwanted) = self.unwanted.filter(|_| self.scale > 1.0) else {
            return Ok((self.wanted.clone(), false));
        };
        let both = |a: &Tensor, b: &Tensor| Tensor::cat(&[a, b], 0);
        let (text, pooled) = (both(&unwanted.text, &self.wanted.text)?, both(&unwanted.pooled, &self.wanted.pooled)?);
        Ok((Conditions { text, pooled }, true))
    }
}

/// Turns `noise` (batch, channels, height, width) into a latent of the same shape.
///
/// `after_step` sees the number of each step and the latent after it; an error from it ends the run.
pub fn denoise(
    transformer: &Transformer,
    schedule: &FlowMatchEuler,
    guidance: &Guidance<'_>,
    noise: &Tensor,
    mut after_step: impl FnMut(usize, &Tensor) -> Result<()>,
) -> Result<Tensor> {
    let (conditions, twice) = guidance.conditions()?;
    let mut latent = noise.clone();
    for i in 0..schedule.steps() {
        let shown = if twice { Tensor::cat(&[&latent, &latent], 0)? } else { latent.clone() };
        let told = for_batch(schedule.timestep(i), shown.dim(0)?, &shown)?;
        let answer = transformer.forward(&shown, &told, &conditions.text, &conditions.pooled)?;
        let velocity = if twice { guided(&answer, guidance.scale)? } else { answer };
        latent = schedule.step(i, &velocity, &latent)?;
        after_step(i, &latent)?;
    }
    Ok(latent)
}

/// The picture of a latent as [`denoise`] returns it: (batch, 3, height, width), from 0 to 1.
pub fn picture(autoencoder: &Autoencoder, latent: &Tensor) -> Result<Tensor> {
    let image = autoencoder.decode(&autoencoder.unscaled(latent)?)?.to_dtype(DType::F32)?;
    ((image / 2.0)? + 0.5)?.clamp(0.0, 1.0)
}
