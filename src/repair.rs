//! Repairs: of files that are known to be wrong in places, only these places are fetched.
//!
//! [`select`] takes out of a plan what mends, and turns fetching a whole file into a [`Patch`] where the
//! wrong chunks and their right digests are known. [`carry_out`] fetches the chunks from the nearest place that
//! has them, proves each, writes them, and proves the whole.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::artifact::{Found, Remote};
use crate::digest::{CHUNK_LEN, ChunkDigests, Sha256, chunk_range};
use crate::facts::{Facts, FactsError};
use crate::monitor::Monitor;
use crate::observe::{Proof, Sighting};
use crate::plan::{ArtifactPlan, Need, Obstacle, Origin, Plan, Step};
use crate::relpath::RelPath;
use crate::retry::RetryPolicy;
use crate::sources::Sources;
use crate::stores::{FileState, Stores};

mod donor;
mod patch;
mod told;

pub use patch::carry_out;
pub use told::{Told, ask};

/// What is wrong and can be mended, or cannot.
#[derive(Debug, Default, Serialize)]
pub struct Repair {
    /// Files of which only parts are fetched.
    pub patches: Vec<Patch>,
    /// Files that are fetched as a whole, and what cannot be mended.
    pub whole: Plan,
}

/// One file of which parts are replaced.
#[derive(Debug, Clone, Serialize)]
pub struct Patch {
    /// The artifact.
    pub artifact: String,
    /// Its store.
    pub store: String,
    /// The file.
    pub path: RelPath,
    /// Where it lies.
    pub place: PathBuf,
    /// Numbers of the wrong chunks.
    pub chunks: Vec<u64>,
    /// How many it has.
    pub of: u64,
    /// Bytes to fetch.
    pub bytes: u64,
    /// Where the bytes are, the nearest first.
    pub from: Vec<Donor>,
    /// The peer that says which chunks are wrong, where this machine does not know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told_by: Option<String>,
    #[serde(skip)]
    pub(crate) file: usize,
    #[serde(skip)]
    pub(crate) found: Found,
    #[serde(skip)]
    pub(crate) right: ChunkDigests,
    #[serde(skip)]
    pub(crate) content: Sha256,
}

/// Who has the right bytes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Donor {
    /// Another file on this machine, or on a drive.
    File {
        /// Artifact and path, or the drive.
        whose: String,
        /// The file.
        path: PathBuf,
    },
    /// Where it was published.
    Remote(#[serde(serialize_with = "as_text")] Remote),
}

/// Everything that carrying out a repair needs.
pub struct Means {
    /// The stores of this machine.
    pub stores: Arc<Stores>,
    /// Where bytes come from.
    pub sources: Arc<Sources>,
    /// Where is remembered what was measured.
    pub facts: Arc<Facts>,
    /// Who listens.
    pub monitor: Arc<dyn Monitor>,
    /// How passing errors are tried again.
    pub retry: RetryPolicy,
    /// Stops the run; it can be continued later.
    pub stop: CancellationToken,
    /// Seconds since 1970, for the facts.
    pub now: fn() -> i64,
}

/// What a repair did.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Files that are right again, proven as a whole.
    pub repaired: Vec<String>,
    /// Files that are not, and why.
    pub failures: Vec<Failure>,
    /// Files that are not because what a peer said of their chunks did not help; they are as they were.
    pub misled: Vec<Misled>,
    /// Bytes that came from elsewhere.
    pub moved_bytes: u64,
    /// Bytes that were taken from other places on this machine.
    pub reused_bytes: u64,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
}

/// One file that could not be repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Artifact and path.
    pub item: String,
    /// Why.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

/// One file of which a peer said which chunks are wrong, and that was of no help.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misled {
    /// Artifact and path.
    pub item: String,
    /// The artifact.
    #[serde(skip)]
    pub artifact: String,
    /// The peer.
    pub by: String,
    /// In which way it did not help.
    pub reason: String,
}

impl Repair {
    /// Whether nothing is known to be wrong.
    pub fn is_empty(&self) -> bool {
        self.patches.is_empty() && self.whole.artifacts.is_empty()
    }

    /// Whether there is anything that can be done.
    pub fn has_work(&self) -> bool {
        !self.patches.is_empty() || self.whole.has_steps()
    }

    /// What stands in the way of mending.
    pub fn obstacles(&self) -> impl Iterator<Item = (&str, &Obstacle)> {
        let entries = self.whole.artifacts.iter();
        entries.flat_map(|entry| entry.obstacles.iter().map(|obstacle| (entry.artifact.as_str(), obstacle)))
    }
}

/// Takes out of `plan`, which was made of `sightings`, what mends; files that are missing are not its business.
///
/// Where this machine does not know which parts of a file are wrong, what peers have `told` counts.
pub fn select(plan: Plan, sightings: &[Sighting<'_>], facts: &Facts, told: &Told) -> Result<Repair, FactsError> {
    let mut repair = Repair { patches: Vec::new(), whole: Plan { rooms: plan.rooms, ..Plan::default() } };
    let sightings: HashMap<&str, &Sighting<'_>> =
        sightings.iter().map(|sighting| (sighting.artifact.name.as_str(), sighting)).collect();
    for mut entry in plan.artifacts {
        let Some(sighting) = sightings.get(entry.artifact.as_str()) else { continue };
        let mut steps = Vec::new();
        for step in std::mem::take(&mut entry.steps) {
            match patch(&entry, &step, sighting, facts, told)? {
                Some(patch) => repair.patches.push(patch),
                None if mends(&step) => steps.push(step),
                None => {}
            }
        }
        if !steps.is_empty() {
            steps.push(Step::Publish { because: "its files are new".to_owned() });
        }
        let patched = |path: &RelPath| repair.patches.iter().any(|p| p.artifact == entry.artifact && p.path == *path);
        entry.set_aside.retain(|path| !patched(path));
        entry.steps = steps;
        entry.obstacles.retain(|obstacle| is_about_something_wrong(obstacle, sighting));
        if !entry.steps.is_empty() || !entry.obstacles.is_empty() {
            repair.whole.artifacts.push(entry);
        }
    }
    Ok(repair)
}

fn mends(step: &Step) -> bool {
    matches!(step, Step::Fetch { need: Need::Mend { .. }, .. } | Step::Reuse { need: Need::Mend { .. }, .. })
}

fn is_about_something_wrong(obstacle: &Obstacle, sighting: &Sighting<'_>) -> bool {
    let is_wrong = |file: usize| {
        let state = sighting.observed.files.get(file);
        matches!(sighting.proofs[file], Proof::Refuted(_))
            || matches!(state, Some(FileState::Wrong { .. } | FileState::Unreadable { .. }))
    };
    let is_meant = |file: usize| {
        let path = obstacle.path.as_ref();
        path.is_none_or(|path| path.as_str() == sighting.path_of(file).trim_start_matches('/'))
    };
    // What is about the whole artifact stands in the way of each of its files.
    (0..sighting.proofs.len()).any(|file| is_wrong(file) && is_meant(file))
}

/// The patch that does what `step` would do by fetching everything; `None` where that must be.
fn patch(
    entry: &ArtifactPlan,
    step: &Step,
    sighting: &Sighting<'_>,
    facts: &Facts,
    told: &Told,
) -> Result<Option<Patch>, FactsError> {
    let (file, from) = match step {
        Step::Fetch { file, from, need: Need::Mend { .. }, .. } => (*file, remotes(from)),
        Step::Reuse { file, from, or_from, need: Need::Mend { .. }, .. } => {
            (*file, nearby(from).into_iter().chain(remotes(or_from)).collect())
        }
        _ => return Ok(None),
    };
    let FileState::Present(found) = &sighting.observed.files[file] else { return Ok(None) };
    let told = told.of(&entry.artifact, file).filter(|word| word.right.content_len() == found.size);
    let wrong = match (address(found, facts)?, told, sighting.artifact.files[file].digests.sha256) {
        (Some(wrong), ..) => wrong,
        (None, Some(word), Some(content)) => word.about(content),
        _ => return Ok(None),
    };
    if from.is_empty() {
        return Ok(None);
    }
    let len = |chunk: &u64| {
        let range = chunk_range(*chunk, found.size);
        range.end - range.start
    };
    Ok(Some(Patch {
        artifact: entry.artifact.clone(),
        store: entry.store.clone(),
        path: sighting.artifact.files[file].path.clone(),
        place: found.path.clone(),
        bytes: wrong.chunks.iter().map(len).sum(),
        of: wrong.right.digests().len() as u64,
        chunks: wrong.chunks,
        from,
        told_by: wrong.told_by,
        file,
        found: found.clone(),
        right: wrong.right,
        content: wrong.content,
    }))
}

/// Which chunks of a file are wrong, and what they should be.
struct Wrong {
    chunks: Vec<u64>,
    right: ChunkDigests,
    content: Sha256,
    told_by: Option<String>,
}

/// Where `found` is wrong, as this machine knows it.
fn address(found: &Found, facts: &Facts) -> Result<Option<Wrong>, FactsError> {
    let Some(damage) = facts.damage(found)?.filter(|damage| !damage.ranges.is_empty()) else { return Ok(None) };
    let Some(content) = damage.content else { return Ok(None) };
    let right = facts.chunks(&content)?.filter(|chunks| chunks.content_len() == found.size);
    let Some(right) = right else { return Ok(None) };
    let mut chunks: Vec<u64> =
        damage.ranges.iter().flat_map(|range| range.start / CHUNK_LEN..range.end.div_ceil(CHUNK_LEN)).collect();
    chunks.dedup();
    Ok(Some(Wrong { chunks, right, content, told_by: None }))
}

/// Of a step that mends a file: its number, and where its content can be fetched.
fn remotes_of(step: &Step) -> Option<(usize, &[Remote])> {
    match step {
        Step::Fetch { file, from, need: Need::Mend { .. }, .. } => Some((*file, from)),
        Step::Reuse { file, or_from, need: Need::Mend { .. }, .. } => Some((*file, or_from)),
        _ => None,
    }
}

fn remotes(from: &[Remote]) -> Vec<Donor> {
    from.iter().cloned().map(Donor::Remote).collect()
}

fn nearby(from: &Origin) -> Option<Donor> {
    match from {
        Origin::Here { whose, path } => Some(Donor::File { whose: whose.clone(), path: path.clone() }),
        Origin::Drive { path } => Some(Donor::File { whose: "a drive".to_owned(), path: path.clone() }),
        // What arrives in the same run may come too late.
        Origin::Arriving { .. } => None,
    }
}

fn as_text<S: serde::Serializer>(remote: &Remote, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&remote.reference)
}
