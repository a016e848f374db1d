//! Checkpoints mapped into memory: one file of safetensors or torch, shards with an index, or a component folder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use memmap2::{Advice, Mmap};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::weights::decode::Encoding;
use crate::weights::fault::Fault;
use crate::weights::source::{WeightSource, WeightsError, row_count, row_length};
use crate::weights::{quantised, torch_zip};

/// The names, without extension, that programs give to a component's weights.
const BASENAMES: [&str; 3] = ["diffusion_pytorch_model", "model", "open_clip_model"];

/// The extensions of files that `torch.save` writes.
const TORCH: [&str; 4] = ["pth", "pt", "bin", "ckpt"];

/// A tensor as a header describes it.
pub(crate) struct Raw {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    file: usize,
    bytes: Range<usize>,
}

struct Stored {
    encoding: Result<Encoding, Fault>,
    raw: Raw,
}

struct Mapped {
    map: Mmap,
    quantisation: Option<String>,
}

/// The tensors of one checkpoint, read from mapped files when they are asked for.
pub struct Checkpoint {
    files: Vec<Mapped>,
    tensors: BTreeMap<String, Stored>,
    faults: Vec<Fault>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, a `.pth`, `.pt`, `.bin` or `.ckpt` that `torch.save` wrote as a zip archive, a
    /// `.index.json`, or a folder that holds safetensors under a usual name.
    ///
    /// Reads headers only. What is wrong with single tensors or shards does not fail here: see
    /// [`WeightSource::faults`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::open(weights_in(path)?);
        }
        if path.extension().is_some_and(|extension| extension == "json") { sharded(path) } else { single(path) }
    }

    fn assemble(files: Vec<Mapped>, raw: BTreeMap<String, Raw>, mut faults: Vec<Fault>) -> Self {
        let declared: Vec<&str> = files.iter().filter_map(|file| file.quantisation.as_deref()).collect();
        let scheme = quantised::examine(&raw, &declared, |tensor: &Raw| &files[tensor.file].map[tensor.bytes.clone()]);
        faults.extend(scheme.faults);
        let mut encodings = scheme.encodings;
        let logical = raw.into_iter().filter_map(|(name, raw)| {
            let encoding = encodings.remove(&name)?;
            Some((name, Stored { encoding, raw }))
        });
        Self { tensors: logical.collect(), files, faults }
    }
}

impl WeightSource for Checkpoint {
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.tensors.iter().map(|(name, stored)| (name.clone(), stored.raw.shape.clone())).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|stored| stored.raw.shape.clone())
    }

    fn faults(&self) -> Vec<Fault> {
        let of_tensors = self.tensors.values().filter_map(|stored| stored.encoding.clone().err());
        self.faults.iter().cloned().chain(of_tensors).collect()
    }

    fn fault_of(&self, name: &str) -> Option<Fault> {
        self.tensors.get(name)?.encoding.clone().err()
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), WeightsError> {
        let no_such = || WeightsError::NoSuchTensor { name: name.to_owned() };
        let stored = self.tensors.get(name).ok_or_else(no_such)?;
        let encoding = *stored.encoding.as_ref().map_err(|_| no_such())?;
        assert!(rows.end <= row_count(&stored.raw.shape), "{name} has no row {}", rows.end);
        let row = row_length(&stored.raw.shape).saturating_mul(encoding.width());
        let start = stored.raw.bytes.start + rows.start * row;
        encoding.decode(&self.files[stored.raw.file].map[start..start + rows.len() * row], out);
        Ok(())
    }
}

fn single(path: &Path) -> Result<Checkpoint, WeightsError> {
    let (file, tensors) = map(path, 0)?;
    Ok(Checkpoint::assemble(vec![file], tensors, Vec::new()))
}

fn sharded(path: &Path) -> Result<Checkpoint, WeightsError> {
    let index = read_index(path)?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let (mut files, mut found, mut faults) = (Vec::new(), HashMap::new(), Vec::new());
    for shard in shards {
        let place = beside(path, shard)?;
        if !place.exists() {
            faults.push(Fault::MissingShard { shard: place });
            continue;
        }
        let (file, tensors) = map(&place, files.len())?;
        files.push(file);
        found.insert(shard.as_str(), tensors);
    }
    let mut tensors = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        let Some(held) = found.get_mut(shard.as_str()) else { continue };
        match held.remove(name) {
            Some(raw) => {
                tensors.insert(name.clone(), raw);
            }
            None => faults.push(Fault::NotInShard { name: name.clone(), shard: beside(path, shard)? }),
        }
    }
    Ok(Checkpoint::assemble(files, tensors, faults))
}

fn read_index(path: &Path) -> Result<ShardIndex, WeightsError> {
    let text = std::fs::read(path).map_err(|source| WeightsError::Open { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| WeightsError::Index { path: path.to_owned(), source })
}

/// The shard `name` next to the index; a name with folders in it could point anywhere and is refused.
fn beside(index: &Path, name: &str) -> Result<PathBuf, WeightsError> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(_)), None) => Ok(index.with_file_name(name)),
        _ => Err(WeightsError::ShardName { path: index.to_owned(), shard: name.to_owned() }),
    }
}

fn weights_in(folder: &Path) -> Result<PathBuf, WeightsError> {
    let names = || BASENAMES.iter().flat_map(|base| candidates(base));
    names()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| WeightsError::NoWeights { folder: folder.to_owned(), looked_for: names().collect() })
}

/// The full-precision file first: a half-precision variant beside it is the same model with less in it.
fn candidates(base: &str) -> [String; 4] {
    [
        format!("{base}.safetensors"),
        format!("{base}.safetensors.index.json"),
        format!("{base}.fp16.safetensors"),
        format!("{base}.safetensors.index.fp16.json"),
    ]
}

fn map(path: &Path, file: usize) -> Result<(Mapped, BTreeMap<String, Raw>), WeightsError> {
    let open = |source| WeightsError::Open { path: path.to_owned(), source };
    let opened = File::open(path).map_err(open)?;
    #[expect(unsafe_code, reason = "mapping a file needs it; checkpoints are replaced by rename, never cut in place")]
    let map = unsafe { Mmap::map(&opened) }.map_err(open)?;
    // Pages of a sequential mapping are given up first under memory pressure: reading a checkpoint once does not
    // push out what the machine really uses. A kernel without the advice only reads a little slower.
    let _ = map.advise(Advice::Sequential);
    let torch = path.extension().is_some_and(|extension| TORCH.iter().any(|known| extension == *known));
    let (tensors, quantisation) = if torch { torch_header(path, &map, file)? } else { header(path, &map, file)? };
    Ok((Mapped { map, quantisation }, tensors))
}

type Header = (BTreeMap<String, Raw>, Option<String>);

fn header(path: &Path, map: &Mmap, file: usize) -> Result<Header, WeightsError> {
    let failed = |source| WeightsError::Header { path: path.to_owned(), source };
    let (length, metadata) = SafeTensors::read_metadata(map).map_err(failed)?;
    let data = length + size_of::<u64>();
    let tensors = metadata.tensors().into_iter().map(|(name, tensor)| {
        let bytes = data + tensor.data_offsets.0..data + tensor.data_offsets.1;
        (name, Raw { dtype: tensor.dtype, shape: tensor.shape.clone(), file, bytes })
    });
    let tensors = tensors.collect();
    Ok((tensors, metadata.metadata().as_ref().and_then(|texts| texts.get("_quantization_metadata").cloned())))
}

fn torch_header(path: &Path, map: &Mmap, file: usize) -> Result<Header, WeightsError> {
    let entries = torch_zip::entries(map).map_err(|source| WeightsError::Torch { path: path.to_owned(), source })?;
    let raw = |entry: torch_zip::Entry| Raw { dtype: entry.dtype, shape: entry.shape, file, bytes: entry.bytes };
    Ok((entries.into_iter().map(|(name, entry)| (name, raw(entry))).collect(), None))
}
