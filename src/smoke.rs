//! Smoke tests: does a generator that is here work?
//!
//! Three levels. *Structure* compares headers with what the architecture needs and reads no weights ([`structure`]); it
//! is done here for every artifact. *Component* and *generate* compute; they are done by a [`Runner`], which the
//! manifest's key `smoke` names. Nothing here prints, and nothing changes a store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod compare;
mod expected;
mod folder;
mod gguf_model;
mod last;
mod lora;
mod memory;
mod quantised;
mod record;
#[cfg(feature = "smoke")]
mod runners;
mod structure;
mod summary;
mod tokenizer;
mod units;

pub use last::{LastTests, Made, ShownTest, Smoked};
pub use memory::available_memory;
pub use record::{Compared, Content, Key, Record, RecordError, Records};
pub use structure::{structure, structure_of_all};
pub use summary::Summary;

/// How much is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Names, shapes and element types of all tensors, folders, tokenizers: from headers, in seconds.
    Structure,
    /// One real forward pass of each part.
    Component,
    /// A few steps from the prompt to the picture, sound or sentence.
    Generate,
}

impl Level {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Level::Structure => "structure",
            Level::Component => "component",
            Level::Generate => "generate",
        }
    }
}

/// Where a runner computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The processor, in single precision.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it must be.
    Passed,
    /// The model is wrong.
    Failed,
    /// The machine is wrong: no GPU, too little memory. Nothing is known of the model.
    EnvironmentFault,
    /// It could not be tried: nothing is here, or larder has no runner for it.
    NotPossible,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The level that it belongs to.
    pub level: Level,
    /// What was looked at, such as `tensors of transformer/`.
    pub name: String,
    /// What was found.
    pub measured: String,
    /// What is right.
    pub threshold: String,
    /// Where the threshold comes from.
    pub basis: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Everything that is wrong, one thing each: complete, however long.
    pub details: Vec<String>,
}

impl Check {
    /// A check that passed, unless there is anything in `details`.
    pub fn of(name: impl Into<String>, measured: impl Into<String>, wanted: [&str; 2], details: Vec<String>) -> Self {
        let [threshold, basis] = wanted.map(str::to_owned);
        let outcome = if details.is_empty() { Outcome::Passed } else { Outcome::Failed };
        Self {
            level: Level::Structure,
            name: name.into(),
            measured: measured.into(),
            threshold,
            basis,
            outcome,
            details,
        }
    }

    /// The same with another outcome.
    #[must_use]
    pub fn ending(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    /// The same for another level.
    #[must_use]
    pub fn at(self, level: Level) -> Self {
        Self { level, ..self }
    }
}

/// Something that a runner made: a picture, a sound, a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// What it shows, such as the prompt.
    pub title: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// What a generator took from another artifact, because its own files do not have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// What it is, such as `text encoders`.
    pub what: String,
    /// The artifact.
    pub artifact: String,
    /// The files, as [`Job::others`] calls them.
    pub files: Vec<String>,
}

impl Taken {
    /// All of them in words: `text encoders of clip-l, settings and tokenizers of sd35-large`.
    pub fn words(all: &[Self]) -> String {
        let words: Vec<String> = all.iter().map(|taken| format!("{} of {}", taken.what, taken.artifact)).collect();
        words.join(", ")
    }
}

/// What is known of one artifact after its smoke test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The artifact.
    pub artifact: String,
    /// What its manifest names as smoke test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smoke: Option<String>,
    /// The level that was asked for; where the highest was, the highest that was tried.
    pub level: Level,
    /// The worst outcome of all checks.
    pub outcome: Outcome,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
    /// What was made.
    pub outputs: Vec<Output>,
    /// What took part and is of other artifacts: the verdict is about these, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<Taken>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Verdict {
    /// Sums up `checks`.
    pub fn of(artifact: &str, smoke: Option<&str>, level: Level, checks: Vec<Check>) -> Self {
        Self {
            artifact: artifact.to_owned(),
            smoke: smoke.map(str::to_owned),
            level,
            outcome: worst(&checks),
            checks,
            outputs: Vec::new(),
            taken: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Adds what a runner found.
    pub fn add(&mut self, run: Run) {
        let known = self.taken.clone();
        self.checks.extend(run.checks);
        self.outputs.extend(run.outputs);
        self.taken.extend(run.taken.into_iter().filter(|taken| !known.contains(taken)));
        self.outcome = worst(&self.checks);
    }
}

fn worst(checks: &[Check]) -> Outcome {
    let has = |outcome| checks.iter().any(|check| check.outcome == outcome);
    [Outcome::Failed, Outcome::EnvironmentFault, Outcome::NotPossible]
        .into_iter()
        .find(|outcome| has(*outcome))
        .unwrap_or(Outcome::Passed)
}

/// What a runner is given.
pub struct Job<'a> {
    /// The artifact's name.
    pub artifact: &'a str,
    /// The manifest's key `smoke`.
    pub smoke: &'a str,
    /// What is to be tried: component or generate, never structure, which has passed before.
    pub level: Level,
    /// Where to compute.
    pub device: Device,
    /// The artifact's files that are here: their paths within the artifact, and where they lie.
    ///
    /// Files of an Ollama image are found by what the image calls them, such as `model`.
    pub files: &'a BTreeMap<String, PathBuf>,
    /// The files of other artifacts that are here and named by the same machine, such as a text encoder of its own.
    pub others: &'a BTreeMap<String, BTreeMap<String, PathBuf>>,
    /// An existing folder for what is made.
    pub out: &'a Path,
    /// Where chance begins: the same number gives the same output.
    pub seed: u64,
    /// Told before each stage and block: what is done, how far, of how much.
    pub told: &'a (dyn Fn(&str, u64, u64) + Sync),
    /// Asked between blocks; a runner that hears `true` ends soon, with what it has.
    pub stopped: &'a (dyn Fn() -> bool + Sync),
}

/// What a run will take, known before it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Main memory in bytes, beyond what the system can take back.
    pub memory: u64,
    /// Memory of the GPU in bytes; 0 on the CPU.
    pub device_memory: u64,
}

/// What a runner found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// Each thing that was looked at.
    pub checks: Vec<Check>,
    /// What was made.
    pub outputs: Vec<Output>,
    /// What was computed, in few numbers, to be compared with what a trusted machine recorded.
    pub summaries: Vec<Summary>,
    /// What it took from files of other artifacts.
    pub taken: Vec<Taken>,
}

/// Tries one family of generators with real weights.
///
/// A runner answers for environment faults itself: a missing GPU or too little memory is a check that ends in
/// [`Outcome::EnvironmentFault`], never an error of the model's. It keeps at most one model on the device.
pub trait Runner: Send + Sync {
    /// The values of the manifest's key `smoke` that it answers to.
    fn smokes(&self) -> &'static [&'static str];

    /// Whether it can try this level.
    fn can(&self, level: Level) -> bool;

    /// What it makes at this level for people to look at or to listen to, such as `a picture`; none where it only
    /// measures.
    fn makes(&self, level: Level) -> Option<&'static str>;

    /// What `job` will take.
    fn need(&self, job: &Job<'_>) -> Need;

    /// Tries it. Every check it makes is of the job's level.
    fn run(&self, job: &Job<'_>) -> Run;
}

/// The runners that this program was built with.
pub fn runners() -> Vec<Box<dyn Runner>> {
    #[cfg(feature = "smoke")]
    return runners::all();
    #[cfg(not(feature = "smoke"))]
    Vec::new()
}

/// The runner for a smoke test at a level, or a check that says why there is none.
///
/// # Errors
/// The check, which ends in [`Outcome::NotPossible`].
pub fn runner<'a>(
    runners: &'a [Box<dyn Runner>],
    smoke: Option<&str>,
    level: Level,
) -> Result<&'a dyn Runner, Box<Check>> {
    let none = |why: String| {
        let check = Check::of(level.name(), why, ["a runner", "larder's own list of runners"], Vec::new());
        Box::new(check.at(level).ending(Outcome::NotPossible))
    };
    let Some(smoke) = smoke else { return Err(none("the manifest names no smoke test".to_owned())) };
    let found = runners.iter().find(|runner| runner.smokes().contains(&smoke) && runner.can(level));
    found.map(AsRef::as_ref).ok_or_else(|| none(format!("no runner yet for {smoke}")))
}

/// Tries `job`: what a runner does with settings that nobody foresaw is no reason to try nothing else.
///
/// Where the runner ends in a panic, the run is one failed check that says so.
pub fn tried(runner: &dyn Runner, job: &Job<'_>) -> Run {
    // Runners have no state that could be left half-changed.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runner.run(job))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let wanted = ["settings that larder can compute with", "the files' own settings"];
        let reason = text.unwrap_or("it did not say why").to_owned();
        let check = Check::of("computation", "larder broke off: please report it", wanted, vec![reason]);
        Run { checks: vec![check.at(job.level)], ..Run::default() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_outcome_counts() {
        let check = |outcome| Check::of("a", "b", ["c", "d"], Vec::new()).ending(outcome);
        let verdict = |outcomes: &[Outcome]| {
            let checks = outcomes.iter().map(|outcome| check(*outcome)).collect();
            Verdict::of("x", None, Level::Structure, checks).outcome
        };
        assert_eq!(verdict(&[]), Outcome::Passed);
        assert_eq!(verdict(&[Outcome::Passed, Outcome::NotPossible]), Outcome::NotPossible);
        assert_eq!(verdict(&[Outcome::NotPossible, Outcome::Failed, Outcome::EnvironmentFault]), Outcome::Failed);
    }

    struct Breaking;

    impl Runner for Breaking {
        fn smokes(&self) -> &'static [&'static str] {
            &["breaking"]
        }

        fn can(&self, _: Level) -> bool {
            true
        }

        fn makes(&self, _: Level) -> Option<&'static str> {
            None
        }

        fn need(&self, _: &Job<'_>) -> Need {
            Need { memory: 0, device_memory: 0 }
        }

        fn run(&self, _: &Job<'_>) -> Run {
            panic!("a width of {}", 0)
        }
    }

    #[test]
    fn a_runner_that_panics_fails_one_check() {
        let (files, others) = (BTreeMap::new(), BTreeMap::new());
        let job = Job {
            artifact: "a",
            smoke: "breaking",
            level: Level::Component,
            device: Device::Cpu,
            files: &files,
            others: &others,
            out: Path::new("."),
            seed: 1,
            told: &|_, _, _| {},
            stopped: &|| false,
        };
        let run = tried(&Breaking, &job);
        let [check] = run.checks.as_slice() else { panic!("{run:?}") };
        assert_eq!((check.outcome, check.level), (Outcome::Failed, Level::Component));
        assert_eq!(check.details, ["a width of 0"]);
    }

    #[test]
    fn a_level_without_a_runner_is_said_to_have_none() {
        let check = runner(&[], Some("flux2"), Level::Generate).err().unwrap();
        assert_eq!((check.outcome, check.measured.as_str()), (Outcome::NotPossible, "no runner yet for flux2"));
    }
}
