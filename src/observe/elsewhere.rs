//! Contents that this machine has, though nothing that is wanted has them.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::{Proof, observe};
use crate::artifact::{Artifact, File};
use crate::digest::{ContentName, Digests};
use crate::facts::{Facts, FactsError};
use crate::fsio;
use crate::stores::{FileState, Stores};

/// Content that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose it is: artifact and path, or the path alone where no artifact is known to have it.
    pub whose: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub size: u64,
}

/// Where this machine has `wanted` contents: in the places of `others`, artifacts that are not wanted now, or in any file
/// that was measured once and is unchanged.
///
/// Looks at such files only. No contents are read, so what is found has still to be proven.
pub fn elsewhere(
    stores: &Stores,
    others: &[Artifact],
    facts: &Facts,
    wanted: &HashSet<ContentName>,
) -> Result<HashMap<ContentName, Held>, FactsError> {
    let mut held = HashMap::new();
    let candidates: Vec<Artifact> = others.iter().filter_map(|other| with_contents(other, wanted)).collect();
    let candidates: Vec<&Artifact> = candidates.iter().collect();
    for sighting in observe(stores, &candidates, facts, false)? {
        for (number, file) in sighting.artifact.files.iter().enumerate() {
            let (FileState::Present(found) | FileState::Staged(found)) = &sighting.observed.files[number] else {
                continue;
            };
            if !matches!(sighting.proofs[number], Proof::Refuted { .. }) {
                let whose = format!("{}/{}", sighting.artifact.name, file.path);
                let here = Held { whose, path: found.path.clone(), size: found.size };
                note(&mut held, &file.digests, wanted, &here);
            }
        }
    }
    let known = facts.of_contents(wanted)?;
    for path in known.paths() {
        // Where it cannot be looked at any more, it is as good as gone.
        let Ok(Some(found)) = fsio::find(path) else { continue };
        if let Some(measured) = known.of(&found).filter(|_| known.damage_of(&found).is_none()) {
            let here = Held { whose: path.display().to_string(), path: found.path, size: found.size };
            note(&mut held, &measured.digests, wanted, &here);
        }
    }
    Ok(held)
}

/// The artifact with those of its files alone that can have one of the contents; `None` where none can.
fn with_contents(artifact: &Artifact, wanted: &HashSet<ContentName>) -> Option<Artifact> {
    let can = |file: &&File| file.digests.names().any(|name| wanted.contains(&name));
    let files: Vec<File> = artifact.files.iter().filter(can).cloned().collect();
    (!files.is_empty()).then(|| Artifact { pattern: None, ..artifact.with_files(files) })
}

fn note(held: &mut HashMap<ContentName, Held>, digests: &Digests, wanted: &HashSet<ContentName>, here: &Held) {
    for name in digests.names().filter(|name| wanted.contains(name)) {
        held.entry(name).or_insert_with(|| here.clone());
    }
}
