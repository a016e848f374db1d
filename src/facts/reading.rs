//! What readings brought: results, readings that were stopped half-way, and where content is damaged.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Row, params};

use super::history::{self, Happening};
use super::trust::{self, Trust};
use super::{Facts, FactsError, as_stored, identity, insert, insert_chunks};
use crate::artifact::Found;
use crate::digest::{ChunkDigests, Digests, Progress, Sha256};

/// In which way, and where, a file's content is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// In which way, as `verify` calls it.
    pub kind: String,
    /// In words.
    pub detail: String,
    /// What it should be; `None` where that is not known.
    pub content: Option<Sha256>,
    /// What is wrong, in the order of the file; empty where that is not known, and the whole of it may be.
    pub ranges: Vec<Range<u64>>,
    /// When it was read, in seconds since 1970.
    pub at: i64,
}

/// A reading that was stopped in the middle of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// When its first byte was read, in seconds since 1970.
    pub begun: i64,
    /// How far it came.
    pub half: Half,
}

/// How far a reading came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Half {
    /// The whole content is hashed.
    Whole(Progress),
    /// Chunks are compared with those of `content`.
    Chunks {
        /// The content whose chunks they are compared with.
        content: Sha256,
        /// Bytes that were read: whole chunks, from the beginning.
        done: u64,
        /// Numbers of the wrong ones among them.
        bad: Vec<u64>,
    },
}

/// What reading one file to its end brought.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The file.
    pub found: Found,
    /// Its digests; `None` where they are not known, because the content was only compared.
    pub digests: Option<Digests>,
    /// Its chunks' digests, where they were taken.
    pub chunks: Option<ChunkDigests>,
    /// What is wrong with it, if anything is.
    pub damage: Option<Damage>,
    /// What that means for a file that no record has a digest of.
    pub trust: Trust,
    /// For the history; its time is when the first byte was read.
    pub happening: Happening,
}

impl Facts {
    /// Remembers results, all of them or, where that fails, none.
    pub fn record_verified(&self, results: &[Verified]) -> Result<(), FactsError> {
        self.ahead().clear();
        self.database(|connection| {
            let transaction = connection.unchecked_transaction()?;
            results.iter().try_for_each(|result| record(&transaction, result))?;
            transaction.commit()
        })
    }

    /// Remembers how far the reading of `found` came.
    pub fn record_stopped(&self, found: &Found, stopped: &Stopped) -> Result<(), FactsError> {
        let (done, state, digests, content) = match &stopped.half {
            Half::Whole(progress) => {
                (progress.bytes, Some(progress.state_to_bytes()), progress.chunks_to_bytes(), None)
            }
            Half::Chunks { content, done, bad } => {
                let bad: Vec<u8> = bad.iter().flat_map(|chunk| chunk.to_be_bytes()).collect();
                (*done, None, bad, Some(content.as_bytes()))
            }
        };
        let [size, mtime, inode, device] = identity(found);
        let (path, done) = (found.path.as_os_str().as_bytes(), as_stored(done));
        self.database(|connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO progress VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
                .execute(params![path, size, mtime, inode, device, stopped.begun, done, state, digests, content])
                .map(|_| ())
        })
    }

    /// Readings that were stopped and can go on; ask [`StoppedReadings::of`] whether a file is still the same.
    pub fn stopped_readings(&self) -> Result<StoppedReadings, FactsError> {
        self.database(|connection| {
            let mut statement = connection.prepare_cached("SELECT * FROM progress")?;
            let rows = statement.query_map([], read_stopped)?.collect::<Result<Vec<_>, _>>()?;
            Ok(StoppedReadings { rows: rows.into_iter().flatten().collect() })
        })
    }

    /// What is known to be damaged, by path; whether a file is still the same is for the caller to ask.
    pub fn damage(&self, found: &Found) -> Result<Option<Damage>, FactsError> {
        let parent = found.path.parent().unwrap_or(Path::new("/"));
        Ok(self.read_below(parent)?.damage_of(found).cloned())
    }
}

/// Readings that were stopped half-way.
#[derive(Debug, Default)]
pub struct StoppedReadings {
    rows: HashMap<PathBuf, ([i64; 4], Stopped)>,
}

impl StoppedReadings {
    /// How far the reading of exactly this file came.
    pub fn of(&self, found: &Found) -> Option<&Stopped> {
        let (stored, stopped) = self.rows.get(&found.path)?;
        (*stored == identity(found)).then_some(stopped)
    }
}

fn record(connection: &Connection, result: &Verified) -> Result<(), rusqlite::Error> {
    let path = result.found.path.as_os_str().as_bytes();
    connection.prepare_cached("DELETE FROM progress WHERE path = ?1")?.execute([path])?;
    if let Some(digests) = &result.digests {
        insert(connection, &result.found, digests, result.happening.at)?;
        if let (Some(chunks), Some(sha256)) = (&result.chunks, &digests.sha256) {
            insert_chunks(connection, sha256, chunks)?;
        }
        // What was found wrong is judged anew by what was read now.
        connection.prepare_cached("DELETE FROM damaged WHERE path = ?1")?.execute([path])?;
        if let Some(sha256) = &digests.sha256 {
            trust::change(connection, &result.found, sha256, result.trust, result.happening.at)?;
        }
    }
    if let Some(damage) = &result.damage {
        insert_damage(connection, &result.found, damage)?;
    }
    history::insert(connection, &result.happening)
}

fn insert_damage(connection: &Connection, found: &Found, damage: &Damage) -> Result<(), rusqlite::Error> {
    let ranges: Vec<String> = damage.ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    let [size, mtime, inode, device] = identity(found);
    connection
        .prepare_cached("INSERT OR REPLACE INTO damaged VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
        .execute(params![
            found.path.as_os_str().as_bytes(),
            size,
            mtime,
            inode,
            device,
            damage.kind,
            damage.detail,
            damage.content.as_ref().map(Sha256::as_bytes),
            ranges.join(" "),
            damage.at,
        ])
        .map(|_| ())
}

/// By path: what the file was like, and where it is damaged.
pub(super) type Damaged = HashMap<Vec<u8>, ([i64; 4], Damage)>;

pub(super) fn damaged_below(connection: &Connection, first: &[u8], end: &[u8]) -> Result<Damaged, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT * FROM damaged WHERE path >= ?1 AND path < ?2")?;
    statement.query_map([first, end], read_damage)?.collect()
}

type DamagedFile = (Vec<u8>, ([i64; 4], Damage));

fn read_damage(row: &Row<'_>) -> Result<DamagedFile, rusqlite::Error> {
    let identity = [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
    let ranges: String = row.get(8)?;
    let damage = Damage {
        kind: row.get(5)?,
        detail: row.get(6)?,
        content: row.get::<_, Option<[u8; 32]>>(7)?.map(Sha256::from_bytes),
        ranges: ranges.split(' ').filter_map(read_range).collect(),
        at: row.get(9)?,
    };
    Ok((row.get(0)?, (identity, damage)))
}

fn read_range(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
}

type StoppedFile = (PathBuf, ([i64; 4], Stopped));

/// `None` where a row makes no sense: then the file is read from its beginning.
fn read_stopped(row: &Row<'_>) -> Result<Option<StoppedFile>, rusqlite::Error> {
    let path = PathBuf::from(OsStr::from_bytes(&row.get::<_, Vec<u8>>(0)?));
    let identity = [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
    let done = row.get::<_, i64>(6)?.cast_unsigned();
    let (state, digests): (Option<Vec<u8>>, Vec<u8>) = (row.get(7)?, row.get(8)?);
    let content = row.get::<_, Option<[u8; 32]>>(9)?.map(Sha256::from_bytes);
    let half = match (state, content) {
        (Some(state), _) => Progress::from_bytes(done, &state, &digests).map(Half::Whole),
        (None, Some(content)) => {
            let bad = digests.as_chunks::<8>().0.iter().map(|number| u64::from_be_bytes(*number)).collect();
            Some(Half::Chunks { content, done, bad })
        }
        (None, None) => None,
    };
    let begun = row.get(5)?;
    Ok(half.map(|half| (path, (identity, Stopped { begun, half }))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Blake3;

    fn found(mtime_ns: i64) -> Found {
        Found { path: "/s/a".into(), size: 3, mtime_ns, inode: u64::MAX, device: 1, owner: (0, 0) }
    }

    fn happening() -> Happening {
        Happening {
            at: 7,
            path: "/s/a".into(),
            artifact: "a".to_owned(),
            event: "proven".to_owned(),
            sha256: None,
            bytes: 3,
            detail: String::new(),
        }
    }

    #[test]
    fn a_reading_goes_on_only_in_the_very_file_it_was_stopped_in() {
        let facts = Facts::in_memory().unwrap();
        let chunks = Some(vec![Blake3::of(b"1"), Blake3::of(b"2")]);
        let progress = Progress { bytes: 2 << 22, sha256: [u32::MAX; 8], git_sha1: None, md5: None, chunks };
        let halves =
            [Half::Whole(progress), Half::Chunks { content: Sha256::of(b"abc"), done: 3 << 22, bad: vec![1, 1 << 40] }];
        for half in halves {
            let stopped = Stopped { begun: 77, half };
            facts.record_stopped(&found(5), &stopped).unwrap();
            let readings = facts.stopped_readings().unwrap();
            assert_eq!(readings.of(&found(5)), Some(&stopped));
            assert_eq!(readings.of(&found(6)), None, "changed since");
        }
        let result = Verified {
            found: found(5),
            digests: None,
            chunks: None,
            damage: None,
            trust: Trust::Unchanged,
            happening: happening(),
        };
        facts.record_verified(&[result]).unwrap();
        assert_eq!(facts.stopped_readings().unwrap().of(&found(5)), None, "it was read to its end");
    }

    #[test]
    fn damage_is_known_until_the_file_is_measured_again() {
        let facts = Facts::in_memory().unwrap();
        let damage = Damage {
            kind: "rotted".to_owned(),
            detail: "it rotted".to_owned(),
            content: Some(Sha256::of(b"abc")),
            ranges: vec![0..1, 5..9],
            at: 9,
        };
        let result = Verified {
            found: found(5),
            digests: None,
            chunks: None,
            damage: Some(damage.clone()),
            trust: Trust::Unchanged,
            happening: happening(),
        };
        facts.record_verified(&[result]).unwrap();
        assert_eq!(facts.below(Path::new("/s")).unwrap().damage_of(&found(5)), Some(&damage));
        assert_eq!(facts.damage(&found(5)).unwrap(), Some(damage));
        assert_eq!(facts.damage(&found(6)).unwrap(), None);
        facts.record(&found(5), &Digests::sha256(Sha256::of(b"abc")), 10).unwrap();
        assert_eq!(facts.damage(&found(5)).unwrap(), None);
    }
}
