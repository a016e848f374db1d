//! The headers of one artifact's files, each read once.

use std::cell::OnceCell;
use std::ops::Range;
use std::path::Path;

use super::{Fault, FaultKind};
use crate::artifact::{File, Found};
use crate::facts::Harmless;
use crate::fsio;
use crate::observe::{Proof, Sighting};
use crate::stores::FileState;
use crate::weights::blank::{Blank, find_blank};
use crate::weights::{self, Kind, WeightsError};

/// What is known of the files of one artifact by their headers.
#[derive(Debug)]
pub struct Headers<'a> {
    files: Vec<Entry<'a>>,
}

/// One file.
#[derive(Debug)]
pub struct Entry<'a> {
    /// What the lock says of it.
    pub file: &'a File,
    /// What lies in its place; `None` where nothing does that could be the file.
    pub found: Option<&'a Found>,
    /// Whether it was read and has the right digest, so that it is the right file, whatever its header says.
    pub is_proven: bool,
    /// Whether its pickles were followed before and are harmless, and it has not changed since.
    pub is_harmless: bool,
    kind: OnceCell<Result<Kind, WeightsError>>,
}

impl<'a> Headers<'a> {
    /// Nothing is read yet.
    pub fn of(sighting: &'a Sighting<'_>) -> Self {
        let files = sighting.artifact.files.iter().zip(&sighting.observed.files).zip(&sighting.proofs);
        let entry = |((file, state), proof): ((&'a File, &'a FileState), &Proof)| Entry {
            file,
            found: if let FileState::Present(found) = state { Some(found) } else { None },
            is_proven: matches!(proof, Proof::Proven { .. }),
            is_harmless: false,
            kind: OnceCell::new(),
        };
        // Files that only a pattern knows have no entry in the lock: they are told by their places.
        Self { files: files.map(entry).collect() }
    }

    /// With what is known from before, pickles need not be followed again.
    pub(super) fn remembering(mut self, before: &Harmless) -> Self {
        self.files.iter_mut().for_each(|entry| entry.is_harmless = entry.found.is_some_and(|found| before.has(found)));
        self
    }

    /// Files that turned out to be harmless just now, where `faults` are those of the artifact.
    pub(super) fn found_harmless<'b>(&'b self, faults: &'b [Fault]) -> impl Iterator<Item = &'b Found> {
        let is_unsafe = |entry: &Entry<'_>| {
            let is_it = |fault: &Fault| fault.path.as_deref() == Some(entry.file.path.as_str());
            faults.iter().any(|fault| fault.kind == FaultKind::UnsafePickle && is_it(fault))
        };
        let seen = self.files.iter().filter(|entry| !entry.is_harmless && matches!(entry.kind.get(), Some(Ok(_))));
        seen.filter(move |entry| !is_unsafe(entry)).filter_map(|entry| entry.found)
    }

    /// The files, in the artifact's order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<'a>> {
        self.files.iter()
    }

    /// The file at `path` within the artifact.
    pub fn at(&self, path: &str) -> Option<&Entry<'a>> {
        self.files.iter().find(|entry| entry.file.path.as_str() == path)
    }
}

impl Entry<'_> {
    /// What the file is; its header is read at the first call. `None` where nothing is there.
    pub fn kind(&self) -> Option<&Result<Kind, WeightsError>> {
        let found = self.found?;
        Some(self.kind.get_or_init(|| weights::check_file(&found.path)))
    }

    /// The kind of a file whose header is in order.
    pub fn sound(&self) -> Option<&Kind> {
        self.kind()?.as_ref().ok()
    }
}

/// Looks for what was never written in the file at `path`, which has `len` bytes.
pub fn blank(path: &Path, len: u64, kind: &Kind) -> Result<Option<Blank>, WeightsError> {
    let tensors = kind.tensors();
    let holes: Vec<Range<u64>> = fsio::holes(path).map_err(WeightsError::Io)?;
    let mut file = fs_err::File::open(path).map_err(WeightsError::Io)?;
    find_blank(&mut file, len, &tensors, &holes)
}
