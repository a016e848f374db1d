//! Shard closure: an index that names a shard which is not here makes the model unloadable.

use std::collections::BTreeSet;

use super::{Fault, FaultKind};
use crate::artifact::Found;
use crate::observe::Sighting;
use crate::relpath::RelPath;
use crate::stores::FileState;
use crate::weights::shards::{ShardIndex, is_index_name, read_index};

/// Faults for every shard index that is here and names shards which are not.
pub(super) fn unclosed(sighting: &Sighting<'_>) -> Vec<Fault> {
    let files = || sighting.artifact.files.iter().zip(&sighting.observed.files);
    let here = |state: &FileState| matches!(state, FileState::Present(_) | FileState::Staged(_));
    let mut faults = Vec::new();
    let mut present: Option<BTreeSet<RelPath>> = None;
    for (file, state) in files().filter(|(file, _)| is_index_name(file.path.file_name())) {
        let FileState::Present(found) = state else { continue };
        let present = present.get_or_insert_with(|| {
            files().filter(|(_, state)| here(state)).map(|(file, _)| file.path.clone()).collect()
        });
        let detail = match read(found) {
            Err(reason) => format!("it is not a shard index: {reason}"),
            Ok(index) => match index.missing(&file.path, present).as_slice() {
                [] => continue,
                missing => {
                    let names: Vec<&str> = missing.iter().map(RelPath::as_str).collect();
                    format!("it needs shards that are not here: {}", names.join(", "))
                }
            },
        };
        faults.push(Fault {
            artifact: sighting.artifact.name.clone(),
            path: Some(file.path.to_string()),
            kind: FaultKind::Shards,
            detail,
            place: Some(found.path.clone()),
            ranges: Vec::new(),
        });
    }
    faults
}

fn read(found: &Found) -> Result<ShardIndex, String> {
    let mut file = fs_err::File::open(&found.path).map_err(|error| error.to_string())?;
    read_index(&mut file, found.size).map_err(|error| error.to_string())
}
