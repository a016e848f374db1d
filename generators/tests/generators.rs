//! Whole generators from folders as model repositories have them: text in, picture or sound out, as diffusers has it.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make fixtures and fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use larder_generators::pipelines::{LoadError, Progress, RunError, stable_audio, stable_diffusion_3};
use larder_generators::samplers::noise::Noise;
use larder_generators::weights::{Fault, Placement, WeightsError};
use support::{Golden, assert_parity, difference, write};
use tempfile::TempDir;

fn tokenizer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers").join(name)
}

/// A folder in the diffusers layout.
struct Laid {
    folder: TempDir,
    golden: Golden,
    config: serde_json::Value,
}

impl Laid {
    /// The parts of `family` with their weights, and tokenizers.
    fn new(family: &str, tokenizers: &[(&str, &str)]) -> Self {
        let (folder, golden) = (tempfile::tempdir().unwrap(), Golden::open("pipeline_texts"));
        let config: serde_json::Value = golden.config();
        for (part, json) in config[family].as_object().unwrap() {
            let place = folder.path().join(part);
            std::fs::create_dir_all(&place).unwrap();
            let name = if part == "scheduler" { "scheduler_config.json" } else { "config.json" };
            std::fs::write(place.join(name), json.to_string()).unwrap();
            if part != "scheduler" {
                write(&weights(&place), &golden.checkpoint_of(&format!("{family}.{part}.json")), &[]);
            }
        }
        for (part, from) in tokenizers {
            let place = folder.path().join(part);
            std::fs::create_dir_all(&place).unwrap();
            for entry in std::fs::read_dir(tokenizer(from)).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
            }
        }
        Self { folder, golden, config }
    }

    fn sd3() -> Self {
        Self::new("sd3", &[("tokenizer", "clip_l"), ("tokenizer_2", "clip_g"), ("tokenizer_3", "t5")])
    }

    fn audio() -> Self {
        let laid = Self::new("audio", &[("tokenizer", "t5")]);
        std::fs::write(laid.folder.path().join("tokenizer/tokenizer_config.json"), r#"{"model_max_length": 19}"#)
            .unwrap();
        laid
    }

    fn text(&self, key: &str) -> &str {
        self.config[key].as_str().unwrap()
    }
}

fn weights(place: &Path) -> PathBuf {
    let text =
        place.ends_with("text_encoder") || place.ends_with("text_encoder_2") || place.ends_with("text_encoder_3");
    place.join(if text { "model.safetensors" } else { "diffusion_pytorch_model.safetensors" })
}

/// Goes on, and remembers what it heard.
#[derive(Default)]
struct Heard(Vec<Progress>);

impl Heard {
    fn hear(&mut self) -> impl FnMut(Progress) -> ControlFlow<()> {
        |progress| {
            self.0.push(progress);
            ControlFlow::Continue(())
        }
    }
}

#[test]
fn stable_diffusion_3_draws_from_text_what_diffusers_draws() {
    let laid = Laid::sd3();
    for placement in [Placement::cpu(), Placement::cpu().streamed()] {
        let files = stable_diffusion_3::Files::folder(laid.folder.path());
        let generator = stable_diffusion_3::Generator::open(files, placement).unwrap();
        assert_eq!(generator.noise_shape(20, 12).unwrap(), [1, 4, 6, 10]);
        let noise = laid.golden.tensor("sd3.noise");
        let (prompt, unwanted) = (laid.text("wanted"), laid.text("unwanted"));
        let request = stable_diffusion_3::Request { prompt, unwanted, steps: 2, scale: 4.5, noise: &noise };
        let mut heard = Heard::default();
        let picture = generator.picture(&request, &mut heard.hear()).unwrap();
        assert_parity("sd3 from text", &picture, &laid.golden.tensor("sd3.out"));
        let stages: Vec<(&str, usize)> = heard.0.iter().map(|progress| (progress.stage, progress.done)).collect();
        assert_eq!(stages, [("text", 0), ("text", 1), ("denoise", 0), ("denoise", 1), ("denoise", 2), ("decode", 0)]);
    }
}

#[test]
fn another_prompt_gives_another_picture() {
    let laid = Laid::sd3();
    let files = stable_diffusion_3::Files::folder(laid.folder.path());
    let generator = stable_diffusion_3::Generator::open(files, Placement::cpu()).unwrap();
    let noise = laid.golden.tensor("sd3.noise");
    let mut heard = Heard::default();
    let [one, other] = ["a cat", "a dog"].map(|prompt| {
        let request = stable_diffusion_3::Request { prompt, unwanted: "", steps: 1, scale: 0.0, noise: &noise };
        generator.picture(&request, &mut heard.hear()).unwrap()
    });
    assert!(difference(&other, &one) > 1e-4);
}

/// Some parts of a folder in one file, under the names and prefixes that it has for them; removes them from the folder.
fn single_file(laid: &Laid, family: &str, parts: &[(&str, &str)]) -> PathBuf {
    let mut tensors = BTreeMap::new();
    for (part, prefix) in parts {
        let name = format!("{family}.{part}");
        let own = laid.golden.recomposed_of(&format!("{name}.json"), &format!("{name}.single_file.json"));
        for (name, mut stored) in own {
            // What these programs shape otherwise.
            if name.ends_with(".alpha") || name.ends_with(".beta") {
                stored.1.retain(|&length| length != 1);
            } else if name.contains("attn_1") && stored.1.len() == 2 {
                stored.1.extend([1, 1]);
            } else if name == "timestep_features.weight" {
                stored.1.push(1);
            }
            tensors.insert(format!("{prefix}{name}"), stored);
        }
        std::fs::remove_file(weights(&laid.folder.path().join(part))).unwrap();
    }
    let file = laid.folder.path().join("single.safetensors");
    write(&file, &tensors, &[]);
    file
}

#[test]
fn a_single_file_draws_the_same_picture() {
    let laid = Laid::sd3();
    let checkpoint =
        Some(single_file(&laid, "sd3", &[("transformer", "model.diffusion_model."), ("vae", "first_stage_model.")]));
    let files = stable_diffusion_3::Files { checkpoint, ..stable_diffusion_3::Files::folder(laid.folder.path()) };
    let generator = stable_diffusion_3::Generator::open(files, Placement::cpu()).unwrap();
    let noise = laid.golden.tensor("sd3.noise");
    let (prompt, unwanted) = (laid.text("wanted"), laid.text("unwanted"));
    let request = stable_diffusion_3::Request { prompt, unwanted, steps: 2, scale: 4.5, noise: &noise };
    let picture = generator.picture(&request, &mut Heard::default().hear()).unwrap();
    assert_parity("sd3 from a single file", &picture, &laid.golden.tensor("sd3.out"));
}

#[test]
fn a_single_file_makes_the_same_sound() {
    let laid = Laid::audio();
    let parts = [
        ("transformer", "model.model."),
        ("projection_model", "conditioner.conditioners."),
        ("vae", "pretransform.model."),
    ];
    let checkpoint = Some(single_file(&laid, "audio", &parts));
    let files = stable_audio::Files { checkpoint, ..stable_audio::Files::folder(laid.folder.path()) };
    let generator = stable_audio::Generator::open(files, Placement::cpu()).unwrap();
    let prompt = laid.text("wanted");
    let request = stable_audio::Request { prompt, seconds: 5.3, steps: 3, scale: 2.5, noise: Noise::new(7) };
    let sound = generator.sound(&request, &mut Heard::default().hear()).unwrap();
    assert_parity("stable audio from a single file", &sound, &laid.golden.tensor("audio.out"));
}

#[test]
fn text_encoders_may_lie_in_files_of_their_own() {
    let laid = Laid::sd3();
    let mut files = stable_diffusion_3::Files::folder(laid.folder.path());
    for (i, part) in ["text_encoder", "text_encoder_2", "text_encoder_3"].into_iter().enumerate() {
        let file = laid.folder.path().join(format!("clip_{i}.safetensors"));
        std::fs::rename(weights(&laid.folder.path().join(part)), &file).unwrap();
        files.text_encoders[i] = Some(file);
    }
    stable_diffusion_3::Generator::open(files, Placement::cpu()).unwrap();
    let lost =
        stable_diffusion_3::Generator::open(stable_diffusion_3::Files::folder(laid.folder.path()), Placement::cpu());
    assert!(matches!(lost, Err(LoadError::Weights(WeightsError::NoWeights { .. }))));
}

#[test]
fn stable_audio_sounds_from_text_as_diffusers_does() {
    let laid = Laid::audio();
    let files = stable_audio::Files::folder(laid.folder.path());
    let generator = stable_audio::Generator::open(files, Placement::cpu()).unwrap();
    let first = Noise::new(7).tensor((1, 3, 11), &Device::Cpu).unwrap();
    assert_eq!(difference(&first, &laid.golden.tensor("audio.noise")), 0.0, "the stream of a seed");
    let prompt = laid.text("wanted");
    let request = stable_audio::Request { prompt, seconds: 5.3, steps: 3, scale: 2.5, noise: Noise::new(7) };
    let mut heard = Heard::default();
    let sound = generator.sound(&request, &mut heard.hear()).unwrap();
    assert_parity("stable audio from text", &sound, &laid.golden.tensor("audio.out"));
    assert_eq!(heard.0.len(), 6);
    assert_eq!(difference(&generator.sound(&request, &mut heard.hear()).unwrap(), &sound), 0.0, "the same seed");
    let other = stable_audio::Request { noise: Noise::new(8), ..request.clone() };
    assert!(difference(&generator.sound(&other, &mut heard.hear()).unwrap(), &sound) > 1e-3, "another seed");
    let long = stable_audio::Request { seconds: 8.9, ..request };
    assert!(matches!(generator.sound(&long, &mut heard.hear()), Err(RunError::Size { .. })));
}

#[test]
fn runs_are_stopped_between_steps_and_from_outside() {
    let laid = Laid::sd3();
    let placement = Placement::cpu();
    let stop = placement.stop.clone();
    let files = stable_diffusion_3::Files::folder(laid.folder.path());
    let generator = stable_diffusion_3::Generator::open(files, placement).unwrap();
    let noise = laid.golden.tensor("sd3.noise");
    let request = stable_diffusion_3::Request { prompt: "a", unwanted: "", steps: 2, scale: 1.0, noise: &noise };
    let mut after_one = |progress: Progress| match progress {
        Progress { stage: "denoise", done: 1, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    assert!(matches!(generator.picture(&request, &mut after_one), Err(RunError::Stopped)));
    let (mut steps, read) = (0, stop.reads());
    let mut outside = |progress: Progress| {
        steps += usize::from(progress.stage == "denoise");
        if progress.stage == "denoise" {
            stop.stop();
        }
        ControlFlow::Continue(())
    };
    assert!(matches!(generator.picture(&request, &mut outside), Err(RunError::Stopped)));
    assert_eq!(steps, 1, "the first step did not end");
    assert!(stop.reads() > read);
}

#[test]
fn a_wrong_part_is_named_when_the_generator_is_opened() {
    let laid = Laid::sd3();
    let (vae, encoder) = (laid.folder.path().join("vae"), laid.folder.path().join("text_encoder_2"));
    let mut tensors = laid.golden.checkpoint_of("sd3.vae.json");
    tensors.remove("decoder.conv_in.weight");
    tensors.remove("encoder.conv_out.bias");
    write(&weights(&vae), &tensors, &[]);
    let open = || {
        let files = stable_diffusion_3::Files::folder(laid.folder.path());
        stable_diffusion_3::Generator::open(files, Placement::cpu()).err().unwrap()
    };
    let LoadError::Weights(WeightsError::Unfit { model, faults }) = open() else { panic!("{}", open()) };
    let missing = faults.iter().filter(|fault| matches!(fault, Fault::Missing { .. })).count();
    assert_eq!((model.as_str(), missing, faults.len()), ("vae", 2, 2));
    std::fs::write(encoder.join("config.json"), "{").unwrap();
    let error = open().to_string();
    assert!(error.ends_with("text_encoder_2/config.json is not a configuration of the known form"), "{error}");
}

#[test]
fn sizes_that_cannot_be_drawn_are_refused() {
    let laid = Laid::sd3();
    let files = stable_diffusion_3::Files::folder(laid.folder.path());
    let generator = stable_diffusion_3::Generator::open(files, Placement::cpu()).unwrap();
    for (width, height) in [(0, 12), (18, 12), (20, 32)] {
        assert!(matches!(generator.noise_shape(width, height), Err(RunError::Size { .. })), "{width} by {height}");
    }
    let shape = generator.noise_shape(20, 12).unwrap();
    let noise = Noise::new(3).tensor(shape.as_slice(), &Device::Cpu).unwrap();
    let numbers: Vec<f32> = Tensor::flatten_all(&noise).unwrap().to_vec1().unwrap();
    let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
    let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / numbers.len() as f32;
    assert!(mean.abs() < 0.2 && (variance - 1.0).abs() < 0.3, "{mean} {variance}");
}
