//! Checks that several runners make.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use larder_generators::pipelines::{LoadError, RunError};
use larder_generators::weights::{Inspection, WeightsError as Unfit};

use crate::smoke::{Check, Job, Outcome, Run};

/// A sound that was given back must be this much nearer to its own chord than to the other.
const NEARER: f32 = 0.5;
/// Where a threshold that nobody has compared with real models yet comes from.
pub(super) const CHOSEN: &str = "larder's choice; not yet compared with a trusted machine's run";

/// An error with what caused it.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The check for weights that do not fit their model; every fault is named.
pub(super) fn unfit(job: &Job<'_>, error: &Unfit) -> Check {
    let details = match error {
        Unfit::Unfit { model, faults } => faults.iter().map(|fault| format!("{model}: {fault}")).collect(),
        other => vec![causes(other)],
    };
    let measured = format!("{} faults", details.len());
    Check::of("weights", measured, ["every tensor of the model, and no other", "the architecture"], details)
        .at(job.level)
}

/// The check for a generator that cannot be opened.
pub(super) fn unopened(job: &Job<'_>, error: &LoadError) -> Check {
    if let LoadError::Weights(error) = error {
        return unfit(job, error);
    }
    let wanted = ["settings, tokenizers and weights of the known form", "the reference implementation"];
    Check::of("files", "they cannot be read", wanted, vec![causes(error)]).at(job.level)
}

/// The check for a run that broke.
pub(super) fn broke(job: &Job<'_>, error: &dyn std::error::Error) -> Check {
    let wanted = ["an answer", "the architecture"];
    let text = causes(error);
    let check = Check::of("run", "it broke", wanted, vec![first_line(&text)]).at(job.level);
    // What the driver refuses says nothing of the model.
    let of_machine = ["CUDA_ERROR", "out of memory", "DriverError"].iter().any(|sign| text.contains(sign));
    if of_machine { check.ending(Outcome::EnvironmentFault) } else { check }
}

/// The same for a run of a generator.
pub(super) fn broken(job: &Job<'_>, error: &RunError) -> Check {
    if let RunError::Weights(error) = error { unfit(job, error) } else { broke(job, error) }
}

/// What is known after a run that broke; nothing, where it was stopped.
pub(super) fn not_run(job: &Job<'_>, error: &RunError) -> Run {
    if matches!(error, RunError::Stopped) {
        return Run::default();
    }
    let check = broken(job, error);
    Run { checks: vec![check], ..Run::default() }
}

/// The check that the same input gave the same output.
pub(super) fn repeatable(job: &Job<'_>, same: bool) -> Check {
    let wrong = if same { Vec::new() } else { vec!["twice the same input gave two outputs".to_owned()] };
    let measured = if same { "the same output twice" } else { "two outputs" };
    Check::of("repeatable", measured, ["the same input gives the same output", "there is no chance in it"], wrong)
        .at(job.level)
}

/// The check for an output that could not be written: the machine's fault.
pub(super) fn unwritten(job: &Job<'_>, error: &std::io::Error) -> Check {
    let check = Check::of("output", causes(error), ["a file in --out", "the command line"], Vec::new());
    check.at(job.level).ending(Outcome::EnvironmentFault)
}

/// The check for a file that the artifact should have and that is not here.
pub(super) fn lacking(job: &Job<'_>, what: &str) -> Check {
    let wanted = [what, "the files that programs of this model read"];
    Check::of("files", "not all are here", wanted, vec![format!("missing: {what}")]).at(job.level)
}

/// The folder of a file of the artifact.
pub(super) fn folder_of(job: &Job<'_>, name: &str) -> Result<PathBuf, Box<Check>> {
    let folder = job.files.get(name).and_then(|path| path.parent());
    folder.map(Path::to_owned).ok_or_else(|| Box::new(lacking(job, name)))
}

/// Bytes of the artifact's files that hold weights.
pub(super) fn weight_bytes(job: &Job<'_>) -> u64 {
    let endings = ["safetensors", "gguf", "bin", "pt", "pth"];
    let holds = |name: &str| name == "model" || endings.iter().any(|ending| name.ends_with(&format!(".{ending}")));
    let weights = job.files.iter().filter(|(name, _)| holds(name));
    weights.filter_map(|(_, path)| fs_err::metadata(path).ok()).map(|found| found.len()).sum()
}

/// Numbers as they must be: finite, and not all the same.
pub(super) fn sane(job: &Job<'_>, what: &str, numbers: &[f32]) -> Vec<Check> {
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

/// Something measured that must be more than a threshold.
pub(super) struct Floor {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) above: f32,
    pub(super) basis: &'static str,
    /// What is wrong where it is not.
    pub(super) wrong: &'static str,
}

impl Floor {
    /// The check of what was measured.
    pub(super) fn check(&self, job: &Job<'_>, measured: f32) -> Check {
        // A number that is none is above nothing.
        let wrong = if measured > self.above { Vec::new() } else { vec![self.wrong.to_owned()] };
        let text = |number: f32| if number.abs() < 0.1 { format!("{number:.1e}") } else { format!("{number:.2}") };
        let wanted = format!("above {}{}", text(self.above), self.unit);
        Check::of(self.name, format!("{}{}", text(measured), self.unit), [&wanted, self.basis], wrong).at(job.level)
    }
}

/// Whether what came out has the shape that was asked for.
pub(super) fn is_shaped(job: &Job<'_>, what: &str, found: &[usize], right: &[usize]) -> Check {
    let wrong = if found == right { Vec::new() } else { vec!["another shape".to_owned()] };
    let wanted = format!("{right:?}");
    Check::of(format!("shape of the {what}"), format!("{found:?}"), [&wanted, "what was asked for"], wrong)
        .at(job.level)
}

/// Whether the same seed gave the same twice.
pub(super) fn is_same(job: &Job<'_>, what: &str, [one, other]: [&[f32]; 2]) -> Check {
    let same = one == other;
    let wrong = if same { Vec::new() } else { vec![format!("twice the same seed gave two {what}s")] };
    let measured = if same { format!("the same {what} twice") } else { format!("two {what}s") };
    let basis = "all noise comes from the seed";
    Check::of("repeatable", measured, ["the same seed gives the same output", basis], wrong).at(job.level)
}

/// Whether a sound came back as its own chord and not as another.
pub(super) fn is_nearer(job: &Job<'_>, name: &str, [own, other]: [f32; 2]) -> Check {
    let measured = format!("{own:.3} from its own spectrogram, {other:.3} from another chord's");
    let wrong =
        if own < NEARER * other { Vec::new() } else { vec!["the sound is not that of the spectrogram".to_owned()] };
    let wanted = format!("less than {NEARER} times as far");
    let basis = "larder's choice: random weights are as far from both; not yet compared with a trusted machine's run";
    Check::of(name, measured, [&wanted, basis], wrong).at(job.level)
}

/// Whether the weights that were read are numbers, and none of the matrices is blank.
pub(super) fn read_weights(job: &Job<'_>, inspection: &Inspection) -> Check {
    let found = inspection.found();
    let blank = found.blank.iter().map(|name| format!("all zeros: {name}"));
    let details = blank.chain(found.not_finite.iter().map(|name| format!("not finite: {name}"))).collect();
    let basis = "no matrix of a trained model is all zeros";
    let wanted = ["finite numbers, and no matrix of zeros", basis];
    Check::of("numbers of the weights", format!("{} tensors were read", found.tensors), wanted, details).at(job.level)
}

/// The numbers of a tensor, in its order.
pub(super) fn numbers(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The cosine between two directions; 0 where one has no length.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths == 0.0 { 0.0 } else { (product(a, b) / lengths) as f32 }
}

/// How far two lists of numbers are apart, relative to the first.
pub(super) fn apart(a: &[f32], b: &[f32]) -> f32 {
    let length = |numbers: Vec<f32>| numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
    let difference = length(a.iter().zip(b).map(|(a, b)| a - b).collect());
    difference / length(a.to_vec()).max(f32::MIN_POSITIVE)
}

/// The peak signal-to-noise ratio of numbers from -1 to 1, in dB.
pub(super) fn fidelity(found: &[f32], right: &[f32]) -> f32 {
    let error = found.iter().zip(right).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / right.len().max(1) as f32;
    10.0 * (4.0 / error).log10()
}

/// How much of a wave is the right one, however loud, against all else: the scale-invariant ratio, in dB.
pub(super) fn wave_fidelity(found: &[f32], right: &[f32]) -> f32 {
    let alike = cosine(found, right).clamp(0.0, 1.0).powi(2);
    10.0 * (alike / (1.0 - alike).max(1e-9)).max(1e-9).log10()
}
