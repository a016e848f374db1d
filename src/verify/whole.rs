//! Hashes whole files: several at once on each processor, while others read ahead for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::agenda::Item;
use super::contents::{Done, Outcome, Read, Unreadable};
use super::course::Course;
use super::zeros::Zeros;
use crate::digest::{CHUNK_LEN, ContentHasher};
use crate::facts::{Half, Stopped};
use crate::fsio::{ContentReader, PIECE, PieceBuffer, unreadable_parts};
use crate::monitor::Event;

/// Streams that are hashed, at most: together they are faster than any disk.
const MOST_LANES: usize = 64;
/// Processors that hash, at most.
const MOST_PROCESSORS: usize = 8;
/// Pieces that each lane has: one is hashed while the next is read.
const PIECES: usize = 3;
/// What all pieces may take together, in bytes.
const ROOM: usize = 32 << 20;
/// A lane goes on alone with what it has up to this, in bytes, instead of stopping where another's file ends.
const STRIDE: usize = 32 << 10;
/// After so many bytes, how far a reading came is remembered.
const KEEP_EVERY: u64 = 1 << 30;
/// Zeros in a row that may stand for what never came; shorter ones are part of many right contents.
const MANY_ZEROS: u64 = 512 << 10;
/// After so many bytes in a row of which nothing could be read, the rest of a file is given up.
const HOPELESS: u64 = 64 << 20;

/// Reads and hashes `items`, in their order.
pub(super) fn read(items: &[Item<'_>], course: &Course<'_>, done: Done<'_>) {
    let next = AtomicUsize::new(0);
    let crew = Crew::of(items.len());
    std::thread::scope(|scope| {
        for _ in 0..crew.processors {
            let lanes = (0..crew.lanes).map(|_| {
                let (say, said) = sync_channel(PIECES);
                let (give, free) = channel();
                (0..PIECES).for_each(|_| drop(give.send(PieceBuffer::with_room(crew.piece))));
                let (next, piece) = (&next, crew.piece);
                scope.spawn(move || Feeder { items, course, done, say, free, piece }.feed(next));
                Lane { items, course, done, said, give, hashing: None, piece: None }
            });
            let lanes: Vec<_> = lanes.collect();
            scope.spawn(move || hash(lanes));
        }
    });
}

/// Who works on how much.
struct Crew {
    processors: usize,
    /// Streams on each processor.
    lanes: usize,
    /// Bytes that are read at a time.
    piece: usize,
}

impl Crew {
    fn of(items: usize) -> Self {
        let at_once = ContentHasher::at_once();
        let most = MOST_PROCESSORS.min(MOST_LANES / at_once);
        let processors = std::thread::available_parallelism().map_or(2, usize::from).min(most).min(items);
        let lanes = items.div_ceil(processors.max(1)).min(at_once);
        let pieces = (processors * lanes * PIECES).max(1);
        // Halves of the longest piece, so that pieces begin where the disk can be read past the cache.
        let piece = (0..).map(|halved| PIECE >> halved).find(|piece| piece * pieces <= ROOM).unwrap_or(PIECE);
        Self { processors, lanes, piece }
    }
}

/// From the one who reads to the one who hashes.
enum Said {
    Begin { item: usize, hasher: Box<ContentHasher>, begun: i64, offset: u64 },
    Piece(PieceBuffer, usize),
    End(Ending),
}

enum Ending {
    Whole(Unreadable, Zeros),
    Outcome(Outcome),
    /// The run ends in the middle of the file.
    Stopped,
}

/// Reads files one after the other into pieces.
struct Feeder<'a> {
    items: &'a [Item<'a>],
    course: &'a Course<'a>,
    done: Done<'a>,
    say: SyncSender<Said>,
    free: Receiver<PieceBuffer>,
    /// Bytes of one piece.
    piece: usize,
}

/// The one who hashes is gone.
struct Gone;

impl Feeder<'_> {
    fn feed(&self, next: &AtomicUsize) {
        while !self.course.is_over() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = self.items.get(number) else { return };
            if self.one(number, item).is_err() {
                return;
            }
        }
    }

    fn one(&self, number: usize, item: &Item<'_>) -> Result<(), Gone> {
        let opened = match ContentReader::open(&item.found.path) {
            Ok(reader) if is_same(&reader, item) => Ok(reader),
            Ok(_) => Err(Outcome::Changed),
            Err(error) => Err(Outcome::Failed(error)),
        };
        let reader = match opened {
            Ok(reader) => reader,
            Err(outcome) => {
                (self.done)(number, outcome);
                return Ok(());
            }
        };
        let (hasher, begun, offset) = begin(item, (self.course.reading.now)());
        self.say(Said::Begin { item: number, hasher: Box::new(hasher), begun, offset })?;
        let ending = self.pieces(&reader, offset, item.found.size)?;
        self.say(Said::End(ending))
    }

    /// Reads from `offset` on; asks at each chunk whether the run goes on.
    fn pieces(&self, reader: &ContentReader, mut offset: u64, size: u64) -> Result<Ending, Gone> {
        let (mut unreadable, mut hopeless) = (Unreadable::default(), 0);
        let mut zeros = Zeros::of_at_least(MANY_ZEROS);
        while offset < size {
            let chunk = CHUNK_LEN - offset % CHUNK_LEN;
            let end = (offset + chunk).min(size);
            if !self.course.may_read(end - offset) {
                return Ok(Ending::Stopped);
            }
            while offset < end {
                let mut buffer = self.free.recv().map_err(|_| Gone)?;
                let len = self.piece.min((end - offset) as usize);
                match reader.read(&mut buffer, offset, len) {
                    Ok(got) if got == len => hopeless = 0,
                    Ok(_) => return Ok(Ending::Outcome(Outcome::Changed)),
                    Err(error) => {
                        let range = offset..offset + len as u64;
                        match unreadable_parts(reader, range.clone(), error) {
                            Err(error) => return Ok(Ending::Outcome(Outcome::Failed(error))),
                            Ok((parts, error)) => {
                                hopeless = if parts == [range] { hopeless + len as u64 } else { 0 };
                                unreadable.add(parts, &error);
                            }
                        }
                    }
                }
                if hopeless >= HOPELESS {
                    unreadable.ranges.push(offset..size);
                    return Ok(Ending::Whole(unreadable, zeros));
                }
                zeros.look(offset, buffer.filled(len));
                offset += len as u64;
                self.say(Said::Piece(buffer, len))?;
            }
        }
        let is_unchanged = reader.is_unchanged().unwrap_or(false);
        Ok(if is_unchanged { Ending::Whole(unreadable, zeros) } else { Ending::Outcome(Outcome::Changed) })
    }

    fn say(&self, said: Said) -> Result<(), Gone> {
        self.say.send(said).map_err(|_| Gone)
    }
}

/// Whether what was opened is still what was seen.
pub(super) fn is_same(reader: &ContentReader, item: &Item<'_>) -> bool {
    let (now, then) = (reader.found(), item.found);
    (now.size, now.mtime_ns, now.inode, now.device) == (then.size, then.mtime_ns, then.inode, then.device)
}

/// A hasher for `item`, when its first byte was or is read, and the byte to go on with.
fn begin(item: &Item<'_>, now: i64) -> (ContentHasher, i64, u64) {
    let wants_chunks = item.found.size > CHUNK_LEN && item.chunks.is_none();
    let hasher = ContentHasher::to_compare(&item.wanted, Some(item.found.size));
    let hasher = if wants_chunks { hasher.with_chunks() } else { hasher };
    let before = item.stopped.as_ref().and_then(|stopped| match &stopped.half {
        // What is wanted now must have been taken from the beginning.
        Half::Whole(before) if before.fits(&hasher) => {
            Some((ContentHasher::resume(before.clone())?, stopped.begun, before.bytes))
        }
        _ => None,
    });
    before.unwrap_or((hasher, now, 0))
}

/// One of the streams of a processor.
struct Lane<'a> {
    items: &'a [Item<'a>],
    course: &'a Course<'a>,
    done: Done<'a>,
    said: Receiver<Said>,
    give: Sender<PieceBuffer>,
    hashing: Option<Hashing>,
    /// What is to be hashed next: a piece, and which bytes of it.
    piece: Option<(PieceBuffer, std::ops::Range<usize>)>,
}

struct Hashing {
    item: usize,
    hasher: Box<ContentHasher>,
    begun: i64,
    offset: u64,
}

/// Hashes what the lanes bring, in lockstep, until none brings anything.
fn hash(mut lanes: Vec<Lane<'_>>) {
    loop {
        lanes.retain_mut(Lane::has_piece);
        let Some(least) = lanes.iter().map(Lane::left).min() else { return };
        let len = least.max(STRIDE);
        let mut contents: Vec<_> = lanes.iter_mut().filter_map(|lane| lane.next(len)).collect();
        ContentHasher::update_together(&mut contents);
        lanes.iter_mut().for_each(|lane| lane.took(len));
    }
}

impl Lane<'_> {
    /// Goes on to the next piece; `false` once there is none any more.
    fn has_piece(&mut self) -> bool {
        while self.piece.is_none() {
            match self.said.recv() {
                Err(_) => return false,
                Ok(Said::Begin { item, hasher, begun, offset }) => {
                    let (name, total) = (&self.items[item].name, Some(self.items[item].found.size));
                    let event = Event::Started { item: name, total, resumed: offset, from: "disk" };
                    self.course.reading.monitor.event(event);
                    self.hashing = Some(Hashing { item, hasher, begun, offset });
                }
                Ok(Said::Piece(buffer, len)) => self.piece = Some((buffer, 0..len)),
                Ok(Said::End(ending)) => self.end(ending),
            }
        }
        true
    }

    fn left(&self) -> usize {
        self.piece.as_ref().map_or(0, |(_, range)| range.len())
    }

    /// The next bytes of the piece, at most `len`.
    fn next(&mut self, len: usize) -> Option<(&mut ContentHasher, &[u8])> {
        let (buffer, range) = self.piece.as_ref()?;
        let bytes = &buffer.filled(range.end)[range.start..];
        Some((&mut self.hashing.as_mut()?.hasher, &bytes[..len.min(bytes.len())]))
    }

    /// Notes that the next bytes of the piece, at most `len`, were hashed.
    fn took(&mut self, len: usize) {
        let Some((buffer, mut range)) = self.piece.take() else { return };
        range.start += len.min(range.len());
        if !range.is_empty() {
            self.piece = Some((buffer, range));
            return;
        }
        // Nobody reads any more at the end of a run.
        let _ = self.give.send(buffer);
        let Some(hashing) = &mut self.hashing else { return };
        hashing.offset += range.end as u64;
        let name = &self.items[hashing.item].name;
        self.course.reading.monitor.event(Event::Advanced { item: name, bytes: range.end as u64 });
        if hashing.offset.is_multiple_of(KEEP_EVERY) {
            keep(hashing, self.items, self.course);
        }
    }

    fn end(&mut self, ending: Ending) {
        let Some(hashing) = self.hashing.take() else { return };
        let outcome = match ending {
            Ending::Outcome(outcome) => outcome,
            Ending::Stopped => {
                keep(&hashing, self.items, self.course);
                Outcome::Unfinished(self.items[hashing.item].found.size - hashing.offset, None)
            }
            Ending::Whole(unreadable, zeros) => {
                let unreadable = unreadable.in_order();
                let (digests, chunks) = hashing.hasher.finish_with_chunks();
                // What was hashed in place of what could not be read says nothing.
                let (digests, chunks) =
                    if unreadable.ranges.is_empty() { (Some(digests), chunks) } else { (None, None) };
                let (begun, bad) = (hashing.begun, Vec::new());
                Outcome::Read(Box::new(Read { begun, digests, chunks, bad, unreadable, zeros: zeros.ranges() }))
            }
        };
        (self.done)(hashing.item, outcome);
    }
}

fn keep(hashing: &Hashing, items: &[Item<'_>], course: &Course<'_>) {
    if let Some(progress) = hashing.hasher.progress().filter(|progress| progress.bytes > 0) {
        let stopped = Stopped { begun: hashing.begun, half: Half::Whole(progress) };
        course.remember_stop(items[hashing.item].found, &stopped);
    }
}
