//! The route through a running Ollama server, which installs images for its own store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use url::Url;

use super::bring::blocking;
use super::handover::Mirror;
use super::{JobError, Learned, Run};
use crate::artifact::{Artifact, File, Found, OllamaName, Reference, Remote};
use crate::digest::ContentHasher;
use crate::fsio::{self, ProofError};
use crate::monitor::Event;
use crate::ollama_api::{OllamaApi, Pull, PullProgress};
use crate::stores::FileState;

impl Run {
    /// Has the server of the artifact's store install the image; the digest is compared afterwards.
    ///
    /// With `from`, the server pulls from a mirror that larder opens for it on the loopback, and which takes the files
    /// from there; without, from the image's own registry or the one that the inventory names.
    pub(super) async fn install(self: &Arc<Self>, work: usize, from: Vec<Vec<Remote>>) {
        let artifact = self.works[work].artifact.clone();
        match self.install_one(work, &artifact, from).await {
            Ok(()) => self.note(|outcome| outcome.published.push(artifact.name.clone())),
            Err(JobError::Interrupted) => {}
            Err(error) => self.fail(&artifact.name, &error),
        }
    }

    async fn install_one(
        self: &Arc<Self>,
        work: usize,
        artifact: &Arc<Artifact>,
        from: Vec<Vec<Remote>>,
    ) -> Result<(), JobError> {
        let config = &self.store(&artifact.store)?.config;
        let (Some(server), Reference::Ollama(name), Some(manifest)) = (&config.api, &artifact.source, &artifact.ollama)
        else {
            return Ok(());
        };
        let item = artifact.name.as_str();
        let total = artifact.size().0;
        self.means.monitor.event(Event::Started { item, total: Some(total), resumed: 0, from: server.as_str() });
        let api = OllamaApi::new(server.clone());
        if !from.is_empty() {
            return self.hand_over(&api, (work, artifact), name, from).await;
        }
        let (mirror, insecure) = self.mirror_name(name);
        let pull = Pull { mirror: &mirror, name, digest: manifest.digest, insecure };
        let told = AtomicU64::new(0);
        let progress = |progress: PullProgress| {
            // The server counts each layer on its own; only growth is told on.
            let done = progress.completed.unwrap_or(0);
            let before = told.swap(done, Ordering::Relaxed);
            self.means.monitor.event(Event::Advanced { item, bytes: done.saturating_sub(before) });
        };
        Ok(self.unless_stopped(api.pull_from(&pull, &progress)).await??)
    }

    async fn unless_stopped<T>(&self, pulling: impl Future<Output = T>) -> Result<T, JobError> {
        tokio::select! {
            pulled = pulling => Ok(pulled),
            () = self.means.stop.cancelled() => Err(JobError::Interrupted),
        }
    }

    /// Lets the server pull what the lab has, from a mirror that is there for this one image only.
    async fn hand_over(
        self: &Arc<Self>,
        api: &OllamaApi,
        (work, artifact): (usize, &Arc<Artifact>),
        name: &OllamaName,
        from: Vec<Vec<Remote>>,
    ) -> Result<(), JobError> {
        let Some(manifest) = &artifact.ollama else { return Ok(()) };
        let mirror = Mirror::open(self, artifact, from).await?;
        let pull = Pull { mirror: &mirror.name(name), name, digest: manifest.digest, insecure: true };
        let pulled = self.unless_stopped(api.pull_from(&pull, &|_| {})).await;
        self.note(|outcome| outcome.moved_bytes += mirror.moved());
        if let Err(error) = pulled? {
            // What the mirror could not give says more than that the server could not get it.
            return Err(mirror.trouble().map_or_else(|| error.into(), JobError::from));
        }
        self.forget_left_names(api, name).await;
        let (run, artifact) = (Arc::clone(self), Arc::clone(artifact));
        blocking(move || run.prove_installed(work, &artifact, &mirror)).await
    }

    /// Removes the names of mirrors whose larder was killed between the pull and the renaming. The image has its
    /// proper name by now, so nothing but the names goes.
    async fn forget_left_names(&self, api: &OllamaApi, name: &OllamaName) {
        let Ok(installed) = api.installed().await else { return };
        for left in installed.iter().filter_map(|model| Mirror::left_name(&model.name, name)) {
            if let Err(error) = api.delete(&left).await {
                tracing::warn!(%error, "a name that a killed larder left stays");
            }
        }
    }

    /// Reads what the server has stored, where larder may. What it may not read must have passed through the mirror to
    /// its last byte: the server compared its digest then.
    fn prove_installed(&self, work: usize, artifact: &Artifact, mirror: &Mirror) -> Result<(), JobError> {
        let store = self.store(&artifact.store)?.store.as_ref();
        let observed = store.observe(artifact);
        for (number, (file, state)) in artifact.files.iter().zip(&observed.files).enumerate() {
            match state {
                _ if !mirror.hands_over(number) => {}
                FileState::Present(found) => self.prove_stored(work, number, file, found)?,
                FileState::Missing if store.root().exists() => {
                    return Err(JobError::NotFoundAfterwards { state: format!("{} is missing", file.path) });
                }
                _ if mirror.has_handed_over(number) => {}
                _ => return Err(JobError::Unproven { path: file.path.to_string() }),
            }
        }
        Ok(())
    }

    fn prove_stored(&self, work: usize, number: usize, file: &File, found: &Found) -> Result<(), JobError> {
        let unread = || JobError::io(format!("{} cannot be read", found.path.display()));
        let hasher = ContentHasher::to_compare(&file.digests, file.size);
        let (digests, _) = fsio::hash_file_by(&found.path, hasher, &mut |_| match self.means.stop.is_cancelled() {
            true => Err(std::io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        })
        .map_err(|error| if self.means.stop.is_cancelled() { JobError::Interrupted } else { unread()(error) })?;
        file.digests.check(&digests).map_err(|mismatch| JobError::Wrong {
            from: "the Ollama server".to_owned(),
            source: ProofError::Content(mismatch),
        })?;
        self.works[work].learn(number, Learned { file: file.clone(), measured: found.clone(), digests, chunks: None });
        Ok(())
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
