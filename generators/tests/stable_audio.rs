//! Stable Audio against diffusers, in both layouts.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use larder_generators::models::{oobleck, stable_audio};
use larder_generators::weights::{Placement, Stop, WeightSource, build};
use support::{Golden, Stored, assert_parity, difference, source};

fn transformer(golden: &Golden, weights: Arc<dyn WeightSource>, placement: Placement) -> stable_audio::Transformer {
    let config: stable_audio::Config = golden.config();
    build("Stable Audio", weights, placement, |weights| stable_audio::Transformer::new(&config, &weights)).unwrap()
}

fn denoise(model: &stable_audio::Transformer, golden: &Golden, case: &str) -> Tensor {
    let input = |name: &str| golden.tensor(&format!("{name}.{case}"));
    model.forward(&input("latent"), &input("timestep"), &input("text"), &input("durations")).unwrap()
}

#[test]
fn the_transformer_agrees_with_diffusers() {
    let golden = Golden::open("stable_audio");
    for placement in [Placement::cpu(), Placement::cpu().streamed()] {
        let model = transformer(&golden, source(&golden.checkpoint()), placement);
        for case in ["a", "b"] {
            let out = golden.tensor(&format!("out.{case}"));
            assert_parity(&format!("stable_audio {case}"), &denoise(&model, &golden, case), &out);
        }
    }
}

/// A record proves nothing about a tensor that its outputs do not depend on.
#[test]
fn the_record_depends_on_every_tensor() {
    let golden = Golden::open("stable_audio");
    let checkpoint = golden.checkpoint();
    for name in checkpoint.keys() {
        let mut changed = checkpoint.clone();
        let (_, _, bytes) = changed.get_mut(name).unwrap();
        let numbers = bytes.len() / 4;
        bytes.rotate_left(numbers / 2 * 4);
        let model = transformer(&golden, source(&changed), Placement::cpu());
        let difference = difference(&denoise(&model, &golden, "a"), &golden.tensor("out.a"));
        assert!(difference > 1e-4, "{name} makes a difference of {difference:.1e} only");
    }
}

#[test]
fn the_transformer_of_a_single_file_gives_the_same_output() {
    let golden = Golden::open("stable_audio");
    let mut single = golden.recomposed("single_file.json");
    // stable-audio-tools keeps the frequencies as a column, and a table that follows from the head's width.
    single.get_mut("timestep_features.weight").unwrap().1.push(1);
    single.insert("transformer.rotary_pos_emb.inv_freq".to_owned(), support::f32_tensor(&[3], &[0.0; 3]));
    let folder = transformer(&golden, source(&golden.checkpoint()), Placement::cpu());
    let renamed = Arc::new(stable_audio::from_single_file(source(&single)));
    let file = transformer(&golden, renamed, Placement::cpu());
    for case in ["a", "b"] {
        assert_eq!(difference(&denoise(&file, &golden, case), &denoise(&folder, &golden, case)), 0.0);
    }
}

#[test]
fn the_projection_agrees_with_diffusers_in_both_layouts() {
    for name in ["stable_audio_projection", "stable_audio_projection_linear"] {
        let golden = Golden::open(name);
        let config: stable_audio::ProjectionConfig = golden.config();
        let single = source(&golden.recomposed("single_file.json"));
        let single: Arc<dyn WeightSource> = Arc::new(stable_audio::projection_from_single_file(single));
        for weights in [source(&golden.checkpoint()), single] {
            let new = |weights| stable_audio::Projection::new(&config, &weights);
            let model = build(name, weights, Placement::cpu(), new).unwrap();
            for case in ["a", "b"] {
                let recorded = |what: &str| golden.tensor(&format!("{what}.{case}"));
                let times = [&recorded("start"), &recorded("end")];
                let found = model.forward(&recorded("text"), &recorded("mask"), times).unwrap();
                assert_parity(&format!("{name} text"), &found.text, &recorded("out.text"));
                assert_parity(&format!("{name} durations"), &found.durations, &recorded("out.durations"));
            }
        }
    }
}

fn autoencoder(golden: &Golden, weights: Arc<dyn WeightSource>) -> oobleck::Autoencoder {
    autoencoder_at(golden, Placement::cpu(), weights)
}

fn autoencoder_at(golden: &Golden, placement: Placement, weights: Arc<dyn WeightSource>) -> oobleck::Autoencoder {
    let config: oobleck::Config = golden.config();
    build("Oobleck", weights, placement, |weights| oobleck::Autoencoder::new(&config, &weights)).unwrap()
}

#[test]
fn the_autoencoder_agrees_with_diffusers_in_both_layouts() {
    let golden = Golden::open("oobleck");
    let mut single: BTreeMap<String, Stored> = golden.recomposed("single_file.json");
    for (name, (_, shape, _)) in &mut single {
        if name.ends_with("alpha") || name.ends_with("beta") {
            shape.retain(|&length| length != 1);
        }
    }
    let folder = autoencoder(&golden, Arc::new(oobleck::from_folder(source(&golden.checkpoint()))));
    let file = autoencoder(&golden, Arc::new(oobleck::from_single_file(source(&single), 2)));
    for model in [folder, file] {
        for case in ["a", "b"] {
            let recorded = |what: &str| golden.tensor(&format!("{what}.{case}"));
            let sound = model.decode(&recorded("latent")).unwrap();
            assert_parity(&format!("oobleck decode {case}"), &sound, &recorded("out.sound"));
            let (mean, deviation) = model.encode(&recorded("sound")).unwrap();
            assert_parity(&format!("oobleck mean {case}"), &mean, &recorded("out.mean"));
            assert_parity(&format!("oobleck std {case}"), &deviation, &recorded("out.std"));
        }
    }
}

#[test]
fn a_long_latent_decoded_in_pieces_is_that_of_the_whole() {
    let golden = Golden::open("oobleck_long");
    let model = autoencoder(&golden, Arc::new(oobleck::from_folder(source(&golden.checkpoint()))));
    let sound = model.decode(&golden.tensor("latent.a")).unwrap();
    assert_parity("oobleck in pieces", &sound, &golden.tensor("out.sound.a"));
}

#[test]
fn a_part_of_a_sound_is_computed_without_the_rest() {
    let golden = Golden::open("oobleck_long");
    let latent = golden.tensor("latent.a");
    let whole = golden.tensor("out.sound.a");
    let length = whole.dim(2).unwrap();
    for [from, to] in [[0, 7], [3, 41], [length - 9, length], [0, length], [length / 2, length / 2 + 300]] {
        let stop = Stop::default();
        let placement = Placement { stop: stop.clone(), ..Placement::cpu() };
        let model = autoencoder_at(&golden, placement, Arc::new(oobleck::from_folder(source(&golden.checkpoint()))));
        let part = model.decode_part(&latent, [from, to]).unwrap();
        assert_parity("part of a sound", &part, &whole.narrow(2, from, to - from).unwrap());
        // Every piece reads all of the decoder's tensors.
        let reads = stop.reads();
        model.decode(&latent).unwrap();
        let of_the_whole = stop.reads() - reads;
        assert_eq!(reads < of_the_whole, to - from < length, "{reads} of {of_the_whole}");
    }
    let model = autoencoder(&golden, Arc::new(oobleck::from_folder(source(&golden.checkpoint()))));
    assert!(model.decode_part(&latent, [0, length + 1]).is_err());
}
