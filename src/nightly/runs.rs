//! What a verification changes of what is known: which faults are new, and which are gone.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::facts::{Depth, Facts, FactsError, Run, Standing};
use crate::verify::{Fault, FaultKind, Verdict};

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

/// Adds one run to the facts, and says what it changed.
///
/// `covered` are the artifacts it looked at: what is known of others stays. Several larders may do this at once.
/// Fails where the facts cannot be read or written; nothing is changed then.
pub fn remember(facts: &Facts, run: &Run, faults: &[Fault], covered: &BTreeSet<&str>) -> Result<Change, FactsError> {
    let is_good = |artifact: &&str| faults.iter().all(|fault| fault.artifact != *artifact);
    let has_read = run.depth == Depth::Full && !run.interrupted;
    let good: Vec<&str> = covered.iter().copied().filter(|artifact| has_read && is_good(artifact)).collect();
    facts.remember_run(run, &good, |before| settle(run, before, faults, covered))
}

/// What a verification amounts to.
pub fn run_of(verdict: &Verdict, depth: Depth, at: i64) -> Run {
    Run {
        at,
        depth,
        files: verdict.files,
        proven: verdict.proven,
        bytes_read: verdict.bytes_read,
        faults: verdict.faults.len(),
        interrupted: verdict.interrupted,
    }
}

/// What stands after `run`, of what stood `before` it and what it found.
fn settle(
    run: &Run,
    before: &BTreeSet<Standing>,
    faults: &[Fault],
    covered: &BTreeSet<&str>,
) -> (BTreeSet<Standing>, Change) {
    let now: BTreeSet<Standing> = faults.iter().map(standing).collect();
    let key = |one: &Standing| (one.artifact.clone(), one.path.clone(), one.kind.clone());
    let keys: BTreeSet<_> = now.iter().map(key).collect();
    let known: BTreeSet<_> = before.iter().map(key).collect();
    let is_gone = |one: &Standing| {
        covered.contains(one.artifact.as_str()) && can_see_the_end_of(run, one) && !keys.contains(&key(one))
    };
    let appeared: Vec<Standing> = now.iter().filter(|one| !known.contains(&key(one))).cloned().collect();
    let (gone, rest): (Vec<_>, Vec<_>) = before.iter().cloned().partition(is_gone);
    // The newest words for a fault are kept: its numbers may have changed.
    let mut stand: BTreeSet<Standing> = rest.into_iter().filter(|one| !keys.contains(&key(one))).collect();
    stand.extend(now);
    (stand, Change { appeared, gone })
}

/// Whether not having seen a fault in `run` means that it is gone.
fn can_see_the_end_of(run: &Run, fault: &Standing) -> bool {
    let needs_reading = FaultKind::OF_CONTENT.map(FaultKind::name).contains(&fault.kind.as_str());
    !run.interrupted && (run.depth == Depth::Full || !needs_reading)
}

fn standing(fault: &Fault) -> Standing {
    Standing {
        artifact: fault.artifact.clone(),
        path: fault.path.clone(),
        kind: fault.kind.name().to_owned(),
        detail: fault.detail.clone(),
    }
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
        Run { interrupted, ..run_of(&Verdict::default(), depth, 7) }
    }

    fn add(facts: &Facts, run: Run, faults: &[Fault], covered: &BTreeSet<&str>) -> Change {
        remember(facts, &run, faults, covered).unwrap()
    }

    fn names(list: &[Standing]) -> Vec<&str> {
        list.iter().map(|one| one.artifact.as_str()).collect()
    }

    #[test]
    fn only_a_run_that_could_see_a_fault_ends_it() {
        let facts = Facts::in_memory().unwrap();
        let both = BTreeSet::from(["a", "b"]);
        let first = add(
            &facts,
            run(Depth::Full, false),
            &[fault("a", FaultKind::Corrupt), fault("b", FaultKind::Missing)],
            &both,
        );
        assert_eq!((names(&first.appeared), names(&first.gone)), (vec!["a", "b"], vec![]));
        assert!(add(&facts, run(Depth::Full, true), &[], &both).is_none(), "it was stopped");
        assert!(add(&facts, run(Depth::Full, false), &[], &BTreeSet::new()).is_none(), "it looked at others");
        let quick = add(&facts, run(Depth::Quick, false), &[], &both);
        assert_eq!(names(&quick.gone), ["b"], "no content was read");
        assert_eq!(names(&add(&facts, run(Depth::Full, false), &[], &both).gone), ["a"]);
        let runs = facts.runs().unwrap();
        assert_eq!((runs.latest_first().len(), runs.standing().count()), (5, 0));
        assert_eq!(runs.last_good("a"), Some(7));
    }

    #[test]
    fn the_same_fault_in_other_words_is_no_change_and_old_runs_are_forgotten() {
        let facts = Facts::in_memory().unwrap();
        let covered = BTreeSet::from(["a"]);
        add(&facts, run(Depth::Full, false), &[fault("a", FaultKind::Truncated)], &covered);
        let shorter = Fault { detail: "it has 3 bytes".into(), ..fault("a", FaultKind::Truncated) };
        for _ in 0..400 {
            assert!(add(&facts, run(Depth::Full, false), std::slice::from_ref(&shorter), &covered).is_none());
        }
        let runs = facts.runs().unwrap();
        assert_eq!(runs.latest_first().len(), 400);
        assert_eq!(runs.standing().map(|one| one.detail.as_str()).collect::<Vec<_>>(), ["it has 3 bytes"]);
    }
}
