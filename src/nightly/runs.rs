//! What a verification changes of what is known: which faults are new, and which are gone.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::facts::{Depth, Facts, FactsError, Run, Standing};
use crate::verify::{Fault, FaultKind, Outlook, Verdict};

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

/// What a run knows beside its faults.
pub trait Known {
    /// Whether it looked at this artifact: what is known of others stays.
    fn covers(&self, artifact: &str) -> bool;
    /// Whether what was once wrong with the content of this file is over: nothing but its content tells.
    fn has_ended(&self, artifact: &str, path: &str) -> bool;
    /// The artifacts of which every file is known to be right after a run that ended at `at`, and since when.
    fn good(&self, at: i64) -> Vec<(&str, i64)>;
}

impl Known for Outlook<'_> {
    fn covers(&self, artifact: &str) -> bool {
        Outlook::covers(self, artifact)
    }

    fn has_ended(&self, artifact: &str, path: &str) -> bool {
        Outlook::has_ended(self, artifact, path)
    }

    fn good(&self, at: i64) -> Vec<(&str, i64)> {
        Outlook::good(self, at)
    }
}

/// Adds one run to the facts, and says what it changed. Several larders may do this at once.
///
/// Fails where the facts cannot be read or written; nothing is changed then.
pub fn remember(facts: &Facts, run: &Run, faults: &[Fault], known: &dyn Known) -> Result<Change, FactsError> {
    facts.remember_run(run, &known.good(run.at), |before| settle(run, before, faults, known))
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
        unread: verdict.unread,
        unread_bytes: verdict.unread_bytes,
        overdue: verdict.overdue,
        overdue_bytes: verdict.overdue_bytes,
    }
}

/// What stands after `run`, of what stood `before` it and what it found.
fn settle(run: &Run, before: &BTreeSet<Standing>, faults: &[Fault], known: &dyn Known) -> (BTreeSet<Standing>, Change) {
    let now: BTreeSet<Standing> = faults.iter().map(standing).collect();
    let key = |one: &Standing| (one.artifact.clone(), one.path.clone(), one.kind.clone());
    let keys: BTreeSet<_> = now.iter().map(key).collect();
    let stood: BTreeSet<_> = before.iter().map(key).collect();
    let file = |one: &Standing| (one.artifact.clone(), one.path.clone());
    let wrong_contents: BTreeSet<_> = now.iter().filter(|one| is_of_content(one)).map(file).collect();
    // The same content is wrong, and is called something else now: the newest words are kept.
    let is_renamed = |one: &Standing| is_of_content(one) && wrong_contents.contains(&file(one));
    let is_gone = |one: &Standing| {
        known.covers(&one.artifact) && !keys.contains(&key(one)) && !is_renamed(one) && is_over(run, one, known)
    };
    let appeared: Vec<Standing> = now.iter().filter(|one| !stood.contains(&key(one))).cloned().collect();
    let (gone, rest): (Vec<_>, Vec<_>) = before.iter().cloned().partition(is_gone);
    let still = rest.into_iter().filter(|one| !keys.contains(&key(one)) && !is_renamed(one));
    let mut stand: BTreeSet<Standing> = still.collect();
    stand.extend(now);
    (stand, Change { appeared, gone })
}

/// Whether not having seen a fault in `run` means that it is gone.
fn is_over(run: &Run, fault: &Standing, known: &dyn Known) -> bool {
    match &fault.path {
        Some(path) if is_of_content(fault) => known.has_ended(&fault.artifact, path),
        None if is_of_content(fault) => !run.interrupted && run.depth == Depth::Full,
        _ => !run.interrupted,
    }
}

/// Whether nothing but reading finds it, or finds it to be over.
fn is_of_content(fault: &Standing) -> bool {
    FaultKind::OF_CONTENT.map(FaultKind::name).contains(&fault.kind.as_str())
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
            remembered: None,
        }
    }

    fn run(depth: Depth, interrupted: bool) -> Run {
        Run { interrupted, ..run_of(&Verdict::default(), depth, 7) }
    }

    /// A run that looked at these artifacts, and read the contents of some of them and found them right.
    struct Seen {
        covered: &'static [&'static str],
        right: &'static [&'static str],
    }

    impl Known for Seen {
        fn covers(&self, artifact: &str) -> bool {
            self.covered.contains(&artifact)
        }

        fn has_ended(&self, artifact: &str, _: &str) -> bool {
            self.right.contains(&artifact)
        }

        fn good(&self, at: i64) -> Vec<(&str, i64)> {
            self.right.iter().map(|artifact| (*artifact, at)).collect()
        }
    }

    const BOTH: Seen = Seen { covered: &["a", "b"], right: &[] };

    fn add(facts: &Facts, run: Run, faults: &[Fault], known: &Seen) -> Change {
        remember(facts, &run, faults, known).unwrap()
    }

    fn names(list: &[Standing]) -> Vec<&str> {
        list.iter().map(|one| one.artifact.as_str()).collect()
    }

    #[test]
    fn only_a_run_that_could_see_a_fault_ends_it() {
        let facts = Facts::in_memory().unwrap();
        let both = [fault("a", FaultKind::Corrupt), fault("b", FaultKind::Missing)];
        let first = add(&facts, run(Depth::Full, false), &both, &BOTH);
        assert_eq!((names(&first.appeared), names(&first.gone)), (vec!["a", "b"], vec![]));
        assert!(add(&facts, run(Depth::Full, true), &[], &BOTH).is_none(), "it was stopped");
        let nobody = Seen { covered: &[], right: &[] };
        assert!(add(&facts, run(Depth::Full, false), &[], &nobody).is_none(), "it looked at others");
        let quick = add(&facts, run(Depth::Quick, false), &[], &BOTH);
        assert_eq!(names(&quick.gone), ["b"], "no content was read");
        assert!(add(&facts, run(Depth::Full, false), &[], &BOTH).is_none(), "the budget ended before that file");
        assert_eq!(facts.runs().unwrap().last_good("a"), None);
        let read = Seen { covered: &["a", "b"], right: &["a"] };
        assert_eq!(names(&add(&facts, run(Depth::Full, true), &[], &read).gone), ["a"], "it was read before the stop");
        let runs = facts.runs().unwrap();
        assert_eq!((runs.latest_first().len(), runs.standing().count()), (6, 0));
        assert_eq!(runs.last_good("a"), Some(7));
    }

    #[test]
    fn wrong_content_that_is_called_something_else_is_not_gone() {
        let facts = Facts::in_memory().unwrap();
        add(&facts, run(Depth::Full, false), &[fault("a", FaultKind::Rotted)], &BOTH);
        let change = add(&facts, run(Depth::Full, false), &[fault("a", FaultKind::Replaced)], &BOTH);
        assert_eq!((names(&change.appeared), names(&change.gone)), (vec!["a"], vec![]));
        let runs = facts.runs().unwrap();
        assert_eq!(runs.standing().map(|one| one.kind.as_str()).collect::<Vec<_>>(), ["replaced"]);
    }

    #[test]
    fn the_same_fault_in_other_words_is_no_change_and_old_runs_are_forgotten() {
        let facts = Facts::in_memory().unwrap();
        add(&facts, run(Depth::Full, false), &[fault("a", FaultKind::Truncated)], &BOTH);
        let shorter = Fault { detail: "it has 3 bytes".into(), ..fault("a", FaultKind::Truncated) };
        for _ in 0..400 {
            assert!(add(&facts, run(Depth::Full, false), std::slice::from_ref(&shorter), &BOTH).is_none());
        }
        let runs = facts.runs().unwrap();
        assert_eq!(runs.latest_first().len(), 400);
        assert_eq!(runs.standing().map(|one| one.detail.as_str()).collect::<Vec<_>>(), ["it has 3 bytes"]);
    }
}
