//! Everything that `larder report` says, in whatever format.

use std::path::Path;

use serde::Serialize;

use crate::artifact::Found;
use crate::conditions::{Finding, State};
use crate::facts::{FileHistory, Known, Run, Runs};
use crate::fleet::HeldContent;
use crate::observe::{Proof, Sighting};
use crate::report::status::{ArtifactStatus, is_in_order, statuses};
use crate::stores::FileState;
use crate::verify::{Fault, Stray, TrustedFile, Verdict};

/// The state of one machine at one moment.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// The machine.
    pub machine: String,
    /// Its profile, if it has one.
    pub profile: Option<String>,
    /// When it was looked at, seconds since 1970.
    pub at: i64,
    /// The larder that looked.
    pub larder: &'static str,
    /// Sums over the artifacts.
    pub totals: Totals,
    /// The artifacts: those that are not in order first, then the largest.
    pub artifacts: Vec<ReportedArtifact>,
    /// Packages, keys and conditions.
    pub findings: Vec<Finding>,
    /// The verifications that are remembered, the last one first.
    pub runs: Vec<Run>,
    /// Files that are trusted as first seen, because no record has a digest of them.
    pub trusted: Vec<TrustedFile>,
    /// Files in the stores that no artifact has, where somebody looked.
    pub strays: Vec<Stray>,
    /// What happened to files beside being right: faults, repairs; those with the newest first.
    pub histories: Vec<FileHistory>,
}

/// Sums over the artifacts of an overview.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// How many artifacts the machine must have.
    pub artifacts: usize,
    /// How many of them are in order, as far as is known without reading contents.
    pub in_order: usize,
    /// How many faults there are.
    pub faults: usize,
    /// Bytes that are here.
    pub here_bytes: u64,
    /// Bytes that must be here, as far as they are known.
    pub wanted_bytes: u64,
    /// When the content was read that nobody has read for longest; absent while any was never read.
    pub proven_at: Option<i64>,
    /// When the file was read that was not read for longest, right or wrong, leaving out those that were never read.
    pub oldest_read: Option<i64>,
    /// Bytes that are here and were never read, or were written since.
    pub unread_bytes: u64,
}

/// One artifact of an overview.
#[derive(Debug, Clone, Serialize)]
pub struct ReportedArtifact {
    /// What is here of it and what is wrong with it.
    #[serde(flatten)]
    pub status: ArtifactStatus,
    /// Bytes that it must have, as far as they are known.
    pub wanted_bytes: u64,
    /// When all of it was last read and right, if ever; it may be wrong since.
    pub last_good: Option<i64>,
    /// When any file of it was last read and right.
    pub part_good: Option<i64>,
    /// Whether nobody else has it.
    pub irreplaceable: bool,
    /// Of what nobody else has: every file that it must have, or that its pattern finds, and its content.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contents: Vec<HeldContent>,
}

impl ReportedArtifact {
    /// Whether nothing is missing or wrong.
    pub fn is_in_order(&self) -> bool {
        is_in_order(&self.status)
    }

    /// How big it is on a picture: what it must have, or what is here where that is more.
    pub fn weight(&self) -> u64 {
        self.wanted_bytes.max(self.status.here_bytes)
    }
}

/// Who is reported on, and when.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The machine.
    pub machine: &'a str,
    /// Its profile, if it has one.
    pub profile: Option<&'a str>,
    /// Seconds since 1970.
    pub at: i64,
}

impl Overview {
    /// Joins what was seen with what is remembered; `verdict` is the quick one of the same sightings.
    pub fn new(
        subject: Subject<'_>,
        sightings: &[Sighting<'_>],
        verdict: &Verdict,
        findings: Vec<Finding>,
        runs: &Runs,
    ) -> Self {
        let statuses = statuses(sightings, verdict);
        let mut artifacts: Vec<ReportedArtifact> =
            statuses.into_iter().zip(sightings).map(|(status, sighting)| reported(status, sighting, runs)).collect();
        artifacts.sort_by(|a, b| {
            let order = |one: &ReportedArtifact| (one.is_in_order(), std::cmp::Reverse(one.weight()));
            order(a).cmp(&order(b)).then_with(|| a.status.artifact.cmp(&b.status.artifact))
        });
        Self {
            machine: subject.machine.to_owned(),
            profile: subject.profile.map(str::to_owned),
            at: subject.at,
            larder: env!("CARGO_PKG_VERSION"),
            totals: Totals {
                oldest_read: oldest_read(sightings),
                unread_bytes: unread_bytes(sightings),
                ..totals(&artifacts)
            },
            artifacts,
            findings,
            runs: runs.latest_first(),
            trusted: verdict.trusted.clone(),
            strays: verdict.strays.clone(),
            histories: runs.histories().to_vec(),
        }
    }

    /// Adds which contents the irreplaceable artifacts are, so that other machines' can be compared with them.
    ///
    /// `known` is what was measured here: it names what the lock does not. `root_of` tells where a store lies.
    pub fn name_contents<'a>(
        &mut self,
        sightings: &[Sighting<'_>],
        known: &Known,
        root_of: impl Fn(&str) -> Option<&'a Path>,
    ) {
        let irreplaceable = sightings.iter().filter(|sighting| sighting.artifact.irreplaceable);
        for sighting in irreplaceable {
            let name = &sighting.artifact.name;
            if let Some(reported) = self.artifacts.iter_mut().find(|reported| reported.status.artifact == *name) {
                reported.contents = contents(sighting, known, root_of(&sighting.artifact.store));
            }
        }
    }

    /// All faults, in the order of the artifacts.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.artifacts.iter().flat_map(|artifact| &artifact.status.faults)
    }

    /// What does not hold beside the files, or could not be looked at.
    pub fn complaints(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.state != State::Ok)
    }

    /// Whether every artifact is in order and every condition holds, as far as it could be looked at.
    pub fn is_in_order(&self) -> bool {
        self.totals.in_order == self.totals.artifacts && self.findings.iter().all(|one| one.state != State::Fault)
    }
}

fn reported(status: ArtifactStatus, sighting: &Sighting<'_>, runs: &Runs) -> ReportedArtifact {
    use crate::observe::Proof::{FirstUse, Proven};
    let artifact = sighting.artifact;
    let good = sighting.proofs.iter().filter_map(|proof| match proof {
        Proven { at } | FirstUse { at, .. } => Some(*at),
        _ => None,
    });
    ReportedArtifact {
        wanted_bytes: artifact.size().0,
        last_good: status.proven_at.max(runs.last_good(&artifact.name)),
        part_good: good.max(),
        irreplaceable: artifact.irreplaceable,
        contents: Vec::new(),
        status,
    }
}

fn contents(sighting: &Sighting<'_>, known: &Known, root: Option<&Path>) -> Vec<HeldContent> {
    use crate::observe::Proof::Refuted;
    let measured = |found: &Found| known.of(found).and_then(|measured| measured.digests.names().next());
    let looked = sighting.artifact.files.iter().zip(&sighting.observed.files).zip(&sighting.proofs);
    let files = looked.map(|((file, state), proof)| {
        let found = match state {
            FileState::Present(found) | FileState::Staged(found) => Some(found),
            _ => None,
        };
        let content = file.digests.names().next().or_else(|| measured(found?));
        HeldContent {
            path: file.path.to_string(),
            bytes: file.size.or(found.map(|found| found.size)),
            content: content.map(|name| name.to_string()),
            here: (found.is_some() || *state == FileState::Held) && !matches!(proof, Refuted { .. }),
        }
    });
    let matches = sighting.matches.iter().map(|found| HeldContent {
        path: root.and_then(|root| found.path.strip_prefix(root).ok()).unwrap_or(&found.path).display().to_string(),
        bytes: Some(found.size),
        content: measured(found).map(|name| name.to_string()),
        here: true,
    });
    files.chain(matches).collect()
}

fn totals(artifacts: &[ReportedArtifact]) -> Totals {
    let proofs = artifacts.iter().filter(|artifact| artifact.status.here_files > 0).map(|one| one.status.proven_at);
    Totals {
        artifacts: artifacts.len(),
        in_order: artifacts.iter().filter(|artifact| artifact.is_in_order()).count(),
        faults: artifacts.iter().map(|artifact| artifact.status.faults.len()).sum(),
        here_bytes: artifacts.iter().map(|artifact| artifact.status.here_bytes).sum(),
        wanted_bytes: artifacts.iter().map(|artifact| artifact.wanted_bytes).sum(),
        proven_at: proofs.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().min()),
        ..Totals::default()
    }
}

fn oldest_read(sightings: &[Sighting<'_>]) -> Option<i64> {
    sightings.iter().flat_map(|sighting| &sighting.proofs).filter_map(Proof::read_at).min()
}

fn unread_bytes(sightings: &[Sighting<'_>]) -> u64 {
    let unread = |sighting: &Sighting<'_>| {
        let files = sighting.here().filter(|(number, _)| sighting.proofs[*number].read_at().is_none());
        files.map(|(_, found)| found.size).sum::<u64>()
    };
    sightings.iter().map(unread).sum()
}
