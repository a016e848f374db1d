//! Which content this machine has, or will have, under any name.

use std::collections::HashMap;
use std::path::PathBuf;

use super::{Origin, Outlook};
use crate::digest::{GitSha1, Sha256};
use crate::observe::{Proof, Sighting};
use crate::stores::FileState;

#[derive(PartialEq, Eq, Hash, Clone, Copy)]
enum Key {
    Sha256(Sha256),
    GitSha1(GitSha1),
}

/// Content by digest: where it is, and what will arrive in this run.
pub(super) struct ContentIndex<'a> {
    here: HashMap<Key, (String, PathBuf, u64)>,
    arriving: HashMap<Key, (String, u64)>,
    outlook: &'a Outlook,
}

impl<'a> ContentIndex<'a> {
    pub(super) fn of(sightings: &[Sighting<'_>], outlook: &'a Outlook) -> Self {
        let mut here = HashMap::new();
        // Only digests that are wanted somewhere can be found, so only those are worth remembering.
        let wanted = wanted_keys(sightings);
        for sighting in sightings.iter().filter(|_| outlook.reuse && !wanted.is_empty()) {
            for (file, state) in sighting.observed.files.iter().enumerate() {
                let (FileState::Present(found) | FileState::Staged(found)) = state else { continue };
                if matches!(sighting.proofs[file], Proof::Refuted(_)) {
                    continue;
                }
                for key in keys(sighting, file).into_iter().filter(|key| wanted.contains_key(key)) {
                    here.entry(key).or_insert_with(|| (name(sighting, file), found.path.clone(), found.size));
                }
            }
        }
        Self { here, arriving: HashMap::new(), outlook }
    }

    /// Where the content of a file can be taken from without asking the network, and its length.
    pub(super) fn find(&self, sighting: &Sighting<'_>, file: usize) -> Option<(Origin, u64)> {
        for key in keys(sighting, file) {
            if let Some((whose, path, bytes)) = self.here.get(&key) {
                return Some((Origin::Here { whose: whose.clone(), path: path.clone() }, *bytes));
            }
        }
        let wanted = &sighting.artifact.files[file];
        for name in wanted.digests.names().filter(|_| self.outlook.reuse) {
            if let Some(held) = self.outlook.on_machine.get(&name) {
                return Some((Origin::Here { whose: held.whose.clone(), path: held.path.clone() }, held.size));
            }
        }
        for key in keys(sighting, file).into_iter().filter(|_| self.outlook.reuse) {
            if let Some((whose, bytes)) = self.arriving.get(&key) {
                return Some((Origin::Arriving { whose: whose.clone() }, *bytes));
            }
        }
        None
    }

    /// Takes back what was noted of an artifact's files.
    pub(super) fn will_not_arrive(&mut self, artifact: &str) {
        let is_of = |whose: &str| whose.strip_prefix(artifact).is_some_and(|rest| rest.starts_with('/'));
        self.arriving.retain(|_, (whose, _)| !is_of(whose));
    }

    /// Notes that a file's content is going to be fetched.
    pub(super) fn will_arrive(&mut self, sighting: &Sighting<'_>, file: usize) {
        let Some(size) = sighting.artifact.files[file].size else { return };
        for key in keys(sighting, file) {
            self.arriving.entry(key).or_insert_with(|| (name(sighting, file), size));
        }
    }
}

fn wanted_keys(sightings: &[Sighting<'_>]) -> HashMap<Key, ()> {
    let mut wanted = HashMap::new();
    for sighting in sightings {
        for (file, state) in sighting.observed.files.iter().enumerate() {
            let here = matches!(state, FileState::Present(_) | FileState::Staged(_))
                && !matches!(sighting.proofs[file], Proof::Refuted(_));
            if !here {
                wanted.extend(keys(sighting, file).into_iter().map(|key| (key, ())));
            }
        }
    }
    wanted
}

fn keys(sighting: &Sighting<'_>, file: usize) -> Vec<Key> {
    let digests = &sighting.artifact.files[file].digests;
    digests.sha256.map(Key::Sha256).into_iter().chain(digests.git_sha1.map(Key::GitSha1)).collect()
}

fn name(sighting: &Sighting<'_>, file: usize) -> String {
    format!("{}/{}", sighting.artifact.name, sighting.artifact.files[file].path)
}
