//! Leftovers: what downloads left behind and what nothing names. Nothing else is ever removed.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adopt::{Seen, StoreSurvey, Superseded, Survey};
use crate::artifact::{Artifact, Found};
use crate::fsio;
use crate::inventory::Layout;
use crate::stores::{Store, Stores};

/// Why contents stay of which nobody knows whether they are needed.
const UNSURE: &str = "another store has folders that may not be looked into, and a link there may lead to it: prune as a \
                      user who may";

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
    /// Only where everything before it in its store went.
    #[serde(skip)]
    is_last: bool,
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
/// seconds since 1970. So do files in the places of artifacts that nobody else has, whatever lies there, and what a link
/// of another store leads to.
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
        let led_to = led_to_by_others(surveyed, stores);
        let judge = Judge { surveyed, places, led_to, before };
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
    /// Where links of other stores lead; `None` where nobody knows.
    led_to: Option<BTreeSet<PathBuf>>,
    before: i64,
}

impl Judge<'_> {
    fn reason_to_keep(&self, found: &Found) -> Option<&'static str> {
        if self.places.contains(&found.path) {
            Some("its place is that of a file that nobody else has")
        } else if found.mtime_ns > self.before.saturating_mul(1_000_000_000) {
            Some("it was changed lately: a download may be running")
        } else {
            match &self.led_to {
                Some(places) => is_led_to(&found.path, places).then_some("a link in another store leads to it"),
                // What downloads left unfinished is nobody's.
                None if found.path.extension().is_some_and(|extension| extension == "incomplete") => None,
                None => Some(UNSURE),
            }
        }
    }

    fn removal(&self, seen: &Seen, found: Found) -> Removal {
        let (store, path, what) = (self.surveyed.store.clone(), found.path.clone(), seen.what.clone());
        let size = if path.is_file() && !path.is_symlink() { found.size } else { 0 };
        Removal { store, path, size, what, found, top: None, is_last: false }
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
                    needed.extend(revision.blobs.iter().map(|blob| real(&self.surveyed.root.join(&blob.path))));
                    kept.push(Kept { path: self.surveyed.root.join(&revision.path), reason: reason.to_owned() });
                }
            }
        }
        // Links go before what they lead to, and nothing goes that a link leads to that stays.
        let mut blobs: Vec<(PathBuf, &Seen)> =
            going.into_iter().map(|blob| (self.surveyed.root.join(&blob.path), blob)).collect();
        blobs.sort_by_cached_key(|(path, _)| (!path.is_symlink(), path.clone()));
        blobs.dedup_by(|(one, _), (other, _)| one == other);
        for (path, blob) in blobs {
            let Ok(Some(found)) = fsio::find_itself(&path) else { continue };
            let led_to = fs_err::canonicalize(&path).ok();
            let is_needed =
                needed.contains(&real(&path)) || led_to.as_ref().is_some_and(|place| needed.contains(place));
            match self.reason_to_keep(&found).or_else(|| is_needed.then_some("a revision that stays leads to it")) {
                Some(reason) => {
                    needed.extend(led_to);
                    kept.push(Kept { path, reason: reason.to_owned() });
                }
                None => removals.push(Removal { is_last: true, ..self.removal(blob, found) }),
            }
        }
    }

    fn entries(&self, revision: &Superseded) -> Result<Vec<Removal>, &'static str> {
        let folder = self.surveyed.root.join(&revision.path);
        let top = folder.parent().filter(|folder| folder.ends_with("snapshots")).map(Path::to_owned);
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

/// Where links of the other stores lead, by way of what: programs read by them what lies in a hub cache. `None` where some
/// cannot be looked into.
fn led_to_by_others(surveyed: &StoreSurvey, stores: &Stores) -> Option<BTreeSet<PathBuf>> {
    let root = fs_err::canonicalize(&surveyed.root).ok()?;
    let is_cache = stores.get(&surveyed.store).is_some_and(|open| open.config.layout == Layout::HfCache);
    let mut places = BTreeSet::new();
    for (_, other) in stores.iter().filter(|(name, _)| is_cache && *name != surveyed.store) {
        // A link to all of a store needs nothing of it in particular.
        let led_to = fsio::led_to(other.store.root(), &root).ok()?;
        places.extend(led_to.into_iter().filter(|place| !root.starts_with(place)));
    }
    Some(places)
}

/// Whether one of `places` is `path`, or a folder that it lies in.
fn is_led_to(path: &Path, places: &BTreeSet<PathBuf>) -> bool {
    real(path).ancestors().any(|place| places.contains(place))
}

/// The same path in the folder where it really lies; what it is itself is not followed.
fn real(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| fs_err::canonicalize(folder).ok());
    folder.zip(path.file_name()).map_or_else(|| path.to_owned(), |(folder, name)| folder.join(name))
}

fn irreplaceable_places(store: &dyn Store, artifacts: &[Artifact]) -> Vec<PathBuf> {
    let own = artifacts.iter().filter(|artifact| artifact.store == store.name());
    let irreplaceable = own.filter(|artifact| artifact.irreplaceable || !artifact.source.has_upstream());
    irreplaceable.flat_map(|artifact| artifact.files.iter().map(|file| store.visible_path(artifact, file))).collect()
}

/// Removes what a plan names and is still what was seen; one failure does not stop the others, but for what a link
/// leads to that could not be removed.
pub fn carry_out(removals: &[Removal]) -> Vec<Outcome> {
    let mut failed = HashSet::new();
    let carry_out = |removal: &Removal| {
        let result = if removal.is_last && failed.contains(&removal.store) {
            Err("it stays: something that may lead to it could not be removed".to_owned())
        } else {
            remove(removal)
        };
        if result.is_err() {
            failed.insert(removal.store.clone());
        }
        Outcome { path: removal.path.clone(), result }
    };
    removals.iter().map(carry_out).collect()
}

fn remove(removal: &Removal) -> Result<u64, String> {
    let path = &removal.path;
    let now = fsio::find_itself(path).map_err(|error| error.to_string())?;
    if now.as_ref() != Some(&removal.found) {
        return Err("it has changed since it was seen".to_owned());
    }
    // An empty one, as a stopped run leaves it.
    let is_folder = path.is_dir() && !path.is_symlink();
    if !is_folder {
        fsio::remove_file(path).map_err(|error| error.to_string())?;
    }
    let folder = if is_folder { Some(path.as_path()) } else { path.parent() };
    if let (Some(folder), Some(top)) = (folder, &removal.top) {
        fsio::remove_empty_dirs(folder, top);
    }
    Ok(removal.size)
}
