//! Architectures, one a file, each with its paper, its reference implementation and that implementation's licence.
//!
//! Every model is made by `new(config, weights)` inside [`crate::weights::build`]; its `Config` reads the model's own
//! `config.json`, and [`settings::Settings`] says whether a model can be made of it. Tensors have the names of the diffusers or transformers layout; where other programs write the same
//! model under other names, the file has a function that gives them these.

pub mod autoencoder_kl;
pub mod bert;
pub mod bigvgan;
pub mod clip;
pub mod llama;
mod llama_config;
pub mod oobleck;
pub mod open_clip;
pub mod settings;
pub mod stable_audio;
pub mod stable_diffusion_3;
pub mod t5;
