//! The route through a running Ollama server, which installs images for its own store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use url::Url;

use super::{JobError, Run};
use crate::artifact::{Artifact, OllamaName, Reference};
use crate::monitor::Event;
use crate::ollama_api::{OllamaApi, Pull, PullProgress};

impl Run {
    /// Has the server of the artifact's store install the image; the digest is compared afterwards.
    pub(super) async fn install(self: &Arc<Self>, work: usize) {
        let artifact = self.works[work].artifact.clone();
        let installed = tokio::select! {
            installed = self.install_one(&artifact) => installed,
            () = self.means.stop.cancelled() => return,
        };
        match installed {
            Ok(()) => self.note(|outcome| outcome.published.push(artifact.name.clone())),
            Err(error) => self.fail(&artifact.name, &error),
        }
    }

    async fn install_one(&self, artifact: &Artifact) -> Result<(), JobError> {
        let config = &self.store(&artifact.store)?.config;
        let (Some(server), Reference::Ollama(name), Some(manifest)) = (&config.api, &artifact.source, &artifact.ollama)
        else {
            return Ok(());
        };
        let (mirror, insecure) = self.mirror_name(name);
        let pull = Pull { mirror: &mirror, name, digest: manifest.digest, insecure };
        let item = artifact.name.as_str();
        let total = artifact.size().0;
        self.means.monitor.event(Event::Started { item, total: Some(total), resumed: 0, from: server.as_str() });
        let told = AtomicU64::new(0);
        let progress = |progress: PullProgress| {
            // The server counts each layer on its own; only growth is told on.
            let done = progress.completed.unwrap_or(0);
            let before = told.swap(done, Ordering::Relaxed);
            self.means.monitor.event(Event::Advanced { item, bytes: done.saturating_sub(before) });
        };
        Ok(OllamaApi::new(server.clone()).pull_from(&pull, &progress).await?)
    }

    /// The name to pull by: on the configured registry, else the image's own.
    fn mirror_name(&self, name: &OllamaName) -> (OllamaName, bool) {
        let Some(registry) = &self.means.ollama_registry else { return (name.clone(), false) };
        let host = authority(registry);
        (OllamaName { host, ..name.clone() }, registry.scheme() == "http")
    }
}

/// Host and port as they stand in a model's name.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
