//! Compares chunks with their known digests: several at once, inside one file and across files.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::agenda::{Item, chunks_to_read};
use super::contents::{BadChunk, Done, Outcome, Read, Unreadable};
use super::course::Course;
use super::whole::is_same;
use super::zeros::{PAGE, Zeros};
use crate::digest::{Blake3, Blake3Hasher, CHUNK_LEN, chunk_range};
use crate::facts::{Half, Stopped};
use crate::fsio::{ContentReader, PIECE, PieceBuffer, unreadable_parts};
use crate::monitor::Event;

/// Readings under way at once: a disk that gets them one by one is half as fast.
const READERS: usize = 8;
/// After so many chunks, how far a reading came is remembered.
const KEEP_EVERY: u64 = 256;

/// Reads and compares the chunks of `items`, all of which have chunk digests, in their order.
pub(super) fn read(items: &[Item<'_>], course: &Course<'_>, done: Done<'_>) {
    let files: Vec<File<'_>> = items.iter().map(|item| File::new(item, (course.reading.now)())).collect();
    let queue = Mutex::new((0, 0));
    let work = || {
        let mut buffer = PieceBuffer::default();
        while let Some((number, chunk)) = next(&queue, &files, course) {
            if let Some(outcome) = files[number].take(chunk, &mut buffer, course) {
                done(number, outcome);
            }
        }
    };
    std::thread::scope(|scope| (0..READERS).for_each(|_| drop(scope.spawn(work))));
    for (number, file) in files.iter().enumerate() {
        if let Some(outcome) = file.stop(course) {
            done(number, outcome);
        }
    }
}

/// The next chunk to read: number of the file, and number of the chunk in its list.
fn next(queue: &Mutex<(usize, usize)>, files: &[File<'_>], course: &Course<'_>) -> Option<(usize, usize)> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let file = files.get(queue.0)?;
        let Some(chunk) = file.chunks.get(queue.1).filter(|_| !file.is_over()) else {
            *queue = (queue.0 + 1, 0);
            continue;
        };
        let range = chunk_range(*chunk, file.item.found.size);
        if !course.may_read(range.end - range.start) {
            return None;
        }
        let claimed = *queue;
        queue.1 += 1;
        return Some(claimed);
    }
}

/// One file while its chunks are read.
struct File<'a> {
    item: &'a Item<'a>,
    /// Numbers of the chunks to read.
    chunks: Vec<u64>,
    state: Mutex<State>,
}

struct State {
    begun: i64,
    reader: Option<Arc<ContentReader>>,
    /// Whether nothing more is to be read: it changes, cannot be opened, or is finished.
    is_over: bool,
    left: usize,
    /// Chunks from the beginning that were read.
    done: u64,
    /// Chunks that were wrong in an earlier run, and were not read again yet.
    again: BTreeSet<u64>,
    /// Chunks that were read after a gap.
    ahead: BTreeSet<u64>,
    kept: u64,
    bad: Vec<BadChunk>,
    unreadable: Unreadable,
}

/// What one chunk is like.
enum Chunk {
    Right,
    Bad(BadChunk),
    Unreadable(Vec<Range<u64>>, std::io::Error),
    Outcome(Outcome),
}

impl<'a> File<'a> {
    fn new(item: &'a Item<'a>, now: i64) -> Self {
        let count = item.chunks.as_ref().map_or(0, |(_, chunks)| chunks.digests().len() as u64);
        let (chunks, done) = match &item.chunks {
            Some((content, _)) => chunks_to_read(item, content, count),
            None => (Vec::new(), 0),
        };
        let begun = item.stopped.as_ref().filter(|_| done > 0).map_or(now, |stopped| stopped.begun);
        let state = State {
            begun,
            reader: None,
            is_over: false,
            left: chunks.len(),
            done,
            again: chunks.iter().copied().filter(|number| *number < done).collect(),
            ahead: BTreeSet::new(),
            kept: done,
            bad: Vec::new(),
            unreadable: Unreadable::default(),
        };
        Self { item, chunks, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.state().is_over
    }

    /// Reads one chunk; returns what came of the file when that was its last.
    fn take(&self, index: usize, buffer: &mut PieceBuffer, course: &Course<'_>) -> Option<Outcome> {
        let number = self.chunks[index];
        let range = chunk_range(number, self.item.found.size);
        let bytes = range.end - range.start;
        let chunk = match self.reader(course) {
            Ok(reader) => self.compare(number, range, &reader, buffer),
            Err(outcome) => Chunk::Outcome(outcome),
        };
        course.reading.monitor.event(Event::Advanced { item: &self.item.name, bytes });
        self.note(number, chunk, course)
    }

    fn reader(&self, course: &Course<'_>) -> Result<Arc<ContentReader>, Outcome> {
        let mut state = self.state();
        if let Some(reader) = &state.reader {
            return Ok(Arc::clone(reader));
        }
        let (item, total) = (&self.item.name, Some(self.item.found.size));
        let resumed = state.done * CHUNK_LEN;
        course.reading.monitor.event(Event::Started { item, total, resumed, from: "disk" });
        let reader = match ContentReader::open(&self.item.found.path) {
            Ok(reader) if is_same(&reader, self.item) => Arc::new(reader),
            Ok(_) => return Err(Outcome::Changed),
            Err(error) => return Err(Outcome::Failed(error)),
        };
        state.reader = Some(Arc::clone(&reader));
        Ok(reader)
    }

    fn compare(&self, number: u64, range: Range<u64>, reader: &ContentReader, buffer: &mut PieceBuffer) -> Chunk {
        let mut hasher = Blake3Hasher::default();
        let read = pieces(reader, &range, buffer, &mut |_, bytes| hasher.update(bytes));
        match read {
            Ok(true) => {}
            Ok(false) => return Chunk::Outcome(Outcome::Changed),
            Err(error) => {
                return match unreadable_parts(reader, range, error) {
                    Ok((parts, error)) => Chunk::Unreadable(parts, error),
                    Err(error) => Chunk::Outcome(Outcome::Failed(error)),
                };
            }
        }
        let actual = hasher.finish();
        let expected = self.expected(number);
        if expected == Some(actual) {
            return Chunk::Right;
        }
        if expected.is_some_and(|expected| expected == of_zeros(range.end - range.start)) {
            // Zeros are what belongs here.
            return Chunk::Bad(BadChunk { number, actual, zeros: Vec::new() });
        }
        let mut zeros = Zeros::of_at_least(1);
        // Once more, only for what is wrong. That it cannot be read any more is told next time.
        let _ = pieces(reader, &range, buffer, &mut |offset, bytes| zeros.look(offset, bytes));
        Chunk::Bad(BadChunk { number, actual, zeros: zeros.ranges() })
    }

    fn expected(&self, number: u64) -> Option<Blake3> {
        let (_, chunks) = self.item.chunks.as_ref()?;
        chunks.digests().get(usize::try_from(number).ok()?).copied()
    }

    fn note(&self, number: u64, chunk: Chunk, course: &Course<'_>) -> Option<Outcome> {
        let mut state = self.state();
        if state.is_over {
            return None;
        }
        match chunk {
            Chunk::Right => {}
            Chunk::Bad(bad) => state.bad.push(bad),
            Chunk::Unreadable(parts, error) => state.unreadable.add(parts, &error),
            Chunk::Outcome(outcome) => {
                state.is_over = true;
                return Some(outcome);
            }
        }
        state.left -= 1;
        state.advance(number);
        if state.left > 0 {
            if state.done >= state.kept + KEEP_EVERY {
                state.kept = state.done;
                self.keep(&state, course);
            }
            return None;
        }
        state.is_over = true;
        let is_unchanged = state.reader.as_ref().is_some_and(|reader| reader.is_unchanged().unwrap_or(false));
        Some(if is_unchanged { Outcome::Read(Box::new(state.finish())) } else { Outcome::Changed })
    }

    /// Remembers how far the file was read, where it was begun and not finished, and returns that.
    fn stop(&self, course: &Course<'_>) -> Option<Outcome> {
        let mut state = self.state();
        if state.is_over || self.chunks.is_empty() {
            return None;
        }
        if state.reader.is_some() && state.done > 0 {
            self.keep(&state, course);
        }
        let left = self.item.found.size.saturating_sub(state.done * CHUNK_LEN);
        let is_wrong = !state.bad.is_empty() || !state.unreadable.ranges.is_empty();
        Some(Outcome::Unfinished(left, is_wrong.then(|| Box::new(state.finish()))))
    }

    fn keep(&self, state: &State, course: &Course<'_>) {
        let Some((content, _)) = &self.item.chunks else { return };
        // A chunk that could not be read is read again, like a wrong one.
        let unreadable = state.unreadable.ranges.iter().map(|range| range.start / CHUNK_LEN);
        let again = state.again.iter().copied().chain(unreadable);
        let bad: BTreeSet<u64> = state.bad.iter().map(|bad| bad.number).chain(again).collect();
        let bad = bad.into_iter().filter(|number| *number < state.done).collect();
        let half = Half::Chunks { content: *content, done: state.done * CHUNK_LEN, bad };
        course.remember_stop(self.item.found, &Stopped { begun: state.begun, half });
    }
}

impl State {
    fn advance(&mut self, number: u64) {
        if !self.again.remove(&number) {
            self.ahead.insert(number);
        }
        while self.ahead.remove(&self.done) {
            self.done += 1;
        }
    }

    fn finish(&mut self) -> Read {
        let mut bad = std::mem::take(&mut self.bad);
        bad.sort_by_key(|bad| bad.number);
        let unreadable = std::mem::take(&mut self.unreadable).in_order();
        Read { begun: self.begun, digests: None, chunks: None, bad, unreadable, zeros: Vec::new() }
    }
}

/// Reads `range` piece by piece; `false` where the file ends before.
fn pieces(
    reader: &ContentReader,
    range: &Range<u64>,
    buffer: &mut PieceBuffer,
    take: &mut dyn FnMut(u64, &[u8]),
) -> std::io::Result<bool> {
    let mut offset = range.start;
    while offset < range.end {
        let len = PIECE.min((range.end - offset) as usize);
        if reader.read(buffer, offset, len)? != len {
            return Ok(false);
        }
        take(offset, buffer.filled(len));
        offset += len as u64;
    }
    Ok(true)
}

/// The digest of so many zeros.
fn of_zeros(len: u64) -> Blake3 {
    let mut hasher = Blake3Hasher::default();
    let mut left = len;
    while left > 0 {
        let page = left.min(PAGE as u64);
        hasher.update(&[0; PAGE][..page as usize]);
        left -= page;
    }
    hasher.finish()
}
