//! The plan: what must happen so that this machine has what it must have.
//!
//! [`plan`] is a pure function of what is wanted, what was seen and what can be had. It touches
//! nothing and asks nobody; `apply` carries out exactly its steps.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::artifact::{Artifact, File, Reference, Remote};
use crate::digest::ContentName;
use crate::fsio::Space;
use crate::inventory::{Layout, SourceKind};
use crate::observe::{Access, Proof, Sighting};
use crate::size::Bytes;
use crate::stores::{Defect, FileState};

mod content;
mod download;
mod room;
mod steps;

use content::ContentIndex;
pub use download::Download;
use room::Rooms;
pub use steps::{ArtifactPlan, Need, Obstacle, Origin, Plan, Room, Step};

/// What the world beyond this machine looks like.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// Repositories, images and addresses that cannot be read, by [`crate::artifact::Reference::authority`].
    pub refusals: HashMap<String, Refusal>,
    /// Files that a drive holds: content key to path.
    pub on_drives: HashMap<String, PathBuf>,
    /// Content that peers have: by its name, the peers that have it, the preferred one first.
    pub on_peers: HashMap<ContentName, Vec<String>>,
    /// Content that object stores of the lab have: by its name, the buckets that have it, the preferred one first.
    pub on_buckets: HashMap<ContentName, Vec<String>>,
    /// Which kind of place is asked first.
    pub order: Vec<SourceKind>,
    /// Free space of each store's file system, by store.
    pub spaces: HashMap<String, Space>,
    /// Artifact names that policy forbids.
    pub denied: Vec<String>,
    /// Whether content that is here already may be reused.
    pub reuse: bool,
    /// Whether anything may be fetched from where it was published.
    pub upstream: bool,
    /// How much may be downloaded in all.
    pub max_download: Option<Bytes>,
    /// Stores into which a running server installs, by store.
    pub served_stores: Vec<String>,
    /// Of these, the ones whose server does not answer or may not be asked, by store.
    pub silent_servers: HashMap<String, Refusal>,
}

impl Default for Outlook {
    /// Nothing is refused, nothing is on drives, nothing is known of space.
    fn default() -> Self {
        Self {
            refusals: HashMap::new(),
            on_drives: HashMap::new(),
            on_peers: HashMap::new(),
            on_buckets: HashMap::new(),
            order: vec![SourceKind::Peer, SourceKind::Bucket, SourceKind::Upstream],
            spaces: HashMap::new(),
            denied: Vec::new(),
            reuse: true,
            upstream: true,
            max_download: None,
            served_stores: Vec::new(),
            silent_servers: HashMap::new(),
        }
    }
}

/// Why something cannot be had, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Why.
    pub reason: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Compares what is wanted with what was seen and decides what to do.
pub fn plan(sightings: &[Sighting<'_>], outlook: &Outlook) -> Plan {
    let mut index = ContentIndex::of(sightings, outlook);
    let mut rooms = Rooms::default();
    let mut download = outlook.max_download.map(Download::new);
    let mut artifacts = Vec::with_capacity(sightings.len());
    for sighting in sightings {
        let mut entry = plan_artifact(sighting, outlook, &mut index);
        let over_limit = download.as_ref().and_then(|download| download.refusal(&entry));
        if let Some(download) = download.as_mut().filter(|_| over_limit.is_some()) {
            download.leave_out(&entry);
        }
        match over_limit.or_else(|| rooms.take(&entry, sighting, outlook)) {
            Some(refusal) => entry.leave_undone(refusal, &mut index),
            None => download.iter_mut().for_each(|download| download.take(&entry)),
        }
        artifacts.push(entry);
    }
    Plan { artifacts, rooms: rooms.into_rooms(), download }
}

impl ArtifactPlan {
    /// Nothing happens to it after all, and nobody may wait for its files.
    fn leave_undone(&mut self, refusal: Refusal, index: &mut ContentIndex<'_>) {
        self.steps.clear();
        self.set_aside.clear();
        self.obstacles.push(Obstacle { path: None, refusal });
        index.will_not_arrive(&self.artifact);
    }
}

fn plan_artifact(sighting: &Sighting<'_>, outlook: &Outlook, index: &mut ContentIndex<'_>) -> ArtifactPlan {
    let artifact = sighting.artifact;
    let (known_size, all_known) = artifact.size();
    let mut entry = ArtifactPlan {
        artifact: artifact.name.clone(),
        store: artifact.store.clone(),
        files: artifact.pattern.as_ref().map_or(artifact.files.len(), |pattern| pattern.count),
        size: all_known.then_some(known_size),
        here_files: 0,
        here_bytes: 0,
        proven_at: oldest_proof(sighting),
        set_aside: Vec::new(),
        steps: Vec::new(),
        obstacles: Vec::new(),
    };
    count_what_is_here(sighting, &mut entry);
    if let Some(obstacle) = whole_artifact_obstacle(sighting, outlook) {
        entry.obstacles.push(obstacle);
        return entry;
    }
    if outlook.served_stores.contains(&artifact.store) {
        plan_install(sighting, outlook, &mut entry);
        return entry;
    }
    for file in 0..artifact.files.len() {
        plan_file(sighting, file, outlook, index, &mut entry);
    }
    plan_publishing(sighting, &mut entry);
    if let Some(refusal) = sighting.write_refusal.as_ref().filter(|_| !entry.steps.is_empty()) {
        entry.leave_undone(Refusal { reason: refusal.to_string(), hint: Some(refusal.hint()) }, index);
    }
    entry
}

/// The artifact becomes visible once all of it is here, so not while anything stands in the way.
fn plan_publishing(sighting: &Sighting<'_>, entry: &mut ArtifactPlan) {
    let artifact = sighting.artifact;
    if let Some(pattern) = artifact.pattern.as_ref().filter(|pattern| sighting.matches.len() < pattern.count) {
        let (here, wanted) = (sighting.matches.len(), pattern.count);
        entry.obstacles.push(Obstacle::whole(
            format!("{here} of {wanted} files {} are here, and there is no upstream", pattern.glob),
            Some("copy them from a machine or a backup that has them".to_owned()),
        ));
    }
    entry.obstacles.extend(wrong_matches(sighting));
    if !entry.obstacles.is_empty() || artifact.files.is_empty() {
        return;
    }
    if let Err(unpublished) = &sighting.observed.published {
        entry.steps.push(Step::Publish { because: unpublished.to_string() });
    } else if entry.steps.iter().any(|step| matches!(step, Step::Fetch { .. } | Step::Reuse { .. })) {
        entry.steps.push(Step::Publish { because: "its files are new".to_owned() });
    }
}

/// Files that only a pattern knows, and that were read and are not what they were: nobody else has them.
fn wrong_matches(sighting: &Sighting<'_>) -> impl Iterator<Item = Obstacle> {
    let artifact = sighting.artifact;
    let refuted = sighting.here().filter_map(|(number, _)| match &sighting.proofs[number] {
        Proof::Refuted { mismatch, .. } if number >= artifact.files.len() => Some((number, mismatch)),
        _ => None,
    });
    refuted.map(|(number, mismatch)| {
        let Refusal { reason, hint } = no_upstream(artifact.irreplaceable);
        let reason = format!("its content is wrong: {mismatch}; {reason}");
        let path = sighting.path_of(number).trim_start_matches('/').parse().ok();
        Obstacle { path, refusal: Refusal { reason, hint } }
    })
}

fn plan_install(sighting: &Sighting<'_>, outlook: &Outlook, entry: &mut ArtifactPlan) {
    let is_here = |state: &FileState| matches!(state, FileState::Present(_) | FileState::Held);
    let files = sighting.artifact.files.iter().zip(&sighting.proofs);
    let mut refuted = files.filter(|(_, proof)| matches!(proof, Proof::Refuted { .. }));
    if let Some((file, _)) = refuted.next() {
        let path = Some(file.path.clone());
        entry.obstacles.push(Obstacle { path, refusal: server_keeps_it(&sighting.artifact.name) });
    } else if sighting.observed.published.is_ok() && sighting.observed.files.iter().all(is_here) {
        // Nothing to do, so nobody is asked either.
    } else if let Some(refusal) = outlook.silent_servers.get(&entry.store) {
        entry.obstacles.push(Obstacle { path: None, refusal: refusal.clone() });
    } else if !outlook.upstream {
        entry.obstacles.push(Obstacle { path: None, refusal: upstream_is_off() });
    } else {
        let missing = entry.size.map(|size| size.saturating_sub(entry.here_bytes));
        entry.steps.push(Step::Install { bytes: missing });
    }
}

fn server_keeps_it(artifact: &str) -> Refusal {
    Refusal {
        reason: "its content is wrong, and a server does not fetch again what has the right length".to_owned(),
        hint: Some(format!("remove {artifact} with `ollama rm`, then run larder apply again")),
    }
}

fn plan_file(
    sighting: &Sighting<'_>,
    file: usize,
    outlook: &Outlook,
    index: &mut ContentIndex<'_>,
    entry: &mut ArtifactPlan,
) {
    let artifact = sighting.artifact;
    let wanted = &artifact.files[file];
    let need = match need_of(&sighting.observed.files[file], &sighting.proofs[file]) {
        Ok(None) => return,
        Ok(Some(need)) => need,
        Err(refusal) => return entry.obstacles.push(Obstacle { path: Some(wanted.path.clone()), refusal }),
    };
    let remotes = remotes(artifact, wanted, outlook);
    let refused: Vec<&Refusal> =
        remotes.iter().filter_map(|remote| outlook.refusals.get(&remote.reference.authority())).collect();
    let open: Vec<Remote> = remotes
        .iter()
        .filter(|remote| !outlook.refusals.contains_key(&remote.reference.authority()))
        .cloned()
        .collect();
    let path = wanted.path.clone();
    let will_be_placed = !open.is_empty() || index.find(sighting, file).is_some();
    if will_be_placed && is_kept(sighting.layout, &sighting.observed.files[file]) {
        entry.set_aside.push(path.clone());
    }
    if let Some((from, bytes)) = index.find(sighting, file) {
        entry.steps.push(Step::Reuse { file, path, bytes, from, or_from: open, need });
    } else if !open.is_empty() {
        let bytes = wanted.size.map(|size| size.saturating_sub(sighting.partials[file].bytes));
        index.will_arrive(sighting, file);
        entry.steps.push(Step::Fetch { file, path, bytes, from: open, need });
    } else {
        let otherwise = || if outlook.upstream { no_upstream(artifact.irreplaceable) } else { upstream_is_off() };
        let refusal = refused.first().map_or_else(otherwise, |refusal| (*refusal).clone());
        entry.obstacles.push(Obstacle { path: Some(path), refusal });
    }
}

/// Where a file can be fetched from, the preferred place first.
fn remotes(artifact: &Artifact, file: &File, outlook: &Outlook) -> Vec<Remote> {
    let mut remotes = Vec::new();
    for kind in &outlook.order {
        match kind {
            SourceKind::Peer => {
                let reference = |peer: String, content| Reference::Peer { peer, content };
                remotes.extend(held(file, &outlook.on_peers, reference));
            }
            SourceKind::Bucket => {
                let reference = |bucket: String, content| Reference::Bucket { bucket, content };
                remotes.extend(held(file, &outlook.on_buckets, reference));
            }
            SourceKind::Upstream if outlook.upstream => remotes.extend(artifact.remotes(file)),
            // What lies on a drive is reused like what lies in another store.
            SourceKind::Upstream | SourceKind::Drive => {}
        }
    }
    remotes
}

/// The places of one kind that have a file's content.
fn held(
    file: &File,
    holders: &HashMap<ContentName, Vec<String>>,
    reference: impl Fn(String, ContentName) -> Reference,
) -> Vec<Remote> {
    let found = file.digests.names().find_map(|name| Some((name, holders.get(&name)?)));
    let remote = |(content, holder): (ContentName, &String)| Remote {
        reference: reference(holder.clone(), content),
        size: file.size,
        digests: file.digests,
    };
    found
        .into_iter()
        .flat_map(|(content, holders)| holders.iter().map(move |holder| (content, holder)))
        .map(remote)
        .collect()
}

/// Whether what lies in a file's place is kept: not when it is nothing, nor where its name tells what it should have been.
fn is_kept(layout: Layout, state: &FileState) -> bool {
    let is_nothing = matches!(
        state,
        FileState::Missing
            | FileState::Wrong {
                defect: Defect::Empty | Defect::LfsPointer | Defect::Html | Defect::Dangling { .. },
                ..
            }
    );
    layout != Layout::HfCache && !is_nothing
}

/// What must happen to a file; `Err` when nothing may be done though it cannot be used.
fn need_of(state: &FileState, proof: &Proof) -> Result<Option<Need>, Refusal> {
    match (state, proof) {
        (FileState::Present(_) | FileState::Staged(_), Proof::Refuted { mismatch, .. }) => {
            Ok(Some(Need::Mend { defect: format!("its content is wrong: {mismatch}") }))
        }
        (FileState::Present(_) | FileState::Staged(_) | FileState::Held, _) => Ok(None),
        (FileState::Missing, _) => Ok(Some(Need::Missing)),
        (FileState::Wrong { defect: Defect::NotAFile, .. }, _) => Err(Refusal {
            reason: "a folder is in its place".to_owned(),
            hint: Some("move the folder away".to_owned()),
        }),
        (FileState::Wrong { defect, .. }, _) => Ok(Some(Need::Mend { defect: defect.to_string() })),
        (FileState::Unreadable { path, is_denied: true, reason }, _) => Err(Refusal {
            reason: format!("{} exists, but may not be read: {reason}", path.display()),
            hint: Some("run larder as the user who owns the store, or as root".to_owned()),
        }),
        (FileState::Unreadable { path, reason, .. }, _) => Err(Refusal {
            reason: format!("{} cannot be read by the disk: {reason}", path.display()),
            hint: Some(
                "see what the system says of the disk, with dmesg and smartctl; then run larder again".to_owned(),
            ),
        }),
    }
}

fn no_upstream(irreplaceable: bool) -> Refusal {
    let reason = if irreplaceable {
        "it has no upstream: only a copy from another machine can bring it"
    } else {
        "nobody knows where it comes from"
    };
    Refusal { reason: reason.to_owned(), hint: Some("copy it from a machine or a backup that has it".to_owned()) }
}

fn upstream_is_off() -> Refusal {
    Refusal {
        reason: "this machine may not fetch from upstream, and no drive has it".to_owned(),
        hint: Some("connect a drive that has it, or add \"upstream\" to the machine's order of sources".to_owned()),
    }
}

fn whole_artifact_obstacle(sighting: &Sighting<'_>, outlook: &Outlook) -> Option<Obstacle> {
    let artifact = sighting.artifact;
    match &sighting.access {
        Access::Open | Access::Told => {}
        Access::Absent(absence) => return Some(Obstacle::whole(absence.to_string(), Some(absence.hint()))),
        Access::Undeclared => {
            let reason = format!("the inventory declares no store `{}`", artifact.store);
            return Some(Obstacle::whole(reason, Some("add it to [stores]".to_owned())));
        }
    }
    if outlook.denied.contains(&artifact.name) {
        let hint = "take it out of the profile, or out of [policy] deny".to_owned();
        return Some(Obstacle::whole("policy forbids it".to_owned(), Some(hint)));
    }
    let nothing_listed = artifact.files.is_empty() && artifact.pattern.is_none();
    let unlisted = !artifact.complete && artifact.pattern.is_none() && artifact.source.has_upstream();
    if unlisted {
        let reason = "its files are not locked yet: the manifest alone does not list them all".to_owned();
        return Some(Obstacle::whole(reason, Some(format!("larder lock --update {}", artifact.name))));
    }
    nothing_listed.then(|| Obstacle::whole(no_upstream(artifact.irreplaceable).reason, None))
}

fn count_what_is_here(sighting: &Sighting<'_>, entry: &mut ArtifactPlan) {
    for (file, state) in sighting.artifact.files.iter().zip(&sighting.observed.files) {
        if let FileState::Held = state {
            entry.here_files += 1;
            entry.here_bytes += file.size.unwrap_or(0);
        }
    }
    for (state, proof) in sighting.observed.files.iter().zip(&sighting.proofs) {
        if let FileState::Present(found) | FileState::Staged(found) = state
            && !matches!(proof, Proof::Refuted { .. })
        {
            entry.here_files += 1;
            entry.here_bytes += found.size;
        }
    }
    entry.here_files += sighting.matches.len();
    entry.here_bytes += sighting.matches.iter().map(|found| found.size).sum::<u64>();
}

fn oldest_proof(sighting: &Sighting<'_>) -> Option<i64> {
    let proofs = sighting.proofs.iter().map(|proof| match proof {
        Proof::Proven { at } | Proof::FirstUse { at } => Some(*at),
        Proof::Refuted { .. } | Proof::Unknown => None,
    });
    proofs.collect::<Option<Vec<_>>>()?.into_iter().min()
}

impl Obstacle {
    fn whole(reason: String, hint: Option<String>) -> Self {
        Self { path: None, refusal: Refusal { reason, hint } }
    }
}
