//! `larder repair`: mends what was found wrong, by its wrong parts where they are known.

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{apply, plan};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits, Locality};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::repair::{self, Means, Outcome, Repair};
use crate::report;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Do not ask before beginning
    #[arg(short, long)]
    yes: bool,
    /// Only show what would be done; exit with 3 if anything is wrong
    #[arg(long, conflicts_with = "yes")]
    check: bool,
    #[command(flatten)]
    locality: Locality,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Repaired<'a> {
    #[serde(flatten)]
    repair: &'a Repair,
    parts: &'a Outcome,
    whole_files: &'a crate::apply::Outcome,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?.within(args.locality);
    let repair = make(ui, &lab, common)?;
    let nothing = Outcome::default();
    let no_files = crate::apply::Outcome::default();
    if !ui.json {
        show(ui, &lab, &repair);
    }
    if repair.is_empty() || args.check || !repair.has_work() {
        ui.object("repair", &Repaired { repair: &repair, parts: &nothing, whole_files: &no_files });
        return Ok(match (repair.is_empty(), args.check) {
            (true, _) => Exit::InOrder,
            (false, true) => Exit::Differences,
            (false, false) => Exit::Failed,
        });
    }
    if !args.yes && !apply::agreed(ui, "repair")? {
        return Ok(Exit::InOrder);
    }
    let (parts, whole) = carry_out(ui, &lab, common, &repair)?;
    apply::keep_what_was_learned(&lab, &whole)?;
    ui.text(&report::repair::outcome_text(&parts));
    if repair.whole.has_steps() {
        ui.text(&apply::text(&whole, Some("larder repair")));
    }
    ui.object("repair", &Repaired { repair: &repair, parts: &parts, whole_files: &whole });
    Ok(exit(&repair, &parts, &whole))
}

/// Parts are mended in place, so that only whole files need room.
fn make(ui: &Ui, lab: &Lab, common: &Common) -> Result<Repair, CliError> {
    let sightings = lab.sight(true)?;
    let mut repair = repair::select(plan::make_without_room(ui, lab, common)?, &sightings, &lab.facts)?;
    if repair.whole.has_steps() {
        let mut real = repair::select(plan::make(ui, lab, common, &Limits::default())?, &sightings, &lab.facts)?;
        for entry in repair.whole.artifacts.iter_mut().filter(|entry| !entry.steps.is_empty()) {
            let is_same = |other: &crate::plan::ArtifactPlan| other.artifact == entry.artifact;
            if let Some(place) = real.whole.artifacts.iter().position(is_same) {
                *entry = real.whole.artifacts.swap_remove(place);
            }
        }
        repair.whole.rooms = real.whole.rooms;
    }
    Ok(repair)
}

fn show(ui: &Ui, lab: &Lab, repair: &Repair) {
    if repair.is_empty() {
        ui.text("Nothing is known to be wrong\n");
        ui.note("hint: find out with: larder verify");
        return;
    }
    ui.text(&report::repair::text(repair, ui.width()));
    if repair.whole.has_steps() {
        plan::show(ui, lab, &repair.whole, false);
    }
}

fn carry_out(
    ui: &Ui,
    lab: &Lab,
    common: &Common,
    repair: &Repair,
) -> Result<(Outcome, crate::apply::Outcome), CliError> {
    let means = apply::means(ui, lab, &repair.whole, lab.sources(common, &Limits::default())?)?;
    let stop = means.stop.clone();
    let parts = Means {
        stores: means.stores.clone(),
        sources: means.sources.clone(),
        facts: means.facts.clone(),
        monitor: means.monitor.clone(),
        retry: means.retry,
        stop: stop.clone(),
        now: means.now,
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        listen(stop.clone())?;
        let parts = repair::carry_out(repair.patches.clone(), &lab.wanted, parts).await;
        let whole = if repair.whole.has_steps() && !stop.is_cancelled() {
            crate::apply::apply(&repair.whole, &lab.wanted, means).await
        } else {
            crate::apply::Outcome::default()
        };
        Ok((parts, whole))
    })
}

fn listen(stop: CancellationToken) -> Result<(), CliError> {
    let first = super::stop_signal()?;
    tokio::spawn(async move {
        first.await;
        stop.cancel();
        if let Ok(second) = super::stop_signal() {
            second.await;
            crate::cli::exit::now(Exit::Interrupted);
        }
    });
    Ok(())
}

fn exit(repair: &Repair, parts: &Outcome, whole: &crate::apply::Outcome) -> Exit {
    let has_failed = !parts.failures.is_empty() || !whole.failures.is_empty() || repair.obstacles().next().is_some();
    if parts.interrupted || whole.interrupted {
        Exit::Interrupted
    } else if !has_failed {
        Exit::InOrder
    } else if parts.repaired.is_empty() && whole.placed.is_empty() {
        Exit::Failed
    } else {
        Exit::Partly
    }
}
