//! `larder smoke --level component` computes with real files; here with a tiny vocoder of random weights, which it must
//! tell from a trained one.
#![cfg(feature = "smoke")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

#[path = "support/program.rs"]
mod program;

use program::{INVENTORY, Lab};

const MANIFEST: &str = "[[artifact]]\nname = \"vocoder\"\nstore = \"plain\"\nsource = \"local\"\nsmoke = \"bigvgan\"\n\
                        file = [{ path = \"config.json\" }, { path = \"bigvgan_generator.safetensors\" }]\n";

fn golden(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generators/tests/golden/bigvgan");
    serde_json::from_slice(&fs_err::read(folder.join(name)).unwrap()).unwrap()
}

/// A lab with the tiny vocoder of `generators/`, without the tensors that begin with `without`.
fn lab(without: &str) -> Lab {
    let lab = Lab::new(INVENTORY, MANIFEST);
    let mut config = golden("config.json");
    for (key, value) in [("sampling_rate", 8000), ("n_fft", 48), ("hop_size", 12), ("win_size", 48)] {
        config[key] = json!(value);
    }
    lab.write("home/plain/config.json", config.to_string());
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 7_u32;
    let tensors: BTreeMap<String, Vec<usize>> = serde_json::from_value(golden("tensors.json")).unwrap();
    for (name, shape) in tensors.into_iter().filter(|(name, _)| without.is_empty() || !name.starts_with(without)) {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            data.extend(((state >> 16) as f32 / 65_536.0 - 0.5).to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    lab.write(
        "home/plain/bigvgan_generator.safetensors",
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat(),
    );
    lab
}

/// The outcomes of the checks of the level that computes, by name; the exit code; what was said on the way.
fn smoke(lab: &Lab, arguments: &[&str]) -> (BTreeMap<String, String>, i32, String) {
    let said = lab.run(&[&["smoke", "--json", "--level", "component"], arguments].concat());
    let json: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let checks = json["artifacts"][0]["checks"].as_array().unwrap().iter();
    let checks = checks
        .filter(|check| check["level"] == "component")
        .map(|check| (check["name"].as_str().unwrap().to_owned(), check["outcome"].as_str().unwrap().to_owned()));
    (checks.collect(), said.code, said.err)
}

#[test]
fn random_weights_make_a_sound_and_are_told_from_trained_ones() {
    let lab = lab("");
    let (checks, code, said) = smoke(&lab, &["--out", "made"]);
    let outcomes: Vec<_> = checks.iter().map(|(name, outcome)| (name.as_str(), outcome.as_str())).collect();
    assert_eq!(
        outcomes,
        [
            ("length", "passed"),
            ("numbers of the weights", "passed"),
            ("repeatable", "passed"),
            ("round trip", "failed"),
            ("round trip of another chord", "failed"),
            ("sound is finite", "passed"),
            ("sound is not constant", "passed"),
        ]
    );
    assert_eq!(code, 3);
    assert!(said.contains("vocoder: component needs 1.0 GiB of memory"), "{said}");
    let wav = fs_err::read(lab.path("made/vocoder/chord.wav")).unwrap();
    // 0.3 s at 8000 Hz, in whole frames of 12 samples of two bytes.
    assert!(wav.starts_with(b"RIFF") && wav.len() == 44 + 2 * 2400, "{}", wav.len());
}

#[test]
fn a_tensor_that_is_missing_is_a_fault_of_the_model_and_a_missing_gpu_is_not() {
    let lab = lab("conv_post");
    let (checks, code, _) = smoke(&lab, &[]);
    assert_eq!((checks, code), (BTreeMap::from([("weights".to_owned(), "failed".to_owned())]), 3));
    if cfg!(not(feature = "cuda")) {
        let (checks, code, _) = smoke(&lab, &["--device", "cuda"]);
        assert_eq!((checks, code), (BTreeMap::from([("machine".to_owned(), "environment-fault".to_owned())]), 4));
    }
}
