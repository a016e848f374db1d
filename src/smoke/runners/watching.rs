//! Telling how far a run is, and stopping it, while it computes.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use larder_generators::pipelines::Progress;
use larder_generators::weights::{Inspection, Placement, Stop};

use crate::smoke::Job;

/// How long a stop may be unheard.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// How often the block is told.
const BETWEEN_WORDS: Duration = Duration::from_secs(2);

/// Does `work`, and stops it once the job is to be stopped: before the next tensor that it reads.
pub(super) fn stoppable<T>(job: &Job<'_>, stop: &Stop, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            while waiting.recv_timeout(BETWEEN_LOOKS) == Err(RecvTimeoutError::Timeout) {
                if (job.stopped)() {
                    stop.stop();
                    return;
                }
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// A run that is watched.
pub(super) struct Watched<'a> {
    job: &'a Job<'a>,
    placement: &'a Placement,
    stage: Mutex<(String, u64, u64)>,
}

/// Ends the watching, also where the work panics.
struct Ending<'a>(&'a AtomicBool, Thread);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

impl<'a> Watched<'a> {
    /// Watches what computes with `placement`.
    pub(super) fn new(job: &'a Job<'a>, placement: &'a Placement) -> Self {
        Self { job, placement, stage: Mutex::default() }
    }

    /// Does `work`, and meanwhile tells the block it is at, and stops it between tensors when the job is stopped.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| self.look(&done));
            let _ending = Ending(&done, watcher.thread().clone());
            work()
        })
    }

    /// Tells of a stage.
    pub(super) fn tell(&self, stage: &str, done: usize, of: usize) {
        let (done, of) = (done as u64, of as u64);
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = (stage.to_owned(), done, of);
        (self.job.told)(stage, done, of);
    }

    /// Tells of the stages of one run of a pipeline; `what` it makes.
    pub(super) fn progress<'b>(&'b self, what: &'b str) -> impl FnMut(Progress) -> ControlFlow<()> + 'b {
        move |progress| {
            self.tell(&format!("{what}, {}", progress.stage), progress.done, progress.of);
            if (self.job.stopped)() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }

    fn look(&self, done: &AtomicBool) {
        let (mut told, mut last) = (Instant::now(), String::new());
        while !done.load(Ordering::Acquire) {
            if (self.job.stopped)() {
                self.placement.stop.stop();
            }
            if told.elapsed() >= BETWEEN_WORDS {
                told = Instant::now();
                let block = self.placement.inspection.as_ref().map(Inspection::last).unwrap_or_default();
                let block = block_of(&block);
                if block != last {
                    let (stage, done, of) = self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    (self.job.told)(&format!("{stage}, at {block}"), done, of);
                    last = block;
                }
            }
            thread::park_timeout(BETWEEN_LOOKS);
        }
    }
}

/// The block of a tensor: `transformer: blocks.7.attn.to_q.weight` is of `transformer: blocks.7`.
fn block_of(tensor: &str) -> String {
    let mut parts = tensor.split('.');
    let block: Vec<&str> = parts.by_ref().take_while(|part| part.parse::<u32>().is_err()).collect();
    let numbered = tensor.split('.').nth(block.len());
    numbered.map_or_else(|| tensor.to_owned(), |number| format!("{}.{number}", block.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_its_first_number() {
        assert_eq!(block_of("transformer: blocks.7.attn.2.weight"), "transformer: blocks.7");
        assert_eq!(block_of("vae: encoder.conv_in.weight"), "vae: encoder.conv_in.weight");
    }
}
