//! Language models: from a message to an answer, straight from a GGUF file.

use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use crate::models::llama::{Cache, Config, Decoder, from_gguf};
use crate::pipelines::{LoadError, Progress, RunError, Watch, tell, unless_stopped};
use crate::text::Tokenizer;
use crate::text::chat::{Format, Reply};
use crate::text::gguf;
use crate::weights::{Gguf, Placement, build};

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
