//! Progress: bars on a terminal, lines in a log.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::monitor::{Event, Monitor};

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
    files: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    pub(super) fn new() -> Self {
        let all = MultiProgress::new();
        let total = all
            .add(ProgressBar::new(0).with_style(style(
                "{prefix:>6} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta}",
            )));
        total.set_prefix("total");
        total.enable_steady_tick(Duration::from_millis(500));
        Self { all, total, files: Mutex::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, ProgressBar>) -> T) -> T {
        act(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn start(&self, item: &str, total: Option<u64>, resumed: u64) {
        let bar = self.with(|files| {
            files
                .entry(item.to_owned())
                .or_insert_with(|| self.all.insert_before(&self.total, ProgressBar::new(0)))
                .clone()
        });
        bar.set_style(style(
            "  {bar:20} {binary_bytes:>10} of {binary_total_bytes:<10} {binary_bytes_per_sec:>12}  {msg}",
        ));
        bar.set_message(item.to_owned());
        bar.set_length(total.unwrap_or(0));
        bar.set_position(resumed);
        self.total.inc_length(total.unwrap_or(0).saturating_sub(resumed));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Monitor for Bars {
    fn event(&self, event: Event<'_>) {
        match &event {
            Event::Started { item, total, resumed, .. } => self.start(item, *total, *resumed),
            Event::Advanced { item, bytes } => {
                self.with(|files| files.get(*item).inspect(|bar| bar.inc(*bytes)).is_some());
                self.total.inc(*bytes);
            }
            Event::Restarted { item, .. } => {
                self.with(|files| files.get(*item).inspect(|bar| bar.set_position(0)).is_some());
            }
            Event::Finished { item } | Event::Failed { item, .. } => {
                if let Some(bar) = self.with(|files| files.remove(*item)) {
                    bar.finish_and_clear();
                }
            }
            Event::Lost { item, bytes } => {
                self.with(|files| files.get(*item).inspect(|bar| bar.dec(*bytes)).is_some());
                self.total.inc_length(*bytes);
            }
            Event::Phase(_)
            | Event::Retrying { .. }
            | Event::Waiting { .. }
            | Event::Proven { .. }
            | Event::Connections { .. }
            | Event::LeftOut { .. } => {}
        }
        if let Some(line) = line(&event).filter(|_| !matches!(event, Event::Finished { .. })) {
            let _ = self.all.println(line);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.total.finish_and_clear();
    }
}
