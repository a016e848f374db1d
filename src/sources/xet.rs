//! Xet: content of the hub, read from the hub's content-addressed store by Hugging Face's own `hf-xet`.
//!
//! Stands in front of the hub. Nothing depends on it: whatever goes wrong, the same bytes come by plain
//! ranges from the same offset on. Chunk hashes are not compared by the library, so what comes this way is
//! as unproven as what comes over http: the caller's digest decides.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::body::{is_empty, size_change};
use super::hub::{Announced, Opened};
use super::set::Timeouts;
use super::{Body, ByteRange, HubSource, Listing, Source, SourceError};
use crate::artifact::{Reference, Remote};

mod passes;
mod reading;
mod trouble;

use passes::Passes;
use reading::Reading;
use trouble::Trouble;

/// After so many files that Xet did not deliver, no further one is asked of it in this run.
const FILES_TO_FAIL: usize = 3;

/// The hub, with Xet in front of it.
pub(super) struct XetSource(Arc<Shared>);

/// What all open bodies have in common.
struct Shared {
    hub: HubSource,
    passes: Passes,
    /// By reference.
    known: Mutex<HashMap<String, Way>>,
    failed: AtomicUsize,
    told: AtomicBool,
    /// Stretches that are on their way: they share the memory.
    on_their_way: AtomicUsize,
    /// How long the library may stay silent: less than callers wait for a body, so that plain ranges come in time.
    patience: Duration,
    /// Bytes of a stretch that took about as long as it should, lately.
    stretch: AtomicU64,
}

/// How a file is read.
#[derive(Clone)]
enum Way {
    Xet(Announced),
    Plain,
}

impl XetSource {
    /// Asks `hub` where content lies. The library keeps (empty) folders in `scratch`, and has at most
    /// `connections` requests to the store under way.
    pub(super) fn new(hub: HubSource, scratch: PathBuf, timeouts: Timeouts, connections: usize) -> Self {
        Self(Arc::new(Shared {
            hub,
            passes: Passes::new(scratch, timeouts, connections),
            known: Mutex::default(),
            failed: AtomicUsize::new(0),
            told: AtomicBool::new(false),
            on_their_way: AtomicUsize::new(0),
            patience: timeouts.stall * 2 / 3,
            stretch: AtomicU64::new(reading::FIRST_STRETCH),
        }))
    }

    /// Where the content of `remote` lies in Xet; else its plain bytes.
    async fn announced(&self, remote: &Remote, range: ByteRange) -> Result<Opened, SourceError> {
        match self.0.way(remote) {
            Some(Way::Xet(announced)) => Ok(Opened::Xet(announced)),
            Some(Way::Plain) => self.0.hub.open(remote, range).await.map(Opened::Plain),
            None => {
                let opened = self.0.hub.open_or_announce(remote, range).await?;
                if let Opened::Xet(announced) = &opened {
                    self.0.known().insert(remote.reference.to_string(), Way::Xet(announced.clone()));
                }
                Ok(opened)
            }
        }
    }
}

#[async_trait]
impl Source for XetSource {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        self.0.hub.list(reference).await
    }

    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        self.0.hub.check(remote).await
    }

    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        let announced = match self.announced(remote, range).await? {
            Opened::Plain(body) => return Ok(body),
            Opened::Xet(announced) => announced,
        };
        let size = announced.size;
        if let Some(changed) = size_change(Some(size), remote.size, &remote.reference.to_string()) {
            return Err(changed);
        }
        if is_empty(range) || range.start >= size {
            return self.0.hub.open(remote, range).await;
        }
        let allowed = self.0.hub.network().allowed(range, Some(size), &remote.reference.to_string())?;
        let end = allowed.range.end.map_or(size, |end| end.min(size));
        let etag = announced.etag.clone();
        let mut reading = Reading::new(Arc::clone(&self.0), remote.clone(), announced, range.start..end);
        reading.is_cut = allowed.is_cut;
        let (start, total) = (range.start, Some(size));
        Ok(Body { start, total, ignores_range: false, etag, stream: reading.into_stream() })
    }

    fn distrust(&self, remote: &Remote) -> bool {
        let was_xet = matches!(self.0.way(remote), Some(Way::Xet(_)));
        if was_xet {
            self.0.give_up(remote, &Trouble::new("its content is not the file's"));
        }
        was_xet
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Way>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How `remote` is read, where that is known.
    fn way(&self, remote: &Remote) -> Option<Way> {
        if self.failed.load(Ordering::Relaxed) >= FILES_TO_FAIL {
            return Some(Way::Plain);
        }
        self.known().get(&remote.reference.to_string()).cloned()
    }

    /// Reads `remote` by plain ranges for the rest of the run. The user is told once, if told anything (`-v`).
    fn give_up(&self, remote: &Remote, trouble: &Trouble) {
        let name = remote.reference.to_string();
        let before = self.known().insert(name.clone(), Way::Plain);
        if matches!(before, Some(Way::Plain)) {
            return;
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
        if self.told.swap(true, Ordering::Relaxed) {
            tracing::debug!("{name} comes by plain ranges: {trouble}");
        } else {
            tracing::info!("{name} comes by plain ranges, because Xet failed: {trouble}; others may follow");
        }
    }
}
