//! Asks every source once whether it will answer, before the first byte is moved.

use std::collections::{BTreeMap, HashMap};

use futures_util::StreamExt as _;
use futures_util::stream;
use url::Url;

use crate::observe;
use crate::plan::{Plan, Refusal, Step};
use crate::sources::{SourceError, Sources};
use crate::stores::Stores;

/// How many places are asked at the same time.
const AT_ONCE: usize = 8;

/// Asks every place that `plan` would fetch from; returns those that refuse, by authority.
pub async fn preflight(plan: &Plan, sources: &Sources) -> HashMap<String, Refusal> {
    let answers = stream::iter(plan.remotes_to_check()).map(|remote| async move {
        let answer = sources.check(remote).await;
        answer.err().map(|error| (remote.reference.authority(), refusal(&error)))
    });
    answers.buffer_unordered(AT_ONCE).filter_map(|refused| async { refused }).collect().await
}

fn refusal(error: &SourceError) -> Refusal {
    Refusal { reason: error.to_string(), hint: error.hint() }
}

/// The servers that `plan` has install something, by store.
pub fn servers_of(plan: &Plan, stores: &Stores) -> BTreeMap<String, Url> {
    let installs = plan.artifacts.iter().filter(|entry| entry.steps.iter().any(|s| matches!(s, Step::Install { .. })));
    installs.filter_map(|entry| Some((entry.store.clone(), stores.get(&entry.store)?.config.api.clone()?))).collect()
}

/// Asks each of `servers` whether it is there; returns those that are not, by store.
pub async fn silent_servers(servers: BTreeMap<String, Url>) -> HashMap<String, Refusal> {
    let mut silent = HashMap::new();
    for (store, server) in servers {
        if let Err(reason) = observe::ask(&server).await {
            let hint = format!("start the server, or correct `api` in inventory.toml, which is {server}");
            silent.insert(store, Refusal { reason, hint: Some(hint) });
        }
    }
    silent
}
