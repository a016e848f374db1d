//! Tokenizers: can they be read, and do they fit the model beside them?

use std::collections::BTreeSet;

use serde_json::Value;

use crate::smoke::Check;
use crate::smoke::folder::read_json;
use crate::verify::Headers;

/// The longest vocabulary that is read.
const MAX_FILE: u64 = 256 << 20;

/// What was read of one tokenizer.
struct Read {
    /// How many tokens.
    tokens: usize,
    /// The highest token number.
    highest: u64,
    wrong: Vec<String>,
}

/// One check for each tokenizer of an artifact.
pub(super) fn checks(headers: &Headers<'_>) -> Vec<Check> {
    let here = headers.iter().filter(|entry| entry.found.is_some());
    here.filter_map(|entry| {
        let path = entry.file.path.as_str();
        let read = read(headers, path, entry.file.path.file_name())?;
        let mut wrong = read.wrong;
        wrong.extend(misfit(headers, path, read.highest));
        let measured = format!("{} tokens, the highest is {}", read.tokens, read.highest);
        let wanted =
            ["readable, each number once, within the model's vocabulary", "the format, and config.json beside it"];
        Some(Check::of(format!("tokenizer {path}"), measured, wanted, wrong))
    })
    .collect()
}

fn read(headers: &Headers<'_>, path: &str, name: &str) -> Option<Read> {
    match name {
        "tokenizer.json" => Some(of_tokenizers(&read_json(headers, path)?)),
        "vocab.json" => {
            let merges = headers.at(&path.replace("vocab.json", "merges.txt"))?;
            Some(of_vocabulary(&read_json(headers, path)?, &bytes(merges.found?)?))
        }
        "spiece.model" | "tokenizer.model" => Some(of_pieces(&bytes(headers.at(path)?.found?)?)),
        _ => None,
    }
}

fn bytes(found: &crate::artifact::Found) -> Option<Vec<u8>> {
    if found.size > MAX_FILE { None } else { fs_err::read(&found.path).ok() }
}

/// `tokenizer.json` of the library `tokenizers`.
fn of_tokenizers(json: &Value) -> Read {
    let vocabulary = &json["model"]["vocab"];
    let added = json["added_tokens"].as_array().into_iter().flatten().filter_map(|token| token["id"].as_u64());
    let mut wrong = Vec::new();
    let numbers: Vec<u64> = match vocabulary {
        Value::Object(tokens) => tokens.values().filter_map(Value::as_u64).collect(),
        // Unigram models list their pieces in order, each with its score.
        Value::Array(pieces) => (0..pieces.len() as u64).collect(),
        _ => {
            wrong.push("it has no vocabulary".to_owned());
            Vec::new()
        }
    };
    wrong.extend(doubles(&numbers));
    if let (Value::Object(tokens), Some(merges)) = (vocabulary, json["model"]["merges"].as_array()) {
        let unknown = merges
            .iter()
            .filter(|merge| !pair(merge).is_some_and(|pair| pair.iter().all(|part| tokens.contains_key(*part))))
            .count();
        if unknown > 0 {
            wrong.push(format!("{unknown} of its {} merges join what is not in the vocabulary", merges.len()));
        }
    }
    let all: BTreeSet<u64> = numbers.into_iter().chain(added).collect();
    Read { tokens: all.len(), highest: all.last().copied().unwrap_or(0), wrong }
}

/// Merges are written as one text with a space, or as pairs.
fn pair(merge: &Value) -> Option<[&str; 2]> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| [left, right]),
        Value::Array(parts) => Some([parts.first()?.as_str()?, parts.get(1)?.as_str()?]),
        _ => None,
    }
}

fn doubles(numbers: &[u64]) -> Option<String> {
    let distinct: BTreeSet<&u64> = numbers.iter().collect();
    (distinct.len() < numbers.len()).then(|| format!("{} token numbers occur twice", numbers.len() - distinct.len()))
}

/// `vocab.json` with `merges.txt`.
fn of_vocabulary(json: &Value, merges: &[u8]) -> Read {
    let mut wrong = Vec::new();
    let tokens = json.as_object();
    if tokens.is_none() {
        wrong.push("vocab.json is no object".to_owned());
    }
    let numbers: Vec<u64> = tokens.into_iter().flat_map(|tokens| tokens.values().filter_map(Value::as_u64)).collect();
    wrong.extend(doubles(&numbers));
    let text = String::from_utf8_lossy(merges);
    let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
    let broken = lines.filter(|line| line.split(' ').count() != 2).count();
    if broken > 0 {
        wrong.push(format!("{broken} lines of merges.txt are no pairs"));
    }
    Read { tokens: numbers.len(), highest: numbers.iter().max().copied().unwrap_or(0), wrong }
}

/// A model of SentencePiece: a protocol buffer whose field 1 is repeated for every piece.
fn of_pieces(bytes: &[u8]) -> Read {
    let mut rest = bytes;
    let mut pieces = 0;
    let mut wrong = Vec::new();
    while !rest.is_empty() {
        match field(&mut rest) {
            Some((1, Some(piece))) if piece.first() == Some(&0x0a) => pieces += 1,
            Some((1, _)) | None => {
                wrong.push(format!("it is cut short or damaged at byte {}", bytes.len() - rest.len()));
                break;
            }
            Some(_) => {}
        }
    }
    if pieces == 0 && wrong.is_empty() {
        wrong.push("it has no pieces".to_owned());
    }
    Read { tokens: pieces, highest: (pieces as u64).saturating_sub(1), wrong }
}

/// The next field: its number, and its bytes where it has a length.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let key = number(rest)?;
    let length = match key & 7 {
        0 => return number(rest).map(|_| (key >> 3, None)),
        1 => 8,
        2 => usize::try_from(number(rest)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some((key >> 3, (key & 7 == 2).then_some(taken)))
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Whether a token has a number that the model beside the tokenizer does not know.
fn misfit(headers: &Headers<'_>, path: &str, highest: u64) -> Option<String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    // In a pipeline, tokenizer_2/ belongs to text_encoder_2/.
    let model = folder.replace("tokenizer", "text_encoder");
    let config = if folder.is_empty() { "config.json".to_owned() } else { format!("{model}/config.json") };
    let config = read_json(headers, &config)?;
    let size = config.get("vocab_size").or_else(|| config.get("text_config")?.get("vocab_size"))?.as_u64()?;
    (highest >= size)
        .then(|| format!("token {highest} is beyond the model's vocabulary of {size}: it is another model's"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pieces_are_counted_and_cuts_are_found() {
        // Two pieces `a` and `b` with a score each, then the trainer's settings.
        let bytes =
            [&b"\x0a\x08\x0a\x01a\x15\0\0\0\0"[..], b"\x0a\x08\x0a\x01b\x15\0\0\0\0", b"\x12\x02\x18\x01"].concat();
        let read = of_pieces(&bytes);
        assert_eq!((read.tokens, read.wrong.len()), (2, 0));
        assert_eq!(of_pieces(&bytes[..bytes.len() - 1]).wrong.len(), 1);
        assert_eq!(of_pieces(b"<html>Sign in</html>").wrong.len(), 1);
        assert_eq!(of_pieces(b"").wrong, ["it has no pieces"]);
    }

    #[test]
    fn a_vocabulary_must_have_each_number_once_and_all_parts_of_its_merges() {
        let good =
            json!({"added_tokens": [{"id": 3}], "model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}});
        let read = of_tokenizers(&good);
        assert_eq!((read.tokens, read.highest, read.wrong), (4, 3, Vec::new()));
        let bad = json!({"model": {"vocab": {"a": 0, "b": 0}, "merges": [["a", "c"]]}});
        assert_eq!(of_tokenizers(&bad).wrong.len(), 2);
        assert_eq!(of_tokenizers(&json!({})).wrong, ["it has no vocabulary"]);
        assert_eq!(
            of_vocabulary(&json!({"a": 0}), b"#version: 0.2\na b\nabc\n").wrong,
            ["1 lines of merges.txt are no pairs"]
        );
    }
}
