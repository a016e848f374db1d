//! One connection: asks one source for one range, and passes on what comes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::landing::Piece;
use super::schedule::{Claim, ClaimId, Schedule};
use super::suppliers::Answers;
use crate::apply::{BUDGET, JobError, Run};
use crate::artifact::Remote;
use crate::sources::{Body, ByteRange, SourceError};

/// What all connections of one file share.
pub(super) struct Shared {
    pub(super) run: Arc<Run>,
    pub(super) size: u64,
    pub(super) schedule: Mutex<Schedule>,
    pub(super) pieces: mpsc::UnboundedSender<Option<Piece>>,
    /// One for each source.
    pub(super) answers: Vec<Answers>,
    /// Whether there is to be one connection only.
    pub(super) is_alone: AtomicBool,
    /// How much a connection that is alone goes on for.
    pub(super) stride: AtomicU64,
    /// Bytes that came since somebody last asked.
    pub(super) came: AtomicU64,
    /// Microseconds that connections waited for this machine since somebody last asked.
    pub(super) held_up_us: AtomicU64,
}

/// One connection's task.
pub(super) struct Line {
    pub(super) shared: Arc<Shared>,
    pub(super) remote: Remote,
    pub(super) supplier: usize,
    pub(super) claim: Claim,
    /// Bytes that this connection brought.
    pub(super) brought: Arc<AtomicU64>,
}

/// Why a connection ended before its range did.
#[derive(Debug)]
pub(super) enum Broken {
    /// The source says so, or broke off.
    Source(SourceError),
    /// It sends the whole file, whatever part is asked for, and others are at work already.
    SendsWhole,
    /// The run cannot use this source at all.
    Job(JobError),
}

impl From<SourceError> for Broken {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl Shared {
    pub(super) fn schedule(&self) -> MutexGuard<'_, Schedule> {
        // Nothing panics between two changes that belong together.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self, claim: ClaimId) -> bool {
        let mut schedule = self.schedule();
        let rest = schedule.rest(claim);
        !rest.is_empty()
            || (self.is_alone.load(Ordering::Relaxed) && schedule.extend(claim, self.stride.load(Ordering::Relaxed)))
    }
}

impl Line {
    /// Fetches until the range is here, or something is in the way.
    pub(super) async fn run(self) -> Result<(), Broken> {
        let mut body = self.open().await?;
        let mut skip = self.claim.range.start.saturating_sub(body.start);
        if skip > 0 && !self.is_alone() {
            return Err(Broken::SendsWhole);
        }
        while let Some(bytes) = body.stream.next().await {
            let mut bytes = bytes?;
            self.shared.run.note(|outcome| outcome.moved_bytes += bytes.len() as u64);
            // A source that ignores ranges sends again what is here already.
            let known = skip.min(bytes.len() as u64);
            skip -= known;
            let _ = bytes.split_to(usize::try_from(known).unwrap_or(0));
            self.pass_on(bytes).await?;
            if !self.shared.goes_on(self.claim.id) {
                return Ok(());
            }
        }
        let rest = self.shared.schedule().rest(self.claim.id);
        if rest.is_empty() {
            return Ok(());
        }
        let (expected, got) = (rest.end - self.claim.range.start, rest.start - self.claim.range.start);
        Err(SourceError::CutShort { what: self.remote.reference.to_string(), expected, got }.into())
    }

    async fn open(&self) -> Result<Body, Broken> {
        let source = self.shared.run.means.sources.for_reference(&self.remote.reference);
        let source = source.map_err(|error| Broken::Job(error.into()))?;
        let std::ops::Range { start, end } = self.claim.range;
        // Who is alone asks for all that follows: one request, and no pause between two of them.
        let end = if self.is_alone() { self.shared.schedule().open_end(end) } else { end };
        let range = ByteRange { start, end: (end < self.shared.size).then_some(end) };
        let body = source.open(&self.remote, range).await?;
        let what = self.remote.reference.to_string();
        self.shared.answers[self.supplier].compare(&body, self.shared.size, &what)?;
        if body.start > self.claim.range.start {
            let reason = format!("it begins at byte {} instead of {}", body.start, self.claim.range.start);
            return Err(SourceError::Protocol { what, reason }.into());
        }
        Ok(body)
    }

    /// Gives `bytes` to the disk once there is room for them in memory.
    async fn pass_on(&self, bytes: Bytes) -> Result<(), Broken> {
        if bytes.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        self.shared.run.pacer.pass(bytes.len()).await;
        let room = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(BUDGET);
        let permit = self.shared.run.budget.clone().acquire_many_owned(room).await;
        let permit = permit.map_err(|_| Broken::Job(JobError::Interrupted))?;
        self.shared.held_up(begin.elapsed());
        self.hand_over(bytes, permit);
        Ok(())
    }

    /// In one go: who is stopped before has handed over nothing, and who is stopped after all of it.
    fn hand_over(&self, mut bytes: Bytes, permit: OwnedSemaphorePermit) {
        let mut schedule = self.shared.schedule();
        let stride = self.shared.stride.load(Ordering::Relaxed);
        let is_short = |schedule: &Schedule| {
            let rest = schedule.rest(self.claim.id);
            rest.end - rest.start < bytes.len() as u64
        };
        while is_short(&schedule) && self.is_alone() && schedule.extend(self.claim.id, stride) {}
        let offset = schedule.rest(self.claim.id).start;
        // What was given to another connection meanwhile is not wanted from this one.
        let wanted = schedule.advance(self.claim.id, bytes.len() as u64);
        bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        self.brought.fetch_add(wanted, Ordering::Relaxed);
        self.shared.came.fetch_add(wanted, Ordering::Relaxed);
        if wanted > 0 {
            // The disk stops listening only after it said why.
            let _ = self.shared.pieces.send(Some(Piece { offset, bytes, supplier: self.supplier, permit }));
        }
    }

    fn is_alone(&self) -> bool {
        self.shared.is_alone.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn held_up(&self, time: Duration) {
        // Less is what asking takes.
        if time > Duration::from_micros(20) {
            self.held_up_us.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}
