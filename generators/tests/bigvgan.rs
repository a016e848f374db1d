//! BigVGAN against the class in diffusers, with weight norm folded and as NVIDIA stores it.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::sync::Arc;

use larder_generators::models::bigvgan::{Config, Vocoder};
use larder_generators::weights::{Placement, WeightSource, build, without_weight_norm};
use support::{Golden, assert_parity, source};

fn agrees(kind: &str, weights: Arc<dyn WeightSource>) {
    let golden = Golden::open("bigvgan");
    let config: Config = golden.config();
    let model = build("BigVGAN", weights, Placement::cpu(), |weights| Vocoder::new(&config, &weights)).unwrap();
    for case in ["a", "b"] {
        let wave = model.forward(&golden.tensor(&format!("mel.{case}"))).unwrap();
        assert_parity(&format!("bigvgan {kind} {case}"), &wave, &golden.tensor(&format!("out.{kind}.{case}")));
    }
}

#[test]
fn folded_weights_agree_with_diffusers() {
    agrees("folded", source(&Golden::open("bigvgan").checkpoint()));
}

#[test]
fn stored_filters_are_not_needed_and_not_in_the_way() {
    let mut checkpoint = Golden::open("bigvgan").checkpoint();
    checkpoint.insert("activation_post.upsample.filter".to_owned(), support::f32_tensor(&[1, 1, 12], &[0.0; 12]));
    agrees("folded", source(&checkpoint));
}

#[test]
fn weight_norm_folds_under_both_of_its_names() {
    let normed = Golden::open("bigvgan").checkpoint_of("normed.json");
    agrees("normed", Arc::new(without_weight_norm(source(&normed))));
    let renamed = normed.into_iter().map(|(name, stored)| {
        let name = name.replace("weight_g", "parametrizations.weight.original0");
        (name.replace("weight_v", "parametrizations.weight.original1"), stored)
    });
    agrees("normed", Arc::new(without_weight_norm(source(&renamed.collect()))));
}

#[test]
fn an_activation_that_is_not_known_is_refused() {
    let config = r#"{"num_mels":1,"upsample_initial_channel":2,"upsample_rates":[],"upsample_kernel_sizes":[],
        "resblock_kernel_sizes":[],"resblock_dilation_sizes":[],"activation":"relu"}"#;
    assert!(serde_json::from_str::<Config>(config).unwrap_err().to_string().contains("unknown variant `relu`"));
}
