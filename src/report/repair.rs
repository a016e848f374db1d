//! What a repair would do, and what it did.

use super::table::{self, count};
use crate::repair::{Donor, Outcome, Patch, Repair};
use crate::size::Bytes;

/// One row for each file of which only parts are fetched, then the sums.
pub fn text(repair: &Repair, width: u16) -> String {
    let mut out = String::new();
    if !repair.patches.is_empty() {
        let mut table = table::plain(width, &["file", "wrong", "", "from"]);
        for patch in &repair.patches {
            table.add_row(row(patch));
        }
        table::align_right(&mut table, &[2]);
        out.push_str(&table::text(&table));
        let bytes = repair.patches.iter().map(|patch| patch.bytes).sum();
        let files = count(repair.patches.len(), "file");
        out.push_str(&format!("\n  {files} to be mended in place with {}\n", Bytes(bytes)));
        for patch in &repair.patches {
            out.push_str(&word(patch));
        }
    }
    for (artifact, obstacle) in repair.obstacles() {
        let path = obstacle.path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
        out.push_str(&format!("cannot be mended: {artifact}{path}: {}\n", obstacle.refusal.reason));
        if let Some(hint) = &obstacle.refusal.hint {
            out.push_str(&format!("hint: {hint}\n"));
        }
    }
    out
}

/// Whose word the numbers of a patch are, where they are not this machine's.
fn word(patch: &Patch) -> String {
    let Some(by) = &patch.told_by else { return String::new() };
    let (artifact, path, size) = (&patch.artifact, &patch.path, Bytes(patch.found.size));
    format!("  {artifact}/{path}: {by} says which chunks; if that does not help, the whole is fetched, {size}\n")
}

fn row(patch: &Patch) -> [String; 4] {
    let from = match patch.from.first() {
        Some(Donor::File { whose, .. }) => whose.clone(),
        Some(Donor::Remote(remote)) => remote.reference.to_string(),
        None => "–".to_owned(),
    };
    let wrong =
        format!("{} of {}", patch.chunks.len(), count(usize::try_from(patch.of).unwrap_or(usize::MAX), "chunk"));
    [format!("{}/{}", patch.artifact, patch.path), wrong, Bytes(patch.bytes).to_string(), from]
}

/// What a repair did.
pub fn outcome_text(outcome: &Outcome) -> String {
    let mut out = format!("{} repaired and proven as a whole", count(outcome.repaired.len(), "file"));
    if outcome.moved_bytes > 0 {
        out.push_str(&format!(", {} fetched", Bytes(outcome.moved_bytes)));
    }
    if outcome.reused_bytes > 0 {
        out.push_str(&format!(", {} copied from other places on this machine", Bytes(outcome.reused_bytes)));
    }
    out.push('\n');
    for misled in &outcome.misled {
        let (item, by, reason) = (&misled.item, &misled.by, &misled.reason);
        out.push_str(&format!("what {by} said of the chunks of {item} did not help: {reason}\n"));
    }
    for failure in &outcome.failures {
        out.push_str(&format!("failed: {}: {}\n", failure.item, failure.reason));
        if let Some(hint) = &failure.hint {
            out.push_str(&format!("hint: {hint}\n"));
        }
    }
    if outcome.interrupted {
        out.push_str("Stopped; larder repair continues from here\n");
    }
    out
}
