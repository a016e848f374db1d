//! Recorded references: what a machine that is trusted computed with exactly these files, for others to compare with.
//!
//! A record is believed because it is the first one: nobody else vouches for it. It is found by the digests that the
//! files should have, so weights that changed are compared with what they were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artifact::Artifact;
use crate::digest::Sha256;
use crate::fsio::{self, WriteOptions};
use crate::smoke::{Check, Device, Level, Outcome, Run};

/// Grows when older programs could not read the file.
const VERSION: u32 = 1;
/// Numbers of one summary.
const MOST: usize = 256;
/// How far a run on a processor may be from one on another: cosine 0.999.
const NEAR: f64 = 0.045;
/// The same where one of them computed on a GPU, whose products may round to fewer digits: cosine 0.99.
const NEAR_ON_GPU: f64 = 0.14;

/// Something that a run computed, in at most 256 numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What it is, such as `latent after the last step`; the same in every run.
    pub name: String,
    /// Numbers of it, evenly spread, in their order.
    pub numbers: Vec<f32>,
}

impl Summary {
    /// Sums up `numbers`, of which those beyond 256 are left out, evenly.
    pub fn of(name: impl Into<String>, numbers: &[f32]) -> Self {
        let count = numbers.len().min(MOST);
        let numbers = (0..count).map(|i| numbers[i * numbers.len() / count]).collect();
        Self { name: name.into(), numbers }
    }

    /// The largest distance between one of `trusted` and the one of the same name in `found`: the length of the
    /// difference as a part of the trusted one's length; infinite where one is missing or cannot be compared.
    pub fn farthest(trusted: &[Self], found: &[Self]) -> f64 {
        let of = |trusted: &Self| {
            let found = found.iter().find(|found| found.name == trusted.name);
            found.map_or(f64::INFINITY, |found| trusted.distance(found))
        };
        trusted.iter().map(of).fold(0.0, f64::max)
    }

    /// The length of the difference to `other` as a part of the length of `self`; infinite where they cannot be
    /// compared.
    fn distance(&self, other: &Self) -> f64 {
        if self.numbers.len() != other.numbers.len() {
            return f64::INFINITY;
        }
        let square = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
        let pairs = self.numbers.iter().zip(&other.numbers);
        let apart = square(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let length = square(&mut self.numbers.iter().map(|a| f64::from(*a)));
        let distance = (apart / length).sqrt();
        match (apart == 0.0, distance.is_nan()) {
            (true, _) => 0.0,
            (false, true) => f64::INFINITY,
            (false, false) => distance,
        }
    }
}

/// What a record is found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The artifact's name.
    pub artifact: String,
    /// SHA-256 over the paths and digests of its files, as they should be.
    pub files: String,
    /// The level.
    pub level: Level,
    /// The version of larder that computes.
    pub larder: String,
}

impl Key {
    /// The key of this program's runs with `artifact`.
    ///
    /// `measured` is asked for the digest of the file at this place of the artifact's list, where the manifest and the
    /// lock know none.
    ///
    /// # Errors
    /// The path of the first file of which no digest is known.
    pub fn of(artifact: &Artifact, level: Level, measured: impl Fn(usize) -> Option<Sha256>) -> Result<Self, String> {
        let mut lines = BTreeMap::new();
        for (place, file) in artifact.files.iter().enumerate() {
            let known = file.digests;
            let named = known.sha256.map(|digest| format!("sha256 {digest}"));
            let named = named.or_else(|| known.git_sha1.map(|digest| format!("git-sha1 {digest}")));
            let named = named.or_else(|| known.md5.map(|digest| format!("md5 {digest}")));
            let named = named.or_else(|| measured(place).map(|digest| format!("sha256 {digest}")));
            lines.insert(file.path.as_str(), named.ok_or_else(|| file.path.to_string())?);
        }
        let text: String = lines.iter().map(|(path, digest)| format!("{digest} {path}\n")).collect();
        Ok(Self {
            artifact: artifact.name.clone(),
            files: Sha256::of(text.as_bytes()).to_string(),
            level,
            larder: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

/// What one machine computed once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The artifact's name.
    pub artifact: String,
    /// [`Key::files`].
    pub files: String,
    /// The level.
    pub level: Level,
    /// The version of larder.
    pub larder: String,
    /// Where it computed.
    pub device: Device,
    /// The machine, as the inventory calls it.
    pub machine: String,
    /// The day, such as `2026-11-23`.
    pub at: String,
    /// What it computed.
    pub summaries: Vec<Summary>,
}

impl Record {
    /// Who made it and when.
    pub fn origin(&self) -> String {
        format!("{} on {}", self.machine, self.at)
    }

    fn is_of(&self, key: &Key) -> bool {
        self.files == key.files && self.level == key.level && self.larder == key.larder
    }

    /// The check that compares a run with it.
    fn judge(&self, device: Device, run: &Run) -> Check {
        let mut details = Vec::new();
        let mut worst = 0.0_f64;
        let is_gpu = device == Device::Cuda || self.device == Device::Cuda;
        let near = if is_gpu { NEAR_ON_GPU } else { NEAR };
        for recorded in &self.summaries {
            let Some(found) = run.summaries.iter().find(|found| found.name == recorded.name) else {
                details.push(format!("{}: this run has none", recorded.name));
                continue;
            };
            let distance = recorded.distance(found);
            worst = worst.max(distance);
            if distance > near {
                details.push(format!("{}: {distance:.1e} of its length away", recorded.name));
            }
        }
        let measured = format!("at most {worst:.1e} of its length away from what {} recorded", self.origin());
        let threshold = format!("at most {near}");
        let basis = format!("the record of {}, which is trusted because it was the first", self.origin());
        Check::of("reference", measured, [&threshold, &basis], details).at(self.level)
    }
}

/// The records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not what larder wrote.
    #[error("{} is no file of recorded references", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A newer larder wrote the file.
    #[error("{} has the version {version}, this larder reads {VERSION}: use a newer larder", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    records: Vec<Record>,
}

/// How a run was compared.
#[derive(Debug, Clone, PartialEq)]
pub enum Compared {
    /// With the record of the machine and the day named here.
    With(String),
    /// Not at all: there is only a record of this other version of larder.
    OtherVersion(String),
    /// Not at all: there is none.
    None,
}

/// All recorded references of a lab: one file beside the inventory, which its machines share.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    records: Vec<Record>,
}

impl Records {
    /// Where the records of a lab with this inventory lie.
    pub fn place(inventory: &Path) -> PathBuf {
        inventory.with_extension("smoke.json")
    }

    /// Reads the records at `path`; there are none where there is no file.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let path = path.to_owned();
        let bytes = match fs_err::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if fsio::is_absent(&error) => return Ok(Self { path, records: Vec::new() }),
            Err(source) => return Err(RecordError::Read { path, source }),
        };
        let parse = |source| RecordError::Parse { path: path.clone(), source };
        let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(parse)?;
        let version = json.get("version").and_then(serde_json::Value::as_u64).unwrap_or_default() as u32;
        if version > VERSION {
            return Err(RecordError::Newer { path, version });
        }
        let stored: Stored = serde_json::from_value(json).map_err(parse)?;
        Ok(Self { path, records: stored.records })
    }

    /// Compares a run with what was recorded of the same files, adds the check to it, and says what was compared.
    pub fn compare(&self, key: &Key, device: Device, run: &mut Run) -> Compared {
        if run.summaries.is_empty() {
            return Compared::None;
        }
        if let Some(record) = self.records.iter().find(|record| record.is_of(key)) {
            run.checks.push(record.judge(device, run));
            return Compared::With(record.origin());
        }
        let same = |record: &&Record| record.files == key.files && record.level == key.level;
        match self.records.iter().rev().find(same) {
            Some(record) => Compared::OtherVersion(record.larder.clone()),
            None => Compared::None,
        }
    }

    /// Keeps what a run computed, in place of what an older larder recorded of the same files.
    ///
    /// Does nothing, and returns `false`, where this version has recorded these files, where the run has nothing to
    /// record, and where one of its checks did not pass.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&mut self, key: &Key, run: &Run, by: (Device, &str, &str)) -> Result<bool, RecordError> {
        let is_sound = run.checks.iter().all(|check| check.outcome == Outcome::Passed);
        if !is_sound || run.summaries.is_empty() || self.records.iter().any(|record| record.is_of(key)) {
            return Ok(false);
        }
        let (device, machine, at) = by;
        let Key { artifact, files, level, larder } = key.clone();
        self.records.retain(|record| record.files != files || record.level != level);
        let (machine, at, summaries) = (machine.to_owned(), at.to_owned(), run.summaries.clone());
        self.records.push(Record { artifact, files, level, larder, device, machine, at, summaries });
        self.records.sort_by(|a, b| (&a.artifact, a.level, &a.files).cmp(&(&b.artifact, b.level, &b.files)));
        self.write()?;
        Ok(true)
    }

    fn write(&self) -> Result<(), RecordError> {
        let fault = |source| RecordError::Write { path: self.path.clone(), source };
        // One record a line, so that a lab can keep the file under version control.
        let lines: Vec<String> = self
            .records
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()
            .map_err(|error| fault(error.into()))?;
        let text = format!("{{\"version\":{VERSION},\"records\":[\n{}\n]}}\n", lines.join(",\n"));
        fsio::write_atomic(&self.path, text.as_bytes(), &WriteOptions::default()).map_err(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(numbers: &[f32]) -> Run {
        Run { summaries: vec![Summary::of("it", numbers)], ..Run::default() }
    }

    fn key(larder: &str) -> Key {
        Key { artifact: "a".to_owned(), files: "f".to_owned(), level: Level::Component, larder: larder.to_owned() }
    }

    #[test]
    fn the_first_run_is_kept_and_later_ones_are_compared_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inventory.smoke.json");
        let mut records = Records::read(&path).unwrap();
        let first = run(&[1.0, -2.0, 1e-7]);
        assert!(records.keep(&key("1"), &first, (Device::Cpu, "pc1", "2026-11-23")).unwrap());
        assert!(!records.keep(&key("1"), &run(&[9.0]), (Device::Cpu, "pc1", "2026-11-24")).unwrap());
        let records = Records::read(&path).unwrap();
        assert_eq!(records.records[0].summaries, first.summaries, "numbers come back as they were");
        for (numbers, device, outcome) in [
            (&[1.0, -2.0, 0.0][..], Device::Cpu, Outcome::Passed),
            (&[1.0, -1.8, 0.0], Device::Cpu, Outcome::Failed),
            (&[1.0, -1.8, 0.0], Device::Cuda, Outcome::Passed),
            (&[1.0, 2.0, 0.0], Device::Cuda, Outcome::Failed),
            (&[1.0, -2.0], Device::Cpu, Outcome::Failed),
            (&[f32::NAN, -2.0, 0.0], Device::Cpu, Outcome::Failed),
        ] {
            let mut run = run(numbers);
            assert_eq!(records.compare(&key("1"), device, &mut run), Compared::With("pc1 on 2026-11-23".to_owned()));
            assert_eq!(run.checks[0].outcome, outcome, "{numbers:?} {:?}", run.checks);
        }
    }

    #[test]
    fn another_version_is_not_compared_and_its_record_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::read(&folder.path().join("r.json")).unwrap();
        assert!(records.keep(&key("1"), &run(&[1.0]), (Device::Cpu, "pc1", "2026-11-23")).unwrap());
        assert_eq!(records.compare(&key("2"), Device::Cpu, &mut run(&[5.0])), Compared::OtherVersion("1".to_owned()));
        assert!(records.keep(&key("2"), &run(&[5.0]), (Device::Cpu, "pc1", "2026-11-24")).unwrap());
        assert_eq!(records.records.len(), 1);
    }

    #[test]
    fn long_things_are_thinned_out_evenly() {
        let numbers: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let summary = Summary::of("it", &numbers);
        assert_eq!((summary.numbers.len(), summary.numbers[255]), (256, 996.0));
        assert_eq!(Summary::of("it", &[]).numbers.len(), 0);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        for (text, said) in [("{}", "is no file of recorded"), ("{\"version\": 2}", "has the version 2")] {
            fsio::write_atomic(&path, text.as_bytes(), &WriteOptions::default()).unwrap();
            assert!(Records::read(&path).unwrap_err().to_string().contains(said));
        }
    }
}
