//! Pacing: a host says how many requests are left or how long to stay away, and larder waits rather than
//! being refused.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use super::body::{RateLimit, rate_limit, server_wait};

/// Which of a host's budgets a request is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Budget {
    /// A hub's lists and metadata.
    Api,
    /// A hub's files.
    Resolvers,
    /// Everything else.
    Other,
}

/// What one host allows now. Everybody who asks that host passes the same gate.
#[derive(Debug, Default)]
pub(super) struct Gate {
    windows: [Window; 3],
    /// Nothing at all is asked before.
    closed_until: Option<Instant>,
    /// The closure that was told last.
    told: Option<Instant>,
}

impl Gate {
    /// Takes one request out of `budget`, or says how long to wait for one.
    pub(super) fn take(&mut self, budget: Budget, now: Instant) -> Option<Duration> {
        if let Some(wait) = self.closed(now) {
            return Some(wait);
        }
        self.windows[budget as usize].take(now)
    }

    /// How long the host wants to be left alone.
    pub(super) fn closed(&mut self, now: Instant) -> Option<Duration> {
        let left = self.closed_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero());
        if left.is_none() {
            self.closed_until = None;
        }
        left
    }

    /// Whether this closure was not told yet; from now on it was.
    pub(super) fn is_news(&mut self) -> bool {
        self.closed_until.is_some() && std::mem::replace(&mut self.told, self.closed_until) != self.closed_until
    }

    /// Learns what an answer says: of its own budget, and whether to stay away altogether.
    pub(super) fn learn(&mut self, budget: Budget, status: StatusCode, headers: &HeaderMap, now: Instant) {
        let limit = rate_limit(headers);
        if let Some(limit) = limit {
            self.windows[budget as usize].learn(limit, now);
        }
        let is_refusal = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let is_spent = limit.is_some_and(|limit| limit.left == 0);
        let wait = if is_refusal || is_spent { server_wait(headers) } else { None };
        if let Some(until) = wait.and_then(|wait| now.checked_add(wait)) {
            self.closed_until = Some(self.closed_until.map_or(until, |known| known.max(until)));
        }
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
        let Some(ends) = now.checked_add(limit.renewed_in) else { return };
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

    fn answer(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(reqwest::header::HeaderName::from_static(name), value.parse().unwrap())])
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
    fn what_one_request_learns_holds_for_every_other() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        gate.learn(Budget::Resolvers, StatusCode::OK, &answer("ratelimit", "\"resolvers\";r=0;t=172"), now);
        let budgets = [Budget::Api, Budget::Resolvers, Budget::Other];
        for budget in budgets {
            let wait = gate.take(budget, now + Duration::from_secs(1)).unwrap();
            assert!(wait >= Duration::from_secs(171), "{budget:?}: {wait:?}");
        }
        for budget in budgets {
            assert_eq!(gate.take(budget, now + Duration::from_secs(173)), None, "{budget:?}");
        }
    }

    #[test]
    fn a_refusal_closes_the_gate_and_an_earlier_answer_does_not_open_it() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        gate.learn(Budget::Other, StatusCode::TOO_MANY_REQUESTS, &answer("retry-after", "30"), now);
        gate.learn(Budget::Other, StatusCode::SERVICE_UNAVAILABLE, &answer("retry-after", "3"), now);
        gate.learn(Budget::Other, StatusCode::OK, &HeaderMap::new(), now);
        assert_eq!(gate.take(Budget::Api, now), Some(Duration::from_secs(30)));
    }

    #[test]
    fn a_nonsensical_time_closes_nothing_for_ever() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        let refused = StatusCode::TOO_MANY_REQUESTS;
        gate.learn(Budget::Other, refused, &answer("retry-after", "18446744073709551615"), now);
        gate.learn(Budget::Other, refused, &answer("ratelimit", "\"x\";r=0;t=18446744073709551615"), now);
        assert_eq!(gate.take(Budget::Other, now), None);
    }
}
