//! Measurements read at one moment, and how they are asked for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::Row;

use super::reading::{Damage, Damaged};
use super::trust::{Trusted, TrustedFiles};
use super::{Measurement, identity};
use crate::artifact::Found;
use crate::digest::{Digests, GitSha1, Md5, Sha256};

/// Measurements read at one moment.
#[derive(Debug, Default)]
pub struct Known {
    /// The bytes of all paths, one after the other: a hundred thousand of them are one piece of memory.
    paths: Vec<u8>,
    /// By path, in the order of its bytes.
    rows: Vec<Stored>,
    /// Digests that some rows have beside the SHA-256.
    others: Vec<(Option<GitSha1>, Option<Md5>)>,
    damaged: Damaged,
    trusted: TrustedFiles,
}

/// What was measured of one file, in few bytes: every look at a store begins with reading all of them.
#[derive(Debug)]
struct Stored {
    /// Where the path begins in [`Known::paths`].
    path_start: usize,
    path_len: u32,
    /// Which of [`Known::others`] is this row's; [`NONE`] for rows without.
    other: u32,
    identity: [i64; 4],
    sha256: Sha256,
    at: i64,
}

/// No row of [`Known::others`].
const NONE: u32 = u32::MAX;

impl Known {
    /// What was measured of exactly this file: same path, length, time of change, inode and device.
    pub fn of(&self, found: &Found) -> Option<Measurement> {
        self.in_turn().of(found)
    }

    /// What was wrong with exactly this file when its content was last read.
    pub fn damage_of(&self, found: &Found) -> Option<&Damage> {
        let (stored, damage) = self.damaged.get(found.path.as_os_str().as_bytes())?;
        (*stored == identity(found)).then_some(damage)
    }

    /// What is trusted at this path because no record has a digest, though the file there may be another one by now.
    pub fn trusted(&self, path: &Path) -> Option<&Trusted> {
        self.trusted.get(path.as_os_str().as_bytes())
    }

    /// What was measured at this path, though the file there may be another one by now.
    pub fn before(&self, path: &Path) -> Option<Measurement> {
        let row = self.find(path.as_os_str().as_bytes())?;
        Some(self.measurement(&self.rows[row]))
    }

    /// The paths of everything measured, in the order of their bytes.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.rows.iter().map(|stored| Path::new(OsStr::from_bytes(self.path(stored))))
    }

    /// Answers like [`Known::of`], at once where one file after the other is asked for in the order of their paths.
    pub fn in_turn(&self) -> InTurn<'_> {
        InTurn { known: self, next: 0 }
    }

    /// Nothing measured yet, this damaged, and this trusted.
    pub(super) fn new(damaged: Damaged, trusted: TrustedFiles) -> Self {
        Self { damaged, trusted, ..Self::default() }
    }

    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<(), rusqlite::Error> {
        let path = row.get_ref(0)?.as_blob()?;
        let (path_start, path_len) = (self.paths.len(), short(path.len()));
        let git_sha1 = row.get::<_, Option<[u8; 20]>>(6)?.map(GitSha1::from_bytes);
        let md5 = row.get::<_, Option<[u8; 16]>>(7)?.map(Md5::from_bytes);
        let is_alone = git_sha1.is_none() && md5.is_none();
        let other = if is_alone { NONE } else { short(self.others.len()) };
        let (identity, sha256, at) = (identity_in(row)?, Sha256::from_bytes(row.get(5)?), row.get(8)?);
        self.paths.extend_from_slice(path);
        self.others.extend((!is_alone).then_some((git_sha1, md5)));
        self.rows.push(Stored { path_start, path_len, other, identity, sha256, at });
        Ok(())
    }

    fn measurement(&self, stored: &Stored) -> Measurement {
        let (git_sha1, md5) = self.others.get(stored.other as usize).copied().unwrap_or_default();
        Measurement { digests: Digests { sha256: Some(stored.sha256), git_sha1, md5 }, at: stored.at }
    }

    fn path(&self, stored: &Stored) -> &[u8] {
        &self.paths[stored.path_start..][..stored.path_len as usize]
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        self.rows.binary_search_by(|stored| self.path(stored).cmp(path)).ok()
    }
}

/// [`Known`] as it is asked for many files in turn.
#[derive(Debug)]
pub struct InTurn<'a> {
    known: &'a Known,
    /// The row after the last answer: most probably the next one.
    next: usize,
}

impl InTurn<'_> {
    /// See [`Known::damage_of`].
    pub fn damage_of(&self, found: &Found) -> Option<&Damage> {
        self.known.damage_of(found)
    }

    /// See [`Known::trusted`].
    pub fn trusted(&self, path: &Path) -> Option<&Trusted> {
        self.known.trusted(path)
    }

    /// See [`Known::of`].
    pub fn of(&mut self, found: &Found) -> Option<Measurement> {
        let path = found.path.as_os_str().as_bytes();
        let is_next = self.known.rows.get(self.next).is_some_and(|stored| self.known.path(stored) == path);
        let row = if is_next { self.next } else { self.known.find(path)? };
        self.next = row + 1;
        let stored = &self.known.rows[row];
        (stored.identity == identity(found)).then(|| self.known.measurement(stored))
    }
}

fn identity_in(row: &Row<'_>) -> Result<[i64; 4], rusqlite::Error> {
    Ok([row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
}

/// Lengths of SQLite's values and numbers of rows are far below this.
fn short(number: usize) -> u32 {
    u32::try_from(number).expect("a path is shorter, and rows are fewer, than 2^32")
}
