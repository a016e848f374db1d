//! Image, sound, language and embedding models in candle.
//!
//! # Whole generators
//!
//! [`pipelines`] has one type for each generator: it opens files, says at once all that is wrong with them, and runs from
//! text to result.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use larder_generators::pipelines::language::LanguageModel;
//! use larder_generators::pipelines::sentence_embedding::Embedder;
//! use larder_generators::pipelines::{Progress, stable_audio, stable_diffusion_3};
//! use larder_generators::samplers::noise::Noise;
//! use larder_generators::text::chat::{Format, Verdict};
//! use larder_generators::weights::Placement;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Where to compute, and how long weights stay. `stop` ends a run from another thread, within the time of a layer.
//! let placement = Placement::cpu().streamed();
//! let stop = placement.stop.clone();
//! // Hears of every step, and may end the run before the next one.
//! let mut watch = |progress: Progress| match progress.done > progress.of {
//!     true => ControlFlow::Break(()),
//!     false => ControlFlow::Continue(()),
//! };
//!
//! // A text model, straight from a blob in Ollama's store, multiplied in its own quantised form.
//! let guard = LanguageModel::open("blobs/sha256-0123", Placement::cpu().packed())?;
//! let reply = guard.chat(Format::LlamaGuard3, "A beautiful sunset", 20, &mut watch)?;
//! // No answer (an unclosed block of thoughts) and no verdict (other words) are failures, never "safe".
//! let verdict = reply.answer.as_deref().and_then(Verdict::read);
//!
//! // A picture. Noise is the caller's; this one is the same on every machine.
//! let files = stable_diffusion_3::Files::folder("stable-diffusion-3.5-large-turbo");
//! let painter = stable_diffusion_3::Generator::open(files, placement.clone())?;
//! let shape = painter.noise_shape(128, 128)?;
//! let noise = Noise::new(7).tensor(shape.as_slice(), &placement.device)?;
//! let request =
//!     stable_diffusion_3::Request { prompt: "a red square", unwanted: "", steps: 2, scale: 0.0, noise: &noise };
//! let picture = painter.picture(&request, &mut watch)?; // (1, 3, 128, 128), from 0 to 1
//!
//! // A sound.
//! let files = stable_audio::Files::folder("stable-audio-open-1.0");
//! let player = stable_audio::Generator::open(files, placement)?;
//! let request =
//!     stable_audio::Request { prompt: "rain", seconds: 1.0, steps: 4, scale: 7.0, noise: Noise::new(7) };
//! let sound = player.sound(&request, &mut watch)?; // (1, 2, 44100)
//!
//! // Directions of sentences.
//! let embedder = Embedder::open("all-MiniLM-L6-v2", Placement::cpu())?;
//! let directions = embedder.embed(&["It's so sunny outside!"], &mut watch)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Parts
//!
//! Each usable without the others:
//! - [`weights`]: checkpoints as they lie on disk (one file, shards, diffusers folders, single files with ComfyUI
//!   names, GGUF; F32, F16, BF16, fp8 with its scales, ggml's blocks), read tensor by tensor;
//! - [`models`]: architectures, one a file;
//! - [`layers`], [`video`]: what they are made of;
//! - [`text`]: tokenizers and chat formats;
//! - [`samplers`]: schedules, steps and noise that turn a denoiser's answers into a sample;
//! - [`pipelines`]: whole generators, and their steps by themselves.
//!
//! Nothing here downloads, chooses files, or prints.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use larder_generators::models::autoencoder_kl::{Autoencoder, Config};
//! use larder_generators::weights::{Checkpoint, Placement, build};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config: Config = serde_json::from_str(&std::fs::read_to_string("vae/config.json")?)?;
//! let weights = Arc::new(Checkpoint::open("vae")?);
//! let vae = build("VAE", weights, Placement::cpu(), |weights| Autoencoder::new(&config, &weights))?;
//! # Ok(())
//! # }
//! ```

mod attention;
pub mod elementwise;
pub mod layers;
pub mod models;
pub mod pipelines;
mod product;
pub mod samplers;
pub mod text;
pub mod video;
pub mod weights;
