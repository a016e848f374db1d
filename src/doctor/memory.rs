//! Whether what is wanted fits the memory of GPU and machine.

use crate::artifact::Artifact;
use crate::conditions::Finding;
use crate::doctor::gpu::Gpus;
use crate::doctor::{Machine, Wanted};
use crate::size::Bytes;

/// Files that are loaded to compute with.
const WEIGHTS: [&str; 7] = [".safetensors", ".gguf", ".pth", ".pt", ".bin", ".ckpt", ".sft"];

/// One finding for the machine, and one for each artifact that does not fit.
pub(super) fn look(machine: Machine<'_>, gpus: &Gpus, wanted: Wanted<'_>) -> Vec<Finding> {
    let main = main_memory(machine);
    let graphics = gpus.gpus.iter().filter_map(|gpu| gpu.memory).max();
    let Some(main) = main else {
        return vec![Finding::unknown("memory in /proc/meminfo", "it cannot be read", "nobody knows what fits", "")];
    };
    let told = graphics.map_or_else(|| "GPU memory unknown".to_owned(), |bytes| format!("{} on the GPU", Bytes(bytes)));
    let mut findings =
        vec![Finding::ok("memory in /proc/meminfo", format!("{} of the machine, {told}", Bytes(main)), "")];
    let artifacts = wanted.artifacts.artifacts.iter();
    findings.extend(artifacts.filter_map(|artifact| judge(artifact, weights(artifact), main, graphics)));
    findings
}

/// Bytes of the artifact's weights, as far as they are known.
fn weights(artifact: &Artifact) -> u64 {
    let is_weight = |name: &str| WEIGHTS.iter().any(|end| name.ends_with(end));
    let files = artifact.files.iter();
    let loaded = files.filter(|file| is_weight(file.path.file_name()) || file.role.as_deref() == Some("model"));
    loaded.filter_map(|file| file.size).sum()
}

fn judge(artifact: &Artifact, weights: u64, main: u64, graphics: Option<u64>) -> Option<Finding> {
    let subject = format!("memory for {}", artifact.name);
    let Some(graphics) = graphics else { return without_gpu(subject, weights, main) };
    let what = |more: &str| {
        format!("its weights take {}, {more} (GPU {}, machine {})", Bytes(weights), Bytes(graphics), Bytes(main))
    };
    if weights > graphics.saturating_add(main) {
        let fix = "take it out of this machine's profile in inventory.toml";
        return Some(Finding::fault(
            subject,
            what("more than GPU and machine together have"),
            "it cannot be loaded",
            fix,
        ));
    }
    (weights > graphics).then(|| {
        let why = "it runs only where the program keeps parts of it in the machine's memory, and slower";
        let fix = "use a quantised edition, or take it out of this machine's profile in inventory.toml";
        Finding::unknown(subject, what("more than the GPU has"), why, fix)
    })
}

/// Where nobody knows of a GPU's memory, the machine's is what there is.
fn without_gpu(subject: String, weights: u64, main: u64) -> Option<Finding> {
    (weights > main).then(|| {
        let what = format!("its weights take {}, more than the machine has ({})", Bytes(weights), Bytes(main));
        let why = "without a GPU that has the rest, it cannot be loaded";
        let fix = "look with: nvidia-smi; or take it out of this machine's profile in inventory.toml";
        Finding::unknown(subject, what, why, fix)
    })
}

fn main_memory(machine: Machine<'_>) -> Option<u64> {
    let text = machine.read("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}
