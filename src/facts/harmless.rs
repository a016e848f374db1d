//! Files whose pickles were followed: they need not be again until the file, or larder's judgement, changes.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;

use rusqlite::params;

use super::{Facts, FactsError, identity};
use crate::artifact::Found;

/// Another larder may judge otherwise.
const RULES: &str = env!("CARGO_PKG_VERSION");

/// Files that were found harmless, as they were at that moment.
#[derive(Debug, Default)]
pub struct Harmless {
    keys: RandomState,
    /// By their paths' hashes, whose keys nobody knows: a hundred thousand paths take too much memory.
    rows: HashMap<u64, [i64; 4]>,
}

impl Harmless {
    /// Whether exactly this file was found harmless: same path, length, time of change, inode and device.
    pub fn has(&self, found: &Found) -> bool {
        self.rows.get(&self.keys.hash_one(found.path.as_os_str().as_bytes())) == Some(&identity(found))
    }
}

impl Facts {
    /// Files that were found harmless by the rules of this larder.
    pub fn harmless(&self) -> Result<Harmless, FactsError> {
        self.database(|connection| {
            let mut harmless = Harmless::default();
            let question = "SELECT path, size, mtime_ns, inode, device FROM harmless WHERE rules = ?1";
            let mut statement = connection.prepare_cached(question)?;
            let mut rows = statement.query([RULES])?;
            while let Some(row) = rows.next()? {
                let path = harmless.keys.hash_one(row.get_ref(0)?.as_blob()?);
                harmless.rows.insert(path, [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]);
            }
            Ok(harmless)
        })
    }

    /// Remembers files that were found harmless.
    pub fn record_harmless(&self, found: &[Found]) -> Result<(), FactsError> {
        if found.is_empty() {
            return Ok(());
        }
        self.database(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for found in found {
                let [size, mtime, inode, device] = identity(found);
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO harmless VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                    .execute(params![found.path.as_os_str().as_bytes(), size, mtime, inode, device, RULES])?;
            }
            transaction.commit()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_file_that_was_followed_is_harmless() {
        let facts = Facts::in_memory().unwrap();
        let found =
            |mtime_ns| Found { path: "/s/a".into(), size: 3, mtime_ns, inode: u64::MAX, device: 1, owner: (0, 0) };
        assert!(!facts.harmless().unwrap().has(&found(5)));
        facts.record_harmless(&[found(5)]).unwrap();
        assert!(facts.harmless().unwrap().has(&found(5)));
        assert!(!facts.harmless().unwrap().has(&found(6)), "changed since");
    }
}
