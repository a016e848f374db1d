//! LoRAs: are their matrices pairs, and do they fit the model that they are for, and its text encoders?

use std::collections::BTreeMap;

use crate::smoke::Check;
use crate::smoke::expected::List;
use crate::weights::Tensor;

const DOWN: [&str; 5] = [
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora.down.weight",
    ".lora_A.default.weight",
    ".lora_linear_layer.down.weight",
];
const UP: [&str; 5] =
    [".lora_up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_B.default.weight", ".lora_linear_layer.up.weight"];
/// What `peft` puts before all names.
const WRAPPED: &str = "base_model.model.";
const PREFIXES: [&str; 5] =
    ["model.diffusion_model.", "diffusion_model.", "transformer.", "lora_unet_", "lora_transformer_"];

/// Beginnings of modules of a text encoder, and which one of the pipeline's it is.
const OF_ENCODERS: [(&str, usize); 10] = [
    ("lora_te_", 0),
    ("lora_te1_", 0),
    ("lora_te2_", 1),
    ("lora_te3_", 2),
    ("text_encoder.", 0),
    ("text_encoder_2.", 1),
    ("text_encoder_3.", 2),
    ("text_encoders.clip_l.transformer.", 0),
    ("text_encoders.clip_g.transformer.", 1),
    ("text_encoders.t5xxl.transformer.", 2),
];
/// The lists of text encoders, in the order in which pipelines number them.
const ENCODERS: [&str; 8] = [
    "clip_l_proj",
    "clip_g_proj",
    "t5_xxl_encoder",
    "t5_base_encoder",
    "umt5_xxl_encoder",
    "mistral_small_24b_text",
    "qwen25_vl_7b",
    "qwen3_4b",
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
    let name = format!("LoRA {path}");
    let encoders: Vec<&List> =
        ENCODERS.iter().filter_map(|name| bases.iter().find(|list| list.name == *name)).collect();
    let models: Vec<&List> = bases.iter().filter(|list| !ENCODERS.contains(&list.name)).collect();
    // A text encoder's own LoRA has no other model.
    let models = if models.is_empty() { encoders.clone() } else { models };
    if models.is_empty() {
        let measured = format!("{} pairs", pairs.len());
        return Check::of(name, measured, ["each of two matrices of one rank", "the format"], wrong);
    }
    let mut groups: BTreeMap<Option<usize>, Vec<(&str, &str, &Pair<'_>)>> = BTreeMap::new();
    for (module, pair) in &pairs {
        let (encoder, plain) = of_encoder(module);
        groups.entry(encoder).or_default().push((module, plain, pair));
    }
    let mut measured = Vec::new();
    for (encoder, group) in &groups {
        let bases: Vec<&List> = match encoder {
            None => models.clone(),
            Some(number) => encoders.get(*number).copied().into_iter().collect(),
        };
        let (told, faults) = fitted(group, &bases);
        measured.push(told);
        wrong.extend(faults);
    }
    let wanted = ["all, and of the right sides", "the expected tensors of the model that the manifest names"];
    Check::of(name, measured.join("; "), wanted, wrong)
}

/// Which text encoder a module is of, where it is of one, and what it is called there.
fn of_encoder(module: &str) -> (Option<usize>, &str) {
    let module = module.strip_prefix(WRAPPED).unwrap_or(module);
    let found = OF_ENCODERS.iter().find_map(|(prefix, number)| Some((*number, module.strip_prefix(prefix)?)));
    found.map_or((None, module), |(number, rest)| (Some(number), rest))
}

/// How many of `group` are for modules of that one of `bases` which fits most of them, and what is wrong.
fn fitted(group: &[(&str, &str, &Pair<'_>)], bases: &[&List]) -> (String, Vec<String>) {
    let hits = |modules: &BTreeMap<String, Vec<u64>>| {
        group.iter().filter(|(_, plain, _)| find(plain, modules).is_some()).count()
    };
    let all = bases.iter().map(|list| (*list, modules(list))).map(|(list, modules)| (hits(&modules), list, modules));
    let Some((hits, list, modules)) = all.max_by_key(|(hits, _, _)| *hits) else {
        let strange = |(module, _, _): &(&str, &str, &Pair<'_>)| {
            format!("for a text encoder that the model does not have: {module}")
        };
        return (format!("{} pairs are for another text encoder", group.len()), group.iter().map(strange).collect());
    };
    let mut wrong = Vec::new();
    for (module, plain, pair) in group {
        match find(plain, &modules) {
            None => wrong.push(format!("for a module that {} does not have: {module}", list.title)),
            Some(shape) => wrong.extend(misfit(module, pair, shape)),
        }
    }
    (format!("{hits} of {} pairs are for modules of {}", group.len(), list.title), wrong)
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
        let wrapped = check("a", &lora("base_model.model.blocks.3.ffn.0", [13824, 5120]), &wan);
        assert_eq!(wrapped.outcome, Outcome::Passed, "{wrapped:?}");
        let half = check("a", &lora("diffusion_model.blocks.3.ffn.0", [13824, 5120])[..1], &[]);
        assert_eq!(half.details, ["one matrix of two: diffusion_model.blocks.3.ffn.0"]);
    }

    #[test]
    fn modules_of_text_encoders_must_fit_these() {
        let sd = candidates(Some("stable-diffusion-3"));
        let of = |module: &str, width: u64| {
            let all = [
                tensor("transformer.transformer_blocks.3.attn.to_q.lora_A.weight", &[4, 2432]),
                tensor("transformer.transformer_blocks.3.attn.to_q.lora_B.weight", &[2432, 4]),
                tensor(&format!("{module}.lora_A.weight"), &[4, width]),
                tensor(&format!("{module}.lora_B.weight"), &[width, 4]),
            ];
            check("a", &all, &sd)
        };
        let layer = "text_model.encoder.layers.3.self_attn.q_proj";
        for (module, width) in [
            (format!("text_encoder.{layer}"), 768),
            (format!("base_model.model.text_encoder_2.{layer}"), 1280),
            (format!("lora_te1_{}", plain(layer)), 768),
            (format!("lora_te2_{}", plain(layer)), 1280),
            ("lora_te3_encoder_block_3_layer_0_SelfAttention_q".to_owned(), 4096),
        ] {
            let good = of(&module, width);
            assert_eq!((good.outcome, good.measured.matches("1 of 1 pairs").count()), (Outcome::Passed, 2), "{good:?}");
            let other = of(&module, width + 64);
            assert!(other.details[0].contains("its sides are") && other.details[0].ends_with(&module), "{other:?}");
        }
        let strange = of("lora_te2_text_model_encoder_layers_40_self_attn_q_proj", 1280);
        assert!(strange.details[0].starts_with("for a module that CLIP ViT-bigG text encoder does not have"));
        let wan = candidates(Some("wan2.2-i2v"));
        let pair = [tensor("lora_te2_a.lora_up.weight", &[9, 4]), tensor("lora_te2_a.lora_down.weight", &[4, 9])];
        let none = check("a", &pair, &wan);
        assert_eq!(none.details, ["for a text encoder that the model does not have: lora_te2_a"]);
    }
}
