//! Memory that the chunks of one answer use in turn: a new piece for each would be cleared first, and given back to the
//! system a moment later.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Pieces of memory of one length that nobody uses now.
#[derive(Debug, Clone)]
pub(super) struct Spare {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    len: usize,
}

/// A piece in use; goes back when it is dropped.
struct Used {
    memory: Vec<u8>,
    len: usize,
    home: Spare,
}

impl Spare {
    /// Pieces of `len` bytes, none of which takes memory yet.
    pub(super) fn of(len: usize) -> Self {
        Self { free: Arc::default(), len }
    }

    /// Fills the first `len` bytes of a piece, at most all of it.
    pub(super) fn fill(&self, len: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
        let memory = self.free().pop().unwrap_or_else(|| vec![0; self.len]);
        let mut used = Used { memory, len: len.min(self.len), home: self.clone() };
        fill(&mut used.memory[..used.len])?;
        Ok(Bytes::from_owner(used))
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRef<[u8]> for Used {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.home.free().push(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_used_again_once_nobody_has_it() {
        let spare = Spare::of(8);
        let write = |byte: u8| {
            move |bytes: &mut [u8]| {
                bytes.fill(byte);
                Ok(())
            }
        };
        let first = spare.fill(8, write(1)).unwrap();
        let second = spare.fill(3, write(2)).unwrap();
        assert_eq!((&first[..], &second[..]), (&[1; 8][..], &[2; 3][..]));
        let place = first.as_ptr();
        drop((first, second.slice(1..)));
        assert_eq!(second[..], [2; 3], "a part of it was dropped, not all");
        let third = spare.fill(9, write(3)).unwrap();
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 8][..]));
        assert!(spare.fill(1, |_| Err(io::Error::other("torn"))).is_err());
        assert_eq!(spare.free().len(), 1, "what could not be filled goes back too");
    }
}
