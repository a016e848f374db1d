//! The weights of a model: where they come from, whether they fit, and how long they stay in memory.
//!
//! A model is built from a [`Weights`] handle. Building reads no numbers: every layer claims its tensors by name
//! and shape and keeps a [`Param`], which decodes them when the layer runs. [`build`] compares all claims with
//! what is there and names every fault. So a model of 60 GB is built in milliseconds, and with
//! [`Residency::Streamed`] it also runs in the memory of its largest layer.

pub mod checkpoint;
pub mod decode;
pub mod fault;
pub mod gguf;
mod gguf_header;
pub mod inspection;
mod pickle;
mod quantised;
pub mod source;
mod torch_zip;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::quantized::QMatMul;
use candle_core::{DType, Device, Result, Tensor};

pub use crate::weights::checkpoint::Checkpoint;
pub use crate::weights::fault::Fault;
pub use crate::weights::gguf::Gguf;
pub use crate::weights::gguf_header::{GgufError, Value};
pub use crate::weights::inspection::{Inspected, Inspection};
pub use crate::weights::pickle::PickleError;
pub use crate::weights::source::{Part, Renamed, Scoped, View, WeightSource, WeightsError, without_weight_norm};
use crate::weights::source::{row_count, row_length};
pub use crate::weights::torch_zip::TorchError;

/// Bytes of decoded numbers that a streamed layer holds at a time.
const CHUNK_BYTES: usize = 16 << 20;

/// How long decoded tensors stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// From their first use until the model is dropped.
    Kept,
    /// While the layer runs; matrices in pieces of at most 16 MiB.
    Streamed,
    /// Matrices that the file quantises in blocks stay in that form from their first use and are multiplied in it, the
    /// other factor rounded to eight bits; everything else is streamed.
    Packed,
}

/// Stops models from another thread: every handle's clones are one.
///
/// A model looks at it before each tensor that it reads, so even one that needs minutes for a step ends within the time
/// of one layer.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    shared: Arc<(AtomicBool, AtomicU64)>,
}

impl Stop {
    /// Lets every computation that reads weights fail from now on.
    pub fn stop(&self) {
        self.shared.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.shared.0.load(Ordering::Relaxed)
    }

    /// How often a tensor, or a piece of one, was asked for so far: a sign of life between two steps.
    pub fn reads(&self) -> u64 {
        self.shared.1.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<()> {
        self.shared.1.fetch_add(1, Ordering::Relaxed);
        if self.is_stopped() { candle_core::bail!("The run was stopped") } else { Ok(()) }
    }
}

/// Where a model computes, in which number format, and how long its weights stay.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The device of weights and activations.
    pub device: Device,
    /// The number format of weights and activations.
    pub dtype: DType,
    /// How long decoded weights stay.
    pub residency: Residency,
    /// What stops it.
    pub stop: Stop,
    /// What looks at the weights that are read, if anything does.
    pub inspection: Option<Inspection>,
}

impl Placement {
    /// Single precision on the CPU, weights kept.
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            residency: Residency::Kept,
            stop: Stop::default(),
            inspection: None,
        }
    }

    /// Waits until the device has done what it was given: before a stage's weights go, which it may still be reading.
    ///
    /// # Errors
    /// What the device could not do.
    pub fn settle(&self) -> Result<()> {
        self.device.synchronize()
    }

    /// The same with weights streamed.
    pub fn streamed(self) -> Self {
        Self { residency: Residency::Streamed, ..self }
    }

    /// The same with a look at every weight that is read.
    pub fn inspected(self, inspection: Inspection) -> Self {
        Self { inspection: Some(inspection), ..self }
    }

    /// The same with quantised weights multiplied as they are.
    pub fn packed(self) -> Self {
        Self { residency: Residency::Packed, ..self }
    }
}

#[derive(Default)]
struct Claims {
    needed: BTreeMap<String, Vec<usize>>,
    ignored: BTreeSet<String>,
    ignored_below: BTreeSet<String>,
}

struct Shared {
    model: String,
    source: Arc<dyn WeightSource>,
    placement: Placement,
    claims: Mutex<Claims>,
}

/// A place in the tree of a model's tensors, from which layers claim theirs.
#[derive(Clone)]
pub struct Weights {
    shared: Arc<Shared>,
    path: String,
}

/// Builds a model and checks that the weights are exactly those that it needs.
///
/// `model` is the name that the error gives.
///
/// # Errors
/// [`WeightsError::Unfit`] with every missing, extra, misshaped or undecodable tensor.
pub fn build<M>(
    model: &str,
    source: Arc<dyn WeightSource>,
    placement: Placement,
    new: impl FnOnce(Weights) -> M,
) -> std::result::Result<M, WeightsError> {
    let shared = Arc::new(Shared { model: model.to_owned(), source, placement, claims: Mutex::default() });
    let built = new(Weights { shared: Arc::clone(&shared), path: String::new() });
    let faults = shared.compare();
    if faults.is_empty() { Ok(built) } else { Err(WeightsError::Unfit { model: model.to_owned(), faults }) }
}

impl Shared {
    fn compare(&self) -> Vec<Fault> {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.source.shapes();
        let mut faults: Vec<Fault> = self.source.faults().into_iter().filter(Fault::of_files).collect();
        let unmet = claims.needed.iter().filter_map(|(name, shape)| {
            // A tensor that cannot be read may well have another shape: packed numbers. One fault is enough.
            self.source.fault_of(name).or_else(|| unmet(name, shape, found.get(name)))
        });
        faults.extend(unmet);
        let extra = found.into_iter().filter(|(name, _)| !claims.knows(name));
        faults.extend(extra.map(|(name, shape)| Fault::Extra { name, shape }));
        faults.sort();
        // Several tensors of the model may be cut from one that cannot be read.
        faults.dedup();
        faults
    }
}

impl Claims {
    fn knows(&self, name: &str) -> bool {
        let is_below = |place: &String| name.strip_prefix(place.as_str()).is_some_and(|rest| rest.starts_with('.'));
        self.needed.contains_key(name) || self.ignored.contains(name) || self.ignored_below.iter().any(is_below)
    }
}

fn unmet(name: &str, needed: &[usize], found: Option<&Vec<usize>>) -> Option<Fault> {
    let (name, needed) = (name.to_owned(), needed.to_vec());
    match found {
        None => Some(Fault::Missing { name, shape: needed }),
        Some(found) if *found != needed => Some(Fault::Misshaped { name, found: found.clone(), needed }),
        Some(_) => None,
    }
}

impl Weights {
    /// The place `child` below this one.
    #[must_use]
    pub fn at(&self, child: impl Display) -> Self {
        Self { shared: Arc::clone(&self.shared), path: self.full(child) }
    }

    /// Claims the tensor `name` of `shape`.
    pub fn param(&self, name: &str, shape: &[usize]) -> Param {
        let name = self.full(name);
        self.claims(|claims| {
            claims.needed.insert(name.clone(), shape.to_vec());
        });
        let shared = Arc::clone(&self.shared);
        Param { shared, name, shape: shape.to_vec(), kept: OnceLock::new(), packed: OnceLock::new() }
    }

    /// Says that the tensor `name` may be there but is not used (a buffer that the model computes itself).
    pub fn ignore(&self, name: &str) {
        let name = self.full(name);
        self.claims(|claims| {
            claims.ignored.insert(name);
        });
    }

    /// Says that whatever lies below the place `child` is not used (another half of a model of which one is built).
    pub fn ignore_below(&self, child: &str) {
        let place = self.full(child);
        self.claims(|claims| {
            claims.ignored_below.insert(place);
        });
    }

    /// Whether the source has the tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.shared.source.shape(&self.full(name)).is_some()
    }

    fn claims(&self, note: impl FnOnce(&mut Claims)) {
        note(&mut self.shared.claims.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn full(&self, name: impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}

/// One tensor of a model, decoded when it is needed.
pub struct Param {
    shared: Arc<Shared>,
    name: String,
    shape: Vec<usize>,
    kept: OnceLock<Tensor>,
    packed: OnceLock<Option<QMatMul>>,
}

impl Param {
    /// The shape that the model claimed.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The device, number format and residency of the model that the tensor belongs to.
    pub fn placement(&self) -> &Placement {
        &self.shared.placement
    }

    /// The whole tensor, on the model's device.
    pub fn tensor(&self) -> Result<Tensor> {
        self.shared.placement.stop.check()?;
        if let Some(kept) = self.kept.get() {
            return Ok(kept.clone());
        }
        let tensor = self.decode(0..row_count(&self.shape))?.reshape(self.shape.as_slice())?;
        if self.shared.placement.residency == Residency::Kept {
            let _ = self.kept.set(tensor.clone());
        }
        Ok(tensor)
    }

    /// The ranges of rows in which a layer should read the tensor: one range where weights are kept.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        let rows = row_count(&self.shape);
        let step = match self.shared.placement.residency {
            Residency::Kept => rows.max(1),
            Residency::Streamed | Residency::Packed => {
                (CHUNK_BYTES / size_of::<f32>() / row_length(&self.shape).max(1)).max(1)
            }
        };
        (0..rows).step_by(step).map(|start| start..rows.min(start + step)).collect()
    }

    /// Some rows of the tensor, on the model's device.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        self.shared.placement.stop.check()?;
        if self.shared.placement.residency == Residency::Kept {
            return self.tensor()?.narrow(0, rows.start, rows.len());
        }
        self.decode(rows)
    }

    /// The rows with the given numbers, in their order; reads no others where weights are streamed.
    ///
    /// # Errors
    /// When a number is not that of a row.
    pub fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        let rows = row_count(&self.shape);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            candle_core::bail!("{} has {rows} rows, row {id} was asked for", self.name);
        }
        if self.shared.placement.residency == Residency::Kept {
            return self.tensor()?.index_select(&Tensor::new(ids, &self.shared.placement.device)?, 0);
        }
        let rows: Vec<Tensor> =
            ids.iter().map(|&id| self.decode(id as usize..id as usize + 1)).collect::<Result<_>>()?;
        Tensor::cat(&rows, 0)
    }

    /// The matrix in its quantised form, where weights are to stay in it and the file has it.
    pub fn packed(&self) -> Result<Option<&QMatMul>> {
        if self.shared.placement.residency != Residency::Packed {
            return Ok(None);
        }
        self.shared.placement.stop.check()?;
        if self.packed.get().is_none() {
            let found = self.shared.source.packed(&self.name, &self.shared.placement.device).transpose()?;
            if found.is_some() {
                self.look()?;
            }
            let _ = self.packed.set(found.map(QMatMul::from_qtensor).transpose()?);
        }
        Ok(self.packed.get().and_then(Option::as_ref))
    }

    /// Shows the inspection a matrix that is multiplied in its packed form, and so is never decoded.
    fn look(&self) -> Result<()> {
        if self.shared.placement.inspection.is_none() {
            return Ok(());
        }
        self.pieces().into_iter().try_for_each(|rows| self.read(rows).map(drop))
    }

    fn decode(&self, rows: Range<usize>) -> Result<Tensor> {
        let Placement { device, dtype, .. } = &self.shared.placement;
        let (shape, numbers) = self.read(rows)?;
        Tensor::from_vec(numbers, shape, device)?.to_dtype(*dtype)
    }

    /// The shape and the numbers of some rows, which the inspection sees.
    fn read(&self, rows: Range<usize>) -> Result<(Vec<usize>, Vec<f32>)> {
        let mut shape = self.shape.clone();
        match shape.first_mut() {
            Some(first) => *first = rows.len(),
            None => shape.push(1),
        }
        let mut numbers = vec![0.0; shape.iter().product()];
        self.shared.source.read_rows(&self.name, rows, &mut numbers).map_err(candle_core::Error::wrap)?;
        if let Some(inspection) = &self.shared.placement.inspection {
            inspection.note(format!("{}: {}", self.shared.model, self.name), &self.shape, &numbers);
        }
        Ok((shape, numbers))
    }
}
