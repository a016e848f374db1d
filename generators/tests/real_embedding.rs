//! The genuine all-MiniLM-L6-v2, as its wheel brings it, embeds sentences as the reference does.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::ops::ControlFlow;

use larder_generators::pipelines::sentence_embedding::Embedder;
use larder_generators::weights::Placement;
use support::{Golden, part};

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[test]
fn genuine_weights_embed_as_transformers_does() {
    let Some(folder) = part("minilm/config.json") else { return };
    let embedder = Embedder::open(folder.parent().unwrap(), Placement::cpu()).unwrap();
    let golden = Golden::open("minilm");
    let sentences: Vec<String> = golden.json("config.json");
    let sentences: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let mut stages = Vec::new();
    let mut watch = |progress: larder_generators::pipelines::Progress| {
        stages.push(progress.done);
        ControlFlow::Continue(())
    };
    let found = embedder.embed(&sentences, &mut watch).unwrap();
    assert_eq!(stages, (0..sentences.len()).collect::<Vec<_>>());
    let expected: Vec<Vec<f32>> = golden.tensor("embeddings").to_vec2().unwrap();
    for (text, (found, expected)) in sentences.iter().zip(found.iter().zip(&expected)) {
        let worst = found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 1e-4, "{text:?} differs by {worst:.1e}");
        assert!((cosine(found, found) - 1.0).abs() < 1e-5);
    }
    // What the model's own documentation prints for its three sentences.
    let similarity = [(0, 1), (0, 2), (1, 2)].map(|(a, b)| cosine(&found[a], &found[b]));
    for (found, expected) in similarity.into_iter().zip([0.6660, 0.1046, 0.1411]) {
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }
}
