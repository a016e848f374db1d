//! `larder repair`: mends what was found wrong, by its wrong parts where they are known.

use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{apply, plan};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits, Locality};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::plan::{ArtifactPlan, Plan};
use crate::repair::{self, Means, Outcome, Repair, Told};
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
    let repair = make(ui, &lab, common, Peers::Asked)?;
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
            // Nothing was tried, as where `apply` has nothing but what cannot be had.
            (false, false) => Exit::Partly,
        });
    }
    if !args.yes && !apply::agreed(ui, "repair")? {
        return Ok(Exit::InOrder);
    }
    let (parts, whole, plan) = carry_out(ui, &lab, common, &repair)?;
    apply::keep_what_was_learned(&lab, &whole)?;
    ui.text(&report::repair::outcome_text(&parts));
    if plan.has_steps() {
        ui.text(&apply::text(&whole, Some("larder repair")));
    }
    ui.object("repair", &Repaired { repair: &repair, parts: &parts, whole_files: &whole });
    Ok(exit(&plan, &parts, &whole))
}

/// Whether peers are asked which chunks of a file are wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peers {
    Asked,
    NotAsked,
}

/// Parts are mended in place, so that only whole files need room.
fn make(ui: &Ui, lab: &Lab, common: &Common, peers: Peers) -> Result<Repair, CliError> {
    let sightings = lab.sight(true)?;
    let draft = plan::make_without_room(ui, lab, common)?;
    let told = match peers {
        Peers::Asked => {
            let sources = lab.sources(common, &Limits::default())?;
            let monitor = ui.monitor(None);
            let asked = repair::ask(&draft, &sightings, &lab.facts, &sources, &monitor);
            tokio::runtime::Runtime::new()?.block_on(asked)?
        }
        Peers::NotAsked => Told::default(),
    };
    let mut repair = repair::select(draft, &sightings, &lab.facts, &told)?;
    if repair.whole.has_steps() {
        let real = plan::make(ui, lab, common, &Limits::default())?;
        let real = repair::select(real, &sightings, &lab.facts, &told)?;
        repair.whole.rooms = real.whole.rooms;
        replace_those_with_steps(&mut repair.whole.artifacts, real.whole.artifacts);
    }
    Ok(repair)
}

/// Puts entries of `by` in the place of those for the same artifacts.
fn replace_those_with_steps(entries: &mut [ArtifactPlan], mut by: Vec<ArtifactPlan>) {
    for entry in entries.iter_mut().filter(|entry| !entry.steps.is_empty()) {
        if let Some(place) = by.iter().position(|other| other.artifact == entry.artifact) {
            *entry = by.swap_remove(place);
        }
    }
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

/// Mends parts first. What peers said was wrong is then fetched as a whole, as the plan has announced.
fn carry_out(
    ui: &Ui,
    lab: &Lab,
    common: &Common,
    repair: &Repair,
) -> Result<(Outcome, crate::apply::Outcome, Plan), CliError> {
    let sources = lab.sources(common, &Limits::default())?;
    let means = apply::means(ui, lab, &repair.whole, Arc::clone(&sources))?;
    let stop = means.stop.clone();
    let runtime = tokio::runtime::Runtime::new()?;
    let parts = runtime.block_on(async {
        listen(stop.clone())?;
        Ok::<_, CliError>(repair::carry_out(repair.patches.clone(), &lab.wanted, parts_means(&means)).await)
    })?;
    let mut whole = repair.whole.clone();
    if !parts.misled.is_empty() && !stop.is_cancelled() {
        let again = make(ui, lab, common, Peers::NotAsked)?.whole;
        let is_misled = |entry: &ArtifactPlan| parts.misled.iter().any(|misled| misled.artifact == entry.artifact);
        whole.artifacts.retain(|entry| !is_misled(entry));
        whole.artifacts.extend(again.artifacts.into_iter().filter(is_misled));
    }
    let done = if whole.has_steps() && !stop.is_cancelled() {
        let means = crate::apply::Means { stop, ..apply::means(ui, lab, &whole, sources)? };
        runtime.block_on(crate::apply::apply(&whole, &lab.wanted, means))
    } else {
        crate::apply::Outcome::default()
    };
    Ok((parts, done, whole))
}

fn parts_means(means: &crate::apply::Means) -> Means {
    Means {
        stores: means.stores.clone(),
        sources: means.sources.clone(),
        facts: means.facts.clone(),
        monitor: means.monitor.clone(),
        retry: means.retry,
        stop: means.stop.clone(),
        now: means.now,
    }
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

fn exit(plan: &Plan, parts: &Outcome, whole: &crate::apply::Outcome) -> Exit {
    let is_blocked = plan.artifacts.iter().any(|entry| !entry.obstacles.is_empty());
    let has_failed = !parts.failures.is_empty() || !whole.failures.is_empty() || is_blocked;
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
