//! What is known of the lab's machines: their reports, wherever they were read, side by side.
//!
//! A report is what `larder report --json` prints on a machine. In a bucket it lies within a [`State`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::artifact::Artifact;
use crate::digest::Sha256;
use crate::lock::Lock;

/// The format of [`State`] that this larder writes; one with another number cannot be read.
pub const VERSION: u32 = 1;

/// What one machine says of itself in a bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The format.
    pub version: u32,
    /// The machine.
    pub machine: String,
    /// When it said so, in seconds since 1970, by its own clock.
    pub at: i64,
    /// The lock that it goes by: the digest of its text.
    pub lock: Option<Sha256>,
    /// The signature of that text, where somebody signed it: what would lie in `inventory.lock.sig`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_signature: Option<String>,
    /// The manifests that it goes by.
    #[serde(default)]
    pub manifests: Vec<KeptManifest>,
    /// The object of `larder report --json`, read by [`Report::of`].
    pub report: Value,
}

/// A manifest of a machine, kept under its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptManifest {
    /// Where it lies, relative to the inventory.
    pub path: String,
    /// The digest of its text.
    pub sha256: Sha256,
    /// The signature of its text, where somebody signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Another larder's format.
    #[error("The state of a machine has version {version}, this larder reads version {VERSION}")]
    Version {
        /// Its version.
        version: u64,
    },
    /// Not a document of larder's.
    #[error("It is not what a larder says of its machine")]
    Unreadable {
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl State {
    /// Reads a state; fields that are not known are left out.
    pub fn parse(text: &[u8]) -> Result<Self, FleetError> {
        let unreadable = |source| FleetError::Unreadable { source };
        let value: Value = serde_json::from_slice(text).map_err(unreadable)?;
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version != u64::from(VERSION) => Err(FleetError::Version { version }),
            _ => serde_json::from_value(value).map_err(unreadable),
        }
    }
}

/// What a machine reports, as far as others need it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Report {
    /// The machine.
    pub machine: String,
    /// Its profile, if it has one.
    #[serde(default)]
    pub profile: Option<String>,
    /// When it was looked at, in seconds since 1970, by its own clock.
    pub at: i64,
    /// The larder that looked.
    pub larder: String,
    /// Sums over the artifacts.
    pub totals: Totals,
    /// What it must have.
    pub artifacts: Vec<Kept>,
}

/// Sums over the artifacts of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Totals {
    /// How many it must have.
    pub artifacts: usize,
    /// How many of them are in order, as far as is known without reading contents.
    pub in_order: usize,
    /// How many faults there are.
    pub faults: usize,
    /// Bytes that are there.
    pub here_bytes: u64,
    /// Bytes that must be there.
    pub wanted_bytes: u64,
    /// When the content was read that nobody has read for longest; absent while any was never read.
    pub proven_at: Option<i64>,
}

/// One artifact of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Kept {
    /// Its name.
    pub artifact: String,
    /// Whether every file that it must have is known.
    pub locked: bool,
    /// Files that it must have.
    pub files: usize,
    /// Files that are there.
    pub here_files: usize,
    /// Their bytes.
    pub here_bytes: u64,
    /// When the file was proven that was proven least recently, if all were.
    pub proven_at: Option<i64>,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// Whether nobody else has it.
    #[serde(default)]
    pub irreplaceable: bool,
    /// Of what nobody else has: its files.
    #[serde(default)]
    pub contents: Vec<HeldContent>,
}

/// One file of something that nobody else has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldContent {
    /// Its path in the store.
    pub path: String,
    /// Its length, where that is known.
    pub bytes: Option<u64>,
    /// The name of its content, such as `sha256:…`; absent where nobody has read it.
    #[serde(default)]
    pub content: Option<String>,
    /// Whether it is there, and not known to be wrong.
    pub here: bool,
}

/// One thing that is wrong on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Fault {
    /// The file, where it is about one.
    #[serde(default)]
    pub path: Option<String>,
    /// In words.
    pub detail: String,
}

impl Report {
    /// Reads what `larder report --json` printed.
    pub fn parse(text: &str) -> Result<Self, FleetError> {
        serde_json::from_str(text).map_err(|source| FleetError::Unreadable { source })
    }

    /// Reads the same from within another document.
    pub fn of(value: Value) -> Result<Self, FleetError> {
        serde_json::from_value(value).map_err(|source| FleetError::Unreadable { source })
    }

    /// The artifact called `name`.
    pub fn artifact(&self, name: &str) -> Option<&Kept> {
        self.artifacts.iter().find(|kept| kept.artifact == name)
    }

    /// How many artifacts are there and were read and right.
    pub fn verified(&self) -> usize {
        self.artifacts.iter().filter(|kept| kept.is_in_order() && kept.proven_at.is_some()).count()
    }
}

impl Kept {
    /// Whether nothing is missing or wrong, as far as names and sizes tell.
    pub fn is_in_order(&self) -> bool {
        self.locked && self.faults.is_empty() && self.here_files >= self.files
    }

    /// In a few words.
    fn condition(&self) -> String {
        if self.is_in_order() {
            return "in order".to_owned();
        }
        match self.faults.first() {
            _ if self.here_files == 0 => "missing".to_owned(),
            Some(fault) => fault.path.as_ref().map_or_else(String::new, |path| format!("{path}: ")) + &fault.detail,
            None if !self.locked => "not locked".to_owned(),
            None => format!("{} of {} files", self.here_files, self.files),
        }
    }
}

/// One machine, wherever it was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What it reports.
    pub report: Report,
    /// The lock that it goes by, where that was to be had.
    pub lock: Option<Lock>,
}

/// How one artifact differs between two machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The artifact.
    pub artifact: String,
    /// What the first machine has of it.
    pub first: String,
    /// What the second machine has of it.
    pub second: String,
}

/// What two machines have differently, in alphabetical order; nothing where they agree.
pub fn differences(first: &Seen, second: &Seen) -> Vec<Difference> {
    let names: BTreeSet<&str> =
        [first, second].iter().flat_map(|seen| &seen.report.artifacts).map(|kept| kept.artifact.as_str()).collect();
    names.into_iter().filter_map(|name| difference(name, first, second)).collect()
}

fn difference(name: &str, first: &Seen, second: &Seen) -> Option<Difference> {
    let told = |first: String, second: String| Some(Difference { artifact: name.to_owned(), first, second });
    let condition = |seen: &Seen| seen.report.artifact(name).map_or_else(|| "not wanted".to_owned(), Kept::condition);
    let (a, b) = (condition(first), condition(second));
    if a != b {
        return told(a, b);
    }
    let locked = |seen: &'_ Seen| seen.lock.as_ref().and_then(|lock| lock.artifact(name)).cloned();
    match (locked(first), locked(second)) {
        (Some(a), Some(b)) if !is_same(&a, &b) => told(version(&a), version(&b)),
        _ => None,
    }
}

/// Whether two machines mean the same contents by an artifact, as far as both know them.
fn is_same(a: &Artifact, b: &Artifact) -> bool {
    let paths = |artifact: &Artifact| artifact.files.iter().map(|file| file.path.clone()).collect::<BTreeSet<_>>();
    let others: BTreeMap<_, _> = b.files.iter().map(|file| (&file.path, &file.digests)).collect();
    let agree =
        |file: &crate::artifact::File| others.get(&file.path).is_none_or(|other| file.digests.check(other).is_ok());
    paths(a) == paths(b) && a.files.iter().all(agree)
}

fn version(artifact: &Artifact) -> String {
    match &artifact.revision {
        Some(revision) => format!("revision {}", revision.chars().take(12).collect::<String>()),
        None => format!("content {}", &Sha256::of(format!("{:?}", artifact.files).as_bytes()).to_string()[..12]),
    }
}

/// Files that nobody else has, and the machines that have exactly these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copies {
    /// The artifact.
    pub artifact: String,
    /// Its files that the same machines have, in alphabetical order. Two of one path are two contents.
    pub files: Vec<String>,
    /// The machines on which they are, and not known to be wrong.
    pub machines: Vec<String>,
}

impl Copies {
    /// Whether one more loss would be the last one.
    pub fn is_alarming(&self) -> bool {
        self.machines.len() < 2
    }
}

/// The contents that no other source has, by artifact in alphabetical order, and who has them.
///
/// Two machines have a copy each where path and content agree; where one of them does not know the content, because
/// nobody has read it there, path and length.
pub fn copies(machines: &[Seen]) -> Vec<Copies> {
    let mut artifacts: BTreeMap<&str, Vec<(&str, &HeldContent)>> = BTreeMap::new();
    for seen in machines {
        for kept in seen.report.artifacts.iter().filter(|kept| kept.irreplaceable) {
            let held = artifacts.entry(&kept.artifact).or_default();
            held.extend(kept.contents.iter().map(|content| (seen.report.machine.as_str(), content)));
        }
    }
    artifacts.into_iter().flat_map(|(artifact, held)| copies_of(artifact, &held)).collect()
}

/// What a file is known by: its path, and its content or, where that is not known, its length.
type Identity<'a> = (&'a str, Option<&'a str>, Option<u64>);

fn copies_of(artifact: &str, held: &[(&str, &HeldContent)]) -> Vec<Copies> {
    let mut holders: BTreeMap<Identity<'_>, BTreeSet<&str>> = BTreeMap::new();
    for (machine, file) in held {
        let machines = holders.entry(identity(file, held)).or_default();
        machines.extend(file.here.then_some(*machine));
    }
    let mut by_machines: BTreeMap<BTreeSet<&str>, Vec<String>> = BTreeMap::new();
    for ((path, ..), machines) in holders {
        by_machines.entry(machines).or_default().push(path.to_owned());
    }
    // A machine that is to have something and names no file has nothing.
    if by_machines.is_empty() {
        by_machines.insert(BTreeSet::new(), Vec::new());
    }
    let copies = by_machines.into_iter().map(|(machines, files)| Copies {
        artifact: artifact.to_owned(),
        files,
        machines: machines.into_iter().map(str::to_owned).collect(),
    });
    copies.collect()
}

/// What was never read counts as the content that lies elsewhere at the same path in the same length, if it is one.
fn identity<'a>(file: &'a HeldContent, held: &[(&str, &'a HeldContent)]) -> Identity<'a> {
    let path = file.path.as_str();
    if let Some(content) = &file.content {
        return (path, Some(content), None);
    }
    let alike = held.iter().filter(|(_, other)| other.path == file.path && other.bytes == file.bytes);
    let known: BTreeSet<&str> = alike.filter_map(|(_, other)| other.content.as_deref()).collect();
    match known.len() {
        1 => (path, known.first().copied(), None),
        _ => (path, None, file.bytes),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(machine: &str, artifacts: Value) -> Seen {
        let totals =
            json!({"artifacts": 1, "in_order": 1, "faults": 0, "here_bytes": 1, "wanted_bytes": 1, "proven_at": null});
        let report = json!({"version": 1, "command": "report", "machine": machine, "profile": null, "at": 5,
            "larder": "0.1.0", "totals": totals, "artifacts": artifacts, "findings": [], "runs": [], "more": true});
        Seen { report: Report::parse(&report.to_string()).unwrap(), lock: None }
    }

    fn kept(name: &str, here: usize, irreplaceable: bool) -> Value {
        json!({"artifact": name, "store": "s", "files": 2, "here_files": here, "here_bytes": 1, "proven_at": null,
            "locked": true, "faults": [], "wanted_bytes": 2, "last_good": null, "irreplaceable": irreplaceable})
    }

    #[test]
    fn machines_are_told_apart_by_what_they_lack() {
        let first = seen("a", json!([kept("x", 2, false), kept("y", 2, false), kept("only-a", 2, false)]));
        let second = seen("b", json!([kept("x", 2, false), kept("y", 1, false)]));
        let told: Vec<_> = differences(&first, &second).into_iter().map(|d| (d.artifact, d.first, d.second)).collect();
        let line = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(told, [line("only-a", "in order", "not wanted"), line("y", "in order", "1 of 2 files")]);
        assert!(differences(&first, &first).is_empty());
    }

    fn held(path: &str, content: Option<&str>, here: bool) -> Value {
        json!({"path": path, "bytes": 9, "content": content, "here": here})
    }

    fn own(machine: &str, contents: Value) -> Seen {
        let mut lora = kept("lora", 2, true);
        lora["contents"] = contents;
        seen(machine, json!([lora, kept("x", 2, false)]))
    }

    fn counted(machines: &[Seen]) -> Vec<(Vec<String>, Vec<String>)> {
        copies(machines).into_iter().map(|copies| (copies.files, copies.machines)).collect()
    }

    fn line(files: &[&str], machines: &[&str]) -> (Vec<String>, Vec<String>) {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        (own(files), own(machines))
    }

    #[test]
    fn copies_are_counted_by_content_and_not_by_name() {
        let (one, other) = (Some("sha256:1"), Some("sha256:2"));
        let same = [own("a", json!([held("f", one, true)])), own("b", json!([held("f", one, true)]))];
        assert_eq!(counted(&same), [line(&["f"], &["a", "b"])]);
        let different = [own("a", json!([held("f", one, true)])), own("b", json!([held("f", other, true)]))];
        assert_eq!(counted(&different), [line(&["f"], &["a"]), line(&["f"], &["b"])]);
        let renamed = [own("a", json!([held("f", None, true)])), own("b", json!([held("g", None, true)]))];
        assert_eq!(counted(&renamed), [line(&["f"], &["a"]), line(&["g"], &["b"])]);
        let partly = [
            own("a", json!([held("f", one, true), held("g", other, true)])),
            own("b", json!([held("f", one, true), held("g", other, false)])),
        ];
        assert_eq!(counted(&partly), [line(&["g"], &["a"]), line(&["f"], &["a", "b"])]);
        assert!(copies(&partly)[0].is_alarming() && !copies(&partly)[1].is_alarming());
    }

    #[test]
    fn what_was_never_read_counts_by_path_and_length_while_there_is_one_content() {
        let one = own("a", json!([held("f", Some("sha256:1"), true)]));
        let other = own("c", json!([held("f", Some("sha256:2"), true)]));
        let unread = own("b", json!([held("f", None, true)]));
        assert_eq!(counted(&[one.clone(), unread.clone()]), [line(&["f"], &["a", "b"])]);
        assert_eq!(counted(&[one, unread, other]).len(), 3, "nobody knows which of the two it is");
        assert_eq!(counted(&[own("a", json!([held("f", None, false)]))]), [line(&["f"], &[])]);
        assert_eq!(counted(&[own("a", json!([]))]), [line(&[], &[])]);
    }

    #[test]
    fn states_of_another_version_and_nonsense_are_refused() {
        let state = json!({"version": 2, "anything": 1}).to_string();
        assert!(matches!(State::parse(state.as_bytes()), Err(FleetError::Version { version: 2 })));
        assert!(matches!(State::parse(b"{}"), Err(FleetError::Unreadable { .. })));
        assert!(matches!(State::parse(b"\xff"), Err(FleetError::Unreadable { .. })));
    }
}
