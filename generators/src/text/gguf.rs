//! The tokenizer within a GGUF file: pairs of bytes merged by rank, as Llama 3 and Qwen have it.
//!
//! Reference: llama.cpp (MIT) for the keys; `LlamaTokenizer` and `Qwen2Tokenizer` of transformers (Apache-2.0) for what
//! comes out.

use serde_json::json;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use crate::text::{TextError, Tokenizer, built, special};
use crate::weights::{Gguf, Value};

/// How texts are cut before pairs are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Digits in groups of up to three.
    Llama3,
    /// Each digit by itself.
    Qwen2,
}

/// The token of each kind of `tokenizer.ggml.token_type`.
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;

/// Builds the tokenizer of a file.
///
/// # Errors
/// When the file has none, or one that is not of byte pairs cut as Llama 3 or Qwen 2 cut them.
pub fn tokenizer(gguf: &Gguf) -> Result<Tokenizer, TextError> {
    let keys = Keys { gguf };
    let model = keys.text("model").unwrap_or_default();
    if model != "gpt2" {
        return Err(TextError::Unsupported { what: "tokenizer.ggml.model", found: model.to_owned() });
    }
    let tokens = keys.texts("tokens")?;
    let cut = keys.cut(&tokens)?;
    let mut inner = tokenizers::Tokenizer::new(pairs(&keys, &tokens, cut)?);
    if cut == Cut::Qwen2 {
        let normalizer = built::<tokenizers::NormalizerWrapper>(json!({"type": "NFC"}))?;
        inner.with_normalizer(Some(normalizer)).map_err(TextError::Use)?;
    }
    inner.with_pre_tokenizer(Some(built::<tokenizers::PreTokenizerWrapper>(json!({
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": cut.pattern()}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ],
    }))?));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    inner.with_decoder(Some(built::<tokenizers::DecoderWrapper>(byte_level)?));
    let foreign = inner.clone();
    for (token, control) in keys.added(&tokens) {
        let added = if control { special(token) } else { AddedToken::from(token, false).normalized(false) };
        inner.add_tokens([added]).map_err(TextError::Use)?;
    }
    if let Some((start, text)) = keys.start(&tokens, cut) {
        inner.with_post_processor(Some(built::<tokenizers::PostProcessorWrapper>(json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {text: {"id": text, "ids": [start], "tokens": [text]}},
        }))?));
    }
    Tokenizer::with_foreign(inner, foreign)
}

/// The tokens at which a text ends: those that the file names, and those that usually do.
pub fn ends(gguf: &Gguf, tokenizer: &Tokenizer) -> Vec<u32> {
    let keys = Keys { gguf };
    let named = ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(|key| keys.number(key));
    let listed = keys.get("eos_token_ids").and_then(Value::array).unwrap_or_default();
    let listed = listed.iter().filter_map(Value::count).map(|number| number as u32);
    let mut ends: Vec<u32> = named.chain(listed).chain(usual_ends(tokenizer)).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// The tokens at which texts of Llama 3 and Qwen usually end, of those that there are.
pub(crate) fn usual_ends(tokenizer: &Tokenizer) -> impl Iterator<Item = u32> {
    let usual = ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"];
    usual.into_iter().filter_map(|token| tokenizer.id(token))
}

fn pairs(keys: &Keys<'_>, tokens: &[&str], cut: Cut) -> Result<BPE, TextError> {
    let vocabulary: Vocab = (0..).zip(tokens).map(|(number, token)| ((*token).to_owned(), number)).collect();
    let malformed = || TextError::Malformed { what: "tokenizer.ggml.merges".to_owned() };
    let pair = |text: &str| text.split_once(' ').map(|(first, second)| (first.to_owned(), second.to_owned()));
    let merges = keys.texts("merges")?.into_iter().map(|text| pair(text).ok_or_else(malformed));
    let merges = merges.collect::<Result<Merges, _>>()?;
    // Llama 3 has words that no merges lead to: they are looked up first.
    let builder = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(cut == Cut::Llama3);
    builder.build().map_err(TextError::Use)
}

impl Cut {
    fn pattern(self) -> String {
        let digits = if self == Self::Llama3 { r"\p{N}{1,3}" } else { r"\p{N}" };
        let contractions = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
        let others = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        format!(r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{others}")
    }
}

struct Keys<'a> {
    gguf: &'a Gguf,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.gguf.metadata().get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::text)
    }

    fn number(&self, key: &str) -> Option<u32> {
        self.get(key).and_then(Value::count).and_then(|number| u32::try_from(number).ok())
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>, TextError> {
        let texts = self.get(key).and_then(Value::array).map(|values| values.iter().map(Value::text));
        let texts = texts.and_then(Iterator::collect::<Option<_>>);
        texts.ok_or_else(|| TextError::Malformed { what: format!("tokenizer.ggml.{key}") })
    }

    /// How texts are cut; files from before that was written down are known by their tokens.
    fn cut(&self, tokens: &[&str]) -> Result<Cut, TextError> {
        match self.text("pre") {
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Cut::Llama3),
            Some("qwen2") => Ok(Cut::Qwen2),
            None | Some("default") if tokens.contains(&"<|begin_of_text|>") => Ok(Cut::Llama3),
            None | Some("default") if tokens.contains(&"<|im_start|>") => Ok(Cut::Qwen2),
            other => {
                let found = other.unwrap_or("not there").to_owned();
                Err(TextError::Unsupported { what: "tokenizer.ggml.pre", found })
            }
        }
    }

    /// The tokens that texts are searched for before they are cut, and whether they are no text themselves.
    fn added(&self, tokens: &[&'a str]) -> Vec<(&'a str, bool)> {
        let kinds = self.get("token_type").and_then(Value::array).unwrap_or_default();
        let kinds = kinds.iter().map(|kind| kind.count().unwrap_or(0));
        let marked = tokens.iter().zip(kinds).filter(|(_, kind)| matches!(*kind, CONTROL | USER_DEFINED));
        let mut added: Vec<(&str, bool)> = marked.map(|(token, kind)| (*token, kind == CONTROL)).collect();
        if added.is_empty() {
            // A file without kinds: what is written like a control token is one.
            let like = |token: &&&str| token.starts_with("<|") && token.ends_with("|>");
            added.extend(tokens.iter().filter(like).map(|token| (*token, true)));
        }
        added
    }

    /// The token that stands before every text, if one does.
    fn start(&self, tokens: &[&'a str], cut: Cut) -> Option<(u32, &'a str)> {
        let wanted = self.get("add_bos_token").and_then(Value::yes).unwrap_or(cut == Cut::Llama3);
        let number = self.number("bos_token_id").filter(|_| wanted)?;
        tokens.get(number as usize).map(|text| (number, *text))
    }
}
