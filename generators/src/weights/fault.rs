//! What can be wrong with a checkpoint, one fault for each thing that is.

use std::path::PathBuf;

/// One thing that is wrong with the weights of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// The model needs a tensor that is not there.
    #[error("{name} is missing (shape {shape:?})")]
    Missing {
        /// The tensor.
        name: String,
        /// The shape that the model needs.
        shape: Vec<usize>,
    },
    /// A tensor is there that the model has no use for.
    #[error("{name} is not part of the model (shape {shape:?})")]
    Extra {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor has another shape than the model needs.
    #[error("{name} has the shape {found:?}, the model needs {needed:?}")]
    Misshaped {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the model needs.
        needed: Vec<usize>,
    },
    /// A tensor is stored in a number format that this library does not decode.
    #[error("{name} is stored as {format}, which is not supported")]
    UnknownFormat {
        /// The tensor.
        name: String,
        /// The format, as the header writes it.
        format: String,
    },
    /// A tensor is quantised in a way that this library does not know.
    #[error("{name} is quantised as {format:?}, which is not supported")]
    UnknownQuantisation {
        /// The tensor.
        name: String,
        /// The scheme, as the file writes it.
        format: String,
    },
    /// The header's `_quantization_metadata` is not of the known form.
    #[error("The header's _quantization_metadata is not of the known form: {text}")]
    UnknownMetadata {
        /// Its beginning.
        text: String,
    },
    /// A tensor of a scaled fp8 file has lost its scale.
    #[error("{name} is scaled fp8, but its scale {scale} is missing")]
    MissingScale {
        /// The tensor.
        name: String,
        /// The scale's name.
        scale: String,
    },
    /// A scale is not one finite `f32`.
    #[error("{scale}, the scale of {name}, is not one finite F32 number")]
    BadScale {
        /// The tensor.
        name: String,
        /// The scale's name.
        scale: String,
    },
    /// A shard index promises a tensor that its shard does not hold.
    #[error("{name} is missing from {}, where the index says it is", shard.display())]
    NotInShard {
        /// The tensor.
        name: String,
        /// The shard.
        shard: PathBuf,
    },
    /// A tensor reaches beyond the end of its file: the file was cut off.
    #[error("{name} reaches beyond the end of the file")]
    OutsideFile {
        /// The tensor.
        name: String,
    },
    /// A tensor's place is not aligned, not of whole blocks, or shared with another.
    #[error("{name} is at a place where it cannot be")]
    Misplaced {
        /// The tensor.
        name: String,
    },
    /// A shard that the index names is not there.
    #[error("The shard {} is missing", shard.display())]
    MissingShard {
        /// The shard.
        shard: PathBuf,
    },
}

impl Fault {
    /// Whether the fault is about a tensor under `prefix`, or about no tensor in particular.
    pub(crate) fn concerns(&self, prefix: &str) -> bool {
        match self {
            Self::Missing { name, .. }
            | Self::Extra { name, .. }
            | Self::Misshaped { name, .. }
            | Self::UnknownFormat { name, .. }
            | Self::UnknownQuantisation { name, .. }
            | Self::MissingScale { name, .. }
            | Self::BadScale { name, .. }
            | Self::OutsideFile { name }
            | Self::Misplaced { name }
            | Self::NotInShard { name, .. } => name.starts_with(prefix),
            Self::MissingShard { .. } | Self::UnknownMetadata { .. } => true,
        }
    }

    /// Whether the fault is one of the files, whatever model is built from them.
    pub(crate) fn of_files(&self) -> bool {
        matches!(self, Self::MissingShard { .. } | Self::NotInShard { .. } | Self::UnknownMetadata { .. })
    }
}

/// All faults in one text.
pub(crate) fn list(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
