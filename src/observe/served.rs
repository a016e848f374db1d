//! Stores that a running server keeps: its word counts where larder may not look itself.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use url::Url;

use super::{Access, Proof, Sighting};
use crate::artifact::{Artifact, Reference};
use crate::ollama_api::{Installed, OllamaApi};
use crate::stores::{Absence, FileState, Observed, OpenStore, Stores, Unpublished};

/// How long a server may take to say what it has.
const PATIENCE: Duration = Duration::from_secs(10);

/// The servers that know more than larder can see, by store: their directories are closed to this user,
/// or not on this machine's file systems.
pub fn servers_to_ask(stores: &Stores, sightings: &[Sighting<'_>]) -> BTreeMap<String, Url> {
    let closed = sightings.iter().filter_map(|sighting| {
        let open = stores.get(&sighting.artifact.store)?;
        let server = open.config.api.clone()?;
        is_closed(sighting, open).then(|| (sighting.artifact.store.clone(), server))
    });
    closed.collect()
}

/// Asks each of `servers` once, and lets its answer stand where larder could not look.
///
/// A server that does not answer closes its store.
pub async fn hear(servers: &BTreeMap<String, Url>, stores: &Stores, sightings: &mut [Sighting<'_>]) {
    for (store, server) in servers {
        let Some(open) = stores.get(store) else { continue };
        let said = ask(server).await;
        let own = sightings.iter_mut().filter(|sighting| sighting.artifact.store == *store);
        for sighting in own.filter(|sighting| is_closed(sighting, open)) {
            match &said {
                Ok(models) => tell(sighting, server, models),
                Err(reason) => sighting.access = Access::Absent(silent(open, server, reason)),
            }
        }
    }
}

/// What the server has, or why it does not say.
pub async fn ask(server: &Url) -> Result<Vec<Installed>, String> {
    let api = OllamaApi::new(server.clone());
    match tokio::time::timeout(PATIENCE, api.installed()).await {
        Ok(Ok(models)) => Ok(models),
        Ok(Err(error)) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            Err(text)
        }
        Err(_) => Err(format!("the Ollama server at {server} says nothing for {} s", PATIENCE.as_secs())),
    }
}

fn is_closed(sighting: &Sighting<'_>, open: &OpenStore) -> bool {
    let is_unreadable = |state: &FileState| matches!(state, FileState::Unreadable { .. });
    match &sighting.access {
        Access::Absent(Absence::Unreadable { .. }) => true,
        Access::Open => {
            let observed = &sighting.observed;
            matches!(observed.published, Err(Unpublished::Unreadable { .. }))
                || observed.files.iter().any(is_unreadable)
                || !open.store.root().exists()
        }
        _ => false,
    }
}

fn silent(open: &OpenStore, server: &Url, reason: &str) -> Absence {
    let path = open.store.root().display().to_string();
    Absence::ServerSilent { path, server: server.to_string(), reason: reason.to_owned() }
}

fn tell(sighting: &mut Sighting<'_>, server: &Url, models: &[Installed]) {
    let published = judge(sighting.artifact, server, models);
    let state = if published.is_ok() { FileState::Held } else { FileState::Missing };
    let count = sighting.artifact.files.len();
    sighting.access = Access::Told;
    sighting.observed = Observed { files: vec![state; count], published };
    sighting.proofs = vec![Proof::Unknown; count];
    sighting.matches = Vec::new();
}

fn judge(artifact: &Artifact, server: &Url, models: &[Installed]) -> Result<(), Unpublished> {
    let missing = |name: &str| Unpublished::Missing { what: format!("{name} on the Ollama server at {server}") };
    let Reference::Ollama(name) = &artifact.source else { return Err(missing(&artifact.name)) };
    let what = name.to_string();
    let model = models.iter().find(|model| model.is_named(name)).ok_or_else(|| missing(&what))?;
    match &artifact.ollama {
        Some(manifest) if manifest.digest == model.digest => Ok(()),
        Some(manifest) => Err(Unpublished::Different {
            what: format!("{what} on the Ollama server at {server}"),
            actual: model.digest.to_string(),
            wanted: manifest.digest.to_string(),
        }),
        None => Err(Unpublished::Missing { what: format!("the digest of {what} in the lock") }),
    }
}
