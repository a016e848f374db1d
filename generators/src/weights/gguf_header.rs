//! The header of a GGUF file, read with bounds on everything that it claims.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Bytes of the longest text.
const TEXT: u64 = 16 << 20;
/// Dimensions of a tensor at most.
const DIMENSIONS: u32 = 4;
/// Arrays within arrays.
const DEPTH: usize = 4;

/// Why a GGUF header cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The file does not begin with `GGUF`.
    #[error("It does not begin as a GGUF file does")]
    Magic,
    /// The version is not 2 or 3, or the numbers are big-endian.
    #[error("It is of the version {version}; 2 and 3 in little-endian order are read")]
    Version {
        /// The version, as it reads in little-endian order.
        version: u32,
    },
    /// The file ends within its header.
    #[error("It ends within its header, at byte {at}")]
    Short {
        /// Where it was read.
        at: usize,
    },
    /// A part is not of the known form.
    #[error("Its {what} at byte {at} is not of the known form")]
    Malformed {
        /// The part.
        what: &'static str,
        /// Where it is.
        at: usize,
    },
    /// Two entries have one name.
    #[error("It has two entries called {name:?}")]
    Twice {
        /// The name.
        name: String,
    },
    /// `general.alignment` is not a power of two from 8 on.
    #[error("Its general.alignment is {alignment}, not a power of two from 8 on")]
    Alignment {
        /// What it says.
        alignment: u64,
    },
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number of any width.
    Int(i128),
    /// A number of single or double precision.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
    /// Several values.
    Array(Vec<Value>),
}

impl Value {
    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The number, if it is a whole one that is not negative and fits.
    pub fn count(&self) -> Option<usize> {
        if let Self::Int(number) = self { usize::try_from(*number).ok() } else { None }
    }

    /// The number, whole or not.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// Yes or no, if it is that.
    pub fn yes(&self) -> Option<bool> {
        if let Self::Bool(yes) = self { Some(*yes) } else { None }
    }

    /// The values, if there are several.
    pub fn array(&self) -> Option<&[Value]> {
        if let Self::Array(values) = self { Some(values) } else { None }
    }
}

/// A number format of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Numbers in a block.
    pub(crate) block: u64,
    /// Bytes of a block.
    pub(crate) bytes: u64,
}

impl Kind {
    /// The format with a number, if it is known.
    pub(crate) fn of(code: u32) -> Option<Self> {
        let known = KINDS.iter().find(|(known, ..)| *known == code)?;
        Some(Self { name: known.1, block: known.2, bytes: known.3 })
    }
}

/// All formats: number, name, numbers in a block, bytes of a block.
const KINDS: [(u32, &str, u64, u64); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

/// Where a tensor lies, as the header tells it.
#[derive(Debug, Clone)]
pub(crate) struct TensorPlace {
    pub(crate) name: String,
    /// Slowest dimension first: the reverse of the file's order.
    pub(crate) shape: Vec<usize>,
    pub(crate) code: u32,
    /// From the beginning of the data.
    pub(crate) offset: u64,
}

impl TensorPlace {
    /// Its bytes, when the data begin at `start`; none of an unknown format, where a row is not a number of whole
    /// blocks, or where the sizes cannot be.
    pub(crate) fn bytes(&self, start: usize) -> Option<Range<usize>> {
        let kind = Kind::of(self.code)?;
        let row = self.shape.last().copied().unwrap_or(1) as u64;
        let numbers = self.shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size as u64))?;
        let size = (numbers / kind.block).checked_mul(kind.bytes).filter(|_| row.is_multiple_of(kind.block))?;
        let first = (start as u64).checked_add(self.offset)?;
        let end = first.checked_add(size)?;
        Some(usize::try_from(first).ok()?..usize::try_from(end).ok()?)
    }
}

/// What stands before the data.
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: Vec<TensorPlace>,
    pub(crate) alignment: usize,
    pub(crate) data_start: usize,
}

impl Header {
    /// Reads the header of a file.
    pub(crate) fn read(file: &[u8]) -> Result<Self, GgufError> {
        let mut reader = Reader { file, at: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err(GgufError::Magic);
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version { version });
        }
        let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..value_count {
            let key = reader.text()?;
            let kind = reader.u32()?;
            let value = reader.value(kind, DEPTH)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::Twice { name: key });
            }
        }
        let tensors = reader.places(tensor_count)?;
        let alignment = alignment(&metadata)?;
        Ok(Self { metadata, tensors, alignment, data_start: reader.at.next_multiple_of(alignment) })
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, GgufError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(32) };
    let said = value.count().unwrap_or(0);
    if said.is_power_of_two() && (8..=1 << 20).contains(&said) {
        return Ok(said);
    }
    Err(GgufError::Alignment { alignment: said as u64 })
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.file.get(self.at..end)).ok_or(GgufError::Short { at: self.at })?;
        self.at += length;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| GgufError::Short { at })
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let at = self.at;
        let malformed = GgufError::Malformed { what: "text", at };
        let length = self.u64()?;
        if length > TEXT {
            return Err(malformed);
        }
        let bytes = self.take(length as usize)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| malformed)
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, GgufError> {
        let at = self.at;
        Ok(match kind {
            0 => Value::Int(self.bytes::<1>()?[0].into()),
            1 => Value::Int(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => match self.bytes::<1>()?[0] {
                said @ (0 | 1) => Value::Bool(said == 1),
                _ => return Err(GgufError::Malformed { what: "truth value", at }),
            },
            8 => Value::Text(self.text()?),
            9 if depth > 0 => self.array(depth - 1)?,
            10 => Value::Int(self.u64()?.into()),
            11 => Value::Int(i64::from_le_bytes(self.bytes()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(GgufError::Malformed { what: "type of a value", at }),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        // Every value takes a byte at least, so the count is bounded by the file before anything is kept.
        if count > (self.file.len() - self.at) as u64 {
            return Err(GgufError::Short { at: self.at });
        }
        (0..count).map(|_| self.value(kind, depth)).collect::<Result<_, _>>().map(Value::Array)
    }

    fn places(&mut self, count: u64) -> Result<Vec<TensorPlace>, GgufError> {
        let (mut names, mut places) = (BTreeSet::new(), Vec::new());
        for _ in 0..count {
            let place = self.place()?;
            if !names.insert(place.name.clone()) {
                return Err(GgufError::Twice { name: place.name });
            }
            places.push(place);
        }
        Ok(places)
    }

    fn place(&mut self) -> Result<TensorPlace, GgufError> {
        let name = self.text()?;
        let at = self.at;
        let malformed = || GgufError::Malformed { what: "tensor shape", at };
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS {
            return Err(malformed());
        }
        let sizes = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<u64>, _>>()?;
        let shape = sizes.into_iter().rev().map(|size| usize::try_from(size).map_err(|_| malformed()));
        let shape = shape.collect::<Result<_, _>>()?;
        Ok(TensorPlace { name, shape, code: self.u32()?, offset: self.u64()? })
    }
}
