//! Sentence embedding: texts to directions that are near where meanings are.
//!
//! Reference: sentence-transformers (Apache-2.0), modules `Transformer`, `Pooling`, `Normalize`.

use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use serde::Deserialize;

use crate::models::bert::{Config, Encoder, mean};
use crate::pipelines::{LoadError, Progress, RunError, Watch, read_json, read_settings, tell, unless_stopped};
use crate::text::Tokenizer;
use crate::weights::{Checkpoint, Placement, build};

/// A folder of sentence-transformers around a BERT.
pub struct Embedder {
    encoder: Encoder,
    tokenizer: Tokenizer,
    longest: usize,
    pooling: Pooling,
    normalised: bool,
    placement: Placement,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct Limits {
    max_seq_length: Option<usize>,
}

/// `1_Pooling/config.json`: a flag for each kind of pooling, or, of newer versions, its name.
#[derive(Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<String>,
    #[serde(flatten)]
    flags: serde_json::Map<String, serde_json::Value>,
}

impl Embedder {
    /// Opens a folder with `config.json`, weights, `tokenizer.json`, and, where there are others than BERT itself,
    /// `modules.json` and what it names.
    ///
    /// # Errors
    /// When something is missing, wrong, or of a kind that is not supported; of the weights, all that is wrong is named.
    pub fn open(folder: impl AsRef<Path>, placement: Placement) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let config: Config = read_settings(&folder.join("config.json"))?;
        let (pooling, normalised) = modules(folder)?;
        let limits = folder.join("sentence_bert_config.json");
        let limits: Limits = if limits.is_file() { read_json(&limits)? } else { Limits::default() };
        let longest =
            limits.max_seq_length.unwrap_or(config.max_position_embeddings).min(config.max_position_embeddings);
        let tokenizer = Tokenizer::open(folder.join("tokenizer.json"))?;
        let weights = Arc::new(Checkpoint::open(folder)?);
        let name = folder.display().to_string();
        let encoder = build(&name, weights, placement.clone(), |weights| Encoder::new(&config, &weights))?;
        Ok(Self { encoder, tokenizer, longest, pooling, normalised, placement })
    }

    /// The embedding of each text. The stage of `watch` is `embed`.
    pub fn embed(&self, texts: &[&str], watch: Watch<'_>) -> Result<Vec<Vec<f32>>, RunError> {
        let of = texts.len();
        let one = |(done, text): (usize, &&str)| {
            tell(watch, Progress { stage: "embed", done, of })?;
            self.one(text)
        };
        texts.iter().enumerate().map(one).collect::<Result<_, _>>().map_err(unless_stopped(&self.placement.stop))
    }

    fn one(&self, text: &str) -> Result<Vec<f32>, RunError> {
        let ids = self.tokenizer.cut(text, self.longest)?;
        let ids = Tensor::new(ids, &self.placement.device)?.unsqueeze(0)?;
        let states = self.encoder.forward(&ids, None)?;
        let whole = match self.pooling {
            Pooling::Mean => mean(&states, &ids.ones_like()?)?,
            Pooling::First => states.narrow(1, 0, 1)?.squeeze(1)?,
        };
        let whole = whole.to_dtype(DType::F32)?;
        let whole = if self.normalised {
            whole.broadcast_div(&whole.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.clamp(1e-12, f64::MAX)?)?
        } else {
            whole
        };
        Ok(whole.squeeze(0)?.to_vec1()?)
    }
}

/// How the states of a text become one, and whether its length is then 1.
fn modules(folder: &Path) -> Result<(Pooling, bool), LoadError> {
    let list = folder.join("modules.json");
    if !list.is_file() {
        return Ok((Pooling::Mean, true));
    }
    let (mut pooling, mut normalised) = (Pooling::Mean, false);
    for module in read_json::<Vec<Module>>(&list)? {
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" if module.path.is_empty() => {}
            "Pooling" => pooling = pooling_of(&folder.join(module.path).join("config.json"))?,
            "Normalize" => normalised = true,
            _ => return Err(LoadError::Unsupported { path: list, what: format!("module {}", module.kind) }),
        }
    }
    Ok((pooling, normalised))
}

fn pooling_of(path: &Path) -> Result<Pooling, LoadError> {
    let config: PoolingConfig = read_json(path)?;
    let set = |(name, value): (String, serde_json::Value)| {
        let kind = name.strip_prefix("pooling_mode_")?.to_owned();
        (value == serde_json::Value::Bool(true)).then_some(kind)
    };
    let mut kinds: Vec<String> = config.flags.into_iter().filter_map(set).collect();
    kinds.extend(config.pooling_mode);
    match kinds.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::First),
        _ => Err(LoadError::Unsupported { path: path.to_owned(), what: format!("pooling {}", kinds.join("+")) }),
    }
}
