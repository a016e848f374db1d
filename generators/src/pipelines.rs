//! Whole generators: from files and a text to a picture, a sound, an answer, a direction.
//!
//! Each has one type that opens files and runs ([`stable_diffusion_3::Generator`], [`stable_audio::Generator`],
//! [`language::LanguageModel`], [`matching::Matcher`],
//! [`sentence_embedding::Embedder`]), and, below it, the steps by themselves. Runs tell a
//! [`Watch`] how far they are, which may stop them; [`Stop`] stops them from another thread.
//!
//! Noise is given by the caller, who thereby decides where randomness comes from; [`crate::samplers::noise`] has one
//! that is the same on every machine.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Result, Tensor};
use serde::de::DeserializeOwned;

use crate::models::llama::Unsupported;
use crate::models::settings::Settings;
use crate::samplers::ScheduleError;
use crate::text::TextError;
use crate::weights::{Stop, WeightsError};

pub mod language;
pub mod matching;
pub mod sentence_embedding;
pub mod stable_audio;
pub mod stable_diffusion_3;

/// Failure to open a generator.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file could not be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A configuration is not of the known form.
    #[error("{} is not a configuration of the known form", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A configuration asks for something that is not supported.
    #[error("{} asks for what is not supported: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for.
        what: String,
    },
    /// The metadata of a GGUF file are not those of a supported model.
    #[error("The model is not supported")]
    Model(#[from] Unsupported),
    /// The tokenizer could not be read.
    #[error("The tokenizer cannot be read")]
    Text(#[from] TextError),
    /// The weights could not be read, or do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Why a run gave no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The caller stopped it.
    #[error("The run was stopped")]
    Stopped,
    /// The prompt and what should follow it are longer than the model reads.
    #[error("{tokens} tokens are wanted, the model reads 1 to {most}")]
    Length {
        /// Tokens wanted.
        tokens: usize,
        /// Tokens at most.
        most: usize,
    },
    /// A size is not one that the model makes.
    #[error("The model cannot make {what}")]
    Size {
        /// What was wanted.
        what: String,
    },
    /// Something became infinite or no number.
    #[error("The {what} are not finite numbers")]
    NotFinite {
        /// What.
        what: &'static str,
    },
    /// The weights, which fitted when the generator was opened, do not any more, or cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The prompt could not be tokenized.
    #[error("The prompt cannot be tokenized")]
    Text(#[from] TextError),
    /// The schedule cannot be made.
    #[error("The schedule cannot be made")]
    Schedule(#[from] ScheduleError),
    /// A computation failed.
    #[error("A computation failed")]
    Compute(#[from] candle_core::Error),
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it does.
    pub stage: &'static str,
    /// Steps of the stage that are done.
    pub done: usize,
    /// Steps of the stage.
    pub of: usize,
}

/// Hears how far a run is; [`ControlFlow::Break`] stops it before its next step.
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

fn tell(watch: Watch<'_>, progress: Progress) -> std::result::Result<(), RunError> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(RunError::Stopped),
    }
}

/// What a failed run is called: where the caller stopped it, that is why.
fn unless_stopped(stop: &Stop) -> impl Fn(RunError) -> RunError {
    move |error| if stop.is_stopped() { RunError::Stopped } else { error }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> std::result::Result<T, LoadError> {
    let bytes = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Config { path: path.to_owned(), source })
}

/// Reads a configuration that a model can be made of.
fn read_settings<T: DeserializeOwned + Settings>(path: &Path) -> std::result::Result<T, LoadError> {
    let settings: T = read_json(path)?;
    let unsupported = |error: Unsupported| LoadError::Unsupported { path: path.to_owned(), what: error.to_string() };
    settings.check().map_err(unsupported)?;
    Ok(settings)
}

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
