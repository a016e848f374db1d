//! The sources of one file, while it is fetched: who delivers, who rests after an error, who is left out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::names_by_sha256;
use crate::apply::JobError;
use crate::artifact::{Reference, Remote};
use crate::retry::{Backoff, RetryPolicy};
use crate::sources::{Body, SourceError};

/// How long a source rests whose connections are much slower than those of others.
const SLOW_REST: Duration = Duration::from_secs(60);

/// One source of the file.
pub(super) struct Supplier {
    pub(super) remote: Remote,
    pub(super) name: String,
    /// Grows with each change of kind in the list: nobody upstream is asked while peers deliver.
    rank: usize,
    backoff: Backoff,
    resting_until: Option<Instant>,
    /// Why it is not asked any more.
    left_out: Option<JobError>,
    /// Whether bytes of the content that is there now came from it.
    pub(super) has_contributed: bool,
    /// Connections to it.
    pub(super) lines: usize,
}

/// All sources of the file, in the order in which they are preferred.
pub(super) struct Suppliers {
    all: Vec<Supplier>,
    /// Only the first that is left: all others wait until it has proved itself or failed.
    one_alone: bool,
}

impl Suppliers {
    pub(super) fn new(remotes: Vec<Remote>, retry: RetryPolicy) -> Self {
        let ranks = ranks(&remotes);
        let supplier = |(remote, rank): (Remote, usize)| Supplier {
            name: remote.reference.to_string(),
            remote,
            rank,
            backoff: Backoff::new(retry),
            resting_until: None,
            left_out: None,
            has_contributed: false,
            lines: 0,
        };
        Self { all: remotes.into_iter().zip(ranks).map(supplier).collect(), one_alone: false }
    }

    pub(super) fn get(&self, index: usize) -> &Supplier {
        &self.all[index]
    }

    pub(super) fn get_mut(&mut self, index: usize) -> &mut Supplier {
        &mut self.all[index]
    }

    /// Something for each of them.
    pub(super) fn each<T>(&self, make: impl Fn(&Supplier) -> T) -> Vec<T> {
        self.all.iter().map(make).collect()
    }

    /// Who is asked for the next part: of those of the best rank that can be asked, who has the fewest connections.
    pub(super) fn next(&self) -> Option<usize> {
        let now = Instant::now();
        let best = self.left().map(|index| self.all[index].rank).min()?;
        let of_best = self.left().filter(|index| self.all[*index].rank == best);
        of_best.filter(|index| self.all[*index].is_ready(now)).min_by_key(|index| self.all[*index].lines)
    }

    /// When the first of those that rest is to be asked again.
    pub(super) fn rested_at(&self) -> Option<Instant> {
        let now = Instant::now();
        self.left().filter_map(|index| self.all[index].resting_until).filter(|until| *until > now).min()
    }

    /// Whether somebody other than `index` can be asked now or later.
    pub(super) fn has_other_than(&self, index: usize) -> bool {
        self.left().any(|other| other != index)
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().next().is_none()
    }

    /// Why the last one was left out.
    pub(super) fn take_last_error(&mut self, what: &str) -> JobError {
        let last = self.all.iter_mut().rev().find_map(|supplier| supplier.left_out.take());
        last.unwrap_or_else(|| JobError::Source(SourceError::NoUpstream { what: what.to_owned() }))
    }

    /// Asks nobody but one from now on, so that what is wrong can be laid at one door.
    pub(super) fn ask_one_alone(&mut self) {
        self.one_alone = true;
    }

    /// Nothing that came is there any more.
    pub(super) fn begin_again(&mut self) {
        self.all.iter_mut().for_each(|supplier| supplier.has_contributed = false);
    }

    /// The only one that bytes came from, if it is one.
    pub(super) fn only_contributor(&self) -> Option<usize> {
        let mut contributors = (0..self.all.len()).filter(|index| self.all[*index].has_contributed);
        let first = contributors.next()?;
        contributors.next().is_none().then_some(first)
    }

    fn left(&self) -> impl Iterator<Item = usize> {
        let most = if self.one_alone { 1 } else { usize::MAX };
        (0..self.all.len()).filter(|index| self.all[*index].left_out.is_none()).take(most)
    }
}

/// For each of `remotes`, how many times the kind of place changes before it.
fn ranks(remotes: &[Remote]) -> Vec<usize> {
    let is_of_lab = |remote: &Remote| matches!(remote.reference, Reference::Peer { .. } | Reference::Bucket { .. });
    let changes = remotes.windows(2).scan(0, |rank, pair| {
        *rank += usize::from(is_of_lab(&pair[0]) != is_of_lab(&pair[1]));
        Some(*rank)
    });
    std::iter::once(0).chain(changes).take(remotes.len()).collect()
}

impl Supplier {
    /// How long it is to be left in peace after `error`; `None` where it is of no use to ask again.
    pub(super) fn rest_after(&mut self, error: &SourceError) -> Option<Duration> {
        let pause = if error.is_permanent() { None } else { self.backoff.next(error.wait()) };
        self.resting_until = pause.map(|pause| Instant::now() + pause);
        pause
    }

    /// It delivered so much of what was `asked` for: the patience with it begins anew, unless that is next to nothing.
    pub(super) fn brought(&mut self, bytes: u64, asked: u64) {
        self.backoff.progressed_by(bytes, Some(asked));
    }

    /// Others are faster; it is asked again later.
    pub(super) fn rest_for_slowness(&mut self) {
        self.resting_until = Some(Instant::now() + SLOW_REST);
    }

    pub(super) fn leave_out(&mut self, why: JobError) {
        self.left_out.get_or_insert(why);
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.resting_until.is_none_or(|until| until <= now)
    }
}

/// What was learnt of one source from its answers, by all connections to it.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    etag: Option<String>,
    lfs: Option<bool>,
}

impl Answers {
    /// Compares an answer with those before: all must be of one and the same file, of `size` bytes where that is known.
    pub(super) fn compare(&self, body: &Body, size: Option<u64>, what: &str) -> Result<(), SourceError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(actual), Some(expected)) = (body.total, size)
            && actual != expected
        {
            // What is far too short may be a page or a pointer: its first bytes say more than its length.
            let changed = || SourceError::Changed { what: what.to_owned(), expected, actual };
            return if body.is_worth_a_look() { Ok(()) } else { Err(changed()) };
        }
        seen.lfs = seen.lfs.or(names_by_sha256(body));
        match (&seen.etag, &body.etag) {
            (Some(before), Some(now)) if before != now => Err(SourceError::Exchanged { what: what.to_owned() }),
            _ => {
                seen.etag = seen.etag.take().or_else(|| body.etag.clone());
                Ok(())
            }
        }
    }

    /// Answers from now on may be of another file: what came of the one before was thrown away.
    pub(super) fn forget_the_file(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).etag = None;
    }

    pub(super) fn lfs(&self) -> Option<bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lfs
    }
}
