//! Shard closure: an index that names a shard which is not here makes the model unloadable.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Fault, FaultKind};
use crate::observe::Sighting;
use crate::relpath::RelPath;
use crate::stores::FileState;

/// Indexes are text of a few hundred KiB; a larger one is not read.
const LARGEST_INDEX: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::HashMap<String, String>,
}

/// Faults for every `*.index.json` that is here and names shards which are not.
pub(super) fn unclosed(sighting: &Sighting<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (file, state) in sighting.artifact.files.iter().zip(&sighting.observed.files) {
        let FileState::Present(found) = state else { continue };
        if !file.path.as_str().ends_with(".index.json") || found.size > LARGEST_INDEX {
            continue;
        }
        let fault = |detail: String| Fault {
            artifact: sighting.artifact.name.clone(),
            path: Some(file.path.to_string()),
            kind: FaultKind::Shards,
            detail,
            place: Some(found.path.clone()),
        };
        match shards_named_in(found) {
            Err(reason) => faults.push(fault(format!("it is not a shard index: {reason}"))),
            Ok(shards) => {
                let missing: Vec<String> =
                    shards.into_iter().filter(|shard| !is_here(sighting, &file.path, shard)).collect();
                if !missing.is_empty() {
                    faults.push(fault(format!("it needs shards that are not here: {}", missing.join(", "))));
                }
            }
        }
    }
    faults
}

fn shards_named_in(found: &crate::artifact::Found) -> Result<BTreeSet<String>, String> {
    let text = fs_err::read(&found.path).map_err(|error| error.to_string())?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    Ok(index.weight_map.into_values().collect())
}

fn is_here(sighting: &Sighting<'_>, index: &RelPath, shard: &str) -> bool {
    let Ok(shard) = shard.parse::<RelPath>() else { return false };
    let path = index.parent().map_or_else(|| shard.clone(), |folder| folder.join(&shard));
    let files = sighting.artifact.files.iter().zip(&sighting.observed.files);
    files
        .filter(|(file, _)| file.path == path)
        .any(|(_, state)| matches!(state, FileState::Present(_) | FileState::Staged(_)))
}
