//! Safetensors: eight bytes with the header's length, a JSON object, then the tensors without gaps.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Seek, SeekFrom};

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::weights::WeightsError;

/// The longest header that is read, as in the format's own library.
pub const MAX_HEADER: u64 = 100_000_000;

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<Tensor>,
    /// `__metadata__`: texts by name.
    pub metadata: BTreeMap<String, String>,
    /// Where the tensors' bytes begin in the file.
    pub data_start: u64,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type as the header writes it, such as `BF16`.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// First byte, counted from [`Header::data_start`].
    pub start: u64,
    /// First byte after it, counted the same way.
    pub end: u64,
}

impl Header {
    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Element types that larder does not know, so that these tensors' lengths were not compared with their shapes.
    pub fn unknown_dtypes(&self) -> Vec<&str> {
        let mut unknown: Vec<&str> = self
            .tensors
            .iter()
            .map(|tensor| tensor.dtype.as_str())
            .filter(|dtype| element_bits(dtype).is_none())
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }
}

/// Bits of one element; `None` for a type that larder does not know.
pub fn element_bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Whether the first bytes of a file can be the beginning of a safetensors file.
pub(crate) fn begins_like_one(start: &[u8]) -> bool {
    header_len(start).is_some_and(|len| (2..=MAX_HEADER).contains(&len)) && start.get(8) == Some(&b'{')
}

fn header_len(start: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*start.first_chunk()?))
}

/// Reads and checks the header of a file of `len` bytes; the tensors themselves are not read.
///
/// Promises on success: every tensor lies within the file, none overlaps another, no byte of the file is
/// unaccounted for, no name occurs twice, and shapes of known element types have the length they must have.
pub fn read_safetensors(file: &mut (impl Read + Seek), len: u64) -> Result<Header, WeightsError> {
    let mut prefix = [0; 8];
    within("the header's length", 8, len)?;
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut prefix)).map_err(WeightsError::Io)?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > MAX_HEADER {
        return Err(WeightsError::malformed(format!("it claims to have {header_len} bytes, {MAX_HEADER} are allowed")));
    }
    let data_start = 8 + header_len;
    within("the header", data_start, len)?;
    let mut text = vec![0; usize::try_from(header_len).unwrap_or(usize::MAX)];
    file.read_exact(&mut text).map_err(WeightsError::Io)?;
    let raw = parse(&text)?;
    let tensors = check_tensors(raw.tensors)?;
    let end = data_start.saturating_add(tensors.last().map_or(0, |tensor| tensor.end));
    within("the last tensor", end, len)?;
    if end < len {
        return Err(WeightsError::Surplus { expected: end, len });
    }
    Ok(Header { tensors, metadata: raw.metadata, data_start })
}

fn within(what: &str, needed: u64, len: u64) -> Result<(), WeightsError> {
    if needed <= len { Ok(()) } else { Err(WeightsError::Truncated { what: what.to_owned(), needed, len }) }
}

fn parse(text: &[u8]) -> Result<RawHeader, WeightsError> {
    if text.first() != Some(&b'{') {
        return Err(WeightsError::malformed("it does not begin with {"));
    }
    serde_json::from_slice(text).map_err(|error| WeightsError::malformed(error.to_string()))
}

fn check_tensors(mut tensors: Vec<Tensor>) -> Result<Vec<Tensor>, WeightsError> {
    tensors.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
    let mut expected = 0;
    for tensor in &tensors {
        check_tensor(tensor)?;
        if tensor.start < expected {
            return Err(WeightsError::tensor(&tensor.name, "it overlaps the one before it"));
        }
        if tensor.start > expected {
            let hole = tensor.start - expected;
            return Err(WeightsError::tensor(&tensor.name, format!("{hole} bytes before it belong to no tensor")));
        }
        expected = tensor.end;
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(WeightsError::tensor(pair[0], "the name occurs twice")),
        None => Ok(tensors),
    }
}

fn check_tensor(tensor: &Tensor) -> Result<(), WeightsError> {
    let wrong = |reason: String| Err(WeightsError::tensor(&tensor.name, reason));
    let Some(stored) = tensor.end.checked_sub(tensor.start) else {
        return wrong(format!("it ends at {} before it begins at {}", tensor.end, tensor.start));
    };
    let Some(bits) = element_bits(&tensor.dtype) else {
        return Ok(());
    };
    let total = tensor.shape.iter().try_fold(bits, |total, side| total.checked_mul(*side));
    match total {
        Some(total) if total.is_multiple_of(8) && total / 8 == stored => Ok(()),
        Some(total) => wrong(format!(
            "{} of shape {:?} takes {} bytes, {stored} are stored",
            tensor.dtype,
            tensor.shape,
            total.div_ceil(8)
        )),
        None => wrong(format!("its shape {:?} is too large", tensor.shape)),
    }
}

/// The header as written. A plain map would hide names that occur twice.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<Tensor>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                        continue;
                    }
                    let RawTensor { dtype, shape, data_offsets: (start, end) } = map.next_value()?;
                    header.tensors.push(Tensor { name, dtype, shape, start, end });
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::{Just, Strategy, any, prop, proptest};

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, WeightsError> {
        read_safetensors(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[8,12]},
        "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "scale":{"dtype":"F4","shape":[4],"data_offsets":[12,14]},
        "empty":{"dtype":"BF16","shape":[0,3],"data_offsets":[14,14]}}   "#;

    #[test]
    fn a_good_file_gives_its_tensors_in_the_order_of_their_bytes() {
        let header = read(&file(GOOD, 14)).unwrap();
        let names: Vec<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "scale", "empty"]);
        assert_eq!(header.metadata["format"], "pt");
        assert_eq!(header.tensor("b").unwrap().shape, [2, 2]);
        assert!(header.unknown_dtypes().is_empty());
    }

    #[test]
    fn an_unknown_element_type_is_reported_and_not_an_error() {
        let header = read(&file(r#"{"a":{"dtype":"F3","shape":[5],"data_offsets":[0,2]}}"#, 2)).unwrap();
        assert_eq!(header.unknown_dtypes(), ["F3"]);
    }

    #[test]
    fn each_defect_is_named() {
        let cases = [
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                8,
                "overlaps",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#,
                4,
                "belong to no tensor",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
                3,
                "occurs twice",
            ),
            (r#"{"a":{"dtype":"F16","shape":[3],"data_offsets":[0,4]}}"#, 4, "takes 6 bytes, 4 are stored"),
            (r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2, "takes 2 bytes"),
            (r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}"#, 2, "before it begins"),
            (r#"{"a":{"dtype":"F64","shape":[9223372036854775807,3],"data_offsets":[0,2]}}"#, 2, "too large"),
            (r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 5, "accounts for"),
            (r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#, 5, "cut short"),
            (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,9]}}"#, 9, "not valid"),
            ("[]", 0, "begin with {"),
        ];
        for (header, data, expected) in cases {
            let error = read(&file(header, data)).unwrap_err().to_string();
            assert!(error.contains(expected), "{header}: {error}");
        }
        let huge = read(&[0xff; 64]).unwrap_err().to_string();
        assert!(huge.contains("are allowed"), "{huge}");
    }

    proptest! {
        #[test]
        fn every_truncation_is_found(cut in 0..file(GOOD, 14).len()) {
            assert!(read(&file(GOOD, 14)[..cut]).is_err());
        }

        #[test]
        fn no_change_of_bytes_panics(
            (at, byte) in (0..file(GOOD, 14).len(), any::<u8>()),
            tail in prop::collection::vec(any::<u8>(), 0..64),
            keep in any::<bool>().prop_flat_map(|all| if all { Just(usize::MAX).boxed() } else { (0..400usize).boxed() }),
        ) {
            let mut bytes = file(GOOD, 14);
            bytes[at] = byte;
            bytes.truncate(keep);
            bytes.extend(tail);
            let _ = read(&bytes);
        }
    }
}
