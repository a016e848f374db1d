//! Reads contents: a whole lab, a part of it within a budget, or what is left of an earlier run.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::agenda::{Item, agenda};
use super::course::{Budget, Course};
use super::judge::{self, Judged};
use super::{AcceptedFile, Fault, FaultKind, TrustedFile, Verdict, quick, scrub, shards, unread, whole};
use crate::digest::{Blake3, ChunkDigests, Digests, Sha256};
use crate::facts::{Facts, FactsError};
use crate::monitor::{Event, Monitor};
use crate::observe::{Proof, Sighting};
use crate::size::Bytes;

/// How contents are to be read.
pub struct Reading<'a> {
    /// Where is remembered what was measured.
    pub facts: &'a Facts,
    /// Who listens.
    pub monitor: &'a dyn Monitor,
    /// Seconds since 1970.
    pub now: fn() -> i64,
    /// Asked again and again; once it says so, the run ends, and what was read is remembered.
    pub stopped: &'a (dyn Fn() -> bool + Sync),
    /// Whether every digest of the lock is compared, also where chunk digests are known.
    pub whole: bool,
    /// How much may be read.
    pub budget: Budget,
    /// Files that were read so many seconds ago, or less, are left out.
    pub max_age: Option<i64>,
    /// Bytes per second.
    pub max_rate: Option<Bytes>,
    /// Artifacts whose files are trusted as they are now, where no record has a digest of them.
    pub accepted: &'a [String],
}

impl<'a> Reading<'a> {
    /// Everything, as fast as possible, by chunk digests where they are known.
    pub fn new(
        facts: &'a Facts,
        monitor: &'a dyn Monitor,
        now: fn() -> i64,
        stopped: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        let budget = Budget::default();
        Self { facts, monitor, now, stopped, whole: false, budget, max_age: None, max_rate: None, accepted: &[] }
    }
}

/// What came of reading one file.
pub(super) enum Outcome {
    /// It was read to its end.
    Read(Box<Read>),
    /// It could not be read at all.
    Failed(std::io::Error),
    /// Somebody wrote it meanwhile.
    Changed,
    /// The run ended before; so many bytes are left. What is wrong already comes along.
    Unfinished(u64, Option<Box<Read>>),
}

/// A file that was read to its end.
pub(super) struct Read {
    /// When its first byte was read.
    pub(super) begun: i64,
    /// Its digests, where it was hashed as a whole.
    pub(super) digests: Option<Digests>,
    /// Its chunks' digests, where they were taken.
    pub(super) chunks: Option<ChunkDigests>,
    /// Chunks that are not what they should be.
    pub(super) bad: Vec<BadChunk>,
    /// What the disk could not read.
    pub(super) unreadable: Unreadable,
    /// Long parts of the whole that hold nothing but zeros, where it was hashed as a whole.
    pub(super) zeros: Vec<Range<u64>>,
}

/// A chunk that is not what it should be.
pub(super) struct BadChunk {
    pub(super) number: u64,
    pub(super) actual: Blake3,
    /// Parts of it that hold nothing but zeros.
    pub(super) zeros: Vec<Range<u64>>,
}

/// What the disk could not read, and its reason.
#[derive(Default)]
pub(super) struct Unreadable {
    pub(super) ranges: Vec<Range<u64>>,
    pub(super) reason: String,
}

impl Unreadable {
    pub(super) fn add(&mut self, ranges: Vec<Range<u64>>, error: &std::io::Error) {
        if self.ranges.is_empty() {
            self.reason = error.to_string();
        }
        self.ranges.extend(ranges);
    }

    /// In the order of the file, with neighbours joined.
    pub(super) fn in_order(mut self) -> Self {
        self.ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in self.ranges {
            match joined.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self { ranges: joined, reason: self.reason }
    }
}

/// Takes what came of an item, by its number.
pub(super) type Done<'a> = &'a (dyn Fn(usize, Outcome) + Sync);

/// Reads the contents of what was seen, compares them with the lock, and remembers what was measured.
///
/// Where chunk digests of the right content are known, chunks are compared, several at once; other files are hashed as
/// a whole, and their chunk digests taken on the way. Files that several artifacts share are read once, those whose last
/// reading is oldest first. A file that was read half-way continues there.
pub fn contents(sightings: &[Sighting<'_>], reading: &Reading<'_>) -> Result<Verdict, FactsError> {
    let now = (reading.now)();
    let since = reading.max_age.map(|age| now.saturating_sub(age));
    let is_fresh = |at: i64| since.is_some_and(|since| at >= since);
    let mut agenda = agenda(sightings, reading, now, is_fresh)?;
    let mut verdict = quick(sightings, &reading.facts.harmless()?);
    agenda.note_unwritten(|user| verdict.unwritten.get(&name_of(sightings, user)));
    verdict.fresh = agenda.fresh;
    let course = Course::new(reading);
    let mut judged = Judgements::of(sightings, now);
    for round in agenda.rounds {
        let located = judged.pass(round.whole, &course, whole::read);
        judged.pass(located, &course, scrub::read);
        judged.pass(round.chunks, &course, scrub::read);
    }
    course.end();
    verdict.bytes_read = course.bytes();
    verdict.interrupted = (reading.stopped)();
    judged.tell(&mut verdict, since);
    verdict.faults.extend(sightings.iter().filter_map(unread));
    Ok(verdict)
}

/// What is judged so far.
struct Judgements<'a, 'b> {
    sightings: &'a [Sighting<'b>],
    now: i64,
    judged: HashMap<(usize, usize), (Option<Fault>, Judged)>,
    accepted: Vec<AcceptedFile>,
    /// Since when what was read now is trusted, where that is not new.
    since: HashMap<(usize, usize), i64>,
    unread: Vec<(u64, Option<i64>)>,
    changing: usize,
}

impl<'a, 'b> Judgements<'a, 'b> {
    fn of(sightings: &'a [Sighting<'b>], now: i64) -> Self {
        Self {
            sightings,
            now,
            judged: HashMap::new(),
            accepted: Vec::new(),
            since: HashMap::new(),
            unread: Vec::new(),
            changing: 0,
        }
    }

    /// Reads `items` by `read`; returns those whose faults can be located by their chunks.
    fn pass(
        &mut self,
        items: Vec<Item<'a>>,
        course: &Course<'_>,
        read: fn(&[Item<'_>], &Course<'_>, Done<'_>),
    ) -> Vec<Item<'a>> {
        let outcomes: Mutex<HashMap<usize, Told>> = Mutex::new(HashMap::new());
        let sightings = self.sightings;
        let done = |number: usize, outcome: Outcome| {
            let told = tell_item(&items[number], outcome, sightings, course);
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(number, told);
        };
        if !items.is_empty() {
            read(&items, course, &done);
        }
        let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut to_locate = Vec::new();
        for (number, item) in items.into_iter().enumerate() {
            match outcomes.remove(&number).unwrap_or(Told::Unfinished(item.found.size, Vec::new())) {
                Told::Judged(faults, content) => {
                    self.note_trust(&item, content);
                    self.judged.extend(faults);
                }
                Told::Changed => self.changing += 1,
                Told::Unfinished(left, faults) => {
                    self.judged.extend(faults);
                    self.unread.push((left, item.last_read));
                }
                // Until its chunks are compared, this is what is known.
                Told::ToLocate(faults) => {
                    self.judged.extend(faults);
                    to_locate.push(item);
                }
            }
        }
        to_locate
    }

    fn note_trust(&mut self, item: &Item<'_>, content: Option<Sha256>) {
        let (Some(before), Some(now)) = (item.trusted, content) else { return };
        if before.sha256 == now {
            self.since.extend(item.users.iter().map(|user| (*user, before.at)));
        } else if item.is_accepted {
            let (artifact, path) = name_of(self.sightings, item.users[0]);
            self.accepted.push(AcceptedFile { artifact, path, before: before.sha256, now });
        }
    }

    fn tell(self, verdict: &mut Verdict, since: Option<i64>) {
        verdict.changing = self.changing;
        verdict.unread = self.unread.len();
        verdict.unread_bytes = self.unread.iter().map(|(left, _)| left).sum();
        let is_overdue = |at: &Option<i64>| since.is_some_and(|since| at.is_none_or(|at| at < since));
        let overdue = self.unread.iter().filter(|(_, at)| is_overdue(at));
        (verdict.overdue, verdict.overdue_bytes) =
            overdue.fold((0, 0), |(files, bytes), (left, _)| (files + 1, bytes + left));
        self.tell_once(verdict);
        self.tell_trusted(verdict);
        verdict.accepted = self.accepted;
        let right = self.judged.iter().filter(|(_, (_, judged))| *judged != Judged::Wrong);
        verdict.right = right.map(|(place, _)| *place).collect();
        let mut judged: Vec<_> = self.judged.into_iter().collect();
        judged.sort_by_key(|(place, _)| *place);
        for (_, (fault, judged)) in judged {
            verdict.proven += usize::from(judged == Judged::Proven);
            verdict.first_use += usize::from(judged == Judged::FirstUse);
            verdict.faults.extend(fault);
        }
    }

    /// Names what is trusted as first seen, whether it was read now or not.
    fn tell_trusted(&self, verdict: &mut Verdict) {
        let name = |place: &(usize, usize)| name_of(self.sightings, *place);
        let told: std::collections::HashSet<_> = self.judged.keys().map(&name).collect();
        verdict.trusted.retain(|file| !told.contains(&(file.artifact.clone(), file.path.clone())));
        for (place, _) in self.judged.iter().filter(|(_, (_, judged))| *judged == Judged::FirstUse) {
            let (artifact, path) = name(place);
            let since = self.since.get(place).copied().unwrap_or(self.now);
            verdict.trusted.push(TrustedFile { artifact, path, since });
        }
        verdict.trusted.sort();
    }

    /// Takes out what reading the contents has told better.
    ///
    /// These are refusals that were remembered from an earlier reading, and suspicions by the headers of
    /// files that were read now: these are either right, or told to be wrong.
    fn tell_once(&self, verdict: &mut Verdict) {
        // Nothing but what is remembered is told of a file that is known to be wrong, and that it must not be loaded.
        let is_remembered =
            |(sighting, file): &(usize, usize)| matches!(self.sightings[*sighting].proofs[*file], Proof::Refuted(_));
        let judged = self.judged.iter();
        let told: HashMap<_, _> = judged
            .map(|(place, (_, judged))| (name_of(self.sightings, *place), (is_remembered(place), *judged)))
            .collect();
        let by_header = [
            FaultKind::Structure,
            FaultKind::Truncated,
            FaultKind::NotTheFile,
            FaultKind::ZeroFilled,
            FaultKind::Unreadable,
        ];
        verdict.faults.retain(|fault| {
            let Some(path) = &fault.path else { return true };
            let Some(judged) = told.get(&(fault.artifact.clone(), path.clone())) else { return true };
            let (is_remembered, judged) = *judged;
            let is_by_header = by_header.contains(&fault.kind) || shards::is_by_headers(fault);
            let is_told = is_remembered && fault.kind != FaultKind::UnsafePickle;
            !(is_told || is_by_header && judged != Judged::FirstUse)
        });
    }
}

/// Artifact and path.
type Name = (String, String);

fn name_of(sightings: &[Sighting<'_>], (sighting, file): (usize, usize)) -> Name {
    let sighting = &sightings[sighting];
    (sighting.artifact.name.clone(), sighting.path_of(file))
}

type ForUsers = Vec<((usize, usize), (Option<Fault>, Judged))>;

enum Told {
    /// With the content, where all of it was hashed.
    Judged(ForUsers, Option<Sha256>),
    Changed,
    Unfinished(u64, ForUsers),
    ToLocate(ForUsers),
}

fn tell_item(item: &Item<'_>, outcome: Outcome, sightings: &[Sighting<'_>], course: &Course<'_>) -> Told {
    let monitor = course.reading.monitor;
    let for_users = |judgement: &judge::Judgement| {
        let users = item.users.iter();
        users.map(|user| (*user, judge::for_user(item, judgement, *user, sightings))).collect::<ForUsers>()
    };
    let (judgement, is_final) = match outcome {
        Outcome::Unfinished(left, wrong) => {
            let wrong = wrong.map(|read| judge::read(item, &read, sightings, course.reading.facts));
            return Told::Unfinished(left, wrong.as_ref().map(for_users).unwrap_or_default());
        }
        Outcome::Changed => {
            let reason = "somebody writes it at this moment";
            monitor.event(Event::Failed { item: &item.name, reason });
            return Told::Changed;
        }
        Outcome::Failed(reason) => (judge::failed(item, &reason, (course.reading.now)()), true),
        Outcome::Read(read) => {
            let judgement = judge::read(item, &read, sightings, course.reading.facts);
            (judgement, !judge::can_be_located(item, &read))
        }
    };
    let faults = for_users(&judgement);
    if !is_final {
        return Told::ToLocate(faults);
    }
    match &judgement.fault {
        None => monitor.event(Event::Finished { item: &item.name }),
        Some((_, reason, _)) => monitor.event(Event::Failed { item: &item.name, reason }),
    }
    let content = judgement.digests.and_then(|digests| digests.sha256);
    course.remember(judgement.result);
    Told::Judged(faults, content)
}
