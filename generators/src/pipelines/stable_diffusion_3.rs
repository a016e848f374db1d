//! Stable Diffusion 3 and 3.5: three text encoders, the transformer, the autoencoder.
//!
//! Reference: `StableDiffusion3Pipeline` of diffusers (Apache-2.0).

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use crate::models::autoencoder_kl::{self, Autoencoder};
use crate::models::stable_diffusion_3::{self, Transformer};
use crate::models::{clip, t5};
use crate::pipelines::{
    LoadError, Progress, RunError, Watch, for_batch, guided, read_json, read_settings, tell, unless_stopped,
};
use crate::samplers::flow_match_euler::{self, FlowMatchEuler};
use crate::text::Padded;
use crate::weights::{Checkpoint, Placement, Scoped, WeightSource, Weights, WeightsError, build};

/// Tokens of a prompt for T5, unless the caller says otherwise.
const T5_LENGTH: usize = 256;

/// Where a model's parts lie.
#[derive(Debug, Clone)]
pub struct Files {
    /// A folder in the diffusers layout: configurations, tokenizers, schedule, and all weights not named below.
    pub folder: PathBuf,
    /// A single file with the transformer and the autoencoder, as Stability AI and ComfyUI name their tensors.
    pub checkpoint: Option<PathBuf>,
    /// Single files of CLIP ViT-L, CLIP ViT-bigG and T5, with the names of transformers.
    pub text_encoders: [Option<PathBuf>; 3],
}

impl Files {
    /// All parts in one folder.
    pub fn folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), checkpoint: None, text_encoders: [None, None, None] }
    }
}

/// A picture that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What it shows.
    pub prompt: &'a str,
    /// What it does not show; empty for nothing in particular.
    pub unwanted: &'a str,
    /// Steps: 28 for Large, 4 for Large Turbo, 1 to see whether anything comes out.
    pub steps: usize,
    /// How strictly to follow the prompt: 4.5 for Large, 0 for Turbo.
    pub scale: f64,
    /// Unit noise of the shape that [`Generator::noise_shape`] tells for the picture's size.
    pub noise: &'a Tensor,
}

/// Texts to pictures: a whole model, of which one stage is in memory at a time.
pub struct Generator {
    files: Files,
    clip_l: clip::TextConfig,
    clip_g: clip::TextConfig,
    t5: t5::Config,
    transformer: stable_diffusion_3::Config,
    vae: autoencoder_kl::Config,
    schedule: flow_match_euler::Config,
    tokenizers: [Padded; 3],
    placement: Placement,
}

impl Generator {
    /// Reads configurations and tokenizers, and checks that all weights fit.
    ///
    /// # Errors
    /// At the first part that is not right; of its weights, all that is wrong is named.
    pub fn open(files: Files, placement: Placement) -> std::result::Result<Self, LoadError> {
        let at = |part: &str| files.folder.join(part);
        let generator = Self {
            clip_l: read_settings(&at("text_encoder/config.json"))?,
            clip_g: read_settings(&at("text_encoder_2/config.json"))?,
            t5: read_settings(&at("text_encoder_3/config.json"))?,
            transformer: read_settings(&at("transformer/config.json"))?,
            vae: read_settings(&at("vae/config.json"))?,
            schedule: read_json(&at("scheduler/scheduler_config.json"))?,
            tokenizers: [
                Padded::clip(at("tokenizer"))?,
                Padded::clip(at("tokenizer_2"))?,
                Padded::t5(at("tokenizer_3"), T5_LENGTH)?,
            ],
            files,
            placement,
        };
        generator.text_encoders()?;
        generator.denoiser()?;
        generator.autoencoder()?;
        Ok(generator)
    }

    /// The shape of the noise for a picture of `width` by `height` pixels.
    ///
    /// # Errors
    /// When the sizes are not multiples of what the model makes at once (16), or too large for it.
    pub fn noise_shape(&self, width: usize, height: usize) -> std::result::Result<[usize; 4], RunError> {
        let pixel = 1 << (self.vae.block_out_channels.len() - 1);
        let (patch, most) = (pixel * self.transformer.patch_size, self.transformer.pos_embed_max_size);
        let fits = |side: usize| side > 0 && side.is_multiple_of(patch) && side / patch <= most;
        if !fits(width) || !fits(height) {
            let what = format!("{width} by {height} pixels: sides are multiples of {patch} up to {}", patch * most);
            return Err(RunError::Size { what });
        }
        Ok([1, self.transformer.in_channels, height / pixel, width / pixel])
    }

    /// Draws a picture: (1, 3, height, width), from 0 to 1.
    ///
    /// The stages of `watch` are `text` (prompts), `denoise` (steps) and `decode`.
    pub fn picture(&self, request: &Request<'_>, watch: Watch<'_>) -> std::result::Result<Tensor, RunError> {
        self.run(request, watch).map_err(unless_stopped(&self.placement.stop))
    }

    fn run(&self, request: &Request<'_>, watch: Watch<'_>) -> std::result::Result<Tensor, RunError> {
        let [wanted, unwanted] = self.conditions([request.prompt, request.unwanted], watch)?;
        let guidance = Guidance { wanted: &wanted, unwanted: Some(&unwanted), scale: request.scale };
        self.drawn(&Drawing { guidance, steps: request.steps, noise: request.noise }, watch)
    }

    /// Draws a picture of prompts that [`Self::encode`] encoded: (1, 3, height, width), from 0 to 1.
    ///
    /// The stages of `watch` are `denoise` (steps) and `decode`.
    pub fn draw(&self, drawing: &Drawing<'_>, watch: Watch<'_>) -> std::result::Result<Tensor, RunError> {
        self.drawn(drawing, watch).map_err(unless_stopped(&self.placement.stop))
    }

    fn drawn(&self, drawing: &Drawing<'_>, watch: Watch<'_>) -> std::result::Result<Tensor, RunError> {
        let schedule = FlowMatchEuler::new(&self.schedule, drawing.steps, None)?;
        let stage = |done| Progress { stage: "denoise", done, of: drawing.steps };
        tell(watch, stage(0))?;
        let transformer = self.denoiser()?;
        let noise = drawing.noise.to_dtype(self.placement.dtype)?;
        let stopped = Cell::new(false);
        let after = |step: usize, _: &Tensor| {
            stopped.set(watch(stage(step + 1)).is_break());
            if stopped.get() { candle_core::bail!("The run was stopped") } else { Ok(()) }
        };
        let latent = denoise(&transformer, &schedule, &drawing.guidance, &noise, after);
        let latent = if stopped.get() { return Err(RunError::Stopped) } else { latent? };
        self.placement.settle()?;
        drop(transformer);
        tell(watch, Progress { stage: "decode", done: 0, of: 1 })?;
        let autoencoder = self.autoencoder()?;
        let picture = picture(&autoencoder, &latent)?;
        self.placement.settle()?;
        Ok(picture)
    }

    fn conditions(&self, prompts: [&str; 2], watch: Watch<'_>) -> std::result::Result<[Conditions; 2], RunError> {
        let encoders = self.text_encoders()?;
        let mut one = |done: usize| {
            tell(watch, Progress { stage: "text", done, of: 2 })?;
            Ok::<_, RunError>(encoders.encode(&self.tokens(&prompts[done..=done])?)?)
        };
        let both = [one(0)?, one(1)?];
        self.placement.settle()?;
        Ok(both)
    }

    /// Encodes prompts, all in one pass through the encoders: one result for each.
    ///
    /// # Errors
    /// When weights cannot be read, or the run is stopped.
    pub fn encode(&self, prompts: &[&str]) -> std::result::Result<Vec<Conditions>, RunError> {
        let encoded = || {
            let encoders = self.text_encoders()?;
            let all = encoders.encode(&self.tokens(prompts)?)?;
            self.placement.settle()?;
            let one =
                |i: usize| Ok(Conditions { text: all.text.narrow(0, i, 1)?, pooled: all.pooled.narrow(0, i, 1)? });
            (0..prompts.len()).map(one).collect::<std::result::Result<_, RunError>>()
        };
        encoded().map_err(unless_stopped(&self.placement.stop))
    }

    fn tokens(&self, prompts: &[&str]) -> std::result::Result<Prompt, RunError> {
        let ids = |i: usize| self.tokenizers[i].tensors(prompts, &self.placement.device).map(|(ids, _)| ids);
        Ok(Prompt { clip_l: ids(0)?, clip_g: ids(1)?, t5: ids(2)? })
    }

    fn text_encoders(&self) -> std::result::Result<TextEncoders, WeightsError> {
        let source = |i: usize, folder: &str| match &self.files.text_encoders[i] {
            Some(file) => opened(file),
            None => opened(&self.files.folder.join(folder)),
        };
        let clip = |i, folder, config: &clip::TextConfig| {
            self.build(folder, source(i, folder)?, |weights| clip::TextEncoder::new(config, &weights))
        };
        let t5 = source(2, "text_encoder_3")?;
        Ok(TextEncoders {
            clip_l: clip(0, "text_encoder", &self.clip_l)?,
            clip_g: clip(1, "text_encoder_2", &self.clip_g)?,
            t5: Some(self.build("text_encoder_3", t5, |weights| t5::Encoder::new(&self.t5, &weights))?),
            width: self.transformer.joint_attention_dim,
        })
    }

    /// The transformer, whose weights are read when it runs.
    ///
    /// # Errors
    /// When the files are not those any more that fitted.
    pub fn denoiser(&self) -> std::result::Result<Transformer, WeightsError> {
        let layers = self.transformer.num_layers;
        let source = match self.within("model.diffusion_model.")? {
            Some(within) => Arc::new(stable_diffusion_3::from_single_file(within, layers)),
            None => opened(&self.files.folder.join("transformer"))?,
        };
        self.build("transformer", source, |weights| Transformer::new(&self.transformer, &weights))
    }

    /// The autoencoder, whose weights are read when it runs.
    ///
    /// # Errors
    /// When the files are not those any more that fitted.
    pub fn autoencoder(&self) -> std::result::Result<Autoencoder, WeightsError> {
        let levels = self.vae.block_out_channels.len();
        let source = match self.within("first_stage_model.")? {
            Some(within) => autoencoder_kl::from_single_file(within, levels),
            None => autoencoder_kl::from_old_names(opened(&self.files.folder.join("vae"))?),
        };
        self.build("vae", Arc::new(source), |weights| Autoencoder::new(&self.vae, &weights))
    }

    /// The part of the single file under a prefix, where there is a single file.
    fn within(&self, prefix: &str) -> std::result::Result<Option<Arc<dyn WeightSource>>, WeightsError> {
        let Some(checkpoint) = &self.files.checkpoint else { return Ok(None) };
        Ok(Some(Arc::new(Scoped::new(opened(checkpoint)?, prefix))))
    }

    fn build<M>(
        &self,
        part: &str,
        source: Arc<dyn WeightSource>,
        new: impl FnOnce(Weights) -> M,
    ) -> std::result::Result<M, WeightsError> {
        build(part, source, self.placement.clone(), new)
    }
}

fn opened(path: &Path) -> std::result::Result<Arc<dyn WeightSource>, WeightsError> {
    Ok(Arc::new(Checkpoint::open(path)?))
}

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

/// A picture that is wanted, of prompts that are encoded.
pub struct Drawing<'a> {
    /// What to draw, and what not to.
    pub guidance: Guidance<'a>,
    /// Steps, as in [`Request`].
    pub steps: usize,
    /// Unit noise of the shape that [`Generator::noise_shape`] tells for the picture's size.
    pub noise: &'a Tensor,
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
