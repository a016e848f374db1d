//! How many bytes of content may still come over the network in this run.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::size::Bytes;

/// A cap on everything that is downloaded. Whoever receives content takes it out of here first.
#[derive(Debug)]
pub struct Allowance {
    limit: Option<Bytes>,
    taken: AtomicU64,
}

impl Allowance {
    /// At most `limit` bytes; without a limit, everything is granted and only counted.
    pub fn new(limit: Option<Bytes>) -> Self {
        Self { limit, taken: AtomicU64::new(0) }
    }

    /// The limit.
    pub fn limit(&self) -> Option<Bytes> {
        self.limit
    }

    /// Bytes that were granted so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes that would still be granted; `None` without a limit.
    pub fn left(&self) -> Option<u64> {
        Some(self.limit?.0.saturating_sub(self.taken()))
    }

    /// Takes up to `wanted` bytes, and returns how many were granted.
    pub fn take(&self, wanted: u64) -> u64 {
        let limit = self.limit.map_or(u64::MAX, |limit| limit.0);
        let mut granted = 0;
        let _ = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            granted = wanted.min(limit.saturating_sub(taken));
            Some(taken.saturating_add(granted))
        });
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_granted_than_there_is() {
        let allowance = Allowance::new(Some(Bytes(10)));
        assert_eq!((allowance.take(7), allowance.left()), (7, Some(3)));
        assert_eq!((allowance.take(7), allowance.left()), (3, Some(0)));
        assert_eq!((allowance.take(1), allowance.taken()), (0, 10));
    }

    #[test]
    fn threads_share_one_cap() {
        let allowance = Allowance::new(Some(Bytes(10_000)));
        let granted: u64 = std::thread::scope(|scope| {
            let take = || (0..1000).map(|_| allowance.take(7)).sum::<u64>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((granted, allowance.taken()), (10_000, 10_000));
    }

    #[test]
    fn without_a_limit_everything_is_granted_and_counted() {
        let allowance = Allowance::new(None);
        assert_eq!((allowance.take(u64::MAX), allowance.left()), (u64::MAX, None));
    }
}
