//! Mistakes in files that people write: where they are and how to mend them.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A place in a text file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1; 0 where the whole file is meant.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl Place {
    /// The place of a byte range in `text`.
    pub fn at(path: &Path, text: &str, span: Range<usize>) -> Self {
        let start = (0..=span.start.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let before = &text[..start];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Self { path: path.to_owned(), line, column }
    }

    /// The file as a whole.
    pub fn file(path: &Path) -> Self {
        Self { path: path.to_owned(), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.line > 0 { write!(f, ":{}:{}", self.line, self.column) } else { Ok(()) }
    }
}

/// A mistake in a manifest, an inventory or a lock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct InputError {
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl InputError {
    /// A mistake at `place`.
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), hint: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The file cannot be read.
    pub fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        // fs_err repeats the path in its message; the place already says it.
        let cause = error.to_string();
        let cause = cause.rsplit_once("`: ").map_or(cause.as_str(), |(_, cause)| cause);
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "run larder as a user who may read it",
            std::io::ErrorKind::InvalidData => "save it as UTF-8 in your editor, or with: iconv -t UTF-8",
            std::io::ErrorKind::IsADirectory => "a folder is in its place: move it away, or name a file",
            _ => "check the disk, or restore the file",
        };
        Self::new(Place::file(path), format!("cannot be read: {cause}")).hint(hint)
    }
}
