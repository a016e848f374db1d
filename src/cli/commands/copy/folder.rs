//! Copies to a folder, such as a drive that travels.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;

use super::Args;
use crate::cli::commands::apply::agreed;
use crate::cli::commands::{sign, stopped_by_signals};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand};
use crate::cli::papers::papers;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::drive::{self, Drive, Load};
use crate::facts::Moved;
use crate::fsio::{Pass, ProofError, Space, free_space};
use crate::monitor::{Event, Monitor};
use crate::pace::Pacer;
use crate::report::plan::duration;
use crate::report::table::count;
use crate::size::Bytes;

/// What came of it.
#[derive(Debug, Serialize)]
struct Given<'a> {
    load: &'a Load,
    packed: usize,
    failures: Vec<(String, String)>,
    interrupted: bool,
}

/// Puts what is here into `folder`.
pub(super) fn give(ui: &Ui, common: &Common, args: &Args, folder: &Path) -> Result<Exit, CliError> {
    if args.limits.max_download.is_some() {
        return Err(CliError::usage("--max-download limits what this machine fetches, and nothing is fetched here")
            .hint("name the artifacts that must come along"));
    }
    let lab = Lab::read(ui, common)?;
    let folder = expand(folder, &lab.home);
    if !folder.is_dir() {
        return Err(CliError::usage(format!("{} is no folder", folder.display())).hint("is the drive mounted?"));
    }
    sign::require(&lab)?;
    let mut load = drive::load(&lab.sight(false)?, &folder);
    let rates = lab.facts.rates().unwrap_or_default();
    let seconds = rates.seconds(&BTreeMap::from([(place(&folder), load.bytes())]));
    ui.text(&text(&load, &folder, free_space(&folder)?.bytes, seconds));
    require_room(ui, &load, &folder)?;
    if args.dry_run {
        ui.object("copy", &nothing(&load));
        return Ok(Exit::InOrder);
    }
    let has_work = !load.parcels.is_empty() || !load.unread.is_empty();
    if has_work && !args.yes && !agreed(ui, "copy")? {
        return Ok(Exit::InOrder);
    }
    let given = carry_out(ui, args, &lab, &folder, &mut load)?;
    ui.text(&ending(&given, &folder));
    ui.object("copy", &given);
    Ok(exit(&given))
}

fn carry_out<'a>(ui: &Ui, args: &Args, lab: &Lab, folder: &Path, load: &'a mut Load) -> Result<Given<'a>, CliError> {
    let monitor = ui.monitor(Some(load.bytes()));
    let drive = Drive::hold(folder, || monitor.event(Event::Waiting { item: "the drive" }))?;
    // Whoever held it before may have brought some of it.
    *load = drive::load(&lab.sight(false)?, folder);
    let stop = stopped_by_signals()?;
    let is_stopped = || stop.load(Ordering::Relaxed);
    let go_on = || if is_stopped() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) };
    match drive.read(load, monitor.as_ref(), &mut |_| go_on()) {
        Err(error) if !is_stopped() => return Err(error.into()),
        Err(_) => return Ok(Given { interrupted: true, ..nothing(load) }),
        Ok(()) => require_room(ui, load, folder)?,
    }
    let max_rate = lab.inventory.sources_of(&lab.machine).max_rate().map_err(CliError::usage)?;
    let pacer = Pacer::new(args.max_rate.or(max_rate));
    let pass = |bytes: u64| {
        pacer.pass_blocking(bytes, is_stopped);
        go_on()
    };
    let begun = Instant::now();
    let mut bytes = 0;
    let (packed, failures) = pack(load, &drive, monitor.as_ref(), &mut |piece| {
        bytes += piece;
        pass(piece)
    });
    let moved = Moved { bytes, seconds: begun.elapsed().as_secs_f64() };
    // How fast it was is worth nothing to who only wants it done.
    let _ = lab.facts.record_moved(&place(folder), moved);
    drive.label(load, &papers(lab, false)?)?;
    Ok(Given { load, packed, failures, interrupted: is_stopped() })
}

fn nothing(load: &Load) -> Given<'_> {
    Given { load, packed: 0, failures: Vec::new(), interrupted: false }
}

fn require_room(ui: &Ui, load: &Load, folder: &Path) -> Result<(), CliError> {
    if load.bytes() <= free_space(folder)?.bytes {
        return Ok(());
    }
    ui.object("copy", &nothing(load));
    Err(CliError::failed(&io::Error::other(format!("{} is too small", folder.display())))
        .hint("name the artifacts that must come along, or make room"))
}

/// Copies everything, until it is stopped; one that fails does not stop the others.
fn pack(load: &Load, drive: &Drive, monitor: &dyn Monitor, pass: Pass<'_>) -> (usize, Vec<(String, String)>) {
    let (mut packed, mut failures) = (0, Vec::new());
    for parcel in &load.parcels {
        match drive.pack(parcel, monitor, pass) {
            Ok(()) => packed += 1,
            Err(ProofError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => break,
            Err(error) => {
                let reason = crate::text::chain(&error);
                monitor.event(Event::Failed { item: &parcel.item, reason: &reason });
                failures.push((parcel.item.clone(), reason));
            }
        }
    }
    (packed, failures)
}

/// What the rate of this drive is remembered by.
fn place(folder: &Path) -> String {
    format!("to {}", folder.display())
}

fn text(load: &Load, folder: &Path, free: u64, seconds: Option<f64>) -> String {
    let room = match free {
        Space::UNKNOWN => "how much is free there is not known".to_owned(),
        free => format!("{} free → {}", Bytes(free), Bytes(free.saturating_sub(load.bytes()))),
    };
    let mut out = format!(
        "to {}: {} ({}), {} there already{}\n{room}\n",
        folder.display(),
        count(load.parcels.len(), "file"),
        Bytes(load.bytes()),
        load.there + load.unread.len(),
        duration(load.bytes(), seconds),
    );
    if !load.unread.is_empty() {
        let (files, bytes) = (count(load.unread.len(), "file"), Bytes(load.unread_bytes()));
        out.push_str(&format!(
            "{files} ({bytes}) there are read first: nobody has proven them since they were written\n"
        ));
    }
    for (item, reason) in &load.left {
        out.push_str(&format!("stays here: {item}: {reason}\n"));
    }
    out
}

fn ending(given: &Given<'_>, folder: &Path) -> String {
    let mut out = String::new();
    for item in &given.load.wrong {
        out.push_str(&format!("was wrong on the drive: {item}\n"));
    }
    out.push_str(&format!("{} copied and proven\n", count(given.packed, "file")));
    for (item, reason) in &given.failures {
        out.push_str(&format!("failed: {item}: {reason}\n"));
    }
    if given.interrupted {
        out.push_str(&format!("Stopped; larder copy --to {} continues from here\n", folder.display()));
    }
    out
}

/// In order only if everything that was asked for is on the drive.
fn exit(given: &Given<'_>) -> Exit {
    let lacks = !given.failures.is_empty() || !given.load.left.is_empty();
    match (lacks, given.packed + given.load.there) {
        _ if given.interrupted => Exit::Interrupted,
        (false, _) => Exit::InOrder,
        (true, 0) => Exit::Failed,
        (true, _) => Exit::Partly,
    }
}
