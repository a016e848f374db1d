//! Runners: what tries generators with their real weights.

use std::path::Path;

use candle_core::Device as Place;
use larder_generators::weights::Placement;

use crate::doctor::Machine;
use crate::size::Bytes;
use crate::smoke::runners::judging::first_line;
use crate::smoke::{Check, Device, Job, Need, Outcome, Runner, available_memory};

mod bigvgan;
mod judging;
mod languages;
mod mel;
mod parts;
mod png;
mod sentences;
mod shapes;
mod stable_audio;
mod stable_diffusion_3;
mod towers;
mod watching;
mod wav;

/// All of them.
pub(super) fn all() -> Vec<Box<dyn Runner>> {
    vec![
        Box::new(bigvgan::BigVgan),
        Box::new(stable_diffusion_3::StableDiffusion3),
        Box::new(stable_audio::StableAudio),
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
            let place = Place::new_cuda(0);
            let place = place.map_err(|error| wanted("a GPU".to_owned())(first_line(&error.to_string())))?;
            let here = Machine { root: Path::new("/"), home: Path::new("/") };
            if let Some(free) = here.free_gpu_memory().filter(|free| *free < need.device_memory) {
                let what = format!("{} of the GPU's memory", Bytes(need.device_memory));
                return Err(wanted(what)(format!("{} are free", Bytes(free))));
            }
            place
        }
    };
    Ok(Placement { device, ..Placement::cpu() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use larder_generators::pipelines::RunError;
    use larder_generators::weights::Stop;

    use super::judging::{broke, not_run};
    use super::watching::stoppable;
    use super::*;
    use crate::smoke::{Level, Run};

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
