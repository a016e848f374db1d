//! Headers of weight files, read without loading the weights, and what they say about the file's length.
//!
//! A header proves that a file is what it claims to be and that nothing of it is missing. It does not
//! prove the weights themselves: only a digest does. At most the header is read, however large the file.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

pub mod gguf;
pub mod safetensors;
pub mod shards;
mod zip;

/// What a file turns out to be, judged by its bytes and never by its name.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Safetensors, with a header that agrees with the file's length.
    Safetensors(safetensors::Header),
    /// GGUF, with a header that agrees with the file's length.
    Gguf(gguf::Header),
    /// A zip archive, such as PyTorch's `.pth`, with its directory in place.
    Zip,
    /// The text that stands for a file in git.
    LfsPointer,
    /// A web page, usually a login or an error.
    Html,
    /// Something else: nothing can be said about it.
    Unknown,
}

/// Why a file cannot be what it begins as.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system could not read it.
    #[error("The file cannot be read")]
    Io(#[source] io::Error),
    /// The file ends before its content does.
    #[error("The file is cut short: {what} ends at byte {needed}, the file has {len}")]
    Truncated {
        /// What does not fit.
        what: String,
        /// Where it should end.
        needed: u64,
        /// The file's length.
        len: u64,
    },
    /// There are bytes that the header does not know of.
    #[error("The file has {len} bytes, its header accounts for {expected}")]
    Surplus {
        /// The length by the header.
        expected: u64,
        /// The file's length.
        len: u64,
    },
    /// The header breaks the format.
    #[error("The header is not valid: {0}")]
    Malformed(String),
    /// One tensor's entry breaks the format.
    #[error("The header is not valid at tensor {name:?}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

impl WeightsError {
    pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.chars().take(200).collect(), reason: reason.into() }
    }

    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }
}

/// Looks what `path` is and, for safetensors, GGUF and zip, whether anything of it is missing.
pub fn check_file(path: &Path) -> Result<Kind, WeightsError> {
    let mut file = fs_err::File::open(path).map_err(WeightsError::Io)?;
    let len = file.metadata().map_err(WeightsError::Io)?.len();
    check(&mut file, len)
}

/// Looks what the `len` bytes of `file` are; like [`check_file`] for anything that can be read.
pub fn check(file: &mut (impl Read + Seek), len: u64) -> Result<Kind, WeightsError> {
    let mut start = Vec::with_capacity(512);
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.by_ref().take(512).read_to_end(&mut start))
        .map_err(WeightsError::Io)?;
    if start.starts_with(gguf::MAGIC) {
        return gguf::read_gguf(file, len).map(Kind::Gguf);
    }
    if safetensors::begins_like_one(&start) {
        return safetensors::read_safetensors(file, len).map(Kind::Safetensors);
    }
    if start.starts_with(b"PK\x03\x04") {
        return zip::check_zip(file, len).map(|()| Kind::Zip);
    }
    Ok(if start.starts_with(b"version https://git-lfs.github.com/spec/") {
        Kind::LfsPointer
    } else if is_html(&start) {
        Kind::Html
    } else {
        Kind::Unknown
    })
}

fn is_html(start: &[u8]) -> bool {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start().to_ascii_lowercase();
    [&b"<!doctype html"[..], b"<html", b"<head", b"<body"].iter().any(|tag| text.starts_with(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bytes: &[u8]) -> Kind {
        check(&mut io::Cursor::new(bytes), bytes.len() as u64).unwrap()
    }

    #[test]
    fn files_are_told_apart_by_their_bytes() {
        assert_eq!(kind(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), Kind::LfsPointer);
        assert_eq!(kind(b"\xef\xbb\xbf \n<!DOCTYPE HTML><html>"), Kind::Html);
        assert_eq!(kind(b"{\"a\": 1}"), Kind::Unknown);
        assert_eq!(kind(b""), Kind::Unknown);
    }

    #[test]
    fn a_name_does_not_make_a_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::io::Write::write_all(
            &mut fs_err::OpenOptions::new().write(true).create_new(true).open(&path).unwrap(),
            b"<html>Sign in</html>",
        )
        .unwrap();
        assert_eq!(check_file(&path).unwrap(), Kind::Html);
        assert!(matches!(check_file(&dir.path().join("absent")), Err(WeightsError::Io(_))));
    }
}
