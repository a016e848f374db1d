//! Stable Audio Open: T5, the projection, the transformer, the autoencoder.
//!
//! Reference: `StableAudioPipeline` of diffusers (Apache-2.0).

use candle_core::{Result, Tensor};

use crate::models::oobleck::Autoencoder;
use crate::models::stable_audio::{Conditions, Projection, Transformer};
use crate::models::t5;
use crate::pipelines::{for_batch, guided};
use crate::samplers::cosine_dpm::CosineDpm;

/// A prompt and the part of the sound that it is for.
pub struct Prompt {
    /// Token numbers, padded to the longest text (128): (batch, length).
    pub ids: Tensor,
    /// 1 for tokens, 0 for padding: (batch, length).
    pub mask: Tensor,
    /// Where the sound begins, in seconds: (batch).
    pub start: Tensor,
    /// Where it ends: (batch).
    pub end: Tensor,
}

/// Encodes prompts.
pub fn encode(t5: &t5::Encoder, projection: &Projection, prompt: &Prompt) -> Result<Conditions> {
    let states = t5.forward(&prompt.ids, Some(&prompt.mask))?;
    projection.forward(&states, &prompt.mask, [&prompt.start, &prompt.end])
}

/// Turns unit `noise` (batch, channels, length) into a latent of the same shape.
///
/// With a `scale` above 1 the answer moves away from that to no prompt at all. `steps` gives
/// each step its noise and sees what becomes of the latent.
pub fn denoise(
    transformer: &Transformer,
    mut schedule: CosineDpm,
    (conditions, scale): (&Conditions, f64),
    noise: &Tensor,
    mut steps: impl Steps,
) -> Result<Tensor> {
    let twice = scale > 1.0;
    let (text, durations) = if twice { unguided(conditions)? } else { same(conditions) };
    let mut latent = (noise * schedule.initial_scale())?;
    for i in 0..schedule.steps() {
        let shown = schedule.input(i, &latent)?;
        let shown = if twice { Tensor::cat(&[&shown, &shown], 0)? } else { shown };
        let told = for_batch(schedule.timestep(i), shown.dim(0)?, &shown)?;
        let answer = transformer.forward(&shown, &told, &text, &durations)?;
        let answer = if twice { guided(&answer, scale)? } else { answer };
        latent = schedule.step(i, &answer, &latent, &steps.fresh_noise(i)?)?;
        steps.after(i, &latent)?;
    }
    Ok(latent)
}

/// What a run needs from its caller at each step.
pub trait Steps {
    /// Unit noise of the latent's shape.
    fn fresh_noise(&mut self, step: usize) -> Result<Tensor>;

    /// Sees the latent after each step; an error ends the run.
    fn after(&mut self, step: usize, latent: &Tensor) -> Result<()>;
}

fn same(conditions: &Conditions) -> (Tensor, Tensor) {
    (conditions.text.clone(), conditions.durations.clone())
}

/// Zeros instead of the text and its times, then the text; the durations of both are the same.
fn unguided(conditions: &Conditions) -> Result<(Tensor, Tensor)> {
    let Conditions { text, durations } = conditions;
    Ok((Tensor::cat(&[&text.zeros_like()?, text], 0)?, Tensor::cat(&[durations, durations], 0)?))
}

/// The sound of a latent from sample `from` to sample `to`: (batch, channels, to - from).
///
/// # Errors
/// When the latent is shorter than that.
pub fn sound(autoencoder: &Autoencoder, latent: &Tensor, [from, to]: [usize; 2]) -> Result<Tensor> {
    autoencoder.decode(latent)?.narrow(2, from, to.saturating_sub(from))
}
