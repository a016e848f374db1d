//! Language models: from a message to an answer, straight from a GGUF file, or from a folder of transformers.

use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use serde::Deserialize;

use crate::models::llama::{Cache, Config, Decoder, from_gguf};
use crate::pipelines::{LoadError, Progress, RunError, Watch, read_json, tell, unless_stopped};
use crate::text::Tokenizer;
use crate::text::chat::{Format, Reply};
use crate::text::gguf;
use crate::weights::{Checkpoint, Gguf, Placement, build};

/// Tokens of a prompt that are read at a time, so that a long one needs no square of its length.
const CHUNK: usize = 128;

/// A decoder with its tokenizer.
pub struct LanguageModel {
    decoder: Decoder,
    config: Config,
    tokenizer: Tokenizer,
    ends: Vec<u32>,
    placement: Placement,
}

/// What `generation_config.json` says of the end of a text: one number, or several.
#[derive(Default, Deserialize)]
struct Generation {
    eos_token_id: Option<serde_json::Value>,
}

impl Generation {
    fn ends(&self) -> Vec<u32> {
        let listed = match &self.eos_token_id {
            Some(serde_json::Value::Array(ends)) => ends.as_slice(),
            Some(end) => std::slice::from_ref(end),
            None => &[],
        };
        listed.iter().filter_map(|end| end.as_u64().and_then(|end| u32::try_from(end).ok())).collect()
    }
}

impl LanguageModel {
    /// Opens a GGUF file of Llama or Qwen3, such as a blob in Ollama's store.
    ///
    /// [`Placement::packed`] keeps the file's quantised numbers in memory and multiplies with them;
    /// [`Placement::streamed`] needs least memory and is slowest.
    ///
    /// # Errors
    /// When the file is not readable, is of another architecture, or lacks something: all that is wrong is named.
    pub fn open(path: impl AsRef<Path>, placement: Placement) -> Result<Self, LoadError> {
        let gguf = Gguf::open(&path)?;
        let config = Config::from_gguf(&gguf)?;
        let tokenizer = gguf::tokenizer(&gguf)?;
        let ends = gguf::ends(&gguf, &tokenizer);
        let name = path.as_ref().display().to_string();
        let weights = Arc::new(from_gguf(Arc::new(gguf)));
        let decoder = build(&name, weights, placement.clone(), |weights| Decoder::new(&config, &weights))?;
        Ok(Self { decoder, config, tokenizer, ends, placement })
    }

    /// Opens a folder as transformers writes it: `config.json`, weights, `tokenizer.json`, `generation_config.json`.
    ///
    /// # Errors
    /// When a file is not readable, the model is of another architecture, or lacks something: all that is wrong is named.
    pub fn open_folder(folder: impl AsRef<Path>, placement: Placement) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let config: Config = read_json(&folder.join("config.json"))?;
        let tokenizer = Tokenizer::open(folder.join("tokenizer.json"))?;
        let told = folder.join("generation_config.json");
        let told: Generation = if told.is_file() { read_json(&told)? } else { Generation::default() };
        let ends = gguf::usual_ends(&tokenizer).chain(told.ends()).collect();
        let weights = Arc::new(Checkpoint::open(folder)?);
        let name = folder.display().to_string();
        let decoder = build(&name, weights, placement.clone(), |weights| Decoder::new(&config, &weights))?;
        Ok(Self { decoder, config, tokenizer, ends, placement })
    }

    /// Puts one message to the model and takes the likeliest token at each place, at most `limit` of them.
    ///
    /// The stages of `watch` are `read` (tokens of the prompt) and `write` (tokens of the answer, of `limit`).
    pub fn chat(&self, format: Format, message: &str, limit: usize, watch: Watch<'_>) -> Result<Reply, RunError> {
        let prompt = format.prompt(message, &self.tokenizer)?;
        let (ids, finished) = self.continued(&prompt, limit, watch)?;
        Ok(Reply::new(ids, finished, &self.tokenizer)?)
    }

    /// The likeliest continuation of some tokens: at most `limit`, and whether the model ended it.
    ///
    /// # Errors
    /// Also when the prompt and `limit` together are longer than the model reads.
    pub fn continued(&self, prompt: &[u32], limit: usize, watch: Watch<'_>) -> Result<(Vec<u32>, bool), RunError> {
        self.run(prompt, limit, watch).map_err(unless_stopped(&self.placement.stop))
    }

    fn run(&self, prompt: &[u32], limit: usize, watch: Watch<'_>) -> Result<(Vec<u32>, bool), RunError> {
        if prompt.is_empty() || prompt.len() + limit > self.config.longest {
            return Err(RunError::Length { tokens: prompt.len() + limit, most: self.config.longest });
        }
        let mut cache = Cache::default();
        let (mut found, mut last) = (Vec::new(), None);
        for chunk in prompt.chunks(CHUNK) {
            tell(watch, Progress { stage: "read", done: cache.length(), of: prompt.len() })?;
            last = Some(self.states(chunk, &mut cache)?);
        }
        while let Some(states) = last.take() {
            let next = self.likeliest(&states)?;
            if self.ends.contains(&next) {
                return Ok((found, true));
            }
            if found.len() == limit {
                break;
            }
            found.push(next);
            tell(watch, Progress { stage: "write", done: found.len(), of: limit })?;
            last = Some(self.states(&[next], &mut cache)?);
        }
        Ok((found, false))
    }

    /// How little the model expected each token of a text but the first: minus the logarithm of its probability.
    ///
    /// The stage of `watch` is `read`.
    ///
    /// # Errors
    /// Also when the text is longer than the model reads, and where a score is infinite or no number.
    pub fn surprise(&self, ids: &[u32], watch: Watch<'_>) -> Result<Vec<f32>, RunError> {
        self.surprises(ids, watch).map_err(unless_stopped(&self.placement.stop))
    }

    fn surprises(&self, ids: &[u32], watch: Watch<'_>) -> Result<Vec<f32>, RunError> {
        if ids.len() < 2 || ids.len() > self.config.longest {
            return Err(RunError::Length { tokens: ids.len(), most: self.config.longest });
        }
        let (mut cache, mut found) = (Cache::default(), Vec::new());
        let (given, wanted) = (&ids[..ids.len() - 1], &ids[1..]);
        for (given, wanted) in given.chunks(CHUNK).zip(wanted.chunks(CHUNK)) {
            tell(watch, Progress { stage: "read", done: cache.length(), of: ids.len() })?;
            let given = Tensor::new(given, &self.placement.device)?.unsqueeze(0)?;
            let states = self.decoder.forward(&given, &mut cache)?.squeeze(0)?;
            let scores = self.decoder.scores(&states)?.to_dtype(DType::F32)?;
            let wanted = Tensor::new(wanted, scores.device())?.unsqueeze(1)?;
            let likely = candle_nn::ops::log_softmax(&scores, D::Minus1)?.gather(&wanted, 1)?.squeeze(1)?;
            found.extend(likely.neg()?.to_vec1::<f32>()?);
        }
        let finite = found.iter().all(|number| number.is_finite());
        if finite { Ok(found) } else { Err(RunError::NotFinite { what: "scores of the next token" }) }
    }

    /// The tokenizer, for prompts of one's own.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the model is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state after the last of some tokens: (1, width).
    fn states(&self, ids: &[u32], cache: &mut Cache) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(ids, &self.placement.device)?.unsqueeze(0)?;
        let states = self.decoder.forward(&ids, cache)?;
        states.narrow(1, ids.dim(1)? - 1, 1)?.squeeze(1)
    }

    fn likeliest(&self, state: &Tensor) -> Result<u32, RunError> {
        let scores = self.decoder.scores(state)?.to_dtype(DType::F32)?.squeeze(0)?;
        let best = scores.argmax(D::Minus1)?.to_scalar::<u32>()?;
        // Where a score is not a number, the largest means nothing.
        let finite = scores.sum_all()?.to_scalar::<f32>()?.is_finite();
        if finite { Ok(best) } else { Err(RunError::NotFinite { what: "scores of the next token" }) }
    }
}
