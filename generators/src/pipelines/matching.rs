//! CLIP as a whole: how well texts fit pictures, from the files of transformers or of open_clip.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{D, Tensor};
use serde::Deserialize;

use crate::models::clip::{Clip, Config};
use crate::models::open_clip;
use crate::pipelines::{LoadError, RunError, read_json, read_settings, unless_stopped};
use crate::weights::{Checkpoint, Placement, Stop, WeightSource, build};

/// The files of a model.
#[derive(Debug, Clone)]
pub enum Files {
    /// As transformers writes them.
    Transformers {
        /// `config.json`.
        config: PathBuf,
        /// `model.safetensors`, or another checkpoint.
        weights: PathBuf,
        /// `preprocessor_config.json`; without it, the colours of the first CLIP models.
        preprocessor: Option<PathBuf>,
    },
    /// As open_clip writes them.
    OpenClip {
        /// `open_clip_config.json`.
        config: PathBuf,
        /// `open_clip_pytorch_model.bin` or `open_clip_model.safetensors`.
        weights: PathBuf,
    },
}

/// Mean and standard deviation of each colour, by which pictures are shifted and scaled.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Colours {
    #[serde(alias = "image_mean")]
    mean: [f32; 3],
    #[serde(alias = "image_std")]
    std: [f32; 3],
}

impl Default for Colours {
    fn default() -> Self {
        Self { mean: [0.481_454_66, 0.457_827_5, 0.408_210_73], std: [0.268_629_54, 0.261_302_6, 0.275_777_1] }
    }
}

#[derive(Deserialize)]
struct Preprocessed {
    preprocess_cfg: Option<Colours>,
}

/// Both towers of a CLIP, with what they want of pictures.
pub struct Matcher {
    clip: Clip,
    config: Config,
    colours: Colours,
    placement: Placement,
}

impl Matcher {
    /// Opens a model.
    ///
    /// # Errors
    /// When a file is missing or not of the known form; of the weights, all that is wrong is named.
    pub fn open(files: &Files, placement: Placement) -> Result<Self, LoadError> {
        let (config, colours, path) = match files {
            Files::Transformers { config, weights, preprocessor } => {
                let colours = preprocessor.as_deref().map(read_json).transpose()?.unwrap_or_default();
                (read_settings(config)?, colours, weights)
            }
            Files::OpenClip { config, weights } => {
                let stored: open_clip::Config = read_settings(config)?;
                let colours: Preprocessed = read_json(config)?;
                (stored.model_cfg.to_clip(), colours.preprocess_cfg.unwrap_or_default(), weights)
            }
        };
        let source: Arc<dyn WeightSource> = Arc::new(Checkpoint::open(path)?);
        let source = match files {
            Files::Transformers { .. } => source,
            Files::OpenClip { .. } => Arc::new(open_clip::renamed(source)),
        };
        let clip = build(&name_of(path), source, placement.clone(), |weights| Clip::new(&config, &weights))?;
        Ok(Self { clip, config, colours, placement })
    }

    /// Height and width of the pictures that it reads, in pixels.
    pub fn side(&self) -> usize {
        self.config.vision_config.image_size
    }

    /// Tokens of the longest text that it reads.
    pub fn longest(&self) -> usize {
        self.config.text_config.max_position_embeddings
    }

    /// What stops it.
    pub fn stop(&self) -> &Stop {
        &self.placement.stop
    }

    /// Pictures (batch, 3, side, side) from 0 to 1, to directions (batch, width) of length 1.
    pub fn pictures(&self, pictures: &Tensor) -> Result<Tensor, RunError> {
        let found = self.shifted(pictures).and_then(|pictures| unit(&self.clip.image_features(&pictures)?));
        found.map_err(RunError::from).map_err(unless_stopped(self.stop()))
    }

    /// Texts (batch, length) of token numbers, ends included, to directions (batch, width) of length 1.
    pub fn texts(&self, ids: &Tensor) -> Result<Tensor, RunError> {
        let found = self.clip.text_features(ids).and_then(|features| unit(&features));
        found.map_err(RunError::from).map_err(unless_stopped(self.stop()))
    }

    fn shifted(&self, pictures: &Tensor) -> candle_core::Result<Tensor> {
        let of = |numbers: [f32; 3]| {
            Tensor::new(&numbers, pictures.device())?.reshape((1, 3, 1, 1))?.to_dtype(pictures.dtype())
        };
        let shifted = pictures.broadcast_sub(&of(self.colours.mean)?)?.broadcast_div(&of(self.colours.std)?)?;
        shifted.to_dtype(self.placement.dtype)
    }
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

fn unit(rows: &Tensor) -> candle_core::Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}
