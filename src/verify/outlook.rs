//! What is known of the files after a verification, beside what is wrong with them.

use std::collections::{HashMap, HashSet};

use super::{Fault, FaultKind, Verdict};
use crate::facts::Standing;
use crate::observe::{Access, Proof, Sighting};
use crate::stores::FileState;

/// What is known of every file that a run looked at.
pub struct Outlook<'a> {
    sightings: &'a [Sighting<'a>],
    verdict: &'a Verdict,
    by_name: HashMap<&'a str, usize>,
    wrong_files: HashSet<(&'a str, &'a str)>,
}

impl<'a> Outlook<'a> {
    /// Of the run over `sightings` that came to `verdict`.
    pub fn new(sightings: &'a [Sighting<'a>], verdict: &'a Verdict) -> Self {
        let by_name =
            sightings.iter().enumerate().map(|(index, sighting)| (sighting.artifact.name.as_str(), index)).collect();
        let wrong = verdict.faults.iter();
        let wrong_files = wrong.filter_map(|fault| Some((fault.artifact.as_str(), fault.path.as_deref()?))).collect();
        Self { sightings, verdict, by_name, wrong_files }
    }

    /// Whether the run looked at `artifact`.
    pub fn covers(&self, artifact: &str) -> bool {
        self.by_name.contains_key(artifact)
    }

    /// Whether what was once wrong with the content of a file is over: it was read and is right, or it is not there
    /// any more, or nobody wants it.
    pub fn has_ended(&self, artifact: &str, path: &str) -> bool {
        let Some(number) = self.by_name.get(artifact) else { return false };
        let sighting = &self.sightings[*number];
        if !matches!(sighting.access, Access::Open) {
            return false;
        }
        let Some(file) = number_of(sighting, path) else { return true };
        match sighting.observed.files.get(file) {
            Some(FileState::Held | FileState::Unreadable { .. }) => false,
            Some(FileState::Missing | FileState::Wrong { .. }) => true,
            Some(FileState::Present(_) | FileState::Staged(_)) | None => self.right_since(*number, file, 0).is_some(),
        }
    }

    /// The artifacts of which every file is known to be right and nothing else is wrong, and since when that is known
    /// of all of them, if the run ended at `at`.
    pub fn good(&self, at: i64) -> Vec<(&'a str, i64)> {
        let wrong: HashSet<&str> = self.verdict.faults.iter().map(|fault| fault.artifact.as_str()).collect();
        let of = |(number, sighting): (usize, &'a Sighting<'a>)| {
            let files = sighting.proofs.len();
            let name = sighting.artifact.name.as_str();
            let is_read = files > 0 && !wrong.contains(name);
            if !is_read {
                return None;
            }
            let since = (0..files).map(|file| self.right_since(number, file, at)).collect::<Option<Vec<_>>>();
            since?.into_iter().min().map(|since| (name, since))
        };
        self.sightings.iter().enumerate().filter_map(of).collect()
    }

    /// When a file was read last, where it was right then and is the same still; `now` where that was in this run.
    fn right_since(&self, sighting: usize, file: usize, now: i64) -> Option<i64> {
        if self.verdict.right.contains(&(sighting, file)) {
            return Some(now);
        }
        let sighting = &self.sightings[sighting];
        let is_wrong =
            || self.wrong_files.contains(&(sighting.artifact.name.as_str(), sighting.path_of(file).as_str()));
        match &sighting.proofs[file] {
            Proof::Proven { at } | Proof::FirstUse { at, .. } if !is_wrong() => Some(*at),
            _ => None,
        }
    }
}

impl Verdict {
    /// Adds what earlier runs found wrong with contents that were written since and not read again: nobody has seen
    /// that it is over.
    pub fn recall<'a>(&mut self, sightings: &[Sighting<'_>], standing: impl Iterator<Item = &'a Standing>) {
        let outlook = Outlook::new(sightings, self);
        let recalled: Vec<Fault> = standing.filter_map(|one| outlook.recalled(one)).collect();
        self.faults.extend(recalled);
        let order: HashMap<&str, usize> =
            sightings.iter().enumerate().map(|(index, sighting)| (sighting.artifact.name.as_str(), index)).collect();
        self.faults.sort_by_key(|fault| order.get(fault.artifact.as_str()).copied());
    }
}

impl Outlook<'_> {
    fn recalled(&self, standing: &Standing) -> Option<Fault> {
        let Standing { artifact, path, kind, detail } = standing;
        let path = path.as_deref()?;
        let kind = FaultKind::named(kind).filter(|kind| FaultKind::OF_CONTENT.contains(kind))?;
        if self.wrong_files.contains(&(artifact.as_str(), path)) || self.has_ended(artifact, path) {
            return None;
        }
        let sighting = &self.sightings[*self.by_name.get(artifact.as_str())?];
        let file = number_of(sighting, path)?;
        let (_, found) = sighting.here().find(|(here, _)| *here == file)?;
        Some(Fault {
            artifact: artifact.clone(),
            path: Some(path.to_owned()),
            kind,
            detail: format!("{detail}; nobody has read all of it since"),
            place: Some(found.path.clone()),
            ranges: Vec::new(),
            remembered: None,
        })
    }
}

fn number_of(sighting: &Sighting<'_>, path: &str) -> Option<usize> {
    (0..sighting.proofs.len()).find(|file| sighting.path_of(*file) == path)
}
