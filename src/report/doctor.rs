//! What the doctor found, area by area.

use crate::conditions::State;
use crate::doctor::Area;
use crate::report::table::count;

/// What does not hold, with reason and remedy; what holds, only with `everything`.
pub fn text(areas: &[Area], everything: bool) -> String {
    let mut out = String::new();
    for area in areas {
        let shown: Vec<_> = area.findings.iter().filter(|one| everything || one.state != State::Ok).collect();
        let hold = area.findings.iter().filter(|one| one.state == State::Ok).count();
        out.push_str(&format!("{}: {hold} of {} hold\n", area.name, area.findings.len()));
        for finding in shown {
            let word = match finding.state {
                State::Ok => "ok",
                State::Fault => "wrong",
                State::Unknown => "unknown",
            };
            out.push_str(&format!("  {word}: {}: {}\n", finding.subject, finding.what));
            if finding.state != State::Ok && !finding.why.is_empty() {
                out.push_str(&format!("    why it matters: {}\n", finding.why));
            }
            if !finding.fix.is_empty() {
                out.push_str(&format!("    to do: {}\n", finding.fix));
            }
        }
    }
    let faults = areas.iter().flat_map(|area| &area.findings).filter(|one| one.state == State::Fault).count();
    out.push_str(&match faults {
        0 => "\nNothing is wrong, as far as it could be looked at\n".to_owned(),
        faults => format!("\n{}\n", count(faults, "thing") + " wrong"),
    });
    out
}
