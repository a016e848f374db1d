//! `larder smoke`: do the generators that are here work?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use clap::ValueEnum;
use serde::Serialize;

use crate::artifact::Artifact;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::fsio;
use crate::observe::Sighting;
use crate::report::smoke as said;
use crate::size::Bytes;
use crate::smoke::{self, Device, Job, LastTests, Level, Outcome, Runner, Verdict};
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
    let level = match args.level {
        AskedLevel::Structure => Level::Structure,
        AskedLevel::Component => Level::Component,
        AskedLevel::Generate => Level::Generate,
    };
    let lab = Lab::read_wanted(ui, &common)?;
    let sightings = lab.sight(false)?;
    let stop = super::stopped_by_signals()?;
    let stopped = || stop.load(Ordering::Relaxed);
    let by_name: BTreeMap<&str, Option<&String>> =
        lab.manifests.artifacts.iter().map(|declared| (declared.name.as_str(), declared.smoke.as_ref())).collect();
    let key = |name: &str| by_name.get(name).copied().flatten().cloned();
    let mut verdicts = smoke::structure_of_all(&sightings, &key, &stopped);
    if level > Level::Structure {
        let others = if common.only.is_empty() { files_of_all(&sightings) } else { everything(ui, &common)? };
        let bench = Bench { ui, args, level, out: expand(&args.out, &lab.home), others };
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
    out: PathBuf,
    others: BTreeMap<String, BTreeMap<String, PathBuf>>,
}

impl Bench<'_> {
    /// Computes with one artifact whose structure is right, one level after the other.
    fn try_one(
        &self,
        verdict: &mut Verdict,
        runners: &[Box<dyn Runner>],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), CliError> {
        verdict.level = self.level;
        for level in [Level::Component, Level::Generate] {
            if level > self.level || verdict.outcome != Outcome::Passed {
                break;
            }
            match smoke::runner(runners, verdict.smoke.as_deref(), level) {
                // A level between may be one that makes no sense for this generator.
                Err(_) if level < self.level => {}
                Err(check) => verdict.add(smoke::Run { checks: vec![*check], ..smoke::Run::default() }),
                Ok(runner) => self.compute(verdict, runner, level, stopped)?,
            }
        }
        Ok(())
    }

    fn compute(
        &self,
        verdict: &mut Verdict,
        runner: &dyn Runner,
        level: Level,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), CliError> {
        let out = self.out.join(folder_name(&verdict.artifact));
        fsio::create_dir_all(&out, None)?;
        let (artifact, key) = (verdict.artifact.clone(), verdict.smoke.clone().unwrap_or_default());
        let told = |stage: &str, done: u64, of: u64| self.ui.note(&format!("{artifact}: {stage} {done}/{of}"));
        let none = BTreeMap::new();
        let job = Job {
            artifact: &artifact,
            smoke: &key,
            level,
            device: match self.args.device {
                AskedDevice::Cpu => Device::Cpu,
                AskedDevice::Cuda => Device::Cuda,
            },
            files: self.others.get(&artifact).unwrap_or(&none),
            others: &self.others,
            out: &out,
            seed: SEED,
            told: &told,
            stopped,
        };
        let need = runner.need(&job);
        self.ui.note(&format!(
            "{artifact}: {} needs {} of memory, {} of the GPU's",
            level.name(),
            Bytes(need.memory),
            Bytes(need.device_memory)
        ));
        let began = std::time::Instant::now();
        verdict.add(runner.run(&job));
        verdict.seconds += began.elapsed().as_secs_f64();
        Ok(())
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
