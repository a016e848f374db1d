//! Files that no record has a digest of: what they had when they were first seen is what they must have.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;

use rusqlite::{Connection, Row, params};

use super::identity;
use crate::artifact::Found;
use crate::digest::Sha256;

/// The content that a file must have because it was seen there first, or was accepted since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trusted {
    /// The content.
    pub sha256: Sha256,
    /// Its length.
    pub size: u64,
    /// Since when it is trusted, in seconds since 1970.
    pub at: i64,
    identity: [i64; 4],
}

impl Trusted {
    /// Whether `found` is the file that was trusted, and nobody has written it since.
    pub fn is_unwritten(&self, found: &Found) -> bool {
        self.identity == identity(found)
    }
}

/// What a reading means for the trust in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trust {
    /// Nothing: it is wrong, or was not read to its end.
    #[default]
    Unchanged,
    /// It is trusted from now on, unless something else was trusted before; that is never overwritten.
    Kept,
    /// Somebody accepted it instead of what was trusted before.
    Accepted,
    /// A record has its digest, so nothing needs to be trusted.
    Needless,
}

/// By path.
pub(super) type TrustedFiles = HashMap<Vec<u8>, Trusted>;

pub(super) fn trusted_below(
    connection: &Connection,
    first: &[u8],
    end: &[u8],
) -> Result<TrustedFiles, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT * FROM trusted WHERE path >= ?1 AND path < ?2")?;
    statement.query_map([first, end], read)?.collect()
}

fn read(row: &Row<'_>) -> Result<(Vec<u8>, Trusted), rusqlite::Error> {
    let identity: [i64; 4] = [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?];
    let size = identity[0].cast_unsigned();
    Ok((row.get(0)?, Trusted { sha256: Sha256::from_bytes(row.get(5)?), size, at: row.get(6)?, identity }))
}

/// Changes what is trusted of `found`, which has the content `sha256`, as `trust` says.
pub(super) fn change(
    connection: &Connection,
    found: &Found,
    sha256: &Sha256,
    trust: Trust,
    at: i64,
) -> Result<(), rusqlite::Error> {
    let change = match trust {
        Trust::Unchanged => return Ok(()),
        Trust::Needless => return forget(connection, found),
        // The same content under a new time of change is trusted as long as before.
        Trust::Kept => {
            "INSERT INTO trusted VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (path) DO UPDATE SET size = ?2, \
             mtime_ns = ?3, inode = ?4, device = ?5 WHERE sha256 = ?6"
        }
        Trust::Accepted => "INSERT OR REPLACE INTO trusted VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    };
    let [size, mtime, inode, device] = identity(found);
    let values = params![found.path.as_os_str().as_bytes(), size, mtime, inode, device, sha256.as_bytes(), at];
    connection.prepare_cached(change)?.execute(values).map(|_| ())
}

/// Forgets what was trusted at the place of `found`.
pub(super) fn forget(connection: &Connection, found: &Found) -> Result<(), rusqlite::Error> {
    let path = found.path.as_os_str().as_bytes();
    connection.prepare_cached("DELETE FROM trusted WHERE path = ?1")?.execute([path]).map(|_| ())
}
