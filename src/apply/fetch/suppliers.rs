//! The sources of one file, while it is fetched: who delivers, who rests after an error, who is left out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::doubt::{Crowd, just};
use super::names_by_sha256;
use crate::apply::JobError;
use crate::apply::left_out::Distrusted;
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
    /// Whether it is asked only where nobody else is left, for as long as it is doubted.
    is_suspect: bool,
    backoff: Backoff,
    resting_until: Option<Instant>,
    /// Why it is not asked any more.
    left_out: Option<JobError>,
    /// Connections to it.
    pub(super) lines: usize,
    /// Whether any bytes came from it.
    has_contributed: bool,
}

/// All sources of the file, in the order in which they are preferred.
pub(super) struct Suppliers {
    all: Vec<Supplier>,
    /// Only the first that is left: all others wait until it has proved itself or failed.
    one_alone: bool,
    /// Up to this rank, all are asked beside those of the best one.
    joined: Option<usize>,
}

impl Suppliers {
    /// Those that are `distrusted` are asked last.
    pub(super) fn new(remotes: Vec<Remote>, distrusted: &Distrusted, retry: RetryPolicy) -> Self {
        let remotes = distrusted.last_of(remotes);
        let trusted = remotes.iter().take_while(|remote| !distrusted.has(&remote.reference)).count();
        let mut ranks = ranks(&remotes[..trusted]);
        let last = ranks.last().map_or(0, |rank| rank + 1);
        ranks.extend(self::ranks(&remotes[trusted..]).into_iter().map(|rank| rank + last));
        let supplier = |(remote, rank): (Remote, usize)| Supplier {
            name: remote.reference.to_string(),
            remote,
            rank,
            is_suspect: false,
            backoff: Backoff::new(retry),
            resting_until: None,
            left_out: None,
            lines: 0,
            has_contributed: false,
        };
        Self { all: remotes.into_iter().zip(ranks).map(supplier).collect(), one_alone: false, joined: None }
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

    /// Who is asked for the next part: of those of the best rank that can be asked, and of those who joined them, who
    /// has the fewest connections.
    pub(super) fn next(&self) -> Option<usize> {
        let now = Instant::now();
        self.asked().filter(|index| self.all[*index].is_ready(now)).min_by_key(|index| self.all[*index].lines)
    }

    /// All of the best rank, and those who joined them.
    fn asked(&self) -> impl Iterator<Item = usize> {
        let best = self.left().map(|index| self.all[index].standing()).min();
        let has_joined =
            |(is_suspect, rank): (bool, usize)| !is_suspect && self.joined.is_some_and(|joined| rank <= joined);
        self.left().filter(move |index| {
            let standing = self.all[*index].standing();
            Some(standing) == best || has_joined(standing)
        })
    }

    /// The authorities of those with connections.
    pub(super) fn at_work(&self) -> Vec<String> {
        let at_work = self.all.iter().filter(|supplier| supplier.lines > 0);
        at_work.map(|supplier| supplier.remote.reference.authority()).collect()
    }

    /// Asks those of the next rank too from now on, if there is one and all of them `may` be; the first of them.
    ///
    /// Not beside anybody who is `as_good` as they are, however slow.
    pub(super) fn join_next(
        &mut self,
        may: impl Fn(&Supplier) -> bool,
        as_good: impl Fn(&Supplier) -> bool,
    ) -> Option<usize> {
        let widest = self.asked().map(|index| self.all[index].rank).max()?;
        let behind = |index: &usize| !self.all[*index].is_suspect && self.all[*index].rank > widest;
        let first = self.left().filter(behind).min_by_key(|index| self.all[*index].rank)?;
        let rank = self.all[first].rank;
        let may_all = self.left().filter(|index| self.all[*index].rank == rank).all(|index| may(&self.all[index]));
        if !may_all || self.asked().any(|index| as_good(&self.all[index])) {
            return None;
        }
        self.joined = Some(rank);
        Some(first)
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
        self.suspect(0);
        self.one_alone = true;
    }

    /// Asks nobody of `crowd` while somebody else is left, and forgets whom it suspected before.
    pub(super) fn suspect(&mut self, crowd: Crowd) {
        let all = self.all.iter_mut().enumerate();
        all.for_each(|(index, supplier)| supplier.is_suspect = just(index) & crowd != 0);
    }

    /// All who can be asked now or later.
    pub(super) fn crowd(&self) -> Crowd {
        self.left().fold(0, |crowd, index| crowd | just(index))
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
///
/// Drives and peers are of one kind: they cost nothing, and give parts of a file at the same time where they stand side
/// by side. A bucket can be paid by the byte, and upstream is what the others spare.
fn ranks(remotes: &[Remote]) -> Vec<usize> {
    let kind = |remote: &Remote| match remote.reference {
        Reference::Directory(_) | Reference::Peer { .. } => 0,
        Reference::Bucket { .. } => 1,
        _ => 2,
    };
    let changes = remotes.windows(2).scan(0, |rank, pair| {
        *rank += usize::from(kind(&pair[0]) != kind(&pair[1]));
        Some(*rank)
    });
    std::iter::once(0).chain(changes).take(remotes.len()).collect()
}

impl Supplier {
    /// The lower, the sooner it is asked.
    fn standing(&self) -> (bool, usize) {
        (self.is_suspect, self.rank)
    }

    /// How long it is to be left in peace after `error`; `None` where it is of no use to ask again.
    pub(super) fn rest_after(&mut self, error: &SourceError) -> Option<Duration> {
        let pause = if error.is_permanent() { None } else { self.backoff.next(error.wait()) };
        self.resting_until = pause.map(|pause| Instant::now() + pause);
        pause
    }

    /// It delivered so much of what was `asked` for: the patience with it begins anew, unless that is next to nothing.
    pub(super) fn brought(&mut self, bytes: u64, asked: u64) {
        self.has_contributed |= bytes > 0;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{ContentName, Digests, Sha256};

    fn remotes(references: &[Reference]) -> Vec<Remote> {
        let remote =
            |reference: &Reference| Remote { reference: reference.clone(), size: Some(1), digests: Digests::default() };
        references.iter().map(remote).collect()
    }

    fn content() -> ContentName {
        ContentName::Sha256(Sha256::of(b"content"))
    }

    fn peer(name: &str) -> Reference {
        Reference::Peer { peer: name.to_owned(), content: content() }
    }

    /// Names of all that would be asked, as one after the other gets a connection.
    fn asked(suppliers: &mut Suppliers, times: usize) -> Vec<usize> {
        let ask = |_| {
            let index = suppliers.next()?;
            suppliers.get_mut(index).lines += 1;
            Some(index)
        };
        (0..times).map_while(ask).collect()
    }

    #[test]
    fn drives_and_peers_side_by_side_deliver_together_and_others_wait_for_them() {
        let drive = Reference::Directory("/media/usb/large.bin".into());
        let bucket = Reference::Bucket { bucket: "fleet".to_owned(), content: content() };
        let hub: Reference = "hf:acme/tiny/large.bin".parse().unwrap();
        let all = remotes(&[drive.clone(), peer("pc1"), peer("pc2"), bucket.clone(), hub]);
        let mut suppliers = Suppliers::new(all, &Distrusted::default(), RetryPolicy::default());
        assert_eq!(asked(&mut suppliers, 4), [0, 1, 2, 0]);
        (0..3).for_each(|index| suppliers.get_mut(index).leave_out(JobError::Interrupted));
        assert_eq!(asked(&mut suppliers, 2), [3, 3], "upstream is not asked while the bucket delivers");
        suppliers.get_mut(3).leave_out(JobError::Interrupted);
        assert_eq!(asked(&mut suppliers, 1), [4]);
        assert_eq!(ranks(&remotes(&[peer("pc1"), bucket, drive])), [0, 1, 2], "as the order of sources says");
    }

    #[test]
    fn the_next_kind_joins_where_it_may_and_keeps_its_place() {
        let bucket = Reference::Bucket { bucket: "fleet".to_owned(), content: content() };
        let hub: Reference = "hf:acme/tiny/large.bin".parse().unwrap();
        let all = remotes(&[peer("pc1"), bucket, hub]);
        let mut suppliers = Suppliers::new(all, &Distrusted::default(), RetryPolicy::default());
        let is_no_bucket = |supplier: &Supplier| !matches!(supplier.remote.reference, Reference::Bucket { .. });
        assert_eq!(suppliers.join_next(is_no_bucket, |_| false), None, "the next one may not, so nobody does");
        assert_eq!(suppliers.join_next(|_| true, |supplier| supplier.rank == 0), None, "it is from there anyway");
        assert_eq!(suppliers.join_next(|_| true, |_| false), Some(1));
        assert_eq!(asked(&mut suppliers, 4), [0, 1, 0, 1]);
        assert_eq!(suppliers.join_next(|_| true, |_| false), Some(2));
        assert_eq!(asked(&mut suppliers, 2), [2, 2]);
        assert_eq!(suppliers.join_next(|_| true, |_| false), None, "there is nobody else");
        suppliers.ask_one_alone();
        assert_eq!(asked(&mut suppliers, 1), [0]);
    }

    #[test]
    fn who_is_suspected_or_distrusted_is_asked_only_where_nobody_else_is_left() {
        let hub: Reference = "hf:acme/tiny/large.bin".parse().unwrap();
        let all = remotes(&[peer("liar"), peer("pc2"), hub]);
        let distrusted = Distrusted::default();
        distrusted.add(&peer("liar"));
        let mut suppliers = Suppliers::new(all, &distrusted, RetryPolicy::default());
        let names = suppliers.each(|supplier| supplier.remote.reference.authority());
        assert_eq!(names, ["peer:pc2", "hf:acme/tiny", "peer:liar"]);
        assert_eq!(asked(&mut suppliers, 2), [0, 0]);
        suppliers.suspect(just(0));
        assert_eq!(asked(&mut suppliers, 1), [1]);
        suppliers.get_mut(1).leave_out(JobError::Interrupted);
        assert_eq!(asked(&mut suppliers, 1), [2], "a liar of before rather than who is doubted for this very file");
        suppliers.get_mut(2).leave_out(JobError::Interrupted);
        assert_eq!(asked(&mut suppliers, 1), [0]);
    }
}
