//! At the size of the real models, every tensor of the reference classes is claimed, with its shape, and no other.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use larder_generators::models::{
    autoencoder_kl, bigvgan, clip, oobleck, open_clip, stable_audio, stable_diffusion_3, t5,
};
use larder_generators::weights::{Fault, Placement, WeightSource, Weights, WeightsError, build};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use support::Golden;

#[derive(Deserialize)]
struct Listed {
    config: serde_json::Value,
    /// Name with `#` for a number, shape, first number, last number.
    tensors: Vec<(String, Vec<usize>, usize, usize)>,
}

/// A checkpoint of which only the header is there.
struct Header(BTreeMap<String, Vec<usize>>);

impl WeightSource for Header {
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.0.clone()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).cloned()
    }

    fn faults(&self) -> Vec<Fault> {
        Vec::new()
    }

    fn fault_of(&self, _: &str) -> Option<Fault> {
        None
    }

    fn read_rows(&self, name: &str, _: Range<usize>, _: &mut [f32]) -> Result<(), WeightsError> {
        Err(WeightsError::NoSuchTensor { name: name.to_owned() })
    }
}

/// Builds one of the listed models and returns how many tensors and numbers it has.
fn built<C: DeserializeOwned, M>(
    name: &str,
    rename: impl FnOnce(Arc<dyn WeightSource>) -> Arc<dyn WeightSource>,
    new: impl FnOnce(&C, &Weights) -> M,
) -> (usize, usize) {
    let listed = Golden::open("real").config::<BTreeMap<String, Listed>>().remove(name).unwrap();
    let tensors = listed.tensors.iter().flat_map(|(name, shape, first, last)| {
        (*first..=*last).map(|number| (name.replacen('#', &number.to_string(), 1), shape.clone()))
    });
    let header = Header(tensors.collect());
    let counts = (header.0.len(), header.0.values().map(|shape| shape.iter().product::<usize>()).sum());
    let config: C = serde_json::from_value(listed.config).unwrap();
    let source = rename(Arc::new(header));
    build(name, source, Placement::cpu(), |weights| new(&config, &weights)).unwrap();
    counts
}

fn as_it_is(source: Arc<dyn WeightSource>) -> Arc<dyn WeightSource> {
    source
}

#[test]
fn stable_diffusion_3_5() {
    let transformer = stable_diffusion_3::Transformer::new;
    assert_eq!(built("sd35_large", as_it_is, transformer), (1227, 8_146_280_768));
    built("sd35_medium", as_it_is, transformer);
    assert_eq!(built("sd35_vae", as_it_is, autoencoder_kl::Autoencoder::new).0, 244);
    assert_eq!(built("clip_l", as_it_is, clip::TextEncoder::new).0, 197);
    assert_eq!(built("clip_g", as_it_is, clip::TextEncoder::new).0, 517);
    assert_eq!(built("t5_xxl", as_it_is, t5::Encoder::new).0, 219);
}

#[test]
fn stable_audio_open() {
    assert_eq!(built("stable_audio", as_it_is, stable_audio::Transformer::new).0, 445);
    assert_eq!(built("oobleck", |source| Arc::new(oobleck::from_folder(source)), oobleck::Autoencoder::new).0, 365);
    built("t5_base", as_it_is, t5::Encoder::new);
}

#[test]
fn towers_and_vocoder() {
    built("clip_vit_l14", as_it_is, clip::Clip::new);
    let new = |config: &open_clip::Config, weights: &Weights| clip::Clip::new(&config.model_cfg.to_clip(), weights);
    assert_eq!(built("dfn5b", |source| Arc::new(open_clip::renamed(source)), new).0, 686);
    assert_eq!(built("bigvgan", as_it_is, bigvgan::Vocoder::new).0, 667);
}
