//! What smoke tests found.

use super::table::count;
use crate::smoke::{Check, Level, Outcome, Verdict};

/// How many details of one check are printed; `--json` has all.
const MAX_DETAILS: usize = 5;

/// One line for each artifact, below it what is not as it must be, then the sums.
pub fn text(verdicts: &[Verdict], level: Level, interrupted: bool) -> String {
    let width = verdicts.iter().map(|verdict| verdict.artifact.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for verdict in verdicts {
        let passed = verdict.checks.iter().filter(|check| check.outcome == Outcome::Passed).count();
        let sums = match verdict.outcome {
            Outcome::Passed => count(passed, "check"),
            _ => format!("{passed} of {} passed", count(verdict.checks.len(), "check")),
        };
        out.push_str(&format!("{:width$}  {:15}  {sums}\n", verdict.artifact, word(verdict.outcome)));
        verdict.checks.iter().filter(|check| check.outcome != Outcome::Passed).for_each(|check| add(&mut out, check));
        for output in &verdict.outputs {
            out.push_str(&format!("  made: {} ({})\n", output.path.display(), output.title));
        }
    }
    out.push_str(&sums(verdicts, level));
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
    out.push_str(&format!("  {}: {}: {}", check.name, word(check.outcome), check.measured));
    if check.outcome == Outcome::Failed {
        out.push_str(&format!("; right is: {} ({})", check.threshold, check.basis));
    }
    out.push('\n');
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

fn sums(verdicts: &[Verdict], level: Level) -> String {
    let of = |outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    let mut out =
        format!("{} at level {}: {} passed", count(verdicts.len(), "artifact"), level.name(), of(Outcome::Passed));
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
