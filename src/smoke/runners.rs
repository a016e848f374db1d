//! Runners: what tries generators with their real weights.

use candle_core::Device as Place;
use larder_generators::weights::Placement;

use crate::size::Bytes;
use crate::smoke::runners::judging::first_line;
use crate::smoke::{Check, Device, Job, Need, Outcome, Runner};

mod bigvgan;
mod judging;
mod mel;
mod parts;
mod png;
mod shapes;
mod stable_audio;
mod stable_diffusion_3;
mod watching;
mod wav;

/// All of them.
pub(super) fn all() -> Vec<Box<dyn Runner>> {
    vec![
        Box::new(bigvgan::BigVgan),
        Box::new(stable_diffusion_3::StableDiffusion3),
        Box::new(stable_audio::StableAudio),
    ]
}

/// Where to compute, or the check that says why this machine cannot.
fn placement(job: &Job<'_>, need: &Need) -> Result<Placement, Box<Check>> {
    let wanted = |what: String| {
        move |measured: String| {
            let check = Check::of("machine", measured, [&what, "the runner's own account"], Vec::new());
            Box::new(check.at(job.level).ending(Outcome::EnvironmentFault))
        }
    };
    if let Some(free) = available_memory().filter(|free| *free < need.memory) {
        return Err(wanted(format!("{} of memory", Bytes(need.memory)))(format!("{} can be used", Bytes(free))));
    }
    let device = match job.device {
        Device::Cpu => Place::Cpu,
        Device::Cuda => {
            Place::new_cuda(0).map_err(|error| wanted("a GPU".to_owned())(first_line(&error.to_string())))?
        }
    };
    Ok(Placement { device, ..Placement::cpu() })
}

/// Memory that programs may still take, as the system estimates it.
fn available_memory() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|number| number * 1024)
}
