//! What must hold between an inventory and the manifests: every artifact must fit its store.

use std::collections::BTreeMap;

use super::{Inventory, Layout};
use crate::artifact::{HubRepo, Reference};
use crate::manifest::{Declared, DeclaredFile, InputError, Manifests, did_you_mean};

/// A mistake with the artifact and the key it is about, and its advice.
type Report<'a> = dyn FnMut(&Declared, &str, String, &str) + 'a;

/// Mistakes in how `wanted` artifacts of `manifests` use the stores of `inventory`.
pub fn fit(inventory: &Inventory, manifests: &Manifests, wanted: &[&Declared]) -> Vec<InputError> {
    let mut errors = Vec::new();
    let mut wrong = |artifact: &Declared, key: &str, message: String, hint: &str| {
        if let Some(place) = manifests.place(&artifact.name, key) {
            errors.push(InputError::new(place, format!("artifact `{}`: {message}", artifact.name)).hint(hint));
        }
    };
    for artifact in wanted {
        match inventory.stores.get(&artifact.store) {
            None => {
                let known = inventory.stores.keys().map(String::as_str);
                let hint = did_you_mean(&artifact.store, known).unwrap_or_else(|| "add it to [stores]".to_owned());
                wrong(artifact, "store", format!("the inventory has no store `{}`", artifact.store), &hint);
            }
            Some(store) if !holds(store.layout, artifact) => {
                let (name, layout) = (&artifact.store, store.layout);
                let message = format!("store `{name}` has the layout {layout}, which cannot hold this source");
                let scheme = if layout == Layout::Ollama { "ollama:" } else { "hf:" };
                let hint = format!("choose another store, or a source that begins with {scheme}");
                wrong(artifact, "source", message, &hint);
            }
            Some(_) => {}
        }
    }
    two_commits(inventory, manifests, wanted, &mut wrong);
    two_contents(inventory, manifests, wanted, &mut wrong);
    errors
}

/// In one cache, `main` of a repository is one commit for everybody.
fn two_commits(inventory: &Inventory, manifests: &Manifests, wanted: &[&Declared], wrong: &mut Report<'_>) {
    let mut repositories: BTreeMap<(&str, String), (&Declared, &str)> = BTreeMap::new();
    for artifact in wanted {
        let Some((repo, commit)) = pin(inventory, artifact) else { continue };
        let (first, other) = repositories.entry((&artifact.store, repo.to_string())).or_insert((artifact, commit));
        if *other != commit {
            let message = format!(
                "it pins {repo} at {commit}, and `{}`{} pins it at {other}: in store `{}` both would be its `main`",
                first.name,
                at(manifests, first),
                artifact.store,
            );
            wrong(artifact, "source", message, "pin the same commit in both, or give one of them a store of its own");
        }
    }
}

/// In one folder, a path is one content for everybody.
fn two_contents(inventory: &Inventory, manifests: &Manifests, wanted: &[&Declared], wrong: &mut Report<'_>) {
    let mut places: BTreeMap<(&str, String), (&Declared, &DeclaredFile)> = BTreeMap::new();
    let is_folder = |store: &str| inventory.stores.get(store).is_some_and(|store| store.layout == Layout::Folder);
    for artifact in wanted.iter().filter(|artifact| is_folder(&artifact.store)) {
        for file in &artifact.file {
            let path = artifact.folder.as_ref().map_or_else(|| file.path.clone(), |folder| folder.join(&file.path));
            let (first, other) = places.entry((&artifact.store, path.to_string())).or_insert((artifact, file));
            let differs = file.digests().check(&other.digests()).is_err()
                || file.size.zip(other.size).is_some_and(|(one, two)| one != two);
            if differs {
                let (whose, at, store) = (&first.name, at(manifests, first), &artifact.store);
                let message = format!("in store `{store}`, {path} is also a file of `{whose}`{at}, with other content");
                wrong(artifact, "file", message, "give one of them another path or `folder`");
            }
        }
    }
}

fn at(manifests: &Manifests, artifact: &Declared) -> String {
    manifests.place(&artifact.name, "source").map(|place| format!(" ({place})")).unwrap_or_default()
}

/// Whether a layout can hold an artifact, as far as its source tells.
fn holds(layout: Layout, artifact: &Declared) -> bool {
    match (layout, &artifact.source) {
        (Layout::Folder, _) | (_, None | Some(Reference::Local | Reference::Unidentified)) => true,
        (Layout::HfCache, Some(source)) => matches!(source, Reference::Hub { .. }),
        (Layout::Ollama, Some(source)) => matches!(source, Reference::Ollama(_)),
    }
}

/// The repository and revision that an artifact pins in a cache, where `main` is one commit for all.
fn pin<'a>(inventory: &Inventory, artifact: &'a Declared) -> Option<(&'a HubRepo, &'a str)> {
    let is_cache = inventory.stores.get(&artifact.store).is_some_and(|store| store.layout == Layout::HfCache);
    match &artifact.source {
        Some(Reference::Hub { repo, revision: Some(revision), .. }) if is_cache && is_commit(revision) => {
            Some((repo, revision))
        }
        _ => None,
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}
