//! Keeps all downloads together below one rate.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::size::Bytes;

/// How long a thread sleeps before it looks whether it is to stop.
const NAP: Duration = Duration::from_millis(50);

/// Lets bytes pass at a limited rate, shared by everybody who asks.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_second: Option<f64>,
    next_free: Mutex<Instant>,
}

impl Pacer {
    /// A pacer for `rate` bytes per second; without one, everything passes at once.
    pub fn new(rate: Option<Bytes>) -> Self {
        Self { bytes_per_second: rate.map(|rate| rate.0 as f64), next_free: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more may pass.
    pub async fn pass(&self, bytes: usize) {
        if let Some(turn) = self.turn(bytes) {
            tokio::time::sleep_until(turn).await;
        }
    }

    /// The same on a thread that has nothing else to do; `false` once `stopped` says so.
    pub fn pass_blocking(&self, bytes: u64, stopped: impl Fn() -> bool) -> bool {
        let turn = self.turn(usize::try_from(bytes).unwrap_or(usize::MAX));
        loop {
            if stopped() {
                return false;
            }
            let left = turn.map(|turn| turn.saturating_duration_since(Instant::now())).unwrap_or_default();
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(NAP));
        }
    }

    fn turn(&self, bytes: usize) -> Option<Instant> {
        let rate = self.bytes_per_second?;
        let mut next_free = self.next_free.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next_free).max(Instant::now());
        *next_free = turn + Duration::from_secs_f64(bytes as f64 / rate);
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_given_rate_together() {
        let pacer = Pacer::new(Some(Bytes(1000)));
        let begin = Instant::now();
        tokio::join!(
            async {
                for _ in 0..5 {
                    pacer.pass(500).await
                }
            },
            async {
                for _ in 0..5 {
                    pacer.pass(500).await
                }
            },
        );
        // Ten times 500 bytes; the last portion is let through as soon as the nine before it are paid for.
        assert_eq!(begin.elapsed().as_millis(), 4500);
    }
}
