//! Leftovers: what downloads left behind and what nothing names. Nothing else is ever removed.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adopt::Survey;
use crate::artifact::{Artifact, Found};
use crate::fsio;
use crate::stores::{Store, Stores};

/// One file to remove.
#[derive(Debug, Clone, Serialize)]
pub struct Removal {
    /// Its store.
    pub store: String,
    /// The file.
    pub path: PathBuf,
    /// Bytes that become free.
    pub size: u64,
    /// Why it is of no use.
    pub what: String,
    #[serde(skip)]
    found: Found,
}

/// A leftover that is not to be removed, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// Why it stays.
    pub reason: String,
}

/// What came of one removal.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The file.
    pub path: PathBuf,
    /// Bytes that are free now, or why nothing was done.
    pub result: Result<u64, String>,
}

/// What would be removed of a survey's leftovers, and what stays.
///
/// Younger ones stay, because a download may be running: `before` is the last moment of change that counts,
/// seconds since 1970. So do files in the places of artifacts that nobody else has, whatever lies there.
pub fn plan(survey: &Survey, stores: &Stores, artifacts: &[Artifact], before: i64) -> (Vec<Removal>, Vec<Kept>) {
    let (mut removals, mut kept) = (Vec::new(), Vec::new());
    for surveyed in &survey.stores {
        let Some(open) = stores.get(&surveyed.store) else { continue };
        let places = irreplaceable_places(open.store.as_ref(), artifacts);
        for seen in &surveyed.leftovers {
            let path = surveyed.root.join(&seen.path);
            // What was a file when it was surveyed and is a link now is somebody's work of the last moment.
            let Ok(Some(found)) = fsio::find_itself(&path) else { continue };
            if !path.is_file() || path.is_symlink() {
                continue;
            }
            let reason = if places.contains(&path) {
                Some("its place is that of a file that nobody else has")
            } else if found.mtime_ns > before.saturating_mul(1_000_000_000) {
                Some("it was changed lately: a download may be running")
            } else {
                None
            };
            match reason {
                Some(reason) => kept.push(Kept { path, reason: reason.to_owned() }),
                None => removals.push(Removal {
                    store: surveyed.store.clone(),
                    size: found.size,
                    what: seen.what.clone(),
                    found,
                    path,
                }),
            }
        }
    }
    (removals, kept)
}

fn irreplaceable_places(store: &dyn Store, artifacts: &[Artifact]) -> Vec<PathBuf> {
    let own = artifacts.iter().filter(|artifact| artifact.store == store.name());
    let irreplaceable = own.filter(|artifact| artifact.irreplaceable || !artifact.source.has_upstream());
    irreplaceable.flat_map(|artifact| artifact.files.iter().map(|file| store.visible_path(artifact, file))).collect()
}

/// Removes what a plan names and is still what was seen; one failure does not stop the others.
pub fn carry_out(removals: &[Removal]) -> Vec<Outcome> {
    removals
        .iter()
        .map(|removal| Outcome { path: removal.path.clone(), result: remove(&removal.path, &removal.found) })
        .collect()
}

fn remove(path: &Path, seen: &Found) -> Result<u64, String> {
    let now = fsio::find_itself(path).map_err(|error| error.to_string())?;
    if now.as_ref() != Some(seen) {
        return Err("it has changed since it was seen".to_owned());
    }
    fsio::remove_file(path).map_err(|error| error.to_string())?;
    Ok(seen.size)
}
