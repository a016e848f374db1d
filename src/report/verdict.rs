//! What a verification found.

use super::phrases::{self, moment, place as place_of};
use super::table::count;
use crate::size::Bytes;
use crate::verify::{AcceptedFile, Stray, Verdict};

/// How many files are listed that are trusted as first seen.
const MOST_TRUSTED: usize = 10;

/// Faults first, one a line, then the sums.
pub fn text(verdict: &Verdict, contents_were_read: bool) -> String {
    let mut out = String::new();
    for fault in &verdict.faults {
        let place = fault.path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
        out.push_str(&format!("fault: {}{place}: {}\n", fault.artifact, fault.detail));
        if let Some(place) = place_of(fault) {
            out.push_str(&format!("       {place}\n"));
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
    out.push_str(&accepted(verdict));
    out.push_str(&trusted(verdict));
    out.push_str(&strays(&verdict.strays));
    if verdict.interrupted {
        out.push_str("The run was stopped before its end; what was read is remembered\n");
    }
    out
}

fn sums(verdict: &Verdict, contents_were_read: bool) -> String {
    let files = count(verdict.files, "file");
    if !contents_were_read {
        return format!("{files} looked at, only headers read");
    }
    let mut out = format!("{files}, {} read: {} proven", Bytes(verdict.bytes_read), verdict.proven);
    if verdict.first_use > 0 {
        out.push_str(&format!(", {} trusted as first seen", verdict.first_use));
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

/// What is trusted from now on instead of what was before.
fn accepted(verdict: &Verdict) -> String {
    let one = |file: &AcceptedFile| {
        let AcceptedFile { artifact, path, before, now } = file;
        format!("accepted: {artifact}/{path}: sha256 {now} instead of {before}\n")
    };
    verdict.accepted.iter().map(one).collect()
}

/// Files that nothing but their first reading vouches for.
fn trusted(verdict: &Verdict) -> String {
    if verdict.trusted.is_empty() {
        return String::new();
    }
    let files = count(verdict.trusted.len(), "file");
    let mut out = format!("{files} trusted as first seen, because no record has a digest:\n");
    for file in verdict.trusted.iter().take(MOST_TRUSTED) {
        out.push_str(&format!("       {}/{}, since {}\n", file.artifact, file.path, moment(file.since)));
    }
    let more = verdict.trusted.len().saturating_sub(MOST_TRUSTED);
    if more > 0 {
        out.push_str(&format!("       and {more} more; --json names all\n"));
    }
    out
}

/// Files that no artifact has.
pub(super) fn strays(strays: &[Stray]) -> String {
    let mut out = String::new();
    for (what, own) in phrases::strays(strays) {
        out.push_str(&format!("{what}\n"));
        let shown = own.iter().take(phrases::STRAYS_SHOWN);
        shown.for_each(|stray| out.push_str(&format!("       {}\n", stray.place.display())));
        if let Some(more) = own.len().checked_sub(phrases::STRAYS_SHOWN).filter(|more| *more > 0) {
            out.push_str(&format!("       and {more} more; all of them with: larder verify --json\n"));
        }
    }
    out
}
