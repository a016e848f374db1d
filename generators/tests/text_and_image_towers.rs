//! CLIP, open_clip, T5 and UMT5 against transformers and open_clip.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use larder_generators::models::{clip, open_clip, t5};
use larder_generators::weights::{Placement, build};
use support::{Golden, assert_parity, source};

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

#[test]
fn the_t5_family_agrees_with_transformers() {
    for name in ["t5_relu", "t5_gated", "umt5"] {
        let golden = Golden::open(name);
        let config: t5::Config = golden.config();
        for placement in [Placement::cpu(), Placement::cpu().streamed()] {
            let new = |weights| t5::Encoder::new(&config, &weights);
            let model = build(name, source(&golden.checkpoint()), placement, new).unwrap();
            for case in ["a", "b"] {
                let recorded = recorded(&golden, case);
                let (ids, mask) = (recorded("ids"), recorded("mask"));
                assert_parity(name, &model.forward(&ids, Some(&mask)).unwrap(), &recorded("out"));
                assert_parity(name, &model.forward(&ids, None).unwrap(), &recorded("out.unmasked"));
            }
        }
    }
}
