//! Whether the steps stay within the download limit: artifacts are taken in order, whole or not at all.

use serde::Serialize;

use super::{ArtifactPlan, Refusal, Step};
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
    pub(super) fn refusal(&self, entry: &ArtifactPlan) -> Option<Refusal> {
        let moving: Vec<Option<u64>> = entry.steps.iter().map(Step::bytes_to_move).collect();
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
    pub(super) fn take(&mut self, entry: &ArtifactPlan) {
        self.planned += needed(entry);
    }

    /// Notes an artifact that is not.
    pub(super) fn leave_out(&mut self, entry: &ArtifactPlan) {
        self.left_out.push(entry.artifact.clone());
        self.left_out_bytes += needed(entry);
    }
}

fn needed(entry: &ArtifactPlan) -> u64 {
    entry.steps.iter().filter_map(Step::bytes_to_move).sum()
}
