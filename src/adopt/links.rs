//! Where links lead, and by way of what.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// As many links in a row as Linux follows.
const MOST_HOPS: usize = 40;

/// Every place that a link leads by, the last one included, each in the folder where it really lies.
///
/// Links may lead to links: in hub caches that share blobs between repositories they do.
pub(super) fn hops(link: &Path) -> Vec<PathBuf> {
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

/// Where the links below `root` lead; `None` where a folder cannot be looked into: nobody knows what its links need.
pub(super) fn led_to(root: &Path) -> Option<BTreeSet<PathBuf>> {
    let mut places = BTreeSet::new();
    for entry in WalkDir::new(root) {
        let entry = entry.ok()?;
        if entry.path_is_symlink() {
            places.extend(hops(entry.path()));
        }
    }
    Some(places)
}
