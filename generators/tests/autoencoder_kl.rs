//! The image autoencoder against diffusers, under all the names that its tensors have had.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::sync::Arc;

use candle_core::Tensor;
use larder_generators::models::autoencoder_kl::{Autoencoder, Config, from_old_names, from_single_file};
use larder_generators::weights::{Placement, WeightSource, build};
use support::{Golden, assert_parity, difference, source};

fn autoencoder(golden: &Golden, source: Arc<dyn WeightSource>) -> Autoencoder {
    let config: Config = golden.config();
    build("autoencoder", source, Placement::cpu(), |weights| Autoencoder::new(&config, &weights)).unwrap()
}

#[test]
fn both_halves_agree_with_diffusers() {
    for (name, cases) in [("autoencoder_kl", &["a", "b"][..]), ("autoencoder_kl_quant", &["a"])] {
        let golden = Golden::open(name);
        let model = autoencoder(&golden, source(&golden.checkpoint()));
        for case in cases {
            let recorded = |what: &str| golden.tensor(&format!("{what}.{case}"));
            let image = model.decode(&recorded("latent")).unwrap();
            assert_parity(&format!("{name} decode {case}"), &image, &recorded("out.image"));
            let (mean, logvar) = model.encode(&recorded("image")).unwrap();
            assert_parity(&format!("{name} mean {case}"), &mean, &recorded("out.mean"));
            assert_parity(&format!("{name} logvar {case}"), &logvar, &recorded("out.logvar"));
        }
    }
}

#[test]
fn the_first_names_give_the_same_image() {
    let golden = Golden::open("autoencoder_kl");
    let mut single = golden.recomposed("single_file.json");
    for (name, (_, shape, _)) in &mut single {
        if name.contains("attn_1") && shape.len() == 2 {
            shape.extend([1, 1]);
        }
    }
    let old = golden.checkpoint().into_iter().map(|(name, stored)| {
        let name = name.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value");
        (name.replace("to_out.0", "proj_attn"), stored)
    });
    let today = autoencoder(&golden, source(&golden.checkpoint()));
    let single = autoencoder(&golden, Arc::new(from_single_file(source(&single), 3)));
    let old = autoencoder(&golden, Arc::new(from_old_names(source(&old.collect()))));
    let image = |model: &Autoencoder| model.decode(&golden.tensor("latent.a")).unwrap();
    let mean = |model: &Autoencoder| model.encode(&golden.tensor("image.a")).unwrap().0;
    for other in [&single, &old] {
        assert_eq!(difference(&image(other), &image(&today)), 0.0);
        assert_eq!(difference(&mean(other), &mean(&today)), 0.0);
    }
}

#[test]
fn scaling_is_what_the_pipelines_do_and_undoes_itself() {
    let golden = Golden::open("autoencoder_kl");
    let model = autoencoder(&golden, source(&golden.checkpoint()));
    let latent = golden.tensor("latent.a");
    let scaled = model.scaled(&latent).unwrap();
    let expected: Tensor = ((&latent - 0.0609).unwrap() * 1.5305).unwrap();
    assert_parity("scaled", &scaled, &expected);
    assert_parity("unscaled", &model.unscaled(&scaled).unwrap(), &latent);
}
