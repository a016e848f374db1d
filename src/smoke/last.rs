//! What the last smoke tests found and made, in one small file beside the facts.
//!
//! It is a cache like the facts: when it is deleted, only the report forgets.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fsio::{self, FileLock, WriteOptions};
use crate::smoke::{Level, Outcome, Verdict};

const VERSION: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer files are named and not shown.
const MAX_FILE: u64 = 4 << 20;
/// What all of them together may have.
const MAX_ALL: u64 = 24 << 20;

/// A smoke test that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Smoked {
    /// When, seconds since 1970.
    pub at: i64,
    /// What it found and made.
    pub verdict: Verdict,
}

/// The last smoke test of each artifact at each level.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct LastTests {
    version: u32,
    artifacts: BTreeMap<String, Vec<Smoked>>,
}

/// A smoke test, with what it made as far as it can be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownTest {
    /// The test.
    pub smoked: Smoked,
    /// What it made, in the order of its outputs.
    pub made: Vec<Made>,
}

/// Something that a smoke test made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// What it is.
    pub title: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its type (`image/png`) and its bytes; none where it is gone, too long, or of no kind that a page shows.
    pub content: Option<(&'static str, Vec<u8>)>,
}

impl LastTests {
    /// Reads what is remembered in the folder `state`.
    ///
    /// Nothing is remembered where there is no file, or one that this larder cannot read.
    pub fn read(state: &Path) -> io::Result<Self> {
        let text = match fs_err::read(place(state)) {
            Ok(text) => text,
            Err(error) if fsio::is_absent(&error) => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let known = serde_json::from_slice::<Self>(&text).ok().filter(|tests| tests.version == VERSION);
        Ok(known.unwrap_or_default())
    }

    /// Remembers `verdicts`, found at `at`, in the folder `state`; others stay as they are.
    ///
    /// Several larders may do this at once. Fails where the file cannot be locked, read or written; nothing is changed
    /// then.
    pub fn remember(state: &Path, at: i64, verdicts: &[Verdict]) -> io::Result<()> {
        let _lock = FileLock::acquire(&state.join("smoke.lock"), None, PATIENCE, || ())?;
        let mut tests = Self::read(state)?;
        tests.version = VERSION;
        // What is not here has shown nothing.
        for verdict in verdicts.iter().filter(|verdict| verdict.outcome != Outcome::NotPossible) {
            let mut verdict = verdict.clone();
            for output in &mut verdict.outputs {
                output.path = std::path::absolute(&output.path)?;
            }
            let known = tests.artifacts.entry(verdict.artifact.clone()).or_default();
            known.retain(|test| test.verdict.level != verdict.level);
            known.push(Smoked { at, verdict });
        }
        let text = serde_json::to_vec_pretty(&tests).map_err(io::Error::other)?;
        fsio::write_atomic(&place(state), &text, &WriteOptions::default())
    }

    /// One test for each artifact, with pictures, sounds and texts: the last one; or, where that has passed, the last one
    /// of the highest level.
    pub fn shown(&self) -> Vec<ShownTest> {
        let mut room = MAX_ALL;
        let telling = self.artifacts.values().filter_map(|tests| {
            let last = tests.iter().max_by_key(|test| test.at)?;
            let highest = tests.iter().max_by_key(|test| test.verdict.level)?;
            Some(if last.verdict.outcome == Outcome::Passed { highest } else { last })
        });
        let mut telling: Vec<&Smoked> = telling.collect();
        telling.sort_by_key(|test| std::cmp::Reverse(test.verdict.level));
        telling.into_iter().map(|test| ShownTest { made: made(test, &mut room), smoked: test.clone() }).collect()
    }

    /// How many artifacts passed at a level, of how many that were tried at it.
    pub fn passed(&self, level: Level) -> (usize, usize) {
        let tried = || self.artifacts.values().flatten().filter(|test| test.verdict.level == level);
        (tried().filter(|test| test.verdict.outcome == Outcome::Passed).count(), tried().count())
    }
}

fn place(state: &Path) -> PathBuf {
    state.join("smoke.json")
}

fn made(test: &Smoked, room: &mut u64) -> Vec<Made> {
    let outputs = test.verdict.outputs.iter();
    outputs
        .map(|output| {
            let content = content(&output.path, *room);
            *room -= content.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
            Made { title: output.title.clone(), path: output.path.clone(), content }
        })
        .collect()
}

fn content(path: &Path, room: u64) -> Option<(&'static str, Vec<u8>)> {
    let kind = match path.extension()?.to_str()? {
        "png" => "image/png",
        "gif" => "image/gif",
        "wav" => "audio/wav",
        "txt" => "text/plain",
        _ => return None,
    };
    let length = fs_err::metadata(path).ok()?.len();
    if length > MAX_FILE.min(room) {
        return None;
    }
    // It may have grown since.
    fs_err::read(path).ok().filter(|bytes| bytes.len() as u64 <= room).map(|bytes| (kind, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smoke::{Check, Output};

    fn verdict(level: Level, outcome: Outcome, outputs: Vec<Output>) -> Verdict {
        let check = Check::of("a", "b", ["c", "d"], Vec::new()).ending(outcome);
        Verdict { outputs, ..Verdict::of("painter", Some("x"), level, vec![check]) }
    }

    #[test]
    fn the_highest_level_is_shown_until_something_fails() {
        let state = tempfile::tempdir().unwrap();
        let picture = state.path().join("a.png");
        fsio::write_atomic(&picture, b"png", &WriteOptions::default()).unwrap();
        let outputs = vec![Output { title: "a cat".to_owned(), path: picture }];
        let remember = |at, verdict: Verdict| LastTests::remember(state.path(), at, &[verdict]).unwrap();
        remember(1, verdict(Level::Generate, Outcome::Passed, outputs));
        remember(2, verdict(Level::Structure, Outcome::Passed, Vec::new()));
        remember(3, verdict(Level::Structure, Outcome::NotPossible, Vec::new()));
        let shown = LastTests::read(state.path()).unwrap().shown();
        assert_eq!((shown.len(), shown[0].smoked.at), (1, 1));
        assert_eq!(shown[0].made[0].content, Some(("image/png", b"png".to_vec())));
        remember(4, verdict(Level::Structure, Outcome::Failed, Vec::new()));
        let tests = LastTests::read(state.path()).unwrap();
        assert_eq!(tests.shown()[0].smoked.at, 4);
        assert_eq!((tests.passed(Level::Generate), tests.passed(Level::Structure)), ((1, 1), (0, 1)));
    }
}
