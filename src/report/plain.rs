//! The overview for a terminal, a log or a mail.

use crate::report::overview::Overview;
use crate::report::phrases;
use crate::report::table::{self, count};
use crate::report::verdict;
use crate::size::Bytes;

/// How many files' histories are shown on a terminal, and how much of each.
const HISTORIES_SHOWN: usize = 5;
const EPISODES_SHOWN: usize = 5;

/// Faults first, then a row per artifact, then what is remembered of the last runs.
pub fn text(overview: &Overview, width: u16) -> String {
    let profile = overview.profile.as_ref().map(|profile| format!(" · profile {profile}")).unwrap_or_default();
    let mut out =
        format!("{}{profile} · {}\n{}\n", overview.machine, phrases::moment(overview.at), phrases::summary(overview));
    if overview.totals.faults > 0 {
        out.push('\n');
    }
    for fault in overview.faults() {
        let path = fault.path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
        out.push_str(&format!("fault: {}{path}: {}\n", fault.artifact, fault.detail));
        if let Some(place) = phrases::place(fault) {
            out.push_str(&format!("       {place}\n"));
        }
    }
    for finding in overview.complaints() {
        let word = if finding.state == crate::conditions::State::Fault { "wrong" } else { "unknown" };
        out.push_str(&format!("{word}: {}: {}\n", finding.subject, finding.what));
    }
    out.push('\n');
    out.push_str(&artifacts(overview, width));
    if !overview.trusted.is_empty() {
        out.push_str(&format!("\n{}\n", phrases::trusted(overview)));
    }
    if !overview.strays.is_empty() {
        out.push_str(&format!("\n{}", verdict::strays(&overview.strays)));
    }
    out.push_str(&runs(overview, width));
    out.push_str(&histories(overview));
    out
}

/// What happened to the last files to which anything happened.
fn histories(overview: &Overview) -> String {
    let mut out = String::new();
    for history in overview.histories.iter().take(HISTORIES_SHOWN) {
        out.push_str(&format!("\n{}\n", history.place.display()));
        for episode in history.episodes.iter().take(EPISODES_SHOWN) {
            out.push_str(&format!("  {}: {}\n", phrases::when(episode), phrases::episode(episode)));
        }
    }
    out
}

fn artifacts(overview: &Overview, width: u16) -> String {
    let mut table = table::plain(width, &["artifact", "store", "files", "here", "state", "last seen good"]);
    for artifact in &overview.artifacts {
        let status = &artifact.status;
        let faults = status.faults.len();
        // The faults stand above, in full.
        let state = if faults > 0 { count(faults, "fault") } else { phrases::state(artifact) };
        table.add_row([
            status.artifact.clone(),
            status.store.clone(),
            phrases::files(status),
            Bytes(status.here_bytes).to_string(),
            state,
            phrases::last_good(artifact, overview.at),
        ]);
    }
    table::align_right(&mut table, &[2, 3]);
    table::text(&table)
}

fn runs(overview: &Overview, width: u16) -> String {
    if overview.runs.is_empty() {
        return "\nNo verification is remembered; run one with: larder verify\n".to_owned();
    }
    let mut table = table::plain(width, &["verified", "how", "files", "read", "faults"]);
    for run in overview.runs.iter().take(7) {
        table.add_row([
            phrases::moment(run.at),
            phrases::run(run),
            run.files.to_string(),
            Bytes(run.bytes_read).to_string(),
            run.faults.to_string(),
        ]);
    }
    table::align_right(&mut table, &[2, 3, 4]);
    format!("\n{}", table::text(&table))
}
