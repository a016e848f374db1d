//! Mistakes in files that people write: where they are and how to mend them.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

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
        let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
        Self::new(Place::file(path), format!("cannot be read: {cause}"))
    }
}

/// Parses TOML and, on a mistake, says where, with the closest known key for an unknown one.
pub fn parse_toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, InputError> {
    toml::from_str(text).map_err(|error| {
        let place = error.span().map_or_else(|| Place::file(path), |span| Place::at(path, text, span));
        let (message, hint) = explain(error.message());
        InputError { place, message, hint }
    })
}

/// Turns serde's message about unknown keys into a short one and a suggestion.
fn explain(message: &str) -> (String, Option<String>) {
    let message = message.trim_end().to_owned();
    for (kind, what) in [("unknown field `", "key"), ("unknown variant `", "value")] {
        let Some(rest) = message.strip_prefix(kind) else {
            continue;
        };
        let mut quoted = rest.split('`').step_by(2);
        let Some(unknown) = quoted.next().map(str::to_owned) else {
            continue;
        };
        let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
        let closest = known
            .iter()
            .map(|candidate| (strsim::damerau_levenshtein(candidate, &unknown), candidate))
            .min()
            .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 3);
        let hint = match closest {
            Some((_, candidate)) => format!("did you mean `{candidate}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        return (format!("unknown {what} `{unknown}`"), Some(hint));
    }
    (message, None)
}
