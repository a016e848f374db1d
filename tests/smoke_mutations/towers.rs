//! CLIP in the layouts of transformers and of open_clip.

use std::collections::BTreeMap;

use larder::smoke::Level;

use crate::damages::{in_eight_bits, redraw, swap, tensors, transpose, without, zero};
use crate::made_towers;
use crate::tiny_generators::{Numbers, Tensors, Tiny, filled};
use crate::{Family, Mutation, mutation};

/// What the damaged tensors are called in a layout.
struct Layout {
    smoke: &'static str,
    file: &'static str,
    /// Two matrices of one shape: the caption's words come through the first.
    alike: [&'static str; 2],
    text_out: &'static str,
    text_inner: &'static str,
    image_projection: &'static str,
    image_patch: &'static str,
    image_norm: &'static str,
    /// Where the tensors of the layers begin.
    layers: &'static str,
    image_layers: &'static str,
    text: [&'static str; 2],
    image: &'static str,
}

const TRANSFORMERS: Layout = Layout {
    smoke: "clip",
    file: "model.safetensors",
    alike: [
        "text_model.encoder.layers.0.self_attn.v_proj.weight",
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
    ],
    text_out: "text_model.encoder.layers.0.self_attn.out_proj.weight",
    text_inner: "text_model.encoder.layers.0.mlp.fc1.weight",
    image_projection: "visual_projection.weight",
    image_patch: "vision_model.embeddings.patch_embedding.weight",
    image_norm: "vision_model.post_layernorm.bias",
    layers: "encoder.layers.",
    image_layers: "vision_model.encoder.layers.",
    text: ["text_model.encoder.", "text_model.embeddings.token"],
    image: "vision_model.",
};

const OPEN_CLIP: Layout = Layout {
    smoke: "dfn5b-clip",
    file: "open_clip_model.safetensors",
    alike: ["transformer.resblocks.0.attn.out_proj.weight", "visual.transformer.resblocks.0.attn.out_proj.weight"],
    text_out: "transformer.resblocks.0.attn.out_proj.weight",
    text_inner: "transformer.resblocks.0.mlp.c_fc.weight",
    image_projection: "visual.proj",
    image_patch: "visual.conv1.weight",
    image_norm: "visual.ln_post.bias",
    layers: "resblocks.",
    image_layers: "visual.transformer.resblocks.",
    text: ["transformer.", "token_embedding."],
    image: "visual.",
};

/// The layout of a model.
fn of(tiny: &Tiny) -> &'static Layout {
    if tiny.weights.contains_key(TRANSFORMERS.file) { &TRANSFORMERS } else { &OPEN_CLIP }
}

pub(crate) fn clip() -> Family {
    family("CLIP, as transformers stores it", &TRANSFORMERS, || made(&TRANSFORMERS, made_towers::clip()))
}

pub(crate) fn open_clip() -> Family {
    family("CLIP, as open_clip stores it", &OPEN_CLIP, || {
        made(&OPEN_CLIP, made_towers::open_clip(&made_towers::clip()))
    })
}

fn family(title: &'static str, layout: &Layout, base: fn() -> Tiny) -> Family {
    let levels = &[Level::Component];
    Family { title, smoke: layout.smoke, levels, recorded: 1, base, files: Tiny::files, mutations: mutations() }
}

/// The towers made by hand; no matrix of them is all zeros, as in no trained model, and none is its own transpose.
fn made(layout: &Layout, towers: made_towers::Tensors) -> Tiny {
    let numbered = |(name, (shape, mut numbers)): (String, (Vec<usize>, Vec<f32>))| {
        let noise = filled(&name, &shape);
        numbers.iter_mut().zip(noise).for_each(|(number, noise)| *number += 1e-6 * noise);
        (name, Numbers { shape, numbers, dtype: "F32" })
    };
    let mut weights: Tensors = towers.into_iter().map(numbered).collect();
    weights.get_mut(layout.text_out).unwrap().numbers[1] += 1.0;
    let settings = made_towers::settings(layout.smoke);
    let settings = settings.into_iter().map(|(path, bytes)| (path.to_owned(), bytes)).collect();
    Tiny { weights: BTreeMap::from([(layout.file.to_owned(), weights)]), settings }
}

fn scaled(tiny: &mut Tiny) {
    let layout = of(tiny);
    in_eight_bits(tiny, layout.file, layout.layers);
}

fn mutations() -> Vec<Mutation> {
    let mut mutations = vec![
        mutation("two tensors of one shape swapped", |tiny| swap(tiny, of(tiny).file, of(tiny).alike)),
        mutation("two tensors of different shapes swapped", |tiny| {
            let layout = of(tiny);
            swap(tiny, layout.file, [layout.image_projection, layout.text_inner]);
        }),
    ];
    mutations.extend(of_scales());
    mutations.extend([
        mutation("a square matrix transposed", |tiny| transpose(tiny, of(tiny).file, of(tiny).text_out, true)),
        mutation("a matrix transposed, and its header says so", |tiny| {
            transpose(tiny, of(tiny).file, of(tiny).image_projection, true);
        }),
        mutation("a matrix transposed, and its header does not say so", |tiny| {
            transpose(tiny, of(tiny).file, of(tiny).image_projection, false);
        }),
        mutation("the layers of the image tower full of zeros", |tiny| {
            let layout = of(tiny);
            zero(tensors(tiny, layout.file), layout.image_layers);
        }),
        mutation("the whole file full of zeros", |tiny| zero(tensors(tiny, of(tiny).file), "")),
        mutation("a tensor with an undefined number", |tiny| {
            let layout = of(tiny);
            tensors(tiny, layout.file).get_mut(layout.image_patch).unwrap().numbers[5] = f32::NAN;
        }),
        mutation("a tensor missing", |tiny| without(tiny, of(tiny).file, of(tiny).image_norm)),
        mutation("another text tower of the same sizes", |tiny| {
            let layout = of(tiny);
            layout.text.iter().for_each(|part| redraw(tensors(tiny, layout.file), part));
        }),
        mutation("the image tower untrained", |tiny| {
            let layout = of(tiny);
            redraw(tensors(tiny, layout.file), layout.image);
        }),
        mutation("random weights everywhere", |tiny| redraw(tensors(tiny, of(tiny).file), "")),
    ]);
    mutations
}

fn of_scales() -> [Mutation; 3] {
    [
        Mutation {
            what: "8 bits: one scale dropped",
            stored: Some(scaled),
            damage: |tiny| {
                let layout = of(tiny);
                without(tiny, layout.file, &layout.text_out.replace(".weight", ".scale_weight"));
            },
        },
        Mutation {
            what: "8 bits: all scales dropped",
            stored: Some(scaled),
            damage: |tiny| without(tiny, of(tiny).file, ".scale_weight"),
        },
        Mutation {
            what: "8 bits: all scales dropped, and the mark of scaled files",
            stored: Some(scaled),
            damage: |tiny| {
                without(tiny, of(tiny).file, ".scale_weight");
                without(tiny, of(tiny).file, "scaled_fp8");
            },
        },
    ]
}
