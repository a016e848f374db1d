//! Recorded references: what a machine that is trusted computed with exactly these files, for others to compare with.
//!
//! A record is believed because it is the first one: nobody else vouches for it. It is found by the digests that the
//! files should have, so weights that changed are compared with what they were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artifact::File;
use crate::digest::Sha256;
use crate::fsio::{self, WriteOptions};
use crate::smoke::{Check, Device, Level, Outcome, Run, Summary, Taken};

/// Grows when older programs could not read the file.
const VERSION: u32 = 1;
/// How far a run on a processor may be from one on another: cosine 0.999.
const NEAR: f64 = 0.045;
/// The same where one of them computed on a GPU, whose products may round to fewer digits: cosine 0.99.
const NEAR_ON_GPU: f64 = 0.14;

/// What a record is found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The artifact's name.
    pub artifact: String,
    /// SHA-256 over the paths and digests of its files and of what was taken from others, as they should be.
    pub files: String,
    /// What was taken from other artifacts.
    pub taken: Vec<Taken>,
    /// The level.
    pub level: Level,
    /// The version of larder that computes.
    pub larder: String,
}

/// One file of an artifact, by what it should contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// What runners call the file: its role in an Ollama image, else its path.
    pub name: String,
    /// Its path within the artifact.
    pub path: String,
    /// Its digest and which one that is, such as `sha256 …`; none where nobody knows one.
    pub digest: Option<String>,
}

impl Content {
    /// What the manifest and the lock know of `file`; where they know no digest, the one that was `measured`.
    pub fn of(file: &File, measured: impl FnOnce() -> Option<Sha256>) -> Self {
        let known = file.digests;
        let digest = known.sha256.map(|digest| format!("sha256 {digest}"));
        let digest = digest.or_else(|| known.git_sha1.map(|digest| format!("git-sha1 {digest}")));
        let digest = digest.or_else(|| known.md5.map(|digest| format!("md5 {digest}")));
        let digest = digest.or_else(|| measured().map(|digest| format!("sha256 {digest}")));
        let path = file.path.to_string();
        Self { name: file.role.clone().unwrap_or_else(|| path.clone()), path, digest }
    }
}

impl Key {
    /// The key of this program's runs with `artifact` at `level`, in which `taken` took part; `contents` are the files of
    /// all artifacts.
    ///
    /// # Errors
    /// The path of the first file of which no digest is known.
    pub fn of(
        artifact: &str,
        level: Level,
        contents: &BTreeMap<String, Vec<Content>>,
        taken: &[Taken],
    ) -> Result<Self, String> {
        let of = |artifact: &str| contents.get(artifact).map_or(&[][..], Vec::as_slice);
        let mut lines = BTreeMap::new();
        for content in of(artifact) {
            lines.insert(content.path.clone(), content.digest.clone().ok_or_else(|| content.path.clone())?);
        }
        let mut text: String = lines.iter().map(|(path, digest)| format!("{digest} {path}\n")).collect();
        let mut lines = BTreeMap::new();
        for (other, name) in taken.iter().flat_map(|one| one.files.iter().map(|name| (&one.artifact, name))) {
            let place = format!("{other}: {name}");
            let content = of(other).iter().find(|content| content.name == *name);
            let digest = content.and_then(|content| content.digest.clone()).ok_or_else(|| place.clone())?;
            lines.insert(place, digest);
        }
        text.extend(lines.iter().map(|(place, digest)| format!("{digest} {place}\n")));
        Ok(Self {
            artifact: artifact.to_owned(),
            files: Sha256::of(text.as_bytes()).to_string(),
            taken: taken.to_vec(),
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
    /// [`Key::taken`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<Taken>,
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

    /// The checks that compare a run with it: one of what was measured, one of what was chosen.
    fn judge(&self, device: Device, run: &Run) -> Vec<Check> {
        let is_gpu = device == Device::Cuda || self.device == Device::Cuda;
        let (chosen, measured): (Vec<&Summary>, Vec<&Summary>) =
            self.summaries.iter().partition(|recorded| recorded.exact);
        let mut checks = Vec::new();
        if !measured.is_empty() {
            checks.push(self.judge_numbers(&measured, run, if is_gpu { NEAR_ON_GPU } else { NEAR }));
        }
        if !chosen.is_empty() {
            checks.push(self.judge_tokens(&chosen, run, is_gpu));
        }
        checks
    }

    fn judge_numbers(&self, recorded: &[&Summary], run: &Run, near: f64) -> Check {
        let (mut details, mut worst) = (Vec::new(), 0.0_f64);
        for recorded in recorded {
            let Some(found) = recorded.counterpart(run, &mut details) else { continue };
            let distance = recorded.distance(found);
            worst = worst.max(distance);
            if distance > near {
                details.push(format!("{}: {distance:.1e} of its length away", recorded.name));
            }
        }
        let measured = format!("at most {worst:.1e} of its length away from what {} recorded", self.origin());
        self.check(measured, &format!("at most {near}"), details)
    }

    /// Rounded otherwise, a model may choose another word where two are as likely: a GPU's answers are not compared. That
    /// they are right was judged before.
    fn judge_tokens(&self, recorded: &[&Summary], run: &Run, is_gpu: bool) -> Check {
        let mut details = Vec::new();
        if is_gpu {
            let measured = format!("{} answers of a GPU, which rounds otherwise, are not compared", recorded.len());
            return self.check(measured, "the same tokens, where both computed on a processor", details);
        }
        for recorded in recorded {
            let Some(found) = recorded.counterpart(run, &mut details) else { continue };
            let parting = recorded.parting(found);
            details.extend(parting.map(|at| format!("{}: other tokens from number {} on", recorded.name, at + 1)));
        }
        let same = recorded.len() - details.len();
        let measured = format!("{same} of {} answers are those that {} recorded", recorded.len(), self.origin());
        self.check(measured, "all, token by token", details)
    }

    fn check(&self, measured: String, threshold: &str, details: Vec<String>) -> Check {
        let basis = format!("the record of {}, which is trusted because it was the first", self.origin());
        Check::of("reference", measured, [threshold, &basis], details).at(self.level)
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

    /// Compares a run with what was recorded of the same files, adds the checks to it, and says what was compared.
    pub fn compare(&self, key: &Key, device: Device, run: &mut Run) -> Compared {
        if run.summaries.is_empty() {
            return Compared::None;
        }
        if let Some(record) = self.records.iter().find(|record| record.is_of(key)) {
            run.checks.extend(record.judge(device, run));
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
        let Key { artifact, files, taken, level, larder } = key.clone();
        self.records.retain(|record| record.files != files || record.level != level);
        let (machine, at, summaries) = (machine.to_owned(), at.to_owned(), run.summaries.clone());
        self.records.push(Record { artifact, files, taken, level, larder, device, machine, at, summaries });
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
        let (artifact, files) = ("a".to_owned(), "f".to_owned());
        Key { artifact, files, taken: Vec::new(), level: Level::Component, larder: larder.to_owned() }
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
    fn what_was_taken_from_others_is_part_of_the_key() {
        let content = |name: &str, digest: &str| {
            let digest = (!digest.is_empty()).then(|| digest.to_owned());
            Content { name: name.to_owned(), path: name.to_owned(), digest }
        };
        let of = |encoder: &str, names: &[&str]| {
            let all = BTreeMap::from([
                ("single".to_owned(), vec![content("all.safetensors", "sha256 1")]),
                ("others".to_owned(), vec![content("clip_l.safetensors", encoder), content("clip_g.safetensors", "")]),
            ]);
            let files = names.iter().map(|name| (*name).to_owned()).collect();
            let taken = Taken { what: "text encoders".to_owned(), artifact: "others".to_owned(), files };
            Key::of("single", Level::Component, &all, &[taken]).map(|key| key.files)
        };
        let alone = of("sha256 2", &[]).unwrap();
        assert_eq!(alone, Sha256::of(b"sha256 1 all.safetensors\n").to_string(), "as older records have it");
        let with = of("sha256 2", &["clip_l.safetensors"]).unwrap();
        let other = of("sha256 3", &["clip_l.safetensors"]).unwrap();
        assert!(with != alone && other != alone && with != other);
        let unknown = of("sha256 2", &["clip_l.safetensors", "clip_g.safetensors"]);
        assert_eq!(unknown, Err("others: clip_g.safetensors".to_owned()));
    }

    #[test]
    fn answers_are_the_same_or_not_and_a_gpus_are_not_compared() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::read(&folder.path().join("r.json")).unwrap();
        let run = |tokens: &[u32]| Run { summaries: vec![Summary::tokens("capital", tokens)], ..Run::default() };
        assert!(records.keep(&key("1"), &run(&[151_643, 7, 9]), (Device::Cpu, "pc1", "2026-11-23")).unwrap());
        let records = Records::read(&folder.path().join("r.json")).unwrap();
        for (tokens, device, details) in [
            (&[151_643, 7, 9][..], Device::Cpu, &[][..]),
            (&[151_643, 7, 8], Device::Cpu, &["capital: other tokens from number 3 on"]),
            (&[151_643, 7], Device::Cpu, &["capital: other tokens from number 3 on"]),
            (&[151_642, 7, 9], Device::Cpu, &["capital: other tokens from number 1 on"]),
            (&[1], Device::Cuda, &[]),
        ] {
            let mut run = run(tokens);
            records.compare(&key("1"), device, &mut run);
            assert_eq!(run.checks[0].details, details, "{tokens:?}");
        }
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
