//! Carries out patches: in place while the file is the very one that was found wrong, else as a new file.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::donor::{self, DonorError};
use super::{Failure, Means, Misled, Outcome, Patch};
use crate::artifact::{Artifact, Found};
use crate::digest::{CHUNK_LEN, ChunkDigests, ContentHasher, Digests, chunk_range};
use crate::facts::{Happening, Trust, Verified};
use crate::fsio::{self, ContentReader, FileLock, Overwrite, PIECE, Partial, PieceBuffer, Proven};
use crate::lock::Lock;
use crate::monitor::Event;
use crate::stores::{Store, StoreError};
use crate::text::chain;

/// Chunks that are asked for at once: what is kept in memory.
const AT_ONCE: usize = 4;
/// How long another program may work on the same content before the file is left for another time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a file was not repaired. Unless it says otherwise, the file is as it was.
#[derive(Debug, thiserror::Error)]
enum PatchError {
    #[error("stopped")]
    Interrupted,
    #[error("its store, or its entry in the lock, is gone")]
    Gone,
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the right bytes cannot be had")]
    Donor(#[from] DonorError),
    #[error("its content is not right with the right chunks either: it has changed since it was verified")]
    StillWrong,
    #[error("it cannot be put in its place")]
    Store(#[from] StoreError),
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> PatchError {
    let what = what.to_owned();
    move |source| PatchError::Io { what, source }
}

/// Carries out `patches`, whose artifacts are those of `lock`, one after the other.
pub async fn carry_out(patches: Vec<Patch>, lock: &Lock, means: Means) -> Outcome {
    let means = Arc::new(means);
    let mut outcome = Outcome::default();
    for patch in patches {
        if means.stop.is_cancelled() {
            break;
        }
        let item = format!("{}/{}", patch.artifact, patch.path);
        let event = Event::Started { item: &item, total: Some(patch.bytes), resumed: 0, from: "parts" };
        means.monitor.event(event);
        let Some(artifact) = lock.artifact(&patch.artifact) else { continue };
        let mut job = Job { patch: Arc::new(patch), artifact: Arc::new(artifact.clone()), means: Arc::clone(&means) };
        match job.carry_out(&mut outcome).await {
            Ok(()) => {
                means.monitor.event(Event::Finished { item: &item });
                outcome.repaired.push(item);
            }
            Err(PatchError::Interrupted) => {}
            Err(error) => {
                let reason = chain(&error);
                means.monitor.event(Event::Failed { item: &item, reason: &reason });
                match (&job.patch.told_by, &error) {
                    (Some(by), PatchError::StillWrong | PatchError::Donor(_)) => {
                        let (artifact, by) = (job.patch.artifact.clone(), by.clone());
                        outcome.misled.push(Misled { item, artifact, by, reason });
                    }
                    _ => outcome.failures.push(Failure { item, reason, hint: hint(&error) }),
                }
            }
        }
    }
    outcome.interrupted = means.stop.is_cancelled();
    outcome
}

#[derive(Clone)]
struct Job {
    patch: Arc<Patch>,
    artifact: Arc<Artifact>,
    means: Arc<Means>,
}

impl Job {
    async fn carry_out(&mut self, outcome: &mut Outcome) -> Result<(), PatchError> {
        let _locks = self.blocking(Job::take_locks).await?;
        match self.blocking(Job::open).await? {
            Some(file) => self.in_place(file, outcome).await,
            None => self.as_a_new_file(outcome).await,
        }
    }

    /// Our own lock for the content first, then those of other programs.
    fn take_locks(&self) -> Result<Vec<FileLock>, PatchError> {
        let store = self.store()?;
        let own = store.staging().join(format!("{}.lock", self.key()));
        let foreign = store.foreign_locks(&self.artifact, &self.artifact.files[self.patch.file]);
        let take = |path: PathBuf| {
            FileLock::acquire_unless(&path, store.owner(), PATIENCE, || (), || self.means.stop.is_cancelled())
        };
        let locks = std::iter::once(own).chain(foreign).map(take).collect::<io::Result<_>>();
        locks.map_err(failed("another program works on it, or its lock cannot be taken"))
    }

    /// Opens the file to write into it, where it is the very file that was verified and may be written.
    fn open(&self) -> Result<Option<Overwrite>, PatchError> {
        let store = self.store()?;
        let aside = store.staging().join("overwritten");
        match Overwrite::open(&self.patch.found, &aside, &self.key(), store.owner()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            opened => opened.map_err(failed("it cannot be opened for writing")),
        }
    }

    async fn in_place(&self, mut file: Overwrite, outcome: &mut Outcome) -> Result<(), PatchError> {
        for run in runs(&self.patch.chunks) {
            let bytes = match self.get(&run, outcome).await {
                Ok(bytes) => bytes,
                // A peer's word alone does not make what was written right.
                Err(error) if self.patch.told_by.is_some() => return self.blocking(|_| take_back(file, error)).await,
                Err(error) => return Err(error),
            };
            let (offset, len) = (run[0] * CHUNK_LEN, bytes.len() as u64);
            file = self
                .blocking(move |_| {
                    for (index, chunk) in bytes.chunks(CHUNK_LEN as usize).enumerate() {
                        file.write(offset + index as u64 * CHUNK_LEN, chunk).map_err(failed("it cannot be written"))?;
                    }
                    Ok(file)
                })
                .await?;
            let item = format!("{}/{}", self.patch.artifact, self.patch.path);
            self.means.monitor.event(Event::Advanced { item: &item, bytes: len });
        }
        self.blocking(|job| job.prove_in_place(file)).await
    }

    fn prove_in_place(&self, file: Overwrite) -> Result<(), PatchError> {
        match self.measure() {
            Ok((digests, chunks)) if self.is_right(&digests) => {
                let found = file.finish().map_err(failed("what was overwritten cannot be removed"))?;
                self.remember(found, digests, chunks);
                Ok(())
            }
            Ok(_) => take_back(file, PatchError::StillWrong),
            Err(error) => Err(failed("it cannot be read back")(error)),
        }
    }

    /// Puts a new file together, of what is right here and of what is fetched, and renames it into its place.
    async fn as_a_new_file(&self, outcome: &mut Outcome) -> Result<(), PatchError> {
        let mut partial = self.blocking(Job::new_partial).await?;
        for number in 0..self.patch.of {
            let bytes = if self.patch.chunks.contains(&number) {
                self.get(&[number], outcome).await?
            } else {
                self.blocking(move |job| job.own_chunk(number)).await?
            };
            partial = self
                .blocking(move |_| {
                    partial.append(&bytes).map_err(failed("a new file cannot be written"))?;
                    Ok(partial)
                })
                .await?;
        }
        self.blocking(|job| job.place(partial)).await
    }

    fn new_partial(&self) -> Result<Partial, PatchError> {
        let store = self.store()?;
        let mut partial = Partial::open(&store.staging(), &self.key(), self.hasher(), store.owner())
            .map_err(failed("a new file cannot be made"))?;
        partial.restart(self.hasher()).map_err(failed("a new file cannot be made"))?;
        Ok(partial)
    }

    fn own_chunk(&self, number: u64) -> Result<Vec<u8>, PatchError> {
        use std::os::unix::fs::FileExt;
        let range = chunk_range(number, self.patch.found.size);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let file = fs_err::File::open(&self.patch.place).map_err(failed("it cannot be read"))?;
        file.file().read_exact_at(&mut bytes, range.start).map_err(failed("it cannot be read"))?;
        Ok(bytes)
    }

    fn place(&self, partial: Partial) -> Result<(), PatchError> {
        let file = &self.artifact.files[self.patch.file];
        let mut proven: Proven = match partial.prove(Some(self.patch.found.size), &Digests::sha256(self.patch.content))
        {
            Ok(proven) => proven,
            Err(unproven) => {
                // It can be of use to nobody, and what lies in the place is as it was.
                let _ = unproven.partial.discard();
                return Err(PatchError::StillWrong);
            }
        };
        let digests = *proven.digests();
        let chunks = proven.take_chunks();
        let path = self.store()?.place(&self.artifact, file, proven)?;
        fsio::sync_dir(path.parent().unwrap_or(&path)).map_err(failed("its folder cannot be written"))?;
        if let Ok(Some(found)) = fsio::find(&self.patch.place) {
            self.remember(found, digests, chunks);
        }
        Ok(())
    }

    async fn get(&self, run: &[u64], outcome: &mut Outcome) -> Result<Vec<u8>, PatchError> {
        let got = match donor::chunks(&self.patch, run, &self.means).await {
            Err(DonorError::Interrupted) => return Err(PatchError::Interrupted),
            got => got?,
        };
        outcome.moved_bytes += got.moved;
        outcome.reused_bytes += if got.moved == 0 { got.bytes.len() as u64 } else { 0 };
        Ok(got.bytes)
    }

    /// The digests of the whole, and those of its chunks where these are only a peer's word so far.
    fn measure(&self) -> io::Result<(Digests, Option<ChunkDigests>)> {
        let reader = ContentReader::open(&self.patch.place)?;
        let (mut hasher, mut buffer, mut offset) = (self.hasher(), PieceBuffer::default(), 0);
        loop {
            let got = reader.read(&mut buffer, offset, PIECE)?;
            hasher.update(buffer.filled(got));
            offset += got as u64;
            if got < PIECE {
                return Ok(hasher.finish_with_chunks());
            }
        }
    }

    fn hasher(&self) -> ContentHasher {
        let wanted = &self.artifact.files[self.patch.file].digests;
        let hasher = ContentHasher::to_compare(wanted, Some(self.patch.found.size));
        if self.patch.told_by.is_some() { hasher.with_chunks() } else { hasher }
    }

    fn is_right(&self, digests: &Digests) -> bool {
        let wanted = &self.artifact.files[self.patch.file].digests;
        digests.sha256 == Some(self.patch.content) && wanted.check(digests).is_ok()
    }

    fn remember(&self, found: Found, digests: Digests, chunks: Option<ChunkDigests>) {
        let mended = self.patch.chunks.len();
        let is_recorded = self.artifact.files[self.patch.file].digests.proves_content();
        let trust = if is_recorded { Trust::Needless } else { Trust::Kept };
        let happening = Happening {
            at: (self.means.now)(),
            path: found.path.clone(),
            artifact: self.patch.artifact.clone(),
            event: "repaired".to_owned(),
            sha256: digests.sha256,
            bytes: self.patch.bytes,
            detail: format!("{mended} of {} chunks", self.patch.of),
        };
        let result = Verified { found, digests: Some(digests), chunks, damage: None, trust, happening };
        if let Err(error) = self.means.facts.record_verified(&[result]) {
            tracing::warn!(error = &error as &dyn Error, "what was repaired is not remembered");
        }
    }

    fn key(&self) -> String {
        self.patch.content.to_string()
    }

    fn store(&self) -> Result<&dyn Store, PatchError> {
        self.means.stores.get(&self.patch.store).map(|open| open.store.as_ref()).ok_or(PatchError::Gone)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, PatchError> + Send + 'static,
    ) -> Result<T, PatchError> {
        let job = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&job)).await;
        done.unwrap_or_else(|error| Err(failed("a background task ended")(io::Error::other(error))))
    }
}

/// Puts back what was overwritten, and fails with `error`.
fn take_back(file: Overwrite, error: PatchError) -> Result<(), PatchError> {
    file.undo().map_err(failed("what was overwritten cannot be put back"))?;
    Err(error)
}

/// Chunks that follow each other, a few at a time.
fn runs(chunks: &[u64]) -> Vec<Vec<u64>> {
    let mut runs: Vec<Vec<u64>> = Vec::new();
    for chunk in chunks {
        match runs.last_mut() {
            Some(run) if run.len() < AT_ONCE && run.last().is_some_and(|last| last + 1 == *chunk) => run.push(*chunk),
            _ => runs.push(vec![*chunk]),
        }
    }
    runs
}

fn hint(error: &PatchError) -> Option<String> {
    let hint = match error {
        PatchError::StillWrong => "see how it is now with: larder verify",
        PatchError::Donor(_) => "connect a drive or a machine that has it, then run larder repair again",
        PatchError::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            "mount the file system for writing, then run larder repair again"
        }
        PatchError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "run larder as the user who owns the store, or as root"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}
