//! The memory that content passes through on its way from the network to the disk: blocks of one length, used again
//! and again while they are still in the processor's caches, at addresses from which a disk can take them itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Length of a block in bytes. Longer ones keep the disk busier with fewer requests, and more memory with them.
pub(super) const BLOCK: usize = 1 << 20;
/// All blocks of a run together: what a fetch may have in memory, however many connections and files it has.
const BLOCKS: usize = 24;
/// What the addresses are multiples of: the page, which no disk asks more than.
const ALIGNMENT: usize = 4096;

/// The blocks of one run.
pub(in crate::apply) struct Blocks {
    room: Arc<Semaphore>,
    free: Mutex<Vec<Vec<u8>>>,
}

/// A piece of memory that is filled from its beginning on, and goes back when it is dropped.
pub(super) struct Block {
    memory: Vec<u8>,
    /// Where in `memory` it begins.
    start: usize,
    len: usize,
    home: Arc<Blocks>,
    _room: OwnedSemaphorePermit,
}

impl Blocks {
    /// The blocks of a new run, none of which takes memory yet.
    pub(in crate::apply) fn new() -> Arc<Self> {
        Arc::new(Self { room: Arc::new(Semaphore::new(BLOCKS)), free: Mutex::default() })
    }

    /// An empty block, as soon as there is one.
    ///
    /// Who holds one and does not pass it on must not wait for another: then nobody waits for ever.
    pub(super) async fn take(self: &Arc<Self>) -> Block {
        let room = self.room.clone().acquire_owned().await;
        let Ok(room) = room else { unreachable!("the semaphore is never closed") };
        let memory = self.free().pop().unwrap_or_else(|| vec![0; BLOCK + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Block { memory, start, len: 0, home: self.clone(), _room: room }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block {
    /// What was put into it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// How many bytes were put into it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds as many of `bytes` as there is room for, and says how many.
    pub(super) fn add(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(BLOCK - self.len);
        let at = self.start + self.len;
        self.memory[at..at + count].copy_from_slice(&bytes[..count]);
        self.len += count;
        count
    }

    /// Forgets what is beyond `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // The last one that came back is the first one to go: it is still in the caches.
        self.home.free().push(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_block_comes_back_empty_and_no_more_are_given_than_there_are() {
        let blocks = Blocks::new();
        let mut block = blocks.take().await;
        assert_eq!(block.add(&[7; 9]), 9);
        assert_eq!(block.add(&vec![8; BLOCK]), BLOCK - 9);
        assert_eq!((block.add(&[1]), block.len()), (0, BLOCK));
        assert_eq!(block.bytes().as_ptr().align_offset(ALIGNMENT), 0);
        block.truncate(3);
        assert_eq!(block.bytes(), [7; 3]);
        drop(block);
        let mut all = Vec::new();
        for _ in 0..BLOCKS {
            all.push(blocks.take().await);
        }
        assert!(all.iter().all(|block| block.bytes().is_empty()));
        assert_eq!(blocks.room.available_permits(), 0);
        drop(all.pop());
        assert_eq!(blocks.take().await.len(), 0);
    }
}
