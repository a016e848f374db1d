//! Layers of the real models' sizes, read from files of holes, run in the memory that smoke tests promise.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make fixtures and fail loudly")]
#![expect(clippy::print_stderr, reason = "what was measured goes into docs/performance.md")]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use larder_generators::models::{autoencoder_kl, oobleck, stable_audio, stable_diffusion_3, t5};
use larder_generators::weights::{Checkpoint, Placement, WeightSource, Weights, build};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use support::Golden;

/// Blocks that are run of each model: memory is that of one block, however many there are.
const BLOCKS: usize = 2;
/// What smoke tests promise, activations included.
const MOST: u64 = 2 << 30;

#[derive(Deserialize)]
struct Listed {
    config: serde_json::Value,
    /// Name with `#` for a number, shape, first number, last number.
    tensors: Vec<(String, Vec<usize>, usize, usize)>,
}

/// The shapes of a listed model, of its blocks only the first and the last: `blocks` is how their names begin.
fn shortened(listed: &Listed, blocks: Option<&str>) -> BTreeMap<String, Vec<usize>> {
    let is_block = |name: &str| blocks.is_some_and(|blocks| name.starts_with(blocks));
    let last = listed.tensors.iter().filter(|(name, ..)| is_block(name)).map(|(.., last)| *last).max().unwrap_or(0);
    let mut shapes = BTreeMap::new();
    for (name, shape, first, to) in &listed.tensors {
        for number in *first..=*to {
            let number = match number {
                0 => 0,
                number if !is_block(name) => number,
                number if number == last => BLOCKS - 1,
                _ => continue,
            };
            shapes.insert(name.replacen('#', &number.to_string(), 1), shape.clone());
        }
    }
    shapes
}

/// A file of half-precision zeros that takes no room on the disk.
fn sparse(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) {
    let mut end = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] }));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

/// Makes a model of holes and runs it.
fn run<C: DeserializeOwned, M>(
    name: &str,
    blocks: Option<&str>,
    rename: impl FnOnce(Arc<dyn WeightSource>) -> Arc<dyn WeightSource>,
    new: impl FnOnce(&C, &Weights) -> M,
    forward: impl FnOnce(&M) -> candle_core::Result<Tensor>,
) {
    let mut listed = Golden::open("real").config::<BTreeMap<String, Listed>>().remove(name).unwrap();
    let shapes = shortened(&listed, blocks);
    if blocks.is_some() {
        listed.config["num_layers"] = json!(BLOCKS);
    }
    let config: C = serde_json::from_value(listed.config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    sparse(&path, &shapes);
    let source = rename(Arc::new(Checkpoint::open(path).unwrap()));
    let model = build(name, source, Placement::cpu().streamed(), |weights| new(&config, &weights)).unwrap();
    let peak = peak_of(|| forward(&model).unwrap());
    eprintln!("{name}: {} tensors, at most {} MiB of anonymous memory", shapes.len(), peak >> 20);
    assert!(peak < MOST, "{name}: {peak}");
}

/// The most anonymous memory of this process during `work`, looked at every millisecond.
fn peak_of<T>(work: impl FnOnce() -> T) -> u64 {
    let peak = AtomicU64::new(0);
    let look = || peak.fetch_max(anonymous(), Ordering::Relaxed);
    std::thread::scope(|scope| {
        let (done, waiting) = mpsc::channel::<()>();
        scope.spawn(move || {
            while waiting.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
                look();
            }
        });
        drop(work());
        look();
        drop(done);
    });
    peak.into_inner()
}

fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn what_a_smoke_test_runs_fits_into_two_gibibytes() {
    let as_it_is = |source| source;
    let words = |length: usize| Tensor::zeros((1, length), DType::U32, &Device::Cpu).unwrap();
    // Two texts of 333 words and pictures of 256 by 256 pixels, as the smoke test guides them.
    run("sd35_large", Some("transformer_blocks."), as_it_is, stable_diffusion_3::Transformer::new, |model| {
        model.forward(&zeros(&[2, 16, 32, 32]), &zeros(&[2]), &zeros(&[2, 333, 4096]), &zeros(&[2, 2048]))
    });
    run("sd35_vae", None, as_it_is, autoencoder_kl::Autoencoder::new, |model| model.decode(&zeros(&[1, 16, 32, 32])));
    run("t5_xxl", Some("encoder.block."), as_it_is, t5::Encoder::new, |model| model.forward(&words(256), None));
    // 47 seconds of sound, of which one is decoded.
    run("stable_audio", Some("transformer_blocks."), as_it_is, stable_audio::Transformer::new, |model| {
        model.forward(&zeros(&[2, 64, 1024]), &zeros(&[2]), &zeros(&[2, 130, 768]), &zeros(&[2, 1, 1536]))
    });
    let folded = |source| -> Arc<dyn WeightSource> { Arc::new(oobleck::from_folder(source)) };
    run("oobleck", None, folded, oobleck::Autoencoder::new, |model| {
        model.decode_part(&zeros(&[1, 64, 1024]), [0, 44_100])
    });
}
