//! Language models in GGUF: is it the architecture that is wanted, with all its blocks and a tokenizer?

use std::collections::BTreeSet;

use crate::smoke::Check;
use crate::weights::gguf::{Header, Value};

/// The architectures that a smoke test may have.
const ARCHITECTURES: &[(&str, &[&str])] = &[
    ("gemma2", &["gemma2"]),
    ("llama-guard", &["llama"]),
    ("llama3", &["llama"]),
    ("mllama", &["mllama"]),
    ("phi3", &["phi3"]),
    ("qwen3", &["qwen3"]),
    ("qwen3-text", &["qwen3"]),
    ("qwen3-vl", &["qwen3vl"]),
];

/// What every block of a decoder has.
const IN_EACH_BLOCK: [&str; 3] = ["attn_norm.weight", "attn_output.weight", "ffn_down.weight"];

/// The checks of one file.
pub(super) fn checks(path: &str, header: &Header, smoke: Option<&str>) -> Vec<Check> {
    let architecture = header.architecture().unwrap_or("none");
    let mut checks = Vec::new();
    if let Some((_, known)) = ARCHITECTURES.iter().find(|(known, _)| Some(*known) == smoke) {
        let wrong = if known.contains(&architecture) { Vec::new() } else { vec![format!("it is {architecture}")] };
        let wanted = known.join(" or ");
        let wanted = [wanted.as_str(), "the manifest's key `smoke`"];
        checks.push(Check::of(format!("architecture of {path}"), architecture, wanted, wrong));
    }
    if header.tensors.iter().any(|tensor| tensor.name.starts_with("blk.")) {
        checks.push(blocks(path, header, architecture));
    }
    if architecture != "none" && header.metadata.contains_key(&format!("{architecture}.block_count")) {
        checks.push(tokenizer(path, header));
    }
    checks
}

fn blocks(path: &str, header: &Header, architecture: &str) -> Check {
    let names: BTreeSet<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let count = header.metadata.get(&format!("{architecture}.block_count")).and_then(Value::as_u64).unwrap_or(0);
    // No model has as many; a count from a damaged header must not take hours.
    let blocks = 0..count.min(1000);
    let mut wrong: Vec<String> = blocks
        .clone()
        .flat_map(|block| IN_EACH_BLOCK.map(|part| format!("blk.{block}.{part}")))
        // Mllama's blocks of cross attention have other names.
        .filter(|name| architecture != "mllama" && !names.contains(name.as_str()))
        .map(|name| format!("missing: {name}"))
        .collect();
    wrong.extend(
        ["token_embd.weight", "output_norm.weight"]
            .into_iter()
            .filter(|name| !names.contains(name))
            .map(|name| format!("missing: {name}")),
    );
    wrong.extend(header.unknown_types().iter().map(|kind| format!("unknown quantisation: ggml type {kind}")));
    if count == 0 {
        wrong.push(format!("{architecture}.block_count is missing"));
    }
    let measured = format!("{} tensors, {count} blocks", header.tensors.len());
    Check::of(format!("tensors of {path}"), measured, ["every block complete", "the file's own block_count"], wrong)
}

fn tokenizer(path: &str, header: &Header) -> Check {
    let tokens = match header.metadata.get("tokenizer.ggml.tokens") {
        Some(Value::Array { len, .. }) => *len,
        _ => 0,
    };
    // Dimensions run fastest first: the vocabulary is the last.
    let rows = header
        .tensors
        .iter()
        .find(|tensor| tensor.name == "token_embd.weight")
        .and_then(|tensor| tensor.shape.last().copied())
        .unwrap_or(0);
    let mut wrong = Vec::new();
    if tokens == 0 {
        wrong.push("it has no tokens".to_owned());
    } else if tokens > rows && rows > 0 {
        wrong.push(format!("{tokens} tokens for {rows} rows of token_embd.weight"));
    }
    let wanted = ["at least one, and a row for each", "token_embd.weight of the same file"];
    Check::of(format!("tokenizer of {path}"), format!("{tokens} tokens"), wanted, wrong)
}
