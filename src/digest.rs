//! Digests of content: what each algorithm yields, how it is written, and hashing as bytes pass by.

use std::fmt;
use std::str::FromStr;

use larder_metal::Sha256 as Sha256State;
use md5::Md5 as Md5State;
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1 as Sha1State};

use crate::text::FromText;

mod chunks;
mod progress;

pub use chunks::{CHUNK_LEN, ChunkDigests, ChunkHasher, chunk_count, chunk_range};
pub use progress::Progress;

/// A text that is not a digest of the expected algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {algorithm} digest: {expected} hexadecimal digits are needed, this has {actual} characters")]
pub struct ParseDigestError {
    algorithm: &'static str,
    expected: usize,
    actual: usize,
    text: String,
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident, $len:literal, $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $len]);

        impl $name {
            /// The algorithm's name, as manifests and locks write it.
            pub const ALGORITHM: &'static str = $label;

            /// Wraps a finished digest.
            pub fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The digest's bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        /// Lower-case hexadecimal digits, without a prefix.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}:{self}", Self::ALGORITHM)
            }
        }

        /// Reads hexadecimal digits of either case, with or without the `algorithm:` prefix.
        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let digits = text.strip_prefix(concat!($label, ":")).unwrap_or(text);
                let mut bytes = [0; $len];
                decode_hex(digits, &mut bytes).map(|()| Self(bytes)).ok_or_else(|| ParseDigestError {
                    algorithm: Self::ALGORITHM,
                    expected: 2 * $len,
                    actual: digits.chars().count(),
                    text: text.chars().take(80).collect(),
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(FromText::new())
            }
        }
    };
}

digest_type!(
    /// SHA-256 of the content: what the hub's LFS, xet bridges and Ollama name content by.
    Sha256, 32, "sha256"
);
digest_type!(
    /// Git's blob id, `sha1("blob <len>\0" + content)`: what the hub names small files by.
    GitSha1, 20, "git-sha1"
);
digest_type!(
    /// MD5, only because some consumers (MMAudio) check it themselves.
    Md5, 16, "md5"
);

digest_type!(
    /// BLAKE3 of a part of the content: what larder finds faults by. No other program names content by it.
    Blake3, 32, "blake3"
);

digest_type!(
    /// What the hub names a file by in Xet: the root of a tree of hashes over chunks of its own cutting.
    ///
    /// larder does not compute it, so it proves nothing; two files that are the same have the same one.
    /// It is written as the hub writes it, which is not the order of its bytes.
    XetHash, 32, "xet"
);

impl Blake3 {
    /// The digest of bytes already in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }
}

/// BLAKE3 of bytes that pass by.
#[derive(Debug, Clone, Default)]
pub struct Blake3Hasher(blake3::Hasher);

impl Blake3Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything taken.
    pub fn finish(self) -> Blake3 {
        Blake3(self.0.finalize().into())
    }
}

impl Sha256 {
    /// The digest of bytes already in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut state = Sha256State::new();
        state.update(bytes);
        Self(state.finish())
    }
}

fn decode_hex(digits: &str, into: &mut [u8]) -> Option<()> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * into.len() {
        return None;
    }
    let mut seen = 0;
    for (byte, pair) in into.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (HEX_VALUES[usize::from(pair[0])], HEX_VALUES[usize::from(pair[1])]);
        *byte = high << 4 | low;
        seen |= high | low;
    }
    // A digit's value has four bits; asked once for all, because locks have millions of digits.
    (seen < 16).then_some(())
}

/// The value of each byte as a hexadecimal digit; 255 where it is none.
const HEX_VALUES: [u8; 256] = {
    let digits = *b"0123456789abcdef";
    let mut values = [u8::MAX; 256];
    let mut value = 0;
    while value < digits.len() {
        values[digits[value] as usize] = value as u8;
        values[digits[value].to_ascii_uppercase() as usize] = value as u8;
        value += 1;
    }
    values
};

/// What is known, or was measured, about one file's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Digests {
    /// SHA-256 of the whole content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Git blob id of the whole content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_sha1: Option<GitSha1>,
    /// MD5 of the whole content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<Md5>,
}

/// A digest that names content for other programs and machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContentName {
    /// By the SHA-256 of the content.
    Sha256(Sha256),
    /// By git's blob id, where nothing else is known.
    GitSha1(GitSha1),
}

/// `sha256:…` or `git-sha1:…`.
impl fmt::Display for ContentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentName::Sha256(digest) => write!(f, "{}:{digest}", Sha256::ALGORITHM),
            ContentName::GitSha1(digest) => write!(f, "{}:{digest}", GitSha1::ALGORITHM),
        }
    }
}

/// Content is not what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{algorithm} is {actual}, expected {expected}")]
pub struct DigestMismatch {
    /// The first algorithm that disagrees.
    pub algorithm: &'static str,
    /// The digest that was asked for.
    pub expected: String,
    /// The digest that was measured.
    pub actual: String,
}

impl Digests {
    /// Only a SHA-256.
    pub fn sha256(digest: Sha256) -> Self {
        Self { sha256: Some(digest), ..Self::default() }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an algorithm that proves content (not only MD5) is known.
    pub fn proves_content(&self) -> bool {
        self.sha256.is_some() || self.git_sha1.is_some()
    }

    /// Every name that the content is known by, the stronger first.
    pub fn names(&self) -> impl Iterator<Item = ContentName> {
        self.sha256.map(ContentName::Sha256).into_iter().chain(self.git_sha1.map(ContentName::GitSha1))
    }

    /// Compares every digest known here with `measured`; one that was not measured is not compared.
    pub fn check(&self, measured: &Self) -> Result<(), DigestMismatch> {
        compare(self.sha256, measured.sha256, Sha256::ALGORITHM)?;
        compare(self.git_sha1, measured.git_sha1, GitSha1::ALGORITHM)?;
        compare(self.md5, measured.md5, Md5::ALGORITHM)
    }

    /// Whether both surely name the same content: an algorithm that proves content agrees, none disagrees.
    pub fn same_content(&self, other: &Self) -> bool {
        let agree = (self.sha256.is_some() && self.sha256 == other.sha256)
            || (self.git_sha1.is_some() && self.git_sha1 == other.git_sha1);
        agree && self.check(other).is_ok()
    }

    /// What is known here, completed by what is known in `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            sha256: self.sha256.or(other.sha256),
            git_sha1: self.git_sha1.or(other.git_sha1),
            md5: self.md5.or(other.md5),
        }
    }
}

fn compare<T: PartialEq + ToString>(
    expected: Option<T>,
    measured: Option<T>,
    algorithm: &'static str,
) -> Result<(), DigestMismatch> {
    match (expected, measured) {
        (Some(expected), Some(actual)) if expected != actual => {
            Err(DigestMismatch { algorithm, expected: expected.to_string(), actual: actual.to_string() })
        }
        _ => Ok(()),
    }
}

/// Hashes content as it passes by: SHA-256 always, the others where asked for.
#[derive(Debug, Clone)]
pub struct ContentHasher {
    chunks: Option<Box<ChunkHasher>>,
    sha256: Sha256State,
    git_sha1: Option<Sha1State>,
    md5: Option<Md5State>,
}

impl ContentHasher {
    /// Starts hashing with SHA-256 only.
    pub fn new() -> Self {
        Self { sha256: Sha256State::new(), git_sha1: None, md5: None, chunks: None }
    }

    /// Starts hashing with everything that `expected` can be compared by.
    ///
    /// A git blob id begins with the length, so it is left out where `size` is unknown.
    pub fn to_compare(expected: &Digests, size: Option<u64>) -> Self {
        let hasher = Self::new();
        let hasher = match (expected.git_sha1, size) {
            (Some(_), Some(size)) => hasher.with_git_sha1(size),
            _ => hasher,
        };
        if expected.md5.is_some() { hasher.with_md5() } else { hasher }
    }

    /// Computes the git blob id too; `size` is the length of the whole content.
    #[must_use]
    pub fn with_git_sha1(mut self, size: u64) -> Self {
        let mut state = Sha1State::new();
        state.update(format!("blob {size}\0"));
        self.git_sha1 = Some(state);
        self
    }

    /// Computes MD5 too.
    #[must_use]
    pub fn with_md5(mut self) -> Self {
        self.md5 = Some(Md5State::new());
        self
    }

    /// Takes the digests of its chunks too, for [`ContentHasher::finish_with_chunks`].
    #[must_use]
    pub fn with_chunks(mut self) -> Self {
        self.chunks = Some(Box::default());
        self
    }

    /// Takes the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.update_others(bytes);
    }

    /// Takes the next bytes of independent contents: faster than one after the other, see [`ContentHasher::at_once`].
    pub fn update_together(contents: &mut [(&mut Self, &[u8])]) {
        let mut streams: Vec<_> = contents.iter_mut().map(|(hasher, bytes)| (&mut hasher.sha256, *bytes)).collect();
        larder_metal::update_together(&mut streams);
        contents.iter_mut().for_each(|(hasher, bytes)| hasher.update_others(bytes));
    }

    /// How many contents one processor takes at once at best.
    pub fn at_once() -> usize {
        larder_metal::streams_at_once()
    }

    fn update_others(&mut self, bytes: &[u8]) {
        if let Some(chunks) = &mut self.chunks {
            chunks.update(bytes);
        }
        if let Some(state) = &mut self.git_sha1 {
            state.update(bytes);
        }
        if let Some(state) = &mut self.md5 {
            state.update(bytes);
        }
    }

    /// The digests of everything taken so far, and those of its chunks where they were asked for.
    pub fn finish_with_chunks(mut self) -> (Digests, Option<ChunkDigests>) {
        let chunks = self.chunks.take().map(|chunks| chunks.finish());
        (self.finish(), chunks)
    }

    /// The digests of everything taken so far.
    pub fn finish(self) -> Digests {
        Digests {
            sha256: Some(Sha256(self.sha256.finish())),
            git_sha1: self.git_sha1.map(|state| GitSha1(state.finalize().into())),
            md5: self.md5.map(|state| Md5(state.finalize().into())),
        }
    }
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `printf abc | sha256sum`, `md5sum` and `git hash-object --stdin`.
    #[test]
    fn hashes_agree_with_the_usual_tools() {
        let mut hasher = ContentHasher::new().with_git_sha1(3).with_md5();
        hasher.update(b"a");
        hasher.update(b"bc");
        let digests = hasher.finish();
        assert_eq!(
            digests.sha256.unwrap().to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digests.git_sha1.unwrap().to_string(), "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f");
        assert_eq!(digests.md5.unwrap().to_string(), "900150983cd24fb0d6963f7d28e17f72");
    }

    #[test]
    fn digests_are_read_with_or_without_prefix_and_in_either_case() {
        let digest = Sha256::of(b"abc");
        assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
        assert_eq!(format!("sha256:{digest}").parse(), Ok(digest));
        assert!("sha256:abc".parse::<Sha256>().is_err());
        for no_digit in ["g", "G", "/", ":", "@", "`", " "] {
            assert!(digest.to_string().replacen('a', no_digit, 1).parse::<Sha256>().is_err(), "{no_digit:?}");
        }
        assert!("é".repeat(32).parse::<Sha256>().is_err());
    }

    #[test]
    fn only_agreeing_digests_name_the_same_content() {
        let known = Digests::sha256(Sha256::of(b"a"));
        assert!(known.same_content(&known));
        assert!(!known.same_content(&Digests::sha256(Sha256::of(b"b"))));
        assert!(!Digests::default().same_content(&Digests::default()), "nothing known proves nothing");
        assert!(known.check(&Digests::default()).is_ok());
    }
}
