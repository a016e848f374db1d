//! Progress for programs: one JSON object a line.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::tally::{Tally, Whole};
use crate::monitor::{Event, Monitor};

/// No item is told about more often.
const PAUSE: Duration = Duration::from_millis(200);

/// A line of JSON on standard error for each event.
pub(in crate::cli) struct Events(Mutex<State>);

struct State {
    tally: Tally,
    told: HashMap<String, Instant>,
}

#[derive(Serialize)]
struct Line<'a> {
    version: u32,
    #[serde(flatten)]
    told: Told<'a>,
}

/// `docs/formats.md` describes the fields.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Told<'a> {
    Phase { phase: &'a str },
    Started { item: &'a str, from: &'a str, total: Option<u64>, resumed: u64 },
    Advanced { item: &'a str, here: u64, total: Option<u64>, all: Whole },
    Restarted { item: &'a str, reason: &'a str },
    Retrying { item: &'a str, reason: &'a str, pause_ms: u64, retries: u64 },
    Waiting { item: &'a str },
    Lost { item: &'a str, bytes: u64 },
    Connections { item: &'a str, count: usize },
    LeftOut { item: &'a str, from: &'a str, reason: &'a str },
    Stage { item: &'a str, stage: &'a str, done: u64, of: u64 },
    Proven { item: &'a str, bytes: u64 },
    Finished { item: &'a str, all: Whole },
    Failed { item: &'a str, reason: &'a str, all: Whole },
}

impl Events {
    /// `expected`: bytes that the run will move, where that is known.
    pub(in crate::cli) fn new(expected: Option<u64>) -> Self {
        Self(Mutex::new(State { tally: Tally::new(expected), told: HashMap::new() }))
    }
}

impl Monitor for Events {
    fn event(&self, event: Event<'_>) {
        let now = Instant::now();
        // Held while writing, so that the lines are in the order of what they tell.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.tally.note(&event, now);
        if let Some(told) = state.tell(&event, now)
            && let Ok(text) = serde_json::to_string(&Line { version: 1, told })
        {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

impl State {
    fn tell<'a>(&mut self, event: &Event<'a>, now: Instant) -> Option<Told<'a>> {
        let all = self.tally.whole();
        Some(match *event {
            Event::Phase(phase) => Told::Phase { phase },
            Event::Started { item, total, resumed, from } => Told::Started { item, from, total, resumed },
            Event::Advanced { item, .. } => {
                let of = self.tally.of(item);
                let is_due = self.told.get(item).is_none_or(|told| now - *told >= PAUSE);
                if !is_due && of.total != Some(of.here) {
                    return None;
                }
                self.told.insert(item.to_owned(), now);
                Told::Advanced { item, here: of.here, total: of.total, all }
            }
            Event::Restarted { item, reason } => Told::Restarted { item, reason },
            Event::Retrying { item, reason, pause_ms } => {
                Told::Retrying { item, reason, pause_ms, retries: self.tally.of(item).retries }
            }
            Event::Waiting { item } => Told::Waiting { item },
            Event::Proven { item, bytes } => Told::Proven { item, bytes },
            Event::Lost { item, bytes } => Told::Lost { item, bytes },
            Event::Connections { item, count } => Told::Connections { item, count },
            Event::LeftOut { item, from, reason } => Told::LeftOut { item, from, reason },
            Event::Stage { item, stage, done, of } => Told::Stage { item, stage, done, of },
            Event::Finished { item } => {
                self.told.remove(item);
                Told::Finished { item, all }
            }
            Event::Failed { item, reason } => {
                self.told.remove(item);
                Told::Failed { item, reason, all }
            }
        })
    }
}
