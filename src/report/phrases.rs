//! How reports of every format say the same things.

use std::ops::Range;

use jiff::Timestamp;

use crate::facts::{Depth, Episode, Run};
use crate::report::overview::{Overview, ReportedArtifact};
use crate::report::status::ArtifactStatus;
use crate::report::table::{ago, count};
use crate::size::Bytes;
use crate::verify::{Fault, Stray, StrayKind};

/// How many runs a report shows.
pub(super) const RUNS_SHOWN: usize = 30;
/// How many files' histories a report shows.
pub(super) const HISTORIES_SHOWN: usize = 30;
/// How many places of one file are listed.
const MOST_RANGES: usize = 8;
/// How many files are named that are trusted as first seen.
const MOST_TRUSTED: usize = 10;

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

fn fault_text(fault: &Fault) -> String {
    let place = fault.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
    format!("{place}{}", fault.detail)
}

/// When all of the artifact, or else any of it, was last read and right.
pub(super) fn last_good(artifact: &ReportedArtifact, now: i64) -> String {
    match (artifact.status.proven_at.or(artifact.last_good), artifact.part_good) {
        (Some(at), _) => ago(at, now),
        (None, Some(at)) => format!("a part, {}", ago(at, now)),
        (None, None) => "never".to_owned(),
    }
}

/// Where a fault lies: the place, which bytes, and when that was read where it is remembered.
pub(super) fn place(fault: &Fault) -> Option<String> {
    let place = fault.place.as_ref()?;
    let read = fault.remembered.map(|at| format!(", read {}", moment(at))).unwrap_or_default();
    Some(format!("{}{}{read}", place.display(), ranges(&fault.ranges)))
}

/// Which bytes, first and last; the first few where there are many.
pub(super) fn ranges(ranges: &[Range<u64>]) -> String {
    if ranges.is_empty() {
        return String::new();
    }
    let shown: Vec<String> =
        ranges.iter().take(MOST_RANGES).map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    let more = ranges.len().saturating_sub(MOST_RANGES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(", bytes {}{more}", shown.join(", "))
}

/// Of each kind of file that no artifact has: how many there are and how big, and the places of the first.
pub(super) fn strays(strays: &[Stray]) -> Vec<(String, Vec<&Stray>)> {
    let kinds = [
        (StrayKind::Leftover, "left by stopped downloads of other programs"),
        (StrayKind::Foreign, "that no artifact has"),
    ];
    let of = |(kind, what): (StrayKind, &str)| {
        let own: Vec<&Stray> = strays.iter().filter(|stray| stray.kind == kind).collect();
        let bytes = Bytes(own.iter().map(|stray| stray.bytes).sum());
        (!own.is_empty()).then(|| (format!("{} {what}: {bytes}", count(own.len(), "file")), own))
    };
    kinds.into_iter().filter_map(of).collect()
}

/// How many places of files that no artifact has are shown.
pub(super) const STRAYS_SHOWN: usize = 10;

/// Files that nothing but their first reading vouches for, by name; empty where there are none.
pub(super) fn trusted(overview: &Overview) -> String {
    let files = &overview.trusted;
    if files.is_empty() {
        return String::new();
    }
    let names: Vec<String> =
        files.iter().take(MOST_TRUSTED).map(|file| format!("{}/{}", file.artifact, file.path)).collect();
    let more = files.len().saturating_sub(MOST_TRUSTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let (all, are) = (count(files.len(), "file"), if files.len() == 1 { "is" } else { "are" });
    format!("{all} {are} trusted as first seen, because no record has a digest: {}{more}.", names.join(", "))
}

/// One episode of a file's history.
pub(super) fn episode(episode: &Episode) -> String {
    let detail = if episode.detail.is_empty() { String::new() } else { format!(": {}", episode.detail) };
    let times = if episode.times > 1 { format!(" ({} times)", episode.times) } else { String::new() };
    format!("{}{times}{detail}", episode.event)
}

/// When an episode was.
pub(super) fn when(episode: &Episode) -> String {
    if episode.times > 1 {
        format!("{} to {}", moment(episode.first), moment(episode.last))
    } else {
        moment(episode.last)
    }
}

/// What a run was.
pub(super) fn run(run: &Run) -> String {
    let depth = match run.depth {
        Depth::Quick => "quick",
        Depth::Full => "full",
    };
    let left = if run.unread > 0 { format!(", {} left", Bytes(run.unread_bytes)) } else { String::new() };
    format!("{depth}{}{left}", if run.interrupted { ", stopped" } else { "" })
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
