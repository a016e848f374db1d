//! What is to be read, and in which order.

use std::collections::HashMap;
use std::path::Path;

use crate::artifact::Found;
use crate::digest::{CHUNK_LEN, ChunkDigests, Digests, Sha256};
use crate::facts::{Facts, FactsError, Half, Known, Measurement, Stopped, StoppedReadings};
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
            chunks: None,
            stopped: None,
        }
    }

    /// Whether what was measured before is what it must be.
    pub(super) fn was_right(&self) -> bool {
        self.before.is_some_and(|before| self.wanted.check(&before.digests).is_ok())
    }

    /// The content it should have, as far as that is known.
    fn expected(&self) -> Option<Sha256> {
        let before = self.before.map(|before| before.digests);
        let as_before = before.filter(|before| {
            let trusted = !self.wanted.proves_content() && self.is_unwritten;
            trusted || self.wanted.same_content(before)
        });
        self.wanted.sha256.or_else(|| as_before?.sha256)
    }
}

/// What is to be done with the files that are here.
pub(super) struct Agenda<'a> {
    /// Hashed from the first byte to the last.
    pub(super) whole: Vec<Item<'a>>,
    /// Compared chunk by chunk.
    pub(super) chunks: Vec<Item<'a>>,
    /// Files that are left out, because they were read not long ago.
    pub(super) fresh: usize,
}

/// Every file that is here and not fresh, once; those whose last reading is oldest first.
///
/// With `whole`, all of them are hashed as a whole. `is_fresh` judges when a file was read; a reading later than
/// `now` was noted by a clock that was wrong, and counts as none, lest the file wait until that day.
pub(super) fn agenda<'a>(
    sightings: &'a [Sighting<'_>],
    facts: &Facts,
    whole: bool,
    now: i64,
    is_fresh: impl Fn(i64) -> bool,
) -> Result<Agenda<'a>, FactsError> {
    let (mut items, fresh) = items(sightings, now, is_fresh);
    if !items.is_empty() {
        recall(&mut items, facts)?;
    }
    items.sort_by(|a, b| {
        let key = |item: &Item<'_>| item.last_read.unwrap_or(i64::MIN);
        // Among equals the longest first: it must not keep one processor busy alone at the end.
        key(a).cmp(&key(b)).then(b.found.size.cmp(&a.found.size)).then_with(|| a.found.path.cmp(&b.found.path))
    });
    let (chunks, whole): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| !whole && item.chunks.is_some());
    Ok(Agenda { whole, chunks, fresh })
}

fn items<'a>(sightings: &'a [Sighting<'_>], now: i64, is_fresh: impl Fn(i64) -> bool) -> (Vec<Item<'a>>, usize) {
    let (mut items, mut fresh): (Vec<Item<'a>>, usize) = (Vec::new(), 0);
    let mut by_inode: HashMap<(u64, u64), usize> = HashMap::new();
    for (place, sighting) in sightings.iter().enumerate() {
        for (index, found) in sighting.here() {
            let last_read = last_read(&sighting.proofs[index]).filter(|at| *at <= now);
            if last_read.is_some_and(&is_fresh) {
                fresh += 1;
                continue;
            }
            let number = *by_inode.entry((found.device, found.inode)).or_insert_with(|| {
                items.push(Item::new(sighting, index, found, last_read));
                items.len() - 1
            });
            items[number].wanted = items[number].wanted.or(sighting.wanted(index));
            items[number].users.push((place, index));
        }
    }
    (items, fresh)
}

fn last_read(proof: &Proof) -> Option<i64> {
    match proof {
        Proof::Proven { at } | Proof::Refuted { at, .. } | Proof::FirstUse { at } => Some(*at),
        Proof::Unknown => None,
    }
}

/// Joins what is known of the files from before.
fn recall(items: &mut [Item<'_>], facts: &Facts) -> Result<(), FactsError> {
    let known = everything_known(items, facts)?;
    let stopped: StoppedReadings = facts.stopped_readings()?;
    for item in items.iter_mut() {
        item.before = known.before(&item.found.path);
        item.is_unwritten = known.of(item.found).is_some();
        item.stopped = stopped.of(item.found).cloned();
        if item.found.size > CHUNK_LEN
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
