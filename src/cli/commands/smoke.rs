//! `larder smoke`: do the generators that are here work?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::commands::after::{BusyArgs, Skipped};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::fsio::PageCache;
use crate::observe::Sighting;
use crate::report::smoke as said;
use crate::smoke::{self, Device, LastTests, Level, Outcome, Verdict};
use crate::stores::FileState;

mod ahead;
mod bench;

use ahead::Ahead;
use bench::{Bench, Stock};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Only these artifacts, as with --only: names with *, tag:T, store:S
    names: Vec<String>,
    /// How much is tried; each level begins with those before it
    #[arg(long, value_enum, default_value = "highest")]
    level: AskedLevel,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    device: AskedDevice,
    /// Where pictures, sounds and texts go
    #[arg(long, value_name = "DIR", default_value = "smoke")]
    out: PathBuf,
    /// Keep what this run computes, for this and other machines to compare with, in the file beside the inventory
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    busy: BusyArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AskedLevel {
    /// Of each artifact as much as can be tried: structure, and what larder can compute with it
    Highest,
    /// Headers, folders, tokenizers: seconds, no weights are read
    Structure,
    /// One real pass of each part
    Component,
    /// A few steps from the prompt to the result
    Generate,
}

impl AskedLevel {
    /// The level beyond which nothing is tried.
    fn most(self) -> Level {
        match self {
            Self::Structure => Level::Structure,
            Self::Component => Level::Component,
            Self::Highest | Self::Generate => Level::Generate,
        }
    }

    /// The level that every artifact is to be tried at, where one was named.
    fn named(self) -> Option<Level> {
        (self != Self::Highest).then(|| self.most())
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AskedDevice {
    Cpu,
    Cuda,
}

impl From<AskedDevice> for Device {
    fn from(asked: AskedDevice) -> Self {
        match asked {
            AskedDevice::Cpu => Device::Cpu,
            AskedDevice::Cuda => Device::Cuda,
        }
    }
}

#[derive(Serialize)]
struct Smoked<'a> {
    level: &'static str,
    ahead: &'a [Ahead],
    artifacts: &'a [Verdict],
    interrupted: bool,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let mut common = common.clone();
    common.only.extend(args.names.iter().cloned());
    let lab = Lab::read_wanted(ui, &common)?;
    if let Some(skipped) = args.busy.obstacle(ui)? {
        ui.text(&format!("Nothing was tried, because the machine is needed: {skipped}\n"));
        ui.object("smoke", &Skipped { skipped });
        return Ok(Exit::InOrder);
    }
    let sightings = lab.sight(false)?;
    let mut cache = PageCache::default();
    cache.note(places(&sightings));
    let stop = super::stopped_by_signals()?;
    let stopped = || stop.load(Ordering::Relaxed);
    let by_name: BTreeMap<&str, Option<&String>> =
        lab.manifests.artifacts.iter().map(|declared| (declared.name.as_str(), declared.smoke.as_ref())).collect();
    let key = |name: &str| by_name.get(name).copied().flatten().cloned();
    let mut verdicts = smoke::structure_of_all(&sightings, &key, &stopped);
    let mut ahead = Vec::new();
    if args.level != AskedLevel::Structure && !stopped() {
        let is_all = common.only.is_empty();
        let stock = if is_all { Stock::of(&sightings, &lab.facts.all()?) } else { Stock::of_machine(ui, &common)? };
        let runners = smoke::runners();
        let mut bench = Bench::new(ui, args, &lab, (stock, &mut cache), &runners)?;
        ahead = bench.ahead(&verdicts);
        if !ahead.is_empty() {
            bench.tell(&ahead::text(&ahead, args.device.into()));
        }
        for verdict in &mut verdicts {
            if !stopped() {
                bench.try_one(verdict, &stopped)?;
            }
        }
    }
    places(&sightings).for_each(|place| cache.give_back(place));
    let interrupted = stopped();
    // A run that was stopped half-way has found nothing.
    if !interrupted && let Err(error) = LastTests::remember(&lab.state, now(), &verdicts) {
        ui.warn(&format!("the report will not know of this run: {error}"));
    }
    ui.text(&said::text(&verdicts, args.level.named(), interrupted));
    let level = args.level.named().map_or("highest", Level::name);
    ui.object("smoke", &Smoked { level, ahead: &ahead, artifacts: &verdicts, interrupted });
    Ok(exit(&verdicts, interrupted))
}

/// Where the files lie that were asked for.
fn places<'a>(sightings: &'a [Sighting<'_>]) -> impl Iterator<Item = &'a Path> {
    sightings.iter().flat_map(|sighting| &sighting.observed.files).filter_map(|state| match state {
        FileState::Present(found) => Some(found.path.as_path()),
        _ => None,
    })
}

fn exit(verdicts: &[Verdict], interrupted: bool) -> Exit {
    let any = |outcome| verdicts.iter().any(|verdict| verdict.outcome == outcome);
    if interrupted {
        Exit::Interrupted
    } else if any(Outcome::Failed) {
        Exit::Differences
    } else if any(Outcome::EnvironmentFault) || any(Outcome::NotPossible) {
        Exit::Partly
    } else {
        Exit::InOrder
    }
}
