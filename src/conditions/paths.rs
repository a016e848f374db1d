//! Paths that people write: `~` and globs.

use std::io;
use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;

/// `path` with `~` replaced by `home`.
pub(super) fn expand_home(path: &Path, home: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => path.to_owned(),
    }
}

/// A folder that would have to be looked into and may not be.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) path: PathBuf,
    pub(super) error: io::Error,
}

/// Everything that `pattern` names, sorted; parts without `*`, `?`, `[` or `{` are taken as they are.
pub(super) fn expand(pattern: &Path, home: &Path) -> Result<Vec<PathBuf>, Unreadable> {
    match pattern.strip_prefix("~") {
        Ok(rest) => expand_under(home, rest),
        Err(_) => expand_under(Path::new(""), pattern),
    }
}

/// Everything below `base` that `pattern` names; `base` itself is no glob, whatever its name is.
pub(super) fn expand_under(base: &Path, pattern: &Path) -> Result<Vec<PathBuf>, Unreadable> {
    let mut found = vec![base.to_owned()];
    for component in pattern.components() {
        found = match component {
            Component::Normal(part) if is_glob(part) => matching(&found, &part.to_string_lossy())?,
            part => found.into_iter().map(|path| path.join(part)).collect(),
        };
    }
    let mut present = Vec::new();
    for path in found {
        match fs_err::symlink_metadata(&path) {
            Ok(_) => present.push(path),
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(Unreadable { path, error }),
        }
    }
    present.sort();
    Ok(present)
}

/// Whether an error says that there is nothing, not that it may not be looked at.
pub(super) fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_glob(part: &std::ffi::OsStr) -> bool {
    part.to_string_lossy().contains(['*', '?', '[', '{'])
}

fn matching(folders: &[PathBuf], glob: &str) -> Result<Vec<PathBuf>, Unreadable> {
    let Ok(glob) = GlobBuilder::new(glob).literal_separator(true).build() else {
        // Not a glob after all: the name itself.
        return Ok(folders.iter().map(|folder| folder.join(glob)).collect());
    };
    let glob = glob.compile_matcher();
    let mut found = Vec::new();
    for folder in folders {
        let entries = match fs_err::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if is_absence(&error) => continue,
            Err(error) => return Err(Unreadable { path: folder.clone(), error }),
        };
        for entry in entries {
            let entry = entry.map_err(|error| Unreadable { path: folder.clone(), error })?;
            if glob.is_match(entry.file_name()) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
