//! Image, sound and embedding models in candle.
//!
//! Parts, each usable without the others:
//! - [`weights`]: checkpoints as they lie on disk (one file, shards, diffusers folders, single files with ComfyUI
//!   names; F32, F16, BF16 and fp8 with its scales), read tensor by tensor;
//! - [`models`]: architectures, one a file;
//! - [`layers`]: what they are made of;
//! - [`samplers`]: schedules and steps that turn a denoiser's answers into a sample;
//! - [`pipelines`]: whole generators, from token numbers and noise to a picture or a sound.
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

pub mod layers;
pub mod models;
pub mod pipelines;
pub mod samplers;
pub mod text;
pub mod weights;
