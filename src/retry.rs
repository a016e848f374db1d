//! When to try again: exponential backoff with full jitter that honours what servers ask for.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Fewer bytes than this are no progress that would earn new patience.
const WORTH_COUNTING: u64 = 256 << 10;

/// One out of so many missing bytes is progress, however few they are: that cannot go on for long.
const GOOD_PART: u64 = 4;

/// How often, and how patiently, something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Upper bound of the first wait; each further bound is twice the one before.
    pub first: Duration,
    /// No wait of our own choosing is longer.
    pub longest: Duration,
    /// A server that asks for more than this is not asked again.
    pub longest_asked: Duration,
    /// How many times to try again before giving up.
    pub retries: u32,
}

impl Default for RetryPolicy {
    /// Five retries within about a minute; up to ten minutes where a server asks for them.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(30),
            longest_asked: Duration::from_secs(600),
            retries: 5,
        }
    }
}

/// The waits between the attempts at one thing.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: RetryPolicy,
    tried: u32,
    random: u64,
}

impl Backoff {
    /// Starts counting; the jitter differs from run to run.
    pub fn new(policy: RetryPolicy) -> Self {
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self::seeded(policy, seed)
    }

    /// Starts counting with jitter that depends on `seed` alone.
    pub fn seeded(policy: RetryPolicy, seed: u64) -> Self {
        Self { policy, tried: 0, random: seed }
    }

    /// How long to wait before trying again; `None` to give up.
    ///
    /// The wait is never shorter than `server_wait`. A server that asks for more than
    /// [`RetryPolicy::longest_asked`] ends the attempts: asking it earlier would be bad manners.
    pub fn next(&mut self, server_wait: Option<Duration>) -> Option<Duration> {
        let asked = server_wait.unwrap_or_default();
        if self.tried >= self.policy.retries || asked > self.policy.longest_asked {
            return None;
        }
        let bound = self.policy.first.saturating_mul(1 << self.tried.min(30)).min(self.policy.longest);
        self.tried += 1;
        // On top of what the server asks for, so that many clients do not all return at the same instant.
        Some(asked + bound.mul_f64(self.fraction()))
    }

    /// Forgets the failures so far: call it when an attempt got further than the one before.
    pub fn progressed(&mut self) {
        self.tried = 0;
    }

    /// The same where `bytes` of the `missing` ones came: a server that sends a few and breaks off, again and again,
    /// gets nowhere; one that sends a good part of what was missing does.
    pub fn progressed_by(&mut self, bytes: u64, missing: Option<u64>) {
        if bytes >= WORTH_COUNTING || missing.is_some_and(|missing| bytes >= missing.div_ceil(GOOD_PART)) {
            self.progressed();
        }
    }

    /// The next pseudo-random number in `0.0..1.0` (splitmix64: enough to spread clients).
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        first: Duration::from_millis(100),
        longest: Duration::from_millis(400),
        longest_asked: Duration::from_secs(10),
        retries: 4,
    };

    fn waits(seed: u64) -> Vec<Duration> {
        let mut backoff = Backoff::seeded(POLICY, seed);
        std::iter::from_fn(|| backoff.next(None)).collect()
    }

    #[test]
    fn waits_grow_up_to_the_cap_and_then_end() {
        let largest: Vec<u128> =
            (0..4).map(|nth| (0..500).map(|seed| waits(seed)[nth].as_millis()).max().unwrap()).collect();
        assert!(
            waits(1).len() == 4 && largest[0] <= 100 && largest[1] <= 200 && largest[2] <= 400 && largest[3] <= 400
        );
        assert!(largest[0] > 90 && largest[1] > 180 && largest[2] > 360 && largest[3] > 360, "{largest:?}");
        assert!((0..500).any(|seed| waits(seed)[3].as_millis() < 40), "the jitter reaches down to nothing");
    }

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
    }

    #[test]
    fn the_servers_wait_is_a_minimum_and_an_unreasonable_one_ends_it() {
        let mut backoff = Backoff::seeded(POLICY, 1);
        let wait = backoff.next(Some(Duration::from_secs(9))).unwrap();
        assert!(wait >= Duration::from_secs(9) && wait <= Duration::from_millis(9_100), "{wait:?}");
        assert_eq!(backoff.next(Some(Duration::from_secs(11))), None);
    }

    #[test]
    fn progress_starts_the_count_again() {
        let mut backoff = Backoff::seeded(POLICY, 1);
        while backoff.next(None).is_some() {}
        backoff.progressed();
        assert!(backoff.next(None).is_some());
    }

    #[test]
    fn crumbs_are_no_progress() {
        let mut backoff = Backoff::seeded(POLICY, 1);
        while backoff.next(None).is_some() {
            backoff.progressed_by(WORTH_COUNTING - 1, Some(u64::MAX));
        }
        backoff.progressed_by(WORTH_COUNTING, None);
        assert!(backoff.next(None).is_some());
        while backoff.next(None).is_some() {}
        backoff.progressed_by(3, Some(9));
        assert!(backoff.next(None).is_some(), "a third of what was missing");
    }

    #[test]
    fn hundreds_of_retries_do_not_overflow() {
        let mut backoff = Backoff::seeded(RetryPolicy { retries: 500, ..POLICY }, 1);
        assert_eq!(std::iter::from_fn(|| backoff.next(None)).count(), 500);
    }
}
