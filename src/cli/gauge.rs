//! Measures what comes from where while somebody else listens.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::facts::{Facts, Moved};
use crate::monitor::{Event, Monitor};
use crate::plan::{Origin, Plan, Step};
use crate::report::plan::moves;

/// Passes everything on, and counts bytes and time of each place that a plan takes from.
pub(super) struct Gauge {
    inner: Arc<dyn Monitor>,
    /// By item: its place, and whether it is told only when it is there.
    places: HashMap<String, (String, bool)>,
    tallies: Mutex<HashMap<String, Tally>>,
}

/// One place.
#[derive(Default)]
struct Tally {
    bytes: u64,
    busy: Duration,
    /// Items on their way, and since when there have been some.
    under_way: HashSet<String>,
    since: Option<Instant>,
}

impl Gauge {
    /// Measures what `plan` moves, and tells `inner` everything.
    pub(super) fn new(plan: &Plan, inner: Arc<dyn Monitor>) -> Self {
        let mut places = HashMap::new();
        for entry in &plan.artifacts {
            for step in &entry.steps {
                let Some((place, _)) = moves(step) else { continue };
                let (item, is_told_late) = match step {
                    Step::Fetch { path, .. } => (format!("{}/{path}", entry.artifact), false),
                    Step::Reuse { path, from, .. } => {
                        (format!("{}/{path}", entry.artifact), matches!(from, Origin::Drive { .. }))
                    }
                    Step::Install { .. } | Step::Publish { .. } => (entry.artifact.clone(), false),
                };
                places.insert(item, (place, is_told_late));
            }
        }
        Self { inner, places, tallies: Mutex::default() }
    }

    /// Remembers what was measured: the next plan says how long it will take.
    pub(super) fn remember(&self, facts: &Facts) {
        let now = Instant::now();
        for (place, tally) in self.tallies().iter() {
            let busy = tally.busy + tally.since.map(|since| now - since).unwrap_or_default();
            let moved = Moved { bytes: tally.bytes, seconds: busy.as_secs_f64() };
            if let Err(error) = facts.record_moved(place, moved) {
                tracing::warn!(error = &error as &dyn std::error::Error, "how fast it was is not remembered");
            }
        }
    }

    fn tallies(&self) -> MutexGuard<'_, HashMap<String, Tally>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, item: &str, change: impl FnOnce(&mut Tally, bool)) {
        if let Some((place, is_told_late)) = self.places.get(item) {
            change(self.tallies().entry(place.clone()).or_default(), *is_told_late);
        }
    }
}

impl Monitor for Gauge {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Started { item, .. } => self.note(item, |tally, _| {
                tally.under_way.insert(item.to_owned());
                tally.since.get_or_insert_with(Instant::now);
            }),
            Event::Advanced { item, bytes } => self.note(item, |tally, _| tally.bytes += bytes),
            Event::Proven { item, bytes } => self.note(item, |tally, is_told_late| {
                // Of what is fetched, this says how far it is hashed, again and again.
                tally.bytes += if is_told_late { bytes } else { 0 };
            }),
            Event::Finished { item } | Event::Failed { item, .. } => self.note(item, |tally, _| {
                tally.under_way.remove(item);
                if tally.under_way.is_empty()
                    && let Some(since) = tally.since.take()
                {
                    tally.busy += since.elapsed();
                }
            }),
            _ => {}
        }
        self.inner.event(event);
    }
}
