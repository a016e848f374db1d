//! Comparing the tensors that are there with those that must be.

use std::collections::{BTreeMap, BTreeSet};

use crate::smoke::expected::{List, Wanted};
use crate::weights::Tensor;

/// What differs; every tensor is named.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) missing: Vec<String>,
    pub(super) misshaped: Vec<String>,
    pub(super) wrong_dtype: Vec<String>,
    /// Tensors that programs ignore: told, and no fault.
    pub(super) extra: Vec<String>,
}

impl Difference {
    /// Everything that is a fault, one thing each.
    pub(super) fn faults(&self) -> Vec<String> {
        let say = |what: &'static str, names: &[String]| {
            names.iter().map(|name| format!("{what}: {name}")).collect::<Vec<_>>()
        };
        [say("missing", &self.missing), say("misshaped", &self.misshaped), say("wrong dtype", &self.wrong_dtype)]
            .concat()
    }
}

/// Endings of what quantised files have beside their weights.
const COMPANIONS: [&str; 7] =
    [".scale_weight", ".weight_scale", ".weight_scale_2", ".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8"];

/// Whether a tensor belongs to the quantisation and not to the architecture.
pub(super) fn is_companion(name: &str) -> bool {
    COMPANIONS.iter().any(|ending| name.ends_with(ending))
}

/// The tensors of a file or of a set of shards, by name.
pub(super) type ByName<'a> = BTreeMap<&'a str, &'a Tensor>;

/// How many of `wanted` are there, by name.
pub(super) fn overlap(wanted: &[Wanted], here: &ByName<'_>) -> usize {
    wanted.iter().filter(|tensor| !found(&tensor.name, here).is_empty()).count()
}

/// The tensors that stand for one name: itself, or what it is made of.
fn found<'a>(name: &str, here: &ByName<'a>) -> Vec<&'a Tensor> {
    if let Some(tensor) = here.get(name) {
        return vec![tensor];
    }
    // A weight whose length is kept apart; a norm's weight under its other name.
    let alternatives = name.strip_suffix(".weight").map(|stem| {
        [
            vec![format!("{stem}.weight_v"), format!("{stem}.weight_g")],
            vec![
                format!("{stem}.parametrizations.weight.original1"),
                format!("{stem}.parametrizations.weight.original0"),
            ],
        ]
    });
    let other = name.strip_suffix("_norm.scale").map(|stem| vec![format!("{stem}_norm.weight")]);
    let all = alternatives.into_iter().flatten().chain(other);
    all.map(|names| names.iter().filter_map(|name| here.get(name.as_str()).copied()).collect::<Vec<_>>())
        .find(|tensors| !tensors.is_empty())
        .unwrap_or_default()
}

/// Compares all tensors of a list with those that are here.
pub(super) fn compare(list: &List, wanted: &[Wanted], here: &ByName<'_>) -> Difference {
    let mut difference = Difference::default();
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for tensor in wanted {
        let stands = found(&tensor.name, here);
        let Some(first) = stands.first() else {
            if !list.is_optional(&tensor.name) {
                difference.missing.push(tensor.name.clone());
            }
            continue;
        };
        used.extend(stands.iter().map(|tensor| tensor.name.as_str()));
        used.insert(&tensor.name);
        if !is_same_shape(&first.shape, &tensor.shape) {
            difference.misshaped.push(format!("{} is {:?}, {:?} is right", tensor.name, first.shape, tensor.shape));
        } else if !is_number_of_weights(first) {
            difference.wrong_dtype.push(format!("{} is {}", tensor.name, first.dtype));
        }
    }
    let rest = here
        .iter()
        .filter(|(name, tensor)| !used.contains(*name) && !used.contains(tensor.name.as_str()) && !is_companion(name));
    difference.extra = rest.map(|(name, _)| (*name).to_owned()).collect();
    difference
}

/// Sides of length 1 may be left out of vectors and numbers.
fn is_same_shape(found: &[u64], wanted: &[u64]) -> bool {
    let of_numbers = |shape: &[u64]| shape.iter().product::<u64>() == 1;
    found == wanted || (of_numbers(found) && of_numbers(wanted))
}

fn is_number_of_weights(tensor: &Tensor) -> bool {
    let counts = ["num_batches_tracked", "position_ids"].iter().any(|ending| tensor.name.ends_with(ending));
    counts || ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"].contains(&tensor.dtype.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smoke::expected::candidates;

    fn tensor(name: &str, dtype: &str, shape: &[u64]) -> Tensor {
        Tensor { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), place: 0..0 }
    }

    fn by_name(tensors: &[Tensor]) -> ByName<'_> {
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect()
    }

    #[test]
    fn everything_that_differs_is_named() {
        let list = candidates(Some("t5-encoder")).into_iter().find(|list| list.name == "t5_base_encoder").unwrap();
        let wanted = list.tensors();
        let mut here: Vec<Tensor> = wanted.iter().map(|t| tensor(&t.name, "F16", &t.shape)).collect();
        assert_eq!(compare(&list, &wanted, &by_name(&here)), Difference::default());
        let last = here.pop().unwrap().name;
        here.retain(|tensor| tensor.name != "encoder.embed_tokens.weight");
        here[0].shape.reverse();
        here[1].dtype = "I32".to_owned();
        here.push(tensor("more", "F32", &[1]));
        here.push(tensor("a.scale_weight", "F32", &[1]));
        let found = compare(&list, &wanted, &by_name(&here));
        assert_eq!(found.missing, [last]);
        assert_eq!(found.misshaped, ["shared.weight is [768, 32128], [32128, 768] is right"]);
        assert_eq!((found.wrong_dtype.len(), found.extra), (1, vec!["more".to_owned()]));
    }
}
