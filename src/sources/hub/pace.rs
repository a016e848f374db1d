//! Pacing: the hub says how many requests are left, and larder waits rather than being refused.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sources::body::{RateLimit, rate_limit};
use reqwest::header::HeaderMap;

/// Never waits longer for a budget: the hub's windows are five minutes long.
const LONGEST_WAIT: Duration = Duration::from_secs(330);

/// Which of the hub's budgets a request is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Budget {
    /// Lists and metadata.
    Api,
    /// Files.
    Resolvers,
}

/// The budgets of all requests to one hub.
#[derive(Debug, Default)]
pub(super) struct Pace {
    api: Mutex<Window>,
    resolvers: Mutex<Window>,
}

impl Pace {
    /// Takes one request out of `budget`, waiting for it where none is left.
    pub(super) async fn take(&self, budget: Budget) {
        // Bounded, in case the hub goes on saying that nothing is left.
        for _ in 0..3 {
            let Some(wait) = self.with(budget, |window| window.take(Instant::now())) else { return };
            tracing::debug!(?budget, seconds = wait.as_secs_f64(), "waiting for the hub's rate limit");
            tokio::time::sleep(wait).await;
        }
    }

    /// Learns what an answer says about `budget`.
    pub(super) fn learn(&self, budget: Budget, headers: &HeaderMap) {
        if let Some(limit) = rate_limit(headers) {
            tracing::debug!(
                ?budget,
                left = limit.left,
                renewed_in = limit.renewed_in.as_secs(),
                "the hub's rate limit"
            );
            self.with(budget, |window| window.learn(limit, Instant::now()));
        }
    }

    fn with<T>(&self, budget: Budget, change: impl FnOnce(&mut Window) -> T) -> T {
        let window = match budget {
            Budget::Api => &self.api,
            Budget::Resolvers => &self.resolvers,
        };
        change(&mut window.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is left, and until when. Without an answer so far nothing is known and nothing is limited.
#[derive(Debug, Default)]
struct Window {
    known: Option<(u64, Instant)>,
}

impl Window {
    /// Takes one request, or says how long to wait for one.
    fn take(&mut self, now: Instant) -> Option<Duration> {
        match &mut self.known {
            Some((_, ends)) if *ends <= now => {
                self.known = None;
                None
            }
            Some((0, ends)) => Some(*ends - now),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        }
    }

    fn learn(&mut self, limit: RateLimit, now: Instant) {
        let ends = now + limit.renewed_in.min(LONGEST_WAIT);
        let left = match self.known {
            // Requests on their way are not in the server's count yet, so within a window the smaller number holds.
            Some((left, known_ends)) if now < known_ends => left.min(limit.left),
            _ => limit.left,
        };
        self.known = Some((left, ends));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(left: u64, seconds: u64) -> RateLimit {
        RateLimit { left, renewed_in: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_spent_window_is_waited_for_and_then_forgotten() {
        let (mut window, now) = (Window::default(), Instant::now());
        assert_eq!(window.take(now), None);
        window.learn(limit(1, 60), now);
        assert_eq!(window.take(now), None);
        assert_eq!(window.take(now + Duration::from_secs(20)), Some(Duration::from_secs(40)));
        assert_eq!(window.take(now + Duration::from_secs(60)), None);
        assert_eq!(window.take(now + Duration::from_secs(60)), None);
    }

    #[test]
    fn answers_out_of_order_do_not_raise_what_is_left() {
        let (mut window, now) = (Window::default(), Instant::now());
        window.learn(limit(0, 60), now);
        window.learn(limit(5, 60), now);
        assert_eq!(window.take(now), Some(Duration::from_secs(60)));
    }

    #[test]
    fn no_server_can_make_us_wait_for_hours() {
        let (mut window, now) = (Window::default(), Instant::now());
        window.learn(limit(0, 1_000_000), now);
        assert_eq!(window.take(now), Some(LONGEST_WAIT));
    }
}
