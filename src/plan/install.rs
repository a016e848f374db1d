//! Images in stores that a running server fills: it takes in only what it pulls itself, and larder can be who it pulls from.

use super::obstacles::{not_there, server_keeps_it, server_pulls_itself, server_would_pull};
use super::{ArtifactPlan, Obstacle, Outlook, Step, remotes};
use crate::artifact::{File, Reference, Remote};
use crate::observe::{Proof, Sighting};
use crate::stores::FileState;

pub(super) fn plan_install(sighting: &Sighting<'_>, outlook: &Outlook, entry: &mut ArtifactPlan) {
    let files = sighting.artifact.files.iter().zip(&sighting.proofs);
    let mut refuted = files.filter(|(_, proof)| matches!(proof, Proof::Refuted(_)));
    if let Some((file, _)) = refuted.next() {
        let path = Some(file.path.clone());
        return entry.obstacles.push(Obstacle { path, refusal: server_keeps_it(&sighting.artifact.name) });
    }
    if sighting.observed.published.is_ok() && lacking(sighting).next().is_none() {
        // Nothing to do, so nobody is asked either.
        return;
    }
    let bytes = entry.size.map(|size| size.saturating_sub(entry.here_bytes));
    let from = if can_be_handed_over(sighting, outlook) { places(sighting, outlook) } else { Err(None) };
    match (from, &outlook.only_from, outlook.silent_servers.get(&entry.store)) {
        (_, _, Some(refusal)) => entry.obstacles.push(Obstacle { path: None, refusal: refusal.clone() }),
        (Ok(from), ..) => entry.steps.push(Step::Install { bytes, from }),
        (Err(Some(obstacle)), Some(_), _) => entry.obstacles.push(obstacle),
        (Err(_), Some(place), _) => {
            entry.obstacles.push(Obstacle { path: None, refusal: server_pulls_itself(place) });
        }
        (Err(_), None, _) if !outlook.upstream => {
            entry.obstacles.push(Obstacle { path: None, refusal: server_would_pull(outlook) });
        }
        (Err(_), None, _) => entry.steps.push(Step::Install { bytes, from: Vec::new() }),
    }
}

/// Whether the server reaches a mirror on this machine's loopback, and the mirror would know the image's manifest.
fn can_be_handed_over(sighting: &Sighting<'_>, outlook: &Outlook) -> bool {
    let artifact = sighting.artifact;
    let manifest = artifact.ollama.as_ref().and_then(|manifest| manifest.bytes.as_ref());
    manifest.is_some() && outlook.near_servers.contains(&artifact.store)
}

/// The files that are not known to be here, by their numbers.
fn lacking<'a>(sighting: &'a Sighting<'_>) -> impl Iterator<Item = (usize, &'a File)> {
    let files = sighting.artifact.files.iter().zip(&sighting.observed.files).enumerate();
    files.filter_map(|(number, (file, state))| match state {
        FileState::Present(_) | FileState::Held => None,
        _ => Some((number, file)),
    })
}

/// Where each lacking file is to come from, the lab first; or what stands in the way of the first one that upstream
/// would have to bring: that is left to the server.
fn places(sighting: &Sighting<'_>, outlook: &Outlook) -> Result<Vec<Vec<Remote>>, Option<Obstacle>> {
    let artifact = sighting.artifact;
    let mut places = vec![Vec::new(); artifact.files.len()];
    for (number, file) in lacking(sighting) {
        let all = remotes(artifact, file, outlook);
        let refusal = all.iter().find_map(|remote| outlook.refusals.of(remote)).cloned();
        let open: Vec<Remote> = all.into_iter().filter(|remote| outlook.refusals.of(remote).is_none()).collect();
        if !open.first().is_some_and(|remote| is_of_the_lab(&remote.reference)) {
            let obstacle = outlook.only_from.as_ref().map(|place| {
                let refusal = refusal.unwrap_or_else(|| not_there(place, artifact.irreplaceable));
                Obstacle { path: Some(file.path.clone()), refusal }
            });
            return Err(obstacle);
        }
        places[number] = open;
    }
    Ok(places)
}

fn is_of_the_lab(reference: &Reference) -> bool {
    matches!(reference, Reference::Peer { .. } | Reference::Bucket { .. } | Reference::Directory(_))
}
