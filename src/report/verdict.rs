//! What a verification found.

use super::table::count;
use crate::size::Bytes;
use crate::verify::Verdict;

/// Faults first, one a line, then the sums.
pub fn text(verdict: &Verdict, contents_were_read: bool) -> String {
    let mut out = String::new();
    for fault in &verdict.faults {
        let place = fault.path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
        out.push_str(&format!("fault: {}{place}: {}\n", fault.artifact, fault.detail));
        if let Some(path) = &fault.place {
            out.push_str(&format!("       {}\n", path.display()));
        }
    }
    let files = count(verdict.files, "file");
    if contents_were_read {
        out.push_str(&format!("{files}, {} read: {} proven", Bytes(verdict.bytes_read), verdict.proven));
        if verdict.first_use > 0 {
            out.push_str(&format!(", {} trusted as first seen (no record has their digest)", verdict.first_use));
        }
    } else {
        out.push_str(&format!("{files} looked at, only headers read"));
    }
    match verdict.faults.len() {
        0 => out.push_str(", no fault\n"),
        faults => {
            out.push_str(&format!(", {}\n", count(faults, "fault")));
            out.push_str("hint: see what can be done with: larder plan\n");
        }
    }
    if verdict.interrupted {
        out.push_str("The run was stopped before its end; what was read is remembered\n");
    }
    out
}
