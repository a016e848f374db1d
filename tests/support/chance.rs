//! Random moments and contents that a seed brings back, and how many of them the environment asks for.

use std::process::Child;
use std::time::Duration;

use wait_timeout::ChildExt as _;

/// The number of this name in the environment, `otherwise` where there is none.
pub(crate) fn number(name: &str, otherwise: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "how long a test runs is told by the environment")]
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Kills a program at this moment of its life, unless it has ended before.
pub(crate) fn kill_at(child: &mut Child, moment: Duration) {
    if child.wait_timeout(moment).unwrap().is_none() {
        child.kill().unwrap();
    }
}

/// splitmix64: the same numbers for the same seed, and the same moments as far as machines allow.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A moment before `limit`.
    pub(crate) fn below(&mut self, limit: Duration) -> Duration {
        limit.mul_f64((self.next() >> 11) as f64 / (1_u64 << 53) as f64)
    }

    pub(crate) fn number_below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(len).collect()
    }
}
