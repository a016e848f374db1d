//! Weights of 8 bits: are their scales there, and is the file what its name says?
//!
//! ComfyUI's files have one of three forms: plain (no scales), scaled (`X.scale_weight`, and the mark `scaled_fp8`), and
//! mixed (`X.weight_scale`, and the format of each layer in `X.comfy_quant` or in the header's `_quantization_metadata`).

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom};

use serde::Deserialize;

use crate::smoke::Check;
use crate::smoke::compare::ByName;
use crate::verify::Entry;
use crate::weights::{Kind, Tensor};

/// The only format of layers that larder and the classes' programs read here.
const KNOWN: &str = "float8_e4m3fn";
const MARK: &str = "scaled_fp8";
const METADATA: &str = "_quantization_metadata";
/// A layer's format is a short text.
const MAX_TEXT: u64 = 4096;
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];

/// What a file says of the formats of its layers.
#[derive(Debug, Default)]
pub(super) struct Formats {
    /// By layer: `blocks.0.attn.to_q`.
    layers: BTreeMap<String, String>,
    /// What cannot be read.
    strange: Vec<String>,
}

#[derive(Deserialize)]
struct Declared {
    layers: BTreeMap<String, Layer>,
}

#[derive(Deserialize)]
struct Layer {
    format: String,
}

impl Formats {
    /// Adds what the header of `entry` declares, and what its layers say of themselves: a few bytes each.
    pub(super) fn add(&mut self, entry: &Entry<'_>) {
        let Some(Kind::Safetensors(header)) = entry.sound() else { return };
        if let Some(text) = header.metadata.get(METADATA) {
            match serde_json::from_str::<Declared>(text) {
                Ok(declared) => {
                    self.layers.extend(declared.layers.into_iter().map(|(name, layer)| (name, layer.format)))
                }
                Err(error) => self.strange.push(format!("{METADATA} cannot be read: {error}")),
            }
        }
        for tensor in header.tensors.iter() {
            let Some(layer) = tensor.name.strip_suffix(".comfy_quant") else { continue };
            let place = header.data_start + tensor.start..header.data_start + tensor.end;
            match read(entry, place).and_then(|text| serde_json::from_slice::<Layer>(&text).ok()) {
                Some(said) => drop(self.layers.insert(layer.to_owned(), said.format)),
                None => self.strange.push(format!("not a format: {}", tensor.name)),
            }
        }
    }
}

fn read(entry: &Entry<'_>, place: std::ops::Range<u64>) -> Option<Vec<u8>> {
    let mut file = fs_err::File::open(&entry.found?.path).ok()?;
    let mut text = vec![0; usize::try_from((place.end - place.start).min(MAX_TEXT)).ok()?];
    file.seek(SeekFrom::Start(place.start)).ok()?;
    file.read_exact(&mut text).ok()?;
    Some(text)
}

/// The check of the scales; none for a file without 8-bit weights that does not claim to have any.
pub(super) fn scales(path: &str, here: &ByName<'_>, formats: &Formats) -> Option<Check> {
    let has_scale = |name: &str| {
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        SCALES.iter().any(|scale| here.contains_key(format!("{layer}.{scale}").as_str()))
    };
    let declared = |name: &str| name.strip_suffix(".weight").is_some_and(|layer| formats.layers.contains_key(layer));
    let is_matrix =
        |(name, tensor): &(&&str, &&Tensor)| is_8_bit(tensor) && name.ends_with(".weight") && tensor.shape.len() > 1;
    let matrices: Vec<&str> = here.iter().filter(is_matrix).map(|(name, _)| *name).collect();
    if matrices.is_empty() && formats.layers.is_empty() && formats.strange.is_empty() {
        return None;
    }
    let lower = path.to_ascii_lowercase();
    let is_marked = here.keys().any(|name| name.rsplit('.').next() == Some(MARK));
    let is_scaled = lower.contains("scaled") || lower.contains("fp8mixed") || is_marked;
    let scaled = matrices.iter().filter(|name| has_scale(name)).count();
    let mut wrong = formats.strange.clone();
    wrong.extend(
        matrices
            .iter()
            .filter(|name| !has_scale(name) && (is_scaled || scaled > 0 || declared(name)))
            .map(|name| format!("without its scale: {name}")),
    );
    wrong.extend(formats.layers.iter().filter_map(|(layer, format)| misnamed(layer, format, here)));
    wrong.extend(here.iter().filter_map(|(name, tensor)| bad_scale(name, tensor)));
    let measured = format!("{} matrices in 8 bits, {scaled} with a scale", matrices.len());
    let wanted =
        ["one number of F32 for each, or none for any; layers of float8_e4m3fn", "the three forms of 8-bit files"];
    Some(Check::of(format!("scales of {path}"), measured, wanted, wrong))
}

fn is_8_bit(tensor: &Tensor) -> bool {
    tensor.dtype.starts_with("F8_")
}

/// What is wrong with a layer whose format is stated.
fn misnamed(layer: &str, format: &str, here: &ByName<'_>) -> Option<String> {
    if format != KNOWN {
        return Some(format!("of a format that is not read, {format}: {layer}"));
    }
    let weight = here.get(format!("{layer}.weight").as_str())?;
    (!is_8_bit(weight)).then(|| format!("stated as {format}, and is {}: {layer}.weight", weight.dtype))
}

fn bad_scale(name: &str, tensor: &Tensor) -> Option<String> {
    name.rsplit('.').next().filter(|kind| SCALES.contains(kind))?;
    if tensor.dtype != "F32" {
        return Some(format!("a scale that is no F32: {name} is {}", tensor.dtype));
    }
    let one = tensor.shape.iter().product::<u64>() == 1;
    (!one).then(|| format!("a scale of more than one number: {name} is {:?}", tensor.shape))
}

/// The check of the element type that a file's name promises; none where it promises none.
pub(super) fn named(path: &str, here: &ByName<'_>) -> Option<Check> {
    let lower = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let promises = [("fp8", "F8_"), ("bf16", "BF16"), ("fp16", "F16"), ("fp32", "F32")];
    let (word, dtype) = promises.into_iter().find(|(word, _)| lower.contains(word))?;
    let numbers = |tensor: &&Tensor| tensor.shape.iter().product::<u64>();
    let all: u64 = here.values().map(numbers).sum();
    let such: u64 = here.values().filter(|tensor| tensor.dtype.starts_with(dtype)).map(numbers).sum();
    let share = such as f64 / all.max(1) as f64 * 100.0;
    let wrong =
        if such * 2 >= all { Vec::new() } else { vec![format!("its name says {word}, its numbers are others")] };
    let measured = format!("{share:.1} % of {all} numbers are {dtype}{}", if dtype == "F8_" { "*" } else { "" });
    Some(Check::of(format!("element type of {path}"), measured, ["at least half of them", "the file's name"], wrong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smoke::Outcome;

    fn tensor(name: &str, dtype: &str, shape: &[u64]) -> Tensor {
        Tensor { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), place: 0..0 }
    }

    fn by_name(tensors: &[Tensor]) -> ByName<'_> {
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect()
    }

    fn wrong(path: &str, tensors: &[Tensor], layers: &[(&str, &str)]) -> Vec<String> {
        let layers = layers.iter().map(|(layer, format)| ((*layer).to_owned(), (*format).to_owned())).collect();
        scales(path, &by_name(tensors), &Formats { layers, strange: Vec::new() }).unwrap().details
    }

    #[test]
    fn an_8_bit_matrix_without_its_scale_is_named() {
        let all = [
            tensor("a.weight", "F8_E4M3", &[2, 2]),
            tensor("a.scale_weight", "F32", &[]),
            tensor("b.weight", "F8_E4M3", &[2, 2]),
            tensor("norm.weight", "F8_E4M3", &[2]),
        ];
        assert_eq!(wrong("x.safetensors", &all, &[]), ["without its scale: b.weight"]);
        let plain = [tensor("a.weight", "F8_E4M3", &[2, 2])];
        assert!(wrong("x_fp8_e4m3fn.safetensors", &plain, &[]).is_empty());
        assert_eq!(wrong("x_fp8_scaled.safetensors", &plain, &[]), ["without its scale: a.weight"]);
        let marked = [tensor("a.weight", "F8_E4M3", &[2, 2]), tensor("m.scaled_fp8", "F8_E4M3", &[0])];
        assert_eq!(wrong("x.safetensors", &marked, &[]), ["without its scale: a.weight"]);
        assert_eq!(wrong("x.safetensors", &plain, &[("a", KNOWN)]), ["without its scale: a.weight"]);
        let none = [tensor("a.weight", "BF16", &[2, 2])];
        assert!(scales("x_fp8_scaled", &by_name(&none), &Formats::default()).is_none());
    }

    #[test]
    fn scales_are_single_numbers_and_formats_are_known() {
        let of = |dtype: &str, shape: &[u64]| {
            [tensor("a.weight", "F8_E4M3", &[2, 2]), tensor("a.weight_scale", dtype, shape)]
        };
        assert!(wrong("x", &of("F32", &[1]), &[("a", KNOWN)]).is_empty());
        assert_eq!(wrong("x", &of("BF16", &[]), &[]), ["a scale that is no F32: a.weight_scale is BF16"]);
        assert_eq!(wrong("x", &of("F32", &[2, 1]), &[]), ["a scale of more than one number: a.weight_scale is [2, 1]"]);
        assert_eq!(wrong("x", &of("F32", &[]), &[("a", "nvfp4")]), ["of a format that is not read, nvfp4: a"]);
        let whole = [tensor("a.weight", "BF16", &[2, 2])];
        assert_eq!(wrong("x", &whole, &[("a", KNOWN)]), ["stated as float8_e4m3fn, and is BF16: a.weight"]);
    }

    #[test]
    fn a_name_promises_an_element_type() {
        let all = [tensor("a.weight", "F8_E4M3", &[9, 9]), tensor("norm.weight", "BF16", &[9])];
        let outcome = |path: &str| named(path, &by_name(&all)).map(|check| check.outcome);
        assert_eq!(outcome("clip/a_fp8mixed.safetensors"), Some(Outcome::Passed));
        assert_eq!(outcome("bf16/a_bf16.safetensors"), Some(Outcome::Failed));
        assert_eq!(outcome("bf16/a.safetensors"), None);
    }
}
