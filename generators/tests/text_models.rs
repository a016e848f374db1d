//! Encoders and decoders of text against transformers, from its own layout and from GGUF files.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make fixtures and fail loudly")]

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use larder_generators::models::{bert, llama};
use larder_generators::pipelines::RunError;
use larder_generators::pipelines::language::LanguageModel;
use larder_generators::weights::{Gguf, Placement, WeightSource, build};
use support::{Golden, assert_parity, difference, source};

fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn bert_is_that_of_transformers() {
    let golden = Golden::open("bert");
    let config: bert::Config = golden.config();
    for placement in [Placement::cpu(), Placement::cpu().streamed()] {
        let weights = source(&golden.checkpoint());
        let model = build("BERT", weights, placement, |w| bert::Encoder::new(&config, &w)).unwrap();
        for case in ["a", "b"] {
            let given = |what: &str| golden.tensor(&format!("{what}.{case}"));
            let mask = given("mask");
            let states = model.forward(&given("ids"), Some(&mask)).unwrap();
            let shown = mask.to_dtype(states.dtype()).unwrap().unsqueeze(2).unwrap();
            assert_parity(&format!("bert {case}"), &states.broadcast_mul(&shown).unwrap(), &given("out"));
            let mean = bert::mean(&states, &mask).unwrap();
            let length = mean.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
            assert_parity(&format!("bert mean {case}"), &mean.broadcast_div(&length).unwrap(), &given("mean"));
        }
    }
}

/// All scores of a text, read in pieces of `step` tokens.
fn scores(model: &llama::Decoder, ids: &Tensor, step: usize) -> Tensor {
    let mut cache = llama::Cache::default();
    let length = ids.dim(1).unwrap();
    let pieces: Vec<Tensor> = (0..length)
        .step_by(step)
        .map(|start| {
            let piece = ids.narrow(1, start, step.min(length - start)).unwrap();
            model.scores(&model.forward(&piece, &mut cache).unwrap()).unwrap()
        })
        .collect();
    assert_eq!(cache.length(), length);
    Tensor::cat(&pieces, 1).unwrap()
}

#[test]
fn decoders_are_those_of_transformers_read_at_once_and_token_by_token() {
    for name in ["llama", "qwen3"] {
        let golden = Golden::open(name);
        let config: llama::Config = golden.config();
        for placement in [Placement::cpu(), Placement::cpu().streamed(), Placement::cpu().packed()] {
            let weights = source(&golden.checkpoint());
            let model = build(name, weights, placement, |w| llama::Decoder::new(&config, &w)).unwrap();
            for case in ["a", "b"] {
                let (ids, expected) = (golden.tensor(&format!("ids.{case}")), golden.tensor(&format!("out.{case}")));
                for step in [ids.dim(1).unwrap(), 3, 1] {
                    assert_parity(&format!("{name} {case} by {step}"), &scores(&model, &ids, step), &expected);
                }
            }
        }
    }
}

#[test]
fn frequencies_of_all_three_kinds_are_scaled() {
    let golden = Golden::open("llama");
    let mut config: llama::Config = golden.config();
    let expected = golden.tensor("out.b");
    config.scaling = None;
    let model =
        build("llama", source(&golden.checkpoint()), Placement::cpu(), |w| llama::Decoder::new(&config, &w)).unwrap();
    let found = scores(&model, &golden.tensor("ids.b"), 12);
    assert!(difference(&found, &expected) > 1e-3, "the record would not show a lost scaling");
}

fn decoder_of(name: &str, placement: Placement) -> llama::Decoder {
    let gguf = Gguf::open(golden_file(name).join("model.gguf")).unwrap();
    let config = llama::Config::from_gguf(&gguf).unwrap();
    let weights = Arc::new(llama::from_gguf(Arc::new(gguf)));
    build(name, weights, placement, |w| llama::Decoder::new(&config, &w)).unwrap()
}

#[test]
fn decoders_from_gguf_files_are_those_of_transformers() {
    for name in ["gguf_llama", "gguf_qwen3"] {
        let golden = Golden::open(name);
        for placement in [Placement::cpu(), Placement::cpu().streamed()] {
            let model = decoder_of(name, placement);
            for case in ["a", "b"] {
                let (ids, expected) = (golden.tensor(&format!("ids.{case}")), golden.tensor(&format!("out.{case}")));
                assert_parity(&format!("{name} {case}"), &scores(&model, &ids, 4), &expected);
            }
        }
    }
}

#[test]
fn multiplying_in_blocks_differs_by_the_rounding_to_eight_bits_only() {
    let golden = Golden::open("gguf_qwen3");
    let model = decoder_of("gguf_qwen3", Placement::cpu().packed());
    for case in ["a", "b"] {
        let found = scores(&model, &golden.tensor(&format!("ids.{case}")), 4);
        let difference = difference(&found, &golden.tensor(&format!("out.{case}")));
        assert!(difference > 1e-5, "the blocks were decoded: {difference:.1e}");
        assert!(difference < 0.05, "{case} differs by {difference:.1e} of its scale");
    }
}

#[test]
fn the_likeliest_continuation_is_that_of_transformers() {
    for name in ["gguf_llama", "gguf_qwen3"] {
        let golden = Golden::open(name);
        let model = LanguageModel::open(golden_file(name).join("model.gguf"), Placement::cpu()).unwrap();
        for case in ["a", "b"] {
            let numbers = |what: &str| {
                let tensor = golden.tensor(&format!("{what}.{case}")).flatten_all().unwrap();
                tensor.to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect::<Vec<u32>>()
            };
            let mut seen = Vec::new();
            let mut watch = |progress: larder_generators::pipelines::Progress| {
                seen.push((progress.stage, progress.done));
                ControlFlow::Continue(())
            };
            let (found, finished) = model.continued(&numbers("ids"), 9, &mut watch).unwrap();
            assert_eq!((found, finished), (numbers("next"), false), "{name} {case}");
            assert_eq!(seen[0], ("read", 0));
            assert_eq!(seen.last(), Some(&("write", 9)));
        }
    }
}

#[test]
fn surprise_is_what_the_scores_of_transformers_say() {
    for name in ["gguf_llama", "gguf_qwen3"] {
        let golden = Golden::open(name);
        let model = LanguageModel::open(golden_file(name).join("model.gguf"), Placement::cpu()).unwrap();
        for case in ["a", "b"] {
            let ids = golden.tensor(&format!("ids.{case}")).flatten_all().unwrap().to_vec1::<i64>().unwrap();
            let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
            let scores: Vec<Vec<f32>> = golden.tensor(&format!("out.{case}")).squeeze(0).unwrap().to_vec2().unwrap();
            let expected: Vec<f64> = (1..ids.len())
                .map(|place| {
                    let row = &scores[place - 1];
                    let sum: f64 = row.iter().map(|score| f64::from(*score).exp()).sum();
                    sum.ln() - f64::from(row[ids[place] as usize])
                })
                .collect();
            let found = model.surprise(&ids, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{name} {case}: {found} is not {expected}");
            }
        }
        let mut on = |_| ControlFlow::Continue(());
        assert!(matches!(model.surprise(&[5], &mut on), Err(RunError::Length { tokens: 1, .. })));
        assert!(matches!(model.surprise(&[5, 6], &mut |_| ControlFlow::Break(())), Err(RunError::Stopped)));
    }
}

#[test]
fn a_folder_of_transformers_is_read_like_a_file() {
    let golden = Golden::open("qwen3");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    support::write(&at("model.safetensors"), &golden.checkpoint(), &[]);
    std::fs::write(at("config.json"), golden.json::<serde_json::Value>("config.json").to_string()).unwrap();
    let tokenizer = golden_file("tokenizers").join("clip_tokenizer.json");
    std::fs::copy(tokenizer, at("tokenizer.json")).unwrap();
    let ids = golden.tensor("ids.a").flatten_all().unwrap().to_vec1::<i64>().unwrap();
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let mut on = |_| ControlFlow::Continue(());
    let model = LanguageModel::open_folder(folder.path(), Placement::cpu()).unwrap();
    let (free, finished) = model.continued(&ids, 4, &mut on).unwrap();
    assert_eq!((free.len(), finished), (4, false));
    // The end that the folder names is where a text ends.
    for ends in [serde_json::json!(free[2]), serde_json::json!([1_000_000, free[2]])] {
        std::fs::write(at("generation_config.json"), serde_json::json!({"eos_token_id": ends}).to_string()).unwrap();
        let model = LanguageModel::open_folder(folder.path(), Placement::cpu()).unwrap();
        let first = free.iter().position(|id| *id == free[2]).unwrap();
        assert_eq!(model.continued(&ids, 4, &mut on).unwrap(), (free[..first].to_vec(), true));
    }
    std::fs::remove_file(at("tokenizer.json")).unwrap();
    let Err(error) = LanguageModel::open_folder(folder.path(), Placement::cpu()) else { panic!("it was opened") };
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("tokenizer.json"));
}

#[test]
fn a_run_is_stopped_and_refuses_what_is_too_long() {
    let model = LanguageModel::open(golden_file("gguf_llama/model.gguf"), Placement::cpu().packed()).unwrap();
    let mut calls = 0;
    let mut stop = |_| {
        calls += 1;
        if calls == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert!(matches!(model.continued(&[5, 6, 7], 100, &mut stop), Err(RunError::Stopped)));
    assert_eq!(calls, 4);
    let mut on = |_| ControlFlow::Continue(());
    assert!(matches!(model.continued(&[5, 6], 511, &mut on), Err(RunError::Length { tokens: 513, most: 512 })));
    assert!(matches!(model.continued(&[], 5, &mut on), Err(RunError::Length { .. })));
}

#[test]
fn a_gguf_of_another_architecture_is_refused_by_name() {
    let refused = LanguageModel::open(golden_file("gguf_kinds/kinds.gguf"), Placement::cpu());
    let Err(error) = refused else { panic!("it was opened") };
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "The configuration's general.architecture is missing or not supported (none)");
}

#[test]
fn weights_of_another_model_are_named_one_and_all() {
    let gguf = Gguf::open(golden_file("gguf_llama/model.gguf")).unwrap();
    let mut config = llama::Config::from_gguf(&gguf).unwrap();
    (config.layers, config.head_norms) = (1, true);
    let weights: Arc<dyn WeightSource> = Arc::new(llama::from_gguf(Arc::new(gguf)));
    let built = build("it", weights, Placement::cpu(), |w| llama::Decoder::new(&config, &w));
    let Err(error) = built else { panic!("it was built") };
    let text = error.to_string();
    for name in ["model.layers.0.self_attn.q_norm.weight is missing", "model.layers.1.mlp.down_proj.weight is not part"]
    {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn configurations_that_would_be_computed_wrongly_are_refused() {
    let golden = Golden::open("qwen3");
    let json: serde_json::Value = golden.json("config.json");
    for (key, value) in [
        ("use_sliding_window", serde_json::json!(true)),
        ("mlp_bias", serde_json::json!(true)),
        ("hidden_act", serde_json::json!("gelu")),
        ("model_type", serde_json::json!("gemma3")),
        ("num_key_value_heads", serde_json::json!(4)),
        ("rope_parameters", serde_json::json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0})),
    ] {
        let mut changed = json.clone();
        changed[key] = value;
        assert!(serde_json::from_value::<llama::Config>(changed).is_err(), "{key}");
    }
    let mut old = json.clone();
    old.as_object_mut().unwrap().remove("rope_parameters");
    old["rope_theta"] = serde_json::json!(1e6);
    old["rope_scaling"] = serde_json::Value::Null;
    let (old, new) = [old, json].map(|json| serde_json::from_value::<llama::Config>(json).unwrap()).into();
    assert_eq!(old, new, "the keys of transformers 4 and 5 say the same");
}
