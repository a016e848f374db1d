//! What is to be read, and in which order.

use std::collections::HashMap;
use std::path::Path;

use super::contents::Reading;
use crate::artifact::Found;
use crate::digest::{CHUNK_LEN, ChunkDigests, Digests, Sha256};
use crate::facts::{Damage, Facts, FactsError, Half, Known, Measurement, Stopped, StoppedReadings, Trusted};
use crate::observe::{Proof, Sighting};

/// One file to read, whoever wants it.
pub(super) struct Item<'a> {
    pub(super) found: &'a Found,
    /// Everything that any artifact wants to know of it.
    pub(super) wanted: Digests,
    /// Artifact and path of the first that wants it.
    pub(super) name: String,
    /// That artifact.
    pub(super) artifact: &'a str,
    /// Who wants it: numbers of the sighting and of the file in it.
    pub(super) users: Vec<(usize, usize)>,
    /// When all of it was read last.
    pub(super) last_read: Option<i64>,
    /// What was measured at this path before.
    pub(super) before: Option<Measurement>,
    /// Whether the file has not been written since.
    pub(super) is_unwritten: bool,
    /// What is trusted here, where no record has a digest.
    pub(super) trusted: Option<Trusted>,
    /// Whether its content is to be trusted from now on, whatever was trusted before.
    pub(super) is_accepted: bool,
    /// What was wrong with exactly this file when it was last read.
    pub(super) damage: Option<Damage>,
    /// What of it was never written, as its header and samples show.
    pub(super) unwritten: Option<String>,
    /// The content it should have and that content's chunks, where they are known.
    pub(super) chunks: Option<(Sha256, ChunkDigests)>,
    /// How far an earlier reading came.
    pub(super) stopped: Option<Stopped>,
}

impl<'a> Item<'a> {
    fn new(sighting: &'a Sighting<'_>, index: usize, found: &'a Found, last_read: Option<i64>) -> Self {
        let artifact = &sighting.artifact.name;
        Self {
            found,
            wanted: Digests::default(),
            name: format!("{artifact}/{}", sighting.path_of(index)),
            artifact,
            users: Vec::new(),
            last_read,
            before: None,
            is_unwritten: false,
            trusted: None,
            is_accepted: false,
            damage: None,
            unwritten: None,
            chunks: None,
            stopped: None,
        }
    }

    /// Whether it was right before, as far as anybody knows.
    pub(super) fn was_right(&self) -> bool {
        if self.wanted.proves_content() {
            return self.before.is_some_and(|before| self.wanted.check(&before.digests).is_ok());
        }
        self.baseline().is_some()
    }

    /// Whether nobody has written the file since it was right.
    pub(super) fn is_unwritten_since(&self) -> bool {
        let trusted = self.trusted.filter(|_| !self.wanted.proves_content());
        trusted.map_or(self.is_unwritten, |trusted| trusted.is_unwritten(self.found))
    }

    /// What a file must have that no record has a digest of: what is trusted, or what larder placed there.
    pub(super) fn baseline(&self) -> Option<Sha256> {
        if self.wanted.proves_content() || self.is_accepted {
            return None;
        }
        let measured = || self.before.and_then(|before| before.digests.sha256);
        self.trusted.map(|trusted| trusted.sha256).or_else(measured)
    }

    /// The content it should have, as far as that is known.
    pub(super) fn expected(&self) -> Option<Sha256> {
        let before = self.before.map(|before| before.digests);
        let as_before = || before.filter(|before| self.wanted.same_content(before)).and_then(|before| before.sha256);
        self.wanted.sha256.or_else(as_before).or_else(|| self.baseline())
    }
}

/// What is to be done with the files that are here.
pub(super) struct Agenda<'a> {
    /// One after the other.
    pub(super) rounds: Vec<Round<'a>>,
    /// Files that are left out, because they were read not long ago.
    pub(super) fresh: usize,
}

impl Agenda<'_> {
    /// Notes why a file will turn out to be wrong, where `unwritten` says that it was never written.
    pub(super) fn note_unwritten<'b>(&mut self, unwritten: impl Fn((usize, usize)) -> Option<&'b String>) {
        for item in self.rounds.iter_mut().flat_map(|round| round.whole.iter_mut().chain(&mut round.chunks)) {
            item.unwritten = item.users.iter().find_map(|user| unwritten(*user)).cloned();
        }
    }
}

/// Files whose last readings are about as old.
#[derive(Default)]
pub(super) struct Round<'a> {
    /// Hashed from the first byte to the last.
    pub(super) whole: Vec<Item<'a>>,
    /// Compared chunk by chunk.
    pub(super) chunks: Vec<Item<'a>>,
}

/// Within this time, in seconds, one age is like the other: files of one kind are read side by side.
const LIKE: i64 = 3600;

/// Every file that is here and not fresh, once; those whose last reading is oldest first.
///
/// Those of [`Reading::accepted`] are never fresh; with [`Reading::whole`], all are hashed as a whole. `is_fresh` judges
/// when a file was read; a reading later than `now` was noted by a clock that was wrong, and counts as none, lest the
/// file wait until that day.
pub(super) fn agenda<'a>(
    sightings: &'a [Sighting<'_>],
    reading: &Reading<'_>,
    now: i64,
    is_fresh: impl Fn(i64) -> bool,
) -> Result<Agenda<'a>, FactsError> {
    let (mut items, fresh) = items(sightings, reading.accepted, now, is_fresh);
    if !items.is_empty() {
        recall(&mut items, reading.facts)?;
    }
    items.sort_by(|a, b| {
        let key = |item: &Item<'_>| item.last_read.unwrap_or(i64::MIN);
        // Among equals the longest first: it must not keep one processor busy alone at the end.
        key(a).cmp(&key(b)).then(b.found.size.cmp(&a.found.size)).then_with(|| a.found.path.cmp(&b.found.path))
    });
    Ok(Agenda { rounds: rounds(items, reading.whole), fresh })
}

/// Cuts what comes in the order of its age where the age changes, unless all of it is read in the same way.
fn rounds(items: Vec<Item<'_>>, whole: bool) -> Vec<Round<'_>> {
    let has_chunks = |item: &Item<'_>| !whole && item.chunks.is_some();
    let is_mixed = items.iter().any(has_chunks) && !items.iter().all(has_chunks);
    let (mut rounds, mut begun): (Vec<Round<'_>>, Option<Option<i64>>) = (Vec::new(), None);
    for item in items {
        let is_older = |begun: Option<i64>| match (begun, item.last_read) {
            (Some(begun), Some(at)) => at.saturating_sub(begun) > LIKE,
            (begun, at) => begun.is_some() != at.is_some(),
        };
        if begun.is_none_or(|begun| is_mixed && is_older(begun)) {
            rounds.push(Round::default());
            begun = Some(item.last_read);
        }
        let Some(round) = rounds.last_mut() else { continue };
        if has_chunks(&item) { round.chunks.push(item) } else { round.whole.push(item) }
    }
    rounds
}

fn items<'a>(
    sightings: &'a [Sighting<'_>],
    accepted: &[String],
    now: i64,
    is_fresh: impl Fn(i64) -> bool,
) -> (Vec<Item<'a>>, usize) {
    let (mut items, mut fresh): (Vec<Item<'a>>, usize) = (Vec::new(), 0);
    let mut by_inode: HashMap<(u64, u64), usize> = HashMap::new();
    for (place, sighting) in sightings.iter().enumerate() {
        for (index, found) in sighting.here() {
            let proof = &sighting.proofs[index];
            let last_read = proof.read_at().filter(|at| *at <= now);
            let is_accepted = accepted.contains(&sighting.artifact.name);
            if last_read.is_some_and(&is_fresh) && !is_accepted && !may_pass(proof) {
                fresh += 1;
                continue;
            }
            let number = *by_inode.entry((found.device, found.inode)).or_insert_with(|| {
                items.push(Item::new(sighting, index, found, last_read));
                items.len() - 1
            });
            items[number].wanted = items[number].wanted.or(sighting.wanted(index));
            items[number].is_accepted |= is_accepted;
            items[number].users.push((place, index));
        }
    }
    (items, fresh)
}

/// Whether what is wrong may be over without the file having changed: a cable, a right to read.
fn may_pass(proof: &Proof) -> bool {
    matches!(proof, Proof::Refuted(wrong) if wrong.is_unreadable())
}

/// Joins what is known of the files from before.
fn recall(items: &mut [Item<'_>], facts: &Facts) -> Result<(), FactsError> {
    let known = everything_known(items, facts)?;
    let stopped: StoppedReadings = facts.stopped_readings()?;
    for item in items.iter_mut() {
        item.before = known.before(&item.found.path);
        item.is_unwritten = known.of(item.found).is_some();
        item.stopped = stopped.of(item.found).cloned();
        item.trusted = known.trusted(&item.found.path).copied();
        item.damage = known.damage_of(item.found).cloned();
        item.is_accepted &= !item.wanted.proves_content();
        if item.found.size > CHUNK_LEN
            && !item.is_accepted
            && let Some(content) = item.expected()
        {
            let chunks = facts.chunks(&content)?.filter(|chunks| chunks.content_len() == item.found.size);
            item.chunks = chunks.map(|chunks| (content, chunks));
        }
    }
    Ok(())
}

fn everything_known(items: &[Item<'_>], facts: &Facts) -> Result<Known, FactsError> {
    let mut paths = items.iter().map(|item| item.found.path.as_path());
    let first = paths.next().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
    // One question for all stores: the folder that all of them are in.
    let common = paths.fold(first, |common, path| {
        common.ancestors().find(|ancestor| path.starts_with(ancestor)).unwrap_or(Path::new("/")).to_owned()
    });
    if common.as_os_str() == "/" { facts.all() } else { facts.below(&common) }
}

/// The chunks of `item` that are still to be read, and how many whole chunks come before them.
pub(super) fn chunks_to_read(item: &Item<'_>, content: &Sha256, count: u64) -> (Vec<u64>, u64) {
    let (done, bad) = match item.stopped.as_ref().map(|stopped| &stopped.half) {
        Some(Half::Chunks { content: before, done, bad }) if before == content => {
            ((done / CHUNK_LEN).min(count), bad.as_slice())
        }
        _ => (0, &[][..]),
    };
    // Those that were wrong are read again: what is wrong with them was not kept. Last, so that each run comes further.
    let again = bad.iter().copied().filter(|chunk| *chunk < done);
    ((done..count).chain(again).collect(), done)
}
