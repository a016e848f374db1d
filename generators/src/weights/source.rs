//! What a source of weights promises, and the views that give a checkpoint other names.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::QTensor;

use crate::weights::fault::Fault;
use crate::weights::gguf_header::GgufError;
use crate::weights::torch_zip::TorchError;

/// Failure to open or to read a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file could not be opened or mapped.
    #[error("Cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's header is not that of a whole safetensors file.
    #[error("{} is not a complete safetensors file", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A `.pth`, `.pt`, `.bin` or `.ckpt` is not what `torch.save` writes for a state dict.
    #[error("{} is not a readable torch checkpoint", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TorchError,
    },
    /// A file's header is not that of a GGUF file.
    #[error("{} is not a readable GGUF file", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// Quantised numbers could not be decoded.
    #[error("Quantised numbers cannot be decoded")]
    Blocks {
        /// Why.
        source: candle_core::Error,
    },
    /// A shard index is not readable JSON of the known form.
    #[error("{} is not a shard index", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A shard index names a file outside its own folder.
    #[error("{} names the shard {shard:?}, which is not a plain file name", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name it gives.
        shard: String,
    },
    /// A folder holds none of the files that weights are stored in.
    #[error("{} holds no weights: none of {} is there", folder.display(), looked_for.join(", "))]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// The file names that would do.
        looked_for: Vec<String>,
    },
    /// A tensor was asked for that the source does not have.
    #[error("The weights have no tensor {name}")]
    NoSuchTensor {
        /// Its name.
        name: String,
    },
    /// The weights do not fit the model; every fault is listed.
    #[error("The weights do not fit {model}: {}", crate::weights::fault::list(faults))]
    Unfit {
        /// The model that was to be built.
        model: String,
        /// All that is wrong, in the order of names.
        faults: Vec<Fault>,
    },
}

/// Where weights come from: named tensors whose rows are read as `f32`.
///
/// A row is a slice along the first dimension; a scalar has one row. Sources are cheap to ask and never hold
/// decoded numbers.
pub trait WeightSource: Send + Sync {
    /// The shapes of all tensors that a model may ask for, without the companions of quantised ones.
    fn shapes(&self) -> BTreeMap<String, Vec<usize>>;

    /// The shape of one tensor, if it is there.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// All that is wrong with the files themselves: unknown number formats, lost scales, lacking shards.
    fn faults(&self) -> Vec<Fault>;

    /// Why one tensor cannot be read, if it cannot.
    fn fault_of(&self, name: &str) -> Option<Fault>;

    /// Decodes some rows of a tensor into `out`, which must have exactly their size.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), WeightsError>;

    /// The tensor in its own quantised form, copied to `device`; none where the file does not quantise it in blocks,
    /// or the source does not pass it on as it is.
    fn packed(&self, name: &str, device: &Device) -> Option<candle_core::Result<QTensor>> {
        let _ = (name, device);
        None
    }
}

/// Numbers in one row of a tensor of `shape`.
pub(crate) fn row_length(shape: &[usize]) -> usize {
    // Saturating: a header may give an empty tensor any other sizes.
    shape.iter().skip(1).fold(1, |product, &size| product.saturating_mul(size))
}

/// Rows of a tensor of `shape`.
pub(crate) fn row_count(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or(1)
}

/// One of several equal parts of a tensor's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which part, from 0.
    pub index: usize,
    /// How many parts the tensor is divided into.
    pub of: usize,
}

/// How a tensor that a model names is made from tensors that a file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// Parts of one stored tensor, one after another.
    Parts {
        /// The stored tensor.
        stored: String,
        /// Its parts, in the order wanted.
        parts: Vec<Part>,
        /// How many dimensions remain when those of length 1 at the end are dropped (2 for a 1x1 convolution that is
        /// read as a matrix); none are where it is absent.
        rank: Option<usize>,
    },
    /// A stored matrix with rows and columns exchanged.
    Transposed {
        /// The stored matrix.
        stored: String,
    },
    /// Numbers of channels, stored in one row, as (1, channels, 1).
    Channels {
        /// The stored numbers.
        stored: String,
    },
    /// A direction and a length for every row, as weight normalisation stores them.
    WeightNorm {
        /// The lengths, one a row.
        length: String,
        /// The directions, not normalised.
        direction: String,
    },
}

impl View {
    /// The whole of a stored tensor.
    pub fn whole(stored: impl Into<String>) -> Self {
        Self::parts(stored, &[(0, 1)])
    }

    /// Parts of a stored tensor, as pairs of which and of how many.
    pub fn parts(stored: impl Into<String>, parts: &[(usize, usize)]) -> Self {
        let parts = parts.iter().map(|&(index, of)| Part { index, of }).collect();
        Self::Parts { stored: stored.into(), parts, rank: None }
    }

    /// The stored tensors that the view reads.
    fn stored(&self) -> Vec<&str> {
        match self {
            Self::Parts { stored, .. } | Self::Transposed { stored } | Self::Channels { stored } => vec![stored],
            Self::WeightNorm { length, direction } => vec![length, direction],
        }
    }

    /// The whole of a stored tensor without dimensions of length 1 at its end, down to `rank` dimensions.
    pub fn squeezed(stored: impl Into<String>, rank: usize) -> Self {
        Self::Parts { stored: stored.into(), parts: vec![Part { index: 0, of: 1 }], rank: Some(rank) }
    }
}

/// A source under other names.
///
/// Tensors that no view uses stay visible under their stored names, so that a model can report them as extra.
pub struct Renamed {
    inner: Arc<dyn WeightSource>,
    views: BTreeMap<String, View>,
}

impl Renamed {
    /// Gives the tensors of `inner` the names that `rename` says; it is asked once for every stored name.
    pub fn new(inner: Arc<dyn WeightSource>, rename: impl Fn(&str) -> Vec<(String, View)>) -> Self {
        let views = inner.shapes().into_keys().flat_map(|stored| views_of(&rename, stored)).collect();
        Self { inner, views }
    }

    fn parts_shape(&self, stored: &str, parts: &[Part], rank: Option<usize>) -> Option<Vec<usize>> {
        let mut shape = self.inner.shape(stored)?;
        if let Some(rows) = shape.first_mut() {
            let whole = *rows;
            *rows = parts.iter().map(|part| part.rows(whole).len()).sum();
        }
        while rank.is_some_and(|rank| shape.len() > rank) && shape.last() == Some(&1) {
            shape.pop();
        }
        Some(shape)
    }

    fn read_parts(&self, stored: &str, parts: &[Part], wanted: RowRange<'_>) -> Result<(), WeightsError> {
        let shape = self.inner.shape(stored).ok_or_else(|| no_such(stored))?;
        let (whole, length) = (row_count(&shape), row_length(&shape));
        let (mut first, mut rest) = (0, wanted.out);
        for part in parts.iter().map(|part| part.rows(whole)) {
            let taken = overlap(&wanted.rows, first..first + part.len());
            let (now, later) = rest.split_at_mut(taken.len() * length);
            let offset = part.start + taken.start.saturating_sub(first);
            self.inner.read_rows(stored, offset..offset + taken.len(), now)?;
            (first, rest) = (first + part.len(), later);
        }
        Ok(())
    }

    fn read_transposed(&self, stored: &str, wanted: RowRange<'_>) -> Result<(), WeightsError> {
        let shape = self.inner.shape(stored).ok_or_else(|| no_such(stored))?;
        let (rows, columns) = (row_count(&shape), row_length(&shape));
        let mut whole = vec![0.0; rows * columns];
        self.inner.read_rows(stored, 0..rows, &mut whole)?;
        let numbers = wanted.rows.flat_map(|column| whole.iter().skip(column).step_by(columns));
        wanted.out.iter_mut().zip(numbers).for_each(|(number, &stored)| *number = stored);
        Ok(())
    }

    fn read_normed(&self, length: &str, direction: &str, wanted: RowRange<'_>) -> Result<(), WeightsError> {
        let mut lengths = vec![0.0; wanted.rows.len()];
        self.inner.read_rows(length, wanted.rows.clone(), &mut lengths)?;
        self.inner.read_rows(direction, wanted.rows.clone(), wanted.out)?;
        let columns = wanted.out.len() / lengths.len().max(1);
        for (row, length) in wanted.out.chunks_mut(columns.max(1)).zip(lengths) {
            let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            let factor = (f64::from(length) / norm) as f32;
            row.iter_mut().for_each(|x| *x *= factor);
        }
        Ok(())
    }
}

/// Folds weight normalisation: `X.weight_g` and `X.weight_v` (or what newer programs call them) become `X.weight`.
pub fn without_weight_norm(inner: Arc<dyn WeightSource>) -> Renamed {
    Renamed::new(inner, |stored| folded(stored).into_iter().collect())
}

fn folded(stored: &str) -> Option<(String, View)> {
    let pairs = [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")];
    pairs.into_iter().find_map(|(length, direction)| {
        let layer = stored.strip_suffix(length).or_else(|| stored.strip_suffix(direction))?;
        let view = View::WeightNorm { length: format!("{layer}{length}"), direction: format!("{layer}{direction}") };
        Some((format!("{layer}weight"), view))
    })
}

struct RowRange<'a> {
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl Part {
    fn rows(self, whole: usize) -> Range<usize> {
        whole * self.index / self.of..whole * (self.index + 1) / self.of
    }
}

fn views_of(rename: impl Fn(&str) -> Vec<(String, View)>, stored: String) -> Vec<(String, View)> {
    let views = rename(&stored);
    if views.is_empty() { vec![(stored.clone(), View::whole(stored))] } else { views }
}

fn overlap(a: &Range<usize>, b: Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

fn no_such(name: &str) -> WeightsError {
    WeightsError::NoSuchTensor { name: name.to_owned() }
}

impl WeightSource for Renamed {
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.views.keys().filter_map(|name| Some((name.clone(), self.shape(name)?))).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.views.get(name)? {
            View::Parts { stored, parts, rank } => self.parts_shape(stored, parts, *rank),
            View::Channels { stored } => self.inner.shape(stored).map(|shape| vec![1, shape.iter().product(), 1]),
            View::Transposed { stored } => self.inner.shape(stored).map(|shape| shape.into_iter().rev().collect()),
            View::WeightNorm { length, direction } => {
                self.inner.shape(length).and_then(|_| self.inner.shape(direction))
            }
        }
    }

    fn faults(&self) -> Vec<Fault> {
        self.inner.faults()
    }

    fn fault_of(&self, name: &str) -> Option<Fault> {
        self.views.get(name)?.stored().into_iter().find_map(|stored| self.inner.fault_of(stored))
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), WeightsError> {
        let wanted = RowRange { rows, out };
        match self.views.get(name).ok_or_else(|| no_such(name))? {
            View::Parts { stored, parts, .. } => self.read_parts(stored, parts, wanted),
            View::Transposed { stored } => self.read_transposed(stored, wanted),
            // All channels are the one row of the view.
            View::Channels { stored } => {
                let rows = self.inner.shape(stored).map_or(0, |shape| row_count(&shape));
                self.inner.read_rows(stored, 0..rows, wanted.out)
            }
            View::WeightNorm { length, direction } => self.read_normed(length, direction, wanted),
        }
    }

    fn packed(&self, name: &str, device: &Device) -> Option<candle_core::Result<QTensor>> {
        let View::Parts { stored, parts, rank: None } = self.views.get(name)? else { return None };
        let whole = *parts == [Part { index: 0, of: 1 }];
        if whole { self.inner.packed(stored, device) } else { None }
    }
}

/// The tensors of a source whose names begin with a prefix, without it.
pub struct Scoped {
    inner: Arc<dyn WeightSource>,
    prefix: String,
}

impl Scoped {
    /// Looks at the tensors of `inner` under `prefix`, such as `model.diffusion_model.`.
    pub fn new(inner: Arc<dyn WeightSource>, prefix: impl Into<String>) -> Self {
        Self { inner, prefix: prefix.into() }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl WeightSource for Scoped {
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let all = self.inner.shapes().into_iter();
        all.filter_map(|(name, shape)| Some((name.strip_prefix(&self.prefix)?.to_owned(), shape))).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.inner.shape(&self.full(name))
    }

    fn faults(&self) -> Vec<Fault> {
        self.inner.faults().into_iter().filter(|fault| fault.concerns(&self.prefix)).collect()
    }

    fn fault_of(&self, name: &str) -> Option<Fault> {
        self.inner.fault_of(&self.full(name))
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), WeightsError> {
        self.inner.read_rows(&self.full(name), rows, out)
    }

    fn packed(&self, name: &str, device: &Device) -> Option<candle_core::Result<QTensor>> {
        self.inner.packed(&self.full(name), device)
    }
}
