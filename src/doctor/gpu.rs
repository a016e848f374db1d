//! NVIDIA GPUs: on the bus, known to the driver, and what that driver can do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::conditions::Finding;
use crate::doctor::Machine;

const NVIDIA: &str = "0x10de";
/// The first driver that runs programs built with CUDA 13.
const FIRST_WITH_CUDA_13: u32 = 580;
/// A driver that hangs must not hang larder.
const PATIENCE: Duration = Duration::from_secs(20);

/// One GPU, as the driver or the bus knows it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gpu {
    name: String,
    /// Bytes of its memory, where the driver said so.
    pub(super) memory: Option<u64>,
    /// Its compute capability, where the driver said so.
    capability: Option<f32>,
}

/// Everything that is known of the machine's GPUs.
#[derive(Debug, Default)]
pub(super) struct Gpus {
    /// Those that the driver knows.
    pub(super) gpus: Vec<Gpu>,
    /// NVIDIA's graphics devices on the bus.
    on_bus: usize,
    /// The version of the driver in the kernel.
    driver: Option<String>,
    /// The version of the driver's library.
    library: Option<(PathBuf, String)>,
    /// What `nvidia-smi` complained of.
    complaint: Option<String>,
}

impl Gpu {
    pub(super) fn is_blackwell(&self) -> bool {
        let by_name =
            ["Blackwell", "RTX 50", "B100", "B200", "B300", "GB10"].iter().any(|word| self.name.contains(word));
        self.capability.map_or(by_name, |capability| capability >= 10.0)
    }
}

/// Looks at the bus, at what the kernel says of its driver, at the driver's library, and asks `nvidia-smi`.
pub(super) fn look(machine: Machine<'_>) -> Gpus {
    let (mut gpus, complaint) = match ask(machine) {
        Some(Ok(gpus)) => (gpus, None),
        Some(Err(complaint)) => (Vec::new(), Some(complaint)),
        None => (Vec::new(), None),
    };
    if gpus.is_empty() {
        gpus = named_by_kernel(machine);
    }
    Gpus { gpus, on_bus: on_bus(machine), driver: kernel_driver(machine), library: library(machine), complaint }
}

fn on_bus(machine: Machine<'_>) -> usize {
    let Ok(devices) = fs_err::read_dir(machine.at("/sys/bus/pci/devices")) else { return 0 };
    let says = |folder: &Path, file: &str| fs_err::read_to_string(folder.join(file)).unwrap_or_default();
    let is_gpu =
        |folder: &PathBuf| says(folder, "vendor").trim() == NVIDIA && says(folder, "class").starts_with("0x03");
    devices.filter_map(Result::ok).map(|entry| entry.path()).filter(is_gpu).count()
}

/// `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build …`
fn kernel_driver(machine: Machine<'_>) -> Option<String> {
    let text = machine.read("/proc/driver/nvidia/version")?;
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

fn named_by_kernel(machine: Machine<'_>) -> Vec<Gpu> {
    let Ok(folders) = fs_err::read_dir(machine.at("/proc/driver/nvidia/gpus")) else { return Vec::new() };
    let name = |folder: PathBuf| {
        let text = fs_err::read_to_string(folder.join("information")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Model:")).map(|name| name.trim().to_owned())
    };
    let names = folders.filter_map(Result::ok).filter_map(|entry| name(entry.path()));
    names.map(|name| Gpu { name, memory: None, capability: None }).collect()
}

/// The library that programs load, and the version in its name.
fn library(machine: Machine<'_>) -> Option<(PathBuf, String)> {
    let places =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/lib/wsl/lib"];
    places.iter().find_map(|place| {
        let entries = fs_err::read_dir(machine.at(place)).ok()?;
        entries.filter_map(Result::ok).find_map(|entry| {
            let name = entry.file_name().to_str()?.to_owned();
            let version = name.strip_prefix("libcuda.so.").filter(|version| version.contains('.'))?;
            Some((entry.path(), version.to_owned()))
        })
    })
}

/// What `nvidia-smi` says; `None` where it is not installed.
fn ask(machine: Machine<'_>) -> Option<Result<Vec<Gpu>, String>> {
    let said = query(machine, "name,memory.total,compute_cap")?;
    Some(said.map(|text| text.lines().filter_map(parse_gpu).collect()))
}

/// The memory of the first GPU that nobody uses, in bytes; `None` where `nvidia-smi` does not tell.
pub(super) fn free_memory(machine: Machine<'_>) -> Option<u64> {
    let said = query(machine, "memory.free")?.ok()?;
    said.lines().next()?.trim().parse::<u64>().ok().map(|mebibytes| mebibytes << 20)
}

/// A line for each GPU.
fn query(machine: Machine<'_>, fields: &str) -> Option<Result<String, String>> {
    let places = ["/usr/bin/nvidia-smi", "/usr/local/bin/nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi"];
    let program = places.iter().map(|place| machine.at(place)).find(|place| place.exists())?;
    let mut command = Command::new(program);
    command.args([&format!("--query-gpu={fields}"), "--format=csv,noheader,nounits"]);
    Some(output_within(command, PATIENCE).and_then(|(succeeded, text)| if succeeded { Ok(text) } else { Err(text) }))
}

/// `NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 97887, 12.0`
fn parse_gpu(line: &str) -> Option<Gpu> {
    let mut fields = line.rsplitn(3, ',').map(str::trim);
    let (capability, memory, name) = (fields.next()?, fields.next()?, fields.next()?);
    let memory = memory.parse::<u64>().ok().map(|mebibytes| mebibytes << 20);
    Some(Gpu { name: name.to_owned(), memory, capability: capability.parse().ok() })
}

/// Whether a command succeeded, and the first lines of what it said.
fn output_within(mut command: Command, limit: Duration) -> Result<(bool, String), String> {
    let what = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("{what} cannot be started: {error}"))?;
    let end = Instant::now() + limit;
    // Its answer is a few lines: they fit into the pipe, so it can end before it is read.
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("{what} does not answer within {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).trim().to_owned()))
}

impl Gpus {
    pub(super) fn has_blackwell(&self) -> bool {
        self.gpus.iter().any(Gpu::is_blackwell)
    }

    /// What is right and wrong with the GPUs and their driver.
    pub(super) fn findings(&self) -> Vec<Finding> {
        if self.on_bus == 0 && self.driver.is_none() && self.gpus.is_empty() {
            let why = "the generators need one; without it they run on the processor, or not at all";
            return vec![Finding::unknown("gpu", "there is no NVIDIA GPU here", why, "")];
        }
        let mut findings: Vec<Finding> = self.gpus.iter().map(told).collect();
        findings.push(self.loaded());
        findings.extend(self.same_versions());
        findings.extend(self.complaint.as_ref().map(|complaint| {
            let what = format!("it complains: {}", complaint.lines().next().unwrap_or("without a word"));
            Finding::fault(
                "nvidia-smi",
                what,
                "what it cannot reach, CUDA programs cannot reach either",
                "sudo dmesg | grep -i nvrm",
            )
        }));
        findings.extend(self.new_enough());
        findings
    }

    fn loaded(&self) -> Finding {
        match &self.driver {
            Some(version) => Finding::ok("driver in /proc/driver/nvidia/version", format!("version {version}"), ""),
            None => {
                let what = format!("{} on the bus, and no NVIDIA driver is loaded", count(self.on_bus));
                let why = "every CUDA program says that there is no GPU";
                Finding::fault(
                    "driver in /proc/driver/nvidia/version",
                    what,
                    why,
                    "sudo modprobe nvidia; where that fails: sudo dkms autoinstall, or install the driver again after a kernel update",
                )
            }
        }
    }

    /// After an update without a restart, kernel and programs have different drivers.
    fn same_versions(&self) -> Option<Finding> {
        let (driver, (path, library)) = (self.driver.as_ref()?, self.library.as_ref()?);
        let (subject, why) = (
            format!("driver library {}", path.display()),
            "CUDA programs end with \"driver/library version mismatch\"",
        );
        if driver == library {
            return Some(Finding::ok(subject, format!("version {library}, as the driver"), why));
        }
        let what = format!("it is {library}, the loaded driver is {driver}");
        Some(Finding::fault(subject, what, why, "sudo systemctl reboot"))
    }

    fn new_enough(&self) -> Option<Finding> {
        let driver = self.driver.as_ref().filter(|_| self.has_blackwell())?;
        let major: u32 = driver.split('.').next()?.parse().ok()?;
        let why = "Blackwell is used through CUDA 13, which needs a driver of 580 or newer: kernels fail or are missing otherwise";
        let what = format!("driver {driver}");
        Some(if major >= FIRST_WITH_CUDA_13 {
            Finding::ok("CUDA level", format!("{what} runs CUDA 13"), why)
        } else {
            let fix =
                "install the driver 580 or newer (open kernel modules), for example: sudo apt install nvidia-open";
            Finding::fault("CUDA level", format!("{what} is too old for CUDA 13"), why, fix)
        })
    }
}

fn told(gpu: &Gpu) -> Finding {
    let memory = gpu.memory.map(|bytes| format!("{} of memory", crate::size::Bytes(bytes)));
    let capability = gpu.capability.map(|capability| format!("compute capability {capability:.1}"));
    let known: Vec<String> = memory.into_iter().chain(capability).collect();
    let what = if known.is_empty() { "the driver knows it".to_owned() } else { known.join(", ") };
    Finding::ok(format!("gpu {}", gpu.name), what, "")
}

fn count(gpus: usize) -> String {
    if gpus == 1 { "a GPU is".to_owned() } else { format!("{gpus} GPUs are") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_nvidia_smi_are_read() {
        let gpu = parse_gpu("NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 97887, 12.0").unwrap();
        assert_eq!((gpu.memory, gpu.is_blackwell()), (Some(97_887 << 20), true));
        let old = parse_gpu("NVIDIA GeForce RTX 4090, 24564, 8.9").unwrap();
        assert!(!old.is_blackwell());
        let silent = parse_gpu("Odd, Name, [N/A], [N/A]").unwrap();
        assert_eq!((silent.name.as_str(), silent.memory, silent.capability), ("Odd, Name", None, None));
    }
}
