//! Where links lead, and by way of what.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// As many links in a row as Linux follows.
const MOST_HOPS: usize = 40;

/// Every place that a link leads by, the last one included, each in the folder where it really lies.
///
/// Links may lead to links: in hub caches that share blobs between repositories they do.
pub fn hops(link: &Path) -> Vec<PathBuf> {
    let next = |at: &Path| {
        let target = at.parent()?.join(fs_err::read_link(at).ok()?);
        match target.file_name() {
            Some(name) => Some(fs_err::canonicalize(target.parent()?).ok()?.join(name)),
            // It ends with `..`.
            None => fs_err::canonicalize(&target).ok(),
        }
    };
    std::iter::successors(next(link), |at| next(at)).take(MOST_HOPS).collect()
}

/// Where the links below `root` lead that do not lie below `except`, the real path of a folder.
///
/// Fails where a folder cannot be looked into: nobody knows what its links need. A root that is not there has none.
pub fn led_to(root: &Path, except: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let root = match fs_err::canonicalize(root) {
        Err(error) if super::is_absent(&error) => return Ok(BTreeSet::new()),
        root => root?,
    };
    let mut places = BTreeSet::new();
    for entry in WalkDir::new(root).into_iter().filter_entry(|entry| !entry.path().starts_with(except)) {
        let entry = entry?;
        if entry.path_is_symlink() {
            places.extend(hops(entry.path()));
        }
    }
    Ok(places)
}
