//! Leftovers: what downloads left behind and what nothing names. Nothing else is ever removed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adopt::{Seen, StoreSurvey, Superseded, Survey};
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
    /// Folders below this one that become empty go as well.
    #[serde(skip)]
    top: Option<PathBuf>,
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

/// What would be removed of a survey's leftovers, and what stays; with `superseded`, replaced revisions as well.
///
/// Younger ones stay, because a download may be running: `before` is the last moment of change that counts,
/// seconds since 1970. So do files in the places of artifacts that nobody else has, whatever lies there.
pub fn plan(
    survey: &Survey,
    stores: &Stores,
    artifacts: &[Artifact],
    before: i64,
    superseded: bool,
) -> (Vec<Removal>, Vec<Kept>) {
    let (mut removals, mut kept) = (Vec::new(), Vec::new());
    for surveyed in &survey.stores {
        let Some(open) = stores.get(&surveyed.store) else { continue };
        let places = irreplaceable_places(open.store.as_ref(), artifacts);
        let judge = Judge { surveyed, places, before };
        for seen in &surveyed.leftovers {
            let path = surveyed.root.join(&seen.path);
            // What was a file when it was surveyed and is a link now is somebody's work of the last moment.
            let Ok(Some(found)) = fsio::find_itself(&path) else { continue };
            if !path.is_file() || path.is_symlink() {
                continue;
            }
            match judge.reason_to_keep(&found) {
                Some(reason) => kept.push(Kept { path, reason: reason.to_owned() }),
                None => removals.push(judge.removal(seen, found)),
            }
        }
        if superseded {
            judge.judge_replaced(&mut removals, &mut kept);
        }
    }
    (removals, kept)
}

/// Decides about what was seen in one store.
struct Judge<'a> {
    surveyed: &'a StoreSurvey,
    /// Places of files that nobody else has.
    places: Vec<PathBuf>,
    before: i64,
}

impl Judge<'_> {
    fn reason_to_keep(&self, found: &Found) -> Option<&'static str> {
        if self.places.contains(&found.path) {
            Some("its place is that of a file that nobody else has")
        } else if found.mtime_ns > self.before.saturating_mul(1_000_000_000) {
            Some("it was changed lately: a download may be running")
        } else {
            None
        }
    }

    fn removal(&self, seen: &Seen, found: Found) -> Removal {
        let (store, path, what) = (self.surveyed.store.clone(), found.path.clone(), seen.what.clone());
        let size = if path.is_symlink() { 0 } else { found.size };
        Removal { store, path, size, what, found, top: None }
    }

    /// A revision goes as a whole or not at all, and what it leads to only where no other one stays that does.
    fn judge_replaced(&self, removals: &mut Vec<Removal>, kept: &mut Vec<Kept>) {
        let (mut going, mut needed) = (Vec::new(), HashSet::new());
        for revision in &self.surveyed.superseded {
            match self.entries(revision) {
                Ok(entries) => {
                    removals.extend(entries);
                    going.extend(&revision.blobs);
                }
                Err(reason) => {
                    needed.extend(revision.blobs.iter().map(|blob| blob.path.as_str()));
                    kept.push(Kept { path: self.surveyed.root.join(&revision.path), reason: reason.to_owned() });
                }
            }
        }
        // Links go before what they lead to: a run that is killed leaves blobs that no snapshot leads to.
        let mut blobs: Vec<&Seen> = going.into_iter().filter(|blob| !needed.contains(blob.path.as_str())).collect();
        let order = |blob: &Seen| (!self.surveyed.root.join(&blob.path).is_symlink(), blob.path.clone());
        blobs.sort_by_cached_key(|blob| order(blob));
        blobs.dedup_by(|one, other| one.path == other.path);
        for blob in blobs {
            let Ok(Some(found)) = fsio::find_itself(&self.surveyed.root.join(&blob.path)) else { continue };
            match self.reason_to_keep(&found) {
                Some(reason) => kept.push(Kept { path: found.path, reason: reason.to_owned() }),
                None => removals.push(self.removal(blob, found)),
            }
        }
    }

    fn entries(&self, revision: &Superseded) -> Result<Vec<Removal>, &'static str> {
        let top = self.surveyed.root.join(&revision.path).parent().map(Path::to_owned);
        let mut entries = Vec::new();
        for seen in &revision.files {
            let found = fsio::find_itself(&self.surveyed.root.join(&seen.path)).ok().flatten();
            let found = found.ok_or("it changed while it was looked at")?;
            match self.reason_to_keep(&found) {
                Some(reason) => return Err(reason),
                None => entries.push(Removal { top: top.clone(), ..self.removal(seen, found) }),
            }
        }
        Ok(entries)
    }
}

fn irreplaceable_places(store: &dyn Store, artifacts: &[Artifact]) -> Vec<PathBuf> {
    let own = artifacts.iter().filter(|artifact| artifact.store == store.name());
    let irreplaceable = own.filter(|artifact| artifact.irreplaceable || !artifact.source.has_upstream());
    irreplaceable.flat_map(|artifact| artifact.files.iter().map(|file| store.visible_path(artifact, file))).collect()
}

/// Removes what a plan names and is still what was seen; one failure does not stop the others.
pub fn carry_out(removals: &[Removal]) -> Vec<Outcome> {
    removals.iter().map(|removal| Outcome { path: removal.path.clone(), result: remove(removal) }).collect()
}

fn remove(removal: &Removal) -> Result<u64, String> {
    let path = &removal.path;
    let now = fsio::find_itself(path).map_err(|error| error.to_string())?;
    if now.as_ref() != Some(&removal.found) {
        return Err("it has changed since it was seen".to_owned());
    }
    fsio::remove_file(path).map_err(|error| error.to_string())?;
    if let (Some(folder), Some(top)) = (path.parent(), &removal.top) {
        fsio::remove_empty_dirs(folder, top);
    }
    Ok(removal.size)
}
