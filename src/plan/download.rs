//! Whether the steps stay within the download limit: artifacts are taken in order, whole or not at all.
//!
//! The limit is about upstream and what counts like it. A file counts by the place that it is to come from; where
//! another has to stand in for that one, the run itself stops at the limit.

use serde::Serialize;

use super::{ArtifactPlan, Outlook, Refusal, Step};
use crate::size::Bytes;

/// What a download limit makes of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Download {
    /// The limit.
    pub limit: u64,
    /// Bytes of it that the steps will take.
    pub planned: u64,
    /// Artifacts that do not fit any more.
    pub left_out: Vec<String>,
    /// What they would take, as far as it is known.
    pub left_out_bytes: u64,
}

impl Download {
    pub(super) fn new(limit: Bytes) -> Self {
        Self { limit: limit.0, planned: 0, left_out: Vec::new(), left_out_bytes: 0 }
    }

    /// Why the whole of `entry` does not fit, where it does not.
    pub(super) fn refusal(&self, entry: &ArtifactPlan, outlook: &Outlook) -> Option<Refusal> {
        let moving: Vec<Option<u64>> = entry.steps.iter().map(|step| counted(step, outlook)).collect();
        if moving.iter().all(|bytes| *bytes == Some(0)) {
            return None;
        }
        let left = self.limit - self.planned;
        let limit = Bytes(self.limit);
        let reason = match moving.into_iter().sum::<Option<u64>>() {
            Some(needed) if needed <= left => return None,
            Some(needed) => {
                format!("it needs {}, and the download limit of {limit} has {} left for it", Bytes(needed), Bytes(left))
            }
            None => format!("how much it needs is not known, which no download limit of {limit} can allow"),
        };
        let hint = "raise the limit (--max-download, or max-download in [sources]), or fetch the rest another time";
        Some(Refusal { reason, hint: Some(hint.to_owned()) })
    }

    /// Counts an artifact that is carried out.
    pub(super) fn take(&mut self, entry: &ArtifactPlan, outlook: &Outlook) {
        self.planned += needed(entry, outlook);
    }

    /// Notes an artifact that is not.
    pub(super) fn leave_out(&mut self, entry: &ArtifactPlan, outlook: &Outlook) {
        self.left_out.push(entry.artifact.clone());
        self.left_out_bytes += needed(entry, outlook);
    }
}

fn needed(entry: &ArtifactPlan, outlook: &Outlook) -> u64 {
    entry.steps.iter().filter_map(|step| counted(step, outlook)).sum()
}

/// Bytes of a step that the limit is about; `None` where they are not known.
fn counted(step: &Step, outlook: &Outlook) -> Option<u64> {
    match step {
        Step::Fetch { from, .. } if from.first().is_some_and(|remote| !outlook.is_metered(&remote.reference)) => {
            Some(0)
        }
        Step::Install { from, .. }
            if from.iter().any(|places| !places.is_empty())
                && from
                    .iter()
                    .filter_map(|places| places.first())
                    .all(|remote| !outlook.is_metered(&remote.reference)) =>
        {
            Some(0)
        }
        _ => step.bytes_to_move(),
    }
}
