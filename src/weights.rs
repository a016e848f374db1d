//! Headers of weight files, read without loading the weights, and what they say about the file's length.
//!
//! A header proves that a file is what it claims to be and that nothing of it is missing. It does not
//! prove the weights themselves: only a digest does. At most the header is read, however large the file.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

pub mod blank;
pub mod gguf;
mod hidden;
mod numpy;
pub mod pickle;
pub mod safetensors;
pub mod shards;
pub mod torch;
mod zip;

/// What a file turns out to be, judged by its bytes and never by its name.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Safetensors, with a header that agrees with the file's length.
    Safetensors(safetensors::Header),
    /// GGUF, with a header that agrees with the file's length.
    Gguf(gguf::Header),
    /// Weights as `torch.save` writes them, whose pickle only builds tensors.
    Torch(torch::Header),
    /// One or several pickles that are not of torch, and import nothing that larder does not know to be harmless.
    Pickle,
    /// Another zip archive, with its directory in place.
    Zip,
    /// An array of numpy.
    Numpy,
    /// A network in ONNX's format, of which no more is looked at.
    Onnx,
    /// A tar archive.
    Tar,
    /// Nothing but zeros, as far as it was looked at: a file that was never written.
    Zeros,
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
    /// A pickle would run what building tensors does not need.
    #[error("Unsafe pickle: {pickle}: {}", .findings.join("; "))]
    UnsafePickle {
        /// The member of the archive, or the place in the file.
        pickle: String,
        /// What it would do, each in words that name module and attribute.
        findings: Vec<String>,
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

/// Looks what `path` is and, for safetensors, GGUF, files of torch and zip archives, whether anything of it is missing.
///
/// Pickles are followed and never run; one that would do more than build tensors is an error.
pub fn check_file(path: &Path) -> Result<Kind, WeightsError> {
    let mut file = fs_err::File::open(path).map_err(WeightsError::Io)?;
    let len = file.metadata().map_err(WeightsError::Io)?.len();
    check(&mut file, len)
}

/// Looks what the `len` bytes of `file` are; like [`check_file`] for anything that can be read.
pub fn check(file: &mut (impl Read + Seek), len: u64) -> Result<Kind, WeightsError> {
    let mut start = Vec::with_capacity(START);
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.by_ref().take(START as u64).read_to_end(&mut start))
        .map_err(WeightsError::Io)?;
    if start.starts_with(gguf::MAGIC) {
        return gguf::read_gguf(file, len).map(Kind::Gguf);
    }
    if safetensors::begins_like_one(&start) {
        return safetensors::read_safetensors(file, len).map(Kind::Safetensors);
    }
    if start.starts_with(b"PK\x03\x04") {
        return Ok(match torch::read_archive(file, len)? {
            torch::Archive::Torch(header) => Kind::Torch(header),
            torch::Archive::Other => Kind::Zip,
        });
    }
    if torch::begins_like_pickle(&start) {
        return Ok(torch::read_pickles(file, len)?.map_or(Kind::Pickle, Kind::Torch));
    }
    if start.starts_with(numpy::MAGIC) {
        return numpy::check_array(file, &(0..len), "the file").map(|()| Kind::Numpy);
    }
    let kind = of_start(&start);
    if kind == Kind::Tar {
        hidden::check_tar(file, len)?;
    }
    Ok(kind)
}

/// How much of a file is read to see what it is.
const START: usize = 512;

/// What a file is that has no header to be read.
fn of_start(start: &[u8]) -> Kind {
    if start.starts_with(b"version https://git-lfs.github.com/spec/") {
        Kind::LfsPointer
    } else if is_html(start) {
        Kind::Html
    } else if start.len() == START && start.iter().all(|byte| *byte == 0) {
        Kind::Zeros
    } else if start.get(257..262) == Some(b"ustar") {
        Kind::Tar
    } else if is_onnx(start) {
        Kind::Onnx
    } else {
        Kind::Unknown
    }
}

/// A version, then the program that wrote it: fields 1 and 2 of ONNX's protocol buffer.
fn is_onnx(start: &[u8]) -> bool {
    let [0x08, 1..=32, 0x12, length, name @ ..] = start else { return false };
    let name = name.get(..usize::from(*length)).unwrap_or_default();
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
}

/// Follows a file that may be a pickle of the protocols 0 and 1, which have no magic number.
///
/// Answers what is unsafe in it; `None` where it is harmless, or no pickle at all.
pub fn unsafe_text_pickle(file: &mut (impl Read + Seek), len: u64) -> Option<WeightsError> {
    torch::unsafe_imports(file, len, false).ok()?
}

/// The same for a file that nobody called weights: only a forbidden import that is also called counts, because a text
/// may begin like an import.
pub fn unsafe_text_program(file: &mut (impl Read + Seek), len: u64) -> Option<WeightsError> {
    torch::unsafe_imports(file, len, true).ok()?
}

/// One tensor of a file, whatever its format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type: as safetensors writes it, or ggml's name.
    pub dtype: String,
    /// Its dimensions, the slowest-running first.
    pub shape: Vec<u64>,
    /// Where its bytes are in the file. Of an unknown element type only the beginning is known.
    pub place: Range<u64>,
}

impl Kind {
    /// The tensors of a file that has any, in the order of its header.
    pub fn tensors(&self) -> Vec<Tensor> {
        match self {
            Kind::Safetensors(header) => header.tensors.iter().map(|tensor| of_safetensors(header, tensor)).collect(),
            Kind::Gguf(header) => header.tensors.iter().map(|tensor| of_gguf(header, tensor)).collect(),
            Kind::Torch(header) => header.tensors.iter().map(of_torch).collect(),
            _ => Vec::new(),
        }
    }

    /// What it is called in messages.
    pub fn title(&self) -> &'static str {
        match self {
            Kind::Safetensors(_) => "safetensors",
            Kind::Gguf(_) => "GGUF",
            Kind::Torch(header) if header.legacy => "PyTorch's older format",
            Kind::Torch(_) => "PyTorch",
            Kind::Pickle => "a pickle that is not of torch",
            Kind::Zip => "a zip archive",
            Kind::Numpy => "an array of numpy",
            Kind::Onnx => "ONNX",
            Kind::Tar => "a tar archive",
            Kind::Zeros => "nothing but zeros",
            Kind::LfsPointer => "a git-lfs pointer",
            Kind::Html => "a web page",
            Kind::Unknown => "of no format that larder knows",
        }
    }
}

fn of_safetensors(header: &safetensors::Header, tensor: &safetensors::Tensor) -> Tensor {
    let safetensors::Tensor { name, dtype, shape, start, end } = tensor.clone();
    Tensor { name, dtype, shape, place: header.data_start + start..header.data_start + end }
}

fn of_gguf(header: &gguf::Header, tensor: &gguf::Tensor) -> Tensor {
    let start = header.data_start.saturating_add(tensor.offset);
    let place = start..start.saturating_add(tensor.size.unwrap_or(0));
    let shape = tensor.shape.iter().rev().copied().collect();
    Tensor { name: tensor.name.clone(), dtype: gguf::type_name(tensor.kind), shape, place }
}

fn of_torch(tensor: &torch::Tensor) -> Tensor {
    let torch::Tensor { name, dtype, shape, place } = tensor.clone();
    Tensor { name, dtype, shape, place }
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
        assert_eq!(kind(&[0; 4096]), Kind::Zeros);
        assert_eq!(kind(b"\x08\x0a\x12\x07pytorch\x1a\x012"), Kind::Onnx);
        assert_eq!(kind(&[&[b'a'; 257][..], b"ustar"].concat()), Kind::Tar);
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
