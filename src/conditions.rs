//! Conditions: what must hold on the machine beside the files, looked at without changing or running anything.
//!
//! Python packages are read from their `*.dist-info` folders, key files by name and mode only (their
//! content is never read), the platform's sources as text. `git` is asked whether keys are ignored.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::manifest::{Manifests, Requirement};

mod keys;
mod packages;
mod paths;
mod text;

pub use packages::{Installed, installed};

/// What is known of one thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, such as `package torch`.
    pub subject: String,
    /// Whether it holds.
    pub state: State,
    /// What was found.
    pub what: String,
    /// What goes wrong if it does not hold.
    pub why: String,
    /// What to do about it; empty where it holds.
    pub fix: String,
}

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It holds.
    Ok,
    /// It does not.
    Fault,
    /// It could not be looked at, so it is neither.
    Unknown,
}

/// The machine that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// What `~` stands for.
    pub home: &'a Path,
    /// Roots of Python environments; may begin with `~`.
    pub environments: &'a [PathBuf],
}

/// Looks at every package, key file and condition of the artifacts that `wanted` names.
///
/// Packages and conditions that belong to no artifact in particular are always looked at. Nothing here
/// fails as a whole: what cannot be looked at is a finding with [`State::Unknown`].
pub fn look(manifests: &Manifests, around: Surroundings<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let concerns = |artifacts: &[String]| artifacts.is_empty() || artifacts.iter().any(|artifact| wanted(artifact));
    let mut findings = look_at(manifests, around, &concerns);
    findings.extend(keys::look(&manifests.cloud, around.home));
    findings
}

/// Looks like [`look`], but only at what names one of the artifacts that `wanted` names: for who asks about these alone.
pub fn look_only(manifests: &Manifests, around: Surroundings<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    look_at(manifests, around, &|artifacts| artifacts.iter().any(|artifact| wanted(artifact)))
}

fn look_at(manifests: &Manifests, around: Surroundings<'_>, concerns: &dyn Fn(&[String]) -> bool) -> Vec<Finding> {
    let environments = packages::read(around);
    let mut findings = Vec::new();
    for package in manifests.packages.iter().filter(|package| concerns(&package.needed_by)) {
        findings.extend(packages::look(package, &environments));
    }
    for condition in manifests.conditions.iter().filter(|condition| concerns(&condition.artifacts)) {
        findings.extend(match &condition.require {
            Requirement::OnlyPackages { packages, only } => {
                packages::look_for_others(condition, (packages, only), &environments)
            }
            Requirement::TextPresent { .. } | Requirement::TextAbsent { .. } => text::look(condition, around.home),
        });
    }
    findings
}

impl Finding {
    /// Something that holds.
    pub fn ok(subject: impl Into<String>, what: impl Into<String>, why: &str) -> Self {
        Self { subject: subject.into(), state: State::Ok, what: what.into(), why: why.to_owned(), fix: String::new() }
    }

    /// Something that does not hold, with what to do about it.
    pub fn fault(subject: impl Into<String>, what: impl Into<String>, why: &str, fix: impl Into<String>) -> Self {
        Self { state: State::Fault, fix: fix.into(), ..Self::ok(subject, what, why) }
    }

    /// Something that could not be looked at, or that nobody can judge.
    pub fn unknown(subject: impl Into<String>, what: impl Into<String>, why: &str, fix: impl Into<String>) -> Self {
        Self { state: State::Unknown, ..Self::fault(subject, what, why, fix) }
    }
}

/// The system's reason alone, where `fs_err` has put the path around it.
fn reason(error: &io::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
