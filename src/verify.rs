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
use crate::digest::Sha256;
use crate::facts::Harmless;
use crate::observe::{Access, Proof, Sighting};
use crate::stores::FileState;

mod agenda;
mod contents;
mod course;
mod headers;
mod judge;
mod outlook;
mod scrub;
mod shards;
mod strays;
mod structure;
mod whole;
mod zeros;

pub use contents::{Reading, contents};
pub use course::Budget;
pub use outlook::Outlook;
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
    /// When the content was read, where that is remembered from an earlier run; seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remembered: Option<i64>,
}

/// A file that no record has a digest of, and that is what it was when it was first seen or accepted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TrustedFile {
    /// The artifact.
    pub artifact: String,
    /// The file.
    pub path: String,
    /// Since when it is trusted, in seconds since 1970.
    pub since: i64,
}

/// A file whose content was accepted instead of the one that was trusted before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AcceptedFile {
    /// The artifact.
    pub artifact: String,
    /// The file.
    pub path: String,
    /// What was trusted before.
    pub before: Sha256,
    /// What is trusted from now on.
    pub now: Sha256,
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

    const ALL: [Self; 16] = [
        Self::Missing,
        Self::Truncated,
        Self::Wrong,
        Self::Dangling,
        Self::NotTheFile,
        Self::Corrupt,
        Self::Rotted,
        Self::Replaced,
        Self::Upgraded,
        Self::ZeroFilled,
        Self::Unreadable,
        Self::Unpublished,
        Self::Structure,
        Self::UnsafePickle,
        Self::Shards,
        Self::StoreAbsent,
    ];

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

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
    /// Files that no record has a digest of, that were read and are as they were first seen.
    pub first_use: usize,
    /// All files that are trusted as first seen, because no record has a digest; also those that were not read now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<TrustedFile>,
    /// Files whose new content was accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<AcceptedFile>,
    /// Files that were left out because they were read not long ago.
    pub fresh: usize,
    /// Files that the budget, or a stop, left for another time.
    pub unread: usize,
    /// Their bytes, as far as they were not read.
    pub unread_bytes: u64,
    /// Of these, files that were not read within the greatest age: the budget is too small.
    pub overdue: usize,
    /// Their bytes, as far as they were not read.
    pub overdue_bytes: u64,
    /// Files that somebody wrote while they were read; they are read again next time.
    pub changing: usize,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Files in the stores that no artifact has, where they were looked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strays: Vec<Stray>,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
    /// What was read now and is right: numbers of the sighting and of the file in it.
    #[serde(skip)]
    right: HashSet<(usize, usize)>,
    /// Files whose pickles were followed and are harmless, for [`crate::facts::Facts::record_harmless`].
    #[serde(skip)]
    pub harmless: Vec<Found>,
    /// What was never written of a file, by artifact and path: it is why a content is wrong, if it is.
    #[serde(skip)]
    unwritten: HashMap<(String, String), String>,
}

/// Judges what was seen by names, links and sizes alone.
pub fn glance(sightings: &[Sighting<'_>]) -> Verdict {
    let mut verdict = Verdict::default();
    for sighting in sightings {
        verdict.files += sighting.observed.files.len() + sighting.matches.len();
        verdict.faults.extend(faults_of(sighting));
    }
    verdict.trusted = sightings.iter().flat_map(trusted_in).collect();
    verdict
}

/// Files that are trusted as first seen, as far as earlier readings tell.
fn trusted_in(sighting: &Sighting<'_>) -> impl Iterator<Item = TrustedFile> {
    sighting.here().filter_map(|(number, _)| match sighting.proofs[number] {
        Proof::FirstUse { since, .. } => {
            Some(TrustedFile { artifact: sighting.artifact.name.clone(), path: sighting.path_of(number), since })
        }
        _ => None,
    })
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
    let mut by_headers: Vec<Fault> = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(look)).collect();
        for thread in threads {
            let (found, cleared) = thread.join().unwrap_or_default();
            by_headers.extend(found);
            verdict.harmless.extend(cleared);
        }
    });
    let unwritten = by_headers.iter().filter(|fault| fault.kind == FaultKind::ZeroFilled);
    let unwritten =
        unwritten.filter_map(|fault| Some(((fault.artifact.clone(), fault.path.clone()?), fault.detail.clone())));
    verdict.unwritten = unwritten.collect();
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
        remembered: None,
    })
}

/// What a glance shows to be wrong with one artifact.
fn faults_of(sighting: &Sighting<'_>) -> Vec<Fault> {
    let artifact = sighting.artifact;
    let name = &artifact.name;
    let whole = |kind, detail| Fault {
        artifact: name.clone(),
        path: None,
        kind,
        detail,
        place: None,
        ranges: Vec::new(),
        remembered: None,
    };
    match &sighting.access {
        Access::Open | Access::Told => {}
        Access::Absent(absence) => return vec![whole(FaultKind::StoreAbsent, absence.to_string())],
        Access::Undeclared => {
            let detail = format!("the inventory declares no store `{}`", artifact.store);
            return vec![whole(FaultKind::StoreAbsent, detail)];
        }
    }
    let mut faults: Vec<Fault> = (0..artifact.files.len()).filter_map(|file| fault_of(sighting, file)).collect();
    faults.extend((artifact.files.len()..sighting.proofs.len()).filter_map(|file| remembered(sighting, file)));
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
    use crate::stores::Defect;

    let wanted = &sighting.artifact.files[file];
    let (kind, detail, place) = match &sighting.observed.files[file] {
        FileState::Present(_) | FileState::Staged(_) => return remembered(sighting, file),
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
    let artifact = sighting.artifact.name.clone();
    Some(Fault { artifact, path, kind, detail, place, ranges: Vec::new(), remembered: None })
}

/// What an earlier reading found wrong with the file of this number, as it was told then.
fn remembered(sighting: &Sighting<'_>, number: usize) -> Option<Fault> {
    let Proof::Refuted(wrong) = &sighting.proofs[number] else { return None };
    let (_, found) = sighting.here().find(|(here, _)| *here == number)?;
    let kind = FaultKind::named(&wrong.kind).unwrap_or(FaultKind::Corrupt);
    Some(Fault {
        artifact: sighting.artifact.name.clone(),
        path: Some(sighting.path_of(number)),
        kind,
        detail: with_a_way_out(sighting, number, kind, wrong.detail.clone()),
        place: Some(found.path.clone()),
        ranges: wrong.ranges.clone(),
        remembered: wrong.read_at,
    })
}

/// Of a file that no record has a digest of, only its owner knows whether another content is meant: says how to say so.
fn with_a_way_out(sighting: &Sighting<'_>, number: usize, kind: FaultKind, detail: String) -> String {
    let is_for_its_owner = [FaultKind::Replaced, FaultKind::Upgraded, FaultKind::Truncated].contains(&kind);
    if sighting.wanted(number).proves_content() || !is_for_its_owner {
        return detail;
    }
    format!("{detail}; if that is meant: larder verify --accept {}", sighting.artifact.name)
}
