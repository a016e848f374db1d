//! Measures one step of a denoiser of Stable Diffusion 3: `steps FOLDER STEPS`.
//!
//! FOLDER has `config.json`, `diffusion_pytorch_model.safetensors` and `given.safetensors`, whose tensors `latent`,
//! `timestep`, `text` and `pooled` go in and whose `out` is what the reference class made of them: scripts/bench makes
//! them. Prints how far the answer is from that, then the seconds of each step, a line each; the first step, which
//! decodes the weights, is not among them. Run it with `--release`.

#![expect(clippy::print_stdout, reason = "a program for a person at a terminal")]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use larder_generators::models::stable_diffusion_3::{Config, Transformer};
use larder_generators::weights::{Checkpoint, Placement, build};

/// How far two lists of numbers are apart at most, as a part of the largest of the second.
fn farthest(found: &Tensor, right: &Tensor) -> candle_core::Result<f32> {
    let largest = |x: &Tensor| x.abs()?.max_all()?.to_scalar::<f32>();
    Ok(largest(&(found - right)?)? / largest(right)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments.next().map(PathBuf::from).ok_or("Name the folder")?;
    let steps: usize = arguments.next().and_then(|text| text.to_str()?.parse().ok()).ok_or("Say how many steps")?;
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let source = Arc::new(Checkpoint::open(folder.join("diffusion_pytorch_model.safetensors"))?);
    let transformer = build("SD 3", source, Placement::cpu(), |weights| Transformer::new(&config, &weights))?;
    let given = candle_core::safetensors::load(folder.join("given.safetensors"), &Device::Cpu)?;
    let step = || transformer.forward(&given["latent"], &given["timestep"], &given["text"], &given["pooled"]);
    println!("{:e}", farthest(&step()?, &given["out"])?);
    for _ in 0..steps {
        let start = Instant::now();
        step()?;
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
