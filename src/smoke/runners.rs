//! Runners: what tries generators with their real weights.

use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use candle_core::{DType, Device as Place, Tensor};
use larder_generators::pipelines::{LoadError, RunError};
use larder_generators::weights::{Placement, Stop, WeightsError as Unfit};

use crate::size::Bytes;
use crate::smoke::{Check, Device, Job, Need, Outcome, Run, Runner};

mod bigvgan;
mod languages;
mod mel;
mod sentences;
mod towers;
mod wav;

/// How often a job is asked whether it is to be stopped.
const PAUSE: Duration = Duration::from_millis(50);

/// All of them.
pub(super) fn all() -> Vec<Box<dyn Runner>> {
    vec![
        Box::new(bigvgan::BigVgan),
        Box::new(languages::Languages),
        Box::new(sentences::Sentences),
        Box::new(towers::Towers),
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

/// The check for a file that the artifact should have and that is not here.
fn lacking(job: &Job<'_>, what: &str) -> Check {
    let wanted = [what, "the files that programs of this model read"];
    Check::of("files", "not all are here", wanted, vec![format!("missing: {what}")]).at(job.level)
}

/// The folder of a file of the artifact.
fn folder_of(job: &Job<'_>, name: &str) -> Result<PathBuf, Box<Check>> {
    let folder = job.files.get(name).and_then(|path| path.parent());
    folder.map(Path::to_owned).ok_or_else(|| Box::new(lacking(job, name)))
}

/// Bytes of the artifact's files that hold weights.
fn weight_bytes(job: &Job<'_>) -> u64 {
    let endings = ["safetensors", "gguf", "bin", "pt", "pth"];
    let holds = |name: &str| name == "model" || endings.iter().any(|ending| name.ends_with(&format!(".{ending}")));
    let weights = job.files.iter().filter(|(name, _)| holds(name));
    weights.filter_map(|(_, path)| fs_err::metadata(path).ok()).map(|found| found.len()).sum()
}

/// The check for a model that could not be opened.
fn not_loaded(job: &Job<'_>, error: &LoadError) -> Check {
    if let LoadError::Weights(error) = error {
        return unfit(job, error);
    }
    let wanted = ["settings, tokenizer and weights that larder knows", "the reference programs"];
    Check::of("files", "they cannot be used", wanted, vec![causes(error)]).at(job.level)
}

/// What is known after a run that broke; nothing, where it was stopped.
fn not_run(job: &Job<'_>, error: &RunError) -> Run {
    let check = match error {
        RunError::Stopped => return Run::default(),
        RunError::Compute(error) => broke(job, error),
        RunError::Weights(error) => unfit(job, error),
        other => {
            let wanted = ["an answer", "the architecture"];
            Check::of("run", "it broke", wanted, vec![causes(other)]).at(job.level)
        }
    };
    Run { checks: vec![check], ..Run::default() }
}

/// The check that the same input gave the same output.
fn repeatable(job: &Job<'_>, same: bool) -> Check {
    let wrong = if same { Vec::new() } else { vec!["twice the same input gave two outputs".to_owned()] };
    let measured = if same { "the same output twice" } else { "two outputs" };
    Check::of("repeatable", measured, ["the same input gives the same output", "there is no chance in it"], wrong)
        .at(job.level)
}

/// The check for an output that could not be written: the machine's fault.
fn unwritten(job: &Job<'_>, error: &std::io::Error) -> Check {
    let check = Check::of("output", causes(error), ["a file in --out", "the command line"], Vec::new());
    check.at(job.level).ending(Outcome::EnvironmentFault)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::smoke::Level;

    fn job<T>(stopped: bool, look: impl FnOnce(&Job<'_>) -> T) -> T {
        let (files, others) = (BTreeMap::new(), BTreeMap::new());
        look(&Job {
            artifact: "a",
            smoke: "s",
            level: Level::Generate,
            device: Device::Cpu,
            files: &files,
            others: &others,
            out: Path::new("."),
            seed: 1,
            told: &|_, _, _| {},
            stopped: &|| stopped,
        })
    }

    #[test]
    fn memory_that_is_not_there_is_the_machines_fault() {
        job(false, |job| {
            let check = placement(job, &Need { memory: u64::MAX, device_memory: 0 }).err().unwrap();
            assert_eq!((check.outcome, check.level), (Outcome::EnvironmentFault, Level::Generate));
            assert!(check.threshold.ends_with("of memory") && check.measured.ends_with("can be used"), "{check:?}");
            assert!(placement(job, &Need { memory: 1, device_memory: 0 }).is_ok());
        });
    }

    #[test]
    fn a_gpu_that_runs_out_of_memory_is_no_fault_of_the_model() {
        job(false, |job| {
            let of = |text: &str| broke(job, &candle_core::Error::msg(text.to_owned())).outcome;
            assert_eq!(of("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"), Outcome::EnvironmentFault);
            assert_eq!(of("shape mismatch in matmul"), Outcome::Failed);
            assert_eq!(not_run(job, &RunError::Stopped), Run::default());
        });
    }

    #[test]
    fn work_hears_that_it_is_to_stop() {
        let stop = Stop::default();
        // Without the watching thread this would never end.
        job(true, |job| {
            stoppable(job, &stop, || {
                while !stop.is_stopped() {
                    std::thread::yield_now();
                }
            });
        });
        let calm = Stop::default();
        assert_eq!(job(false, |job| stoppable(job, &calm, || 7)), 7);
        assert!(!calm.is_stopped());
    }
}
