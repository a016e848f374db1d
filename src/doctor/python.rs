//! Versions that do not work together, whatever the manifests pin: read from `dist-info`.

use crate::conditions::{self, Finding, Installed, Surroundings};
use crate::doctor::gpu::Gpus;

const TORCH: [&str; 3] = ["torch", "torchaudio", "torchvision"];
/// Releases of transformers that were withdrawn from the package index.
const WITHDRAWN: [&str; 1] = ["4.57.0"];

/// Findings for every environment that has torch or transformers.
pub(super) fn look(around: Surroundings<'_>, gpus: &Gpus) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (root, installed) in conditions::installed(around) {
        // What cannot be read is told once for each package already.
        let Ok(installed) = installed else { continue };
        let place = root.display().to_string();
        findings.extend(one_night(&installed, &place));
        findings.extend(for_the_gpu(&installed, &place, gpus));
        findings.extend(transformers(&installed, &place));
    }
    findings
}

/// The date of a nightly build: `20260203` of `2.11.0.dev20260203+cu130`.
fn night(version: &str) -> Option<&str> {
    let date = version.split_once(".dev")?.1.split('+').next()?;
    (date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit())).then_some(date)
}

/// `cu130` of `2.11.0.dev20260203+cu130`.
fn platform(version: &str) -> Option<&str> {
    version.split_once('+').map(|(_, platform)| platform)
}

fn one_night(installed: &Installed, place: &str) -> Option<Finding> {
    let here: Vec<(&str, &str)> =
        TORCH.iter().filter_map(|name| Some((*name, installed.get(*name)?.first()?.as_str()))).collect();
    if here.len() < 2 {
        return None;
    }
    let (subject, why) = (format!("torch family in {place}"), "one nightly apart has crashed HeartMuLa on Blackwell");
    let mut nights: Vec<Option<&str>> = here.iter().map(|(_, version)| night(version)).collect();
    nights.sort_unstable();
    nights.dedup();
    let versions = here.iter().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", ");
    if nights.len() == 1 {
        return Some(Finding::ok(subject, format!("of one build: {versions}"), why));
    }
    let fix = format!(
        "{place}/bin/pip install --pre the three wheels of one night, from --index-url https://download.pytorch.org/whl/nightly/cu130"
    );
    Some(Finding::fault(subject, format!("of different nights: {versions}"), why, fix))
}

/// Whether torch was built for the GPU that is here.
fn for_the_gpu(installed: &Installed, place: &str, gpus: &Gpus) -> Option<Finding> {
    let version = installed.get("torch")?.first()?;
    if gpus.gpus.is_empty() {
        return None;
    }
    let subject = format!("torch's CUDA in {place}");
    let why = "torch without kernels for the GPU fails at the first computation, or computes on the processor";
    let fix = format!(
        "{place}/bin/pip install --pre torch torchaudio torchvision --index-url https://download.pytorch.org/whl/nightly/cu130"
    );
    let cuda = platform(version).and_then(|platform| platform.strip_prefix("cu")?.parse::<u32>().ok());
    match (platform(version), cuda) {
        (Some("cpu"), _) => {
            Some(Finding::fault(subject, format!("torch {version} is built for the processor"), why, fix))
        }
        (_, Some(cuda)) if gpus.has_blackwell() && cuda < 130 => Some(Finding::fault(
            subject,
            format!("torch {version} is older than CUDA 13, which Blackwell wants"),
            why,
            fix,
        )),
        (_, Some(_)) => Some(Finding::ok(subject, format!("torch {version}"), why)),
        _ => Some(Finding::unknown(
            subject,
            format!("torch {version} does not say which CUDA it was built for"),
            why,
            "",
        )),
    }
}

fn transformers(installed: &Installed, place: &str) -> Option<Finding> {
    let version = installed.get("transformers")?.first()?;
    let (subject, fix) = (format!("transformers in {place}"), format!("{place}/bin/pip install transformers==4.57.6"));
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if WITHDRAWN.contains(&version.as_str()) {
        let why = "it was withdrawn for an error in its setup, and the platform refuses it";
        return Some(Finding::fault(subject, format!("version {version} was withdrawn"), why, fix));
    }
    let why = "version 5 removes what the platform's text encoders are loaded with";
    Some(match major {
        Some(major) if major >= 5 => {
            Finding::fault(subject, format!("version {version} is not of the 4 series"), why, fix)
        }
        Some(_) => Finding::ok(subject, format!("version {version}"), why),
        None => Finding::unknown(subject, format!("{version:?} is no version"), why, fix),
    })
}
