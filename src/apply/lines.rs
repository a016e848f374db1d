//! How many connections there are to each host, by all files together, and how many were found to be of use.
//!
//! `sources` lets no more answers be under way than the same number, whoever asks. This count is kept before that: a
//! connection that only waited there for its turn would look slow to the tempo of its file.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts connections by authority.
#[derive(Debug, Default)]
pub(super) struct Lines {
    most: usize,
    counts: Mutex<HashMap<String, usize>>,
    /// What the last file of each host ended with.
    of_use: Mutex<HashMap<String, usize>>,
    /// Bytes that came from each.
    brought: Mutex<HashMap<String, Arc<AtomicU64>>>,
}

impl Lines {
    /// At most `most` to each host, not counting the first one of each file.
    pub(super) fn new(most: usize) -> Self {
        Self { most, counts: Mutex::default(), of_use: Mutex::default(), brought: Mutex::default() }
    }

    /// Counts one more, if there may be one; `is_needed` ones always may.
    pub(super) fn enter(&self, authority: &str, is_needed: bool) -> bool {
        let mut counts = self.counts();
        let count = counts.entry(authority.to_owned()).or_default();
        let may = is_needed || *count < self.most;
        *count += usize::from(may);
        may
    }

    /// How many connections one file of a host should begin with, where an earlier one found it out.
    pub(super) fn of_use(&self, authority: &str) -> Option<usize> {
        self.of_use.lock().unwrap_or_else(PoisonError::into_inner).get(authority).copied()
    }

    /// Remembers for the files to come how many connections were of use.
    pub(super) fn learn(&self, authority: &str, count: usize) {
        self.of_use.lock().unwrap_or_else(PoisonError::into_inner).insert(authority.to_owned(), count);
    }

    /// Where a connection counts the bytes that it brings.
    pub(super) fn counter(&self, authority: &str) -> Arc<AtomicU64> {
        let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        brought.entry(authority.to_owned()).or_default().clone()
    }

    /// Bytes of large files that came from there in this run.
    pub(super) fn brought(&self, authority: &str) -> u64 {
        self.counter(authority).load(Ordering::Relaxed)
    }

    /// Counts one less.
    pub(super) fn leave(&self, authority: &str) {
        if let Some(count) = self.counts().get_mut(authority) {
            *count = count.saturating_sub(1);
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_not_overrun_and_no_file_waits() {
        let lines = Lines::new(2);
        assert!(lines.enter("hub", false) && lines.enter("hub", false) && !lines.enter("hub", false));
        assert!(lines.enter("mirror", false));
        assert!(lines.enter("hub", true), "a file without any connection");
        lines.leave("hub");
        assert!(!lines.enter("hub", false));
        lines.leave("hub");
        assert!(lines.enter("hub", false));
    }
}
