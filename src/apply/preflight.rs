//! Asks every source whether it will answer, before the first byte is moved.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::StreamExt as _;
use futures_util::stream;
use url::Url;

use crate::observe;
use crate::plan::{Plan, Refusal, Refusals, Step};
use crate::sources::{SourceError, Sources};
use crate::stores::Stores;

/// How many places are asked at the same time.
const AT_ONCE: usize = 8;

/// Asks every place that `plan` would fetch from and that is not in `open` yet, each about one file.
///
/// Those that would give it are put into `open`. The others are returned, with as much of them as was refused.
pub async fn preflight(plan: &Plan, open: &mut HashSet<String>, sources: &Sources) -> Refusals {
    let unknown: Vec<_> =
        plan.remotes_to_check().into_iter().filter(|remote| !open.contains(&remote.reference.place())).collect();
    let answers: Vec<_> = stream::iter(unknown)
        .map(|remote| async move { (remote, sources.check(remote).await) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut refusals = Refusals::default();
    for (remote, answer) in answers {
        let place = remote.reference.place();
        match answer {
            Ok(()) => {
                open.insert(place);
            }
            Err(error) if error.is_about_one_file(&remote.reference) => {
                refusals.refuse_file(remote, refusal(&error));
            }
            Err(error) => refusals.refuse_place(place, refusal(&error.of_place(&remote.reference))),
        }
    }
    refusals
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
