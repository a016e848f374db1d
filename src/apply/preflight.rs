//! Asks every source once whether it will answer, before the first byte is moved.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::plan::{Plan, Refusal};
use crate::sources::{SourceError, Sources};

/// How many places are asked at the same time.
const AT_ONCE: usize = 8;

/// Asks every place that `plan` would fetch from; returns those that refuse, by authority.
pub async fn preflight(plan: &Plan, sources: &Sources) -> HashMap<String, Refusal> {
    let answers = stream::iter(plan.remotes_to_check()).map(|remote| async move {
        let answer = match sources.for_reference(&remote.reference) {
            Ok(source) => source.check(remote).await,
            Err(error) => Err(error),
        };
        answer.err().map(|error| (remote.reference.authority(), refusal(&error)))
    });
    answers.buffer_unordered(AT_ONCE).filter_map(|refused| async { refused }).collect().await
}

fn refusal(error: &SourceError) -> Refusal {
    Refusal { reason: error.to_string(), hint: error.hint() }
}
