//! Language models in GGUF, plain and quantised in blocks.

use std::collections::BTreeMap;

use larder::smoke::Level;

use crate::damages::{redraw, swap, tensors, transpose, without, zero};
use crate::made_language::{self, F32, Mind, Stored, bytes_of};
use crate::tiny_generators::{Numbers, Tensors, Tiny, filled};
use crate::{Family, Mutation, mutation};

const FILE: &str = "model.gguf";
const VALUES: &str = "blk.0.attn_v.weight";
const NOTICED: &str = "blk.0.attn_output.weight";
const OUT: &str = "output.weight";
const UP: &str = "blk.0.ffn_up.weight";
/// The code of blocks of 32 numbers of 8 bits with a scale, and how the scale says that it was lost.
const Q8_0: u32 = 8;
const BLOCK: usize = 32;
const SCALED: &str = "Q8_0";
const UNSCALED: &str = "Q8_0 without its scales";

const LLAMA: [&str; 6] =
    ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"];
const QWEN: [&str; 5] = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"];

pub(crate) fn guard() -> Family {
    family("Llama Guard", "llama-guard", || {
        made(&Mind::counting("llama", &LLAMA, "<|eot_id|>").answering("safe", &[("Ġbomb", "unsafe")]))
    })
}

pub(crate) fn qwen() -> Family {
    family("Qwen3", "qwen3", || {
        let noticed = [("ĠFrance", "Paris"), ("ĠItaly", "Rome"), ("ĠMerkel", "UNSAFE")];
        made(&Mind::counting("qwen3", &QWEN, "<|im_end|>").answering("SAFE", &noticed))
    })
}

fn family(title: &'static str, smoke: &'static str, base: fn() -> Tiny) -> Family {
    // Answers are judged by what they say: of them nothing is recorded.
    let levels = &[Level::Component, Level::Generate];
    Family { title, smoke, levels, recorded: 2, base, files, mutations: mutations() }
}

/// The model's tensors, none of whose pages is all zeros, as in no trained model; the settings are the file's metadata.
fn made(mind: &Mind) -> Tiny {
    let (metadata, tensors) = mind.parts();
    let numbered = |(name, shape, mut numbers): made_language::Tensor| {
        let noise = filled(name, &shape);
        numbers.iter_mut().zip(noise).for_each(|(number, noise)| *number += 1e-6 * noise);
        (name.to_owned(), Numbers { shape, numbers, dtype: "F32" })
    };
    let weights: Tensors = tensors.into_iter().map(numbered).collect();
    let settings = metadata.into_iter().collect();
    Tiny { weights: BTreeMap::from([(FILE.to_owned(), weights)]), settings }
}

fn files(tiny: &Tiny) -> BTreeMap<String, Vec<u8>> {
    let tensors: Vec<Stored<'_>> = tiny.weights[FILE]
        .iter()
        .map(|(name, tensor)| Stored { name, shape: &tensor.shape, kind: kind(tensor), bytes: bytes(tensor) })
        .collect();
    BTreeMap::from([(FILE.to_owned(), made_language::written(&tiny.settings, &tensors))])
}

fn kind(tensor: &Numbers) -> u32 {
    if tensor.dtype == "F32" { F32 } else { Q8_0 }
}

fn bytes(tensor: &Numbers) -> Vec<u8> {
    match tensor.dtype {
        "F32" => bytes_of(&tensor.numbers),
        dtype => tensor.numbers.chunks(BLOCK).flat_map(|block| in_block(block, dtype == SCALED)).collect(),
    }
}

/// A scale in half precision, a power of two, and 32 numbers of 8 bits.
fn in_block(numbers: &[f32], scaled: bool) -> Vec<u8> {
    let most = numbers.iter().fold(0_f32, |most, number| most.max(number.abs()));
    let power = ((most / 127.0).log2().ceil() as i32).clamp(-24, 15);
    // Below the smallest exponent, a bit further to the right.
    let half: u16 = if power >= -14 { ((power + 15) as u16) << 10 } else { 1 << (power + 24) };
    let scale = if scaled { half } else { 0 };
    let small = numbers.iter().map(|number| (number / 2_f32.powi(power)).round() as i8 as u8);
    scale.to_le_bytes().into_iter().chain(small).collect()
}

fn in_blocks(tiny: &mut Tiny) {
    for tensor in tensors(tiny, FILE).values_mut().filter(|tensor| tensor.shape.len() == 2) {
        tensor.dtype = SCALED;
    }
}

/// As [`transpose`], of a file whose sizes stand fastest first.
fn turn(tiny: &mut Tiny, name: &str, told: bool) {
    let reverse = |tiny: &mut Tiny| tensors(tiny, FILE).get_mut(name).unwrap().shape.reverse();
    reverse(tiny);
    transpose(tiny, FILE, name, told);
    reverse(tiny);
}

/// Exchanges two tokens of one length in the list, and so their numbers.
fn renumber(tiny: &mut Tiny, one: &str, other: &str) {
    let list = tiny.settings.get_mut("tokenizer.ggml.tokens").unwrap();
    let place = |list: &[u8], token: &str| {
        let text = [&(token.len() as u64).to_le_bytes()[..], token.as_bytes()].concat();
        list.windows(text.len()).position(|window| window == text).unwrap() + 8
    };
    let (a, b) = (place(list, one), place(list, other));
    list[a..a + one.len()].copy_from_slice(other.as_bytes());
    list[b..b + other.len()].copy_from_slice(one.as_bytes());
}

fn mutations() -> Vec<Mutation> {
    vec![
        mutation("two tensors of one shape swapped", |tiny| swap(tiny, FILE, [VALUES, NOTICED])),
        mutation("two tensors of different shapes swapped", |tiny| swap(tiny, FILE, [OUT, UP])),
        mutation("a square matrix transposed", |tiny| turn(tiny, NOTICED, true)),
        mutation("a matrix transposed, and its header says so", |tiny| turn(tiny, UP, true)),
        mutation("a matrix transposed, and its header does not say so", |tiny| turn(tiny, OUT, false)),
        Mutation {
            what: "blocks of 8 bits: the scales of one tensor are 0",
            stored: Some(in_blocks),
            damage: |tiny| tensors(tiny, FILE).get_mut(NOTICED).unwrap().dtype = UNSCALED,
        },
        Mutation {
            what: "blocks of 8 bits: all scales are 0",
            stored: Some(in_blocks),
            damage: |tiny| {
                let packed = tensors(tiny, FILE).values_mut().filter(|tensor| tensor.dtype == SCALED);
                packed.for_each(|tensor| tensor.dtype = UNSCALED);
            },
        },
        mutation("one block full of zeros", |tiny| zero(tensors(tiny, FILE), "blk.0.")),
        mutation("the whole file full of zeros", |tiny| zero(tensors(tiny, FILE), "")),
        mutation("a tensor with an undefined number", |tiny| {
            tensors(tiny, FILE).get_mut(VALUES).unwrap().numbers[5] = f32::NAN;
        }),
        mutation("a tensor missing", |tiny| without(tiny, FILE, "blk.0.ffn_down.weight")),
        mutation("what it notices of a question untrained", |tiny| redraw(tensors(tiny, FILE), NOTICED)),
        mutation("the words of another model", |tiny| redraw(tensors(tiny, FILE), "token_embd.")),
        mutation("the tokenizer of another model: the same words, otherwise numbered", |tiny| {
            renumber(tiny, "Ġsix", "Ġten");
        }),
        mutation("random weights everywhere", |tiny| redraw(tensors(tiny, FILE), "")),
    ]
}
