//! `larder smoke`: do the generators that are here work?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use clap::ValueEnum;
use serde::Serialize;

use crate::artifact::Artifact;
use crate::cli::commands::after::{BusyArgs, Skipped};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::facts::Known;
use crate::fsio;
use crate::observe::Sighting;
use crate::report::smoke as said;
use crate::size::Bytes;
use crate::smoke::{self, Check, Compared, Device, Job, Key, LastTests, Level, Outcome, Records, Runner, Verdict};
use crate::stores::FileState;

/// The same for every run, so that a second one makes the same.
const SEED: u64 = 20_260_223;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Only these artifacts, as with --only: names with *, tag:T, store:S
    names: Vec<String>,
    /// How much is tried; each level begins with those before it
    #[arg(long, value_enum, default_value = "structure")]
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AskedLevel {
    /// Headers, folders, tokenizers: seconds, no weights are read
    Structure,
    /// One real pass of each part
    Component,
    /// A few steps from the prompt to the result
    Generate,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AskedDevice {
    Cpu,
    Cuda,
}

#[derive(Serialize)]
struct Smoked<'a> {
    level: Level,
    artifacts: &'a [Verdict],
    interrupted: bool,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let mut common = common.clone();
    common.only.extend(args.names.iter().cloned());
    let level = args.level.into();
    let lab = Lab::read_wanted(ui, &common)?;
    if let Some(skipped) = args.busy.obstacle(ui)? {
        ui.text(&format!("Nothing was tried, because the machine is needed: {skipped}\n"));
        ui.object("smoke", &Skipped { skipped });
        return Ok(Exit::InOrder);
    }
    let sightings = lab.sight(false)?;
    let stop = super::stopped_by_signals()?;
    let stopped = || stop.load(Ordering::Relaxed);
    let by_name: BTreeMap<&str, Option<&String>> =
        lab.manifests.artifacts.iter().map(|declared| (declared.name.as_str(), declared.smoke.as_ref())).collect();
    let key = |name: &str| by_name.get(name).copied().flatten().cloned();
    let mut verdicts = smoke::structure_of_all(&sightings, &key, &stopped);
    if level > Level::Structure {
        let others = if common.only.is_empty() { files_of_all(&sightings) } else { everything(ui, &common)? };
        let mut bench = Bench::new(ui, args, &lab, (&sightings, others))?;
        let runners = smoke::runners();
        for verdict in &mut verdicts {
            if !stopped() {
                bench.try_one(verdict, &runners, &stopped)?;
            }
        }
    }
    let interrupted = stopped();
    // A run that was stopped half-way has found nothing.
    if !interrupted && let Err(error) = LastTests::remember(&lab.state, now(), &verdicts) {
        ui.warn(&format!("the report will not know of this run: {error}"));
    }
    ui.text(&said::text(&verdicts, level, interrupted));
    ui.object("smoke", &Smoked { level, artifacts: &verdicts, interrupted });
    Ok(exit(&verdicts, interrupted))
}

/// The files of all artifacts of this machine: a generator may need those of others than were asked for.
fn everything(ui: &Ui, common: &Common) -> Result<BTreeMap<String, BTreeMap<String, PathBuf>>, CliError> {
    let lab = Lab::read_wanted(ui, &Common { only: Vec::new(), ..common.clone() })?;
    Ok(files_of_all(&lab.sight(false)?))
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

/// What the levels that compute work with.
struct Bench<'a> {
    ui: &'a Ui,
    args: &'a Args,
    level: Level,
    device: Device,
    out: PathBuf,
    machine: &'a str,
    sightings: &'a [Sighting<'a>],
    others: BTreeMap<String, BTreeMap<String, PathBuf>>,
    known: Known,
    records: Records,
}

impl<'a> Bench<'a> {
    fn new(
        ui: &'a Ui,
        args: &'a Args,
        lab: &'a Lab,
        (sightings, others): (&'a [Sighting<'a>], BTreeMap<String, BTreeMap<String, PathBuf>>),
    ) -> Result<Self, CliError> {
        Ok(Self {
            ui,
            args,
            level: args.level.into(),
            device: args.device.into(),
            out: expand(&args.out, &lab.home),
            machine: &lab.machine,
            sightings,
            others,
            known: lab.facts.all()?,
            records: Records::read(&Records::place(&lab.inventory_path))?,
        })
    }

    /// Computes with one artifact whose structure is right, one level after the other.
    fn try_one(
        &mut self,
        verdict: &mut Verdict,
        runners: &[Box<dyn Runner>],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), CliError> {
        verdict.level = self.level;
        let mut ran = false;
        for level in [Level::Component, Level::Generate] {
            if level > self.level || verdict.outcome != Outcome::Passed || stopped() {
                break;
            }
            match smoke::runner(runners, verdict.smoke.as_deref(), level) {
                // Some generators make no sense at one of the levels: an encoder makes nothing by itself.
                Err(_) if level < self.level || ran => {}
                Err(check) => verdict.add(smoke::Run { checks: vec![*check], ..smoke::Run::default() }),
                Ok(runner) => {
                    ran = true;
                    self.compute(verdict, runner, level, stopped)?;
                }
            }
        }
        Ok(())
    }

    fn compute(
        &mut self,
        verdict: &mut Verdict,
        runner: &dyn Runner,
        level: Level,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), CliError> {
        let out = self.out.join(folder_name(&verdict.artifact));
        let (artifact, key) = (verdict.artifact.clone(), verdict.smoke.clone().unwrap_or_default());
        let ui = self.ui;
        let told = |stage: &str, done: u64, of: u64| ui.note(&format!("{artifact}: {stage} {done}/{of}"));
        let none = BTreeMap::new();
        let job = Job {
            artifact: &artifact,
            smoke: &key,
            level,
            device: self.device,
            files: self.others.get(&artifact).unwrap_or(&none),
            others: &self.others,
            out: &out,
            seed: SEED,
            told: &told,
            stopped,
        };
        ui.note(&format!("{artifact}: {} needs {}", level.name(), needed(&runner.need(&job))));
        if let Some(needs) = self.args.busy.obstacle(ui)? {
            let wanted = ["nobody needs the machine", "--unless-busy"];
            verdict.add(of_one(Check::of("machine", needs, wanted, Vec::new()), level, Outcome::EnvironmentFault));
            return Ok(());
        }
        fsio::create_dir_all(&out, None)?;
        let began = std::time::Instant::now();
        let mut run = smoke::tried(runner, &job);
        verdict.seconds += began.elapsed().as_secs_f64();
        if stopped() {
            let check = Check::of("run", "it was stopped", ["to its end", "a signal"], Vec::new());
            run = of_one(check, level, Outcome::NotPossible);
        } else {
            self.compare(&artifact, level, &mut run)?;
        }
        verdict.add(run);
        Ok(())
    }

    /// Compares a run with the reference of the same files, or records it as one; says each time on whose word.
    fn compare(&mut self, artifact: &str, level: Level, run: &mut smoke::Run) -> Result<(), CliError> {
        let ui = self.ui;
        let Some(sighting) = self.sightings.iter().find(|sighting| sighting.artifact.name == artifact) else {
            return Ok(());
        };
        let measured = |place: usize| match sighting.observed.files.get(place) {
            Some(FileState::Present(found)) => self.known.of(found)?.digests.sha256,
            _ => None,
        };
        let key = match Key::of(sighting.artifact, level, measured) {
            Ok(key) => key,
            Err(path) if self.args.record => {
                ui.warn(&format!(
                    "{artifact}: nothing is recorded, because no digest of {path} is known yet: run larder verify first"
                ));
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        match self.records.compare(&key, self.device, run) {
            Compared::With(origin) => {
                ui.note(&format!(
                    "{artifact}: {} compared with what {origin} recorded, trusted because it was the first",
                    level.name()
                ));
                return Ok(());
            }
            Compared::OtherVersion(version) if !self.args.record => {
                ui.note(&format!("{artifact}: the reference is of larder {version}, so it was not compared with"));
            }
            _ => {}
        }
        if self.args.record && self.records.keep(&key, run, (self.device, self.machine, &today()))? {
            ui.note(&format!(
                "{artifact}: {} recorded as reference, trusted because it is the first: nothing vouches for it",
                level.name()
            ));
        }
        Ok(())
    }
}

fn of_one(check: Check, level: Level, outcome: Outcome) -> smoke::Run {
    smoke::Run { checks: vec![check.at(level).ending(outcome)], ..smoke::Run::default() }
}

fn needed(need: &smoke::Need) -> String {
    match need.device_memory {
        0 => format!("{} of memory", Bytes(need.memory)),
        device => format!("{} of memory, {} of the GPU's", Bytes(need.memory), Bytes(device)),
    }
}

fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

impl From<AskedLevel> for Level {
    fn from(asked: AskedLevel) -> Self {
        match asked {
            AskedLevel::Structure => Level::Structure,
            AskedLevel::Component => Level::Component,
            AskedLevel::Generate => Level::Generate,
        }
    }
}

impl From<AskedDevice> for Device {
    fn from(asked: AskedDevice) -> Self {
        match asked {
            AskedDevice::Cpu => Device::Cpu,
            AskedDevice::Cuda => Device::Cuda,
        }
    }
}

/// The name of an artifact as that of a folder.
fn folder_name(artifact: &str) -> PathBuf {
    Path::new(&artifact.replace(['/', ':'], "-")).to_owned()
}

fn files_of_all(sightings: &[Sighting<'_>]) -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    sightings.iter().map(|sighting| (sighting.artifact.name.clone(), files_of(sighting.artifact, sighting))).collect()
}

fn files_of(artifact: &Artifact, sighting: &Sighting<'_>) -> BTreeMap<String, PathBuf> {
    let files = artifact.files.iter().zip(&sighting.observed.files);
    files
        .filter_map(|(file, state)| {
            let FileState::Present(found) = state else { return None };
            let name = file.role.clone().unwrap_or_else(|| file.path.to_string());
            Some((name, found.path.clone()))
        })
        .collect()
}
