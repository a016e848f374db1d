//! Paths inside an artifact or a store: relative, clean, and never leading out.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::FromText;

/// A relative path with `/` between its parts that cannot lead out of the folder it is joined to.
///
/// Names come from people and from servers. Refused: empty paths and parts, `.` and `..`, absolute
/// paths, drive letters, backslashes, control characters, and parts longer than 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RelPath(Box<str>);

/// A name that must not become a path here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be used as a file name here: {reason}")]
pub struct UnsafePath {
    path: String,
    reason: &'static str,
}

impl RelPath {
    /// The path as text, with `/` between parts.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between the slashes.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The last part.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Everything before the last part; `None` for a file at the top.
    pub fn parent(&self) -> Option<RelPath> {
        self.0.rsplit_once('/').map(|(parent, _)| RelPath(parent.into()))
    }

    /// This path below `root`.
    pub fn under(&self, root: &Path) -> PathBuf {
        root.join(&*self.0)
    }

    /// What follows `folder/` in this path; `None` where it does not lie in `folder`.
    pub fn within(&self, folder: &RelPath) -> Option<RelPath> {
        let rest = self.0.strip_prefix(folder.as_str())?.strip_prefix('/')?;
        Some(RelPath(rest.into()))
    }

    /// `child` below this path.
    #[must_use]
    pub fn join(&self, child: &RelPath) -> RelPath {
        RelPath(format!("{}/{}", self.0, child.0).into())
    }
}

impl FromStr for RelPath {
    type Err = UnsafePath;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        match refusal(path) {
            None => Ok(Self(path.into())),
            Some(reason) => Err(UnsafePath { path: path.chars().take(300).collect(), reason }),
        }
    }
}

fn refusal(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("it is empty");
    }
    if path.starts_with('/') {
        return Some("it is absolute");
    }
    if path.contains('\\') {
        return Some("it contains a backslash");
    }
    // Most names are ASCII, and locks have a hundred thousand of them.
    if path.bytes().any(|byte| !(0x20..0x7f).contains(&byte)) && path.chars().any(char::is_control) {
        return Some("it contains a control character");
    }
    if path.as_bytes().get(1) == Some(&b':') && path.as_bytes()[0].is_ascii_alphabetic() {
        return Some("it begins with a drive letter");
    }
    path.split('/').find_map(|part| match part {
        "" => Some("it has an empty part"),
        "." | ".." => Some("it has a part that is . or .."),
        long if long.len() > 255 => Some("a part of it is longer than 255 bytes"),
        _ => None,
    })
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_refused() {
        for bad in ["", "/etc/passwd", "../x", "a/../../b", "a//b", "a/.", "C:/x", "a\\b", "a\0b", "a\nb", "a/"] {
            assert!(bad.parse::<RelPath>().is_err(), "{bad:?} was accepted");
        }
        assert!("x".repeat(256).parse::<RelPath>().is_err());
    }

    #[test]
    fn only_whole_parts_count_as_the_folder() {
        let path = |text: &str| text.parse::<RelPath>().unwrap();
        assert_eq!(path("a/b/c").within(&path("a/b")), Some(path("c")));
        assert_eq!(path("a/bc").within(&path("a/b")), None);
        assert_eq!(path("a").within(&path("a")), None);
    }

    #[test]
    fn ordinary_names_are_kept_as_they_are() {
        for good in ["config.json", "text_encoder/model-00001-of-00002.safetensors", "a b/ü.bin", "..x", "a/.hidden"] {
            assert_eq!(good.parse::<RelPath>().unwrap().as_str(), good);
        }
    }
}
