//! What happened to files: every verification, every change, every repair.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use super::{Facts, FactsError, as_stored};
use crate::artifact::Found;
use crate::digest::{Digests, Sha256};

/// What is older than this is forgotten, except faults and repairs.
const KEPT_FOR: i64 = 400 * 24 * 3600;

/// One thing that happened to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// Seconds since 1970.
    pub at: i64,
    /// Absolute path of the content.
    pub path: PathBuf,
    /// The first artifact that wants it; empty where it only arrived.
    pub artifact: String,
    /// `proven`, `first-use`, `accepted`, `arrived`, `repaired`, or the kind of a fault.
    pub event: String,
    /// Of what was read, where the whole of it was hashed.
    pub sha256: Option<Sha256>,
    /// Bytes that were read.
    pub bytes: u64,
    /// In words.
    pub detail: String,
}

/// What happened to one file to which more happened than that it arrived and was right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileHistory {
    /// Absolute path of the content.
    pub place: PathBuf,
    /// The artifact that wants it; empty where nobody did.
    pub artifact: String,
    /// The newest first; what happened again and again is one of them.
    pub episodes: Vec<Episode>,
}

/// The same happening, once or several times in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Episode {
    /// As [`Happening::event`].
    pub event: String,
    /// When it happened first, in seconds since 1970.
    pub first: i64,
    /// When it happened last.
    pub last: i64,
    /// How often.
    pub times: usize,
    /// In words, as the last time.
    pub detail: String,
}

/// How many episodes of one file are told.
const EPISODES: usize = 12;

impl Facts {
    /// The files with faults, repairs or accepted contents in their history, at most `most`: those with the newest first.
    pub fn histories(&self, most: usize) -> Result<Vec<FileHistory>, FactsError> {
        let ask = "SELECT path, max(at) FROM history WHERE event NOT IN ('proven', 'first-use', 'arrived') \
                   GROUP BY path ORDER BY max(at) DESC, path LIMIT ?1";
        let paths: Vec<Vec<u8>> = self.database(|connection| {
            connection.prepare_cached(ask)?.query_map([as_stored(most as u64)], |row| row.get(0))?.collect()
        })?;
        let paths = paths.into_iter().map(|path| PathBuf::from(OsStr::from_bytes(&path)));
        paths.map(|path| Ok(file_history(self.history(&path)?, path))).collect()
    }

    /// Adds to the history.
    pub fn note(&self, happenings: &[Happening]) -> Result<(), FactsError> {
        self.database(|connection| {
            let transaction = connection.unchecked_transaction()?;
            happenings.iter().try_for_each(|happening| insert(&transaction, happening))?;
            transaction.commit()
        })
    }

    /// What happened to the file at `path`, the newest first.
    pub fn history(&self, path: &Path) -> Result<Vec<Happening>, FactsError> {
        self.ask_history("path = ?1 ORDER BY at DESC, id DESC", path.as_os_str().as_bytes())
    }

    /// When and where this content was proven or arrived last, under any name.
    pub fn last_seen(&self, content: &Sha256) -> Result<Option<Happening>, FactsError> {
        let ask = "sha256 = ?1 AND event IN ('proven', 'arrived', 'repaired') ORDER BY at DESC, id DESC LIMIT 1";
        Ok(self.ask_history(ask, content.as_bytes())?.into_iter().next())
    }

    /// Forgets successes that nobody asks for any more, a year after they happened.
    pub fn forget_old_history(&self, now: i64) -> Result<(), FactsError> {
        let forget = "DELETE FROM history WHERE at < ?1 AND event IN ('proven', 'first-use', 'arrived')";
        self.database(|connection| connection.execute(forget, [now - KEPT_FOR]).map(|_| ()))
    }

    fn ask_history(&self, condition: &str, value: &[u8]) -> Result<Vec<Happening>, FactsError> {
        let ask = format!("SELECT at, path, artifact, event, sha256, bytes, detail FROM history WHERE {condition}");
        self.database(|connection| connection.prepare_cached(&ask)?.query_map([value], read)?.collect())
    }
}

/// Joins what happened again and again; `happenings` come newest first.
fn file_history(happenings: Vec<Happening>, place: PathBuf) -> FileHistory {
    let artifact = happenings.iter().find(|one| !one.artifact.is_empty()).map(|one| one.artifact.clone());
    let mut episodes: Vec<Episode> = Vec::new();
    for Happening { at, event, detail, .. } in happenings {
        let is_full = episodes.len() == EPISODES;
        match episodes.last_mut().filter(|last| last.event == event) {
            Some(episode) => {
                episode.first = at;
                episode.times += 1;
            }
            None if is_full => break,
            None => episodes.push(Episode { event, first: at, last: at, times: 1, detail }),
        }
    }
    FileHistory { place, artifact: artifact.unwrap_or_default(), episodes }
}

pub(super) fn insert(connection: &Connection, happening: &Happening) -> Result<(), rusqlite::Error> {
    let add =
        "INSERT INTO history (at, path, artifact, event, sha256, bytes, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    connection
        .prepare_cached(add)?
        .execute(params![
            happening.at,
            happening.path.as_os_str().as_bytes(),
            happening.artifact,
            happening.event,
            happening.sha256.as_ref().map(Sha256::as_bytes),
            as_stored(happening.bytes),
            happening.detail,
        ])
        .map(|_| ())
}

/// Notes that other content than before was placed by larder.
pub(super) fn note_arrival(
    connection: &Connection,
    found: &Found,
    digests: &Digests,
    at: i64,
) -> Result<(), rusqlite::Error> {
    let path = found.path.as_os_str().as_bytes();
    let before: Option<[u8; 32]> = connection
        .prepare_cached("SELECT sha256 FROM measured WHERE path = ?1")?
        .query_row([path], |row| row.get(0))
        .optional()?;
    let Some(sha256) = digests.sha256.filter(|sha256| before != Some(*sha256.as_bytes())) else { return Ok(()) };
    let happening = Happening {
        at,
        path: found.path.clone(),
        artifact: String::new(),
        event: "arrived".to_owned(),
        sha256: Some(sha256),
        bytes: found.size,
        detail: String::new(),
    };
    insert(connection, &happening)
}

fn read(row: &Row<'_>) -> Result<Happening, rusqlite::Error> {
    Ok(Happening {
        at: row.get(0)?,
        path: PathBuf::from(OsStr::from_bytes(&row.get::<_, Vec<u8>>(1)?)),
        artifact: row.get(2)?,
        event: row.get(3)?,
        sha256: row.get::<_, Option<[u8; 32]>>(4)?.map(Sha256::from_bytes),
        bytes: row.get::<_, i64>(5)?.cast_unsigned(),
        detail: row.get(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happening(at: i64, event: &str, content: &[u8]) -> Happening {
        Happening {
            at,
            path: "/s/a".into(),
            artifact: "a".to_owned(),
            event: event.to_owned(),
            sha256: Some(Sha256::of(content)),
            bytes: u64::MAX,
            detail: "…".to_owned(),
        }
    }

    #[test]
    fn what_happened_is_told_in_order_and_successes_are_forgotten_after_a_year() {
        let facts = Facts::in_memory().unwrap();
        let (old, rot, new) =
            (happening(5, "proven", b"1"), happening(7, "rotted", b"2"), happening(9, "proven", b"1"));
        facts.note(&[old.clone(), rot.clone(), new.clone()]).unwrap();
        assert_eq!(facts.history(Path::new("/s/a")).unwrap(), [new.clone(), rot.clone(), old]);
        assert_eq!(facts.last_seen(&Sha256::of(b"1")).unwrap(), Some(new));
        assert_eq!(facts.last_seen(&Sha256::of(b"2")).unwrap(), None, "it was never right");
        facts.forget_old_history(10 + KEPT_FOR).unwrap();
        assert_eq!(facts.history(Path::new("/s/a")).unwrap(), [rot]);
    }

    #[test]
    fn the_history_of_a_file_joins_what_happens_again_and_again() {
        let facts = Facts::in_memory().unwrap();
        let other = Happening { path: "/s/b".into(), ..happening(1, "proven", b"1") };
        let events = [(1, "proven"), (2, "proven"), (3, "rotted"), (4, "rotted"), (5, "repaired"), (6, "proven")];
        facts.note(&events.map(|(at, event)| happening(at, event, b"1"))).unwrap();
        facts.note(&[other]).unwrap();
        let histories = facts.histories(9).unwrap();
        assert_eq!((histories.len(), histories[0].place.as_path()), (1, Path::new("/s/a")), "nothing is wrong with b");
        let told: Vec<_> =
            histories[0].episodes.iter().map(|one| (one.event.as_str(), one.first, one.last, one.times)).collect();
        assert_eq!(told, [("proven", 6, 6, 1), ("repaired", 5, 5, 1), ("rotted", 3, 4, 2), ("proven", 1, 2, 2)]);
        assert!(facts.histories(0).unwrap().is_empty());
    }

    #[test]
    fn an_arrival_is_noted_once() {
        let facts = Facts::in_memory().unwrap();
        let found = Found { path: "/s/a".into(), size: 3, mtime_ns: 1, inode: 1, device: 1, owner: (0, 0) };
        for content in [b"one", b"one", b"two"] {
            facts.record(&found, &Digests::sha256(Sha256::of(content)), 7).unwrap();
        }
        let events: Vec<_> = facts.history(Path::new("/s/a")).unwrap().into_iter().map(|h| h.sha256).collect();
        assert_eq!(events, [Some(Sha256::of(b"two")), Some(Sha256::of(b"one"))]);
    }
}
