//! The lab's machines side by side.

use crate::fleet::{Copies, Difference, Seen, copies};
use crate::report::table::{self, ago, count};
use crate::size::Bytes;

/// One line per machine, and an alarm for what only one of them has.
pub fn table(machines: &[Seen], now: i64, width: u16) -> String {
    let header = ["machine", "wanted", "present", "verified", "bytes", "oldest proof", "faults", "last seen"];
    let mut table = table::plain(width, &header);
    for seen in machines {
        let (report, totals) = (&seen.report, &seen.report.totals);
        table.add_row([
            report.machine.clone(),
            totals.artifacts.to_string(),
            totals.in_order.to_string(),
            report.verified().to_string(),
            Bytes(totals.here_bytes).to_string(),
            totals.proven_at.map_or_else(|| "never".to_owned(), |at| ago(at, now)),
            totals.faults.to_string(),
            ago(report.at, now),
        ]);
    }
    table::align_right(&mut table, &[1, 2, 3, 4, 6]);
    format!("{}\n{}", table::text(&table), alarms(&copies(machines)))
}

fn alarms(copies: &[Copies]) -> String {
    let mut out = String::new();
    for copies in copies.iter().filter(|copies| copies.is_alarming()) {
        let whose = match copies.machines.first() {
            Some(machine) => format!("is only on {machine}"),
            None => "is on no machine".to_owned(),
        };
        let files = match &copies.files[..] {
            [] => String::new(),
            [file] => format!(" ({file})"),
            [file, more @ ..] => format!(" ({file} and {} more)", more.len()),
        };
        out.push_str(&format!("wrong: {}{files} {whose}, and nobody else has it\n", copies.artifact));
    }
    if !out.is_empty() {
        out.push_str("hint: copy it to another machine with: larder copy --to MACHINE: NAME\n");
    }
    out
}

/// What two machines have differently.
pub fn differences(first: &str, second: &str, differences: &[Difference], width: u16) -> String {
    if differences.is_empty() {
        return format!("{first} and {second} have the same\n");
    }
    let mut table = table::plain(width, &["artifact", first, second]);
    for difference in differences {
        table.add_row([&difference.artifact, &difference.first, &difference.second]);
    }
    format!("{}\n{}\n", table::text(&table), count(differences.len(), "difference"))
}
