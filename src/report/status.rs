//! What is here, missing and wrong, by names, links and sizes.

use serde::Serialize;

use super::plan::Heading;
use super::table::{self, count};
use crate::conditions::{Finding, State};
use crate::observe::{Proof, Sighting};
use crate::size::Bytes;
use crate::verify::{Fault, Verdict};

/// One artifact's state.
#[derive(Debug, Clone, Serialize)]
pub struct ArtifactStatus {
    /// Name.
    pub artifact: String,
    /// Store.
    pub store: String,
    /// Files it must have, as far as they are known.
    pub files: usize,
    /// Files that are here.
    pub here_files: usize,
    /// Their bytes.
    pub here_bytes: u64,
    /// When its least recently proven file was proven, if all were.
    pub proven_at: Option<i64>,
    /// Files that are trusted as first seen, because no record has a digest of them.
    pub first_use: usize,
    /// Whether every file it must have is known.
    pub locked: bool,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// One state per sighting; `verdict` is the quick one of the same sightings.
pub fn statuses(sightings: &[Sighting<'_>], verdict: &Verdict) -> Vec<ArtifactStatus> {
    let mut faults = verdict.faults.iter().peekable();
    sightings
        .iter()
        .map(|sighting| {
            let name = &sighting.artifact.name;
            let mut own = Vec::new();
            // Faults come in the order of the sightings.
            while let Some(fault) = faults.next_if(|fault| fault.artifact == *name) {
                own.push(fault.clone());
            }
            status(sighting, own)
        })
        .collect()
}

fn status(sighting: &Sighting<'_>, faults: Vec<Fault>) -> ArtifactStatus {
    use crate::stores::FileState::{Held, Present, Staged};
    let artifact = sighting.artifact;
    let found: Vec<_> = sighting
        .observed
        .files
        .iter()
        .filter_map(|state| match state {
            Present(found) | Staged(found) => Some(found),
            _ => None,
        })
        .chain(&sighting.matches)
        .collect();
    let held = artifact.files.iter().zip(&sighting.observed.files).filter(|(_, state)| matches!(state, Held));
    let (held_files, held_bytes) =
        held.fold((0, 0), |(files, bytes), (file, _)| (files + 1, bytes + file.size.unwrap_or(0)));
    let proofs = sighting.proofs.iter().map(|proof| match proof {
        Proof::Proven { at } | Proof::FirstUse { at, .. } => Some(*at),
        _ => None,
    });
    ArtifactStatus {
        artifact: artifact.name.clone(),
        store: artifact.store.clone(),
        files: artifact.pattern.as_ref().map_or(artifact.files.len(), |pattern| pattern.count),
        here_files: found.len() + held_files,
        here_bytes: held_bytes + found.iter().map(|found| found.size).sum::<u64>(),
        proven_at: proofs.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().min()),
        first_use: sighting.proofs.iter().filter(|proof| matches!(proof, Proof::FirstUse { .. })).count(),
        locked: artifact.complete || artifact.pattern.is_some() || !artifact.source.has_upstream(),
        faults,
    }
}

/// A row per artifact, then the faults one by one.
pub fn text(statuses: &[ArtifactStatus], findings: &[Finding], heading: &Heading<'_>) -> String {
    let profile = heading.profile.map(|profile| format!(" · profile {profile}")).unwrap_or_default();
    let here: Bytes = statuses.iter().map(|status| Bytes(status.here_bytes)).sum();
    let mut out = format!("{}{profile} · {}, {here} here\n\n", heading.machine, count(statuses.len(), "artifact"));
    let mut table = table::plain(heading.width, &["artifact", "store", "files", "here", "state"]);
    for status in statuses {
        let files = if status.locked {
            format!("{} of {}", status.here_files, status.files)
        } else {
            format!("{} of ?", status.here_files)
        };
        table.add_row([
            status.artifact.clone(),
            status.store.clone(),
            files,
            Bytes(status.here_bytes).to_string(),
            state(status, heading.now),
        ]);
    }
    table::align_right(&mut table, &[2, 3]);
    out.push_str(&table::text(&table));
    out.push('\n');
    let wrong = statuses.iter().filter(|status| !is_in_order(status)).count();
    let in_order = statuses.len() - wrong;
    out.push_str(&besides(findings));
    out.push_str(&match wrong {
        0 => format!("{} in order\n", count(in_order, "artifact")),
        _ => format!(
            "{} in order, {wrong} not\nhint: see what can be done with: larder plan\n",
            count(in_order, "artifact")
        ),
    });
    out
}

/// Whether nothing is missing or wrong, as far as names and sizes tell.
pub fn is_in_order(status: &ArtifactStatus) -> bool {
    status.locked && status.faults.is_empty() && status.here_files >= status.files
}

fn state(status: &ArtifactStatus, now: i64) -> String {
    if !status.locked && status.here_files == 0 {
        return "not locked yet".to_owned();
    }
    if let Some(fault) = status.faults.first() {
        let more = status.faults.len() - 1;
        let more = if more > 0 { format!(", and {}", count(more, "more fault")) } else { String::new() };
        let place = fault.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
        return format!("{place}{}{more}", fault.detail);
    }
    status
        .proven_at
        .map_or_else(|| "in order, not read yet".to_owned(), |at| format!("in order, proven {}", table::ago(at, now)))
}

/// What does not hold besides the files, or could not be looked at.
fn besides(findings: &[Finding]) -> String {
    let mut out = String::new();
    for (finding, others) in grouped(findings) {
        let word = if finding.state == State::Fault { "wrong" } else { "unknown" };
        let more = if others > 0 { format!(" and {others} more") } else { String::new() };
        out.push_str(&format!("  {word}: {}{more}: {}\n", finding.subject, finding.what));
        if finding.state == State::Fault && !finding.why.is_empty() {
            out.push_str(&format!("         {}\n", finding.why));
        }
    }
    let mut fixes: Vec<&str> =
        findings.iter().map(|finding| finding.fix.as_str()).filter(|fix| !fix.is_empty()).collect();
    fixes.sort_unstable();
    fixes.dedup();
    fixes.iter().for_each(|fix| out.push_str(&format!("hint: {fix}\n")));
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

/// Findings that say the same of many things are told once, with the number of the others.
fn grouped(findings: &[Finding]) -> Vec<(&Finding, usize)> {
    let mut groups: Vec<(&Finding, usize)> = Vec::new();
    for finding in findings.iter().filter(|finding| finding.state != State::Ok) {
        // What is wrong has a reason of its own each time; what could not be looked at has one in common.
        let both_unknown = |first: &Finding| first.state == State::Unknown && finding.state == State::Unknown;
        match groups.iter_mut().find(|(first, _)| both_unknown(first) && first.what == finding.what) {
            Some((_, others)) => *others += 1,
            None => groups.push((finding, 0)),
        }
    }
    groups
}
