//! The tokenizer of T5: the likeliest cut of a text into pieces.
//!
//! Reference: sentencepiece (Apache-2.0) and `T5Tokenizer` of transformers (Apache-2.0). A sentencepiece model is a
//! protobuf message; of it, the pieces with their scores and the table of the normalisation are read.

use std::path::Path;

use serde_json::json;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;

use crate::text::{TextError, Tokenizer, built, read, special};

/// Sentinels that T5 has behind the pieces of its model.
const EXTRA: usize = 100;
const END: &str = "</s>";

/// Reads the tokenizer of a folder: `tokenizer.json`, else `spiece.model`.
pub fn open(folder: impl AsRef<Path>) -> Result<Tokenizer, TextError> {
    let folder = folder.as_ref();
    let [whole, model] = ["tokenizer.json", "spiece.model"].map(|name| folder.join(name));
    if whole.is_file() {
        return Tokenizer::open(whole);
    }
    if !model.is_file() {
        let looked_for = vec!["tokenizer.json", "spiece.model"];
        return Err(TextError::NoTokenizer { folder: folder.to_owned(), looked_for });
    }
    from_model(&read(&model)?)
}

/// Builds T5's tokenizer from the bytes of a sentencepiece model.
pub fn from_model(bytes: &[u8]) -> Result<Tokenizer, TextError> {
    let model = Model::read(bytes)?;
    let end = model.pieces.iter().position(|piece| piece.text == END);
    let end = end.ok_or_else(|| TextError::Malformed { what: format!("piece {END}") })?;
    let mut specials: Vec<_> =
        model.pieces.iter().filter(|piece| piece.is_special()).map(|p| special(&p.text)).collect();
    let mut scores: Vec<(String, f64)> = model.pieces.into_iter().map(|piece| (piece.text, piece.score)).collect();
    for i in (0..EXTRA).rev() {
        let sentinel = format!("<extra_id_{i}>");
        specials.push(special(&sentinel));
        scores.push((sentinel, 0.0));
    }
    let unigram = Unigram::from(scores, Some(model.unknown), false).map_err(TextError::Use)?;
    let mut inner = tokenizers::Tokenizer::new(unigram);
    if !model.normalisation.is_empty() {
        let what = || TextError::Malformed { what: "normalisation".to_owned() };
        let table = Precompiled::from(&model.normalisation).map_err(|_| what())?;
        inner.with_normalizer(Some(table)).map_err(TextError::Use)?;
    }
    inner.with_pre_tokenizer(Some(built::<tokenizers::PreTokenizerWrapper>(json!({
        "type": "Sequence",
        "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        ],
    }))?));
    inner.with_decoder(Some(built::<tokenizers::DecoderWrapper>(
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
    )?));
    inner.with_post_processor(Some(built::<tokenizers::PostProcessorWrapper>(json!({
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END: {"id": END, "ids": [end], "tokens": [END]}},
    }))?));
    inner.add_special_tokens(specials).map_err(TextError::Use)?;
    Tokenizer::plain(inner)
}

struct Piece {
    text: String,
    score: f64,
    kind: u64,
}

impl Piece {
    /// Unknown and control pieces are not part of texts.
    fn is_special(&self) -> bool {
        matches!(self.kind, 2 | 3)
    }
}

struct Model {
    pieces: Vec<Piece>,
    unknown: usize,
    normalisation: Vec<u8>,
}

impl Model {
    fn read(bytes: &[u8]) -> Result<Self, TextError> {
        let mut model = Self { pieces: Vec::new(), unknown: 0, normalisation: Vec::new() };
        // The kind of algorithm is 1 where nothing is said.
        let mut algorithm = 1;
        for (number, field) in fields(bytes)? {
            match (number, field) {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (2, Field::Bytes(training)) => {
                    algorithm = find(training, 3)?.and_then(Field::number).unwrap_or(algorithm);
                }
                (3, Field::Bytes(normaliser)) => {
                    model.normalisation = find(normaliser, 2)?.and_then(Field::bytes).unwrap_or_default().to_vec();
                }
                _ => {}
            }
        }
        if algorithm != 1 {
            return Err(TextError::Unsupported { what: "sentencepiece algorithm", found: algorithm.to_string() });
        }
        let unknown = model.pieces.iter().position(|piece| piece.kind == 2);
        model.unknown = unknown.ok_or_else(|| TextError::Malformed { what: "unknown piece".to_owned() })?;
        Ok(model)
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self, TextError> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: 1 };
        for (number, field) in fields(bytes)? {
            match (number, field) {
                (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).map_err(|_| malformed())?,
                (2, Field::Word(score)) => piece.score = f32::from_bits(score).into(),
                (3, Field::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Ok(piece)
    }
}

/// A field of a protobuf message.
#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Field<'a> {
    fn number(self) -> Option<u64> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

fn malformed() -> TextError {
    TextError::Malformed { what: "sentencepiece model".to_owned() }
}

fn find(message: &[u8], wanted: u64) -> Result<Option<Field<'_>>, TextError> {
    Ok(fields(message)?.into_iter().rev().find(|(number, _)| *number == wanted).map(|(_, field)| field))
}

/// The fields of a message with their numbers.
fn fields(mut message: &[u8]) -> Result<Vec<(u64, Field<'_>)>, TextError> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut message)?),
            1 => {
                take(&mut message, 8)?;
                Field::Other
            }
            2 => {
                let length = usize::try_from(varint(&mut message)?).map_err(|_| malformed())?;
                Field::Bytes(take(&mut message, length)?)
            }
            5 => Field::Word(u32::from_le_bytes(take(&mut message, 4)?.try_into().map_err(|_| malformed())?)),
            _ => return Err(malformed()),
        };
        found.push((tag >> 3, field));
    }
    Ok(found)
}

fn take<'a>(message: &mut &'a [u8], length: usize) -> Result<&'a [u8], TextError> {
    let (taken, rest) = message.split_at_checked(length).ok_or_else(malformed)?;
    *message = rest;
    Ok(taken)
}

fn varint(message: &mut &[u8]) -> Result<u64, TextError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(message, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(malformed())
}
