//! The end of each artifact: published, looked at once more, and remembered.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::bring::blocking;
use super::{JobError, Run, Work};
use crate::artifact::{Artifact, Found};
use crate::fsio;
use crate::monitor::Event;
use crate::stores::{FileState, Store, StoreMark};

impl Run {
    /// Leaves our mark in every store that is written, so that an empty mount point is recognised later.
    pub(super) fn mark_stores(&self) {
        let mut names: Vec<String> = self.works.iter().map(|work| work.artifact.store.clone()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let Ok(open) = self.store(&name) else { continue };
            // What a server keeps is written by nobody else.
            if open.config.api.is_some() {
                continue;
            }
            let store = open.store.as_ref();
            for folder in [store.staging(), store.staging().join("overwritten")] {
                if let Err(error) = fsio::sweep(&folder, fsio::DEAD_AFTER) {
                    tracing::warn!(folder = %folder.display(), %error, "what a killed larder left is not swept away");
                }
            }
            let marked =
                StoreMark::ensure(store).map(|mark| self.means.facts.remember_store_mark(store.root(), &mark.id));
            if let Err(error) = marked {
                self.fail(&format!("store `{name}`"), &JobError::io("It cannot be written")(error));
            }
        }
    }

    pub(super) async fn finish_all(self: &Arc<Self>) {
        for index in 0..self.works.len() {
            let run = self.clone();
            let finished = blocking(move || run.finish(index)).await;
            let name = self.works[index].artifact.name.clone();
            match finished {
                Ok(()) => {}
                Err(JobError::Interrupted) => return,
                Err(error) => self.fail(&name, &error),
            }
        }
    }

    fn finish(&self, index: usize) -> Result<(), JobError> {
        let work = &self.works[index];
        let artifact = work.known_artifact();
        let store = self.store(&artifact.store)?.store.as_ref();
        // Before anything leads to the new files, and before they are remembered or reported.
        work.sync()?;
        let published = self.publish(work, &artifact, store);
        self.remember(work, &artifact, store);
        published
    }

    fn publish(&self, work: &Work, artifact: &Artifact, store: &dyn Store) -> Result<(), JobError> {
        let has_failed = |outcome: &super::Outcome| {
            let files = format!("{}/", artifact.name);
            outcome.failures.iter().any(|failure| failure.item.starts_with(&files))
        };
        let failed = has_failed(&self.outcome.lock().unwrap_or_else(PoisonError::into_inner));
        if !work.wants_publishing || failed || self.means.stop.is_cancelled() {
            return Ok(());
        }
        store.publish(artifact)?;
        let observed = store.observe(artifact);
        if let Err(unpublished) = observed.published {
            return Err(JobError::NotFoundAfterwards { state: unpublished.to_string() });
        }
        self.means.monitor.event(Event::Finished { item: &artifact.name });
        self.note(|outcome| outcome.published.push(artifact.name.clone()));
        Ok(())
    }

    /// Writes to the facts what was measured on arrival, under the names that `observe` will ask for.
    ///
    /// Only of files that are still the ones that were measured: another program, or another file whose name the
    /// file system takes for the same, may have come between.
    fn remember(&self, work: &Work, artifact: &Artifact, store: &dyn Store) {
        let learned = work.learned();
        if learned.is_empty() {
            return;
        }
        let observed = store.observe(artifact);
        let here = learned.iter().filter_map(|(file, learned)| match observed.files.get(*file)? {
            FileState::Present(found) | FileState::Staged(found) => {
                is_still(found, &learned.measured).then_some((found, &learned.digests))
            }
            _ => None,
        });
        let recorded = self.means.facts.record_placed(here, (self.means.now)());
        let chunks = learned.values().filter_map(|learned| Some((learned.digests.sha256?, learned.chunks.as_ref()?)));
        let recorded = chunks.fold(recorded, |recorded, (sha256, chunks)| {
            recorded.and_then(|()| self.means.facts.record_chunks(&sha256, chunks))
        });
        if let Err(error) = recorded {
            tracing::warn!(%error, "what was measured is not remembered");
        }
        self.note(|outcome| outcome.learned.push(artifact.clone()));
    }
}

/// Whether `found` is the file that was `measured`, by whatever name, and was not written to since.
fn is_still(found: &Found, measured: &Found) -> bool {
    let identity = |found: &Found| (found.device, found.inode, found.size, found.mtime_ns);
    identity(found) == identity(measured)
}

impl Work {
    /// Makes the names of everything that was placed durable.
    fn sync(&self) -> Result<(), JobError> {
        let folders = std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        let failed = |folder: &Path| JobError::io(format!("{} cannot be written to the disk", folder.display()));
        folders.iter().try_for_each(|folder| fsio::sync_dir(folder).map_err(failed(folder)))
    }
}
