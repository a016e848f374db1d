//! `larder adopt`: what a machine has that the manifests do not know.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adopt::{self, Known, Survey, Surveyor, lock_of, manifest_text};
use crate::cli::commands::report::write;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::inventory::Layout;
use crate::report;
use crate::resolve;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Only these stores; may be repeated
    #[arg(long, value_name = "STORE")]
    store: Vec<String>,
    /// Look at this drive instead, which a larder has packed
    #[arg(long, value_name = "DIR", conflicts_with = "store")]
    drive: Option<PathBuf>,
    /// Write what is proposed into this folder: adopted.toml and adopted.lock
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Adopted<'a> {
    #[serde(flatten)]
    survey: &'a Survey,
    written: Vec<PathBuf>,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    if let Some(unknown) = args.store.iter().find(|name| lab.stores.get(name).is_none()) {
        return Err(CliError::usage(format!("The inventory has no store `{unknown}`")));
    }
    let artifacts = everything(&lab);
    let mut known = Known::new(&artifacts, &lab.manifests);
    let wanted = |name: &str| args.store.is_empty() || args.store.iter().any(|store| store == name);
    let monitor = ui.monitor(None);
    let how = Surveyor { read: true, facts: &lab.facts, monitor: monitor.as_ref(), at: now() };
    let mut survey = match &args.drive {
        None => adopt::survey(&lab.stores, &wanted, &mut known, &how),
        Some(drive) => of_drive(&expand(drive, &lab.home), &mut known)?,
    };
    survey.sections = adopt::sections(&survey, &artifacts, &lab.manifests);
    ui.text(&report::adopt::text(&survey, ui.width()));
    let written = match &args.out {
        Some(folder) => propose(ui, &lab, &survey, &expand(folder, &lab.home))?,
        None => {
            ui.note("Nothing has been written. Have a manifest and a lock proposed with: larder adopt --out DIR");
            Vec::new()
        }
    };
    ui.object("adopt", &Adopted { survey: &survey, written });
    Ok(if survey.proposals.is_empty() { Exit::InOrder } else { Exit::Differences })
}

fn of_drive(root: &Path, known: &mut Known) -> Result<Survey, CliError> {
    if !root.is_dir() {
        return Err(CliError::usage(format!("{} is no folder", root.display())).hint("is the drive mounted?"));
    }
    let (found, proposals) = adopt::survey_drive(root, known);
    Ok(Survey { stores: vec![found], proposals, ..Survey::default() })
}

/// What the lock and all manifests know, whatever this machine must have.
pub(in crate::cli) fn everything(lab: &Lab) -> Vec<crate::artifact::Artifact> {
    let mut artifacts = lab.stored.as_ref().map(|lock| lock.artifacts.clone()).unwrap_or_default();
    let pins = lab.manifests.artifacts.iter().map(|declared| resolve::from_pins(declared, lab.layout(declared)));
    artifacts.extend(pins);
    artifacts
}

fn propose(ui: &Ui, lab: &Lab, survey: &Survey, folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let manifest = manifest_text(&survey.proposals, &lab.machine);
    let layout = |store: &str| lab.stores.get(store).map_or(Layout::Folder, |open| open.config.layout);
    let lock = lock_of(&manifest, &layout)?;
    let places = [folder.join("adopted.toml"), folder.join("adopted.lock")];
    if let Some(there) = places.iter().find(|place| place.exists()) {
        return Err(CliError::usage(format!("{} exists", there.display())).hint("move it away, or name another folder"));
    }
    write(ui, &places[0], manifest.as_bytes())?;
    write(ui, &places[1], lock.to_text().as_bytes())?;
    ui.note("look it through; then put it beside your manifests, and run: larder lock");
    Ok(places.into())
}
