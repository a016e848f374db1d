//! What belongs together: one file, or all shards of an index; and the parts of a checkpoint that holds several models.

use std::collections::BTreeSet;

use crate::smoke::quantised::Formats;
use crate::verify::{Entry, Headers};
use crate::weights::shards::{is_index_name, read_index};
use crate::weights::{Kind, Tensor};

/// The tensors of one model on disk.
#[derive(Debug)]
pub(super) struct Unit {
    /// The file, or the index of the shards, within the artifact.
    pub(super) path: String,
    pub(super) tensors: Vec<Tensor>,
    /// What it says of the formats of its layers.
    pub(super) formats: Formats,
}

/// Beginnings of names by which one file holds several models.
const PARTS: [&str; 7] = [
    "model.diffusion_model.",
    "diffusion_model.",
    "first_stage_model.",
    "vae.",
    "text_encoders.",
    "generator.",
    "module.",
];

/// The models of an artifact, as far as their headers can be read.
pub(super) fn units(headers: &Headers<'_>) -> Vec<Unit> {
    let mut sharded = BTreeSet::new();
    let mut units = Vec::new();
    for entry in headers.iter().filter(|entry| is_index_name(entry.file.path.file_name())) {
        let Some(shards) = shards_of(entry, headers) else { continue };
        sharded.extend(shards.iter().map(|shard| shard.file.path.to_string()));
        let tensors = shards.iter().filter_map(|shard| shard.sound()).flat_map(Kind::tensors).collect();
        units.push(Unit { path: entry.file.path.to_string(), tensors, formats: formats(&shards) });
    }
    for entry in headers.iter().filter(|entry| !sharded.contains(entry.file.path.as_str())) {
        if !may_hold_tensors(entry) {
            continue;
        }
        if let Some(kind @ (Kind::Safetensors(_) | Kind::Torch(_))) = entry.sound() {
            let (path, tensors) = (entry.file.path.to_string(), kind.tensors());
            units.push(Unit { path, tensors, formats: formats(&[entry]) });
        }
    }
    units
}

fn formats(entries: &[&Entry<'_>]) -> Formats {
    let mut formats = Formats::default();
    entries.iter().for_each(|entry| formats.add(entry));
    formats
}

fn may_hold_tensors(entry: &Entry<'_>) -> bool {
    let name = entry.file.path.file_name();
    [".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin"].iter().any(|ending| name.ends_with(ending))
}

/// The shards of an index, unless one of them cannot be read.
fn shards_of<'a>(entry: &Entry<'_>, headers: &'a Headers<'_>) -> Option<Vec<&'a Entry<'a>>> {
    let found = entry.found?;
    let mut file = fs_err::File::open(&found.path).ok()?;
    let index = read_index(&mut file, found.size).ok()?;
    let shards = index.shards(&entry.file.path);
    let shards: Vec<_> = shards.iter().map(|shard| headers.at(shard.as_str())).collect::<Option<_>>()?;
    shards.iter().all(|shard| shard.sound().is_some()).then_some(shards)
}

impl Unit {
    /// The unit as a whole, and its parts without the beginnings of their names.
    pub(super) fn parts(&self) -> Vec<(&'static str, Vec<Tensor>)> {
        let mut rest = Vec::new();
        let mut parts: Vec<(&'static str, Vec<Tensor>)> = Vec::new();
        for tensor in &self.tensors {
            let Some(part) = PARTS.iter().find(|part| tensor.name.starts_with(**part)) else {
                rest.push(tensor.clone());
                continue;
            };
            let tensor = Tensor { name: tensor.name[part.len()..].to_owned(), ..tensor.clone() };
            match parts.iter_mut().find(|(known, _)| known == part) {
                Some((_, tensors)) => tensors.push(tensor),
                None => parts.push((part, vec![tensor])),
            }
        }
        if !rest.is_empty() {
            parts.push(("", rest));
        }
        parts
    }
}
