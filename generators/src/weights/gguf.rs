//! GGUF files: metadata and the places of tensors, read strictly; numbers decoded when they are asked for.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Versions 2 and 3, little-endian, one file.
//! Quantised numbers are decoded by candle's block types, in pieces, by all cores.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, Device};
use memmap2::{Advice, Mmap};
use rayon::prelude::{IndexedParallelIterator as _, ParallelIterator as _, ParallelSlice as _, ParallelSliceMut as _};

use crate::weights::decode::Encoding;
use crate::weights::fault::Fault;
use crate::weights::gguf_header::{Header, Kind, TensorPlace, Value};
use crate::weights::source::{WeightSource, WeightsError, row_count, row_length};

/// Numbers that one task decodes; a multiple of every block.
const PIECE: usize = 1 << 15;

/// How the numbers of a tensor are decoded.
#[derive(Debug, Clone, Copy)]
enum Form {
    Plain(Encoding),
    Blocks(GgmlDType),
}

struct Stored {
    shape: Vec<usize>,
    bytes: Range<usize>,
    form: Result<Form, Fault>,
}

/// The metadata and tensors of one GGUF file; shapes are those of the programs that the file was converted from, so
/// the reverse of what the file says.
pub struct Gguf {
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Stored>,
}

impl Gguf {
    /// Opens a file, whatever its name: Ollama's blobs are called by their digest.
    ///
    /// Reads the header only. What is wrong with single tensors, such as a number format that is not supported or a
    /// place outside the file, does not fail here: see [`WeightSource::faults`].
    ///
    /// # Errors
    /// [`WeightsError::Open`], and [`WeightsError::Gguf`] when the header itself is not readable.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let open = |source| WeightsError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(open)?;
        #[expect(unsafe_code, reason = "mapping a file needs it; blobs are replaced by rename, never cut in place")]
        let map = unsafe { Mmap::map(&file) }.map_err(open)?;
        let _ = map.advise(Advice::Sequential);
        let header = Header::read(&map).map_err(|source| WeightsError::Gguf { path: path.to_owned(), source })?;
        let shared = overlapping(&header.tensors);
        let stored = |place: TensorPlace| {
            let form = examine(&place, &header, map.len(), &shared);
            let bytes = place.bytes(header.data_start).unwrap_or_default();
            (place.name, Stored { shape: place.shape, bytes, form })
        };
        let tensors = header.tensors.iter().cloned().map(stored).collect();
        Ok(Self { metadata: header.metadata, tensors, map })
    }

    /// The metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    fn readable(&self, name: &str) -> Result<(&Stored, Form), WeightsError> {
        let no_such = || WeightsError::NoSuchTensor { name: name.to_owned() };
        let stored = self.tensors.get(name).ok_or_else(no_such)?;
        let form = *stored.form.as_ref().map_err(|_| no_such())?;
        Ok((stored, form))
    }
}

/// The names of tensors that begin before the one in front of them ends.
fn overlapping(places: &[TensorPlace]) -> Vec<String> {
    let mut known: Vec<_> = places.iter().filter_map(|place| Some((place.bytes(0)?, &place.name))).collect();
    known.sort_by_key(|(bytes, _)| (bytes.start, bytes.end));
    let pairs = known.windows(2).filter(|pair| pair[1].0.start < pair[0].0.end);
    pairs.map(|pair| pair[1].1.clone()).collect()
}

/// How a tensor is decoded, or why it cannot be.
fn examine(place: &TensorPlace, header: &Header, file: usize, shared: &[String]) -> Result<Form, Fault> {
    let name = place.name.clone();
    let Some(kind) = Kind::of(place.code) else {
        return Err(Fault::UnknownFormat { name, format: format!("the ggml type {}", place.code) });
    };
    let aligned = place.offset.is_multiple_of(header.alignment as u64);
    let Some(bytes) = place.bytes(header.data_start).filter(|_| aligned && !shared.contains(&name)) else {
        return Err(Fault::Misplaced { name });
    };
    if bytes.end > file {
        return Err(Fault::OutsideFile { name });
    }
    form(kind).ok_or_else(|| Fault::UnknownFormat { name, format: kind.name.to_owned() })
}

fn form(kind: Kind) -> Option<Form> {
    Some(match kind.name {
        "F32" => Form::Plain(Encoding::F32),
        "F16" => Form::Plain(Encoding::F16),
        "BF16" => Form::Plain(Encoding::Bf16),
        "Q4_0" => Form::Blocks(GgmlDType::Q4_0),
        "Q4_1" => Form::Blocks(GgmlDType::Q4_1),
        "Q5_0" => Form::Blocks(GgmlDType::Q5_0),
        "Q5_1" => Form::Blocks(GgmlDType::Q5_1),
        "Q8_0" => Form::Blocks(GgmlDType::Q8_0),
        "Q2_K" => Form::Blocks(GgmlDType::Q2K),
        "Q3_K" => Form::Blocks(GgmlDType::Q3K),
        "Q4_K" => Form::Blocks(GgmlDType::Q4K),
        "Q5_K" => Form::Blocks(GgmlDType::Q5K),
        "Q6_K" => Form::Blocks(GgmlDType::Q6K),
        "Q8_K" => Form::Blocks(GgmlDType::Q8K),
        _ => return None,
    })
}

impl Form {
    /// Bytes that `numbers` numbers take.
    fn width(self, numbers: usize) -> usize {
        match self {
            Self::Plain(encoding) => numbers * encoding.width(),
            Self::Blocks(dtype) => numbers / dtype.block_size() * dtype.type_size(),
        }
    }

    /// Decodes whole blocks.
    fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<(), WeightsError> {
        match self {
            Self::Plain(encoding) => {
                encoding.decode(bytes, out);
                Ok(())
            }
            Self::Blocks(dtype) => {
                let pieces = out.par_chunks_mut(PIECE).zip(bytes.par_chunks(self.width(PIECE)));
                pieces.try_for_each(|(numbers, blocks)| decode_blocks(dtype, blocks, numbers))
            }
        }
    }
}

fn decode_blocks(dtype: GgmlDType, blocks: &[u8], out: &mut [f32]) -> Result<(), WeightsError> {
    let decoded = dtype.from_data(Cow::Borrowed(blocks)).dequantize(out.len());
    match decoded {
        Ok(CpuStorage::F32(numbers)) => out.copy_from_slice(&numbers),
        Ok(_) => return Err(WeightsError::Blocks { source: candle_core::Error::msg("Not single precision") }),
        Err(source) => return Err(WeightsError::Blocks { source }),
    }
    Ok(())
}

impl WeightSource for Gguf {
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.tensors.iter().map(|(name, stored)| (name.clone(), stored.shape.clone())).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|stored| stored.shape.clone())
    }

    fn faults(&self) -> Vec<Fault> {
        self.tensors.values().filter_map(|stored| stored.form.clone().err()).collect()
    }

    fn fault_of(&self, name: &str) -> Option<Fault> {
        self.tensors.get(name)?.form.clone().err()
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), WeightsError> {
        let (stored, form) = self.readable(name)?;
        assert!(rows.end <= row_count(&stored.shape), "{name} has no row {}", rows.end);
        let bytes = &self.map[stored.bytes.clone()];
        let length = row_length(&stored.shape);
        let block = if let Form::Blocks(dtype) = form { dtype.block_size() } else { 1 };
        if length.is_multiple_of(block) {
            let row = form.width(length);
            return form.decode(&bytes[rows.start * row..rows.end * row], out);
        }
        // A quantised vector: its blocks span rows.
        let mut whole = vec![0.0; row_count(&stored.shape) * length];
        form.decode(bytes, &mut whole)?;
        out.copy_from_slice(&whole[rows.start * length..rows.end * length]);
        Ok(())
    }

    fn packed(&self, name: &str, device: &Device) -> Option<candle_core::Result<QTensor>> {
        let (stored, form) = self.readable(name).ok()?;
        let Form::Blocks(dtype) = form else { return None };
        let bytes = Cow::Borrowed(&self.map[stored.bytes.clone()]);
        let storage = QStorage::from_data(bytes, device, dtype);
        Some(storage.and_then(|storage| QTensor::new(storage, stored.shape.as_slice())))
    }
}
