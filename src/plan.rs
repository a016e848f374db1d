//! The plan: what must happen so that this machine has what it must have.
//!
//! [`plan`] is a pure function of what is wanted, what was seen and what can be had. It touches
//! nothing and asks nobody; `apply` carries out exactly its steps.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use serde::Serialize;

use crate::artifact::{Artifact, File, Reference, Remote};
use crate::digest::{CHUNK_LEN, ContentName};
use crate::fsio::Space;
use crate::inventory::{Layout, SourceKind};
use crate::observe::{Held, Proof, Sighting};
use crate::size::Bytes;
use crate::stores::{Defect, FileState};

mod content;
mod download;
mod install;
mod obstacles;
mod refusals;
mod room;
mod steps;

use content::ContentIndex;
pub use download::Download;
use install::plan_install;
use obstacles::{may_not_be_read, no_upstream, not_there, one_name_for_two, upstream_is_off, whole_artifact_obstacle};
pub use refusals::Refusals;
use room::Rooms;
pub use steps::{ArtifactPlan, Need, Obstacle, Origin, Plan, Room, Step};

/// Files from this length on are fetched in parts, from several places at once.
pub const WORTH_PARTS: u64 = 2 * CHUNK_LEN;

/// What the world beyond this machine looks like.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// Places and files that cannot be read.
    pub refusals: Refusals,
    /// Contents that this machine has, though none of the artifacts that are planned.
    pub on_machine: HashMap<ContentName, Held>,
    /// Files that a drive holds: content key to path.
    pub on_drives: HashMap<String, PathBuf>,
    /// Content that peers have: by its name, the peers that have it, the preferred one first.
    pub on_peers: HashMap<ContentName, Vec<String>>,
    /// Of this, what none of them has: one would have to fetch it from upstream first.
    pub brought: HashSet<ContentName>,
    /// Content that object stores of the lab have: by its name, the buckets that have it, the preferred one first.
    pub on_buckets: HashMap<ContentName, Vec<String>>,
    /// Which kind of place is asked first.
    pub order: Vec<SourceKind>,
    /// Free space of each store's file system, by store.
    pub spaces: HashMap<String, Space>,
    /// Of artifacts without a source: those of which one is right, by the artifact's name.
    pub alternatives: HashMap<String, Vec<Reference>>,
    /// Artifact names that policy forbids.
    pub denied: Vec<String>,
    /// Whether content that is here already may be reused.
    pub reuse: bool,
    /// Whether anything may be fetched from where it was published.
    pub upstream: bool,
    /// The one place that this run takes from, as people call it, where it was told so.
    pub only_from: Option<String>,
    /// Whether upstream is left out because the command line says it, not the machine's order of sources.
    pub only_local: bool,
    /// How much may be downloaded, from upstream and from those that count like it.
    pub max_download: Option<Bytes>,
    /// Peers and buckets that count like upstream, by [`crate::artifact::Reference::authority`].
    pub metered: Vec<String>,
    /// Stores into which a running server installs, by store.
    pub served_stores: Vec<String>,
    /// Of these, the ones whose server runs on this machine: it can pull from a mirror on the loopback.
    pub near_servers: Vec<String>,
    /// Of these, the ones whose server does not answer or may not be asked, by store.
    pub silent_servers: HashMap<String, Refusal>,
}

impl Default for Outlook {
    /// Nothing is refused, nothing is on drives, nothing is known of space.
    fn default() -> Self {
        Self {
            refusals: Refusals::default(),
            on_machine: HashMap::new(),
            on_drives: HashMap::new(),
            on_peers: HashMap::new(),
            brought: HashSet::new(),
            on_buckets: HashMap::new(),
            order: vec![SourceKind::Peer, SourceKind::Bucket, SourceKind::Upstream],
            spaces: HashMap::new(),
            alternatives: HashMap::new(),
            denied: Vec::new(),
            reuse: true,
            upstream: true,
            only_from: None,
            only_local: false,
            max_download: None,
            metered: Vec::new(),
            served_stores: Vec::new(),
            near_servers: Vec::new(),
            silent_servers: HashMap::new(),
        }
    }
}

impl Outlook {
    /// Whether what comes from `reference` counts as downloaded.
    fn is_metered(&self, reference: &Reference) -> bool {
        match reference {
            Reference::Directory(_) => false,
            Reference::Peer { content, .. } if self.brought.contains(content) => true,
            Reference::Peer { .. } | Reference::Bucket { .. } => self.metered.contains(&reference.authority()),
            _ => true,
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
        let over_limit = download.as_ref().and_then(|download| download.refusal(&entry, outlook));
        if let Some(download) = download.as_mut().filter(|_| over_limit.is_some()) {
            download.leave_out(&entry, outlook);
        }
        match over_limit.or_else(|| rooms.take(&entry, sighting, outlook)) {
            Some(refusal) => entry.leave_undone(refusal, &mut index),
            None => download.iter_mut().for_each(|download| download.take(&entry, outlook)),
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
    plan_publishing(sighting, outlook, &mut entry);
    if let Some(refusal) = sighting.write_refusal.as_ref().filter(|_| !entry.steps.is_empty()) {
        entry.leave_undone(Refusal { reason: refusal.to_string(), hint: Some(refusal.hint()) }, index);
    }
    entry
}

/// The artifact becomes visible once all of it is here, so not while anything stands in the way.
fn plan_publishing(sighting: &Sighting<'_>, outlook: &Outlook, entry: &mut ArtifactPlan) {
    let artifact = sighting.artifact;
    if let Some(pattern) = artifact.pattern.as_ref().filter(|pattern| sighting.matches.len() < pattern.count) {
        let (here, wanted) = (sighting.matches.len(), pattern.count);
        entry.obstacles.push(Obstacle::whole(
            format!("{here} of {wanted} files {} are here, and there is no upstream", pattern.glob),
            Some("copy them from a machine or a backup that has them".to_owned()),
        ));
    }
    entry.obstacles.extend(wrong_matches(sighting, outlook));
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
fn wrong_matches(sighting: &Sighting<'_>, outlook: &Outlook) -> impl Iterator<Item = Obstacle> {
    let artifact = sighting.artifact;
    let refuted = sighting.here().filter_map(|(number, _)| match &sighting.proofs[number] {
        Proof::Refuted(wrong) if number >= artifact.files.len() => Some((number, wrong)),
        _ => None,
    });
    refuted.map(|(number, wrong)| {
        let path = sighting.path_of(number).trim_start_matches('/').parse().ok();
        if wrong.is_forbidden() {
            return Obstacle { path, refusal: may_not_be_read(wrong.detail.clone()) };
        }
        let Refusal { reason, hint } = no_upstream(artifact, outlook);
        let reason = format!("{}; {reason}", wrong.detail);
        Obstacle { path, refusal: Refusal { reason, hint } }
    })
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
    if let Some(clash) = sighting.clashes.iter().find(|clash| clash.file == file) {
        let refusal = one_name_for_two(&clash.with);
        return entry.obstacles.push(Obstacle { path: Some(wanted.path.clone()), refusal });
    }
    let need = match need_of(&sighting.observed.files[file], &sighting.proofs[file]) {
        Ok(None) => return,
        Ok(Some(need)) => need,
        Err(refusal) => return entry.obstacles.push(Obstacle { path: Some(wanted.path.clone()), refusal }),
    };
    let remotes = remotes(artifact, wanted, outlook);
    let refusal = remotes.iter().find_map(|remote| outlook.refusals.of(remote)).cloned();
    let open: Vec<Remote> = remotes.into_iter().filter(|remote| outlook.refusals.of(remote).is_none()).collect();
    let path = wanted.path.clone();
    let will_be_placed = !open.is_empty() || index.find(sighting, file).is_some();
    if will_be_placed && is_kept(sighting.layout, &sighting.observed.files[file]) {
        entry.set_aside.push(path.clone());
    }
    if let Some((from, bytes)) = index.find(sighting, file) {
        entry.steps.push(Step::Reuse { file, path, bytes, from, or_from: open, need });
    } else if let Some((path_there, bytes)) = on_drive_alone(wanted, &open) {
        let (from, or_from) = (Origin::Drive { path: path_there.clone() }, open[1..].to_vec());
        entry.steps.push(Step::Reuse { file, path, bytes, from, or_from, need });
    } else if !open.is_empty() {
        let bytes = wanted.size.map(|size| size.saturating_sub(sighting.partials[file].bytes));
        index.will_arrive(sighting, file);
        entry.steps.push(Step::Fetch { file, path, bytes, from: open, need });
    } else {
        let otherwise = || match &outlook.only_from {
            Some(place) => not_there(place, artifact.irreplaceable),
            None if outlook.upstream => no_upstream(artifact, outlook),
            None => upstream_is_off(outlook),
        };
        entry.obstacles.push(Obstacle { path: Some(path), refusal: refusal.unwrap_or_else(otherwise) });
    }
}

/// The drive that a file is simply copied from, and its length: where that is preferred, and no peer beside it has the
/// file too. A large file comes from both at the same time.
fn on_drive_alone<'a>(file: &File, open: &'a [Remote]) -> Option<(&'a PathBuf, u64)> {
    let Reference::Directory(path) = &open.first()?.reference else { return None };
    let is_shared = file.size.is_some_and(|size| size >= WORTH_PARTS)
        && open.get(1).is_some_and(|next| matches!(next.reference, Reference::Peer { .. }));
    (!is_shared).then_some((path, file.size.unwrap_or(0)))
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
            SourceKind::Drive => {
                let path = outlook.on_drives.get(&file.content_key(artifact)).cloned();
                let reference = path.map(Reference::Directory);
                remotes.extend(reference.map(|reference| Remote { reference, size: file.size, digests: file.digests }));
            }
            SourceKind::Upstream => {}
        }
    }
    if outlook.only_local {
        // A folder of this machine is no upstream, though the manifest names it as the source.
        let is_here = |remote: &Remote| matches!(remote.reference, Reference::Directory(_));
        remotes.extend(artifact.remotes(file).into_iter().filter(is_here));
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
        (FileState::Present(found) | FileState::Staged(found), Proof::Refuted(wrong)) if wrong.is_forbidden() => {
            Err(may_not_be_read(format!("{}: {}", found.path.display(), wrong.detail)))
        }
        (FileState::Present(_) | FileState::Staged(_), Proof::Refuted(wrong)) => {
            Ok(Some(Need::Mend { defect: wrong.detail.clone() }))
        }
        (FileState::Present(_) | FileState::Staged(_) | FileState::Held, _) => Ok(None),
        (FileState::Missing, _) => Ok(Some(Need::Missing)),
        (FileState::Wrong { defect: Defect::NotAFile, .. }, _) => Err(Refusal {
            reason: "a folder is in its place".to_owned(),
            hint: Some("move the folder away".to_owned()),
        }),
        (FileState::Wrong { defect, .. }, _) => Ok(Some(Need::Mend { defect: defect.to_string() })),
        (FileState::Unreadable { path, is_denied: true, reason }, _) => {
            Err(may_not_be_read(format!("{} exists, but may not be read: {reason}", path.display())))
        }
        (FileState::Unreadable { path, reason, .. }, _) => Err(Refusal {
            reason: format!("{} cannot be read by the disk: {reason}", path.display()),
            hint: Some(
                "see what the system says of the disk, with dmesg and smartctl; then run larder again".to_owned(),
            ),
        }),
    }
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
            && !matches!(proof, Proof::Refuted(_))
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
        Proof::Proven { at } | Proof::FirstUse { at, .. } => Some(*at),
        Proof::Refuted(_) | Proof::Unknown => None,
    });
    proofs.collect::<Option<Vec<_>>>()?.into_iter().min()
}
