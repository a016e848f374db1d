//! The course of a run: what it may still read, how fast, and what it has to remember.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::contents::Reading;
use crate::artifact::Found;
use crate::facts::{Stopped, Verified};

/// Results are written together, so many at a time or so often.
const TOGETHER: usize = 256;
const AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// How long a limited run sleeps before it looks whether it is to stop.
const NAP: Duration = Duration::from_millis(50);

/// How much a run may read; without limits, everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes.
    pub bytes: Option<u64>,
    /// From the beginning of the run.
    pub time: Option<Duration>,
}

/// One run.
pub(super) struct Course<'a> {
    pub(super) reading: &'a Reading<'a>,
    begin: Instant,
    bytes: AtomicU64,
    is_over: AtomicBool,
    results: Mutex<(Vec<Verified>, Instant)>,
    /// Once the facts refused to be written, they are asked only at the end: each refusal may take its time.
    has_refused: AtomicBool,
}

impl<'a> Course<'a> {
    pub(super) fn new(reading: &'a Reading<'a>) -> Self {
        Self {
            reading,
            begin: Instant::now(),
            bytes: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            results: Mutex::new((Vec::new(), Instant::now())),
            has_refused: AtomicBool::new(false),
        }
    }

    /// Bytes that were read.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Asks whether `bytes` more may be read now; waits where a rate is set.
    ///
    /// Once this is `false`, it stays so.
    pub(super) fn may_read(&self, bytes: u64) -> bool {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if !self.is_over() && !self.is_spent(before) && self.wait_for(before) {
            return true;
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.is_over.store(true, Ordering::Relaxed);
        false
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || (self.reading.stopped)()
    }

    fn is_spent(&self, bytes: u64) -> bool {
        let Budget { bytes: limit, time } = self.reading.budget;
        limit.is_some_and(|limit| bytes >= limit) || time.is_some_and(|time| self.begin.elapsed() >= time)
    }

    /// Waits until so many bytes may have been read; `false` where the run ends before.
    fn wait_for(&self, bytes: u64) -> bool {
        let Some(rate) = self.reading.max_rate.filter(|rate| rate.0 > 0) else { return true };
        let due = Duration::from_secs_f64(bytes as f64 / rate.0 as f64);
        loop {
            let Some(left) = due.checked_sub(self.begin.elapsed()).filter(|left| !left.is_zero()) else { return true };
            if self.is_over() || self.is_spent(bytes) {
                return false;
            }
            std::thread::sleep(left.min(NAP));
        }
    }

    /// Remembers a result, with others.
    pub(super) fn remember(&self, result: Verified) {
        let mut results = self.results();
        results.0.push(result);
        if results.0.len() >= TOGETHER || results.1.elapsed() >= AT_LEAST_EVERY {
            self.write(&mut results);
        }
    }

    /// Remembers how far the reading of a file came.
    pub(super) fn remember_stop(&self, found: &Found, stopped: &Stopped) {
        if let Err(error) = self.reading.facts.record_stopped(found, stopped) {
            tracing::warn!(error = &error as &dyn std::error::Error, "how far a file was read is not remembered");
        }
    }

    /// Writes what is not written yet, and forgets what is too old.
    pub(super) fn end(&self) {
        self.has_refused.store(false, Ordering::Relaxed);
        self.write(&mut self.results());
        if self.bytes() > 0 && !self.has_refused.load(Ordering::Relaxed) {
            // The next run does it otherwise.
            let _ = self.reading.facts.forget_old_history((self.reading.now)());
        }
    }

    fn results(&self) -> MutexGuard<'_, (Vec<Verified>, Instant)> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, results: &mut (Vec<Verified>, Instant)) {
        if results.0.is_empty() || self.has_refused.load(Ordering::Relaxed) {
            return;
        }
        match self.reading.facts.record_verified(&results.0) {
            Ok(()) => results.0.clear(),
            Err(error) => {
                self.has_refused.store(true, Ordering::Relaxed);
                tracing::warn!(error = &error as &dyn std::error::Error, "what was read is not remembered yet");
            }
        }
        results.1 = Instant::now();
    }
}
