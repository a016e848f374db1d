//! The same content in several places of one machine, and how it can take the room of one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use walkdir::WalkDir;

use crate::artifact::Found;
use crate::digest::Sha256;
use crate::facts::{Facts, FactsError};
use crate::fsio::{self, Sharing};
use crate::inventory::Layout;
use crate::stores::Stores;

/// Less is not worth a file's exchange.
const WORTHWHILE: u64 = 1 << 20;

/// One place of a content.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// The store.
    pub store: String,
    /// The file itself, links followed.
    pub path: PathBuf,
    /// The names under which it was seen: links and the file itself.
    #[serde(skip)]
    names: Vec<PathBuf>,
    #[serde(skip)]
    found: Found,
    #[serde(skip)]
    staging: PathBuf,
    #[serde(skip)]
    rank: u8,
}

/// A content that lies in several places.
#[derive(Debug, Clone, Serialize)]
pub struct Twins {
    /// The content.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub size: u64,
    /// The place that stays as it is.
    pub keep: Place,
    /// Places on the same file system that can share its room.
    pub copies: Vec<Place>,
    /// Places on other file systems: nothing can be won there.
    pub elsewhere: Vec<Place>,
}

/// What came of sharing one place.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The place.
    pub path: PathBuf,
    /// Bytes that are free now, or why nothing was done.
    pub result: Result<u64, String>,
}

/// Finds contents that lie in several files, by what was measured and has not changed since.
///
/// What was never read is not compared. Files that `shared` names have been dealt with before. The place that
/// is kept is one whose name is its digest, where there is any.
pub fn find(stores: &Stores, facts: &Facts, shared: &HashSet<(u64, u64)>) -> Result<Vec<Twins>, FactsError> {
    let mut by_content: BTreeMap<Sha256, HashMap<(u64, u64), Place>> = BTreeMap::new();
    for (name, open) in stores.iter() {
        let root = open.store.root();
        let known = facts.below(root)?;
        let rank = u8::from(open.config.layout == Layout::Folder);
        for entry in WalkDir::new(root).into_iter().filter_map(Result::ok).filter(|entry| !entry.file_type().is_dir()) {
            let Ok(Some(seen)) = fsio::find(entry.path()) else { continue };
            let Some(sha256) = known.of(&seen).and_then(|measured| measured.digests.sha256) else { continue };
            let (name_here, identity) = (seen.path.clone(), (seen.device, seen.inode));
            if seen.size < WORTHWHILE {
                continue;
            }
            if let Some(place) = place(name, seen, (open.store.staging(), rank)) {
                by_content.entry(sha256).or_default().entry(identity).or_insert(place).names.push(name_here);
            }
        }
    }
    let mut twins: Vec<Twins> = by_content
        .into_iter()
        .filter_map(|(sha256, places)| twins(sha256, places.into_values().collect(), shared))
        .collect();
    twins.sort_by_key(|twins| std::cmp::Reverse(twins.size * twins.copies.len() as u64));
    Ok(twins)
}

fn place(store: &str, seen: Found, (staging, rank): (PathBuf, u8)) -> Option<Place> {
    let path = fs_err::canonicalize(&seen.path).ok()?;
    Some(Place {
        store: store.to_owned(),
        names: Vec::new(),
        found: Found { path: path.clone(), ..seen },
        path,
        staging,
        rank,
    })
}

fn twins(sha256: Sha256, mut places: Vec<Place>, shared: &HashSet<(u64, u64)>) -> Option<Twins> {
    places.sort_by(|a, b| (a.rank, &a.path).cmp(&(b.rank, &b.path)));
    let mut places = places.into_iter();
    let keep = places.next()?;
    let (copies, elsewhere): (Vec<Place>, Vec<Place>) =
        places.partition(|place| place.found.device == keep.found.device);
    let is_new = |place: &Place| !shared.contains(&(place.found.device, place.found.inode));
    let copies: Vec<Place> = copies.into_iter().filter(is_new).collect();
    let is_any = !copies.is_empty() || !elsewhere.is_empty();
    is_any.then_some(Twins { sha256, size: keep.found.size, keep, copies, elsewhere })
}

impl Twins {
    /// Bytes that sharing would win.
    pub fn to_win(&self) -> u64 {
        self.size * self.copies.len() as u64
    }

    /// Lets every copy share the room of the one that is kept; one failure does not stop the others.
    ///
    /// What was measured of the copies is remembered for the files that took their place.
    pub fn share(&self, sharing: Sharing, facts: &Facts, at: i64) -> Vec<(Outcome, Option<(u64, u64)>)> {
        self.copies.iter().map(|copy| self.share_one(copy, sharing, (facts, at))).collect()
    }

    fn share_one(&self, copy: &Place, sharing: Sharing, (facts, at): (&Facts, i64)) -> (Outcome, Option<(u64, u64)>) {
        let shared = fsio::share(&self.keep.found, &copy.found, &copy.staging, sharing);
        let (result, identity) = match shared {
            Ok(now) => {
                let digests = crate::digest::Digests::sha256(self.sha256);
                let named: Vec<Found> =
                    copy.names.iter().map(|name| Found { path: name.clone(), ..now.clone() }).collect();
                if let Err(error) = facts.record_all(named.iter().map(|found| (found, &digests)), at) {
                    tracing::warn!(%error, "a measurement is not remembered");
                }
                (Ok(self.size), Some((now.device, now.inode)))
            }
            Err(error) => (Err(explained(&error, sharing)), None),
        };
        (Outcome { path: copy.path.clone(), result }, identity)
    }
}

fn explained(error: &std::io::Error, sharing: Sharing) -> String {
    match (error.kind(), sharing) {
        (std::io::ErrorKind::Unsupported, Sharing::Reflink) => {
            "this file system cannot share blocks (xfs and btrfs can); --hardlink can do without".to_owned()
        }
        _ => error.to_string(),
    }
}

/// The files that were dealt with before, as they are remembered in the folder `state`.
pub fn shared_before(state: &Path) -> HashSet<(u64, u64)> {
    let text = fs_err::read(state.join("shared.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Remembers more files that were dealt with; without it, they would be compared again the next time.
pub fn remember_shared(state: &Path, more: impl IntoIterator<Item = (u64, u64)>) -> std::io::Result<()> {
    let mut all = shared_before(state);
    all.extend(more);
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_unstable();
    let text = serde_json::to_vec(&all).map_err(std::io::Error::other)?;
    fsio::write_atomic(&state.join("shared.json"), &text, &fsio::WriteOptions::default())
}
