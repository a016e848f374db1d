//! Which contents of a drive were proven there, and what their files were like then.
//!
//! Kept on the drive itself, so that it counts wherever the drive is plugged in. It only saves reading: whoever takes
//! from the drive proves every content anew.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::artifact::Found;
use crate::fsio::{self, WriteOptions};

/// Below the drive's root: a line per content with its name, length and time of the last change in nanoseconds.
const PLACE: &str = ".larder/proven";
/// Times on exFAT are multiples of this, and those on FAT too.
const COARSE: i64 = 10_000_000;
/// How much FAT rounds a time by, once the file is read from the drive again.
const ROUNDED_BY: i64 = 2_000_000_000;

/// What was proven, by the name of its file.
#[derive(Debug, Default)]
pub(super) struct Stamps {
    lines: BTreeMap<String, (u64, i64)>,
}

impl Stamps {
    /// What the drive at `root` says of itself; nothing where it says nothing that can be read.
    pub(super) fn read(root: &Path) -> Self {
        let text = fs_err::read_to_string(root.join(PLACE)).unwrap_or_default();
        Self { lines: text.lines().filter_map(parse).collect() }
    }

    /// Whether the file at `found` is as it was when it was proven.
    pub(super) fn vouch_for(&self, found: &Found) -> bool {
        self.lines.get(&name(found)).is_some_and(|(size, mtime)| {
            let is_rounded = found.mtime_ns % COARSE == 0 && (found.mtime_ns - mtime).abs() < ROUNDED_BY;
            *size == found.size && (*mtime == found.mtime_ns || is_rounded)
        })
    }

    /// Notes that the file at `found`, on the drive at `root`, is proven.
    pub(super) fn add(root: &Path, found: &Found) -> io::Result<()> {
        let place = root.join(PLACE);
        let line = line(&name(found), found.size, found.mtime_ns);
        match fsio::append_line(&place, &line) {
            Err(error) if fsio::is_absent(&error) => {
                fsio::write_atomic(&place, format!("{line}\n").as_bytes(), &WriteOptions::default())
            }
            noted => noted,
        }
    }

    /// Writes each once.
    pub(super) fn write(&self, root: &Path) -> io::Result<()> {
        let text: String =
            self.lines.iter().map(|(name, (size, mtime))| format!("{}\n", line(name, *size, *mtime))).collect();
        fsio::write_atomic(&root.join(PLACE), text.as_bytes(), &WriteOptions::default())
    }
}

fn line(name: &str, size: u64, mtime_ns: i64) -> String {
    format!("{name} {size} {mtime_ns}")
}

/// A torn line says nothing.
fn parse(line: &str) -> Option<(String, (u64, i64))> {
    let mut words = line.split(' ');
    let (name, size, mtime) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then(|| (name.to_owned(), (size, mtime)))
}

fn name(found: &Found) -> String {
    found.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(size: u64, mtime_ns: i64) -> Found {
        Found { path: "/d/blobs/sha256-ab".into(), size, mtime_ns, inode: 1, device: 1, owner: (0, 0) }
    }

    #[test]
    fn a_stamp_counts_for_the_file_as_it_was_and_for_its_time_as_fat_rounds_it() {
        let dir = tempfile::tempdir().unwrap();
        let time = 1_700_000_001_234_567_891;
        Stamps::add(dir.path(), &found(3, time)).unwrap();
        let stamps = Stamps::read(dir.path());
        assert!(stamps.vouch_for(&found(3, time)));
        assert!(stamps.vouch_for(&found(3, 1_700_000_000_000_000_000)), "FAT");
        assert!(stamps.vouch_for(&found(3, 1_700_000_001_230_000_000)), "exFAT");
        assert!(!stamps.vouch_for(&found(3, time + 1)) && !stamps.vouch_for(&found(4, time)));
        assert!(!stamps.vouch_for(&found(3, 1_700_000_004_000_000_000)), "written later");
    }

    #[test]
    fn torn_lines_say_nothing_and_the_last_line_of_a_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        Stamps::add(dir.path(), &found(3, 5)).unwrap();
        fsio::append_line(&dir.path().join(PLACE), "sha256-cd 7").unwrap();
        Stamps::add(dir.path(), &found(3, 6)).unwrap();
        Stamps::read(dir.path()).write(dir.path()).unwrap();
        assert!(Stamps::read(dir.path()).vouch_for(&found(3, 6)));
        assert_eq!(fs_err::read_to_string(dir.path().join(PLACE)).unwrap(), "sha256-ab 3 6\n");
    }
}
