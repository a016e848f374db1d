//! What is not here but could be: one machine of the lab asks upstream for all of them, once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::http::StatusCode;
use axum::response::Response;
use tokio::sync::watch;

use crate::digest::ContentName;
use crate::serve::answer::{empty, error};
use crate::serve::catalog::Item;
use crate::serve::{Site, plain};

/// How long a request is kept waiting before it hears that the content is still on its way.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a failure is remembered: a whole lab that asks at once is answered by one attempt.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Brings what is asked for and not here.
#[async_trait]
pub trait Supply: Send + Sync {
    /// Brings the file of this number of `artifact` to this machine, proven, and returns where it lies.
    ///
    /// Called once at a time for each content. The error is a sentence for people.
    async fn bring(&self, artifact: &str, file: usize) -> Result<PathBuf, String>;
}

/// What is on its way, and what failed a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Bringing(Mutex<HashMap<ContentName, Waiting>>);

type Waiting = watch::Receiver<Option<Result<(), Failure>>>;

#[derive(Debug, Clone)]
struct Failure {
    reason: String,
    at: Instant,
}

/// Whether the content of `item` is not here and could be brought.
pub(crate) fn can_be_brought(site: &Site, item: &Item) -> bool {
    site.supply.is_some() && item.content().is_none() && item.has_upstream
}

/// 200 once the content is here, 202 while it is on its way, 502 if it cannot be brought.
pub(crate) async fn answer(site: &Site, name: &ContentName) -> Response {
    let Some(item) = site.catalog.blobs.get(name) else { return plain::no_content(name) };
    if item.content().is_some() {
        return empty(StatusCode::OK);
    }
    let Some(supply) = site.supply.clone().filter(|_| can_be_brought(site, item)) else {
        return error(StatusCode::NOT_FOUND, Some("NotHere"), &format!("{} cannot be brought to here", item.name));
    };
    let mut waiting = site.bringing.begin(name, item, supply);
    let outcome = tokio::time::timeout(PATIENCE, waiting.wait_for(Option::is_some)).await;
    match outcome.map(|outcome| outcome.ok().and_then(|outcome| (*outcome).clone())) {
        Err(_) => empty(StatusCode::ACCEPTED),
        Ok(Some(Ok(()))) => empty(StatusCode::OK),
        Ok(Some(Err(failure))) => error(StatusCode::BAD_GATEWAY, None, &failure.reason),
        Ok(None) => error(StatusCode::BAD_GATEWAY, None, &format!("{} did not arrive", item.name)),
    }
}

impl Bringing {
    /// Begins to bring `item`, unless somebody did already.
    fn begin(&self, name: &ContentName, item: &Arc<Item>, supply: Arc<dyn Supply>) -> Waiting {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = under_way.get(name).filter(|waiting| is_fresh(waiting, item)) {
            return waiting.clone();
        }
        let (tell, waiting) = watch::channel(None);
        under_way.insert(*name, waiting.clone());
        let item = Arc::clone(item);
        tokio::spawn(async move {
            let (artifact, file) = &item.whose;
            let outcome = supply.bring(artifact, *file).await.map(|path| item.arrived(path)).map_err(|reason| {
                tracing::warn!(item = item.name, reason, "cannot be brought");
                Failure { reason, at: Instant::now() }
            });
            tell.send_replace(Some(outcome));
        });
        waiting
    }
}

/// Whether there is no reason to begin anew.
fn is_fresh(waiting: &Waiting, item: &Item) -> bool {
    match &*waiting.borrow() {
        // Who was to tell may have come to an end without a word.
        None => waiting.has_changed().is_ok(),
        // It arrived and was lost since, or arrived before the catalog was made anew and without knowing it.
        Some(Ok(())) => item.content().is_some(),
        Some(Err(failure)) => failure.at.elapsed() < REMEMBERED,
    }
}
