//! Whole generators against the pipelines of diffusers: same tokens, same noise, compared after every step.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use candle_core::{Result, Tensor};
use larder_generators::models::{autoencoder_kl, clip, oobleck, stable_audio, stable_diffusion_3, t5};
use larder_generators::pipelines;
use larder_generators::samplers::{cosine_dpm, flow_match_euler};
use larder_generators::weights::{Placement, Weights, build, without_weight_norm};
use serde::Deserialize;
use std::sync::Arc;
use support::{Golden, assert_parity, difference, source};

/// Builds one component of a recorded pipeline.
fn part<M>(golden: &Golden, name: &str, new: impl FnOnce(Weights) -> M) -> M {
    let weights = Arc::new(without_weight_norm(source(&golden.checkpoint_of(&format!("{name}.json")))));
    build(name, weights, Placement::cpu(), new).unwrap()
}

#[derive(Deserialize)]
struct Sd3 {
    text_encoder: clip::TextConfig,
    text_encoder_2: clip::TextConfig,
    text_encoder_3: t5::Config,
    transformer: stable_diffusion_3::Config,
    vae: autoencoder_kl::Config,
    scheduler: flow_match_euler::Config,
}

fn sd3_text(golden: &Golden, config: &Sd3) -> pipelines::stable_diffusion_3::TextEncoders {
    pipelines::stable_diffusion_3::TextEncoders {
        clip_l: part(golden, "text_encoder", |w| clip::TextEncoder::new(&config.text_encoder, &w)),
        clip_g: part(golden, "text_encoder_2", |w| clip::TextEncoder::new(&config.text_encoder_2, &w)),
        t5: Some(part(golden, "text_encoder_3", |w| t5::Encoder::new(&config.text_encoder_3, &w))),
        width: config.transformer.joint_attention_dim,
    }
}

fn sd3_prompt(golden: &Golden, name: &str) -> pipelines::stable_diffusion_3::Prompt {
    let ids = |tokenizer: &str| golden.tensor(&format!("{tokenizer}.{name}"));
    pipelines::stable_diffusion_3::Prompt {
        clip_l: ids("tokenizer"),
        clip_g: ids("tokenizer_2"),
        t5: ids("tokenizer_3"),
    }
}

#[test]
fn stable_diffusion_3_is_that_of_diffusers_at_every_step() {
    let golden = Golden::open("pipeline_sd3");
    let config: Sd3 = golden.config();
    let text = sd3_text(&golden, &config);
    let [wanted, unwanted] = ["wanted", "unwanted"].map(|name| {
        let found = text.encode(&sd3_prompt(&golden, name)).unwrap();
        assert_parity(&format!("text {name}"), &found.text, &golden.tensor(&format!("out.text.{name}")));
        assert_parity(&format!("pooled {name}"), &found.pooled, &golden.tensor(&format!("out.pooled.{name}")));
        found
    });
    let transformer = part(&golden, "transformer", |w| stable_diffusion_3::Transformer::new(&config.transformer, &w));
    let vae = part(&golden, "vae", |w| autoencoder_kl::Autoencoder::new(&config.vae, &w));
    for (case, scale) in [("a", 4.5), ("b", 0.0)] {
        let steps = golden.tensor(&format!("out.steps.{case}"));
        let schedule = flow_match_euler::FlowMatchEuler::new(&config.scheduler, steps.dim(0).unwrap(), None).unwrap();
        let guidance = pipelines::stable_diffusion_3::Guidance { wanted: &wanted, unwanted: Some(&unwanted), scale };
        let noise = golden.tensor(&format!("noise.{case}"));
        let run = || {
            let after = |i: usize, latent: &Tensor| {
                assert_parity(&format!("sd3 {case} step {i}"), latent, &steps.get(i)?);
                Ok(())
            };
            pipelines::stable_diffusion_3::denoise(&transformer, &schedule, &guidance, &noise, after).unwrap()
        };
        let latent = run();
        let picture = pipelines::stable_diffusion_3::picture(&vae, &latent).unwrap();
        assert_parity(&format!("sd3 {case} picture"), &picture, &golden.tensor(&format!("out.image.{case}")));
        assert_eq!(difference(&run(), &latent), 0.0, "the same noise gives the same latent");
    }
}

#[test]
fn an_error_from_the_caller_ends_a_run() {
    let golden = Golden::open("pipeline_sd3");
    let config: Sd3 = golden.config();
    let wanted = sd3_text(&golden, &config).encode(&sd3_prompt(&golden, "wanted")).unwrap();
    let transformer = part(&golden, "transformer", |w| stable_diffusion_3::Transformer::new(&config.transformer, &w));
    let schedule = flow_match_euler::FlowMatchEuler::new(&config.scheduler, 3, None).unwrap();
    let guidance = pipelines::stable_diffusion_3::Guidance { wanted: &wanted, unwanted: None, scale: 4.5 };
    let mut seen = Vec::new();
    let stop = |i: usize, _: &Tensor| {
        seen.push(i);
        if i == 1 { candle_core::bail!("Stopped") } else { Ok(()) }
    };
    let noise = golden.tensor("noise.a");
    let ended = pipelines::stable_diffusion_3::denoise(&transformer, &schedule, &guidance, &noise, stop);
    assert!(ended.unwrap_err().to_string().contains("Stopped"));
    assert_eq!(seen, [0, 1]);
}

#[derive(Deserialize)]
struct Audio {
    text_encoder: t5::Config,
    projection_model: stable_audio::ProjectionConfig,
    transformer: stable_audio::Config,
    vae: oobleck::Config,
    scheduler: cosine_dpm::Config,
    scale: std::collections::BTreeMap<String, f64>,
}

/// Gives the recorded noise and compares with the recorded steps.
struct Recorded<'a> {
    case: &'a str,
    fresh: Tensor,
    steps: Tensor,
}

impl pipelines::stable_audio::Steps for Recorded<'_> {
    fn fresh_noise(&mut self, step: usize) -> Result<Tensor> {
        self.fresh.get(step)
    }

    fn after(&mut self, step: usize, latent: &Tensor) -> Result<()> {
        assert_parity(&format!("stable audio {} step {step}", self.case), latent, &self.steps.get(step)?);
        Ok(())
    }
}

#[test]
fn stable_audio_is_that_of_diffusers_at_every_step() {
    let golden = Golden::open("pipeline_stable_audio");
    let config: Audio = golden.config();
    let t5 = part(&golden, "text_encoder", |w| t5::Encoder::new(&config.text_encoder, &w));
    let project = |w: Weights| stable_audio::Projection::new(&config.projection_model, &w);
    let projection = part(&golden, "projection_model", project);
    let transformer = part(&golden, "transformer", |w| stable_audio::Transformer::new(&config.transformer, &w));
    let vae = part(&golden, "vae", |w| oobleck::Autoencoder::new(&config.vae, &w));
    for (case, scale) in &config.scale {
        let recorded = |what: &str| golden.tensor(&format!("{what}.{case}"));
        let (start, end) = (recorded("start"), recorded("end"));
        let samples = [&start, &end].map(|seconds| {
            (f64::from(seconds.to_vec1::<f32>().unwrap()[0]) * config.vae.sampling_rate as f64) as usize
        });
        let prompt = pipelines::stable_audio::Prompt { ids: recorded("ids"), mask: recorded("mask"), start, end };
        let conditions = pipelines::stable_audio::encode(&t5, &projection, &prompt).unwrap();
        let (fresh, steps) = (recorded("fresh"), recorded("out.steps"));
        let schedule = cosine_dpm::CosineDpm::new(&config.scheduler, steps.dim(0).unwrap()).unwrap();
        let each = Recorded { case, fresh, steps };
        let guidance = (&conditions, *scale);
        let latent =
            pipelines::stable_audio::denoise(&transformer, schedule, guidance, &recorded("noise"), each).unwrap();
        let sound = pipelines::stable_audio::sound(&vae, &latent, samples).unwrap();
        assert_parity(&format!("stable audio {case} sound"), &sound, &recorded("out.sound"));
    }
}
