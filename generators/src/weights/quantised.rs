//! The three conventions of fp8 checkpoints: plain, scaled by `scale_weight`, and mixed with `weight_scale`.
//!
//! 1. Plain: tensors are F8_E4M3 and mean what they say.
//! 2. Scaled: `X.weight` has a companion `X.scale_weight`; a tensor `scaled_fp8` marks the file.
//! 3. Mixed: `X.weight` has a companion `X.weight_scale`; either a companion `X.comfy_quant` or the header's
//!    `_quantization_metadata` names the format of the layer; the other layers are not quantised.
//!
//! The weight is the decoded number times the scale. `scale_input` and `input_scale` are for multiplying in fp8
//! and have no part in decoding.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde::Deserialize;

use crate::weights::checkpoint::Raw;
use crate::weights::decode::Encoding;
use crate::weights::fault::Fault;

const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];
const COMPANIONS: [&str; 5] = ["scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant"];
const MARKER: &str = "scaled_fp8";
const KNOWN_FORMAT: &str = "float8_e4m3fn";

/// What is known about a checkpoint's numbers after looking at all its headers.
pub(crate) struct Scheme {
    /// How each tensor is stored, or why it cannot be read; without those that only describe others.
    pub(crate) encodings: BTreeMap<String, Result<Encoding, Fault>>,
    /// What is wrong with the headers as a whole.
    pub(crate) faults: Vec<Fault>,
}

#[derive(Deserialize)]
struct Declared {
    layers: BTreeMap<String, LayerFormat>,
}

#[derive(Deserialize)]
struct LayerFormat {
    format: String,
}

struct Examination<'a, F> {
    tensors: &'a BTreeMap<String, Raw>,
    bytes: F,
    /// Formats that the headers declare, by layer.
    formats: BTreeMap<String, String>,
    /// Whether an fp8 matrix without a scale is a fault.
    scaled: bool,
}

/// Works out how every tensor is to be decoded.
///
/// `declared` holds the `_quantization_metadata` of the files that have it.
pub(crate) fn examine<'a, F>(tensors: &'a BTreeMap<String, Raw>, declared: &[&str], bytes: F) -> Scheme
where
    F: Fn(&'a Raw) -> &'a [u8],
{
    let mut faults = Vec::new();
    let formats = declared_formats(declared, &mut faults);
    let scaled = tensors.keys().any(|name| last(name) == MARKER || is_companion(tensors, name, &SCALES));
    let examination = Examination { tensors, bytes, formats, scaled };
    let logical = tensors.iter().filter(|(name, _)| !examination.describes(name));
    let encodings = logical.map(|(name, raw)| (name.clone(), examination.encoding(name, raw))).collect();
    Scheme { encodings, faults }
}

fn declared_formats(declared: &[&str], faults: &mut Vec<Fault>) -> BTreeMap<String, String> {
    let mut formats = BTreeMap::new();
    for text in declared {
        match serde_json::from_str::<Declared>(text) {
            Ok(declared) => formats.extend(declared.layers.into_iter().map(|(layer, known)| (layer, known.format))),
            Err(_) => faults.push(Fault::UnknownMetadata { text: text.chars().take(80).collect() }),
        }
    }
    formats
}

impl<'a, F: Fn(&'a Raw) -> &'a [u8]> Examination<'a, F> {
    fn describes(&self, name: &str) -> bool {
        last(name) == MARKER || is_companion(self.tensors, name, &COMPANIONS)
    }

    fn encoding(&self, name: &str, raw: &Raw) -> Result<Encoding, Fault> {
        if let Some(format) = self.format(name).filter(|format| format != KNOWN_FORMAT) {
            return Err(Fault::UnknownQuantisation { name: name.to_owned(), format });
        }
        match raw.dtype {
            Dtype::F32 => Ok(Encoding::F32),
            Dtype::F16 => Ok(Encoding::F16),
            Dtype::BF16 => Ok(Encoding::Bf16),
            Dtype::F8_E4M3 => self.scale(name, raw).map(|scale| Encoding::F8E4m3 { scale }),
            other => Err(Fault::UnknownFormat { name: name.to_owned(), format: format!("{other:?}") }),
        }
    }

    /// The format that the file states for the layer of a weight.
    fn format(&self, name: &str) -> Option<String> {
        let layer = name.strip_suffix(".weight")?;
        let stated = self.tensors.get(&format!("{layer}.comfy_quant")).map(|raw| {
            let text = (self.bytes)(raw);
            let parsed = serde_json::from_slice::<LayerFormat>(text).map(|layer| layer.format);
            parsed.unwrap_or_else(|_| String::from_utf8_lossy(text).chars().take(80).collect())
        });
        stated.or_else(|| self.formats.get(layer).cloned())
    }

    fn scale(&self, name: &str, raw: &Raw) -> Result<f32, Fault> {
        let Some(layer) = name.strip_suffix(".weight") else { return Ok(1.0) };
        let found =
            SCALES.iter().map(|scale| format!("{layer}.{scale}")).find(|scale| self.tensors.contains_key(scale));
        match found {
            Some(scale) => self.read_scale(&scale).ok_or(Fault::BadScale { name: name.to_owned(), scale }),
            None if self.formats.contains_key(layer) || (self.scaled && raw.shape.len() > 1) => {
                Err(Fault::MissingScale { name: name.to_owned(), scale: self.expected_scale(layer) })
            }
            None => Ok(1.0),
        }
    }

    fn read_scale(&self, scale: &str) -> Option<f32> {
        let raw = self.tensors.get(scale).filter(|raw| raw.dtype == Dtype::F32)?;
        let number = f32::from_le_bytes((self.bytes)(raw).try_into().ok()?);
        number.is_finite().then_some(number)
    }

    fn expected_scale(&self, layer: &str) -> String {
        let mixed = self.tensors.keys().any(|name| last(name) == SCALES[1]) || self.formats.contains_key(layer);
        format!("{layer}.{}", if mixed { SCALES[1] } else { SCALES[0] })
    }
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn is_companion(tensors: &BTreeMap<String, Raw>, name: &str, kinds: &[&str]) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(layer, kind)| kinds.contains(&kind) && tensors.contains_key(&format!("{layer}.weight")))
}
