//! Who fetches which bytes of one file: a pure account of what is free, under way and here.
//!
//! Every byte is in exactly one of the three at any time, so none is fetched twice unless it was lost.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::digest::{CHUNK_LEN, chunk_range};

/// Names one range under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClaimId(u64);

/// A range that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) id: ClaimId,
    pub(super) range: Range<u64>,
}

/// The account of one file.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    size: u64,
    /// What nobody fetches: first byte, and first byte after it. Neighbours are joined.
    free: BTreeMap<u64, u64>,
    /// What is under way: the next byte that is to come, and the first one no longer wanted.
    claims: BTreeMap<ClaimId, Range<u64>>,
    next: u64,
}

impl Schedule {
    /// The account of a file of `size` bytes, of which `here` need not be fetched.
    pub(super) fn new(size: u64, here: &[Range<u64>]) -> Self {
        let mut schedule = Self { size, free: BTreeMap::new(), claims: BTreeMap::new(), next: 0 };
        let mut at = 0;
        for part in here {
            schedule.release(at..part.start);
            at = at.max(part.end);
        }
        schedule.release(at..size);
        schedule
    }

    /// Hands out the first free range: about `length` bytes, ending with a chunk, at least one chunk's rest.
    pub(super) fn take(&mut self, length: u64) -> Option<Claim> {
        let (start, end) = self.free.pop_first()?;
        let cut = chunk_end(start.saturating_add(length.max(1)).min(self.size) - 1, self.size).min(end);
        self.release(cut..end);
        Some(self.claim(start..cut))
    }

    /// Lets a claim go on behind its end, by about `length` bytes, where those are free.
    ///
    /// Returns whether it goes on.
    pub(super) fn extend(&mut self, id: ClaimId, length: u64) -> bool {
        let Some(claim) = self.claims.get_mut(&id) else { return false };
        let Some(end) = self.free.remove(&claim.end) else { return false };
        let cut = chunk_end(claim.end.saturating_add(length.max(1)).min(self.size) - 1, self.size).min(end);
        claim.end = cut;
        self.release(cut..end);
        true
    }

    /// How far nobody else fetches anything behind `at`, and nothing is here.
    pub(super) fn open_end(&self, at: u64) -> u64 {
        self.free.get(&at).copied().unwrap_or(at)
    }

    /// Takes the rear half of the longest range under way, where it is longer than what `least` bytes would save.
    pub(super) fn split(&mut self, least: u64) -> Option<Claim> {
        let (id, longest) = self.claims.iter().max_by_key(|(_, range)| range.end - range.start)?;
        let (id, longest) = (*id, longest.clone());
        let middle = longest.start + (longest.end - longest.start) / 2;
        // The chunk that the middle lies in stays with who comes first.
        let cut = chunk_end(middle, self.size);
        if cut >= longest.end || longest.end - cut < least {
            return None;
        }
        self.claims.insert(id, longest.start..cut);
        Some(self.claim(cut..longest.end))
    }

    /// Notes that `len` more bytes of a claim are here; returns how many of them were still wanted.
    pub(super) fn advance(&mut self, id: ClaimId, len: u64) -> u64 {
        let Some(claim) = self.claims.get_mut(&id) else { return 0 };
        let wanted = len.min(claim.end - claim.start);
        claim.start += wanted;
        wanted
    }

    /// What of a claim is still to come.
    pub(super) fn rest(&self, id: ClaimId) -> Range<u64> {
        self.claims.get(&id).cloned().unwrap_or(0..0)
    }

    /// Ends a claim; what did not come is free again.
    pub(super) fn end(&mut self, id: ClaimId) {
        if let Some(rest) = self.claims.remove(&id) {
            self.release(rest);
        }
    }

    /// Frees a chunk that had come, because it proved wrong.
    pub(super) fn lost(&mut self, chunk: u64) -> Range<u64> {
        let range = chunk_range(chunk, self.size);
        self.release(range.clone());
        range
    }

    /// Bytes that nobody fetches and that are not here.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free.iter().map(|(start, end)| end - start).sum()
    }

    /// Bytes that are not here.
    pub(super) fn missing_bytes(&self) -> u64 {
        self.free_bytes() + self.claims.values().map(|range| range.end - range.start).sum::<u64>()
    }

    fn claim(&mut self, range: Range<u64>) -> Claim {
        let id = ClaimId(self.next);
        self.next += 1;
        self.claims.insert(id, range.clone());
        Claim { id, range }
    }

    /// Makes a range free, joined with its neighbours.
    fn release(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some(after) = self.free.remove(&end) {
            end = after;
        }
        if let Some((&before, _)) = self.free.range(..start).next_back().filter(|(_, before_end)| **before_end == start)
        {
            start = before;
        }
        self.free.insert(start, end);
    }
}

/// The end of the chunk that byte `at` lies in.
fn chunk_end(at: u64, size: u64) -> u64 {
    chunk_range(at / CHUNK_LEN, size).end
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What may happen to a schedule.
    #[derive(Debug, Clone)]
    enum Happening {
        Take(u64),
        Extend(usize, u64),
        Split,
        Advance(usize, u64),
        End(usize),
        Lose(u64),
        /// The program is killed: what is not a whole chunk is gone, and so are all claims.
        Restart,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let bytes = || 1..3 * CHUNK_LEN;
        prop_oneof![
            3 => (1..5 * CHUNK_LEN).prop_map(Happening::Take),
            2 => (any::<usize>(), bytes()).prop_map(|(which, len)| Happening::Extend(which, len)),
            1 => Just(Happening::Split),
            6 => (any::<usize>(), bytes()).prop_map(|(which, len)| Happening::Advance(which, len)),
            2 => any::<usize>().prop_map(Happening::End),
            1 => any::<u64>().prop_map(Happening::Lose),
            1 => Just(Happening::Restart),
        ]
    }

    /// A file that is fetched, byte ranges instead of bytes: pieces of 1 MiB would not show off-by-ones.
    struct World {
        size: u64,
        schedule: Schedule,
        open: Vec<ClaimId>,
        /// Cuts the file into pieces at every offset that ever mattered; which of them are here.
        here: BTreeMap<u64, u64>,
        fetched: u64,
        lost: u64,
    }

    impl World {
        fn new(size: u64) -> Self {
            let schedule = Schedule::new(size, &[]);
            Self { size, schedule, open: Vec::new(), here: BTreeMap::new(), fetched: 0, lost: 0 }
        }

        fn pick(&self, which: usize) -> Option<ClaimId> {
            (!self.open.is_empty()).then(|| self.open[which % self.open.len()])
        }

        fn arrive(&mut self, start: u64, end: u64) {
            // Where an exhausted claim stands says nothing: no byte came.
            if start == end {
                return;
            }
            let overlaps = self.here.range(..end).next_back().is_some_and(|(_, here_end)| *here_end > start);
            assert!(!overlaps, "{start}..{end} came twice");
            self.here.insert(start, end);
            self.fetched += end - start;
        }

        fn has(&self, range: &Range<u64>) -> bool {
            let mut at = range.start;
            for (start, end) in self.here.range(..range.end) {
                if *start <= at && *end > at {
                    at = *end;
                }
            }
            at >= range.end
        }

        fn forget(&mut self, range: &Range<u64>) {
            let pieces: Vec<(u64, u64)> =
                self.here.range(..range.end).filter(|(_, end)| **end > range.start).map(|(s, e)| (*s, *e)).collect();
            for (start, end) in pieces {
                self.here.remove(&start);
                self.lost += end.min(range.end) - start.max(range.start);
                for kept in [start..range.start.min(end), range.end.max(start)..end] {
                    if kept.start < kept.end {
                        self.here.insert(kept.start, kept.end);
                    }
                }
            }
        }

        fn whole_chunks(&self) -> Vec<u64> {
            let count = crate::digest::chunk_count(self.size);
            (0..count).filter(|index| self.has(&chunk_range(*index, self.size))).collect()
        }

        fn restart(&mut self) {
            let whole: BTreeSet<u64> = self.whole_chunks().into_iter().collect();
            for index in 0..crate::digest::chunk_count(self.size) {
                if !whole.contains(&index) {
                    self.forget(&chunk_range(index, self.size));
                }
            }
            let here: Vec<Range<u64>> = whole.iter().map(|index| chunk_range(*index, self.size)).collect();
            self.schedule = Schedule::new(self.size, &here);
            self.open.clear();
        }

        fn happen(&mut self, happening: &Happening) {
            match happening {
                Happening::Take(len) => {
                    let claim = self.schedule.take(*len);
                    self.open.extend(claim.map(|claim| claim.id));
                }
                Happening::Extend(which, len) => {
                    let Some(id) = self.pick(*which) else { return };
                    self.schedule.extend(id, *len);
                }
                Happening::Split => {
                    let claim = self.schedule.split(1);
                    self.open.extend(claim.map(|claim| claim.id));
                }
                Happening::Advance(which, len) => {
                    let Some(id) = self.pick(*which) else { return };
                    let at = self.schedule.rest(id).start;
                    let wanted = self.schedule.advance(id, *len);
                    self.arrive(at, at + wanted);
                }
                Happening::End(which) => {
                    let Some(id) = self.pick(*which) else { return };
                    self.schedule.end(id);
                    self.open.retain(|open| *open != id);
                }
                Happening::Lose(which) => {
                    let whole = self.whole_chunks();
                    if let Some(index) = whole.get((which % self.size) as usize % whole.len().max(1)) {
                        let range = self.schedule.lost(*index);
                        self.forget(&range);
                    }
                }
                Happening::Restart => self.restart(),
            }
        }

        fn finish(&mut self) {
            for id in std::mem::take(&mut self.open) {
                let rest = self.schedule.rest(id);
                let wanted = self.schedule.advance(id, u64::MAX);
                self.arrive(rest.start, rest.start + wanted);
                self.schedule.end(id);
            }
            while let Some(claim) = self.schedule.take(CHUNK_LEN) {
                self.arrive(claim.range.start, claim.range.end);
                self.schedule.advance(claim.id, u64::MAX);
                self.schedule.end(claim.id);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn whatever_happens_every_byte_comes_once_and_again_only_if_lost(
            chunks in 0_u64..12,
            rest in 1..CHUNK_LEN,
            happenings in prop::collection::vec(happening(), 0..60),
        ) {
            let mut world = World::new(chunks * CHUNK_LEN + rest);
            for happening in &happenings {
                world.happen(happening);
                let here: u64 = world.here.iter().map(|(start, end)| end - start).sum();
                prop_assert_eq!(here + world.schedule.missing_bytes(), world.size, "after {:?}", happening);
            }
            world.finish();
            prop_assert!(world.has(&(0..world.size)));
            prop_assert_eq!(world.schedule.missing_bytes(), 0);
            prop_assert_eq!(world.fetched, world.size + world.lost);
        }
    }

    #[test]
    fn ranges_come_from_the_front_and_end_with_chunks() {
        let mut schedule = Schedule::new(5 * CHUNK_LEN + 3, std::slice::from_ref(&(CHUNK_LEN..2 * CHUNK_LEN)));
        let mut ranges = Vec::new();
        while let Some(claim) = schedule.take(CHUNK_LEN + 1) {
            ranges.push((claim.range.start, claim.range.end));
        }
        let chunk = |n| n * CHUNK_LEN;
        let expected = [(0, chunk(1)), (chunk(2), chunk(4)), (chunk(4), chunk(5) + 3)];
        assert_eq!(ranges, expected);
    }

    #[test]
    fn a_slow_range_is_shared_behind_the_chunk_under_way() {
        let mut schedule = Schedule::new(4 * CHUNK_LEN, &[]);
        let slow = schedule.take(u64::MAX).unwrap();
        assert_eq!(schedule.advance(slow.id, 10), 10);
        let rear = schedule.split(CHUNK_LEN).unwrap();
        assert_eq!(rear.range, 3 * CHUNK_LEN..4 * CHUNK_LEN);
        assert_eq!(schedule.rest(slow.id), 10..3 * CHUNK_LEN);
        assert_eq!(schedule.advance(slow.id, u64::MAX), 3 * CHUNK_LEN - 10, "what the other fetches is not wanted");
        assert_eq!(schedule.split(CHUNK_LEN), None, "nothing is to be won");
    }

    #[test]
    fn what_did_not_come_is_free_again_within_its_chunk() {
        let mut schedule = Schedule::new(2 * CHUNK_LEN, &[]);
        let claim = schedule.take(1).unwrap();
        schedule.advance(claim.id, 100);
        schedule.end(claim.id);
        assert_eq!(schedule.take(1).unwrap().range, 100..CHUNK_LEN);
    }
}
