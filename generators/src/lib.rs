//! Image, sound and embedding models in candle.
//!
//! Parts, each usable without the others:
//! - [`weights`]: checkpoints as they lie on disk (one file, shards, diffusers folders, single files with ComfyUI
//!   names; F32, F16, BF16 and fp8 with its scales), read tensor by tensor;
//! - [`models`]: architectures, one a file;
//! - [`layers`]: what they are made of;
//! - [`samplers`]: the loops that turn a denoiser into a generator.
//!
//! Nothing here downloads, chooses files, or prints.

pub mod layers;
pub mod models;
pub mod samplers;
pub mod weights;
