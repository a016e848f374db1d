//! What the levels that compute work with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Common;
use crate::cli::commands::smoke::ahead::{Ahead, needed};
use crate::cli::commands::smoke::{Args, AskedLevel};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand};
use crate::cli::ui::Ui;
use crate::facts::Known;
use crate::fsio::{self, PageCache};
use crate::monitor::{Event, Monitor};
use crate::observe::Sighting;
use crate::smoke::{self, Check, Compared, Content, Device, Job, Key, Level, Outcome, Records, Runner, Verdict};
use crate::stores::FileState;

/// The same for every run, so that a second one makes the same.
const SEED: u64 = 20_260_223;

/// The files of all artifacts of this machine: a generator may need those of others than were asked for.
#[derive(Default)]
pub(super) struct Stock {
    /// Those that are here, by what they are called there.
    files: BTreeMap<String, BTreeMap<String, PathBuf>>,
    /// All, by what they should contain.
    contents: BTreeMap<String, Vec<Content>>,
}

impl Stock {
    /// Of all artifacts that were looked at.
    pub(super) fn of(sightings: &[Sighting<'_>], known: &Known) -> Self {
        let mut stock = Self::default();
        for sighting in sightings {
            let mut files = BTreeMap::new();
            let mut contents = Vec::new();
            for (file, state) in sighting.artifact.files.iter().zip(&sighting.observed.files) {
                let found = if let FileState::Present(found) = state { Some(found) } else { None };
                let content = Content::of(file, || known.of(found?)?.digests.sha256);
                files.extend(found.map(|found| (content.name.clone(), found.path.clone())));
                contents.push(content);
            }
            stock.files.insert(sighting.artifact.name.clone(), files);
            stock.contents.insert(sighting.artifact.name.clone(), contents);
        }
        stock
    }

    /// Of all that this machine wants, whatever was asked for.
    pub(super) fn of_machine(ui: &Ui, common: &Common) -> Result<Self, CliError> {
        let lab = Lab::read_wanted(ui, &Common { only: Vec::new(), ..common.clone() })?;
        Ok(Self::of(&lab.sight(false)?, &lab.facts.all()?))
    }
}

/// What the levels that compute work with.
pub(super) struct Bench<'a> {
    ui: &'a Ui,
    args: &'a Args,
    level: AskedLevel,
    device: Device,
    out: PathBuf,
    machine: &'a str,
    stock: Stock,
    cache: &'a mut PageCache,
    records: Records,
    runners: &'a [Box<dyn Runner>],
    monitor: Arc<dyn Monitor>,
}

/// How a run is told and stopped.
type Told<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);
type Stopped<'a> = &'a (dyn Fn() -> bool + Sync);

impl<'a> Bench<'a> {
    pub(super) fn new(
        ui: &'a Ui,
        args: &'a Args,
        lab: &'a Lab,
        (stock, cache): (Stock, &'a mut PageCache),
        runners: &'a [Box<dyn Runner>],
    ) -> Result<Self, CliError> {
        cache.note(stock.files.values().flat_map(BTreeMap::values).map(PathBuf::as_path));
        Ok(Self {
            ui,
            args,
            level: args.level,
            device: args.device.into(),
            out: expand(&args.out, &lab.home),
            machine: &lab.machine,
            stock,
            cache,
            records: Records::read(&Records::place(&lab.inventory_path))?,
            runners,
            monitor: ui.monitor(None),
        })
    }

    /// Tells something on the way.
    pub(super) fn tell(&self, text: &str) {
        self.monitor.event(Event::Phase(text));
    }

    /// What will be computed with those whose structure is right.
    pub(super) fn ahead(&self, verdicts: &[Verdict]) -> Vec<Ahead> {
        let sound = verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Passed);
        let of = |verdict: &Verdict| {
            let smoke = verdict.smoke.as_deref().unwrap_or_default();
            let levels = self.levels(verdict).into_iter().map(|(level, runner)| {
                let need =
                    runner.need(&self.job((&verdict.artifact, smoke), level, &self.out, (&|_, _, _| (), &|| false)));
                (level, runner.makes(level), need)
            });
            Ahead::new(&verdict.artifact, levels)
        };
        sound.filter(|verdict| !self.levels(verdict).is_empty()).map(of).collect()
    }

    /// The levels at which an artifact can be computed with, as far as they were asked for.
    fn levels(&self, verdict: &Verdict) -> Vec<(Level, &'a dyn Runner)> {
        let asked = [Level::Component, Level::Generate].into_iter().filter(|level| *level <= self.level.most());
        let runner = |level| smoke::runner(self.runners, verdict.smoke.as_deref(), level).ok();
        // Some generators make no sense at one of the levels: an encoder makes nothing by itself.
        asked.filter_map(|level| Some((level, runner(level)?))).collect()
    }

    fn job<'b>(
        &'b self,
        (artifact, smoke): (&'b str, &'b str),
        level: Level,
        out: &'b Path,
        (told, stopped): (Told<'b>, Stopped<'b>),
    ) -> Job<'b> {
        const NONE: &BTreeMap<String, PathBuf> = &BTreeMap::new();
        let files = self.stock.files.get(artifact).unwrap_or(NONE);
        let (device, others) = (self.device, &self.stock.files);
        Job { artifact, smoke, level, device, files, others, out, seed: SEED, told, stopped }
    }

    /// Computes with one artifact whose structure is right, one level after the other.
    pub(super) fn try_one(&mut self, verdict: &mut Verdict, stopped: Stopped<'_>) -> Result<(), CliError> {
        let levels = self.levels(verdict);
        if let Some(level) = self.level.named() {
            verdict.level = level;
            if let (true, Outcome::Passed) = (levels.is_empty(), verdict.outcome)
                && let Err(check) = smoke::runner(self.runners, verdict.smoke.as_deref(), level)
            {
                verdict.add(smoke::Run { checks: vec![*check], ..smoke::Run::default() });
            }
        }
        for (level, runner) in levels {
            if verdict.outcome == Outcome::Passed && !stopped() {
                verdict.level = verdict.level.max(level);
                self.compute(verdict, runner, level, stopped)?;
            }
        }
        if verdict.checks.iter().any(|check| check.level > Level::Structure) && !stopped() {
            self.end(verdict);
        }
        Ok(())
    }

    /// Tells how it went, and gives back what of the files came into the page cache for it.
    fn end(&self, verdict: &Verdict) {
        let item = verdict.artifact.as_str();
        let own = self.stock.files.get(item).into_iter().flat_map(BTreeMap::values);
        let of = |taken: &'_ smoke::Taken| {
            let files = self.stock.files.get(&taken.artifact)?;
            Some(taken.files.iter().filter_map(|name| files.get(name)).collect::<Vec<_>>())
        };
        own.chain(verdict.taken.iter().filter_map(of).flatten()).for_each(|path| self.cache.give_back(path));
        match verdict.checks.iter().find(|check| check.outcome != Outcome::Passed) {
            None => self.monitor.event(Event::Finished { item }),
            Some(check) => {
                let reason = format!("{}: {}", check.name, check.measured);
                self.monitor.event(Event::Failed { item, reason: &reason });
            }
        }
    }

    fn compute(
        &mut self,
        verdict: &mut Verdict,
        runner: &dyn Runner,
        level: Level,
        stopped: Stopped<'_>,
    ) -> Result<(), CliError> {
        let out = self.out.join(folder_name(&verdict.artifact));
        let (artifact, smoke) = (verdict.artifact.clone(), verdict.smoke.clone().unwrap_or_default());
        let ui = self.ui;
        let monitor = Arc::clone(&self.monitor);
        let told = |stage: &str, done, of| monitor.event(Event::Stage { item: &artifact, stage, done, of });
        let job = self.job((&artifact, &smoke), level, &out, (&told, stopped));
        self.tell(&format!("{artifact}: {} needs {}", level.name(), needed(&runner.need(&job))));
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
        let key = match Key::of(artifact, level, &self.stock.contents, &run.taken) {
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
                self.tell(&format!(
                    "{artifact}: {} compared with what {origin} recorded, trusted because it was the first",
                    level.name()
                ));
                return Ok(());
            }
            Compared::OtherVersion(version) if !self.args.record => {
                self.tell(&format!("{artifact}: the reference is of larder {version}, so it was not compared with"));
            }
            _ => {}
        }
        if self.args.record && self.records.keep(&key, run, (self.device, self.machine, &today()))? {
            self.tell(&format!(
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

fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// The name of an artifact as that of a folder.
fn folder_name(artifact: &str) -> PathBuf {
    Path::new(&artifact.replace(['/', ':'], "-")).to_owned()
}
