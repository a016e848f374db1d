//! Measures how fast and in how much memory weights are streamed: `streaming [FOLDER]`.
//!
//! Makes files of the size of the largest models' block stacks in FOLDER (sparse: kilobytes on disk), reads them as
//! models do, and compares with candle's own cast by one thread. Run it with `--release`.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a program for a person at a terminal")]

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor};
use larder_generators::layers::{LayerNorm, Linear, attention, merge_heads, split_heads};
use larder_generators::weights::{Checkpoint, Placement, WeightSource, Weights, build};
use safetensors::tensor::Dtype;

/// Tokens of a smoke test: two frames of 64 by 64 pixels, or a picture of 96 by 96.
const TOKENS: usize = 32;

/// A stack of equal blocks.
struct Stack {
    name: &'static str,
    dtype: Dtype,
    width: usize,
    heads: usize,
    blocks: usize,
    /// Layers of a block: name, inputs, outputs.
    layers: Vec<(&'static str, usize, usize)>,
}

fn stacks() -> [Stack; 2] {
    let wan = ["q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o"].map(|name| (name, 5120, 5120));
    [
        Stack {
            name: "Wan-14B-like, fp8 with scales",
            dtype: Dtype::F8_E4M3,
            width: 5120,
            heads: 40,
            blocks: 8,
            layers: wan.into_iter().chain([("up", 5120, 13824), ("down", 13824, 5120)]).collect(),
        },
        Stack {
            name: "FLUX.2-like, bf16",
            dtype: Dtype::BF16,
            width: 6144,
            heads: 48,
            blocks: 6,
            layers: vec![("qkv_mlp", 6144, 3 * 6144 + 2 * 18432), ("out", 6144 + 18432, 6144)],
        },
    ]
}

impl Stack {
    fn params(&self) -> usize {
        self.blocks * self.layers.iter().map(|(_, inputs, outputs)| inputs * outputs).sum::<usize>()
    }

    /// Writes the header of the whole and leaves the numbers out.
    fn write(&self, path: &Path) -> std::result::Result<(), Box<dyn Error>> {
        let (mut header, mut at) = (serde_json::Map::new(), 0);
        let mut put = |name: String, dtype: &str, shape: Vec<usize>, width: usize| {
            let bytes = shape.iter().product::<usize>() * width;
            let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes]});
            header.insert(name, entry);
            at += bytes;
        };
        for block in 0..self.blocks {
            for (name, inputs, outputs) in &self.layers {
                let (dtype, width) = if self.dtype == Dtype::BF16 { ("BF16", 2) } else { ("F8_E4M3", 1) };
                put(format!("{block}.{name}.weight"), dtype, vec![*outputs, *inputs], width);
                if width == 1 {
                    put(format!("{block}.{name}.scale_weight"), "F32", vec![1], 4);
                }
            }
        }
        let header = serde_json::to_vec(&header)?;
        let mut file = File::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        Ok(file.set_len((8 + header.len() + at) as u64)?)
    }
}

/// A block: attention over the tokens where it has queries, otherwise its layers one after another.
struct Block {
    layers: Vec<(&'static str, Linear)>,
    norm: LayerNorm,
    heads: usize,
    width: usize,
}

impl Block {
    fn new(stack: &Stack, weights: &Weights) -> Self {
        let linear = |(name, inputs, outputs): &(&'static str, usize, usize)| {
            (*name, Linear::without_bias(*inputs, *outputs, &weights.at(name)))
        };
        let layers = stack.layers.iter().map(linear).collect();
        Self { layers, norm: LayerNorm::plain(1e-6), heads: stack.heads, width: stack.width }
    }

    fn layer(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let found = self.layers.iter().find(|(known, _)| *known == name);
        found.map_or_else(|| candle_core::bail!("no layer {name}"), |(_, linear)| linear.forward(x))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.layers.len() > 2 { self.wan(x) } else { self.flux(x) }
    }

    fn attend(&self, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        let heads = |x: &Tensor| split_heads(x, self.heads);
        merge_heads(&attention(&heads(q)?, &heads(k)?, &heads(v)?, None)?)
    }

    fn wan(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for [q, k, v, o] in [["q", "k", "v", "o"], ["cross_q", "cross_k", "cross_v", "cross_o"]] {
            let normed = self.norm.forward(&x)?;
            let parts = [q, k, v].map(|name| self.layer(name, &normed));
            let [q, k, v] = parts;
            x = (&x + self.layer(o, &self.attend([&q?, &k?, &v?])?)?)?;
        }
        let inner = self.layer("up", &self.norm.forward(&x)?)?.gelu()?;
        &x + self.layer("down", &inner)?
    }

    fn flux(&self, x: &Tensor) -> Result<Tensor> {
        let all = self.layer("qkv_mlp", &self.norm.forward(x)?)?;
        let part = |i: usize| all.narrow(2, i * self.width, self.width)?.contiguous();
        let attended = self.attend([&part(0)?, &part(1)?, &part(2)?])?;
        let inner = all.dim(2)? - 3 * self.width;
        let [gate, up] = [0, 1].map(|i| all.narrow(2, 3 * self.width + i * inner / 2, inner / 2));
        let inner = (gate?.silu()? * up?)?;
        x + self.layer("out", &Tensor::cat(&[attended, inner], 2)?)?
    }
}

/// Bytes of memory of this process that no file backs, as the kernel counts them now.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Runs `work` and gives, besides its result, seconds and the most anonymous memory, looked at every 2 ms.
fn watched<T>(work: impl FnOnce() -> T) -> (T, f64, u64) {
    let (most, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watcher = std::thread::spawn({
        let (most, done) = (Arc::clone(&most), Arc::clone(&done));
        move || {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    let _ = watcher.join();
    (result, seconds, most.load(Ordering::Relaxed))
}

/// Seconds of the middle one of five runs.
fn median(
    mut work: impl FnMut() -> std::result::Result<(), Box<dyn Error>>,
) -> std::result::Result<f64, Box<dyn Error>> {
    let mut seconds = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[2])
}

/// One matrix: read and multiplied by larder, and by candle's cast and product.
fn compare(stack: &Stack, path: &Path) -> std::result::Result<(), Box<dyn Error>> {
    let (name, inputs, outputs) = stack.layers[0];
    let params = (inputs * outputs) as f64;
    let source: Arc<dyn WeightSource> = Arc::new(Checkpoint::open(path)?);
    let tensor = format!("0.{name}.weight");
    let mut out = vec![0.0_f32; inputs * outputs / 8];
    let decode = median(|| {
        for eighth in 0..8 {
            let rows = outputs * eighth / 8..outputs * (eighth + 1) / 8;
            source.read_rows(&tensor, rows.clone(), &mut out[..rows.len() * inputs])?;
        }
        Ok(())
    })?;
    let x = Tensor::zeros((1, TOKENS, inputs), DType::F32, &Device::Cpu)?;
    let mut layer = None;
    let _ = build(name, source, Placement::cpu().streamed(), |weights| {
        layer = Some(Linear::without_bias(inputs, outputs, &weights.at(0).at(name)));
    });
    let layer = layer.ok_or("no layer")?;
    let streamed = median(|| Ok(layer.forward(&x).map(|_| ())?))?;
    let mapped = stored_bytes(path, stack, &tensor)?;
    let dtype = if stack.dtype == Dtype::BF16 { DType::BF16 } else { DType::F8E4M3 };
    let stored = Tensor::from_raw_buffer(&mapped, dtype, &[outputs, inputs], &Device::Cpu)?;
    let cast = median(|| Ok(stored.to_dtype(DType::F32).map(|_| ())?))?;
    let x = x.squeeze(0)?;
    let whole = median(|| Ok(x.matmul(&stored.to_dtype(DType::F32)?.t()?).map(|_| ())?))?;
    let rate = |seconds: f64| params / seconds / 1e9;
    println!("  decode: {:.2} G/s, candle's cast {:.2} G/s, {:.1} x", rate(decode), rate(cast), cast / decode);
    println!(
        "  decode and multiply by {TOKENS} tokens: {:.2} G/s, candle's cast and product {:.2} G/s ({:.1} x), its cast alone {:.1} x",
        rate(streamed),
        rate(whole),
        whole / streamed,
        cast / streamed
    );
    Ok(())
}

/// The stored bytes of one matrix.
fn stored_bytes(path: &Path, stack: &Stack, tensor: &str) -> std::result::Result<Vec<u8>, Box<dyn Error>> {
    use std::io::{Read as _, Seek as _, SeekFrom};

    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut header = vec![0; usize::try_from(length)?];
    file.read_exact(&mut header)?;
    let header: serde_json::Value = serde_json::from_slice(&header)?;
    let start = header[tensor]["data_offsets"][0].as_u64().ok_or("no offset")?;
    let width = if stack.dtype == Dtype::BF16 { 2 } else { 1 };
    let mut bytes = vec![0; stack.layers[0].1 * stack.layers[0].2 * width];
    file.seek(SeekFrom::Start(8 + length + start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn forward(stack: &Stack, path: &Path) -> std::result::Result<(), Box<dyn Error>> {
    let before = anonymous();
    let (seen, seconds, most) = watched(|| -> std::result::Result<Tensor, Box<dyn Error>> {
        let source: Arc<dyn WeightSource> = Arc::new(Checkpoint::open(path)?);
        let new = |weights: Weights| (0..stack.blocks).map(|i| Block::new(stack, &weights.at(i))).collect::<Vec<_>>();
        let blocks = build(stack.name, source, Placement::cpu().streamed(), new)?;
        let x = Tensor::ones((1, TOKENS, stack.width), DType::F32, &Device::Cpu)?;
        Ok(blocks.iter().try_fold(x, |x, block| block.forward(&x))?)
    });
    assert_eq!(seen?.dims(), [1, TOKENS, stack.width]);
    let params = stack.params() as f64 / 1e9;
    println!(
        "  {} blocks, {params:.2} G params: {seconds:.1} s, {:.2} G/s, peak anonymous memory {} MiB (before: {} MiB)",
        stack.blocks,
        params / seconds,
        most >> 20,
        before >> 20
    );
    Ok(())
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    for stack in stacks() {
        println!("{}", stack.name);
        let path = folder.join("streaming.safetensors");
        stack.write(&path)?;
        // Memory first: what comes after it allocates whole matrices.
        let measured = forward(&stack, &path).and_then(|()| compare(&stack, &path));
        std::fs::remove_file(&path)?;
        measured?;
    }
    Ok(())
}
