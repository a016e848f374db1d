//! Carries out a plan: exactly its steps, several at once, each proven before it becomes visible.
//!
//! One failure stops neither the others nor the artifact's other files; what arrived stays, and the
//! next run continues from there.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::artifact::{Artifact, File, Found};
use crate::digest::{ChunkDigests, Digests};
use crate::facts::Facts;
use crate::lock::Lock;
use crate::monitor::{Event, Monitor};
use crate::pace::Pacer;
use crate::plan::{Origin, Plan, Step};
use crate::retry::RetryPolicy;
use crate::size::Bytes;
use crate::sources::Sources;
use crate::stores::Stores;

mod bring;
mod error;
mod fetch;
mod finish;
mod install;
mod left_out;
mod lines;
mod preflight;

pub use error::JobError;
pub use fetch::TooSlow;
pub use left_out::LeftOut;
pub use preflight::{preflight, servers_of, silent_servers};

/// Everything that carrying out a plan needs.
pub struct Means {
    /// The stores of this machine.
    pub stores: Arc<Stores>,
    /// Where bytes come from.
    pub sources: Arc<Sources>,
    /// Where measurements are remembered.
    pub facts: Arc<Facts>,
    /// Who listens.
    pub monitor: Arc<dyn Monitor>,
    /// The registry that a running Ollama server is to pull from, instead of the one in the name.
    pub ollama_registry: Option<Url>,
    /// Files at the same time.
    pub parallel: usize,
    /// Connections to one host for one large file, and for all of them together.
    pub connections: usize,
    /// Connections that a large file begins with, as long as nothing is known of its host.
    pub first_connections: usize,
    /// When sources of the next kind help with a large file; `None`: only once those before them have failed.
    pub too_slow: Option<TooSlow>,
    /// Limit for all downloads together, bytes per second.
    pub max_rate: Option<Bytes>,
    /// Whether what is copied from a drive keeps to it too.
    pub paces_drives: bool,
    /// How passing errors are tried again.
    pub retry: RetryPolicy,
    /// Stops the run; it can be continued later.
    pub stop: CancellationToken,
    /// Seconds since 1970, for the facts.
    pub now: fn() -> i64,
}

/// What a run did.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Files that were placed.
    pub placed: Vec<String>,
    /// Artifacts that programs can find now.
    pub published: Vec<String>,
    /// What failed.
    pub failures: Vec<Failure>,
    /// Sources that others stood in for.
    pub left_out: Vec<LeftOut>,
    /// Bytes that came from elsewhere.
    pub moved_bytes: u64,
    /// Bytes that were taken from other places on this machine.
    pub reused_bytes: u64,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
    /// Artifacts of which more is known than the lock says: digests of first fetches.
    #[serde(skip)]
    pub learned: Vec<Artifact>,
}

/// One thing that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Artifact, or artifact and path.
    pub item: String,
    /// Why.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

/// One artifact while its steps are carried out.
struct Work {
    /// As it was locked.
    artifact: Arc<Artifact>,
    /// What became known of its files in this run, and what was measured, by their places in the list.
    learned: Mutex<HashMap<usize, Learned>>,
    /// Folders with new names that a power cut could still undo.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    wants_publishing: bool,
}

/// What became known of one file.
struct Learned {
    file: File,
    /// The very file that was measured.
    measured: Found,
    digests: Digests,
    /// Of its chunks, where it has several.
    chunks: Option<ChunkDigests>,
}

/// One file to bring.
#[derive(Clone)]
struct Job {
    work: usize,
    file: usize,
    step: Step,
}

/// State that all jobs of a run share.
struct Run {
    means: Means,
    works: Vec<Work>,
    pacer: Pacer,
    lines: lines::Lines,
    /// The memory that content passes through on its way to the disk.
    blocks: Arc<fetch::Blocks>,
    distrusted: left_out::Distrusted,
    outcome: Mutex<Outcome>,
}

/// Carries out `plan`, whose artifacts are those of `lock`.
pub async fn apply(plan: &Plan, lock: &Lock, means: Means) -> Outcome {
    let (works, jobs, installs) = prepare(plan, lock);
    let pacer = Pacer::new(means.max_rate);
    let lines = lines::Lines::new(means.connections);
    let blocks = fetch::Blocks::new();
    let (distrusted, outcome) = (left_out::Distrusted::default(), Mutex::default());
    let run = Arc::new(Run { means, works, pacer, lines, blocks, distrusted, outcome });
    run.mark_stores();
    let (late, early): (Vec<Job>, Vec<Job>) =
        jobs.into_iter().partition(|job| matches!(job.step, Step::Reuse { from: Origin::Arriving { .. }, .. }));
    run.clone().bring_all(early).await;
    // What these reuse has arrived by now, or failed and is fetched on its own.
    run.clone().bring_all(late).await;
    for work in installs {
        run.install(work).await;
    }
    run.finish_all().await;
    let run = Arc::into_inner(run).expect("every job has ended");
    let mut outcome = run.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.interrupted = run.means.stop.is_cancelled();
    outcome
}

fn prepare(plan: &Plan, lock: &Lock) -> (Vec<Work>, Vec<Job>, Vec<usize>) {
    let (mut works, mut jobs, mut installs) = (Vec::new(), Vec::new(), Vec::new());
    for entry in plan.artifacts.iter().filter(|entry| !entry.steps.is_empty()) {
        let Some(artifact) = lock.artifact(&entry.artifact) else { continue };
        let work = works.len();
        for step in &entry.steps {
            match step {
                Step::Fetch { file, .. } | Step::Reuse { file, .. } => {
                    jobs.push(Job { work, file: *file, step: step.clone() });
                }
                Step::Install { .. } => installs.push(work),
                Step::Publish { .. } => {}
            }
        }
        works.push(Work {
            artifact: Arc::new(artifact.clone()),
            learned: Mutex::default(),
            unsynced: Mutex::default(),
            wants_publishing: entry.steps.iter().any(|step| matches!(step, Step::Publish { .. })),
        });
    }
    (works, jobs, installs)
}

impl Run {
    async fn bring_all(self: Arc<Self>, jobs: Vec<Job>) {
        let permits = Arc::new(Semaphore::new(self.means.parallel.max(1)));
        let mut running = JoinSet::new();
        for job in jobs {
            let permit = tokio::select! {
                permit = permits.clone().acquire_owned() => permit,
                () = self.means.stop.cancelled() => break,
            };
            let run = self.clone();
            running.spawn(async move {
                run.bring_one(&job).await;
                drop(permit);
            });
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    }

    async fn bring_one(self: &Arc<Self>, job: &Job) {
        let item = self.item(job);
        match self.bring(job, &item).await {
            Ok(()) => {
                self.means.monitor.event(Event::Finished { item: &item });
                self.note(|outcome| outcome.placed.push(item.clone()));
            }
            Err(JobError::Interrupted) => {}
            Err(error) => self.fail(&item, &error),
        }
    }

    fn fail(&self, item: &str, error: &JobError) {
        let reason = error.chain();
        self.means.monitor.event(Event::Failed { item, reason: &reason });
        let failure = Failure { item: item.to_owned(), reason, hint: error.hint() };
        self.note(|outcome| outcome.failures.push(failure));
    }

    fn item(&self, job: &Job) -> String {
        let artifact = &self.works[job.work].artifact;
        format!("{}/{}", artifact.name, artifact.files[job.file].path)
    }

    fn note(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Work {
    /// Remembers what was measured of a file, so that it is placed and found under the right name.
    fn learn(&self, file: usize, learned: Learned) {
        self.learned().insert(file, learned);
    }

    /// Notes a folder with a new name in it, so that it is synced once, however many follow.
    fn note_new_name(&self, path: &Path) {
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).insert(folder);
    }

    fn learned(&self) -> MutexGuard<'_, HashMap<usize, Learned>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file as it is known now.
    fn file(&self, file: usize) -> File {
        self.learned().get(&file).map_or_else(|| self.artifact.files[file].clone(), |learned| learned.file.clone())
    }

    /// The artifact with all that was learned of its files. Copies them all: for the end of the run.
    fn known_artifact(&self) -> Artifact {
        self.artifact.with_files((0..self.artifact.files.len()).map(|file| self.file(file)).collect())
    }
}
