//! What is here by name and length, and was never read: it counts for nothing until it was.

use std::sync::atomic::Ordering;

use crate::apply::Failure;
use crate::cli::Common;
use crate::cli::commands::stopped_by_signals;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::observe::{Access, Proof, Sighting};
use crate::report::status;
use crate::report::table::count;
use crate::size::Bytes;
use crate::stores::FileState;
use crate::verify::{self, Reading};

/// Says what would be read before anything is copied.
pub(super) fn tell(ui: &Ui, lab: &Lab) -> Result<(), CliError> {
    let sightings = lab.sight(false)?;
    let sizes: Vec<u64> = sightings.iter().flat_map(unread).map(|(_, size)| size).collect();
    if !sizes.is_empty() {
        let (files, bytes) = (count(sizes.len(), "file"), Bytes(sizes.iter().sum()));
        ui.text(&format!("{files} ({bytes}) here were never read: they are read before anything is copied\n"));
    }
    Ok(())
}

/// Whether everything wanted is here and was read: then nobody need be asked for anything.
pub(super) fn is_all_here(sightings: &[Sighting<'_>]) -> bool {
    let statuses = status::statuses(sightings, &verify::glance(sightings));
    let is_read = |sighting: &Sighting<'_>| sighting.access == Access::Open && unread(sighting).next().is_none();
    statuses.iter().all(status::is_in_order) && sightings.iter().all(is_read)
}

/// Reads all of it and remembers what was measured, so that the plan knows what is wrong.
///
/// Returns what could not be proven all the same; `None` where the run was stopped.
pub(super) fn read(ui: &Ui, lab: &Lab, common: &Common) -> Result<Option<Vec<Failure>>, CliError> {
    let mut sightings = lab.sight(false)?;
    if sightings.iter().all(|sighting| unread(sighting).next().is_none()) {
        lab.hear_servers(common, &mut sightings)?;
        return Ok(Some(unproven(&sightings, &verify::Verdict::default())));
    }
    sightings.retain(|sighting| unread(sighting).next().is_some());
    let bytes = sightings.iter().flat_map(unread).map(|(_, size)| size).sum();
    let (stop, monitor) = (stopped_by_signals()?, ui.monitor(Some(bytes)));
    let stopped = || stop.load(Ordering::Relaxed);
    // However long ago: what was read once and has not changed since is proven.
    let reading = Reading { max_age: Some(i64::MAX), ..Reading::new(&lab.facts, monitor.as_ref(), now, &stopped) };
    let verdict = verify::contents(&sightings, &reading)?;
    if verdict.interrupted {
        ui.text("Stopped; what was read is remembered\n");
        return Ok(None);
    }
    let mut sightings = lab.sight(false)?;
    lab.hear_servers(common, &mut sightings)?;
    Ok(Some(unproven(&sightings, &verdict)))
}

/// The files that are here and of whose content nothing is known: their numbers and lengths.
fn unread<'a>(sighting: &'a Sighting<'_>) -> impl Iterator<Item = (usize, u64)> + 'a {
    let files = sighting.observed.files.iter().zip(&sighting.proofs).enumerate();
    files.filter_map(|(file, (state, proof))| match (state, proof) {
        (FileState::Present(found) | FileState::Staged(found), Proof::Unknown) => Some((file, found.size)),
        _ => None,
    })
}

/// What counts as here for the plan, though nobody could read it.
fn unproven(sightings: &[Sighting<'_>], verdict: &verify::Verdict) -> Vec<Failure> {
    let mut unproven = Vec::new();
    for sighting in sightings {
        let name = &sighting.artifact.name;
        for (file, _) in unread(sighting) {
            let path = sighting.artifact.files[file].path.as_str();
            let fault =
                verdict.faults.iter().find(|fault| fault.artifact == *name && fault.path.as_deref() == Some(path));
            let changing = "it is here, but not proven: somebody writes it at this moment".to_owned();
            let reason = fault.map_or(changing, |fault| format!("it is here, but not proven: {}", fault.detail));
            let hint = Some("look closer with: larder verify".to_owned());
            unproven.push(Failure { item: format!("{name}/{path}"), reason, hint });
        }
        if sighting.observed.files.iter().any(|state| matches!(state, FileState::Held)) {
            let reason = "it is here, but not proven: only the store's server can read it".to_owned();
            let hint = Some("run larder as a user who may read the store's folder".to_owned());
            unproven.push(Failure { item: name.clone(), reason, hint });
        }
    }
    unproven
}
