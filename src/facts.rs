//! What larder measured: digests of files as they were at one moment, and the marks of stores.
//!
//! A SQLite database that several larders may use at once and that any SQLite tool can read. It is
//! a cache: when it is deleted, files count as unproven until they are read again.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::artifact::Found;
use crate::digest::{CHUNK_LEN, ChunkDigests, ContentName, Digests, GitSha1, Md5, Sha256};
use crate::fsio;

mod harmless;
mod history;
mod known;
mod rates;
mod reading;
mod runs;
mod schema;
mod trust;

pub use harmless::Harmless;
pub use history::{Episode, FileHistory, Happening};
pub use known::{InTurn, Known};
pub use rates::{Moved, Rates};
pub use reading::{Damage, Half, Stopped, StoppedReadings, Verified};
pub use runs::{Depth, Run, Runs, Standing};
pub use trust::{Trust, Trusted};

/// The facts database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// SQLite's reason.
    #[error("The facts database {path} cannot be used")]
    Database {
        /// The file.
        path: PathBuf,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The folder cannot be made, or a broken database cannot be set aside.
    #[error("The facts database {path} cannot be created")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// What was measured of one file, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// The digests of its content.
    pub digests: Digests,
    /// Seconds since 1970.
    pub at: i64,
}

/// An open facts database.
#[derive(Debug)]
pub struct Facts {
    connection: Mutex<Connection>,
    /// What [`Facts::read_ahead`] found, until it is asked for or overtaken by a new measurement.
    ahead: Mutex<HashMap<PathBuf, Known>>,
    path: PathBuf,
}

impl Facts {
    /// Opens the database at `path`, creating it where needed.
    ///
    /// A file that is no database, or one of another version, is renamed to `….broken` first.
    pub fn open(path: &Path) -> Result<Self, FactsError> {
        let io = |source| FactsError::Io { path: path.to_owned(), source };
        let folder = path.parent().unwrap_or(Path::new("."));
        fsio::create_dir_all(folder, Some(fsio::Owner::of(folder).map_err(io)?)).map_err(io)?;
        let facts = match Self::connect(path) {
            Err(FactsError::Database { source, .. }) if is_foreign(&source) => {
                Self::open_anew(path)?;
                Self::connect(path)
            }
            result => result,
        }?;
        facts.take_over_runs(folder);
        Ok(facts)
    }

    /// A database that lives only as long as the value: for tests, and where the disk refuses one.
    pub fn in_memory() -> Result<Self, FactsError> {
        let path = PathBuf::from(":memory:");
        let connection =
            Connection::open_in_memory().map_err(|source| FactsError::Database { path: path.clone(), source })?;
        Self::prepare(connection, path)
    }

    fn connect(path: &Path) -> Result<Self, FactsError> {
        let io = |source| FactsError::Io { path: path.to_owned(), source };
        // Root may act for somebody else, who must be able to write it later. What SQLite makes beside the database
        // it gives to the database's owner itself.
        fsio::create_file(path, fsio::Owner::of(path).map_err(io)?).map_err(io)?;
        let connection =
            Connection::open(path).map_err(|source| FactsError::Database { path: path.to_owned(), source })?;
        Self::prepare(connection, path.to_owned())
    }

    fn prepare(connection: Connection, path: PathBuf) -> Result<Self, FactsError> {
        let prepared = (|| {
            connection.busy_timeout(Duration::from_secs(10))?;
            match schema::version(&connection)? {
                schema::VERSION => return Ok(()),
                // Older ones are completed.
                0 | 2..=4 => {}
                _ => return Err(rusqlite::Error::InvalidQuery),
            }
            connection.pragma_update(None, "journal_mode", "WAL")?;
            schema::complete(&connection)
        })();
        match prepared {
            Ok(()) => {
                // Losing the last seconds in a power cut costs a second reading, nothing else.
                let _ = connection.pragma_update(None, "synchronous", "NORMAL");
                Ok(Self { connection: Mutex::new(connection), ahead: Mutex::default(), path })
            }
            Err(source) => Err(FactsError::Database { path, source }),
        }
    }

    /// Remembers what was measured of the file that `found` describes.
    pub fn record(&self, found: &Found, digests: &Digests, at: i64) -> Result<(), FactsError> {
        self.record_all([(found, digests)], at)
    }

    /// Remembers what was measured of many files, all of it or, where that fails, none.
    pub fn record_all<'a>(
        &self,
        measured: impl IntoIterator<Item = (&'a Found, &'a Digests)>,
        at: i64,
    ) -> Result<(), FactsError> {
        self.ahead().clear();
        let measured: Vec<(&Found, &Digests)> = measured.into_iter().collect();
        self.database(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for (found, digests) in &measured {
                history::note_arrival(&transaction, found, digests, at)?;
                insert(&transaction, found, digests, at)?;
            }
            transaction.commit()
        })
    }

    /// Remembers what larder itself put into place: what was trusted there before does not count any more.
    ///
    /// All of it or, where that fails, none.
    pub fn record_placed<'a>(
        &self,
        placed: impl IntoIterator<Item = (&'a Found, &'a Digests)>,
        at: i64,
    ) -> Result<(), FactsError> {
        self.ahead().clear();
        let placed: Vec<(&Found, &Digests)> = placed.into_iter().collect();
        self.database(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for (found, digests) in &placed {
                history::note_arrival(&transaction, found, digests, at)?;
                insert(&transaction, found, digests, at)?;
                trust::forget(&transaction, found)?;
            }
            transaction.commit()
        })
    }

    /// Everything that was measured below `root`.
    pub fn below(&self, root: &Path) -> Result<Known, FactsError> {
        let ahead = self.ahead().remove(root);
        ahead.map_or_else(|| self.read_below(root), Ok)
    }

    /// Everything that was measured anywhere.
    pub fn all(&self) -> Result<Known, FactsError> {
        self.read_between(&[], &[u8::MAX])
    }

    /// What was measured anywhere of files with one of the contents `wanted`.
    pub fn of_contents(&self, wanted: &HashSet<ContentName>) -> Result<Known, FactsError> {
        self.database(|connection| {
            let mut statement = connection.prepare_cached("SELECT * FROM measured ORDER BY path")?;
            let mut rows = statement.query([])?;
            let mut known = Known::new(
                reading::damaged_below(connection, &[], &[u8::MAX])?,
                trust::trusted_below(connection, &[], &[u8::MAX])?,
            );
            while let Some(row) = rows.next()? {
                let sha256 = ContentName::Sha256(Sha256::from_bytes(row.get(5)?));
                let git_sha1 = row.get::<_, Option<[u8; 20]>>(6)?.map(GitSha1::from_bytes).map(ContentName::GitSha1);
                if wanted.contains(&sha256) || git_sha1.is_some_and(|name| wanted.contains(&name)) {
                    known.push(row)?;
                }
            }
            Ok(known)
        })
    }

    /// Reads what the next [`Facts::below`] of `root` will be asked for, while there is something else to do.
    pub fn read_ahead(&self, root: &Path) {
        // An error is told to who asks.
        if let Ok(known) = self.read_below(root) {
            self.ahead().insert(root.to_owned(), known);
        }
    }

    fn read_below(&self, root: &Path) -> Result<Known, FactsError> {
        let first = root.as_os_str().as_bytes().to_vec();
        let mut end = first.clone();
        end.push(b'/' + 1);
        self.read_between(&first, &end)
    }

    fn read_between(&self, first: &[u8], end: &[u8]) -> Result<Known, FactsError> {
        self.database(|connection| {
            let question = "SELECT * FROM measured WHERE path >= ?1 AND path < ?2 ORDER BY path";
            let mut statement = connection.prepare_cached(question)?;
            let mut rows = statement.query(params![first, end])?;
            let mut known = Known::new(
                reading::damaged_below(connection, first, end)?,
                trust::trusted_below(connection, first, end)?,
            );
            while let Some(row) = rows.next()? {
                known.push(row)?;
            }
            Ok(known)
        })
    }

    /// Remembers the chunk digests of the content that `sha256` names.
    pub fn record_chunks(&self, sha256: &Sha256, chunks: &ChunkDigests) -> Result<(), FactsError> {
        self.database(|connection| insert_chunks(connection, sha256, chunks))
    }

    /// The chunk digests of the content that `sha256` names, where they were taken once.
    pub fn chunks(&self, sha256: &Sha256) -> Result<Option<ChunkDigests>, FactsError> {
        let ask = "SELECT size, digests FROM chunks WHERE sha256 = ?1 AND chunk_len = ?2";
        self.database(|connection| {
            let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?));
            let row = connection.query_row(ask, params![sha256.as_bytes(), as_stored(CHUNK_LEN)], read).optional()?;
            Ok(row.and_then(|(size, digests)| ChunkDigests::from_bytes(size.cast_unsigned(), &digests)))
        })
    }

    /// The content that has these chunk digests, where they were taken once.
    pub fn content_with(&self, chunks: &ChunkDigests) -> Result<Option<Sha256>, FactsError> {
        let ask = "SELECT sha256 FROM chunks WHERE size = ?1 AND chunk_len = ?2 AND digests = ?3";
        let (size, chunk_len) = (as_stored(chunks.content_len()), as_stored(CHUNK_LEN));
        self.database(|connection| {
            let read = |row: &Row<'_>| row.get::<_, [u8; 32]>(0);
            let row = connection.query_row(ask, params![size, chunk_len, chunks.to_bytes()], read).optional()?;
            Ok(row.map(Sha256::from_bytes))
        })
    }

    /// The id of the mark that the store at `root` had when larder last wrote there.
    pub fn store_mark(&self, root: &Path) -> Result<Option<String>, FactsError> {
        self.database(|connection| {
            connection
                .query_row("SELECT id FROM store_mark WHERE root = ?1", [root.as_os_str().as_bytes()], |row| row.get(0))
                .optional()
        })
    }

    /// Remembers the mark of the store at `root`.
    pub fn remember_store_mark(&self, root: &Path, id: &str) -> Result<(), FactsError> {
        self.database(|connection| {
            connection
                .execute("INSERT OR REPLACE INTO store_mark VALUES (?1, ?2)", params![root.as_os_str().as_bytes(), id])
                .map(|_| ())
        })
    }

    fn database<T>(&self, ask: impl Fn(&Connection) -> Result<T, rusqlite::Error>) -> Result<T, FactsError> {
        let failed = |source| FactsError::Database { path: self.path.clone(), source };
        let mut connection = self.lock();
        match ask(&connection) {
            // It is only a cache: what a broken one said is worth less than going on.
            Err(error) if is_foreign(&error) && self.begin_anew(&mut connection) => ask(&connection).map_err(failed),
            result => result.map_err(failed),
        }
    }

    /// Puts a database that turned out to be broken aside, and an empty one in its place.
    fn begin_anew(&self, connection: &mut Connection) -> bool {
        if !self.path.is_file() {
            return false;
        }
        let Ok(nothing) = Connection::open_in_memory() else { return false };
        // The broken one is closed before its file gets another name.
        drop(std::mem::replace(connection, nothing));
        let Ok(fresh) = Self::open_anew(&self.path) else { return false };
        tracing::warn!(path = %self.path.display(), "the facts database was broken and is set aside");
        *connection = fresh;
        true
    }

    fn open_anew(path: &Path) -> Result<Connection, FactsError> {
        let io = |source| FactsError::Io { path: path.to_owned(), source };
        fsio::set_aside_broken(path, &path.with_extension("sqlite.broken")).map_err(io)?;
        for ending in ["sqlite-wal", "sqlite-shm"] {
            match fsio::remove_file(&path.with_extension(ending)) {
                Err(error) if !fsio::is_absent(&error) => return Err(io(error)),
                _ => {}
            }
        }
        Self::connect(path).map(|facts| facts.connection.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn ahead(&self) -> MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere cannot leave the connection half-changed: statements are atomic.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn identity(found: &Found) -> [i64; 4] {
    [as_stored(found.size), found.mtime_ns, as_stored(found.inode), as_stored(found.device)]
}

/// SQLite has signed integers only; the bits are kept.
fn as_stored(number: u64) -> i64 {
    number.cast_signed()
}

fn insert(connection: &Connection, found: &Found, digests: &Digests, at: i64) -> Result<(), rusqlite::Error> {
    let Some(sha256) = digests.sha256 else { return Ok(()) };
    forget_damage(connection, found, &sha256)?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO measured VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?
        .execute(params![
            found.path.as_os_str().as_bytes(),
            as_stored(found.size),
            found.mtime_ns,
            as_stored(found.inode),
            as_stored(found.device),
            sha256.as_bytes(),
            digests.git_sha1.as_ref().map(GitSha1::as_bytes),
            digests.md5.as_ref().map(Md5::as_bytes),
            at,
        ])
        .map(|_| ())
}

/// Forgets what was wrong with a file, unless it still has another content than the right one.
fn forget_damage(connection: &Connection, found: &Found, measured: &Sha256) -> Result<(), rusqlite::Error> {
    let forget =
        "DELETE FROM damaged WHERE path = ?1 AND NOT (size = ?2 AND mtime_ns = ?3 AND inode = ?4 AND device = ?5
        AND content IS NOT NULL AND content <> ?6 AND kind <> 'unreadable')";
    let [size, mtime, inode, device] = identity(found);
    let path = found.path.as_os_str().as_bytes();
    let values = params![path, size, mtime, inode, device, measured.as_bytes()];
    connection.prepare_cached(forget)?.execute(values).map(|_| ())
}

fn insert_chunks(connection: &Connection, sha256: &Sha256, chunks: &ChunkDigests) -> Result<(), rusqlite::Error> {
    let (size, chunk_len) = (as_stored(chunks.content_len()), as_stored(CHUNK_LEN));
    connection
        .prepare_cached("INSERT OR REPLACE INTO chunks VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![sha256.as_bytes(), size, chunk_len, chunks.to_bytes()])
        .map(|_| ())
}

fn is_foreign(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error, rusqlite::Error::InvalidQuery)
        || matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ChunkHasher;

    fn found(path: &str, mtime_ns: i64) -> Found {
        Found { path: path.into(), size: 3, mtime_ns, inode: u64::MAX, device: 1, owner: (0, 0) }
    }

    #[test]
    fn a_measurement_counts_only_for_the_very_file_that_was_read() {
        let facts = Facts::in_memory().unwrap();
        let digests = Digests::sha256(Sha256::of(b"abc"));
        facts.record(&found("/s/a", 5), &digests, 77).unwrap();
        facts.record(&found("/s0", 5), &digests, 77).unwrap();
        let known = facts.below(Path::new("/s")).unwrap();
        assert_eq!(known.of(&found("/s/a", 5)), Some(Measurement { digests, at: 77 }));
        assert_eq!(known.of(&found("/s/a", 6)), None, "changed since");
        assert!(known.before(Path::new("/s/a")).is_some());
        assert_eq!(known.of(&found("/s0", 5)), None, "not below the root");
    }

    #[test]
    fn chunk_digests_belong_to_content() {
        let facts = Facts::in_memory().unwrap();
        let mut hasher = ChunkHasher::default();
        hasher.update(&vec![7; CHUNK_LEN as usize + 1]);
        let chunks = hasher.finish();
        let content = Sha256::of(b"stands for it");
        assert_eq!(facts.chunks(&content).unwrap(), None);
        facts.record_chunks(&content, &chunks).unwrap();
        assert_eq!(facts.chunks(&content).unwrap(), Some(chunks));
    }

    #[test]
    fn measurements_are_found_in_any_order_and_beside_others() {
        let facts = Facts::in_memory().unwrap();
        let names = ["/s/a", "/s/a/b", "/s/a.b", "/s/c", "/s/d", "/s/é"];
        for (at, name) in names.iter().enumerate() {
            facts.record(&found(name, 5), &Digests::sha256(Sha256::of(name.as_bytes())), at as i64).unwrap();
        }
        let known = facts.below(Path::new("/s")).unwrap();
        let at = |reader: &mut InTurn<'_>, name: &str| reader.of(&found(name, 5)).map(|measured| measured.at);
        let mut reader = known.in_turn();
        for asked in [["/s/a", "/s/a.b", "/s/a/b"], ["/s/é", "/s/0", "/s/a"], ["/s/c", "/s/d", "/s/z"]] {
            for name in asked {
                let expected = names.iter().position(|known| *known == name).map(|at| at as i64);
                assert_eq!(at(&mut reader, name), expected, "{name}");
                assert_eq!(known.before(Path::new(name)).map(|measured| measured.at), expected, "{name}");
            }
        }
    }

    #[test]
    fn a_broken_database_is_set_aside_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/facts.sqlite");
        fsio::write_atomic(&path, &[b'x'; 4096], &fsio::WriteOptions::default()).unwrap();
        let facts = Facts::open(&path).unwrap();
        facts.remember_store_mark(Path::new("/s"), "id").unwrap();
        drop(facts);
        assert_eq!(Facts::open(&path).unwrap().store_mark(Path::new("/s")).unwrap().as_deref(), Some("id"));
        assert!(dir.path().join("state/facts.sqlite.broken").exists());
    }
}
