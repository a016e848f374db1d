//! Stable Audio Open: T5, the projection, the transformer, the autoencoder.
//!
//! Reference: `StableAudioPipeline` of diffusers (Apache-2.0).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::models::oobleck::{self, Autoencoder};
use crate::models::stable_audio::{self, Conditions, Projection, Transformer};
use crate::models::t5;
use crate::pipelines::{
    LoadError, Progress, RunError, Watch, for_batch, guided, read_json, read_settings, tell, unless_stopped,
};
use crate::samplers::cosine_dpm::{self, CosineDpm};
use crate::samplers::noise::Noise;
use crate::text::Padded;
use crate::weights::{Checkpoint, Placement, Scoped, WeightSource, WeightsError, build};

/// Tokens of a prompt, unless the tokenizer says otherwise.
const LENGTH: usize = 128;

/// Where a model's parts lie.
#[derive(Debug, Clone)]
pub struct Files {
    /// A folder in the diffusers layout: configurations, tokenizer, schedule, and all weights not named below.
    pub folder: PathBuf,
    /// A single file of stable-audio-tools with the transformer, the projection and the autoencoder.
    pub checkpoint: Option<PathBuf>,
    /// A single file of T5, with the names of transformers.
    pub text_encoder: Option<PathBuf>,
}

impl Files {
    /// All parts in one folder.
    pub fn folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), checkpoint: None, text_encoder: None }
    }
}

/// A sound that is wanted.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// What it sounds like.
    pub prompt: &'a str,
    /// How long it is, in seconds; at most 47.5 with the real model, which always computes that much.
    pub seconds: f64,
    /// Steps: 50 to 100, 2 to hear whether anything comes out.
    pub steps: usize,
    /// How strictly to follow the prompt: 7.
    pub scale: f64,
    /// Where all noise comes from.
    pub noise: Noise,
}

/// Texts to sounds: a whole model, of which one stage is in memory at a time.
pub struct Generator {
    files: Files,
    t5: t5::Config,
    projection: stable_audio::ProjectionConfig,
    transformer: stable_audio::Config,
    vae: oobleck::Config,
    schedule: cosine_dpm::Config,
    tokenizer: Padded,
    placement: Placement,
}

impl Generator {
    /// Reads configurations and the tokenizer, and checks that all weights fit.
    ///
    /// # Errors
    /// At the first part that is not right; of its weights, all that is wrong is named.
    pub fn open(files: Files, placement: Placement) -> std::result::Result<Self, LoadError> {
        let at = |part: &str| files.folder.join(part);
        let generator = Self {
            t5: read_settings(&at("text_encoder/config.json"))?,
            projection: read_settings(&at("projection_model/config.json"))?,
            transformer: read_settings(&at("transformer/config.json"))?,
            vae: read_settings(&at("vae/config.json"))?,
            schedule: read_json(&at("scheduler/scheduler_config.json"))?,
            tokenizer: Padded::t5(at("tokenizer"), LENGTH)?.as_long_as_told(at("tokenizer"))?,
            files,
            placement,
        };
        generator.text_encoder()?;
        generator.projector()?;
        generator.denoiser()?;
        generator.autoencoder()?;
        Ok(generator)
    }

    /// Samples a second of the sounds.
    pub fn sampling_rate(&self) -> usize {
        self.vae.sampling_rate
    }

    /// Makes a sound: (1, channels, samples).
    ///
    /// The stages of `watch` are `text`, `denoise` (steps) and `decode`.
    pub fn sound(&self, request: &Request<'_>, watch: Watch<'_>) -> std::result::Result<Tensor, RunError> {
        self.run(request, watch).map_err(unless_stopped(&self.placement.stop))
    }

    fn run(&self, request: &Request<'_>, watch: Watch<'_>) -> std::result::Result<Tensor, RunError> {
        self.samples(request.seconds)?;
        tell(watch, Progress { stage: "text", done: 0, of: 1 })?;
        let conditions = self.encoded(&[request.prompt], request.seconds)?;
        self.played(&conditions[0], request, watch)
    }

    /// Makes a sound of a prompt that [`Self::encode`] encoded, whatever the request's own is: (1, channels, samples).
    ///
    /// The stages of `watch` are `denoise` (steps) and `decode`.
    pub fn play(
        &self,
        conditions: &Conditions,
        request: &Request<'_>,
        watch: Watch<'_>,
    ) -> std::result::Result<Tensor, RunError> {
        self.played(conditions, request, watch).map_err(unless_stopped(&self.placement.stop))
    }

    fn played(
        &self,
        conditions: &Conditions,
        request: &Request<'_>,
        watch: Watch<'_>,
    ) -> std::result::Result<Tensor, RunError> {
        let samples = self.samples(request.seconds)?;
        let schedule = CosineDpm::new(&self.schedule, request.steps)?;
        tell(watch, Progress { stage: "denoise", done: 0, of: request.steps })?;
        let transformer = self.denoiser()?;
        let shape = self.latent_shape();
        let (noise, of, like) = (request.noise.clone(), request.steps, &self.placement);
        let mut steps = Told { noise, shape, of, watch, like, stopped: false };
        let first = steps.draw()?;
        let latent = denoise(&transformer, schedule, (conditions, request.scale), &first, &mut steps);
        let latent = if steps.stopped { return Err(RunError::Stopped) } else { latent? };
        self.placement.settle()?;
        drop(transformer);
        tell(watch, Progress { stage: "decode", done: 0, of: 1 })?;
        let autoencoder = self.autoencoder()?;
        let sound = sound(&autoencoder, &latent, [0, samples])?;
        self.placement.settle()?;
        Ok(sound)
    }

    /// The shape of a latent: (1, channels, length).
    pub fn latent_shape(&self) -> [usize; 3] {
        [1, self.transformer.in_channels, self.transformer.sample_size]
    }

    /// Samples of one step of a latent.
    pub fn hop(&self) -> usize {
        self.vae.hop()
    }

    /// Channels of a sound.
    pub fn channels(&self) -> usize {
        self.vae.audio_channels
    }

    /// What the schedule is made of.
    pub fn schedule(&self) -> &cosine_dpm::Config {
        &self.schedule
    }

    fn samples(&self, seconds: f64) -> std::result::Result<usize, RunError> {
        let samples = (seconds * self.vae.sampling_rate as f64) as usize;
        let longest = self.transformer.sample_size * self.vae.hop();
        if samples == 0 || samples > longest {
            return Err(RunError::Size { what: format!("{samples} samples: 1 to {longest} are made") });
        }
        Ok(samples)
    }

    /// Encodes prompts for sounds of some seconds, all in one pass through the encoder: one result for each.
    ///
    /// # Errors
    /// When weights cannot be read, or the run is stopped.
    pub fn encode(&self, prompts: &[&str], seconds: f64) -> std::result::Result<Vec<Conditions>, RunError> {
        self.encoded(prompts, seconds).map_err(unless_stopped(&self.placement.stop))
    }

    fn encoded(&self, prompts: &[&str], seconds: f64) -> std::result::Result<Vec<Conditions>, RunError> {
        let (ids, mask) = self.tokenizer.tensors(prompts, &self.placement.device)?;
        let times = |seconds: f64| Tensor::new(vec![seconds as f32; prompts.len()], &self.placement.device);
        let prompt = Prompt { ids, mask, start: times(0.0)?, end: times(seconds)? };
        let (text_encoder, projector) = (self.text_encoder()?, self.projector()?);
        let all = encode(&text_encoder, &projector, &prompt)?;
        self.placement.settle()?;
        let one = |i| Ok(Conditions { text: all.text.narrow(0, i, 1)?, durations: all.durations.narrow(0, i, 1)? });
        (0..prompts.len()).map(one).collect()
    }

    fn text_encoder(&self) -> std::result::Result<t5::Encoder, WeightsError> {
        let folder = self.files.folder.join("text_encoder");
        let source = opened(self.files.text_encoder.as_ref().unwrap_or(&folder))?;
        build("text_encoder", source, self.placement.clone(), |weights| t5::Encoder::new(&self.t5, &weights))
    }

    fn projector(&self) -> std::result::Result<Projection, WeightsError> {
        let source: Arc<dyn WeightSource> = match self.within("conditioner.conditioners.")? {
            Some(within) => Arc::new(stable_audio::projection_from_single_file(within)),
            None => opened(&self.files.folder.join("projection_model"))?,
        };
        let new = |weights| Projection::new(&self.projection, &weights);
        build("projection_model", source, self.placement.clone(), new)
    }

    /// The transformer, whose weights are read when it runs.
    ///
    /// # Errors
    /// When the files are not those any more that fitted.
    pub fn denoiser(&self) -> std::result::Result<Transformer, WeightsError> {
        let source: Arc<dyn WeightSource> = match self.within("model.model.")? {
            Some(within) => Arc::new(stable_audio::from_single_file(within)),
            None => opened(&self.files.folder.join("transformer"))?,
        };
        build("transformer", source, self.placement.clone(), |weights| Transformer::new(&self.transformer, &weights))
    }

    /// The autoencoder, whose weights are read when it runs.
    ///
    /// # Errors
    /// When the files are not those any more that fitted.
    pub fn autoencoder(&self) -> std::result::Result<Autoencoder, WeightsError> {
        let source = match self.within("pretransform.model.")? {
            Some(within) => oobleck::from_single_file(within, self.vae.downsampling_ratios.len()),
            None => oobleck::from_folder(opened(&self.files.folder.join("vae"))?),
        };
        build("vae", Arc::new(source), self.placement.clone(), |weights| Autoencoder::new(&self.vae, &weights))
    }

    /// The part of the single file under a prefix, where there is a single file.
    fn within(&self, prefix: &str) -> std::result::Result<Option<Arc<dyn WeightSource>>, WeightsError> {
        let Some(checkpoint) = &self.files.checkpoint else { return Ok(None) };
        Ok(Some(Arc::new(Scoped::new(opened(checkpoint)?, prefix))))
    }
}

fn opened(path: &Path) -> std::result::Result<Arc<dyn WeightSource>, WeightsError> {
    Ok(Arc::new(Checkpoint::open(path)?))
}

/// Noise from a stream, and steps told to a watch.
struct Told<'a, 'b> {
    noise: Noise,
    shape: [usize; 3],
    of: usize,
    watch: Watch<'a>,
    like: &'b Placement,
    stopped: bool,
}

impl Told<'_, '_> {
    fn draw(&mut self) -> Result<Tensor> {
        self.noise.tensor(self.shape.as_slice(), &self.like.device)?.to_dtype(self.like.dtype)
    }
}

impl Steps for &mut Told<'_, '_> {
    fn fresh_noise(&mut self, _: usize) -> Result<Tensor> {
        self.draw()
    }

    fn after(&mut self, step: usize, _: &Tensor) -> Result<()> {
        self.stopped = (self.watch)(Progress { stage: "denoise", done: step + 1, of: self.of }).is_break();
        if self.stopped { candle_core::bail!("The run was stopped") } else { Ok(()) }
    }
}

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

/// The sound of a latent from sample `from` to sample `to`: (batch, channels, to - from). The rest is not computed.
///
/// # Errors
/// When the latent is shorter than that.
pub fn sound(autoencoder: &Autoencoder, latent: &Tensor, part: [usize; 2]) -> Result<Tensor> {
    autoencoder.decode_part(latent, part)
}
