//! Whole generators: from token numbers and noise to a picture or a sound.
//!
//! Nothing here draws noise or reads text: noise and token numbers are given, so that the caller decides where
//! randomness comes from and which tokenizer is used.

use candle_core::{Result, Tensor};

pub mod stable_audio;
pub mod stable_diffusion_3;

/// Moves the answer to the wanted prompt away from that to the unwanted one.
///
/// `answers` (2 · batch, …) begins with those to the unwanted prompt; returns (batch, …).
fn guided(answers: &Tensor, scale: f64) -> Result<Tensor> {
    let parts = answers.chunk(2, 0)?;
    &parts[0] + ((&parts[1] - &parts[0])? * scale)?
}

/// The same number for every element of a batch.
fn for_batch(number: f32, batch: usize, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(vec![number; batch], batch, like.device())
}
