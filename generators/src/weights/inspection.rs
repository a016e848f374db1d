//! What models saw of their weights while they ran.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Smaller matrices than this many numbers may well be all zeros.
const TELLING: usize = 64;

/// Notes what is decoded of every tensor; every handle's clones are one.
///
/// A model that runs reads its weights anyway, so looking at them costs little, and a shard of zeros is named even where
/// the result hides it.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    shared: Arc<Mutex<Noted>>,
}

#[derive(Debug, Default)]
struct Noted {
    tensors: BTreeMap<String, Seen>,
    last: String,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    zero: bool,
    finite: bool,
    telling: bool,
}

/// What an [`Inspection`] found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspected {
    /// How many tensors were read, as a whole or in part.
    pub tensors: usize,
    /// Matrices of which every number that was read is 0.
    pub blank: Vec<String>,
    /// Tensors with an infinite or undefined number.
    pub not_finite: Vec<String>,
}

impl Inspection {
    /// What was found so far, tensors as `model: name`.
    pub fn found(&self) -> Inspected {
        let noted = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let names = |is: fn(&Seen) -> bool| {
            noted.tensors.iter().filter(|(_, seen)| is(seen)).map(|(name, _)| name.clone()).collect()
        };
        Inspected {
            tensors: noted.tensors.len(),
            blank: names(|seen| seen.zero && seen.telling),
            not_finite: names(|seen| !seen.finite),
        }
    }

    /// The tensor that was read last, as `model: name`; empty before the first.
    pub fn last(&self) -> String {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).last.clone()
    }

    pub(crate) fn note(&self, name: String, shape: &[usize], numbers: &[f32]) {
        // Not vectors: biases of zero are usual.
        let is_matrix = shape.iter().filter(|&&side| side > 1).count() >= 2;
        let telling = is_matrix && shape.iter().product::<usize>() >= TELLING;
        let zero = numbers.iter().all(|number| *number == 0.0);
        let finite = numbers.iter().all(|number| number.is_finite());
        let mut noted = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = noted.tensors.entry(name.clone()).or_insert(Seen { zero, finite, telling });
        seen.zero &= zero;
        seen.finite &= finite;
        noted.last = name;
    }
}
