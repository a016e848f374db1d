//! Leaving the page cache as it was found.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};

use larder_metal::cached_pages;
use rustix::fs::{Advice, fadvise};

/// Parts are not told apart more finely: where the cache holds something of one, the whole part counts as held.
const PART: u64 = 64 << 10;

/// What the page cache did not hold of files at a moment, so that what is read of them later can be given back.
#[derive(Debug, Default)]
pub struct PageCache(BTreeMap<PathBuf, Vec<Range<u64>>>);

impl PageCache {
    /// Takes note of what is not held of these files, unless it has noted them before. Of those that cannot be opened, and
    /// where the kernel does not tell (before Linux 6.5, for files of others), nothing is noted.
    pub fn note<'a>(&mut self, paths: impl IntoIterator<Item = &'a Path>) {
        for path in paths {
            if !self.0.contains_key(path) {
                self.0.insert(path.to_owned(), absent(path).unwrap_or_default());
            }
        }
    }

    /// Gives back what has come into the cache since, of `path`: what was held before stays, and so does what a program
    /// has mapped at this moment.
    pub fn give_back(&self, path: &Path) {
        let Some(absent) = self.0.get(path) else { return };
        let Ok(file) = File::open(path) else { return };
        for part in absent {
            // A kernel that refuses keeps a little more than it had.
            let _ = fadvise(&file, part.start, NonZeroU64::new(part.end - part.start), Advice::DontNeed);
        }
    }
}

fn absent(path: &Path) -> Option<Vec<Range<u64>>> {
    let file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    let mut absent = Vec::new();
    look(&file, 0..len.next_multiple_of(PART), &mut absent)?;
    Some(absent)
}

/// Adds the parts of `within` of which nothing is held; `None` where the kernel does not tell.
fn look(file: &File, within: Range<u64>, absent: &mut Vec<Range<u64>>) -> Option<()> {
    let len = within.end - within.start;
    match cached_pages(file, within.start, len)? {
        0 if len > 0 => match absent.last_mut().filter(|last| last.end == within.start) {
            Some(last) => last.end = within.end,
            None => absent.push(within),
        },
        held if held < len.div_ceil(4096) && len > PART => {
            let middle = within.start + (len / 2).next_multiple_of(PART);
            look(file, within.start..middle, absent)?;
            look(file, middle..within.end, absent)?;
        }
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::fsio::{WriteOptions, write_atomic};

    #[test]
    fn what_was_held_stays_and_what_came_goes() {
        const LEN: u64 = 4 << 20;
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("content");
        write_atomic(&path, &vec![7; LEN as usize], &WriteOptions::default()).unwrap();
        let file = File::open(&path).unwrap();
        // Without reading ahead, exactly what is read comes into the cache.
        fadvise(&file, 0, None, Advice::Random).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let held = |start: u64, len: u64| cached_pages(&file, start, len);
        match held(0, LEN) {
            // Before Linux 6.5 nobody tells, and what lies in memory only is never given back.
            None => return,
            Some(all) if all == LEN / 4096 => return,
            some => assert_eq!(some, Some(0)),
        }
        let mut buffer = vec![0; 300 << 10];
        file.read_exact_at(&mut buffer, 1 << 20).unwrap();
        let before = held(0, LEN).unwrap();
        assert!(before >= 75, "{before}");
        let mut cache = PageCache::default();
        cache.note([path.as_path(), Path::new("absent")]);
        file.read_exact_at(&mut vec![0; LEN as usize], 0).unwrap();
        assert_eq!(held(0, LEN), Some(LEN / 4096));
        cache.note([path.as_path()]);
        cache.give_back(&path);
        // The last part was held in part, and may be whole now.
        assert!(held(1 << 20, 300 << 10).unwrap() >= 75 && held(0, LEN).unwrap() <= before + PART / 4096);
        assert_eq!((held(0, 1 << 20), held(2 << 20, 2 << 20)), (Some(0), Some(0)));
    }
}
