//! What a run has done so far, counted from its events.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::monitor::Event;

/// The rate is that of so much time.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Pieces arrive by the thousand a second; not each of them is a measurement.
const SAMPLE_PAUSE: Duration = Duration::from_millis(50);

/// Counts of a run.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Bytes that the run will move, where that was known beforehand.
    expected: Option<u64>,
    items: HashMap<String, Item>,
    whole: Whole,
    samples: VecDeque<(Instant, u64)>,
}

/// One item that is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Item {
    /// Its length, where known.
    pub(super) total: Option<u64>,
    /// Bytes of it that are on the disk.
    pub(super) here: u64,
    /// Bytes of it that are proven.
    pub(super) proven: u64,
    /// How often it was tried again.
    pub(super) retries: u64,
    resumed: u64,
}

/// All items together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Whole {
    /// Bytes to move, as far as known.
    pub(super) to_move: u64,
    /// Bytes of them that are on the disk.
    pub(super) moved: u64,
    /// Bytes that are proven.
    pub(super) proven: u64,
    /// Bytes per second, lately.
    pub(super) rate: u64,
    /// Seconds left at that rate; `None` while it cannot be said.
    pub(super) eta: Option<u64>,
    /// How often anything was tried again.
    pub(super) retries: u64,
    /// Items that are done.
    pub(super) finished: u64,
    /// Items that failed.
    pub(super) failed: u64,
}

impl Tally {
    pub(super) fn new(expected: Option<u64>) -> Self {
        let whole = Whole { to_move: expected.unwrap_or(0), ..Whole::default() };
        Self { expected, whole, ..Self::default() }
    }

    /// Counts one event.
    pub(super) fn note(&mut self, event: &Event<'_>, now: Instant) {
        match event {
            Event::Started { item, total, resumed, .. } => self.start(item, *total, *resumed),
            Event::Advanced { item, bytes } => {
                self.item(item).here += bytes;
                self.whole.moved += bytes;
            }
            Event::Restarted { item, .. } => {
                let item = self.item(item);
                let lost = item.here.saturating_sub(item.resumed);
                let again = std::mem::take(&mut item.resumed);
                item.here = 0;
                let unproven = std::mem::take(&mut item.proven);
                self.whole.proven = self.whole.proven.saturating_sub(unproven);
                self.whole.moved = self.whole.moved.saturating_sub(lost);
                // What an earlier run had left has to come after all.
                self.whole.to_move += again;
            }
            Event::Lost { item, bytes } => {
                let item = self.item(item);
                item.here = item.here.saturating_sub(*bytes);
                self.whole.to_move += bytes;
            }
            Event::Retrying { item, .. } => {
                self.item(item).retries += 1;
                self.whole.retries += 1;
            }
            Event::Proven { item, bytes } => {
                let item = self.item(item);
                let news = bytes.saturating_sub(item.proven);
                item.proven += news;
                self.whole.proven += news;
            }
            Event::Finished { item } => {
                self.whole.finished += 1;
                self.items.remove(*item);
            }
            Event::Failed { item, .. } => {
                self.whole.failed += 1;
                self.items.remove(*item);
            }
            Event::Phase(_)
            | Event::Waiting { .. }
            | Event::Connections { .. }
            | Event::LeftOut { .. }
            | Event::Stage { .. } => {}
        }
        self.measure(now);
    }

    /// What is known of an item that is under way.
    pub(super) fn of(&self, item: &str) -> Item {
        self.items.get(item).copied().unwrap_or_default()
    }

    /// What is known of all.
    pub(super) fn whole(&self) -> Whole {
        self.whole
    }

    fn item(&mut self, item: &str) -> &mut Item {
        self.items.entry(item.to_owned()).or_default()
    }

    /// A second start is another source that goes on where the first one gave up.
    fn start(&mut self, item: &str, total: Option<u64>, resumed: u64) {
        let is_new = !self.items.contains_key(item);
        let entry = self.item(item);
        (entry.total, entry.here) = (total, resumed);
        if is_new {
            entry.resumed = resumed;
            if self.expected.is_none() {
                self.whole.to_move += total.unwrap_or(0).saturating_sub(resumed);
            }
        }
    }

    fn measure(&mut self, now: Instant) {
        if self.samples.back().is_some_and(|(at, _)| now - *at < SAMPLE_PAUSE) {
            return;
        }
        self.samples.push_back((now, self.whole.moved));
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(at, _)| now - *at > RATE_WINDOW) {
            self.samples.pop_front();
        }
        let Some((first, before)) = self.samples.front() else { return };
        let seconds = (now - *first).as_secs_f64();
        // The first moments say nothing.
        if seconds >= 0.1 {
            self.whole.rate = (self.whole.moved.saturating_sub(*before) as f64 / seconds) as u64;
        }
        let left = self.whole.to_move.saturating_sub(self.whole.moved);
        self.whole.eta = left.checked_div(self.whole.rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(resumed: u64) -> Event<'static> {
        Event::Started { item: "a/x", total: Some(1000), resumed, from: "hub" }
    }

    fn advanced(bytes: u64) -> Event<'static> {
        Event::Advanced { item: "a/x", bytes }
    }

    fn tally(expected: Option<u64>, events: &[Event<'_>]) -> Tally {
        let (mut tally, begin) = (Tally::new(expected), Instant::now());
        for (second, event) in events.iter().enumerate() {
            tally.note(event, begin + Duration::from_secs(second as u64));
        }
        tally
    }

    #[test]
    fn rate_and_time_left_follow_the_last_seconds() {
        let whole = tally(Some(900), &[started(100), advanced(100), advanced(100)]).whole();
        assert_eq!((whole.to_move, whole.moved, whole.rate, whole.eta), (900, 200, 100, Some(7)));
        let quiet = [&[started(0)][..], &vec![Event::Waiting { item: "a/x" }; 20]].concat();
        assert_eq!((tally(None, &quiet).whole().rate, tally(None, &quiet).whole().eta), (0, None));
    }

    #[test]
    fn what_has_to_come_again_is_not_counted_twice() {
        let again = Event::Restarted { item: "a/x", reason: "wrong" };
        let tally = tally(Some(900), &[started(100), advanced(900), again, advanced(1000)]);
        assert_eq!((tally.of("a/x").here, tally.whole().moved, tally.whole().to_move), (1000, 1000, 1000));
    }

    #[test]
    fn another_source_goes_on_where_the_first_gave_up() {
        let retry = Event::Retrying { item: "a/x", reason: "busy", pause_ms: 1 };
        let tally = tally(None, &[started(0), advanced(300), retry.clone(), retry, started(300), advanced(700)]);
        let (item, whole) = (tally.of("a/x"), tally.whole());
        assert_eq!((item.here, item.retries, whole.moved, whole.to_move, whole.retries), (1000, 2, 1000, 1000, 2));
    }

    #[test]
    fn proven_bytes_grow_and_are_not_counted_twice() {
        let proven = |bytes| Event::Proven { item: "a/x", bytes };
        let tally = tally(None, &[started(0), advanced(1000), proven(400), proven(1000), proven(1000)]);
        assert_eq!((tally.of("a/x").proven, tally.whole().proven), (1000, 1000));
    }
}
