//! Files of the store by pattern.

use std::io;
use std::path::Path;

use globset::GlobBuilder;
use walkdir::WalkDir;

use crate::artifact::{Found, Pattern};
use crate::fsio;

/// Files below `root`, without larder's own, whose path matches; sorted.
pub(super) fn matching(root: &Path, pattern: &Pattern) -> io::Result<Vec<Found>> {
    let glob = GlobBuilder::new(&pattern.glob).literal_separator(true).build();
    let glob = glob.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?.compile_matcher();
    if !root.exists() {
        return Ok(Vec::new());
    }
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    let mut found = Vec::new();
    for entry in walk.filter_entry(|entry| entry.depth() != 1 || entry.file_name() != ".larder") {
        let entry = entry?;
        let relative = entry.path().strip_prefix(root).unwrap_or(entry.path());
        if entry.file_type().is_file() && glob.is_match(relative) {
            found.extend(fsio::find(entry.path())?);
        }
    }
    Ok(found)
}
