//! CLIP, open_clip, T5 and UMT5 against transformers and open_clip.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make fixtures and fail loudly")]

mod support;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use larder_generators::models::{clip, open_clip, t5};
use larder_generators::pipelines::RunError;
use larder_generators::pipelines::matching::{Files, Matcher};
use larder_generators::weights::{Placement, build};
use serde_json::{Value, json};
use support::{Golden, assert_parity, f32_tensor, source, write};

fn recorded<'a>(golden: &'a Golden, case: &'a str) -> impl Fn(&str) -> Tensor + 'a {
    move |what| golden.tensor(&format!("{what}.{case}"))
}

#[test]
fn clip_agrees_with_transformers() {
    let golden = Golden::open("clip");
    let config: clip::Config = golden.config();
    let mut checkpoint = golden.checkpoint();
    // Older files carry these; they are numbers from 0 upwards.
    for tower in ["text_model", "vision_model"] {
        let name = format!("{tower}.embeddings.position_ids");
        checkpoint.insert(name, (safetensors::Dtype::I64, vec![1, 1], vec![0; 8]));
    }
    let new = |weights| clip::Clip::new(&config, &weights);
    let model = build("CLIP", source(&checkpoint), Placement::cpu(), new).unwrap();
    for case in ["a", "b"] {
        let recorded = recorded(&golden, case);
        let (ids, pixels) = (recorded("ids"), recorded("pixels"));
        assert_parity("clip last", &model.text().forward(&ids).unwrap().last, &recorded("out.last"));
        assert_parity("clip text", &model.text_features(&ids).unwrap(), &recorded("out.text"));
        assert_parity("clip image", &model.image_features(&pixels).unwrap(), &recorded("out.image"));
        assert_parity("clip logits", &model.logits(&pixels, &ids).unwrap(), &recorded("out.logits"));
    }
}

#[test]
fn clip_text_encoders_agree_with_transformers() {
    for name in ["clip_text_l", "clip_text_g"] {
        let golden = Golden::open(name);
        let config: clip::TextConfig = golden.config();
        let new = |weights| clip::TextEncoder::new(&config, &weights);
        let model = build(name, source(&golden.checkpoint()), Placement::cpu().streamed(), new).unwrap();
        for case in ["a", "b"] {
            let (states, pooled) = model.forward(&recorded(&golden, case)("ids")).unwrap();
            assert_parity(&format!("{name} states"), &states, &recorded(&golden, case)("out.states"));
            assert_parity(&format!("{name} pooled"), &pooled, &recorded(&golden, case)("out.pooled"));
        }
    }
}

#[test]
fn texts_that_do_not_fit_are_refused() {
    let golden = Golden::open("clip_text_l");
    let config: clip::TextConfig = golden.config();
    let new = |weights| clip::TextEncoder::new(&config, &weights);
    let model = build("CLIP-L", source(&golden.checkpoint()), Placement::cpu(), new).unwrap();
    let unknown = Tensor::new(&[[58_u32, 61]], &Device::Cpu).unwrap();
    let text = model.forward(&unknown).unwrap_err().to_string();
    assert!(text.contains("token_embedding.weight has 61 rows, row 61 was asked for"), "{text}");
    assert!(model.forward(&Tensor::zeros((1, 12), DType::U32, &Device::Cpu).unwrap()).is_err());
}

#[test]
fn open_clip_agrees_with_its_reference() {
    let golden = Golden::open("open_clip");
    let config = golden.config::<open_clip::Config>().model_cfg.to_clip();
    let weights = Arc::new(open_clip::renamed(source(&golden.checkpoint())));
    let new = |weights| clip::Clip::new(&config, &weights);
    let model = build("open_clip", weights, Placement::cpu(), new).unwrap();
    for case in ["a", "b"] {
        let recorded = recorded(&golden, case);
        assert_parity("open_clip text", &model.text_features(&recorded("ids")).unwrap(), &recorded("out.text"));
        assert_parity("open_clip image", &model.image_features(&recorded("pixels")).unwrap(), &recorded("out.image"));
    }
}

/// The recorded checkpoint as files of its own, with pictures shifted and scaled by these colours.
fn matcher(name: &str, mean: [f32; 3], std: [f32; 3]) -> Matcher {
    let golden = Golden::open(name);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("model.safetensors"), &golden.checkpoint(), &[]);
    let put = |name: &str, json: &Value| std::fs::write(at(name), json.to_string()).unwrap();
    let mut config: Value = golden.json("config.json");
    let weights = at("model.safetensors");
    let files = if name == "open_clip" {
        config["preprocess_cfg"] = json!({"mean": mean, "std": std});
        put("open_clip_config.json", &config);
        Files::OpenClip { config: at("open_clip_config.json"), weights }
    } else {
        put("config.json", &config);
        put("preprocessor_config.json", &json!({"image_mean": mean, "image_std": std}));
        Files::Transformers { config: at("config.json"), weights, preprocessor: Some(at("preprocessor_config.json")) }
    };
    Matcher::open(&files, Placement::cpu().streamed()).unwrap()
}

#[test]
fn matchers_shift_and_scale_pictures_and_give_directions_of_length_one() {
    let (mean, std) = ([0.5_f32, 0.25, 0.75], [0.5_f32, 0.25, 2.0]);
    for name in ["clip", "open_clip"] {
        let (golden, matcher) = (Golden::open(name), matcher(name, mean, std));
        let unit =
            |rows: Tensor| rows.broadcast_div(&rows.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap();
        for case in ["a", "b"] {
            let recorded = recorded(&golden, case);
            let wanted = recorded("pixels");
            assert_eq!(wanted.dim(2).unwrap(), matcher.side());
            let of = |numbers: [f32; 3]| Tensor::new(&numbers, &Device::Cpu).unwrap().reshape((1, 3, 1, 1)).unwrap();
            let shown = wanted.broadcast_mul(&of(std)).unwrap().broadcast_add(&of(mean)).unwrap();
            assert_parity(name, &matcher.pictures(&shown).unwrap(), &unit(recorded("out.image")));
            assert_parity(name, &matcher.texts(&recorded("ids")).unwrap(), &unit(recorded("out.text")));
        }
        matcher.stop().stop();
        let ended = matcher.texts(&recorded(&golden, "a")("ids"));
        assert!(matches!(ended, Err(RunError::Stopped)), "{name}");
    }
}

#[test]
fn the_t5_family_agrees_with_transformers() {
    for name in ["t5_relu", "t5_gated", "umt5"] {
        let golden = Golden::open(name);
        let config: t5::Config = golden.config();
        let mut whole = golden.checkpoint();
        // A whole T5, as its makers give it away: the decoder lies beside the encoder.
        for other in ["decoder.block.0.layer.0.SelfAttention.q.weight", "lm_head.weight"] {
            whole.insert(other.to_owned(), f32_tensor(&[3, 2], &[0.5; 6]));
        }
        for (placement, tensors) in [(Placement::cpu(), golden.checkpoint()), (Placement::cpu().streamed(), whole)] {
            let new = |weights| t5::Encoder::new(&config, &weights);
            let model = build(name, source(&tensors), placement, new).unwrap();
            for case in ["a", "b"] {
                let recorded = recorded(&golden, case);
                let (ids, mask) = (recorded("ids"), recorded("mask"));
                assert_parity(name, &model.forward(&ids, Some(&mask)).unwrap(), &recorded("out"));
                assert_parity(name, &model.forward(&ids, None).unwrap(), &recorded("out.unmasked"));
            }
        }
    }
}
