//! Whose content proved wrong in this run, and what the report says of sources that others had to stand in for.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::Run;
use crate::artifact::{Reference, Remote};
use crate::monitor::Event;

/// A source that others stood in for: it sent something else, refused, or was far too slow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Artifact and path of the file that it was asked for.
    pub item: String,
    /// The source: the peer, bucket, repository or host, or a file on a drive.
    pub from: String,
    /// Why.
    pub reason: String,
}

/// Sources whose content proved wrong. They are asked only for what nobody else has.
#[derive(Debug, Default)]
pub(super) struct Distrusted(Mutex<HashSet<String>>);

impl Distrusted {
    /// Whether content from the same place proved wrong in this run.
    pub(super) fn has(&self, reference: &Reference) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&reference.authority())
    }

    /// `remotes` with those behind all others whose content proved wrong.
    pub(super) fn last_of(&self, mut remotes: Vec<Remote>) -> Vec<Remote> {
        remotes.sort_by_key(|remote| self.has(&remote.reference));
        remotes
    }

    /// Notes that content from there proved wrong.
    pub(super) fn add(&self, reference: &Reference) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(reference.authority());
    }
}

impl Run {
    /// Tells, once for each reason, that `from` was not asked any more for `item`.
    pub(super) fn left_out(&self, item: &str, from: &Reference, reason: &str) {
        self.means.monitor.event(Event::LeftOut { item, from: &from.to_string(), reason });
        let told = LeftOut { item: item.to_owned(), from: from.authority(), reason: reason.to_owned() };
        self.note(|outcome| {
            if !outcome.left_out.contains(&told) {
                outcome.left_out.push(told);
            }
        });
    }

    /// Asks the place that sent wrong content only for what nobody else has, until the run ends.
    pub(super) fn distrust(&self, from: &Reference) {
        self.distrusted.add(from);
    }
}
