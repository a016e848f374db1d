//! One connection: asks one source for one range, and passes on what comes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::LEAST_PART;
use super::blocks::{BLOCK, Block};
use super::landing::Piece;
use super::schedule::{Claim, ClaimId, Schedule};
use super::suppliers::Answers;
use crate::apply::{JobError, Run};
use crate::artifact::Remote;
use crate::sources::{Body, ByteRange, SourceError};

/// What comes slowly goes to the disk in portions of this time, so that it is seen and kept.
const PATIENCE: Duration = Duration::from_millis(200);

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
    /// How much a connection that goes on takes at a time.
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
    /// Whether it asks for all that follows, and goes on with it as long as it is alone.
    pub(super) goes_on: bool,
    /// Bytes that this connection brought.
    pub(super) brought: Arc<AtomicU64>,
    /// Bytes that all connections of the run to this host brought.
    pub(super) by_all: Arc<AtomicU64>,
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

    /// Whether more is wanted than the `held` bytes that were not handed over yet.
    fn wants_more(&self, claim: ClaimId, held: usize, may_extend: bool) -> bool {
        let mut schedule = self.schedule();
        let rest = schedule.rest(claim);
        rest.end - rest.start > held as u64
            || (may_extend && schedule.extend(claim, self.stride.load(Ordering::Relaxed)))
    }
}

/// A block that is being filled.
struct Filling {
    block: Block,
    /// How full it is to become.
    room: usize,
    since: Instant,
}

impl Line {
    /// Fetches until the range is here, or something is in the way.
    pub(super) async fn run(self) -> Result<(), Broken> {
        let mut body = self.open().await?;
        let skip = self.claim.range.start.saturating_sub(body.start);
        if (skip > 0 || body.ignores_range) && !self.takes_all() {
            return Err(Broken::SendsWhole);
        }
        let mut filling = None;
        let came = self.pour(&mut body, &mut filling, skip).await;
        if let Some(Filling { block, .. }) = filling {
            self.hand_over(block);
        }
        came?;
        let rest = self.shared.schedule().rest(self.claim.id);
        if rest.is_empty() {
            return Ok(());
        }
        let (expected, got) = (rest.end - self.claim.range.start, rest.start - self.claim.range.start);
        // It said beforehand that it would give no more at a time, or the body would have ended with an error.
        if got >= LEAST_PART {
            return Ok(());
        }
        Err(SourceError::CutShort { what: self.remote.reference.to_string(), expected, got }.into())
    }

    async fn open(&self) -> Result<Body, Broken> {
        let source = self.shared.run.means.sources.for_reference(&self.remote.reference);
        let source = source.map_err(|error| Broken::Job(error.into()))?;
        let std::ops::Range { start, end } = self.claim.range;
        // One request for all that follows, and no pause between two of them.
        let end = if self.goes_on { self.shared.schedule().open_end(end) } else { end };
        let range = ByteRange { start, end: (end < self.shared.size).then_some(end) };
        let body = source.open(&self.remote, range).await?;
        let what = self.remote.reference.to_string();
        self.shared.answers[self.supplier].compare(&body, Some(self.shared.size), &what)?;
        if body.start > self.claim.range.start {
            let reason = format!("it begins at byte {} instead of {}", body.start, self.claim.range.start);
            return Err(SourceError::Protocol { what, reason }.into());
        }
        Ok(body)
    }

    /// Takes what comes until the body ends or nothing of it is wanted any more. What is in `filling` at the end was
    /// not handed over.
    async fn pour(&self, body: &mut Body, filling: &mut Option<Filling>, mut skip: u64) -> Result<(), Broken> {
        while let Some(bytes) = body.stream.next().await {
            let mut bytes = bytes?;
            self.shared.run.note(|outcome| outcome.moved_bytes += bytes.len() as u64);
            // A source that ignores ranges sends again what is here already.
            let known = skip.min(bytes.len() as u64);
            skip -= known;
            let _ = bytes.split_to(usize::try_from(known).unwrap_or(0));
            self.pass_on(bytes, filling).await;
            let held = filling.as_ref().map_or(0, |filling| filling.block.len());
            if !self.shared.wants_more(self.claim.id, held, self.may_extend()) {
                break;
            }
        }
        Ok(())
    }

    /// Puts `bytes` into blocks as there are some, and gives those that are full to the disk.
    async fn pass_on(&self, mut bytes: Bytes, filling: &mut Option<Filling>) {
        let begin = Instant::now();
        self.shared.run.pacer.pass(bytes.len()).await;
        while !bytes.is_empty() {
            let mut current = match filling.take() {
                Some(current) => current,
                None => self.begin_block().await,
            };
            let wanted = bytes.len().min(current.room - current.block.len());
            let added = current.block.add(&bytes.split_to(wanted));
            debug_assert_eq!(added, wanted);
            if current.block.len() == current.room || current.since.elapsed() >= PATIENCE {
                self.hand_over(current.block);
            } else {
                *filling = Some(current);
            }
        }
        self.shared.held_up(begin.elapsed());
    }

    /// A block that ends where blocks of the file end: the disk takes those that are whole without a copy.
    async fn begin_block(&self) -> Filling {
        let block = self.shared.run.blocks.take().await;
        let at = self.shared.schedule().rest(self.claim.id).start;
        let room = BLOCK - usize::try_from(at % BLOCK as u64).unwrap_or(0);
        Filling { block, room, since: Instant::now() }
    }

    /// In one go: who is stopped before has handed over nothing, and who is stopped after all of it.
    fn hand_over(&self, mut block: Block) {
        let mut schedule = self.shared.schedule();
        let stride = self.shared.stride.load(Ordering::Relaxed);
        let is_short = |schedule: &Schedule| {
            let rest = schedule.rest(self.claim.id);
            rest.end - rest.start < block.len() as u64
        };
        while is_short(&schedule) && self.may_extend() && schedule.extend(self.claim.id, stride) {}
        let offset = schedule.rest(self.claim.id).start;
        // What was given to another connection meanwhile is not wanted from this one.
        let wanted = schedule.advance(self.claim.id, block.len() as u64);
        block.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        self.brought.fetch_add(wanted, Ordering::Relaxed);
        self.by_all.fetch_add(wanted, Ordering::Relaxed);
        self.shared.came.fetch_add(wanted, Ordering::Relaxed);
        if wanted > 0 {
            // The disk stops listening only after it said why.
            let _ = self.shared.pieces.send(Some(Piece { offset, block, supplier: self.supplier }));
        }
    }

    /// Whether all that comes until the end of the file is wanted from this connection.
    fn takes_all(&self) -> bool {
        self.is_alone() && (self.goes_on || self.claim.range.end == self.shared.size)
    }

    /// Whether what follows its range comes on this connection, and nobody else is to have it.
    fn may_extend(&self) -> bool {
        self.goes_on && self.is_alone()
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
