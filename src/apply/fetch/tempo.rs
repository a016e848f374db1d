//! How many connections a file gets, and how much each asks for at a time: found out by trying.
//!
//! More connections help where each one is slow, and harm where the machine or the link is the limit. So the first
//! seconds with a host try twice as many again and again, and keep the fewest that were about as fast as the fastest;
//! after that, and with files that begin where an earlier one ended, one is added at a time, and stays only
//! where all of them together became clearly faster.

use std::time::Duration;

use crate::digest::CHUNK_LEN;

/// How often the rate is measured.
pub(super) const PERIOD: Duration = Duration::from_secs(1);
/// The same while nothing is known of a host: long enough for a handshake, and then for the start of TCP on most links.
const FIRST_PERIOD: Duration = Duration::from_millis(500);
/// Bytes per second from which on nobody is in a hurry to try more: one connection of a disk's speed.
const FAST: f64 = 256.0 * 1_048_576.0;
/// Fewer connections that reach this share of the best rate are as good as more.
const AS_GOOD: f64 = 0.9;

/// Twice as many that bring less than this share more are the last that are tried: where each connection has a limit of
/// its own, they bring a whole.
const WORTH_DOUBLING: f64 = 0.25;

/// What one request asks for before any rate is known: it lasts for a first period on most links.
const FIRST_RANGE: u64 = 16 * CHUNK_LEN;
/// No request asks for more: so much is put at risk by one connection.
const LONGEST_RANGE: u64 = 64 * CHUNK_LEN;
/// How long one request is to last.
const RANGE_SECONDS: f64 = 1.5;
/// The share of a fair gain that a new connection must bring: a third of what it would bring alone.
const WANTED_GAIN: f64 = 0.3;
/// A gain below this is no gain, however many there are.
const LEAST_GAIN: f64 = 0.06;
/// Where lines wait for this machine for more than this share of the time, more of them are of no use.
pub(super) const OWN_LIMIT: f64 = 0.25;
/// The rate at which several connections count as collapsed, in shares of what it was.
const COLLAPSE: f64 = 0.5;
/// Periods without trying after an attempt that brought nothing, at first and at most.
const REST: (u32, u32) = (15, 240);
/// Nothing is tried for what comes within this time anyway.
const WORTH_TRYING: f64 = 8.0;

/// One period's result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measure {
    /// Bytes that came.
    pub(super) bytes: u64,
    /// How long that took.
    pub(super) time: Duration,
    /// The share of the time that connections waited for this machine: its disk, its hashing, its limit.
    pub(super) held_up: f64,
    /// Bytes that have not come yet.
    pub(super) missing: u64,
}

/// The number of connections of one file, and what its last change brought.
#[derive(Debug, Clone)]
pub(super) struct Tempo {
    most: usize,
    count: usize,
    /// Bytes per second of all connections together, smoothed.
    rate: f64,
    phase: Phase,
    rest: u32,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// TCP begins slowly: what comes meanwhile would make any second connection look good.
    Starting,
    /// Nothing is known of the host: twice as many each time. What each number brought, the fewest first.
    Finding { tried: Vec<(usize, f64)> },
    /// The number has just changed: the next period does not count.
    Changed { before: Option<f64> },
    /// The next period is compared with the rate `before`.
    Trying { before: f64 },
    /// Nothing is tried for so many periods.
    Resting { left: u32 },
}

impl Tempo {
    /// Begins with one connection, and goes up to `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), count: 1, rate: 0.0, phase: Phase::Starting, rest: REST.0 }
    }

    /// Begins with `first` connections, which are known to be of use, and stays about there.
    pub(super) fn beginning_with(first: usize, most: usize) -> Self {
        let count = first.clamp(1, most.max(1));
        Self { count, phase: Phase::Resting { left: REST.0 }, ..Self::new(most) }
    }

    /// When the next measure is due after the last one.
    pub(super) fn period(&self) -> Duration {
        if self.has_found() { PERIOD } else { FIRST_PERIOD }
    }

    /// Whether the number of connections is one that was found to be of use.
    pub(super) fn has_found(&self) -> bool {
        !matches!(self.phase, Phase::Starting | Phase::Finding { .. })
    }

    /// Whether one connection is to go on with all that follows.
    ///
    /// Not before it was found that one is enough: what is under way on a connection that is given less than it asked
    /// for crosses the network in vain.
    pub(super) fn is_one_enough(&self) -> bool {
        self.count == 1 && (self.most == 1 || self.has_found())
    }

    /// How many connections there should be.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes per second of all connections; 0 while nothing was measured.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// How many bytes the next request should ask for, while `missing` bytes are not here.
    pub(super) fn range(&self, missing: u64) -> u64 {
        let each = self.rate / self.count as f64;
        let lasting = if each > 0.0 { (each * RANGE_SECONDS) as u64 } else { FIRST_RANGE };
        // Towards the end all are to be done at the same time, and the hash is to follow closely.
        let fair = if self.count > 1 { missing / (2 * self.count as u64) } else { LONGEST_RANGE };
        lasting.min(fair).clamp(CHUNK_LEN, LONGEST_RANGE)
    }

    /// Never more than one connection from now on: the source cannot give parts.
    pub(super) fn only_one(&mut self) {
        (self.most, self.count) = (1, 1);
    }

    /// Others help from now on: one connection more at once, and how many are of use is found out anew.
    pub(super) fn joined(&mut self) {
        self.most = self.most.max(2);
        self.count = (self.count + 1).min(self.most);
        self.phase = Phase::Finding { tried: Vec::new() };
    }

    /// A connection was refused or broke while others went on: one less, for a long time.
    pub(super) fn refused(&mut self) {
        self.count = (self.count - 1).max(1);
        self.give_up_trying();
    }

    /// Takes the measure of a period, and decides anew.
    pub(super) fn measured(&mut self, measure: Measure) {
        let rate = measure.bytes as f64 / measure.time.as_secs_f64().max(0.001);
        let smoothed = if self.rate > 0.0 { (self.rate + rate) / 2.0 } else { rate };
        let collapsed = self.count > 1 && rate < self.rate * COLLAPSE;
        self.rate = smoothed;
        let is_ours = measure.held_up > OWN_LIMIT;
        match self.phase {
            // The first byte has not come yet: more connections to somebody who is silent would be rude.
            Phase::Starting | Phase::Finding { .. } if rate <= 0.0 => {}
            Phase::Starting => {
                self.phase = Phase::Finding { tried: Vec::new() };
                if is_ours || rate >= FAST {
                    self.find(rate, is_ours);
                }
            }
            Phase::Finding { .. } => self.find(rate, is_ours),
            Phase::Changed { before } => {
                self.phase = before.map_or(Phase::Resting { left: 0 }, |before| Phase::Trying { before });
            }
            Phase::Trying { before } if !is_ours && rate >= before * (1.0 + self.wanted_gain()) => {
                self.rest = REST.0;
                self.add(rate);
            }
            Phase::Trying { .. } => self.take_back(),
            Phase::Resting { .. } if is_ours || collapsed => {
                if self.count > 1 {
                    self.take_back();
                }
            }
            Phase::Resting { left: 0 } if (measure.missing as f64) < rate * WORTH_TRYING => {}
            Phase::Resting { left: 0 } => self.add(rate),
            Phase::Resting { left } => self.phase = Phase::Resting { left: left - 1 },
        }
    }

    /// Tries twice as many, until this machine is the limit, it is fast enough, or twice as many brought little more.
    fn find(&mut self, rate: f64, is_ours: bool) {
        let Phase::Finding { tried } = &mut self.phase else { return };
        let best_before = tried.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        tried.push((self.count, rate));
        let is_worth_it = rate >= best_before * (1.0 + WORTH_DOUBLING);
        if !is_ours && is_worth_it && rate < FAST && self.count < self.most {
            self.count = (self.count * 2).min(self.most);
            return;
        }
        // With a number that made this machine the limit there is nothing to be compared.
        let best = best_before.max(if is_ours { 0.0 } else { rate });
        let fewest = tried.iter().find(|(_, rate)| *rate >= best * AS_GOOD);
        let (count, rate) = fewest.copied().unwrap_or((1, rate));
        let was_tried = tried.len() > 1;
        (self.count, self.rate) = (count, rate);
        self.phase = Phase::Resting { left: if was_tried { self.rest } else { 0 } };
    }

    /// What one more than before must have brought, as a share of the rate before.
    fn wanted_gain(&self) -> f64 {
        (WANTED_GAIN / (self.count - 1).max(1) as f64).max(LEAST_GAIN)
    }

    fn add(&mut self, rate: f64) {
        if self.count < self.most {
            self.count += 1;
            self.phase = Phase::Changed { before: Some(rate) };
        } else {
            self.give_up_trying();
        }
    }

    fn take_back(&mut self) {
        self.count = (self.count - 1).max(1);
        self.give_up_trying();
    }

    fn give_up_trying(&mut self) {
        self.phase = Phase::Resting { left: self.rest };
        self.rest = (self.rest * 2).min(REST.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    /// The number of connections after each of `periods`, where `rate` tells MiB per second by number.
    fn live(tempo: &mut Tempo, periods: usize, rate: impl Fn(usize) -> f64, held_up: f64) -> Vec<usize> {
        let period = |_| {
            let bytes = (rate(tempo.count()) * MIB) as u64;
            tempo.measured(Measure { bytes, time: PERIOD, held_up, missing: u64::MAX });
            tempo.count()
        };
        (0..periods).map(period).collect()
    }

    #[test]
    fn connections_are_added_while_each_makes_it_faster() {
        let mut tempo = Tempo::new(8);
        let counts = live(&mut tempo, 20, |count| 30.0 * count as f64, 0.0);
        assert_eq!(counts.last(), Some(&8), "{counts:?}");
        assert_eq!(counts[..4], [1, 2, 4, 8], "{counts:?}");
        assert!(tempo.has_found());
        let mut tempo = Tempo::beginning_with(2, 8);
        let counts = live(&mut tempo, 60, |count| 30.0 * count as f64, 0.0);
        assert!(counts.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{counts:?}");
        assert_eq!((counts[0], counts.last()), (2, Some(&8)), "{counts:?}");
    }

    #[test]
    fn the_fewest_that_are_as_good_are_kept() {
        for (limit, kept) in [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8)] {
            let mut tempo = Tempo::new(8);
            let counts = live(&mut tempo, 12, |count| 20.0 * count.min(limit) as f64, 0.0);
            assert_eq!(counts.last(), Some(&kept), "{limit} are of use: {counts:?}");
        }
    }

    #[test]
    fn a_host_where_more_are_slower_is_left_alone_after_one_try() {
        let mut tempo = Tempo::new(8);
        let counts = live(&mut tempo, 15, |count| 80.0 / count as f64, 0.0);
        assert_eq!(counts[..3], [1, 2, 1], "{counts:?}");
        assert!(counts[2..].iter().all(|count| *count == 1), "{counts:?}");
        // One that collapses beyond four is seen at eight.
        let mut tempo = Tempo::new(8);
        let counts = live(&mut tempo, 8, |count| if count > 4 { 3.0 } else { 20.0 * count as f64 }, 0.0);
        assert_eq!(counts[..5], [1, 2, 4, 8, 4], "{counts:?}");
    }

    #[test]
    fn who_is_silent_or_fast_gets_no_more() {
        let mut tempo = Tempo::new(8);
        assert!(live(&mut tempo, 5, |_| 0.0, 0.0).iter().all(|count| *count == 1));
        assert!(!tempo.has_found());
        assert_eq!(live(&mut Tempo::new(8), 1, |count| 900.0 * count as f64, 0.0), [1]);
    }

    #[test]
    fn the_number_stays_where_more_bring_nothing() {
        let counts = live(&mut Tempo::new(8), 400, |_| 117.0, 0.0);
        assert!(counts[3..].iter().all(|count| *count <= 2), "{counts:?}");
        let wasted = counts[3..].iter().filter(|count| **count == 2).count();
        assert!(wasted < 20, "{wasted} of 400 periods with a connection of no use");
        let counts = live(&mut Tempo::new(8), 30, |count| 40.0 * count.min(3) as f64, 0.0);
        assert!(matches!(counts.last(), Some(3 | 4)), "{counts:?}");
    }

    #[test]
    fn nothing_is_tried_for_the_little_that_is_left() {
        let counts = |missing| {
            let mut tempo = Tempo::beginning_with(1, 8);
            let period = |_| {
                tempo.measured(Measure { bytes: 100 << 20, time: PERIOD, held_up: 0.0, missing });
                tempo.count()
            };
            (0..40).map(period).collect::<Vec<_>>()
        };
        assert!(counts(700 << 20).iter().all(|count| *count == 1));
        assert!(counts(900 << 20).contains(&2));
    }

    #[test]
    fn one_connection_gets_all_that_follows_once_it_is_known_to_be_enough() {
        let mut tempo = Tempo::new(8);
        assert!(!tempo.is_one_enough());
        live(&mut tempo, 2, |_| 100.0, 0.0);
        assert!(!tempo.is_one_enough(), "two are tried");
        live(&mut tempo, 1, |_| 100.0, 0.0);
        assert!(tempo.is_one_enough());
        assert!(Tempo::new(1).is_one_enough() && Tempo::beginning_with(1, 8).is_one_enough());
    }

    #[test]
    fn a_machine_that_is_its_own_limit_gets_no_more() {
        let counts = live(&mut Tempo::new(8), 50, |count| 500.0 * count as f64, 0.6);
        assert!(counts.iter().all(|count| *count == 1), "{counts:?}");
    }

    #[test]
    fn a_collapse_takes_connections_back_one_by_one() {
        let mut tempo = Tempo::new(8);
        live(&mut tempo, 30, |count| 30.0 * count as f64, 0.0);
        assert_eq!(tempo.count(), 8);
        live(&mut tempo, 1, |_| 1.0, 0.0);
        assert_eq!(tempo.count(), 7);
        tempo.refused();
        assert_eq!(tempo.count(), 6);
        tempo.only_one();
        live(&mut tempo, 300, |count| 30.0 * count as f64, 0.0);
        assert_eq!(tempo.count(), 1);
    }

    #[test]
    fn who_joins_gets_a_connection_and_what_is_of_use_is_found_out_anew() {
        let mut tempo = Tempo::new(8);
        live(&mut tempo, 10, |_| 0.1, 0.0);
        assert_eq!(tempo.count(), 1);
        tempo.joined();
        assert_eq!(tempo.count(), 2);
        assert_eq!(live(&mut tempo, 12, |count| 20.0 * count as f64, 0.0).last(), Some(&8));
        let mut only = Tempo::new(1);
        only.joined();
        assert_eq!(only.count(), 2, "one to each of them");
    }

    #[test]
    fn a_request_lasts_a_second_or_two() {
        let mut tempo = Tempo::new(8);
        assert_eq!(tempo.range(u64::MAX), FIRST_RANGE);
        live(&mut tempo, 2, |_| 100.0, 0.0);
        assert_eq!((tempo.count(), tempo.range(u64::MAX)), (2, 75 << 20));
        assert_eq!(tempo.range(100 << 20), 25 << 20, "at the end all have something to do");
        live(&mut tempo, 10, |_| 0.01, 0.0);
        assert_eq!(tempo.range(u64::MAX), CHUNK_LEN);
        live(&mut tempo, 10, |_| 10_000.0, 0.0);
        assert_eq!(tempo.range(u64::MAX), LONGEST_RANGE);
    }
}
