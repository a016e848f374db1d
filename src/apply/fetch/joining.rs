//! When sources of the next kind help those that are at work: where these deliver so little that nobody would wait for it.
//!
//! The order of sources says who is to be spared. So the others are asked in addition only after all sources at work
//! together, for all files of the run, brought less than the limit over a whole span of time, although nothing on this
//! machine held them up, and while it would take as long again. Silence is no slowness: it is an error soon.

use std::time::Duration;

use tokio::time::Instant;

use super::suppliers::{Supplier, Suppliers};
use crate::apply::Run;

/// When sources are too slow to be left alone with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow {
    /// Bytes per second of all of them together.
    pub below: u64,
    /// For so long.
    pub during: Duration,
}

/// What the sources at work have brought since somebody began to look.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Since when, what they had brought then, and who they are.
    begun: Option<(Instant, u64, Vec<String>)>,
}

impl Watch {
    /// The rate of `at_work` over a whole span, once one is over; the next one begins.
    fn rate(&mut self, now: Instant, during: Duration, at_work: Vec<String>, brought: u64) -> Option<f64> {
        match &self.begun {
            Some((since, before, same)) if *same == at_work => {
                let time = now - *since;
                if time < during {
                    return None;
                }
                let rate = brought.saturating_sub(*before) as f64 / time.as_secs_f64();
                self.begun = Some((now, brought, at_work));
                Some(rate)
            }
            _ => {
                self.begun = Some((now, brought, at_work));
                None
            }
        }
    }

    fn begin_anew(&mut self) {
        self.begun = None;
    }
}

impl Run {
    /// Whether others are to help with a file of which `missing` bytes are not here; then they are asked from now on,
    /// and the first of them is the result. `is_held_up`: this machine is the limit.
    pub(super) fn join(
        &self,
        watch: &mut Watch,
        suppliers: &mut Suppliers,
        missing: u64,
        is_held_up: bool,
    ) -> Option<usize> {
        let limit = self.means.too_slow?;
        let own_limit = self.means.max_rate.is_some_and(|rate| rate.0 <= limit.below);
        if is_held_up || own_limit {
            watch.begin_anew();
            return None;
        }
        let mut at_work = suppliers.at_work();
        at_work.sort();
        at_work.dedup();
        let brought = at_work.iter().map(|authority| self.lines.brought(authority)).sum();
        let rate = watch.rate(Instant::now(), limit.during, at_work, brought)?;
        let is_slow = rate > 0.0 && rate < limit.below as f64;
        let is_worth_it = missing as f64 > rate * limit.during.as_secs_f64();
        if !is_slow || !is_worth_it {
            return None;
        }
        let sources = &self.means.sources;
        let may = |supplier: &Supplier| sources.may_be_asked_in_addition(&supplier.remote.reference);
        // What a peer fetched from upstream for us has crossed that line already.
        let as_good = |supplier: &Supplier| sources.was_brought(&supplier.remote.reference);
        suppliers.join_next(may, as_good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(10);

    #[test]
    fn a_rate_is_that_of_a_whole_span_of_the_same_sources() {
        let (mut watch, begin) = (Watch::default(), Instant::now());
        let mut after = |seconds, who: &[&str], brought| {
            let who = who.iter().map(|name| (*name).to_owned()).collect();
            watch.rate(begin + Duration::from_secs(seconds), SPAN, who, brought)
        };
        assert_eq!(after(0, &["peer:a"], 0), None);
        assert_eq!(after(9, &["peer:a"], 900), None, "the span is not over");
        assert_eq!(after(10, &["peer:a"], 1000), Some(100.0));
        assert_eq!(after(15, &["peer:a", "peer:b"], 1000), None, "others are at work");
        assert_eq!(after(25, &["peer:a", "peer:b"], 6000), Some(500.0));
        assert_eq!(after(35, &["peer:a", "peer:b"], 6000), Some(0.0));
    }
}
