//! Progress: bars on a terminal, lines in a log, JSON for programs.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::monitor::{Event, Monitor};
use crate::size::Bytes;

mod events;
mod tally;

pub(super) use events::Events;
use tally::{Item, Tally, Whole};

/// The sum is not written more often: pieces arrive by the thousand a second.
const PAUSE: Duration = Duration::from_millis(100);

/// How progress is shown, on standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Progress {
    /// Bars on a terminal; elsewhere JSON with --json, and lines without
    #[default]
    Auto,
    /// A bar for each file, and one for all
    Bars,
    /// A line for what is worth telling
    Lines,
    /// A JSON object a line
    Json,
    /// Nothing
    None,
}

/// One line per thing worth telling.
pub(super) struct Lines;

impl Monitor for Lines {
    fn event(&self, event: Event<'_>) {
        if let Some(line) = line(&event) {
            let _ = writeln!(anstream::stderr(), "{line}");
        }
    }
}

fn line(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Phase(phase) => (*phase).to_owned(),
        Event::Finished { item } => format!("done: {item}"),
        Event::Failed { item, reason } => format!("failed: {item}: {reason}"),
        Event::Restarted { item, reason } => format!("again: {item} from its first byte: {reason}"),
        Event::Retrying { item, reason, pause_ms } => {
            format!("again: {item} in {:.1} s: {reason}", *pause_ms as f64 / 1000.0)
        }
        Event::Waiting { item } => format!("waiting: another program works on {item}"),
        Event::Stage { item, stage, done, of } => format!("{item}: {stage} {done}/{of}"),
        Event::LeftOut { item, from, reason } => format!("without {from}: {item}: {reason}"),
        Event::Started { .. }
        | Event::Advanced { .. }
        | Event::Proven { .. }
        | Event::Lost { .. }
        | Event::Connections { .. } => return None,
    })
}

/// A bar for each file that is under way, and one for all of them.
pub(super) struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    state: Mutex<State>,
}

struct State {
    tally: Tally,
    bars: HashMap<String, ProgressBar>,
    shown: Instant,
}

impl Bars {
    /// `expected`: bytes that the run will move, where that is known.
    pub(super) fn new(expected: Option<u64>) -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0).with_style(style("{prefix:>6} {msg}")));
        total.set_prefix("total");
        total.enable_steady_tick(Duration::from_millis(500));
        Self {
            all,
            total,
            state: Mutex::new(State { tally: Tally::new(expected), bars: HashMap::new(), shown: Instant::now() }),
        }
    }

    fn bar(&self, item: &str) -> ProgressBar {
        let bar = self.all.insert_before(&self.total, ProgressBar::new(0));
        bar.set_style(style(
            "  {bar:20} {binary_bytes:>10} of {binary_total_bytes:<10} {binary_bytes_per_sec:>12}  {msg}",
        ));
        bar.set_message(item.to_owned());
        bar
    }
}

/// The line about all files.
fn sum(whole: &Whole) -> String {
    if whole.to_move == 0 && whole.moved == 0 {
        let failed = if whole.failed > 0 { format!("  {} failed", whole.failed) } else { String::new() };
        return format!("{} done{failed}", whole.finished);
    }
    let mut text = format!("{} of {}  {}/s", Bytes(whole.moved), Bytes(whole.to_move), Bytes(whole.rate));
    if let Some(eta) = whole.eta.filter(|_| whole.moved < whole.to_move) {
        text.push_str(&format!("  {} left", indicatif::HumanDuration(Duration::from_secs(eta))));
    }
    text.push_str(&format!("  {} proven", Bytes(whole.proven)));
    for (number, what) in [(whole.retries, "tried again"), (whole.failed, "failed")] {
        if number > 0 {
            text.push_str(&format!("  {number} {what}"));
        }
    }
    text
}

/// What is told of one file beside its bar.
fn label(item: &str, of: &Item) -> String {
    match of.retries {
        0 => item.to_owned(),
        retries => format!("{item} (tried again {retries} times)"),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Monitor for Bars {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (State { tally, bars, shown }, now) = (&mut *state, Instant::now());
        tally.note(&event, now);
        match &event {
            Event::Started { item, .. }
            | Event::Advanced { item, .. }
            | Event::Restarted { item, .. }
            | Event::Lost { item, .. }
            | Event::Retrying { item, .. } => {
                let of = tally.of(item);
                let bar = bars.entry((*item).to_owned()).or_insert_with(|| self.bar(item));
                bar.set_length(of.total.unwrap_or(0));
                bar.set_position(of.here);
                if !matches!(event, Event::Advanced { .. }) {
                    bar.set_message(label(item, &of));
                }
            }
            Event::Stage { item, stage, done, of } => {
                let bar = bars.entry((*item).to_owned()).or_insert_with(|| self.bar(item));
                bar.set_style(style("  {bar:20} {pos:>4} of {len:<4}  {msg}"));
                bar.set_length(*of);
                bar.set_position(*done);
                bar.set_message(format!("{item}: {stage}"));
            }
            Event::Finished { item } | Event::Failed { item, .. } => {
                if let Some(bar) = bars.remove(*item) {
                    bar.finish_and_clear();
                }
            }
            Event::Phase(_)
            | Event::Waiting { .. }
            | Event::Proven { .. }
            | Event::Connections { .. }
            | Event::LeftOut { .. } => {}
        }
        if now - *shown >= PAUSE || !matches!(event, Event::Advanced { .. }) {
            self.total.set_message(sum(&tally.whole()));
            *shown = now;
        }
        let is_shown = matches!(event, Event::Finished { .. } | Event::Stage { .. });
        if let Some(line) = line(&event).filter(|_| !is_shown) {
            let _ = self.all.println(line);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.total.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_tells_what_is_moved_proven_and_tried_again() {
        let whole = Whole { to_move: 10 << 20, moved: 4 << 20, rate: 1 << 20, eta: Some(6), ..Whole::default() };
        insta::assert_snapshot!(sum(&whole), @"4.0 MiB of 10.0 MiB  1.0 MiB/s  6 seconds left  0 B proven");
        let done = Whole { moved: 10 << 20, proven: 10 << 20, retries: 2, failed: 1, ..whole };
        let computed = Whole { finished: 3, failed: 1, ..Whole::default() };
        insta::assert_snapshot!(sum(&computed), @"3 done  1 failed");
        insta::assert_snapshot!(sum(&done), @"10.0 MiB of 10.0 MiB  1.0 MiB/s  10.0 MiB proven  2 tried again  1 failed");
    }
}
