//! Brings one file: takes the locks, looks once more, reuses or fetches, proves, places.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Job, JobError, Learned, Run};
use crate::artifact::{Artifact, File, Reference, Remote};
use crate::digest::{CHUNK_LEN, ContentHasher, Digests};
use crate::fsio::{self, FileLock, Proven};
use crate::inventory::Layout;
use crate::monitor::Event;
use crate::plan::{Origin, Step};
use crate::stores::{FileState, OpenStore, Store};

/// How long another program may work on the same content. Longer than any download; the wait ends
/// as soon as that program does, also when it is killed.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Content that is ready, and what is known of it now.
pub(super) struct Arrival {
    pub(super) proven: Proven,
    /// Whether the hub names the content by sha256, as far as the answer told.
    pub(super) lfs: Option<bool>,
}

/// A file with everything that bringing it needs, independent of the run's borrows.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) item: String,
    pub(super) artifact: Arc<Artifact>,
    pub(super) file: usize,
    pub(super) staging: PathBuf,
    pub(super) layout: Layout,
    pub(super) owner: Option<fsio::Owner>,
}

impl Target {
    pub(super) fn wanted(&self) -> &File {
        &self.artifact.files[self.file]
    }

    pub(super) fn key(&self) -> String {
        self.wanted().content_key(&self.artifact)
    }

    /// A hasher for everything that the content is compared with or named by.
    pub(super) fn hasher(&self) -> ContentHasher {
        let file = self.wanted();
        let hasher = ContentHasher::to_compare(&file.digests, file.size);
        match file.size {
            // The hub cache names small files by their git blob id, which no digest in the lock need be.
            Some(size) if self.layout == Layout::HfCache && file.lfs != Some(true) => hasher.with_git_sha1(size),
            _ => hasher,
        }
    }

    /// The same, taking the digests of chunks where there are several.
    pub(super) fn hasher_with_chunks(&self) -> ContentHasher {
        let has_several = self.wanted().size.is_none_or(|size| size > CHUNK_LEN);
        if has_several { self.hasher().with_chunks() } else { self.hasher() }
    }
}

impl Run {
    /// Brings one file to its place, or finds that it is there already.
    pub(super) async fn bring(self: &Arc<Self>, job: &Job, item: &str) -> Result<(), JobError> {
        let target = self.target(job, item)?;
        let _locks = self.clone().take_locks(target.clone()).await?;
        if self.clone().is_here_now(job, &target).await? {
            return Ok(());
        }
        let (origin, remotes) = match &job.step {
            Step::Fetch { from, .. } => (None, from.clone()),
            Step::Reuse { from, or_from, .. } => (Some(from.clone()), or_from.clone()),
            Step::Install { .. } | Step::Publish { .. } => return Ok(()),
        };
        let arrival = match self.clone().reuse(&target, origin, !remotes.is_empty()).await? {
            Some(proven) => Arrival { proven, lfs: None },
            None => self.fetch_from(&target, &remotes).await?,
        };
        self.means.monitor.event(Event::Proven { item, bytes: arrival.proven.size() });
        self.clone().place(job.clone(), target, arrival).await
    }

    fn target(&self, job: &Job, item: &str) -> Result<Target, JobError> {
        let artifact = self.works[job.work].artifact.clone();
        let store = self.store(&artifact.store)?.store.as_ref();
        Ok(Target {
            item: item.to_owned(),
            file: job.file,
            staging: store.staging(),
            layout: store.layout(),
            owner: store.owner(),
            artifact,
        })
    }

    pub(super) fn store(&self, name: &str) -> Result<&OpenStore, JobError> {
        let missing =
            || JobError::io(format!("The inventory declares no store `{name}`"))(std::io::ErrorKind::NotFound.into());
        self.means.stores.get(name).ok_or_else(missing)
    }

    /// Our own lock for the content first, then those of other programs, always in this order.
    async fn take_locks(self: Arc<Self>, target: Target) -> Result<Vec<FileLock>, JobError> {
        blocking(move || {
            let store = self.store(&target.artifact.store)?.store.as_ref();
            let own = target.staging.join(format!("{}.lock", target.key()));
            let mut paths = vec![own];
            paths.extend(store.foreign_locks(&target.artifact, target.wanted()));
            let waiting = || self.means.monitor.event(Event::Waiting { item: &target.item });
            paths
                .iter()
                .map(|path| {
                    FileLock::acquire_unless(path, target.owner, PATIENCE, waiting, || self.means.stop.is_cancelled())
                })
                .collect::<Result<_, _>>()
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::Interrupted => JobError::Interrupted,
                    _ => JobError::io("The lock of its content cannot be taken")(error),
                })
        })
        .await
    }

    /// Whether somebody else brought the file since the plan was made.
    ///
    /// What another program wrote counts only after its content was read and is right.
    async fn is_here_now(self: Arc<Self>, job: &Job, target: &Target) -> Result<bool, JobError> {
        let needs_mending = matches!(
            &job.step,
            Step::Fetch { need: crate::plan::Need::Mend { .. }, .. }
                | Step::Reuse { need: crate::plan::Need::Mend { .. }, .. }
        );
        let (job, target) = (job.clone(), target.clone());
        blocking(move || {
            let store = self.store(&target.artifact.store)?.store.as_ref();
            let single = target.artifact.with_files(vec![target.wanted().clone()]);
            let observed = store.observe(&single);
            let Some(FileState::Present(found) | FileState::Staged(found)) = observed.files.first() else {
                return Ok(false);
            };
            if !target.wanted().digests.proves_content() {
                return Ok(!needs_mending);
            }
            let measured =
                fsio::hash_file_by(&found.path, target.hasher(), &mut |_| match self.means.stop.is_cancelled() {
                    true => Err(std::io::ErrorKind::Interrupted.into()),
                    false => Ok(()),
                });
            if self.means.stop.is_cancelled() {
                return Err(JobError::Interrupted);
            }
            let Ok((digests, _)) = measured else { return Ok(false) };
            if target.wanted().digests.check(&digests).is_err() {
                return Ok(false);
            }
            let (file, measured) = (known_file(target.wanted(), digests, None), found.clone());
            self.works[job.work].learn(target.file, Learned { file, measured, digests, chunks: None });
            Ok(true)
        })
        .await
    }

    /// Copies content that is on this machine; `None` where it turns out to be wrong or gone.
    ///
    /// Where it is `fetchable`, also `None` when it cannot be read.
    async fn reuse(
        self: Arc<Self>,
        target: &Target,
        origin: Option<Origin>,
        fetchable: bool,
    ) -> Result<Option<Proven>, JobError> {
        let is_paced = self.means.paces_drives && matches!(origin, Some(Origin::Drive { .. }));
        let from = match origin {
            None => return Ok(None),
            Some(Origin::Here { path, .. } | Origin::Drive { path }) => path,
            Some(Origin::Arriving { whose }) => match self.arrived(&whose) {
                Some(path) => path,
                None => return Ok(None),
            },
        };
        let target = target.clone();
        blocking(move || {
            let label = from.display().to_string();
            let item = target.item.as_str();
            let mut pass = |bytes: u64| {
                let stopped = || self.means.stop.is_cancelled();
                let goes_on = if is_paced { self.pacer.pass_blocking(bytes, stopped) } else { !stopped() };
                if bytes > 0 {
                    self.means.monitor.event(Event::Advanced { item, bytes });
                }
                if goes_on { Ok(()) } else { Err(std::io::ErrorKind::Interrupted.into()) }
            };
            match self.copy(&target, &from, &mut pass) {
                // Before anything else: an error may be owed to it.
                _ if self.means.stop.is_cancelled() => Err(JobError::Interrupted),
                Ok(proven) => {
                    // What a download left of it is of no use any more.
                    let _ = fsio::Partial::forget(&target.staging, &target.key());
                    self.note(|outcome| outcome.reused_bytes += proven.size());
                    Ok(Some(proven))
                }
                // The other copy is rotten, vanished, or cannot be read: nothing is lost by fetching instead.
                Err(error @ (fsio::ProofError::Content(_) | fsio::ProofError::Length { .. })) => {
                    let wrong = JobError::Wrong { from: label.clone(), source: error };
                    self.left_out(&target.item, &Reference::Directory(from), &wrong.chain());
                    Ok(None)
                }
                Err(fsio::ProofError::Original(error)) if fetchable || fsio::is_absent(&error) => {
                    tracing::warn!("{label} cannot be copied: {error}; it is fetched instead");
                    Ok(None)
                }
                Err(fsio::ProofError::Original(error) | fsio::ProofError::Io(error)) => {
                    Err(JobError::io(format!("{label} cannot be copied"))(error))
                }
            }
        })
        .await
    }

    /// Copies into a partial of its own: what a download left stays, should the original turn out to be wrong.
    fn copy(&self, target: &Target, from: &Path, pass: fsio::Pass<'_>) -> Result<Proven, fsio::ProofError> {
        let wanted = target.wanted();
        let copying = fsio::Copying {
            from,
            staging: &target.staging,
            key: &format!("{}.copy", target.key()),
            owner: target.owner,
            size: wanted.size,
            digests: &wanted.digests,
        };
        let (item, label) = (target.item.as_str(), from.display().to_string());
        let (total, resumed) = (wanted.size, copying.resumed());
        self.means.monitor.event(Event::Started { item, total, resumed, from: &label });
        copying.copy(|| target.hasher_with_chunks(), pass)
    }

    /// Where a file that another artifact waited for has been placed in this run.
    fn arrived(&self, whose: &str) -> Option<PathBuf> {
        self.works.iter().find_map(|work| {
            let artifact = &work.artifact;
            let path = whose.strip_prefix(&artifact.name)?.strip_prefix('/')?;
            let file = artifact.files.iter().position(|file| file.path.as_str() == path)?;
            let store = self.store(&artifact.store).ok()?.store.as_ref();
            match store.observe(&artifact.with_files(vec![work.file(file)])).files.first()? {
                FileState::Present(found) | FileState::Staged(found) => Some(found.path.clone()),
                _ => None,
            }
        })
    }

    async fn fetch_from(self: &Arc<Self>, target: &Target, remotes: &[Remote]) -> Result<Arrival, JobError> {
        self.clone().fetch(target.clone(), remotes.to_vec()).await
    }

    async fn place(self: Arc<Self>, job: Job, target: Target, mut arrival: Arrival) -> Result<(), JobError> {
        blocking(move || {
            let chunks = arrival.proven.take_chunks();
            let digests = *arrival.proven.digests();
            let file = File { size: Some(arrival.proven.size()), ..known_file(target.wanted(), digests, arrival.lfs) };
            let store: &dyn Store = self.store(&target.artifact.store)?.store.as_ref();
            let measured = arrival.proven.found().map_err(JobError::io("Its content cannot be looked at"))?;
            let path = store.place(&target.artifact, &file, arrival.proven)?;
            self.works[job.work].note_new_name(&path);
            self.works[job.work].learn(target.file, Learned { file, measured, digests, chunks });
            Ok(())
        })
        .await
    }
}

/// What is known of a file once its content was measured.
fn known_file(file: &File, measured: Digests, lfs: Option<bool>) -> File {
    File {
        first_use: file.first_use || !file.digests.proves_content(),
        digests: file.digests.or(measured),
        lfs: file.lfs.or(lfs),
        ..file.clone()
    }
}

/// Runs file-system work where it does not hold up the network.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JobError> + Send + 'static,
) -> Result<T, JobError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(JobError::Interrupted),
    }
}
