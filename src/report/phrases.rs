//! How reports of every format say the same things.

use jiff::Timestamp;

use crate::facts::{Depth, Run};
use crate::report::overview::{Overview, ReportedArtifact};
use crate::report::status::ArtifactStatus;
use crate::report::table::{ago, count};
use crate::size::Bytes;

/// How many runs a report shows.
pub(super) const RUNS_SHOWN: usize = 30;

/// The state of everything in one or two sentences.
pub(super) fn summary(overview: &Overview) -> String {
    let totals = &overview.totals;
    let wrong = totals.artifacts - totals.in_order;
    let verdict = match (wrong, totals.artifacts) {
        (0, 0) => "No artifact is wanted here.".to_owned(),
        (0, 1) => "The one artifact is in order.".to_owned(),
        (0, all) => format!("All {all} artifacts are in order."),
        (1, all) => format!("1 of {} is not in order.", count(all, "artifact")),
        (wrong, all) => format!("{wrong} of {all} artifacts are not in order."),
    };
    let faults = overview.complaints().filter(|finding| finding.state == crate::conditions::State::Fault).count();
    let besides = match faults {
        0 => String::new(),
        faults => format!(
            " On the machine itself {} found.",
            if faults == 1 { "1 fault was".to_owned() } else { format!("{faults} faults were") }
        ),
    };
    let proven = match totals.proven_at {
        Some(at) => format!(" All of what is here was read and right since {}.", moment(at)),
        None if totals.here_bytes > 0 => " Not all of what is here is proven.".to_owned(),
        None => String::new(),
    };
    format!("{verdict}{besides}{proven}")
}

/// Files that are here, of those that must be.
pub(super) fn files(status: &ArtifactStatus) -> String {
    let all = if status.locked { status.files.to_string() } else { "?".to_owned() };
    format!("{} of {all}", status.here_files)
}

/// The state of one artifact in words.
pub(super) fn state(artifact: &ReportedArtifact) -> String {
    let status = &artifact.status;
    match status.faults.as_slice() {
        _ if !status.locked && status.here_files == 0 => "not locked yet".to_owned(),
        [] if !artifact.is_in_order() => "incomplete".to_owned(),
        [] if status.proven_at.is_some() => "in order".to_owned(),
        [] => "in order, not read yet".to_owned(),
        [fault] => fault_text(fault),
        [fault, more @ ..] => format!("{}, and {}", fault_text(fault), count(more.len(), "more fault")),
    }
}

fn fault_text(fault: &crate::verify::Fault) -> String {
    let place = fault.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
    format!("{place}{}", fault.detail)
}

/// When all of the artifact, or else any of it, was last read and right.
pub(super) fn last_good(artifact: &ReportedArtifact, now: i64) -> String {
    match (artifact.status.proven_at, artifact.last_good) {
        (Some(at), _) => ago(at, now),
        (None, Some(at)) if artifact.is_in_order() => format!("a part, {}", ago(at, now)),
        (None, Some(at)) => ago(at, now),
        (None, None) => "never".to_owned(),
    }
}

/// What a run was.
pub(super) fn run(run: &Run) -> String {
    let depth = match run.depth {
        Depth::Quick => "quick",
        Depth::Full => "full",
    };
    format!("{depth}{}", if run.interrupted { ", stopped" } else { "" })
}

/// A moment for people everywhere: `2026-11-23 19:21 UTC`.
pub(super) fn moment(at: i64) -> String {
    Timestamp::from_second(at)
        .map_or_else(|_| format!("second {at}"), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

/// The same for machines: `2026-11-23T19:21:05Z`.
pub(super) fn machine_moment(at: i64) -> String {
    Timestamp::from_second(at).map_or_else(|_| String::new(), |time| time.to_string())
}

/// `25.7 GiB of 26.0 GiB`, or one of them where both are the same.
pub(super) fn bytes_of(here: u64, wanted: u64) -> String {
    if here >= wanted { Bytes(here).to_string() } else { format!("{} of {}", Bytes(here), Bytes(wanted)) }
}
