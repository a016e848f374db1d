//! Verification: are the files here what the lock says?
//!
//! `quick` looks at names, links, sizes, headers and the closure of shard indexes; `full` reads every byte.
//! Each thing that is wrong is a [`Fault`]; one never stops the others.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::artifact::{File, Found};
use crate::digest::{ContentHasher, Digests};
use crate::facts::{Facts, Measurement};
use crate::fsio;
use crate::monitor::{Event, Monitor};
use crate::observe::{Access, Sighting};
use crate::stores::FileState;

mod headers;
mod shards;
mod structure;

pub use headers::{Entry, Headers, blank};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The artifact.
    pub artifact: String,
    /// The file, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What kind of fault.
    pub kind: FaultKind,
    /// In words.
    pub detail: String,
    /// Where it lies on disk, where something lies there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<PathBuf>,
}

/// The kinds of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Nothing is there.
    Missing,
    /// Fewer bytes than it must have.
    Truncated,
    /// Another length for another reason, or not a file at all.
    Wrong,
    /// A link to nothing.
    Dangling,
    /// An unfinished download, a pointer or a web page in the file's place.
    NotTheFile,
    /// The content is wrong.
    Corrupt,
    /// It may not, or cannot, be read.
    Unreadable,
    /// Programs do not find the artifact though its files are here.
    Unpublished,
    /// The header of a weight file is broken or does not fit the file's length.
    Structure,
    /// Weights were never written: a hole, or zeros where numbers should be.
    ZeroFilled,
    /// A pickle imports or calls what building tensors does not need. It must not be loaded.
    UnsafePickle,
    /// A shard index and its shards do not name the same files and tensors.
    Shards,
    /// The store is not there.
    StoreAbsent,
}

/// What a verification found.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    /// Everything that is wrong.
    pub faults: Vec<Fault>,
    /// Files that were looked at.
    pub files: usize,
    /// Files whose content was read and is right.
    pub proven: usize,
    /// Files that no record has a digest of: trusted as they were first seen.
    pub first_use: usize,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
}

/// Judges what was seen by names, links and sizes alone.
pub fn glance(sightings: &[Sighting<'_>]) -> Verdict {
    let mut verdict = Verdict::default();
    for sighting in sightings {
        verdict.files += sighting.observed.files.len() + sighting.matches.len();
        verdict.faults.extend(faults_of(sighting));
    }
    verdict
}

/// Judges what was seen, and reads headers, pickles, shard indexes and a few pages of every weight file: no more
/// than a few MiB of each.
pub fn quick(sightings: &[Sighting<'_>]) -> Verdict {
    let mut verdict = glance(sightings);
    let next = AtomicUsize::new(0);
    let look = || {
        let mut found = Vec::new();
        while let Some(sighting) = sightings.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.extend(faults_by_headers(sighting, &Headers::of(sighting)));
        }
        found
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(sightings.len());
    let by_headers: Vec<Fault> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(look)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    verdict.faults.extend(by_headers);
    // Faults come in the order of the artifacts, whoever found them.
    let order: HashMap<&str, usize> =
        sightings.iter().enumerate().map(|(index, sighting)| (sighting.artifact.name.as_str(), index)).collect();
    verdict.faults.sort_by_key(|fault| order.get(fault.artifact.as_str()).copied());
    verdict
}

/// What headers, pickles and samples show to be wrong with one artifact, whose headers are `headers`.
pub fn faults_by_headers(sighting: &Sighting<'_>, headers: &Headers<'_>) -> Vec<Fault> {
    let mut faults = structure::broken(sighting, headers);
    faults.extend(shards::unclosed(sighting, headers));
    faults
}

/// Reads every file that is here and compares it with the lock; remembers what was measured.
///
/// Files that several artifacts share are read once. `stopped` is asked between files.
pub fn full(
    sightings: &[Sighting<'_>],
    facts: &Facts,
    monitor: &dyn Monitor,
    now: fn() -> i64,
    stopped: &(dyn Fn() -> bool + Sync),
) -> Verdict {
    let mut verdict = quick(sightings);
    let readings = readings(sightings);
    let measured = measure_all(&readings, facts, monitor, now, stopped);
    let mut read = HashSet::new();
    verdict.interrupted = stopped();
    verdict.bytes_read = measured.values().filter_map(|m| m.as_ref().ok()).map(|m| m.bytes).sum();
    for (sighting, file) in files_here(sightings) {
        let (wanted, found) = (&sighting.artifact.files[file.index], file.found);
        match measured.get(&(found.device, found.inode)) {
            None => {}
            Some(Err(reason)) => verdict.faults.push(Fault {
                artifact: sighting.artifact.name.clone(),
                path: Some(wanted.path.to_string()),
                kind: FaultKind::Unreadable,
                detail: format!("it cannot be read: {reason}"),
                place: Some(found.path.clone()),
            }),
            Some(Ok(reading)) => {
                if wanted.digests.proves_content() {
                    read.insert((sighting.artifact.name.clone(), wanted.path.to_string()));
                }
                judge(&mut verdict, sighting, wanted, found, reading);
            }
        }
    }
    verdict.faults.extend(sightings.iter().filter_map(unread));
    tell_once(&mut verdict, &read);
    verdict
}

/// Takes out what reading the contents has told better.
///
/// These are refusals that were remembered from an earlier reading, and suspicions by the headers of
/// files that were read now: these are either right, or told to be wrong.
fn tell_once(verdict: &mut Verdict, read: &HashSet<(String, String)>) {
    if verdict.interrupted {
        return;
    }
    let by_header = [FaultKind::Structure, FaultKind::Truncated, FaultKind::NotTheFile, FaultKind::ZeroFilled];
    verdict.faults.retain(|fault| {
        let was_read = || fault.path.clone().is_some_and(|path| read.contains(&(fault.artifact.clone(), path)));
        let is_remembered = fault.kind == FaultKind::Corrupt && fault.detail.starts_with(REMEMBERED);
        let is_by_header = by_header.contains(&fault.kind) || shards::is_by_headers(fault);
        !(is_remembered || is_by_header && was_read())
    });
}

const REMEMBERED: &str = "when it was last read";

/// What reading one file brought.
struct Reading {
    measurement: Measurement,
    bytes: u64,
    /// What was measured at this path before, if the file looked the same then.
    before: Option<Digests>,
}

struct Here<'a> {
    index: usize,
    found: &'a Found,
}

fn files_here<'a, 'b>(sightings: &'a [Sighting<'b>]) -> impl Iterator<Item = (&'a Sighting<'b>, Here<'a>)> {
    sightings.iter().flat_map(|sighting| {
        sighting.observed.files.iter().enumerate().filter_map(move |(index, state)| match state {
            FileState::Present(found) | FileState::Staged(found) => Some((sighting, Here { index, found })),
            _ => None,
        })
    })
}

/// Each inode once, with everything that any artifact wants to know of it; the largest first.
fn readings<'a>(sightings: &'a [Sighting<'_>]) -> Vec<(&'a Found, Digests, String)> {
    let mut by_inode: HashMap<(u64, u64), (&Found, Digests, String)> = HashMap::new();
    for (sighting, file) in files_here(sightings) {
        let wanted = &sighting.artifact.files[file.index];
        let entry = by_inode
            .entry((file.found.device, file.found.inode))
            .or_insert_with(|| (file.found, Digests::default(), format!("{}/{}", sighting.artifact.name, wanted.path)));
        entry.1 = entry.1.or(wanted.digests);
    }
    let mut readings: Vec<_> = by_inode.into_values().collect();
    // The longest file begins first, so that it does not keep one thread busy alone at the end.
    readings.sort_by(|a, b| b.0.size.cmp(&a.0.size).then_with(|| a.0.path.cmp(&b.0.path)));
    readings
}

type Measured = HashMap<(u64, u64), Result<Reading, String>>;

fn measure_all(
    readings: &[(&Found, Digests, String)],
    facts: &Facts,
    monitor: &dyn Monitor,
    now: fn() -> i64,
    stopped: &(dyn Fn() -> bool + Sync),
) -> Measured {
    let next = AtomicUsize::new(0);
    let measured = Mutex::new(HashMap::new());
    let work = || {
        while let Some((found, wanted, item)) = readings.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stopped() {
                return;
            }
            monitor.event(Event::Started { item, total: Some(found.size), resumed: 0, from: "disk" });
            let reading = measure(found, wanted, facts, now()).map_err(|error| error.to_string());
            match &reading {
                Ok(_) => monitor.event(Event::Finished { item }),
                Err(reason) => monitor.event(Event::Failed { item, reason }),
            }
            let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
            measured.insert((found.device, found.inode), reading);
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    measured.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn measure(found: &Found, wanted: &Digests, facts: &Facts, at: i64) -> std::io::Result<Reading> {
    let before = facts.below(&found.path).ok().and_then(|known| known.of(found)).map(|known| known.digests);
    let hasher = ContentHasher::to_compare(wanted, Some(found.size));
    let (digests, bytes) = fsio::hash_file(&found.path, hasher)?;
    if let Err(error) = facts.record(found, &digests, at) {
        tracing::warn!(%error, "a measurement is not remembered");
    }
    Ok(Reading { measurement: Measurement { digests, at }, bytes, before })
}

fn judge(verdict: &mut Verdict, sighting: &Sighting<'_>, wanted: &File, found: &Found, reading: &Reading) {
    let digests = &reading.measurement.digests;
    match wanted.digests.check(digests) {
        Ok(()) if wanted.digests.proves_content() => verdict.proven += 1,
        Ok(()) => verdict.first_use += 1,
        Err(mismatch) => {
            // Content that changed under the same time of change and length was not written by anybody.
            let rot = reading.before.is_some_and(|before| wanted.digests.check(&before).is_ok());
            let why = if rot {
                "it rotted: it was right before, and nobody has written it since"
            } else {
                "its content is wrong"
            };
            verdict.faults.push(Fault {
                artifact: sighting.artifact.name.clone(),
                path: Some(wanted.path.to_string()),
                kind: FaultKind::Corrupt,
                detail: format!("{why}: {mismatch}"),
                place: Some(found.path.clone()),
            });
        }
    }
}

/// Content that only a server may read is not proven by anybody.
fn unread(sighting: &Sighting<'_>) -> Option<Fault> {
    let is_held = sighting.observed.files.iter().any(|state| matches!(state, FileState::Held));
    is_held.then(|| Fault {
        artifact: sighting.artifact.name.clone(),
        path: None,
        kind: FaultKind::Unreadable,
        detail: "only the store's server can read it: verify it where its folder is, as a user who may read it"
            .to_owned(),
        place: None,
    })
}

/// What a glance shows to be wrong with one artifact.
fn faults_of(sighting: &Sighting<'_>) -> Vec<Fault> {
    let artifact = sighting.artifact;
    let whole = |kind, detail: String| Fault { artifact: artifact.name.clone(), path: None, kind, detail, place: None };
    match &sighting.access {
        Access::Open | Access::Told => {}
        Access::Absent(absence) => return vec![whole(FaultKind::StoreAbsent, absence.to_string())],
        Access::Undeclared => {
            let detail = format!("the inventory declares no store `{}`", artifact.store);
            return vec![whole(FaultKind::StoreAbsent, detail)];
        }
    }
    let mut faults: Vec<Fault> = (0..artifact.files.len()).filter_map(|file| fault_of(sighting, file)).collect();
    if faults.is_empty()
        && !artifact.files.is_empty()
        && let Err(unpublished) = &sighting.observed.published
    {
        faults.push(whole(FaultKind::Unpublished, unpublished.to_string()));
    }
    if let Some(pattern) = artifact.pattern.as_ref().filter(|pattern| sighting.matches.len() < pattern.count) {
        let detail = format!("{} of {} files {} are here", sighting.matches.len(), pattern.count, pattern.glob);
        faults.push(whole(FaultKind::Missing, detail));
    }
    faults
}

fn fault_of(sighting: &Sighting<'_>, file: usize) -> Option<Fault> {
    use crate::observe::Proof;
    use crate::stores::Defect;

    let wanted = &sighting.artifact.files[file];
    let (kind, detail, place) = match &sighting.observed.files[file] {
        FileState::Present(found) | FileState::Staged(found) => match &sighting.proofs[file] {
            Proof::Refuted { mismatch, .. } => (
                FaultKind::Corrupt,
                format!("{REMEMBERED}, its content was wrong: {mismatch}"),
                Some(found.path.clone()),
            ),
            _ => return None,
        },
        FileState::Held => return None,
        FileState::Missing => (FaultKind::Missing, "it is missing".to_owned(), None),
        FileState::Unreadable { path, reason } => {
            (FaultKind::Unreadable, format!("it exists, but may not be read: {reason}"), Some(path.clone()))
        }
        FileState::Wrong { defect, found } => {
            let kind = match defect {
                Defect::Empty => FaultKind::Truncated,
                Defect::Size { expected, actual } if actual < expected => FaultKind::Truncated,
                Defect::Size { .. } | Defect::NotAFile => FaultKind::Wrong,
                Defect::Dangling { .. } => FaultKind::Dangling,
                Defect::Unfinished { .. } | Defect::LfsPointer | Defect::Html => FaultKind::NotTheFile,
            };
            (kind, defect.to_string(), found.as_ref().map(|found| found.path.clone()))
        }
    };
    let path = Some(wanted.path.to_string());
    Some(Fault { artifact: sighting.artifact.name.clone(), path, kind, detail, place })
}
