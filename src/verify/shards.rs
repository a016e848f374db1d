//! Shard closure: an index and its shards must name the same tensors, or the model is not loadable, or not whole.

use std::collections::{BTreeMap, BTreeSet};

use super::headers::{Entry, Headers};
use super::{Fault, FaultKind};
use crate::artifact::Found;
use crate::observe::Sighting;
use crate::relpath::RelPath;
use crate::stores::FileState;
use crate::weights::shards::{ShardIndex, is_index_name, read_index};

/// How a fault begins that reading the index and its shards as a whole tells better.
const NAMES: &str = "it names tensors that are not where it says";
const HOLDS: &str = "its shards hold tensors that it does not name";

/// Whether a fault is one that the headers alone show.
pub(super) fn is_by_headers(fault: &Fault) -> bool {
    fault.kind == FaultKind::Shards && [NAMES, HOLDS].iter().any(|begin| fault.detail.starts_with(begin))
}

/// How many names a message has.
const MAX_NAMES: usize = 5;

/// Faults for every shard index that is here and does not agree with what lies beside it.
pub(super) fn unclosed(sighting: &Sighting<'_>, headers: &Headers<'_>) -> Vec<Fault> {
    let files = || sighting.artifact.files.iter().zip(&sighting.observed.files);
    let here = |state: &FileState| matches!(state, FileState::Present(_) | FileState::Staged(_));
    let indexes = headers.iter().filter(|entry| is_index_name(entry.file.path.file_name()));
    let mut faults = Vec::new();
    let mut present: Option<BTreeSet<RelPath>> = None;
    for entry in indexes {
        let Some(found) = entry.found else { continue };
        let present = present.get_or_insert_with(|| {
            files().filter(|(_, state)| here(state)).map(|(file, _)| file.path.clone()).collect()
        });
        let details = match read(found) {
            Err(reason) => vec![format!("it is not a shard index: {reason}")],
            Ok(index) => disagreements(entry, &index, present, headers),
        };
        faults.extend(details.into_iter().map(|detail| Fault {
            artifact: sighting.artifact.name.clone(),
            path: Some(entry.file.path.to_string()),
            kind: FaultKind::Shards,
            detail,
            place: Some(found.path.clone()),
            ranges: Vec::new(),
            remembered: None,
        }));
    }
    faults
}

fn disagreements(
    entry: &Entry<'_>,
    index: &ShardIndex,
    present: &BTreeSet<RelPath>,
    headers: &Headers<'_>,
) -> Vec<String> {
    let path = &entry.file.path;
    let missing = index.missing(path, present);
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(RelPath::as_str).collect();
        return vec![format!("it needs shards that are not here: {}", names.join(", "))];
    }
    let shards: Vec<&Entry<'_>> = index.shards(path).iter().filter_map(|shard| headers.at(shard.as_str())).collect();
    let mut found = strangers(path, &shards, present);
    // What is proven together is what the repository has, whatever it may be.
    if !(entry.is_proven && shards.iter().all(|shard| shard.is_proven)) {
        found.extend(misplaced(path, index, &shards));
    }
    found
}

/// Shards beside the index that belong to its series and that it does not name.
fn strangers(index: &RelPath, shards: &[&Entry<'_>], present: &BTreeSet<RelPath>) -> Vec<String> {
    let all: BTreeSet<_> = shards.iter().filter_map(|shard| series(&shard.file.path)).collect();
    let named: BTreeSet<&str> = shards.iter().map(|shard| shard.file.path.as_str()).collect();
    let beside = present.iter().filter(|path| path.parent() == index.parent() && !named.contains(path.as_str()));
    let strange = beside.filter(|path| series(path).is_some_and(|of| all.contains(&of)));
    let names: Vec<String> = strange.map(|path| path.to_string()).collect();
    if names.is_empty() {
        Vec::new()
    } else {
        vec![format!("shards lie beside it that it does not name: {}", few(&names))]
    }
}

/// `model`, `.safetensors` of `model-00001-of-00002.safetensors`.
fn series(path: &RelPath) -> Option<(&str, &str)> {
    let (before, after) = path.file_name().split_once("-of-")?;
    let (stem, number) = before.rsplit_once('-')?;
    let (count, ending) = after.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(count)).then_some((stem, ending))
}

/// Compares what the index says with the shards' own headers, both ways.
fn misplaced(path: &RelPath, index: &ShardIndex, shards: &[&Entry<'_>]) -> Vec<String> {
    let folder = path.parent();
    let mut held: BTreeMap<String, &str> = BTreeMap::new();
    for shard in shards {
        // A shard without a readable header is told by its own fault.
        let Some(kind) = shard.sound() else { return Vec::new() };
        for tensor in kind.tensors() {
            held.insert(tensor.name, shard.file.path.as_str());
        }
    }
    let place = |shard: &RelPath| folder.as_ref().map_or_else(|| shard.clone(), |folder| folder.join(shard));
    let lacking: Vec<String> = index
        .tensors
        .iter()
        .filter(|(name, shard)| held.get(*name) != Some(&place(shard).as_str()))
        .map(|(name, shard)| format!("{name} in {shard}"))
        .collect();
    let unnamed: Vec<String> = held
        .iter()
        .filter(|(name, _)| !index.tensors.contains_key(*name))
        .map(|(name, shard)| format!("{name} of {shard}"))
        .collect();
    let mut told = Vec::new();
    if !lacking.is_empty() {
        told.push(format!("{NAMES}: {}", few(&lacking)));
    }
    if !unnamed.is_empty() {
        told.push(format!("{HOLDS}: {}", few(&unnamed)));
    }
    told
}

/// The first few names, and how many more there are.
fn few(names: &[String]) -> String {
    let first = names.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MAX_NAMES) {
        Some(more @ 1..) => format!("{first} and {more} more"),
        _ => first,
    }
}

fn read(found: &Found) -> Result<ShardIndex, String> {
    let mut file = fs_err::File::open(&found.path).map_err(|error| error.to_string())?;
    read_index(&mut file, found.size).map_err(|error| error.to_string())
}
