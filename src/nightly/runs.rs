//! What verifications found, run by run, in one small file beside the facts.
//!
//! It is a cache like the facts: when it is deleted, the next run tells of every fault as new.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fsio::{self, FileLock, WriteOptions};
use crate::verify::{Fault, FaultKind, Verdict};

/// How many runs are remembered: more than a year of nights.
const REMEMBERED: usize = 400;
const VERSION: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(10);

/// How deep a verification looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// Names, links, sizes and headers.
    Quick,
    /// Contents.
    Full,
}

/// One verification that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// When it ended, seconds since 1970.
    pub at: i64,
    /// How deep it looked.
    pub depth: Depth,
    /// Files that were looked at.
    pub files: usize,
    /// Files whose content was read and is right.
    pub proven: usize,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Faults that it found.
    pub faults: usize,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
}

/// A fault that stands: seen by a run, and not seen to be gone since.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Standing {
    /// The artifact.
    pub artifact: String,
    /// The file, where it is about one.
    pub path: Option<String>,
    /// What kind of fault, as `verify` calls it.
    pub kind: String,
    /// In words.
    pub detail: String,
}

/// What a run changed: nothing, if both lists are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Faults that did not stand before.
    pub appeared: Vec<Standing>,
    /// Faults that stood before and are gone.
    pub gone: Vec<Standing>,
}

impl Change {
    /// Whether the state is what it was.
    pub fn is_none(&self) -> bool {
        self.appeared.is_empty() && self.gone.is_empty()
    }
}

/// The runs that are remembered, and the faults that stand.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Runs {
    version: u32,
    /// The oldest first.
    runs: Vec<Run>,
    standing: BTreeSet<Standing>,
    /// When each artifact was last read as a whole and nothing was wrong, seconds since 1970.
    #[serde(default)]
    good: BTreeMap<String, i64>,
}

impl Runs {
    /// Reads what is remembered in the folder `state`.
    ///
    /// Nothing is remembered where there is no file, or one that this larder cannot read.
    pub fn read(state: &Path) -> io::Result<Self> {
        let text = match fs_err::read(place(state)) {
            Ok(text) => text,
            Err(error) if fsio::is_absent(&error) => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let known = serde_json::from_slice::<Self>(&text).ok().filter(|runs| runs.version == VERSION);
        Ok(known.unwrap_or_default())
    }

    /// Adds one run in the folder `state`, and says what it changed.
    ///
    /// `covered` are the artifacts it looked at: what is known of others stays. Several larders may do this
    /// at once. Fails where the file cannot be locked, read or written; nothing is changed then.
    pub fn remember(state: &Path, run: Run, faults: &[Fault], covered: &BTreeSet<&str>) -> io::Result<Change> {
        let _lock = FileLock::acquire(&state.join("runs.lock"), None, PATIENCE, || ())?;
        let mut runs = Self::read(state)?;
        let change = runs.add(run, faults, covered);
        let text = serde_json::to_vec_pretty(&runs).map_err(io::Error::other)?;
        fsio::write_atomic(&place(state), &text, &WriteOptions::default())?;
        Ok(change)
    }

    /// The runs, the last one first.
    pub fn latest_first(&self) -> Vec<Run> {
        self.runs.iter().rev().cloned().collect()
    }

    /// When all of `artifact` was last read and nothing was wrong with it, seconds since 1970.
    pub fn last_good(&self, artifact: &str) -> Option<i64> {
        self.good.get(artifact).copied()
    }

    /// The faults that stand.
    pub fn standing(&self) -> impl Iterator<Item = &Standing> {
        self.standing.iter()
    }

    fn add(&mut self, run: Run, faults: &[Fault], covered: &BTreeSet<&str>) -> Change {
        let now: BTreeSet<Standing> = faults.iter().map(Standing::of).collect();
        let key = |one: &Standing| (one.artifact.clone(), one.path.clone(), one.kind.clone());
        let keys: BTreeSet<_> = now.iter().map(key).collect();
        let known: BTreeSet<_> = self.standing.iter().map(key).collect();
        let is_gone = |one: &Standing| {
            covered.contains(one.artifact.as_str()) && run.can_see_the_end_of(one) && !keys.contains(&key(one))
        };
        let appeared: Vec<Standing> = now.iter().filter(|one| !known.contains(&key(one))).cloned().collect();
        let (gone, mut standing): (Vec<_>, BTreeSet<_>) = {
            let (gone, rest): (Vec<_>, Vec<_>) = self.standing.iter().cloned().partition(is_gone);
            (gone, rest.into_iter().filter(|one| !keys.contains(&key(one))).collect())
        };
        // The newest words for a fault are kept: its numbers may have changed.
        standing.extend(now);
        self.standing = standing;
        if run.depth == Depth::Full && !run.interrupted {
            let is_good = |artifact: &&&str| faults.iter().all(|fault| fault.artifact != **artifact);
            self.good.extend(covered.iter().filter(is_good).map(|artifact| ((*artifact).to_owned(), run.at)));
        }
        self.version = VERSION;
        self.runs.push(run);
        let superfluous = self.runs.len().saturating_sub(REMEMBERED);
        self.runs.drain(..superfluous);
        Change { appeared, gone }
    }
}

impl Run {
    /// What a verification amounts to.
    pub fn of(verdict: &Verdict, depth: Depth, at: i64) -> Self {
        Self {
            at,
            depth,
            files: verdict.files,
            proven: verdict.proven,
            bytes_read: verdict.bytes_read,
            faults: verdict.faults.len(),
            interrupted: verdict.interrupted,
        }
    }

    /// Whether not having seen a fault in this run means that it is gone.
    fn can_see_the_end_of(&self, fault: &Standing) -> bool {
        let needs_reading = FaultKind::OF_CONTENT.map(kind_name).contains(&fault.kind);
        !self.interrupted && (self.depth == Depth::Full || !needs_reading)
    }
}

impl Standing {
    fn of(fault: &Fault) -> Self {
        Self {
            artifact: fault.artifact.clone(),
            path: fault.path.clone(),
            kind: kind_name(fault.kind),
            detail: fault.detail.clone(),
        }
    }
}

/// The kind as it is written in JSON.
fn kind_name(kind: FaultKind) -> String {
    serde_json::to_value(kind).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn place(state: &Path) -> PathBuf {
    state.join("runs.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(artifact: &str, kind: FaultKind) -> Fault {
        Fault {
            artifact: artifact.into(),
            path: Some("f".into()),
            kind,
            detail: "wrong".into(),
            place: None,
            ranges: Vec::new(),
        }
    }

    fn run(depth: Depth, interrupted: bool) -> Run {
        Run { interrupted, ..Run::of(&Verdict::default(), depth, 7) }
    }

    fn names(list: &[Standing]) -> Vec<&str> {
        list.iter().map(|one| one.artifact.as_str()).collect()
    }

    #[test]
    fn only_a_run_that_could_see_a_fault_ends_it() {
        let mut runs = Runs::default();
        let both = BTreeSet::from(["a", "b"]);
        let first =
            runs.add(run(Depth::Full, false), &[fault("a", FaultKind::Corrupt), fault("b", FaultKind::Missing)], &both);
        assert_eq!((names(&first.appeared), names(&first.gone)), (vec!["a", "b"], vec![]));
        assert!(runs.add(run(Depth::Full, true), &[], &both).is_none(), "it was stopped");
        assert!(runs.add(run(Depth::Full, false), &[], &BTreeSet::new()).is_none(), "it looked at others");
        let quick = runs.add(run(Depth::Quick, false), &[], &both);
        assert_eq!(names(&quick.gone), ["b"], "no content was read");
        assert_eq!(names(&runs.add(run(Depth::Full, false), &[], &both).gone), ["a"]);
        assert_eq!((runs.runs.len(), runs.standing.len()), (5, 0));
    }

    #[test]
    fn the_same_fault_in_other_words_is_no_change_and_old_runs_are_forgotten() {
        let mut runs = Runs::default();
        let covered = BTreeSet::from(["a"]);
        runs.add(run(Depth::Full, false), &[fault("a", FaultKind::Truncated)], &covered);
        let shorter = Fault { detail: "it has 3 bytes".into(), ..fault("a", FaultKind::Truncated) };
        for _ in 0..REMEMBERED {
            assert!(runs.add(run(Depth::Full, false), std::slice::from_ref(&shorter), &covered).is_none());
        }
        assert_eq!(runs.runs.len(), REMEMBERED);
        assert_eq!(runs.standing().map(|one| one.detail.as_str()).collect::<Vec<_>>(), ["it has 3 bytes"]);
    }
}
