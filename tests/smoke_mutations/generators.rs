//! Generators in folders of diffusers, and a vocoder.

use std::path::Path;

use larder::smoke::Level;
use serde_json::json;

use crate::damages::{in_eight_bits, redraw, swap, tensors, transpose, without, zero};
use crate::tiny_generators::{Tensors, Tiny};
use crate::{Family, Mutation, mutation};

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const SECOND_SHARD: &str = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

/// The second block of the transformer in a file of its own, and an index.
fn shard(tiny: &mut Tiny) {
    let whole = tiny.weights.remove(TRANSFORMER).unwrap();
    let (second, first): (Tensors, Tensors) =
        whole.into_iter().partition(|(name, _)| name.starts_with("transformer_blocks.1."));
    let mut map = serde_json::Map::new();
    let first_path = SECOND_SHARD.replace("00002-of", "00001-of");
    for (path, tensors) in [(&first_path, &first), (&SECOND_SHARD.to_owned(), &second)] {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        map.extend(tensors.keys().map(|tensor| (tensor.clone(), json!(name))));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string().into_bytes();
    tiny.settings.insert(format!("{TRANSFORMER}.index.json"), index);
    tiny.weights.insert(first_path, first);
    tiny.weights.insert(SECOND_SHARD.to_owned(), second);
}

/// Turns the sign of what lies between the two halves of the autoencoder: as good, and of another family.
fn turn_latents(tiny: &mut Tiny, layers: [&str; 2]) {
    for name in layers {
        let tensor = tensors(tiny, VAE).get_mut(name).unwrap();
        tensor.numbers.iter_mut().for_each(|number| *number = -*number);
    }
}

/// What can happen to any transformer and its parts.
fn of_all() -> Vec<Mutation> {
    vec![
        mutation("two tensors of one shape swapped: to_q and to_out of a block", |tiny| {
            let names = ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_out.0.weight"];
            let audio = names.map(|name| name.replace(".attn.", ".attn1."));
            let names = if tensors(tiny, TRANSFORMER).contains_key(names[0]) {
                names
            } else {
                audio.each_ref().map(String::as_str)
            };
            swap(tiny, TRANSFORMER, names);
        }),
        mutation("two tensors of different shapes swapped", |tiny| {
            swap(tiny, TRANSFORMER, ["proj_out.weight", "transformer_blocks.0.ff.net.2.weight"]);
        }),
        Mutation {
            what: "8 bits: one scale dropped",
            stored: Some(|tiny| in_eight_bits(tiny, TRANSFORMER, "")),
            damage: |tiny| without(tiny, TRANSFORMER, "blocks.0.ff.net.2.scale_weight"),
        },
        Mutation {
            what: "8 bits: all scales dropped",
            stored: Some(|tiny| in_eight_bits(tiny, TRANSFORMER, "")),
            damage: |tiny| without(tiny, TRANSFORMER, ".scale_weight"),
        },
        Mutation {
            what: "8 bits: all scales dropped, and the mark of scaled files",
            stored: Some(|tiny| in_eight_bits(tiny, TRANSFORMER, "")),
            damage: |tiny| {
                without(tiny, TRANSFORMER, ".scale_weight");
                without(tiny, TRANSFORMER, "scaled_fp8");
            },
        },
        mutation("a square matrix transposed: of the timestep's code", |tiny| {
            let name = ["time_text_embed.timestep_embedder.linear_2.weight", "timestep_proj.2.weight"]
                .into_iter()
                .find(|name| tiny.weights[TRANSFORMER].contains_key(*name));
            transpose(tiny, TRANSFORMER, name.unwrap(), true);
        }),
        mutation("a matrix transposed, and its header says so", |tiny| {
            transpose(tiny, TRANSFORMER, "proj_out.weight", true);
        }),
        mutation("a matrix transposed, and its header does not say so", |tiny| {
            transpose(tiny, TRANSFORMER, "proj_out.weight", false);
        }),
        Mutation {
            what: "one of two shards full of zeros",
            stored: Some(shard),
            damage: |tiny| zero(tensors(tiny, SECOND_SHARD), ""),
        },
        Mutation {
            what: "one of two shards missing",
            stored: Some(shard),
            damage: |tiny| drop(tiny.weights.remove(SECOND_SHARD)),
        },
        mutation("a tensor with an undefined number", |tiny| {
            tensors(tiny, TRANSFORMER).get_mut("transformer_blocks.1.ff.net.2.weight").unwrap().numbers[5] = f32::NAN;
        }),
        mutation("the autoencoder full of zeros", |tiny| zero(tensors(tiny, VAE), "")),
        mutation("the autoencoder untrained", |tiny| redraw(tensors(tiny, VAE), "")),
        mutation("only the autoencoder's decoder untrained", |tiny| redraw(tensors(tiny, VAE), "decoder.")),
        mutation("the transformer untrained", |tiny| redraw(tensors(tiny, TRANSFORMER), "")),
        mutation("the text encoder full of zeros", |tiny| zero(tensors(tiny, "text_encoder/model.safetensors"), "")),
        mutation("another text encoder of the same sizes", |tiny| {
            redraw(tensors(tiny, "text_encoder/model.safetensors"), "");
        }),
        mutation("random weights everywhere", |tiny| {
            let paths: Vec<String> = tiny.weights.keys().cloned().collect();
            paths.iter().for_each(|path| redraw(tensors(tiny, path), ""));
        }),
    ]
}

pub(crate) fn pictures() -> Family {
    let mut mutations = of_all();
    mutations.extend([
        mutation("two tensors of the autoencoder swapped", |tiny| {
            let names = ["decoder.up_blocks.0.upsamplers.0.conv.weight", "decoder.mid_block.resnets.0.conv1.weight"];
            swap(tiny, VAE, names);
        }),
        mutation("an autoencoder of more latent channels", |tiny| {
            let tensor = tensors(tiny, VAE).get_mut("encoder.conv_out.weight").unwrap();
            tensor.shape[0] *= 2;
            tensor.numbers = tensor.numbers.repeat(2);
        }),
        mutation("another autoencoder of the same sizes, trained: latents of another sign", |tiny| {
            turn_latents(tiny, ["encoder.conv_out.weight", "decoder.conv_in.weight"]);
        }),
        mutation("the two CLIP text encoders swapped", |tiny| {
            let [one, other] = ["text_encoder", "text_encoder_2"].map(|part| format!("{part}/model.safetensors"));
            let a = tiny.weights.remove(&one).unwrap();
            let b = tiny.weights.insert(other, a).unwrap();
            tiny.weights.insert(one, b);
        }),
        mutation("T5 full of zeros", |tiny| zero(tensors(tiny, "text_encoder_3/model.safetensors"), "")),
    ]);
    let levels = &[Level::Component, Level::Generate];
    Family {
        title: "Stable Diffusion 3.5",
        smoke: "stable-diffusion-3-any-size",
        levels,
        recorded: 2,
        base: Tiny::pictures,
        files: Tiny::files,
        mutations,
    }
}

pub(crate) fn sounds() -> Family {
    let mut mutations = of_all();
    mutations.extend([
        mutation("two tensors of the autoencoder swapped", |tiny| {
            swap(tiny, VAE, ["decoder.block.1.conv_t1.weight_g", "decoder.block.1.res_unit1.conv1.weight_g"]);
        }),
        mutation("another autoencoder of the same sizes, trained: latents of another sign", |tiny| {
            turn_latents(tiny, ["encoder.conv2.weight_v", "decoder.conv1.weight_v"]);
        }),
        mutation("the projection of times untrained", |tiny| {
            redraw(tensors(tiny, "projection_model/diffusion_pytorch_model.safetensors"), "");
        }),
    ]);
    let levels = &[Level::Component, Level::Generate];
    Family {
        title: "Stable Audio Open",
        smoke: "stable-audio-any-size",
        levels,
        recorded: 2,
        base: Tiny::sounds,
        files: Tiny::files,
        mutations,
    }
}

pub(crate) fn vocoder() -> Family {
    const FILE: &str = "bigvgan_generator.safetensors";
    let mutations = vec![
        mutation("two tensors of one shape swapped", |tiny| {
            swap(tiny, FILE, ["resblocks.0.convs1.0.weight", "resblocks.0.convs1.1.weight"]);
        }),
        mutation("two tensors of different shapes swapped", |tiny| {
            swap(tiny, FILE, ["resblocks.0.convs1.0.weight", "conv_post.weight"]);
        }),
        mutation("a convolution's inputs and outputs exchanged", |tiny| {
            let tensor = tensors(tiny, FILE).get_mut("resblocks.0.convs1.0.weight").unwrap();
            let (channels, taps) = (tensor.shape[0], tensor.shape[2]);
            let numbers = tensor.numbers.clone();
            for (i, kernel) in tensor.numbers.chunks_mut(taps).enumerate() {
                let other = i % channels * channels + i / channels;
                kernel.copy_from_slice(&numbers[other * taps..(other + 1) * taps]);
            }
        }),
        mutation("one block full of zeros", |tiny| zero(tensors(tiny, FILE), "resblocks.0.")),
        mutation("the last layer full of zeros", |tiny| zero(tensors(tiny, FILE), "conv_post.")),
        mutation("other random weights", |tiny| redraw(tensors(tiny, FILE), "")),
        mutation("the first layer random: deaf to the spectrogram", |tiny| redraw(tensors(tiny, FILE), "conv_pre.")),
        mutation("the bands of the spectrogram in reverse order", |tiny| {
            let tensor = tensors(tiny, FILE).get_mut("conv_pre.weight").unwrap();
            let (bands, taps) = (tensor.shape[1], tensor.shape[2]);
            for row in tensor.numbers.chunks_mut(bands * taps) {
                let reversed: Vec<f32> = row.chunks(taps).rev().flatten().copied().collect();
                row.copy_from_slice(&reversed);
            }
        }),
        mutation("the second lengthening full of zeros", |tiny| zero(tensors(tiny, FILE), "ups.1.")),
        mutation("a tensor with an undefined number", |tiny| {
            tensors(tiny, FILE).get_mut("resblocks.2.convs1.0.weight").unwrap().numbers[5] = f32::NAN;
        }),
        mutation("a tensor missing", |tiny| without(tiny, FILE, "resblocks.3.convs2.1.bias")),
    ];
    Family {
        title: "BigVGAN",
        smoke: "bigvgan",
        levels: &[Level::Component],
        recorded: 1,
        base: Tiny::vocoder,
        files: Tiny::files,
        mutations,
    }
}
