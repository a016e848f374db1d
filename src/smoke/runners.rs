//! Runners: what tries generators with their real weights.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use candle_core::{DType, Device as Place, Tensor};
use larder_generators::weights::{Placement, Stop, WeightsError as Unfit};

use crate::size::Bytes;
use crate::smoke::{Check, Device, Job, Need, Outcome, Runner};

mod bigvgan;
mod mel;
mod wav;

/// How often a job is asked whether it is to be stopped.
const PAUSE: Duration = Duration::from_millis(50);

/// All of them.
pub(super) fn all() -> Vec<Box<dyn Runner>> {
    vec![Box::new(bigvgan::BigVgan)]
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

/// Does `work`, and stops it once the job is to be stopped: before the next tensor that it reads.
fn stoppable<T>(job: &Job<'_>, stop: &Stop, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            while waiting.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                if (job.stopped)() {
                    stop.stop();
                    return;
                }
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// Memory that programs may still take, as the system estimates it.
fn available_memory() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|number| number * 1024)
}

/// An error with what caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The check for weights that do not fit their model; every fault is named.
fn unfit(job: &Job<'_>, error: &Unfit) -> Check {
    let details = match error {
        Unfit::Unfit { faults, .. } => faults.iter().map(ToString::to_string).collect(),
        other => vec![causes(other)],
    };
    let measured = format!("{} faults", details.len());
    Check::of("weights", measured, ["every tensor of the model, and no other", "the architecture"], details)
        .at(job.level)
}

/// The check for a run that broke; a device without memory, or one that is lost, is the machine's fault.
fn broke(job: &Job<'_>, error: &candle_core::Error) -> Check {
    let wanted = ["an answer", "the architecture"];
    let text = first_line(&error.to_string());
    let machine =
        ["out of memory", "OUT_OF_MEMORY", "CUDA_ERROR", "DriverError"].iter().any(|sign| text.contains(sign));
    let outcome = if machine { Outcome::EnvironmentFault } else { Outcome::Failed };
    Check::of("run", "it broke", wanted, vec![text]).at(job.level).ending(outcome)
}

/// Numbers as they must be: finite, and not all the same.
fn sane(job: &Job<'_>, what: &str, numbers: &[f32]) -> Vec<Check> {
    let bad = numbers.iter().filter(|number| !number.is_finite()).count();
    let mean = numbers.iter().sum::<f32>() / numbers.len().max(1) as f32;
    let spread =
        (numbers.iter().map(|number| (number - mean).powi(2)).sum::<f32>() / numbers.len().max(1) as f32).sqrt();
    let wrong = |is: bool, what: &str| if is { vec![what.to_owned()] } else { Vec::new() };
    vec![
        Check::of(
            format!("{what} is finite"),
            format!("{bad} of {} numbers are not", numbers.len()),
            ["none", "every format of pictures and sounds"],
            wrong(bad > 0 || numbers.is_empty(), "infinite or no numbers"),
        ),
        Check::of(
            format!("{what} is not constant"),
            format!("standard deviation {spread:.2e}"),
            ["above 1e-4", "larder's choice: silence and one colour are below it"],
            wrong(spread.is_nan() || spread <= 1e-4, "all numbers are nearly the same"),
        ),
    ]
    .into_iter()
    .map(|check| check.at(job.level))
    .collect()
}

/// The numbers of a tensor, in its order.
fn numbers(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
