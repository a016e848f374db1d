//! Copies to a folder, such as a drive that travels.

use std::path::Path;

use serde::Serialize;

use super::Args;
use crate::cli::commands::apply::agreed;
use crate::cli::commands::sign;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::drive::{self, Load};
use crate::fsio::free_space;
use crate::report::table::count;
use crate::size::Bytes;

/// What came of it.
#[derive(Debug, Serialize)]
struct Given<'a> {
    load: &'a Load,
    packed: usize,
    failures: Vec<(String, String)>,
}

/// Puts what is here into `folder`.
pub(super) fn give(ui: &Ui, common: &Common, args: &Args, folder: &Path) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let folder = expand(folder, &lab.home);
    if !folder.is_dir() {
        return Err(CliError::usage(format!("{} is no folder", folder.display())).hint("is the drive mounted?"));
    }
    sign::require(&lab)?;
    let load = drive::load(&lab.sight(false)?, &folder);
    let free = free_space(&folder)?.bytes;
    ui.text(&text(&load, &folder, free));
    let nothing = Given { load: &load, packed: 0, failures: Vec::new() };
    if load.bytes() > free {
        ui.object("copy", &nothing);
        return Err(CliError::failed(&std::io::Error::other(format!("{} is too small", folder.display())))
            .hint("name the artifacts that must come along, or make room"));
    }
    if args.dry_run {
        ui.object("copy", &nothing);
        return Ok(Exit::InOrder);
    }
    if !load.parcels.is_empty() && !args.yes && !agreed(ui, "copy")? {
        return Ok(Exit::InOrder);
    }
    let failures = pack(ui, &load, &folder);
    drive::label(&load, &folder)?;
    let given = Given { load: &load, packed: load.parcels.len() - failures.len(), failures };
    ui.text(&ending(&given));
    ui.object("copy", &given);
    Ok(exit(&given))
}

/// Copies everything; one that fails does not stop the others.
fn pack(ui: &Ui, load: &Load, folder: &Path) -> Vec<(String, String)> {
    let monitor = ui.monitor(Some(load.bytes()));
    let mut failures = Vec::new();
    for parcel in &load.parcels {
        if let Err(error) = drive::pack(parcel, folder, monitor.as_ref()) {
            let reason = crate::text::chain(&error);
            monitor.event(crate::monitor::Event::Failed { item: &parcel.item, reason: &reason });
            failures.push((parcel.item.clone(), reason));
        }
    }
    failures
}

fn text(load: &Load, folder: &Path, free: u64) -> String {
    let after = Bytes(free.saturating_sub(load.bytes()));
    let mut out = format!(
        "to {}: {} ({}), {} there already\n{} free → {after}\n",
        folder.display(),
        count(load.parcels.len(), "file"),
        Bytes(load.bytes()),
        load.there,
        Bytes(free),
    );
    for (item, reason) in &load.left {
        out.push_str(&format!("stays here: {item}: {reason}\n"));
    }
    out
}

fn ending(given: &Given<'_>) -> String {
    let mut out = format!("{} copied and proven\n", count(given.packed, "file"));
    for (item, reason) in &given.failures {
        out.push_str(&format!("failed: {item}: {reason}\n"));
    }
    out
}

/// In order only if everything that was asked for is on the drive.
fn exit(given: &Given<'_>) -> Exit {
    let lacks = !given.failures.is_empty() || !given.load.left.is_empty();
    match (lacks, given.packed + given.load.there) {
        (false, _) => Exit::InOrder,
        (true, 0) => Exit::Failed,
        (true, _) => Exit::Partly,
    }
}
