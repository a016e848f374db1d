//! Tokenizers: from text to the numbers that models read, and back.
//!
//! A [`Tokenizer`] is read from what lies beside a model: `tokenizer.json` ([`Tokenizer::open`]), the vocabulary and
//! merges of CLIP ([`clip`]), a sentencepiece model ([`sentencepiece`]), or the metadata of a GGUF file ([`gguf`]).
//! The work itself is done by the `tokenizers` crate.

pub mod chat;
pub mod clip;
pub mod gguf;
pub mod sentencepiece;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use tokenizers::{AddedToken, PostProcessor as _, TruncationDirection};

/// Failure to read a tokenizer or to use it.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file could not be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{} is not a readable tokenizer", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A folder holds none of the files that a tokenizer is stored in.
    #[error("{} holds no tokenizer: none of {} is there", folder.display(), looked_for.join(", "))]
    NoTokenizer {
        /// The folder.
        folder: PathBuf,
        /// The files that would do.
        looked_for: Vec<&'static str>,
    },
    /// A tokenizer is of a kind, or has a part, that is not supported.
    #[error("The tokenizer's {what} is {found:?}, which is not supported")]
    Unsupported {
        /// The part.
        what: &'static str,
        /// What it is.
        found: String,
    },
    /// A tokenizer lacks a part or has one in an unexpected form.
    #[error("The tokenizer's {what} is missing or not of the known form")]
    Malformed {
        /// The part.
        what: String,
    },
    /// A prompt's length has no room for what belongs at its ends.
    #[error("A length of {length} tokens has no room for those at the ends")]
    NoRoom {
        /// The length.
        length: usize,
    },
    /// A text could not be turned into numbers, or numbers not into a text.
    #[error("The text cannot be tokenized")]
    Use(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Turns texts into token numbers and back.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same that finds no special tokens in texts.
    foreign: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; what it says of truncation and padding is left out, see [`Self::cut`] and [`Padded`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TextError> {
        let path = path.as_ref();
        let inner = tokenizers::Tokenizer::from_bytes(read(path)?)
            .map_err(|source| TextError::Parse { path: path.to_owned(), source })?;
        Self::plain(inner)
    }

    /// Wraps a tokenizer without truncation and padding of its own.
    pub(crate) fn plain(inner: tokenizers::Tokenizer) -> Result<Self, TextError> {
        let mut foreign = inner.clone();
        foreign.set_encode_special_tokens(true);
        Self::with_foreign(inner, foreign)
    }

    /// The same with another for texts in which nothing special is looked for.
    pub(crate) fn with_foreign(
        mut inner: tokenizers::Tokenizer,
        mut foreign: tokenizers::Tokenizer,
    ) -> Result<Self, TextError> {
        for tokenizer in [&mut inner, &mut foreign] {
            tokenizer.with_padding(None);
            tokenizer.with_truncation(None).map_err(TextError::Use)?;
        }
        Ok(Self { inner, foreign })
    }

    /// The numbers of a text with what the model wants at its ends; special tokens written in it are read as such.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        numbers(&self.inner, text, true)
    }

    /// The numbers of a text alone; special tokens written in it are read as such.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, TextError> {
        numbers(&self.inner, text, false)
    }

    /// The numbers of a foreign text alone: what is written like a special token is text like all other.
    pub fn encode_foreign(&self, text: &str) -> Result<Vec<u32>, TextError> {
        numbers(&self.foreign, text, false)
    }

    /// The numbers of a text with what belongs at its ends, cut to `length` with the ends kept.
    ///
    /// # Errors
    /// When `length` has no room for the ends.
    pub fn cut(&self, text: &str, length: usize) -> Result<Vec<u32>, TextError> {
        let ends = self.inner.get_post_processor().map_or(0, |ends| ends.added_tokens(false));
        let room = length.checked_sub(ends).ok_or(TextError::NoRoom { length })?;
        let mut encoding = self.inner.encode_fast(text, false).map_err(TextError::Use)?;
        encoding.truncate(room, 0, TruncationDirection::Right);
        let framed = self.inner.post_process(encoding, None, true).map_err(TextError::Use)?;
        Ok(framed.get_ids().to_vec())
    }

    /// The text of some numbers, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.inner.decode(ids, true).map_err(TextError::Use)
    }

    /// The number of a token, if there is such a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How many tokens there are, special ones too.
    pub fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

fn numbers(tokenizer: &tokenizers::Tokenizer, text: &str, framed: bool) -> Result<Vec<u32>, TextError> {
    let encoding = tokenizer.encode_fast(text, framed).map_err(TextError::Use)?;
    Ok(encoding.get_ids().to_vec())
}

/// A tokenizer of prompts, which all have one length: longer ones are cut, shorter ones filled up.
#[derive(Clone)]
pub struct Padded {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The length.
    pub length: usize,
    /// What shorter prompts are filled up with.
    pub padding: u32,
}

impl Padded {
    /// The tokenizer in a CLIP text encoder's folder (`tokenizer`, `tokenizer_2`): as long as `tokenizer_config.json`
    /// says, by default 77, and filled up with what it or `special_tokens_map.json` says, by default the end.
    pub fn clip(folder: impl AsRef<Path>) -> Result<Self, TextError> {
        let (folder, mut tokenizer) = (folder.as_ref(), clip::open(&folder)?);
        let settings = Settings::read(folder)?;
        let padding = settings.padding.unwrap_or_else(|| "<|endoftext|>".to_owned());
        // The reference looks for it in texts too: SD 3's second tokenizer reads every exclamation mark as padding.
        tokenizer.inner.add_special_tokens([special(&padding)]).map_err(TextError::Use)?;
        let lacking = || TextError::Malformed { what: format!("token {padding}") };
        let padding = tokenizer.id(&padding).ok_or_else(lacking)?;
        Ok(Self { tokenizer, length: settings.length.unwrap_or(77), padding })
    }

    /// The tokenizer in a T5 encoder's folder (`tokenizer_3` of SD 3, 256 long; `tokenizer` of Stable Audio, 128 long):
    /// filled up with 0.
    pub fn t5(folder: impl AsRef<Path>, length: usize) -> Result<Self, TextError> {
        Ok(Self { tokenizer: sentencepiece::open(folder)?, length, padding: 0 })
    }

    /// The same with the length that the folder's `tokenizer_config.json` says, if it says one.
    pub fn as_long_as_told(self, folder: impl AsRef<Path>) -> Result<Self, TextError> {
        let length = Settings::read(folder.as_ref())?.length.unwrap_or(self.length);
        Ok(Self { length, ..self })
    }

    /// Texts to their numbers (batch, length), and 1 for tokens and 0 for padding in the same shape.
    pub fn tensors(&self, texts: &[&str], device: &Device) -> Result<(Tensor, Tensor), TextError> {
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for text in texts {
            let mut row = self.tokenizer.cut(text, self.length)?;
            mask.extend((0..self.length).map(|place| f32::from(place < row.len())));
            row.resize(self.length, self.padding);
            ids.extend(row);
        }
        let shape = (texts.len(), self.length);
        let tensor = |source: candle_core::Error| TextError::Use(source.into());
        let ids = Tensor::from_vec(ids, shape, device).map_err(tensor)?;
        Ok((ids, Tensor::from_vec(mask, shape, device).map_err(tensor)?))
    }
}

/// What lies beside a tokenizer.
#[derive(Default)]
struct Settings {
    length: Option<usize>,
    padding: Option<String>,
}

impl Settings {
    fn read(folder: &Path) -> Result<Self, TextError> {
        let mut settings = Self::default();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if !path.is_file() {
                continue;
            }
            let json: serde_json::Value = serde_json::from_slice(&read(&path)?)
                .map_err(|source| TextError::Parse { path, source: source.into() })?;
            let padding = json.get("pad_token").map(|token| token.get("content").unwrap_or(token));
            settings.padding = padding.and_then(|token| token.as_str()).map(str::to_owned).or(settings.padding);
            // Tokenizers without a longest text say a number beyond all sense.
            let length = json.get("model_max_length").and_then(serde_json::Value::as_u64).filter(|&n| n < 1 << 20);
            settings.length = length.map(|length| length as usize).or(settings.length);
        }
        Ok(settings)
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    std::fs::read(path).map_err(|source| TextError::Read { path: path.to_owned(), source })
}

fn special(token: &str) -> AddedToken {
    AddedToken::from(token, true)
}

/// A part of a tokenizer, written as `tokenizer.json` writes it.
fn built<T: DeserializeOwned>(json: serde_json::Value) -> Result<T, TextError> {
    serde_json::from_value(json).map_err(|source| TextError::Use(source.into()))
}
