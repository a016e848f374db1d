//! Shared by the tests: reference checkpoints and recorded outputs.

#![allow(dead_code, clippy::allow_attributes, reason = "every test file uses a part of it")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use larder_generators::weights::{Checkpoint, WeightSource};
use safetensors::tensor::TensorView;
use serde::de::DeserializeOwned;

/// A tensor of a fixture: number format, shape, bytes.
pub(crate) type Stored = (safetensors::Dtype, Vec<usize>, Vec<u8>);

/// A recorded run of a reference class: configuration, weights by rule, inputs and outputs.
pub(crate) struct Golden {
    folder: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl Golden {
    /// Opens `tests/golden/<name>`.
    pub(crate) fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let path = folder.join("golden.safetensors");
        let tensors =
            if path.exists() { candle_core::safetensors::load(path, &Device::Cpu).unwrap() } else { HashMap::new() };
        Self { folder, tensors: tensors.into_iter().collect() }
    }

    /// The model's configuration, as the reference class wrote it.
    pub(crate) fn config<C: DeserializeOwned>(&self) -> C {
        self.json("config.json")
    }

    /// A JSON file of the record.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_slice(&std::fs::read(self.folder.join(name)).unwrap()).unwrap()
    }

    /// A recorded tensor.
    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the record has no {name}")).clone()
    }

    /// The reference checkpoint, filled by the rule that the reference script also uses.
    pub(crate) fn checkpoint(&self) -> BTreeMap<String, Stored> {
        self.checkpoint_of("tensors.json")
    }

    /// The same for another list of names and shapes.
    pub(crate) fn checkpoint_of(&self, list: &str) -> BTreeMap<String, Stored> {
        let shapes: BTreeMap<String, Vec<usize>> = self.json(list);
        shapes.into_iter().map(|(name, shape)| (name.clone(), f32_tensor(&shape, &filled(&name, &shape)))).collect()
    }

    /// The same checkpoint under the names of another program, as `recipe` says.
    pub(crate) fn recomposed(&self, recipe: &str) -> BTreeMap<String, Stored> {
        self.recomposed_of("tensors.json", recipe)
    }

    /// The same for another list of names and shapes.
    pub(crate) fn recomposed_of(&self, list: &str, recipe: &str) -> BTreeMap<String, Stored> {
        let parts = self.checkpoint_of(list);
        let recipe: BTreeMap<String, Vec<(String, usize, usize)>> = self.json(recipe);
        recipe.into_iter().map(|(name, pieces)| (name, joined(&parts, &pieces))).collect()
    }
}

fn joined(parts: &BTreeMap<String, Stored>, pieces: &[(String, usize, usize)]) -> Stored {
    let (mut rows, mut bytes, mut shape) = (0, Vec::new(), Vec::new());
    for (name, index, of) in pieces {
        let (_, whole, data) = &parts[name];
        let step = data.len() / of;
        bytes.extend_from_slice(&data[index * step..(index + 1) * step]);
        rows += whole[0] / of;
        shape.clone_from(whole);
    }
    shape[0] = rows;
    (safetensors::Dtype::F32, shape, bytes)
}

/// An F32 tensor of a fixture.
pub(crate) fn f32_tensor(shape: &[usize], numbers: &[f32]) -> Stored {
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    (safetensors::Dtype::F32, shape.to_vec(), bytes)
}

/// The numbers of a reference tensor: uniform, from splitmix64 seeded by the name, scaled by the fan-in.
pub(crate) fn filled(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let fan: usize = shape.iter().skip(1).product();
    let (offset, scale) = match shape.len() {
        0 | 1 if name.ends_with("weight") && name.contains("norm") => (1.0, 0.2),
        0 | 1 => (0.0, 0.2),
        _ => (0.0, (3.0 / fan as f64).sqrt() as f32),
    };
    (1..=shape.iter().product::<usize>() as u64).map(|i| offset + scale * uniform(seed, i)).collect()
}

/// The `i`-th number of a stream, in -1..1 with 24 bits.
fn uniform(seed: u64, i: u64) -> f32 {
    let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f32 / 8_388_608.0 - 1.0
}

/// Writes a safetensors file.
pub(crate) fn write(path: &Path, tensors: &BTreeMap<String, Stored>, metadata: &[(&str, &str)]) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata = metadata.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}

/// Writes `tensors` to a file of its own and opens it.
///
/// The file has no name any more when this returns; the mapping keeps its content.
pub(crate) fn source(tensors: &BTreeMap<String, Stored>) -> Arc<dyn WeightSource> {
    source_with(tensors, &[])
}

/// The same with header metadata.
pub(crate) fn source_with(tensors: &BTreeMap<String, Stored>, metadata: &[(&str, &str)]) -> Arc<dyn WeightSource> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, tensors, metadata);
    Arc::new(Checkpoint::open(path).unwrap())
}

/// Largest difference, relative to the largest magnitude expected; checks the shape and that all is finite.
pub(crate) fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims(), "shape");
    let numbers =
        |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (found, expected) = (numbers(found), numbers(expected));
    assert!(found.iter().all(|x| x.is_finite()), "not finite");
    let scale = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    assert!(scale > 1e-3, "an all-zero record proves nothing");
    found.iter().zip(&expected).fold(0.0_f64, |max, (a, b)| max.max((a - b).abs())) / scale
}

/// Asserts parity: at most 2e-5 of the output's scale. `--nocapture` shows the measured difference.
#[expect(clippy::print_stdout, reason = "the measured difference is what one runs the test for")]
pub(crate) fn assert_parity(what: &str, found: &Tensor, expected: &Tensor) {
    let difference = difference(found, expected);
    println!("{what}: {difference:.1e}");
    assert!(difference <= 2e-5, "{what} differs by {difference:.1e} of its scale");
}

/// A file that `scripts/test-parts` installs.
///
/// Where it is missing: fails if `CI` is set, else says so where output is not captured, and gives `None`.
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment where their parts are")]
pub(crate) fn part(relative: &str) -> Option<PathBuf> {
    use std::io::Write as _;

    let told = std::env::var_os("LARDER_TEST_PARTS").filter(|value| !value.is_empty());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = root.join(told.unwrap_or_else(|| "target/test-parts".into())).join(relative);
    if path.exists() {
        return Some(path);
    }
    let text = format!("{} is missing; install it with scripts/test-parts", path.display());
    assert!(std::env::var_os("CI").is_none(), "{text}");
    // Past the capture of output, which would hide it.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {text}\n").as_bytes());
    None
}
