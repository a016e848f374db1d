//! What a verification found.

use std::ops::Range;

use super::table::count;
use crate::size::Bytes;
use crate::verify::{Stray, StrayKind, Verdict};

/// How many places of one file are listed.
const MOST_RANGES: usize = 8;
/// How many files of each kind that no artifact has are listed.
const MOST_STRAYS: usize = 10;

/// Faults first, one a line, then the sums.
pub fn text(verdict: &Verdict, contents_were_read: bool) -> String {
    let mut out = String::new();
    for fault in &verdict.faults {
        let place = fault.path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
        out.push_str(&format!("fault: {}{place}: {}\n", fault.artifact, fault.detail));
        if let Some(path) = &fault.place {
            out.push_str(&format!("       {}{}\n", path.display(), ranges(&fault.ranges)));
        }
    }
    out.push_str(&sums(verdict, contents_were_read));
    match verdict.faults.len() {
        0 => out.push_str(", no fault\n"),
        faults => {
            out.push_str(&format!(", {}\n", count(faults, "fault")));
            out.push_str(
                "hint: see what can be done with: larder plan; where only parts are wrong, with: larder repair\n",
            );
        }
    }
    out.push_str(&left_out(verdict));
    out.push_str(&strays(&verdict.strays));
    if verdict.interrupted {
        out.push_str("The run was stopped before its end; what was read is remembered\n");
    }
    out
}

/// Which bytes, first and last; the first few where there are many.
fn ranges(ranges: &[Range<u64>]) -> String {
    if ranges.is_empty() {
        return String::new();
    }
    let shown: Vec<String> =
        ranges.iter().take(MOST_RANGES).map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    let more = ranges.len().saturating_sub(MOST_RANGES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(", bytes {}{more}", shown.join(", "))
}

fn sums(verdict: &Verdict, contents_were_read: bool) -> String {
    let files = count(verdict.files, "file");
    if !contents_were_read {
        return format!("{files} looked at, only headers read");
    }
    let mut out = format!("{files}, {} read: {} proven", Bytes(verdict.bytes_read), verdict.proven);
    if verdict.first_use > 0 {
        out.push_str(&format!(", {} trusted as first seen (no record has their digest)", verdict.first_use));
    }
    if verdict.fresh > 0 {
        out.push_str(&format!(", {} read not long ago", verdict.fresh));
    }
    out
}

/// What was not read, and what that means.
fn left_out(verdict: &Verdict) -> String {
    let mut out = String::new();
    if verdict.changing > 0 {
        let files = count(verdict.changing, "file");
        out.push_str(&format!("{files} changed while read, and will be read again next time\n"));
    }
    if verdict.unread > 0 && !verdict.interrupted {
        let files = count(verdict.unread, "file");
        out.push_str(&format!("{files} left for the next run: {} to read\n", Bytes(verdict.unread_bytes)));
    }
    if verdict.overdue > 0 && !verdict.interrupted {
        let files = count(verdict.overdue, "file");
        out.push_str(&format!("hint: {files} not read within --max-age; if that stays so, the budget is too small\n"));
    }
    out
}

fn strays(strays: &[Stray]) -> String {
    let mut out = String::new();
    let kinds = [
        (StrayKind::Leftover, "left by stopped downloads of other programs"),
        (StrayKind::Foreign, "that no artifact has"),
    ];
    for (kind, what) in kinds {
        let own: Vec<&Stray> = strays.iter().filter(|stray| stray.kind == kind).collect();
        if own.is_empty() {
            continue;
        }
        let bytes = Bytes(own.iter().map(|stray| stray.bytes).sum());
        out.push_str(&format!("{} {what}: {bytes}\n", count(own.len(), "file")));
        let shown = own.iter().take(MOST_STRAYS);
        shown.for_each(|stray| out.push_str(&format!("       {}\n", stray.place.display())));
        if let Some(more) = own.len().checked_sub(MOST_STRAYS).filter(|more| *more > 0) {
            out.push_str(&format!("       and {more} more; all of them with: larder verify --json\n"));
        }
    }
    out
}
