//! What all requests of a run share: one client, and the manners towards every host.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, IntoUrl, Method, RequestBuilder, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::allowance::Allowance;
use super::body::unreachable;
use super::gate::{Budget, Gate};
use super::trail::origin;
use super::{ByteRange, SourceError, Timeouts};
use crate::pace::Pacer;
use crate::size::Bytes;

/// A host that wants to be left alone for longer is not waited for: the error says so instead.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Waits from here on are told, so that nobody wonders why nothing happens.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// How the hosts that are asked are treated.
#[derive(Debug, Clone)]
pub struct Manners {
    /// Answers under way at the same time from one origin.
    pub connections: usize,
    /// Bytes per second of single sources: `hub`, `ollama`, or a host.
    pub max_rates: BTreeMap<String, Bytes>,
    /// Bytes of content in all.
    pub max_download: Option<Bytes>,
    /// When a silent server is given up.
    pub timeouts: Timeouts,
}

impl Default for Manners {
    /// Eight answers at a time from one origin, no limits.
    fn default() -> Self {
        Self { connections: 8, max_rates: BTreeMap::new(), max_download: None, timeouts: Timeouts::default() }
    }
}

/// The way to all hosts. Copies share everything.
#[derive(Debug, Clone)]
pub struct Network {
    client: Client,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    manners: Manners,
    allowance: Arc<Allowance>,
    lanes: BTreeMap<String, Arc<Pacer>>,
    /// By origin: scheme, host and port.
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

#[derive(Debug)]
struct Host {
    turns: Arc<Semaphore>,
    gate: Mutex<Gate>,
}

impl Host {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Client> for Network {
    /// Asks by `client` with the default manners.
    fn from(client: Client) -> Self {
        Self::new(client, Manners::default())
    }
}

impl Network {
    /// Asks by `client`, which must follow no redirects and decode nothing.
    pub fn new(client: Client, manners: Manners) -> Self {
        let lanes = manners.max_rates.iter().map(|(who, rate)| (who.clone(), Arc::new(Pacer::new(Some(*rate)))));
        let (lanes, allowance) = (lanes.collect(), Arc::new(Allowance::new(manners.max_download)));
        Self { client, shared: Arc::new(Shared { manners, allowance, lanes, hosts: Mutex::default() }) }
    }

    /// The same manners, limits and turns, by another client.
    pub(super) fn by(&self, client: Client) -> Self {
        Self { client, shared: Arc::clone(&self.shared) }
    }

    /// The cap on content that is shared by everybody who downloads in this run.
    pub fn allowance(&self) -> Arc<Allowance> {
        Arc::clone(&self.shared.allowance)
    }

    pub(super) fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        self.client.request(method, url)
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.shared.manners.timeouts
    }

    /// The rate limit of the first of `names` that has one.
    pub(super) fn lane(&self, names: &[&str]) -> Option<Arc<Pacer>> {
        names.iter().find_map(|name| self.shared.lanes.get(*name)).cloned()
    }

    /// As much of `range` as may still be downloaded; refuses where nothing may.
    pub(super) fn allowed(&self, range: ByteRange, size: Option<u64>, what: &str) -> Result<Allowed, SourceError> {
        let counted = |range, is_cut| Allowed { range, is_cut, is_counted: true };
        let Some(left) = self.shared.allowance.left() else { return Ok(counted(range, false)) };
        let end = range.end.or(size);
        let last = range.start.saturating_add(left);
        if left == 0 {
            return Err(self.limit_reached(what));
        }
        if end.is_some_and(|end| end <= last) {
            return Ok(counted(range, false));
        }
        Ok(counted(ByteRange { start: range.start, end: Some(last) }, true))
    }

    pub(super) fn limit_reached(&self, what: &str) -> SourceError {
        let limit = self.shared.allowance.limit().unwrap_or_default();
        SourceError::DownloadLimit { what: what.to_owned(), limit }
    }

    /// Sends one request when its host allows one more, and keeps the host's turn until the answer is read.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        budget: Budget,
        what: &str,
    ) -> Result<Answer, SourceError> {
        let request = request.build().map_err(|error| unreachable(&error, what))?;
        let name = origin(request.url());
        let host = self.host(&name);
        let turn = self.turn(&host, &name, budget).await?;
        // The client gives up an answer that does not go on; one that never begins is given up here.
        let patience = self.timeouts().stall.saturating_mul(2);
        let answer = tokio::time::timeout(patience, self.client.execute(request)).await;
        let response = match answer {
            Ok(response) => response.map_err(|error| unreachable(&error, what))?,
            Err(_) => {
                let reason = "no sign of life for too long".to_owned();
                return Err(SourceError::Unreachable { what: what.to_owned(), reason });
            }
        };
        host.gate().learn(budget, response.status(), response.headers(), Instant::now());
        Ok(Answer { response, network: self.clone(), lane: None, is_cut: false, is_counted: true, _turn: turn })
    }

    fn host(&self, name: &str) -> Arc<Host> {
        let mut hosts = self.shared.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let turns = Arc::new(Semaphore::new(self.shared.manners.connections.max(1)));
            Arc::new(Host { turns, gate: Mutex::default() })
        };
        Arc::clone(hosts.entry(name.to_owned()).or_insert_with(make))
    }

    /// Waits until the host may be asked, and for one of its turns.
    async fn turn(&self, host: &Host, name: &str, budget: Budget) -> Result<OwnedSemaphorePermit, SourceError> {
        loop {
            let turn = Arc::clone(&host.turns).acquire_owned().await;
            // The semaphore is never closed.
            let turn = turn.map_err(|_| SourceError::NoUpstream { what: name.to_owned() })?;
            let Some(wait) = host.gate().take(budget, Instant::now()) else { return Ok(turn) };
            drop(turn);
            if wait > LONGEST_WAIT {
                return Err(SourceError::RateLimited { what: name.to_owned(), wait: Some(wait) });
            }
            if wait >= WORTH_TELLING && host.gate().is_news() {
                tracing::warn!("{name} asks to wait: going on in {} s", wait.as_secs() + 1);
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// What may be asked for under the download limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub(super) range: ByteRange,
    /// Whether the limit ends it before its time.
    pub(super) is_cut: bool,
    is_counted: bool,
}

impl Allowed {
    /// All of `range`, which the limit is not about.
    pub(super) fn free(range: ByteRange) -> Self {
        Self { range, is_cut: false, is_counted: false }
    }
}

/// An answer; while it lives, its host has one turn less.
pub(super) struct Answer {
    response: Response,
    network: Network,
    lane: Option<Arc<Pacer>>,
    is_cut: bool,
    is_counted: bool,
    _turn: OwnedSemaphorePermit,
}

impl Answer {
    /// Lets the content pass at the rate of `lane`, and under the limit that cut `allowed`.
    pub(super) fn within(mut self, allowed: Allowed, lane: Option<Arc<Pacer>>) -> Self {
        self.lane = lane;
        self.is_cut = allowed.is_cut;
        self.is_counted = allowed.is_counted;
        self
    }

    /// Whether the download limit ends the content before its time.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// How many of `bytes` may be taken; they count from now on, where the limit is about them.
    pub(super) fn granted(&self, bytes: u64) -> u64 {
        if self.is_counted { self.network.shared.allowance.take(bytes) } else { bytes }
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Waits as the source's rate limit wants it for `bytes`.
    pub(super) async fn pace(&self, bytes: usize) {
        if let Some(lane) = &self.lane {
            lane.pass(bytes).await;
        }
    }
}

impl Deref for Answer {
    type Target = Response;

    fn deref(&self) -> &Response {
        &self.response
    }
}

impl DerefMut for Answer {
    fn deref_mut(&mut self) -> &mut Response {
        &mut self.response
    }
}
