//! LoRAs: are their matrices pairs, and do they fit the model that they are for?

use std::collections::BTreeMap;

use crate::smoke::Check;
use crate::smoke::expected::List;
use crate::weights::Tensor;

const DOWN: [&str; 4] = [".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_A.default.weight"];
const UP: [&str; 4] = [".lora_up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_B.default.weight"];
const PREFIXES: [&str; 6] = [
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lora_transformer_",
];

#[derive(Default)]
struct Pair<'a> {
    down: Option<&'a Tensor>,
    up: Option<&'a Tensor>,
}

/// Whether a file of these tensors is a LoRA.
pub(super) fn is_lora(tensors: &[Tensor]) -> bool {
    tensors.iter().any(|tensor| DOWN.iter().any(|ending| tensor.name.ends_with(ending)))
}

/// The check of one LoRA; without known models, only its own pairs are looked at.
pub(super) fn check(path: &str, tensors: &[Tensor], bases: &[List]) -> Check {
    let pairs = pairs(tensors);
    let mut wrong: Vec<String> = pairs.iter().filter_map(|(module, pair)| unpaired(module, pair)).collect();
    let best = bases
        .iter()
        .map(|list| (list, modules(list)))
        .map(|(list, modules)| (pairs.keys().filter(|module| find(module, &modules).is_some()).count(), list, modules))
        .max_by_key(|(hits, _, _)| *hits);
    let name = format!("LoRA {path}");
    let Some((hits, list, modules)) = best else {
        let measured = format!("{} pairs", pairs.len());
        return Check::of(name, measured, ["each of two matrices of one rank", "the format"], wrong);
    };
    for (module, pair) in &pairs {
        match find(module, &modules) {
            None => wrong.push(format!("for a module that the model does not have: {module}")),
            Some(shape) => wrong.extend(misfit(module, pair, shape)),
        }
    }
    let measured = format!("{hits} of {} pairs are for modules of {}", pairs.len(), list.title);
    Check::of(
        name,
        measured,
        ["all, and of the right sides", "the expected tensors of the model that the manifest names"],
        wrong,
    )
}

fn pairs(tensors: &[Tensor]) -> BTreeMap<String, Pair<'_>> {
    let mut pairs: BTreeMap<String, Pair<'_>> = BTreeMap::new();
    for tensor in tensors {
        if let Some(module) = DOWN.iter().find_map(|ending| tensor.name.strip_suffix(ending)) {
            pairs.entry(module.to_owned()).or_default().down = Some(tensor);
        } else if let Some(module) = UP.iter().find_map(|ending| tensor.name.strip_suffix(ending)) {
            pairs.entry(module.to_owned()).or_default().up = Some(tensor);
        }
    }
    pairs
}

fn unpaired(module: &str, pair: &Pair<'_>) -> Option<String> {
    match (pair.down, pair.up) {
        (Some(down), Some(up)) => {
            let (rank, other) = (down.shape.first(), up.shape.get(1));
            (rank != other).then(|| format!("two ranks, {rank:?} and {other:?}: {module}"))
        }
        _ => Some(format!("one matrix of two: {module}")),
    }
}

/// Modules of a list with the sides of their weights; underscores and dots are the same in LoRAs.
fn modules(list: &List) -> BTreeMap<String, Vec<u64>> {
    let weights = list.tensors().into_iter().filter(|tensor| tensor.shape.len() >= 2);
    weights.filter_map(|tensor| Some((plain(tensor.name.strip_suffix(".weight")?), tensor.shape))).collect()
}

fn plain(module: &str) -> String {
    module.replace('.', "_")
}

fn find<'a>(module: &str, modules: &'a BTreeMap<String, Vec<u64>>) -> Option<&'a Vec<u64>> {
    let prefixes = PREFIXES.iter().filter_map(|prefix| module.strip_prefix(prefix));
    std::iter::once(module).chain(prefixes).find_map(|module| modules.get(&plain(module)))
}

fn misfit(module: &str, pair: &Pair<'_>, weight: &[u64]) -> Option<String> {
    let (down, up) = (pair.down?, pair.up?);
    let sides = (up.shape.first().copied(), down.shape.get(1).copied());
    let right = (weight.first().copied(), weight.get(1).copied());
    (sides != right).then(|| format!("its sides are {sides:?}, those of the weight are {right:?}: {module}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smoke::Outcome;
    use crate::smoke::expected::candidates;

    fn tensor(name: &str, shape: &[u64]) -> Tensor {
        Tensor { name: name.to_owned(), dtype: "BF16".to_owned(), shape: shape.to_vec(), place: 0..0 }
    }

    #[test]
    fn a_lora_must_fit_its_model() {
        let wan = candidates(Some("wan2.2-i2v"));
        let lora = |module: &str, sides: [u64; 2]| {
            vec![
                tensor(&format!("{module}.lora_down.weight"), &[64, sides[1]]),
                tensor(&format!("{module}.lora_up.weight"), &[sides[0], 64]),
                tensor(&format!("{module}.alpha"), &[]),
            ]
        };
        for module in ["diffusion_model.blocks.3.ffn.0", "lora_unet_blocks_3_ffn_0"] {
            let good = check("a", &lora(module, [13824, 5120]), &wan);
            assert_eq!(good.outcome, Outcome::Passed, "{good:?}");
        }
        let swapped = check("a", &lora("diffusion_model.blocks.3.ffn.0", [5120, 13824]), &wan);
        assert!(swapped.details[0].contains("its sides are"), "{swapped:?}");
        let other = check("a", &lora("transformer.double_blocks.3.img_attn.qkv", [3072, 3072]), &wan);
        assert!(other.details[0].contains("does not have"), "{other:?}");
        let half = check("a", &lora("diffusion_model.blocks.3.ffn.0", [13824, 5120])[..1], &[]);
        assert_eq!(half.details, ["one matrix of two: diffusion_model.blocks.3.ffn.0"]);
    }
}
