//! Names that are one and the same file on some file systems.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::{Access, Clash, Sighting};
use crate::fsio;
use crate::inventory::Layout;
use crate::stores::Stores;

/// A file of a sighting: which sighting, which file.
type Place = (usize, usize);

/// Notes, for each file whose name differs from another's in case only, whose it is, where its file system does not
/// tell them apart.
pub(super) fn note(stores: &Stores, sightings: &mut [Sighting<'_>]) {
    let mut folds: HashMap<PathBuf, bool> = HashMap::new();
    for (one, other) in alike(sightings) {
        let artifact = sightings[one.0].artifact;
        let Some(open) = stores.get(&artifact.store) else { continue };
        let path = open.store.visible_path(artifact, &artifact.files[one.1]);
        let folder = path.parent().unwrap_or(open.store.root()).to_owned();
        if *folds.entry(folder).or_insert_with_key(|folder| fsio::folds_names(folder)) {
            for (this, that) in [(one, other), (other, one)] {
                let theirs = sightings[that.0].artifact;
                let with = format!("{}/{}", theirs.name, theirs.files[that.1].path);
                sightings[this.0].clashes.push(Clash { file: this.1, with });
            }
        }
    }
}

/// Pairs of files with paths of one store that differ in case only.
fn alike(sightings: &[Sighting<'_>]) -> Vec<(Place, Place)> {
    // Plain folders hold the files of all artifacts side by side, other layouts those of each on its own.
    let room = |index: usize| {
        let sighting = &sightings[index];
        let is_shared = sighting.layout == Layout::Folder;
        (sighting.artifact.store.as_str(), if is_shared { None } else { Some(index) })
    };
    let open = || sightings.iter().enumerate().filter(|(_, sighting)| sighting.access == Access::Open);
    let files = || {
        open().filter(|(_, sighting)| sighting.layout != Layout::Ollama).flat_map(|(index, sighting)| {
            let paths = sighting.artifact.files.iter().enumerate();
            paths.map(move |(file, wanted)| ((index, file), wanted.path.as_str()))
        })
    };
    // Of two that differ in case, one has a capital: most names have none, and need not be kept.
    let mut seen = HashMap::new();
    let mut pairs = Vec::new();
    let mut told = HashSet::new();
    for (place, path) in files().filter(|(_, path)| !is_small(path)) {
        let (first, before) = *seen.entry((room(place.0), folded(path))).or_insert((place, path));
        if before != path && told.insert((room(place.0), path)) {
            pairs.push((first, place));
        }
    }
    if seen.is_empty() {
        return pairs;
    }
    for (place, path) in files().filter(|(_, path)| is_small(path)) {
        if let Some((other, _)) = seen.get(&(room(place.0), path.to_owned())) {
            pairs.push((*other, place));
        }
    }
    pairs
}

fn is_small(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
}

/// The same for all names that differ in case only.
fn folded(path: &str) -> String {
    path.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}
