//! Whom to doubt when the whole of a file is wrong and several had a part in it: a pure account of who sent what.
//!
//! What is doubted comes again from others, a little at a time: first the chunks that are not what a peer says they
//! are, then, where nobody says anything, the parts of one sender after the other. Nobody is blamed before the whole
//! is right: only then is it known what each chunk should have been.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::{Blake3, ChunkDigests, DigestMismatch};

/// A set of sources, by their places in the list: a bit for each. Those far behind share the last one.
pub(super) type Crowd = u64;

/// The set of one source.
pub(super) fn just(supplier: usize) -> Crowd {
    1 << supplier.min(63)
}

/// Who sent which chunk of the content that is there; nobody where an earlier run left it.
#[derive(Debug)]
pub(super) struct Senders(Mutex<Vec<Crowd>>);

impl Senders {
    /// All of so many chunks are of an earlier run, or not there yet.
    pub(super) fn of(chunks: usize) -> Self {
        Self(Mutex::new(vec![0; chunks]))
    }

    /// Notes who sent the chunk that is there now.
    pub(super) fn note(&self, chunk: u64, senders: Crowd) {
        if let Some(place) = usize::try_from(chunk).ok().and_then(|chunk| self.lock().get_mut(chunk).map(|_| chunk)) {
            self.lock()[place] = senders;
        }
    }

    /// Nothing that came is there any more.
    pub(super) fn begin_again(&self) {
        self.lock().fill(0);
    }

    /// The senders of each chunk.
    pub(super) fn by_chunk(&self) -> Vec<Crowd> {
        self.lock().clone()
    }

    /// The one that all of it came from in this run, if it was one.
    pub(super) fn only_one(&self) -> Option<usize> {
        let senders = self.lock();
        let first = *senders.first()?;
        (senders.iter().all(|crowd| *crowd == first)).then(|| single(first)).flatten()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Crowd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one source of a set of one.
fn single(crowd: Crowd) -> Option<usize> {
    (crowd.is_power_of_two() && crowd != just(63)).then(|| crowd.trailing_zeros() as usize)
}

/// What is to come again, and who is not to send it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) chunks: Vec<u64>,
    /// Nobody where an earlier run is doubted.
    pub(super) suspect: Crowd,
}

/// A source that sent a chunk that was wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Liar {
    pub(super) supplier: usize,
    pub(super) mismatch: DigestMismatch,
}

/// All doubts about one file.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// What peers say of its chunks.
    lists: Vec<ChunkDigests>,
    /// Who was doubted because of which list, or of none.
    tried: HashSet<(Option<usize>, Crowd)>,
    /// Chunks that came again: which, whose it had been, and what it was.
    exchanged: Vec<(u64, Crowd, Blake3)>,
}

impl Doubts {
    /// Doubts that know what peers say of the chunks.
    pub(super) fn with(lists: Vec<ChunkDigests>) -> Self {
        Self { lists, ..Self::default() }
    }

    /// The next thing to doubt about a whole that is wrong, of which the chunks are `digests` from `senders`; `None`
    /// where `everybody` who can be asked would be the one who is doubted.
    pub(super) fn next(&mut self, digests: &[Option<Blake3>], senders: &[Crowd], everybody: Crowd) -> Option<Doubt> {
        let mut disputes: Vec<(usize, Vec<u64>)> =
            self.lists.iter().enumerate().map(|(number, list)| (number, disputed(list, digests))).collect();
        // The fewer it disputes, the less it costs to believe it. Who disputes nothing of what is wrong is no help.
        disputes.sort_by_key(|(_, chunks)| chunks.len());
        let by_list = disputes.into_iter().map(|(number, chunks)| (Some(number), chunks));
        let all = (0..digests.len() as u64).collect();
        let reasons: Vec<(Option<usize>, Vec<u64>)> = by_list.chain([(None, all)]).collect();
        for (list, chunks) in reasons {
            let doubt = self.suspect(list, &chunks, senders, everybody);
            if let Some(doubt) = doubt {
                self.tried.insert((list, doubt.suspect));
                self.remember(&doubt, digests, senders);
                return Some(doubt);
            }
        }
        None
    }

    /// Of those who sent some of `chunks`, the one whose part is the smallest and who was not doubted for the same reason.
    fn suspect(&self, list: Option<usize>, chunks: &[u64], senders: &[Crowd], everybody: Crowd) -> Option<Doubt> {
        let crowd_of = |chunk: &u64| usize::try_from(*chunk).ok().and_then(|chunk| senders.get(chunk)).copied();
        let suspects = std::iter::once(0).chain((0..64).map(|supplier| 1 << supplier));
        let has_part = |suspect: Crowd, chunk: &u64| {
            crowd_of(chunk).is_some_and(|crowd| if suspect == 0 { crowd == 0 } else { crowd & suspect != 0 })
        };
        suspects
            .filter(|suspect| everybody & !suspect != 0 && !self.tried.contains(&(list, *suspect)))
            .map(|suspect| {
                let chunks: Vec<u64> = chunks.iter().filter(|chunk| has_part(suspect, chunk)).copied().collect();
                Doubt { chunks, suspect }
            })
            // Where it would be all of it, there is nothing to keep.
            .filter(|doubt| !doubt.chunks.is_empty() && doubt.chunks.len() < senders.len())
            .min_by_key(|doubt| doubt.chunks.len())
    }

    fn remember(&mut self, doubt: &Doubt, digests: &[Option<Blake3>], senders: &[Crowd]) {
        for chunk in &doubt.chunks {
            let place = usize::try_from(*chunk).unwrap_or(usize::MAX);
            if let (Some(Some(digest)), Some(crowd)) = (digests.get(place), senders.get(place)) {
                self.exchanged.push((*chunk, *crowd, *digest));
            }
        }
    }

    /// Who sent something else than what the chunks of the whole really are, each once.
    pub(super) fn liars(&self, right: &[Option<Blake3>]) -> Vec<Liar> {
        let mut liars: Vec<Liar> = Vec::new();
        for (chunk, crowd, was) in &self.exchanged {
            let right = usize::try_from(*chunk).ok().and_then(|chunk| right.get(chunk)).copied().flatten();
            let (Some(right), Some(supplier)) = (right.filter(|right| right != was), single(*crowd)) else { continue };
            if liars.iter().all(|liar| liar.supplier != supplier) {
                let (expected, actual) = (right.to_string(), was.to_string());
                let mismatch = DigestMismatch { algorithm: Blake3::ALGORITHM, expected, actual };
                liars.push(Liar { supplier, mismatch });
            }
        }
        liars
    }
}

fn disputed(list: &ChunkDigests, digests: &[Option<Blake3>]) -> Vec<u64> {
    let differs = |(said, found): (&Blake3, &Option<Blake3>)| Some(*said) != *found;
    (0..).zip(list.digests().iter().zip(digests)).filter(|(_, pair)| differs(*pair)).map(|(chunk, _)| chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::CHUNK_LEN;

    const CHUNKS: usize = 5;

    fn digest(of: u8) -> Blake3 {
        Blake3::from_bytes([of; 32])
    }

    /// What the chunks are, and what they should be, where the `wrong` ones are not.
    fn chunks(wrong: &[u8]) -> Vec<Option<Blake3>> {
        (0..CHUNKS as u8).map(|chunk| Some(digest(if wrong.contains(&chunk) { chunk + 100 } else { chunk }))).collect()
    }

    fn list(wrong: &[u8]) -> ChunkDigests {
        let digests = chunks(wrong).into_iter().map(Option::unwrap).collect();
        ChunkDigests::new(CHUNKS as u64 * CHUNK_LEN, digests).unwrap()
    }

    #[test]
    fn what_a_peer_disputes_comes_again_and_the_liar_is_known_once_the_whole_is_right() {
        let mut doubts = Doubts::with(vec![list(&[])]);
        let senders = [just(0), just(1), just(1), just(2), just(2)];
        let doubt = doubts.next(&chunks(&[1]), &senders, 0b111).unwrap();
        assert_eq!(doubt, Doubt { chunks: vec![1], suspect: just(1) });
        assert_eq!(doubts.liars(&chunks(&[1])), [], "it is not known yet who is right");
        let liars = doubts.liars(&chunks(&[]));
        assert_eq!(liars.iter().map(|liar| liar.supplier).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_list_that_lies_costs_what_it_disputes_and_blames_nobody() {
        let mut doubts = Doubts::with(vec![list(&[0, 1, 2]), list(&[])]);
        let senders = [just(0); CHUNKS];
        assert_eq!(doubts.next(&chunks(&[4]), &senders, 0b11).unwrap().chunks, [4]);
        let mut doubts = Doubts::with(vec![list(&[0])]);
        let senders = [just(0), just(1), just(1), just(1), just(1)];
        // What is wrong is chunk 3; the list is wrong about chunk 0, and right about chunk 3.
        assert_eq!(doubts.next(&chunks(&[3]), &senders, 0b11).unwrap().chunks, [0]);
        assert_eq!(doubts.next(&chunks(&[3]), &senders, 0b11).unwrap(), Doubt { chunks: vec![3], suspect: just(1) });
        assert_eq!(doubts.liars(&chunks(&[])).len(), 1);
    }

    #[test]
    fn without_lists_the_smallest_part_comes_again_first_and_nobody_is_doubted_twice() {
        let mut doubts = Doubts::default();
        let senders = [0, just(1), just(1), just(2), just(2) | just(1)];
        let mut suspects = Vec::new();
        while let Some(doubt) = doubts.next(&chunks(&[1]), &senders, 0b110) {
            suspects.push((doubt.suspect, doubt.chunks.len()));
        }
        assert_eq!(suspects, [(0, 1), (just(2), 2), (just(1), 3)]);
        assert!(Doubts::default().next(&chunks(&[1]), &[just(1); CHUNKS], 0b110).is_none(), "all of it is one's");
        assert!(Doubts::default().next(&chunks(&[1]), &senders, just(1)).is_some_and(|doubt| doubt.suspect == 0));
    }

    #[test]
    fn one_sender_of_everything_is_known() {
        let senders = Senders::of(2);
        assert_eq!(senders.only_one(), None, "an earlier run left it");
        senders.note(0, just(3));
        assert_eq!(senders.only_one(), None);
        senders.note(1, just(3));
        senders.note(7, just(1));
        assert_eq!((senders.only_one(), senders.by_chunk()), (Some(3), vec![just(3); 2]));
        senders.note(1, just(3) | just(2));
        assert_eq!(senders.only_one(), None);
    }
}
