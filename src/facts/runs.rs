//! Verifications as a whole: the last runs, the faults that stand since, and when each artifact was last good.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use super::{Facts, FactsError, FileHistory, as_stored};
use crate::fsio;

/// How many runs are remembered: more than a year of nights.
const REMEMBERED: i64 = 400;
/// Of how many files is told what happened to them.
const HISTORIES: usize = 50;

/// How deep a verification looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// Names, links, sizes and headers.
    Quick,
    /// Contents.
    Full,
}

/// One verification that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// When it ended, seconds since 1970.
    pub at: i64,
    /// How deep it looked.
    pub depth: Depth,
    /// Files that were looked at.
    pub files: usize,
    /// Files whose content was read and is right.
    pub proven: usize,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Faults that it found.
    pub faults: usize,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// Files that the budget, or a stop, left for another time.
    #[serde(default)]
    pub unread: usize,
    /// Their bytes, as far as they were not read.
    #[serde(default)]
    pub unread_bytes: u64,
    /// Of these, files that were not read within the greatest age.
    #[serde(default)]
    pub overdue: usize,
    /// Their bytes, as far as they were not read.
    #[serde(default)]
    pub overdue_bytes: u64,
}

/// A fault that stands: seen by a run, and not seen to be gone since.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Standing {
    /// The artifact.
    pub artifact: String,
    /// The file, where it is about one.
    pub path: Option<String>,
    /// What kind of fault, as `verify` calls it.
    pub kind: String,
    /// In words.
    pub detail: String,
}

/// The runs that are remembered, and the faults that stand.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Runs {
    /// The oldest first.
    runs: Vec<Run>,
    standing: BTreeSet<Standing>,
    /// When each artifact was last read as a whole and nothing was wrong, seconds since 1970.
    #[serde(default)]
    good: BTreeMap<String, i64>,
    #[serde(skip)]
    histories: Vec<FileHistory>,
}

impl Runs {
    /// The runs, the last one first.
    pub fn latest_first(&self) -> Vec<Run> {
        self.runs.iter().rev().cloned().collect()
    }

    /// When all of `artifact` was last read and nothing was wrong with it, seconds since 1970.
    pub fn last_good(&self, artifact: &str) -> Option<i64> {
        self.good.get(artifact).copied()
    }

    /// What happened to files beside being right, the newest first; of the last files only.
    pub fn histories(&self) -> &[FileHistory] {
        &self.histories
    }

    /// The faults that stand.
    pub fn standing(&self) -> impl Iterator<Item = &Standing> {
        self.standing.iter()
    }
}

impl Facts {
    /// The runs that are remembered, and the faults that stand.
    pub fn runs(&self) -> Result<Runs, FactsError> {
        let histories = self.histories(HISTORIES)?;
        self.database(|connection| {
            Ok(Runs {
                histories: histories.clone(),
                runs: connection
                    .prepare_cached("SELECT * FROM run ORDER BY id")?
                    .query_map([], read_run)?
                    .collect::<Result<_, _>>()?,
                standing: standing(connection)?,
                good: connection
                    .prepare_cached("SELECT artifact, at FROM good")?
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<Result<_, _>>()?,
            })
        })
    }

    /// Adds one run, all of what it changed or, where that fails, nothing. Several larders may do this at once.
    ///
    /// `judge` is told the faults that stood before, and returns those that stand now, and whatever the caller
    /// wants to know. `good` are the artifacts of which every file is known to be right, and since when at least.
    pub fn remember_run<T>(
        &self,
        run: &Run,
        good: &[(&str, i64)],
        judge: impl Fn(&BTreeSet<Standing>) -> (BTreeSet<Standing>, T),
    ) -> Result<T, FactsError> {
        self.database(|connection| {
            // Who reads what stood must be who writes what stands: nobody else comes in between.
            connection.execute_batch("BEGIN IMMEDIATE")?;
            let written = (|| {
                let (now, told) = judge(&standing(connection)?);
                insert_run(connection, run)?;
                replace_standing(connection, &now)?;
                good.iter().try_for_each(|(artifact, at)| insert_good(connection, artifact, *at))?;
                connection.execute_batch("COMMIT")?;
                Ok(told)
            })();
            if written.is_err() {
                let _ = connection.execute_batch("ROLLBACK");
            }
            written
        })
    }

    /// Takes over what an older larder kept in `runs.json` in the folder `state`, and removes that file.
    ///
    /// Like the facts it was a cache: what cannot be read is dropped, and what cannot be removed is taken again.
    pub(super) fn take_over_runs(&self, state: &Path) {
        let place = state.join("runs.json");
        let Ok(text) = fs_err::read(&place) else { return };
        if let Ok(before) = serde_json::from_slice::<Runs>(&text) {
            let taken = self.database(|connection| take_over(connection, &before));
            if let Err(error) = taken {
                tracing::warn!(error = &error as &dyn std::error::Error, "earlier runs are not taken over yet");
                return;
            }
        }
        for name in ["runs.json", "runs.lock"] {
            // Where it cannot be removed, the next larder finds that everything is known already.
            let _ = fsio::remove_file(&state.join(name));
        }
    }
}

fn take_over(connection: &Connection, before: &Runs) -> Result<(), rusqlite::Error> {
    let transaction = connection.unchecked_transaction()?;
    let known: i64 = transaction.query_row("SELECT count(*) FROM run", [], |row| row.get(0))?;
    if known == 0 {
        before.runs.iter().try_for_each(|run| insert_run(&transaction, run))?;
        replace_standing(&transaction, &before.standing)?;
        before.good.iter().try_for_each(|(artifact, at)| insert_good(&transaction, artifact, *at))?;
    }
    transaction.commit()
}

fn insert_run(connection: &Connection, run: &Run) -> Result<(), rusqlite::Error> {
    let depth = match run.depth {
        Depth::Quick => "quick",
        Depth::Full => "full",
    };
    let add = "INSERT INTO run (at, depth, files, proven, bytes_read, faults, interrupted, unread, unread_bytes, overdue, \
        overdue_bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let number = |number: usize| as_stored(number as u64);
    connection.prepare_cached(add)?.execute(params![
        run.at,
        depth,
        number(run.files),
        number(run.proven),
        as_stored(run.bytes_read),
        number(run.faults),
        run.interrupted,
        number(run.unread),
        as_stored(run.unread_bytes),
        number(run.overdue),
        as_stored(run.overdue_bytes),
    ])?;
    let forget = "DELETE FROM run WHERE id NOT IN (SELECT id FROM run ORDER BY id DESC LIMIT ?1)";
    connection.prepare_cached(forget)?.execute([REMEMBERED]).map(|_| ())
}

fn insert_good(connection: &Connection, artifact: &str, at: i64) -> Result<(), rusqlite::Error> {
    let add = "INSERT INTO good VALUES (?1, ?2) ON CONFLICT (artifact) DO UPDATE SET at = max(at, ?2)";
    connection.prepare_cached(add)?.execute(params![artifact, at]).map(|_| ())
}

fn replace_standing(connection: &Connection, now: &BTreeSet<Standing>) -> Result<(), rusqlite::Error> {
    connection.execute("DELETE FROM standing", [])?;
    let mut add = connection.prepare_cached("INSERT INTO standing VALUES (?1, ?2, ?3, ?4)")?;
    now.iter().try_for_each(|one| add.execute(params![one.artifact, one.path, one.kind, one.detail]).map(|_| ()))
}

fn standing(connection: &Connection) -> Result<BTreeSet<Standing>, rusqlite::Error> {
    let read = |row: &Row<'_>| {
        Ok(Standing { artifact: row.get(0)?, path: row.get(1)?, kind: row.get(2)?, detail: row.get(3)? })
    };
    connection.prepare_cached("SELECT * FROM standing")?.query_map([], read)?.collect()
}

fn read_run(row: &Row<'_>) -> Result<Run, rusqlite::Error> {
    let number = |row: &Row<'_>, column| Ok::<_, rusqlite::Error>(row.get::<_, i64>(column)?.cast_unsigned());
    Ok(Run {
        at: row.get(1)?,
        depth: if row.get::<_, String>(2)? == "quick" { Depth::Quick } else { Depth::Full },
        files: number(row, 3)? as usize,
        proven: number(row, 4)? as usize,
        bytes_read: number(row, 5)?,
        faults: number(row, 6)? as usize,
        interrupted: row.get(7)?,
        unread: number(row, 8)? as usize,
        unread_bytes: number(row, 9)?,
        overdue: number(row, 10)? as usize,
        overdue_bytes: number(row, 11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsio::{WriteOptions, write_atomic};

    const BEFORE: &str = r#"{"version": 1,
        "runs": [{"at": 5, "depth": "quick", "files": 3, "proven": 0, "bytes_read": 0, "faults": 1, "interrupted": false}],
        "standing": [{"artifact": "a", "path": null, "kind": "missing", "detail": "it is missing"}],
        "good": {"b": 4}}"#;

    #[test]
    fn what_an_older_larder_kept_beside_the_facts_is_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        let (facts, old) = (dir.path().join("facts.sqlite"), dir.path().join("runs.json"));
        let write = |text: &str| write_atomic(&old, text.as_bytes(), &WriteOptions::default()).unwrap();
        write(BEFORE);
        for _ in 0..2 {
            let runs = Facts::open(&facts).unwrap().runs().unwrap();
            let latest = runs.latest_first();
            assert_eq!((latest.len(), latest[0].at, latest[0].depth, latest[0].faults), (1, 5, Depth::Quick, 1));
            let standing: Vec<_> = runs.standing().map(|one| (one.artifact.as_str(), one.kind.as_str())).collect();
            assert_eq!((standing, runs.last_good("b")), (vec![("a", "missing")], Some(4)));
            assert!(!old.exists(), "there is one place for it");
        }
        for text in [BEFORE, "{"] {
            write(text);
            assert_eq!(Facts::open(&facts).unwrap().runs().unwrap().latest_first().len(), 1, "it knows better by now");
            assert!(!old.exists());
        }
    }
}
