//! Where the pieces of one file land: written, digested, hashed and synced, each on a thread of its own, so
//! that neither the network waits for the disk nor the disk for a hash.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::blocks::Block;
use super::doubt::{Crowd, Senders, just};
use super::spans::Spans;
use crate::apply::Run;
use crate::digest::{Blake3, CHUNK_LEN, ChunkDigests, ChunkHasher, ContentHasher, DigestMismatch, chunk_range};
use crate::fsio::{Assembly, Prefix};
use crate::monitor::Event;

/// How far behind the hash may be for bytes to wait for it in memory; beyond, it reads them back. More than all
/// [`Blocks`](super::Blocks) together, so that a hash that is only slow holds up the network instead.
const NEAR: u64 = 32 << 20;
/// So many bytes are synced at a time: the last sync is short, and a power cut takes back little.
const SYNC_EVERY: u64 = 32 << 20;
/// What comes slowly is synced after this time.
const SYNC_AFTER: Duration = Duration::from_secs(5);
/// Proven bytes are told in portions of this length.
const TELL_EVERY: u64 = 8 << 20;

/// Bytes on their way from a connection to the disk.
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) block: Block,
    /// Who sent them.
    pub(super) supplier: usize,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.block.len() as u64
    }
}

/// What the threads have to say.
pub(super) enum Told {
    /// A chunk is not what it should be and must come again.
    Lost {
        chunk: u64,
        /// Who sent it, and what is wrong; `None` where an earlier run had left it, or several had a part in it.
        sent: Option<(usize, DigestMismatch)>,
    },
    /// Every byte is there and was hashed.
    Hashed(Box<Prefix>),
    /// The disk refuses.
    Failed(io::Error),
}

/// One file's threads.
pub(super) struct Landing {
    shared: Arc<Shared>,
    pieces: mpsc::UnboundedSender<Option<Piece>>,
    told: mpsc::UnboundedReceiver<Told>,
    threads: Vec<JoinHandle<()>>,
}

/// What one file's threads share.
struct Shared {
    run: Arc<Run>,
    item: String,
    assembly: Arc<Assembly>,
    /// What its chunks must be, where that is known.
    known: Option<ChunkDigests>,
    /// Who sent each chunk.
    senders: Arc<Senders>,
    /// Whether `known` is to be believed.
    is_believed: AtomicBool,
    state: Mutex<State>,
    /// There is something to hash, or to stop for.
    to_hash: Condvar,
    /// There is something to sync, or to stop for.
    to_sync: Condvar,
    told: mpsc::UnboundedSender<Told>,
}

#[derive(Default)]
struct State {
    written: Spans,
    /// Pieces that follow the prefix closely, in order.
    queue: VecDeque<(u64, Block)>,
    /// First byte that was not hashed.
    hashed: u64,
    unsynced: u64,
    stopped: bool,
}

impl Landing {
    /// Starts the threads for `assembly`, of which `here` was there before.
    pub(super) fn start(run: Arc<Run>, item: &str, site: Site) -> Self {
        let (pieces, arriving) = mpsc::unbounded_channel();
        let (tell, told) = mpsc::unbounded_channel();
        let mut state = State::default();
        site.here.into_iter().for_each(|range| state.written.insert(range));
        let prefix = site.assembly.hash(site.hasher);
        let shared = Arc::new(Shared {
            run,
            item: item.to_owned(),
            assembly: site.assembly,
            known: site.known,
            senders: site.senders,
            is_believed: AtomicBool::new(true),
            state: Mutex::new(state),
            to_hash: Condvar::new(),
            to_sync: Condvar::new(),
            told: tell,
        });
        let (pass_on, written) = std::sync::mpsc::channel();
        let threads = vec![
            shared.clone().spawn(move |shared| write_all(shared, arriving, &pass_on)),
            shared.clone().spawn(move |shared| digest_all(shared, &written)),
            shared.clone().spawn(move |shared| hash_all(shared, prefix)),
            shared.clone().spawn(sync_all),
        ];
        Self { shared, pieces, told, threads }
    }

    /// Where connections put what comes. `None` is the end.
    pub(super) fn pieces(&self) -> mpsc::UnboundedSender<Option<Piece>> {
        self.pieces.clone()
    }

    /// The next thing that the threads have to say.
    pub(super) async fn told(&mut self) -> Told {
        let ended = || Told::Failed(io::Error::other("the threads that write it have ended"));
        self.told.recv().await.unwrap_or_else(ended)
    }

    /// Chunks are taken as they come from now on; the digest of the whole decides.
    pub(super) fn stop_believing(&self) {
        self.shared.is_believed.store(false, Ordering::Relaxed);
    }

    /// Writes what has come, and ends the threads; fails where the disk refused and nobody was told yet.
    ///
    /// A failed sync must be heard here: the system tells it once, and a later sync would succeed.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        let _ = self.pieces.send(None);
        self.shared.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.await;
        }
        while let Ok(told) = self.told.try_recv() {
            if let Told::Failed(error) = told {
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let _ = self.pieces.send(None);
        self.shared.stop();
    }
}

/// What lies ready before the first piece comes.
pub(super) struct Site {
    pub(super) assembly: Arc<Assembly>,
    pub(super) here: Vec<std::ops::Range<u64>>,
    pub(super) hasher: ContentHasher,
    pub(super) known: Option<ChunkDigests>,
    pub(super) senders: Arc<Senders>,
}

impl Shared {
    fn spawn(self: Arc<Self>, work: impl FnOnce(&Self) -> io::Result<()> + Send + 'static) -> JoinHandle<()> {
        tokio::task::spawn_blocking(move || {
            if let Err(error) = work(&self) {
                self.stop();
                let _ = self.told.send(Told::Failed(error));
            }
        })
    }

    fn stop(&self) {
        self.state().stopped = true;
        self.to_hash.notify_all();
        self.to_sync.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, told: Told) {
        // Nobody listens once the fetch has ended.
        let _ = self.told.send(told);
    }

    fn expected(&self, chunk: u64) -> Option<Blake3> {
        let known = self.known.as_ref().filter(|_| self.is_believed.load(Ordering::Relaxed))?;
        known.digests().get(usize::try_from(chunk).ok()?).copied()
    }
}

/// Writes every piece, in the order in which they come.
fn write_all(
    shared: &Shared,
    mut pieces: mpsc::UnboundedReceiver<Option<Piece>>,
    written: &std::sync::mpsc::Sender<Piece>,
) -> io::Result<()> {
    while let Some(Some(piece)) = pieces.blocking_recv() {
        if shared.is_hashed_from_memory(&piece) {
            shared.assembly.write_past_cache(piece.block.bytes(), piece.offset)?;
        } else {
            shared.assembly.write_at(piece.block.bytes(), piece.offset)?;
        }
        let bytes = piece.block.len() as u64;
        shared.run.means.monitor.event(Event::Advanced { item: &shared.item, bytes });
        if written.send(piece).is_err() {
            // Who digests has ended, and has said why.
            return Ok(());
        }
    }
    Ok(())
}

/// Digests every piece that was written.
fn digest_all(shared: &Shared, written: &std::sync::mpsc::Receiver<Piece>) -> io::Result<()> {
    let mut begun = HashMap::new();
    for piece in written {
        shared.digest(&piece, &mut begun)?;
        shared.landed(piece);
    }
    Ok(())
}

impl Shared {
    /// Whether nobody will read it back: then the page cache need not have it.
    fn is_hashed_from_memory(&self, piece: &Piece) -> bool {
        self.known.is_none() && piece.offset.saturating_sub(self.state().hashed) < NEAR
    }

    /// Takes the digests of the chunks that `piece` is part of. The bytes of one chunk come in order.
    fn digest(&self, piece: &Piece, begun: &mut HashMap<u64, (ChunkHasher, Crowd)>) -> io::Result<()> {
        let (mut at, end) = (piece.offset, piece.end());
        while at < end {
            let index = at / CHUNK_LEN;
            let whole = chunk_range(index, self.assembly.size());
            let until = end.min(whole.end);
            let from = usize::try_from(at - piece.offset).unwrap_or(0);
            let to = usize::try_from(until - piece.offset).unwrap_or(0);
            let (hasher, senders) = begun.entry(index).or_default();
            hasher.update(&piece.block.bytes()[from..to]);
            *senders |= just(piece.supplier);
            if until == whole.end
                && let Some((hasher, senders)) = begun.remove(&index)
                && let [digest] = hasher.finish().digests()
            {
                self.senders.note(index, senders);
                let alone = (senders == just(piece.supplier)).then_some(piece.supplier);
                self.chunk_is_here(index, *digest, alone)?;
            }
            at = until;
        }
        Ok(())
    }

    fn chunk_is_here(&self, chunk: u64, digest: Blake3, alone: Option<usize>) -> io::Result<()> {
        if let Some(expected) = self.expected(chunk).filter(|expected| *expected != digest) {
            let (expected, actual) = (expected.to_string(), digest.to_string());
            let mismatch = DigestMismatch { algorithm: Blake3::ALGORITHM, expected, actual };
            self.tell(Told::Lost { chunk, sent: alone.map(|supplier| (supplier, mismatch)) });
            return Ok(());
        }
        self.assembly.note(chunk, digest)?;
        if self.known.is_some() {
            self.state().written.insert(chunk_range(chunk, self.assembly.size()));
            self.to_hash.notify_one();
        }
        Ok(())
    }

    /// Passes a piece that was written on to who hashes and who syncs.
    fn landed(&self, piece: Piece) {
        let (start, len) = (piece.offset, piece.block.len() as u64);
        let mut state = self.state();
        state.unsynced += len;
        if state.unsynced >= SYNC_EVERY {
            self.to_sync.notify_one();
        }
        // Where chunks can be compared, nothing is hashed before it was.
        if self.known.is_some() {
            return;
        }
        let follows = state.written.reach(state.hashed) == start && start - state.hashed < NEAR;
        state.written.insert(start..start + len);
        if follows {
            state.queue.push_back((start, piece.block));
        }
        drop(state);
        self.to_hash.notify_one();
    }
}

/// What the hash does next.
enum Work {
    Take(Block),
    ReadTo(u64),
    End,
}

/// Hashes from the first byte on: what has just come from memory, the rest from the disk.
fn hash_all(shared: &Shared, mut prefix: Prefix) -> io::Result<()> {
    let mut untold = 0;
    while prefix.at() < shared.assembly.size() {
        let before = prefix.at();
        match shared.next_to_hash() {
            Work::End => return Ok(()),
            Work::Take(block) => prefix.take(block.bytes()),
            Work::ReadTo(end) => {
                if let Err(unfit) = prefix.read_on(end)? {
                    let range = chunk_range(unfit.chunk, shared.assembly.size());
                    shared.take_out(&range);
                    shared.tell(Told::Lost { chunk: unfit.chunk, sent: None });
                }
            }
        }
        shared.state().hashed = prefix.at();
        untold += prefix.at() - before;
        if untold >= TELL_EVERY || prefix.at() == shared.assembly.size() {
            untold = 0;
            shared.run.means.monitor.event(Event::Proven { item: &shared.item, bytes: prefix.at() });
        }
    }
    shared.tell(Told::Hashed(Box::new(prefix)));
    Ok(())
}

impl Shared {
    fn take_out(&self, range: &std::ops::Range<u64>) {
        let mut state = self.state();
        state.written.remove(range);
        // They do not follow any more, and hold memory that what is missing needs. They are on the disk.
        state.queue.clear();
    }

    fn next_to_hash(&self) -> Work {
        let mut state = self.state();
        loop {
            if state.stopped {
                return Work::End;
            }
            let at = state.hashed;
            match state.queue.front().map(|(start, ..)| *start) {
                Some(start) if start == at => {
                    if let Some((_, block)) = state.queue.pop_front() {
                        return Work::Take(block);
                    }
                }
                // Everything before a piece in the queue is on the disk.
                Some(start) => return Work::ReadTo(start),
                None if state.written.reach(at) > at => return Work::ReadTo(state.written.reach(at)),
                None => {}
            }
            state = self.to_hash.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Syncs from the beginning on, behind the pieces.
fn sync_all(shared: &Shared) -> io::Result<()> {
    loop {
        {
            let state = shared.state();
            let is_idle = |state: &mut State| state.unsynced < SYNC_EVERY && !state.stopped;
            let waited = shared.to_sync.wait_timeout_while(state, SYNC_AFTER, is_idle);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.stopped {
                return Ok(());
            }
            if std::mem::take(&mut state.unsynced) == 0 {
                continue;
            }
        }
        shared.assembly.sync()?;
    }
}
