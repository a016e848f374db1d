//! What keeps a step from being planned, in the words that people read: why not, and what to do about it.

use super::{Obstacle, Outlook, Refusal};
use crate::artifact::{Artifact, File, Reference};
use crate::observe::{Access, Sighting};

pub(super) fn server_pulls_itself(place: &str) -> Refusal {
    Refusal {
        reason: "a running server keeps this store, and takes in only what it pulls itself".to_owned(),
        hint: Some(format!(
            "larder hands models over only to a server on this machine, and only those whose manifest is locked (larder lock); \
             else serve them where they are ({place}) with `larder serve`, name that in [sources] ollama, and run larder \
             apply; or copy without `api` in the store's entry, with the server stopped"
        )),
    }
}

pub(super) fn server_keeps_it(artifact: &str) -> Refusal {
    Refusal {
        reason: "its content is wrong, and a server does not fetch again what has the right length".to_owned(),
        hint: Some(format!("remove {artifact} with `ollama rm`, then run larder apply again")),
    }
}

pub(super) fn may_not_be_read(reason: String) -> Refusal {
    Refusal { reason, hint: Some("run larder as the user who owns the store, or as root".to_owned()) }
}

/// One of the two would replace the other, whoever comes last.
pub(super) fn one_name_for_two(other: &str) -> Refusal {
    Refusal {
        reason: format!(
            "this file system does not tell its name from that of {other}: capitals count for nothing there"
        ),
        hint: Some("keep it in a store on a file system that tells them apart, or name only one of them".to_owned()),
    }
}

pub(super) fn no_upstream(artifact: &Artifact, outlook: &Outlook) -> Refusal {
    let copy = "copy it from a machine or a backup that has it";
    let alternatives = outlook.alternatives.get(&artifact.name).map_or(&[][..], Vec::as_slice);
    if let [_, ..] = alternatives {
        return undecided(artifact, alternatives, copy);
    }
    let reason = if artifact.irreplaceable {
        "it has no upstream: only a copy from another machine can bring it"
    } else {
        "nobody knows where it comes from"
    };
    Refusal { reason: reason.to_owned(), hint: Some(copy.to_owned()) }
}

/// One of several sources is right, and a person can find out which.
fn undecided(artifact: &Artifact, alternatives: &[Reference], copy: &str) -> Refusal {
    let names: Vec<String> = alternatives.iter().map(ToString::to_string).collect();
    let is_shard =
        |file: &&File| [".safetensors", ".gguf", ".bin", ".pth"].iter().any(|end| file.path.as_str().ends_with(end));
    let shard = artifact.files.iter().find(is_shard).or_else(|| artifact.files.first());
    let shard = shard.map_or_else(|| "a large file".to_owned(), |file| file.path.to_string());
    Refusal {
        reason: format!("nobody knows which of {} sources it comes from", names.len()),
        hint: Some(format!(
            "the sources of {} may be {}: compare `sha256sum {shard}` of a machine that has it with the sha256 that each of them \
             shows for the file, then write the right one into the manifest as `source`; or {copy}",
            artifact.name,
            names.join(", "),
        )),
    }
}

pub(super) fn not_there(place: &str, irreplaceable: bool) -> Refusal {
    let hint = if irreplaceable {
        "copy it from a machine or a backup that has it"
    } else {
        "copy it from another place, or fetch it with: larder apply"
    };
    Refusal { reason: format!("{place} does not have it"), hint: Some(hint.to_owned()) }
}

pub(super) fn server_would_pull(outlook: &Outlook) -> Refusal {
    if !outlook.only_local {
        return upstream_is_off(outlook);
    }
    let reason = "its server would pull it from upstream, and --only-local takes nothing from there".to_owned();
    Refusal { reason, hint: Some("leave out --only-local".to_owned()) }
}

pub(super) fn upstream_is_off(outlook: &Outlook) -> Refusal {
    if outlook.only_local {
        return Refusal {
            reason: "no drive, machine or bucket of the lab has it, and --only-local takes nothing from upstream"
                .to_owned(),
            hint: Some("leave out --only-local, or connect a drive or a machine that has it".to_owned()),
        };
    }
    Refusal {
        reason: "this machine may not fetch from upstream, and no drive has it".to_owned(),
        hint: Some("connect a drive that has it, or add \"upstream\" to the machine's order of sources".to_owned()),
    }
}

pub(super) fn whole_artifact_obstacle(sighting: &Sighting<'_>, outlook: &Outlook) -> Option<Obstacle> {
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
    nothing_listed.then(|| {
        let Refusal { reason, hint } = no_upstream(artifact, outlook);
        Obstacle::whole(reason, hint.filter(|_| outlook.alternatives.contains_key(&artifact.name)))
    })
}

impl Obstacle {
    pub(super) fn whole(reason: String, hint: Option<String>) -> Self {
        Self { path: None, refusal: Refusal { reason, hint } }
    }
}
