//! Settings are foreign input: whatever they say, building a model of them ends in an answer and never in a panic.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use larder_generators::models::settings::Settings;
use larder_generators::models::{autoencoder_kl, bert, bigvgan, clip, oobleck, open_clip, stable_audio};
use larder_generators::models::{stable_diffusion_3, t5};
use larder_generators::weights::{Placement, Weights, build};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::{Golden, f32_tensor, source};

/// The settings with one number, or one list, exchanged for something that no model has.
fn damaged(value: &Value) -> Vec<Value> {
    match value {
        Value::Number(_) => [0_u64, 1, 3, 7, 1 << 30, 1 << 62].map(Value::from).into(),
        Value::Array(items) => {
            let shorter = items.iter().take(items.len().saturating_sub(1)).cloned().collect();
            let longer = items.iter().chain(items.first()).cloned().collect();
            let inside = items.iter().enumerate().flat_map(|(i, item)| {
                damaged(item).into_iter().map(move |other| {
                    let mut items = items.clone();
                    items[i] = other;
                    Value::Array(items)
                })
            });
            [json!([]), Value::Array(shorter), Value::Array(longer)].into_iter().chain(inside).collect()
        }
        Value::Object(fields) => {
            let of_one = |(key, field): (&String, &Value)| {
                let (key, fields) = (key.clone(), fields.clone());
                damaged(field).into_iter().map(move |other| {
                    let mut fields = fields.clone();
                    fields.insert(key.clone(), other);
                    Value::Object(fields)
                })
            };
            fields.iter().flat_map(of_one).collect()
        }
        _ => Vec::new(),
    }
}

/// Builds a model of every damaged copy of `settings`; returns how many were refused as settings.
fn try_all<C: DeserializeOwned + Settings, M>(settings: &Value, new: impl Fn(&C, &Weights) -> M) -> usize {
    let right: C = serde_json::from_value(settings.clone()).unwrap();
    right.check().unwrap();
    let nothing = source(&BTreeMap::from([("other".to_owned(), f32_tensor(&[1], &[0.5]))]));
    let mut refused = 0;
    for other in damaged(settings) {
        let Ok(config) = serde_json::from_value::<C>(other.clone()) else { continue };
        if config.check().is_err() {
            refused += 1;
            continue;
        }
        let built = || build("it", nothing.clone(), Placement::cpu(), |weights| new(&config, &weights)).is_err();
        assert!(catch_unwind(AssertUnwindSafe(built)).unwrap_or_else(|_| panic!("a panic: {other}")), "{other}");
    }
    refused
}

#[test]
fn no_settings_make_a_model_panic_while_it_is_built() {
    let of = |name: &str| Golden::open(name).config::<Value>();
    let refused = [
        try_all(&of("autoencoder_kl"), autoencoder_kl::Autoencoder::new),
        try_all(&of("bert"), bert::Encoder::new),
        try_all(&of("bigvgan"), bigvgan::Vocoder::new),
        try_all(&of("clip"), clip::Clip::new),
        try_all(&of("clip_text_l"), clip::TextEncoder::new),
        try_all(&of("oobleck"), oobleck::Autoencoder::new),
        try_all(&of("open_clip"), |config: &open_clip::Config, weights| {
            clip::Clip::new(&config.model_cfg.to_clip(), weights)
        }),
        try_all(&of("stable_audio"), stable_audio::Transformer::new),
        try_all(&of("stable_audio_projection"), stable_audio::Projection::new),
        try_all(&of("sd35_large"), stable_diffusion_3::Transformer::new),
        try_all(&of("t5_gated"), t5::Encoder::new),
    ];
    assert!(refused.iter().all(|refused| *refused > 3), "{refused:?}");
}
