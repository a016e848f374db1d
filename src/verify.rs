//! Verification: are the files here what the lock says?
//!
//! `quick` looks at names, links, sizes, headers and the closure of shard indexes; [`contents`] reads: whole files
//! where their digests are compared, and chunks, several at once, where chunk digests of the right content are known.
//! Each thing that is wrong is a [`Fault`]; one never stops the others.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::artifact::Found;
use crate::facts::Harmless;
use crate::observe::{Access, Proof, Sighting};
use crate::stores::FileState;

mod agenda;
mod contents;
mod course;
mod headers;
mod judge;
mod scrub;
mod shards;
mod strays;
mod structure;
mod whole;
mod zeros;

pub use contents::{Reading, contents};
pub use course::Budget;
pub use strays::{Stray, StrayKind, strays};

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
    /// Which bytes of it are wrong, where that is known: whole chunks, or what the disk cannot read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Range<u64>>,
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
    /// The content is wrong, and was never known to be right.
    Corrupt,
    /// The content was right, and changed though nobody wrote it.
    Rotted,
    /// The content was right, and somebody wrote another since.
    Replaced,
    /// Another content that was right once, here or elsewhere: another revision.
    Upgraded,
    /// Parts that are wrong hold nothing but zeros, or weights were never written: a hole, zeros instead of numbers.
    ZeroFilled,
    /// It may not, or cannot, be read.
    Unreadable,
    /// Programs do not find the artifact though its files are here.
    Unpublished,
    /// The header of a weight file is broken or does not fit the file's length.
    Structure,
    /// A pickle imports or calls what building tensors does not need. It must not be loaded.
    UnsafePickle,
    /// A shard index and its shards do not name the same files and tensors.
    Shards,
    /// The store is not there.
    StoreAbsent,
}

impl FaultKind {
    /// The kinds that only reading the content finds, and only reading it finds to be over.
    pub const OF_CONTENT: [Self; 6] =
        [Self::Corrupt, Self::Rotted, Self::Replaced, Self::Upgraded, Self::ZeroFilled, Self::Unreadable];

    /// Its name in JSON and in the history.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Missing => "missing",
            FaultKind::Truncated => "truncated",
            FaultKind::Wrong => "wrong",
            FaultKind::Dangling => "dangling",
            FaultKind::NotTheFile => "not-the-file",
            FaultKind::Corrupt => "corrupt",
            FaultKind::Rotted => "rotted",
            FaultKind::Replaced => "replaced",
            FaultKind::Upgraded => "upgraded",
            FaultKind::ZeroFilled => "zero-filled",
            FaultKind::Unreadable => "unreadable",
            FaultKind::Unpublished => "unpublished",
            FaultKind::Structure => "structure",
            FaultKind::UnsafePickle => "unsafe-pickle",
            FaultKind::Shards => "shards",
            FaultKind::StoreAbsent => "store-absent",
        }
    }
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
    /// Files that were left out because they were read not long ago.
    pub fresh: usize,
    /// Files that the budget, or a stop, left for another time.
    pub unread: usize,
    /// Their bytes, as far as they were not read.
    pub unread_bytes: u64,
    /// Of these, files that were not read within the greatest age: the budget is too small.
    pub overdue: usize,
    /// Files that somebody wrote while they were read; they are read again next time.
    pub changing: usize,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Files in the stores that no artifact has, where they were looked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strays: Vec<Stray>,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
    /// Files whose pickles were followed and are harmless, for [`crate::facts::Facts::record_harmless`].
    #[serde(skip)]
    pub harmless: Vec<Found>,
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
///
/// Proven files are the right ones; only their pickles are followed, unless they are `harmless` as known from before.
pub fn quick(sightings: &[Sighting<'_>], harmless: &Harmless) -> Verdict {
    let mut verdict = glance(sightings);
    let next = AtomicUsize::new(0);
    let look = || {
        let (mut found, mut cleared) = (Vec::new(), Vec::new());
        while let Some(sighting) = sightings.get(next.fetch_add(1, Ordering::Relaxed)) {
            let headers = Headers::of(sighting).remembering(harmless);
            let faults = faults_by_headers(sighting, &headers);
            cleared.extend(headers.found_harmless(&faults).cloned());
            found.extend(faults);
        }
        (found, cleared)
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(sightings.len());
    let mut by_headers = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(look)).collect();
        for thread in threads {
            let (found, cleared) = thread.join().unwrap_or_default();
            by_headers.extend(found);
            verdict.harmless.extend(cleared);
        }
    });
    // What is known to be wrong by its content need not be told again by its header.
    let known: HashSet<(String, Option<String>)> =
        verdict.faults.iter().map(|fault| (fault.artifact.clone(), fault.path.clone())).collect();
    let is_news = |fault: &Fault| {
        fault.kind == FaultKind::UnsafePickle || !known.contains(&(fault.artifact.clone(), fault.path.clone()))
    };
    verdict.faults.extend(by_headers.into_iter().filter(is_news));
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

/// How a fault begins that was found by an earlier reading.
const REMEMBERED: &str = "when it was last read";

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
        ranges: Vec::new(),
    })
}

/// What a glance shows to be wrong with one artifact.
fn faults_of(sighting: &Sighting<'_>) -> Vec<Fault> {
    let artifact = sighting.artifact;
    let name = &artifact.name;
    let whole =
        |kind, detail| Fault { artifact: name.clone(), path: None, kind, detail, place: None, ranges: Vec::new() };
    match &sighting.access {
        Access::Open | Access::Told => {}
        Access::Absent(absence) => return vec![whole(FaultKind::StoreAbsent, absence.to_string())],
        Access::Undeclared => {
            let detail = format!("the inventory declares no store `{}`", artifact.store);
            return vec![whole(FaultKind::StoreAbsent, detail)];
        }
    }
    let mut faults: Vec<Fault> = (0..artifact.files.len()).filter_map(|file| fault_of(sighting, file)).collect();
    faults.extend(sighting.here().skip_while(|(number, _)| *number < artifact.files.len()).filter_map(
        |(number, found)| {
            let detail = refuted(&sighting.proofs[number])?;
            Some(Fault {
                path: Some(sighting.path_of(number)),
                place: Some(found.path.clone()),
                ..whole(FaultKind::Corrupt, detail)
            })
        },
    ));
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

/// What is known to be wrong with a content from an earlier reading.
fn refuted(proof: &Proof) -> Option<String> {
    let Proof::Refuted { mismatch, .. } = proof else { return None };
    Some(format!("{REMEMBERED}, its content was wrong: {mismatch}"))
}

fn fault_of(sighting: &Sighting<'_>, file: usize) -> Option<Fault> {
    use crate::stores::Defect;

    let wanted = &sighting.artifact.files[file];
    let (kind, detail, place) = match &sighting.observed.files[file] {
        FileState::Present(found) | FileState::Staged(found) => {
            (FaultKind::Corrupt, refuted(&sighting.proofs[file])?, Some(found.path.clone()))
        }
        FileState::Held => return None,
        FileState::Missing => (FaultKind::Missing, "it is missing".to_owned(), None),
        FileState::Unreadable { path, is_denied: true, reason } => {
            (FaultKind::Unreadable, format!("it exists, but may not be read: {reason}"), Some(path.clone()))
        }
        FileState::Unreadable { path, reason, .. } => {
            (FaultKind::Unreadable, format!("the disk cannot read it: {reason}"), Some(path.clone()))
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
    Some(Fault { artifact: sighting.artifact.name.clone(), path, kind, detail, place, ranges: Vec::new() })
}
