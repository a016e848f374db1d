//! What lies in a bucket, and what it is called there.

use std::fmt;
use std::str::FromStr;

use crate::digest::{ContentName, Sha256};

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A content.
    Blob(ContentName),
    /// A lock, by the digest of its text.
    Lock(Sha256),
    /// A manifest, by the digest of its text.
    Manifest(Sha256),
    /// What a machine has.
    State(String),
}

/// The kinds of object, each in a folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shelf {
    /// Contents.
    Blobs,
    /// Locks.
    Locks,
    /// Manifests.
    Manifests,
    /// What machines have.
    States,
}

impl Shelf {
    /// The folder.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Shelf::Blobs => "blobs",
            Shelf::Locks => "locks",
            Shelf::Manifests => "manifests",
            Shelf::States => "machines",
        }
    }
}

/// A name that larder gives to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an object of larder's")]
pub struct ParseKeyError;

impl Key {
    /// The state of `machine`; `None` where its name fits no key.
    pub fn state(machine: &str) -> Option<Self> {
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let fits =
            !machine.is_empty() && !machine.starts_with('.') && machine.len() <= 200 && machine.chars().all(is_good);
        fits.then(|| Key::State(machine.to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Blob(ContentName::Sha256(digest)) => write!(f, "blobs/sha256/{digest}"),
            Key::Blob(ContentName::GitSha1(digest)) => write!(f, "blobs/git-sha1/{digest}"),
            Key::Lock(digest) => write!(f, "locks/sha256/{digest}"),
            Key::Manifest(digest) => write!(f, "manifests/sha256/{digest}"),
            Key::State(machine) => write!(f, "machines/{machine}/state.json"),
        }
    }
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '/');
        let (Some(shelf), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ParseKeyError);
        };
        let key = match (shelf, kind) {
            ("blobs", "sha256") => name.parse().ok().map(|digest| Key::Blob(ContentName::Sha256(digest))),
            ("blobs", "git-sha1") => name.parse().ok().map(|digest| Key::Blob(ContentName::GitSha1(digest))),
            ("locks", "sha256") => name.parse().ok().map(Key::Lock),
            ("manifests", "sha256") => name.parse().ok().map(Key::Manifest),
            ("machines", machine) if name == "state.json" => Key::state(machine),
            _ => None,
        };
        // Another spelling of the same digest is another object.
        key.filter(|key| key.to_string() == text).ok_or(ParseKeyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_they_are_called() {
        let digest = Sha256::of(b"x");
        let keys = [
            Key::Blob(ContentName::Sha256(digest)),
            Key::Blob(ContentName::GitSha1(crate::digest::GitSha1::from_bytes([7; 20]))),
            Key::Lock(digest),
            Key::Manifest(digest),
            Key::state("pc-1.lab").unwrap(),
        ];
        for key in keys {
            assert_eq!(key.to_string().parse(), Ok(key.clone()), "{key}");
        }
    }

    #[test]
    fn other_names_are_nothing_of_ours() {
        let upper = format!("blobs/sha256/{}", Sha256::of(b"x").to_string().to_uppercase());
        let prefixed = format!("blobs/sha256/sha256:{}", Sha256::of(b"x"));
        for text in [
            "",
            "blobs",
            "blobs/sha256/",
            "blobs/md5/00",
            "machines/pc1/other",
            "machines//state.json",
            &upper,
            &prefixed,
        ] {
            assert_eq!(text.parse::<Key>(), Err(ParseKeyError), "{text}");
        }
        for machine in ["", "..", "a/b", "pc 1", "pc\u{e9}"] {
            assert_eq!(Key::state(machine), None, "{machine:?}");
        }
    }
}
