//! Checkpoints as `torch.save` writes them: a zip archive of one pickle and the bytes of every storage.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::Range;

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use crate::weights::pickle::{self, PickleError, Value};

/// What is wrong with a file that `torch.save` should have written.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// It is not a zip archive; before 2020 torch wrote a format of its own, which is not read.
    #[error("It is not a zip archive")]
    NotZip(#[from] zip::result::ZipError),
    /// The archive lacks a part or has one in an unexpected form.
    #[error("Its part {part:?} is missing, compressed or cut short")]
    Part {
        /// The part.
        part: String,
    },
    /// The numbers are not little-endian.
    #[error("Its numbers are not little-endian")]
    ByteOrder,
    /// The pickle is not that of a state dict.
    #[error("Its pickle is not that of a state dict")]
    Pickle(#[from] PickleError),
    /// A tensor does not lie in its storage, or is not stored row by row.
    #[error("The tensor {name} does not lie row by row within its storage")]
    Tensor {
        /// The tensor.
        name: String,
    },
}

/// A tensor of an archive: number format, shape, place in the file.
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Range<usize>,
}

/// Reads which tensors an archive holds; dictionaries in dictionaries are joined with dots.
pub(crate) fn entries(file: &[u8]) -> Result<BTreeMap<String, Entry>, TorchError> {
    let parts = parts(file)?;
    let part = |name: &str| parts.get(name).cloned().ok_or_else(|| TorchError::Part { part: name.to_owned() });
    if parts.contains_key("byteorder") && &file[part("byteorder")?] != b"little" {
        return Err(TorchError::ByteOrder);
    }
    let root = pickle::read(&file[part("data.pkl")?])?;
    let mut found = BTreeMap::new();
    collect(&root, String::new(), &mut |name, tensor| {
        let storage = |key: &str| part(&format!("data/{key}"));
        found.insert(name.clone(), entry(&name, tensor, storage)?);
        Ok(())
    })?;
    Ok(found)
}

/// The places of the archive's parts, by their names within its only folder.
fn parts(file: &[u8]) -> Result<HashMap<String, Range<usize>>, TorchError> {
    let mut archive = ZipArchive::new(Cursor::new(file))?;
    let mut parts = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        let name = entry.name()?.into_owned();
        let place = place(file, entry.header_start(), entry.size());
        let stored = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
        let place = place.filter(|_| stored).ok_or_else(|| TorchError::Part { part: name.clone() })?;
        let within = name.split_once('/').map_or(name.as_str(), |(_, within)| within);
        parts.insert(within.to_owned(), place);
    }
    Ok(parts)
}

/// Where a part's bytes are: behind its local header, whose length is written in it.
fn place(file: &[u8], header: u64, size: u64) -> Option<Range<usize>> {
    let header = usize::try_from(header).ok()?;
    let lengths: [u8; 4] = file.get(header.checked_add(26)?..header.checked_add(30)?)?.try_into().ok()?;
    let [name, extra] = [[lengths[0], lengths[1]], [lengths[2], lengths[3]]].map(u16::from_le_bytes);
    let start = header + 30 + usize::from(name) + usize::from(extra);
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    (end <= file.len()).then_some(start..end)
}

type Keep<'a> = dyn FnMut(String, &[Value]) -> Result<(), TorchError> + 'a;

fn collect(value: &Value, name: String, keep: &mut Keep<'_>) -> Result<(), TorchError> {
    match value {
        Value::Tensor(arguments) => keep(name, arguments),
        Value::Dict(items) => items.iter().try_for_each(|(key, value)| {
            let Value::Text(key) = key else { return Ok(()) };
            let full = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            collect(value, full, keep)
        }),
        _ => Ok(()),
    }
}

fn entry(
    name: &str,
    arguments: &[Value],
    storage: impl Fn(&str) -> Result<Range<usize>, TorchError>,
) -> Result<Entry, TorchError> {
    let wrong = || TorchError::Tensor { name: name.to_owned() };
    let [Value::Persistent(id), Value::Int(offset), shape, strides, ..] = arguments else { return Err(wrong()) };
    let Value::Tuple(id) = id.as_ref() else { return Err(wrong()) };
    let [_, Value::Global(kind), Value::Text(key), ..] = id.as_slice() else { return Err(wrong()) };
    let (dtype, width) = number_format(kind).ok_or_else(wrong)?;
    let (shape, strides) = (sizes(shape).ok_or_else(wrong)?, sizes(strides).ok_or_else(wrong)?);
    let bytes = row_by_row(&shape, &strides).and_then(|count| {
        let whole = storage(key).ok()?;
        let start = whole.start.checked_add(usize::try_from(*offset).ok()?.checked_mul(width)?)?;
        let end = start.checked_add(count.checked_mul(width)?)?;
        (end <= whole.end).then_some(start..end)
    });
    Ok(Entry { dtype, shape, bytes: bytes.ok_or_else(wrong)? })
}

fn number_format(storage: &str) -> Option<(Dtype, usize)> {
    Some(match storage {
        "torch.FloatStorage" => (Dtype::F32, 4),
        "torch.DoubleStorage" => (Dtype::F64, 8),
        "torch.HalfStorage" => (Dtype::F16, 2),
        "torch.BFloat16Storage" => (Dtype::BF16, 2),
        "torch.LongStorage" => (Dtype::I64, 8),
        "torch.IntStorage" => (Dtype::I32, 4),
        "torch.ShortStorage" => (Dtype::I16, 2),
        "torch.CharStorage" => (Dtype::I8, 1),
        "torch.ByteStorage" => (Dtype::U8, 1),
        "torch.BoolStorage" => (Dtype::BOOL, 1),
        _ => return None,
    })
}

fn sizes(value: &Value) -> Option<Vec<usize>> {
    let Value::Tuple(values) = value else { return None };
    let size = |value: &Value| if let Value::Int(size) = value { usize::try_from(*size).ok() } else { None };
    values.iter().map(size).collect()
}

/// How many numbers a tensor has, if it is stored row by row.
fn row_by_row(shape: &[usize], strides: &[usize]) -> Option<usize> {
    let mut count: usize = 1;
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        // The stride of a dimension of length 1 means nothing.
        if size != 1 && stride != count {
            return None;
        }
        count = count.checked_mul(size)?;
    }
    // Even of an empty tensor the other sizes must make sense.
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size.max(1)))?;
    (shape.len() == strides.len()).then_some(count)
}
