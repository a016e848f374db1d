//! What smoke tests found.

use super::table::count;
use crate::smoke::{Check, Level, Outcome, Taken, Verdict};

/// How many details of one check are printed; `--json` has all.
const MAX_DETAILS: usize = 5;

/// One line for each artifact, below it what was computed and what is not as it must be, then the sums. `level` is the
/// one that was asked for; none where each artifact was tried as far as it can be.
pub fn text(verdicts: &[Verdict], level: Option<Level>, interrupted: bool) -> String {
    let width = verdicts.iter().map(|verdict| verdict.artifact.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for verdict in verdicts {
        let passed = verdict.checks.iter().filter(|check| check.outcome == Outcome::Passed).count();
        let sums = match verdict.outcome {
            Outcome::Passed => count(passed, "check"),
            _ => format!("{passed} of {} passed", count(verdict.checks.len(), "check")),
        };
        let (artifact, level) = (&verdict.artifact, verdict.level.name());
        out.push_str(&format!("{artifact:width$}  {:15}  {level:9}  {sums}\n", word(verdict.outcome)));
        // What headers say is alike for all, and told where it is wrong; `--json` and the page have all of it.
        let is_told = |check: &&Check| check.outcome != Outcome::Passed || check.level > Level::Structure;
        verdict.checks.iter().filter(is_told).for_each(|check| add(&mut out, check));
        if !verdict.taken.is_empty() {
            out.push_str(&format!("  with {}\n", Taken::words(&verdict.taken)));
        }
        for output in &verdict.outputs {
            out.push_str(&format!("  made: {} ({})\n", output.path.display(), output.title));
        }
    }
    out.push_str(&sums(verdicts, level, interrupted));
    if interrupted {
        out.push_str("The run was stopped before its end\n");
    }
    out
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::EnvironmentFault => "machine's fault",
        Outcome::NotPossible => "not possible",
    }
}

fn add(out: &mut String, check: &Check) {
    let Check { name, measured, threshold, basis, .. } = check;
    let word = word(check.outcome);
    out.push_str(&format!("  {name}: {word}: {measured}; right is: {threshold} ({basis})\n"));
    if check.outcome == Outcome::NotPossible {
        return;
    }
    for detail in check.details.iter().take(MAX_DETAILS) {
        out.push_str(&format!("    {detail}\n"));
    }
    if check.details.len() > MAX_DETAILS {
        out.push_str(&format!("    and {} more; all of them with --json\n", check.details.len() - MAX_DETAILS));
    }
}

fn sums(verdicts: &[Verdict], level: Option<Level>, interrupted: bool) -> String {
    let of = |outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    let at =
        level.map_or_else(|| "as far as they can be tried".to_owned(), |level| format!("at level {}", level.name()));
    let mut out = format!("{} {at}: {} passed", count(verdicts.len(), "artifact"), of(Outcome::Passed));
    let by_header = |verdict: &&Verdict| verdict.outcome == Outcome::Passed && verdict.level == Level::Structure;
    let by_header = verdicts.iter().filter(by_header).count();
    // Where the run was stopped, others may not have come to their turn.
    if level.is_none() && by_header > 0 && !interrupted {
        out.push_str(&format!(" ({by_header} by structure alone: larder has no runner for them)"));
    }
    for (outcome, what) in [
        (Outcome::Failed, "failed"),
        (Outcome::EnvironmentFault, "could not run on this machine"),
        (Outcome::NotPossible, "not possible here"),
    ] {
        if of(outcome) > 0 {
            out.push_str(&format!(", {} {what}", of(outcome)));
        }
    }
    out.push('\n');
    if of(Outcome::Failed) > 0 {
        out.push_str(
            "hint: read the contents with: larder verify --full; fetch again with: larder plan, larder apply\n",
        );
    }
    out
}
