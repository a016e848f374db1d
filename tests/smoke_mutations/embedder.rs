//! Sentence embedding by a BERT.

use larder::smoke::Level;

use crate::damages::{in_eight_bits, redraw, swap, tensors, transpose, without, zero};
use crate::tiny_generators::Tiny;
use crate::{Family, Mutation, mutation};

const FILE: &str = "model.safetensors";
const QUERY: &str = "encoder.layer.0.attention.self.query.weight";
const VALUE: &str = "encoder.layer.0.attention.self.value.weight";
const OUT: &str = "encoder.layer.0.attention.output.dense.weight";
const INNER: &str = "encoder.layer.0.intermediate.dense.weight";

fn scaled(tiny: &mut Tiny) {
    in_eight_bits(tiny, FILE, "encoder.layer.");
}

pub(crate) fn sentences() -> Family {
    Family {
        title: "BERT for sentences",
        smoke: "sentence-embedding",
        levels: &[Level::Component],
        recorded: 1,
        base: Tiny::sentences,
        files: Tiny::files,
        mutations: mutations(),
    }
}

fn mutations() -> Vec<Mutation> {
    vec![
        mutation("two tensors of one shape swapped", |tiny| swap(tiny, FILE, [QUERY, VALUE])),
        mutation("two tensors of different shapes swapped", |tiny| {
            swap(tiny, FILE, [INNER, "encoder.layer.0.output.dense.weight"]);
        }),
        Mutation {
            what: "8 bits: one scale dropped",
            stored: Some(scaled),
            damage: |tiny| without(tiny, FILE, "encoder.layer.0.output.dense.scale_weight"),
        },
        Mutation {
            what: "8 bits: all scales dropped",
            stored: Some(scaled),
            damage: |tiny| without(tiny, FILE, ".scale_weight"),
        },
        Mutation {
            what: "8 bits: all scales dropped, and the mark of scaled files",
            stored: Some(scaled),
            damage: |tiny| {
                without(tiny, FILE, ".scale_weight");
                without(tiny, FILE, "scaled_fp8");
            },
        },
        mutation("a square matrix transposed", |tiny| transpose(tiny, FILE, OUT, true)),
        mutation("a matrix transposed, and its header says so", |tiny| transpose(tiny, FILE, INNER, true)),
        mutation("a matrix transposed, and its header does not say so", |tiny| transpose(tiny, FILE, INNER, false)),
        mutation("one layer full of zeros", |tiny| zero(tensors(tiny, FILE), "encoder.layer.1.")),
        mutation("the whole file full of zeros", |tiny| zero(tensors(tiny, FILE), "")),
        mutation("a tensor with an undefined number", |tiny| {
            tensors(tiny, FILE).get_mut(INNER).unwrap().numbers[5] = f32::NAN;
        }),
        mutation("a tensor missing", |tiny| without(tiny, FILE, "encoder.layer.1.output.LayerNorm.bias")),
        mutation("the words of another model", |tiny| redraw(tensors(tiny, FILE), "embeddings.word_embeddings.")),
        mutation("the tokenizer of another model: the same words, otherwise numbered", |tiny| {
            let text = String::from_utf8(tiny.settings["tokenizer.json"].clone()).unwrap();
            let turned = text.replace("\"sunny\":", "\"?\":").replace("\"stadium\":", "\"sunny\":");
            tiny.settings.insert("tokenizer.json".to_owned(), turned.replace("\"?\":", "\"stadium\":").into_bytes());
        }),
        mutation("random weights everywhere", |tiny| redraw(tensors(tiny, FILE), "")),
    ]
}
