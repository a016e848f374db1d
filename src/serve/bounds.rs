//! Where content may lie: in the folders of the stores, links followed. Nothing else is ever handed out.
//!
//! Stores follow links, and whoever may write into a store could plant one to a file that only the server may read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use rustix::fs::{Mode, OFlags};

/// The folders that content may lie in, without links.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    told: Vec<PathBuf>,
    /// Those of them that were there when it was last looked.
    real: RwLock<Vec<PathBuf>>,
}

impl Bounds {
    pub(crate) fn new(folders: Vec<PathBuf>) -> Self {
        let bounds = Self { told: folders, real: RwLock::default() };
        bounds.look_again();
        bounds
    }

    /// Opens the file at `path`, which must be a regular one within the bounds.
    ///
    /// It is opened first and then asked where it lies, so that a link that is turned meanwhile changes nothing.
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        // Without waiting: a named pipe would make the reader wait for ever for somebody who writes.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a file", path.display())));
        }
        let place = fs_err::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if self.has_place(&place) { Ok(file) } else { Err(outside(path)) }
    }

    /// Whether `place`, which has no links in it, lies within.
    fn has_place(&self, place: &Path) -> bool {
        // A store's folder may have been made, or mounted, since it was last looked.
        self.knows(place) || (self.look_again() && self.knows(place))
    }

    fn knows(&self, place: &Path) -> bool {
        self.real.read().unwrap_or_else(PoisonError::into_inner).iter().any(|folder| place.starts_with(folder))
    }

    /// Returns whether the folders are others than before.
    fn look_again(&self) -> bool {
        let found: Vec<PathBuf> = self.told.iter().filter_map(|folder| fs_err::canonicalize(folder).ok()).collect();
        let mut real = self.real.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = *real != found;
        *real = found;
        is_new
    }
}

fn outside(path: &Path) -> io::Error {
    let message = format!("{} leads out of the stores", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, message)
}

/// Looks at many paths: the way to a folder is gone once.
pub(crate) struct Survey<'a> {
    bounds: &'a Bounds,
    folders: HashMap<PathBuf, bool>,
}

impl<'a> Survey<'a> {
    pub(crate) fn new(bounds: &'a Bounds) -> Self {
        Self { bounds, folders: HashMap::new() }
    }

    /// Whether what `path` leads to lies within the bounds, for now; so does what is not there.
    pub(crate) fn has(&mut self, path: &Path) -> bool {
        let is_link = || fs_err::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
        match path.parent() {
            Some(folder) if !is_link() => {
                if let Some(known) = self.folders.get(folder) {
                    return *known;
                }
                let is_within = self.leads_within(folder);
                self.folders.insert(folder.to_owned(), is_within);
                is_within
            }
            _ => self.leads_within(path),
        }
    }

    fn leads_within(&self, path: &Path) -> bool {
        fs_err::canonicalize(path).map_or(true, |place| self.bounds.has_place(&place))
    }
}
