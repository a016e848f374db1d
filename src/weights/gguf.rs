//! GGUF, versions 2 and 3, little-endian: metadata, tensor entries, then the tensors at aligned offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Seek, SeekFrom};

use crate::weights::WeightsError;

mod types;

pub use types::{block_of, type_name};

/// The first four bytes.
pub const MAGIC: &[u8; 4] = b"GGUF";

const MAX_STRING: u64 = 16 << 20;
const MAX_ARRAY: u64 = 64 << 20;
/// All texts that are kept together; real files stay far below one MiB without their arrays.
const MAX_KEPT: u64 = 256 << 20;
const MAX_ARRAY_DEPTH: u32 = 4;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// What the header says.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Format version, 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors, in the header's order.
    pub tensors: Vec<Tensor>,
    /// Offsets of tensors are multiples of this.
    pub alignment: u64,
    /// Where the tensors' bytes begin in the file.
    pub data_start: u64,
}

/// One value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer without sign, of any width.
    Unsigned(u64),
    /// An integer with a sign, of any width.
    Signed(i64),
    /// A floating-point number of either width.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// A text; bytes that are not UTF-8 are replaced.
    Text(String),
    /// A list, of which only the length is kept.
    Array {
        /// Type number of its elements.
        element: u32,
        /// How many there are.
        len: u64,
    },
}

impl Value {
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is an integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, the fastest-running first.
    pub shape: Vec<u64>,
    /// Number of its element type.
    pub kind: u32,
    /// First byte, counted from [`Header::data_start`].
    pub offset: u64,
    /// Its length in bytes; `None` for an element type that larder does not know.
    pub size: Option<u64>,
}

impl Header {
    /// `general.architecture`, such as `qwen3`.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata.get("general.architecture")?.as_text()
    }

    /// Numbers of element types that larder does not know, so that these tensors' lengths were not checked.
    pub fn unknown_types(&self) -> BTreeSet<u32> {
        self.tensors.iter().filter(|tensor| tensor.size.is_none()).map(|tensor| tensor.kind).collect()
    }
}

/// Reads and checks the header of a file of `len` bytes; the tensors themselves are not read.
///
/// Promises on success: every offset is aligned, every tensor of a known type lies within the file, none
/// overlaps another, no name occurs twice, and the file does not go on after the last tensor.
pub fn read_gguf(file: &mut (impl Read + Seek), len: u64) -> Result<Header, WeightsError> {
    file.seek(SeekFrom::Start(0)).map_err(WeightsError::Io)?;
    let mut reader = HeaderReader { file: BufReader::with_capacity(1 << 16, file), at: 0, len, kept: 0 };
    let version = read_version(&mut reader)?;
    let tensor_count = reader.u64("the number of tensors")?;
    let pair_count = reader.u64("the number of metadata entries")?;
    let metadata = read_metadata(&mut reader, pair_count)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        tensors.push(read_tensor(&mut reader, alignment)?);
    }
    // A file without tensors need not be filled up to where they would begin.
    let data_start = if tensors.is_empty() { reader.at } else { reader.at.next_multiple_of(alignment) };
    let header = Header { version, metadata, tensors, alignment, data_start };
    check_layout(&header, len)?;
    Ok(header)
}

fn read_version(reader: &mut HeaderReader<impl Read + Seek>) -> Result<u32, WeightsError> {
    if reader.bytes::<4>("the magic number")? != *MAGIC {
        return Err(WeightsError::malformed("it does not begin with GGUF"));
    }
    match reader.u32("the version")? {
        version @ 2..=3 => Ok(version),
        version if (1..=0xffff).contains(&version.swap_bytes()) => {
            Err(WeightsError::malformed("the numbers are big-endian, which larder does not read"))
        }
        version => Err(WeightsError::malformed(format!("version {version} is not one that larder reads (2 and 3)"))),
    }
}

fn read_metadata(
    reader: &mut HeaderReader<impl Read + Seek>,
    count: u64,
) -> Result<BTreeMap<String, Value>, WeightsError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = reader.text("a metadata key")?;
        let kind = reader.u32("a metadata type")?;
        let value = read_value(reader, kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(WeightsError::malformed(format!("the metadata key {key:?} occurs twice")));
        }
    }
    Ok(metadata)
}

fn read_value(reader: &mut HeaderReader<impl Read + Seek>, kind: u32) -> Result<Value, WeightsError> {
    const WHAT: &str = "a metadata value";
    Ok(match kind {
        0 => Value::Unsigned(u64::from(reader.bytes::<1>(WHAT)?[0])),
        1 => Value::Signed(i64::from(i8::from_le_bytes(reader.bytes(WHAT)?))),
        2 => Value::Unsigned(u64::from(u16::from_le_bytes(reader.bytes(WHAT)?))),
        3 => Value::Signed(i64::from(i16::from_le_bytes(reader.bytes(WHAT)?))),
        4 => Value::Unsigned(u64::from(reader.u32(WHAT)?)),
        5 => Value::Signed(i64::from(i32::from_le_bytes(reader.bytes(WHAT)?))),
        6 => Value::Float(f64::from(f32::from_le_bytes(reader.bytes(WHAT)?))),
        7 => Value::Bool(reader.bytes::<1>(WHAT)?[0] != 0),
        8 => Value::Text(reader.text(WHAT)?),
        9 => {
            let (element, len) = skip_array(reader, 1)?;
            Value::Array { element, len }
        }
        10 => Value::Unsigned(reader.u64(WHAT)?),
        11 => Value::Signed(i64::from_le_bytes(reader.bytes(WHAT)?)),
        12 => Value::Float(f64::from_le_bytes(reader.bytes(WHAT)?)),
        other => return Err(WeightsError::malformed(format!("{other} is not a type of metadata values"))),
    })
}

/// Passes over a list. Tokenizers have some hundred thousand entries that nobody asks for here.
fn skip_array(reader: &mut HeaderReader<impl Read + Seek>, depth: u32) -> Result<(u32, u64), WeightsError> {
    let element = reader.u32("a list's type")?;
    let len = reader.u64("a list's length")?;
    if len > MAX_ARRAY || depth > MAX_ARRAY_DEPTH {
        return Err(WeightsError::malformed(format!("a list has {len} entries at depth {depth}, which is too many")));
    }
    match (scalar_size(element), element) {
        (Some(size), _) => reader.skip(len * size, "a list")?,
        (None, 8) => {
            for _ in 0..len {
                let text = reader.text_len("a list's text")?;
                reader.skip(text, "a list's text")?;
            }
        }
        (None, 9) => {
            for _ in 0..len {
                skip_array(reader, depth + 1)?;
            }
        }
        (None, other) => return Err(WeightsError::malformed(format!("{other} is not a type of list entries"))),
    }
    Ok((element, len))
}

fn scalar_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, WeightsError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 30 => Ok(alignment),
        _ => Err(WeightsError::malformed(format!("general.alignment is {value:?}, which is no power of two"))),
    }
}

fn read_tensor(reader: &mut HeaderReader<impl Read + Seek>, alignment: u64) -> Result<Tensor, WeightsError> {
    let name = reader.text("a tensor's name")?;
    let dimensions = reader.u32("a tensor's dimensions")?;
    if dimensions > MAX_DIMENSIONS {
        return Err(WeightsError::tensor(&name, format!("it has {dimensions} dimensions, 4 are allowed")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(reader.u64("a tensor's dimensions")?);
    }
    let kind = reader.u32("a tensor's type")?;
    let offset = reader.u64("a tensor's offset")?;
    if !offset.is_multiple_of(alignment) {
        return Err(WeightsError::tensor(&name, format!("its offset {offset} is no multiple of {alignment}")));
    }
    let size = tensor_size(&name, &shape, kind)?;
    Ok(Tensor { name, shape, kind, offset, size })
}

fn tensor_size(name: &str, shape: &[u64], kind: u32) -> Result<Option<u64>, WeightsError> {
    let Some((block, bytes)) = block_of(kind) else {
        return Ok(None);
    };
    let row = shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(block) {
        return Err(WeightsError::tensor(name, format!("rows of {row} elements cannot be cut into blocks of {block}")));
    }
    let size = shape.iter().skip(1).try_fold(row / block, |total, side| total.checked_mul(*side));
    match size.and_then(|blocks| blocks.checked_mul(bytes)) {
        Some(size) => Ok(Some(size)),
        None => Err(WeightsError::tensor(name, format!("its shape {shape:?} is too large"))),
    }
}

fn check_layout(header: &Header, len: u64) -> Result<(), WeightsError> {
    let mut names = BTreeSet::new();
    if let Some(twice) = header.tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(WeightsError::tensor(&twice.name, "the name occurs twice"));
    }
    let mut by_offset: Vec<&Tensor> = header.tensors.iter().collect();
    by_offset.sort_by_key(|tensor| (tensor.offset, tensor.size));
    let mut free_from = 0;
    for tensor in by_offset {
        if tensor.offset < free_from {
            return Err(WeightsError::tensor(&tensor.name, "it overlaps the one before it"));
        }
        // Of an unknown type only the beginning is known, and that must exist.
        free_from = tensor.offset.saturating_add(tensor.size.unwrap_or(0));
        let needed = header.data_start.saturating_add(free_from);
        if needed > len {
            return Err(WeightsError::Truncated { what: format!("tensor {:?}", tensor.name), needed, len });
        }
    }
    // Writers may fill up the last tensor, but no further than to the next aligned byte.
    let expected = header.data_start.saturating_add(free_from.next_multiple_of(header.alignment));
    if header.unknown_types().is_empty() && len > expected.max(header.data_start.next_multiple_of(header.alignment)) {
        return Err(WeightsError::Surplus { expected, len });
    }
    Ok(())
}

/// Reads forward and never beyond the file's end.
struct HeaderReader<R> {
    file: BufReader<R>,
    at: u64,
    len: u64,
    kept: u64,
}

impl<R: Read + Seek> HeaderReader<R> {
    fn advance(&mut self, by: u64, what: &str) -> Result<(), WeightsError> {
        let needed = self.at.saturating_add(by);
        if needed > self.len {
            return Err(WeightsError::Truncated { what: what.to_owned(), needed, len: self.len });
        }
        self.at = needed;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WeightsError> {
        self.advance(N as u64, what)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(WeightsError::Io)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, WeightsError> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, WeightsError> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn text_len(&mut self, what: &str) -> Result<u64, WeightsError> {
        match self.u64(what)? {
            len if len <= MAX_STRING => Ok(len),
            len => Err(WeightsError::malformed(format!("{what} has {len} bytes, {MAX_STRING} are allowed"))),
        }
    }

    fn text(&mut self, what: &str) -> Result<String, WeightsError> {
        let len = self.text_len(what)?;
        self.kept += len;
        if self.kept > MAX_KEPT {
            return Err(WeightsError::malformed(format!("its texts have more than {MAX_KEPT} bytes together")));
        }
        self.advance(len, what)?;
        let mut bytes = vec![0; len as usize];
        self.file.read_exact(&mut bytes).map_err(WeightsError::Io)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, bytes: u64, what: &str) -> Result<(), WeightsError> {
        self.advance(bytes, what)?;
        let bytes = i64::try_from(bytes).map_err(|_| WeightsError::malformed(format!("{what} is too long")))?;
        self.file.seek_relative(bytes).map_err(WeightsError::Io)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::{any, prop, proptest};

    use super::*;

    fn text(into: &mut Vec<u8>, text: &str) {
        into.extend((text.len() as u64).to_le_bytes());
        into.extend(text.as_bytes());
    }

    fn tensor(into: &mut Vec<u8>, name: &str, shape: &[u64], kind: u32, offset: u64) {
        text(into, name);
        into.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|side| into.extend(side.to_le_bytes()));
        into.extend(kind.to_le_bytes());
        into.extend(offset.to_le_bytes());
    }

    /// A header with a text, a list of texts, a number, and the given tensors; then `data` bytes at the aligned place.
    fn file(tensors: &[(&str, &[u64], u32, u64)], data: usize) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend(3u64.to_le_bytes());
        text(&mut bytes, "general.architecture");
        bytes.extend(8u32.to_le_bytes());
        text(&mut bytes, "qwen3");
        text(&mut bytes, "tokenizer.ggml.tokens");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(8u32.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        text(&mut bytes, "hello");
        text(&mut bytes, "world");
        text(&mut bytes, "general.alignment");
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(64u32.to_le_bytes());
        tensors.iter().for_each(|(name, shape, kind, offset)| tensor(&mut bytes, name, shape, *kind, *offset));
        bytes.resize(bytes.len().next_multiple_of(64) + data, 0);
        bytes
    }

    /// `token_embd` in Q4_K (144 bytes, filled up to 192), then `norm` in F32 (16 bytes).
    fn good() -> Vec<u8> {
        file(&[("token_embd.weight", &[256, 1], 12, 0), ("norm.weight", &[4], 0, 192)], 208)
    }

    fn read(bytes: &[u8]) -> Result<Header, WeightsError> {
        read_gguf(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn a_good_file_gives_metadata_and_tensors() {
        let header = read(&good()).unwrap();
        assert_eq!(header.architecture(), Some("qwen3"));
        assert_eq!(header.alignment, 64);
        assert_eq!(header.metadata["tokenizer.ggml.tokens"], Value::Array { element: 8, len: 2 });
        assert_eq!(header.tensors[0].size, Some(144));
        assert!(header.unknown_types().is_empty());
        let mut padded = good();
        padded.resize(padded.len() + 48, 0);
        assert!(read(&padded).is_ok(), "the last tensor may be filled up");
    }

    #[test]
    fn an_unknown_type_is_reported_and_not_an_error() {
        let header = read(&file(&[("a", &[7], 99, 0)], 5)).unwrap();
        assert_eq!(header.unknown_types().into_iter().collect::<Vec<_>>(), [99]);
    }

    #[test]
    fn each_defect_is_named() {
        let cases: &[(Vec<u8>, &str)] = &[
            (file(&[("a", &[4], 0, 0), ("b", &[4], 0, 0)], 16), "overlaps"),
            (file(&[("a", &[4], 0, 0), ("a", &[4], 0, 64)], 80), "occurs twice"),
            (file(&[("a", &[4], 0, 8)], 80), "no multiple of 64"),
            (file(&[("a", &[100], 12, 0)], 80), "blocks of 256"),
            (file(&[("a", &[1, 1, 1, 1, 1], 0, 0)], 80), "5 dimensions"),
            (file(&[("a", &[u64::MAX, 2], 0, 0)], 80), "too large"),
            (file(&[("a", &[64], 0, 0)], 255), "cut short"),
            (file(&[("a", &[4], 0, 0)], 200), "accounts for"),
            (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
            (b"GGUF\x01\0\0\0".to_vec(), "version 1"),
            (b"GGML\x01\0\0\0".to_vec(), "begin with GGUF"),
        ];
        for (bytes, expected) in cases {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "wanted {expected:?}: {error}");
        }
    }

    #[test]
    fn counts_that_no_file_can_hold_take_no_memory() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(u64::MAX.to_le_bytes());
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(matches!(read(&bytes), Err(WeightsError::Truncated { .. })));
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(read(&bytes).unwrap_err().to_string().contains("are allowed"));
    }

    proptest! {
        #[test]
        fn every_truncation_is_found(cut in 0..good().len()) {
            assert!(read(&good()[..cut]).is_err());
        }

        #[test]
        fn no_change_of_bytes_panics(
            changes in prop::collection::vec((0..good().len(), any::<u8>()), 1..8),
            keep in 0..1000usize,
        ) {
            let mut bytes = good();
            changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            bytes.truncate(keep);
            let _ = read(&bytes);
        }
    }

    #[test]
    fn a_block_of_every_type_is_as_long_as_it_is() {
        let known = (0..64).filter_map(|kind| block_of(kind).map(|block| (kind, block)));
        for (kind, (elements, bytes)) in known {
            let read = |bytes: u64| {
                let whole = file(&[("one", &[elements], kind, 0)], bytes as usize);
                read_gguf(&mut Cursor::new(&whole), whole.len() as u64)
            };
            let tensors = read(bytes).unwrap().tensors;
            assert_eq!(tensors[0].size, Some(bytes), "{}", type_name(kind));
            assert!(read(bytes - 1).is_err(), "{}", type_name(kind));
        }
    }
}
