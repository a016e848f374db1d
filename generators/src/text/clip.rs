//! The tokenizer of CLIP: pairs of bytes merged by rank, texts in lower case.
//!
//! Reference: `CLIPTokenizer` of transformers (Apache-2.0).

use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use crate::text::{TextError, Tokenizer, built, read, special};

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Where one token may end: at contractions, between letters and others, around each digit.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Reads the tokenizer of a folder: `tokenizer.json`, else `vocab.json` and `merges.txt`.
pub fn open(folder: impl AsRef<Path>) -> Result<Tokenizer, TextError> {
    let folder = folder.as_ref();
    let [whole, vocab, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| folder.join(name));
    if whole.is_file() {
        return Tokenizer::open(whole);
    }
    if !vocab.is_file() || !merges.is_file() {
        let looked_for = vec!["tokenizer.json", "vocab.json with merges.txt"];
        return Err(TextError::NoTokenizer { folder: folder.to_owned(), looked_for });
    }
    let numbers = serde_json::from_slice::<Vocab>(&read(&vocab)?)
        .map_err(|source| TextError::Parse { path: vocab, source: source.into() })?;
    let text = String::from_utf8(read(&merges)?)
        .map_err(|source| TextError::Parse { path: merges.clone(), source: source.into() })?;
    from_parts(numbers, ranks(&text)?)
}

/// The pairs of a `merges.txt`, most frequent first.
fn ranks(text: &str) -> Result<Merges, TextError> {
    let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty());
    let pairs = lines.map(|line| line.split_once(' ').map(|(first, second)| (first.to_owned(), second.to_owned())));
    pairs.collect::<Option<_>>().ok_or_else(|| TextError::Malformed { what: "merges.txt".to_owned() })
}

/// Builds the tokenizer from its vocabulary and the pairs that are merged, most frequent first.
pub fn from_parts(
    vocabulary: impl IntoIterator<Item = (String, u32)>,
    merges: Vec<(String, String)>,
) -> Result<Tokenizer, TextError> {
    let vocabulary: Vocab = vocabulary.into_iter().collect();
    let lacking = |token: &str| TextError::Malformed { what: format!("token {token}") };
    let number = |token: &str| vocabulary.get(token).copied().ok_or_else(|| lacking(token));
    let (start, end) = (number(START)?, number(END)?);
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .end_of_word_suffix("</w>".to_owned())
        .unk_token(END.to_owned());
    let mut inner = tokenizers::Tokenizer::new(model.build().map_err(TextError::Use)?);
    inner
        .with_normalizer(Some(built::<tokenizers::NormalizerWrapper>(json!({
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        }))?))
        .map_err(TextError::Use)?;
    inner.with_pre_tokenizer(Some(built::<tokenizers::PreTokenizerWrapper>(json!({
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ],
    }))?));
    inner.with_post_processor(Some(built::<tokenizers::PostProcessorWrapper>(json!({
        "type": "RobertaProcessing",
        "sep": [END, end],
        "cls": [START, start],
        "trim_offsets": false,
        "add_prefix_space": false,
    }))?));
    inner.add_special_tokens([special(START), special(END)]).map_err(TextError::Use)?;
    Tokenizer::plain(inner)
}
