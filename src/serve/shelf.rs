//! What is handed out at the moment, and how it follows what changes on the machine.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::serve::bring::Supply;
use crate::serve::catalog::Catalog;
use crate::serve::{Index, Served};

/// How long a request does without the question whether something changed.
const PAUSE: Duration = Duration::from_secs(2);
/// Of the time, at most so much goes into making the index: one part in so many.
const SHARE: u32 = 10;

/// Says what there is to hand out once that has changed.
pub trait Renewal: Send + Sync {
    /// The index made anew, if anything that it is made from has changed since the last time, or `is_asked_for`.
    ///
    /// Called by one at a time, where waiting is allowed. `None` leaves everything as it is.
    fn renew(&self, is_asked_for: bool) -> Option<Renewed>;
}

/// What is handed out from now on.
pub struct Renewed {
    /// What there is.
    pub index: Index,
    /// Who brings what the index names and is not here.
    pub supply: Option<Arc<dyn Supply>>,
}

/// What a router hands out, which may change while it does.
#[derive(Clone)]
pub struct Shelf(Arc<Inner>);

struct Inner {
    stock: RwLock<Stock>,
    renewal: Option<Arc<dyn Renewal>>,
    /// Before then nobody asks whether something changed.
    next_look: Mutex<Option<Instant>>,
}

/// What there is, and who brings the rest.
#[derive(Clone)]
pub(crate) struct Stock {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) supply: Option<Arc<dyn Supply>>,
}

impl From<Index> for Shelf {
    /// A shelf that stays as it is.
    fn from(index: Index) -> Self {
        Self::holding(Renewed { index, supply: None }, None)
    }
}

impl Shelf {
    /// A shelf that asks `renewal`, at most every few seconds when a request comes, whether there is something else.
    pub fn renewed_by(renewal: Arc<dyn Renewal>, first: Renewed) -> Self {
        Self::holding(first, Some(renewal))
    }

    fn holding(first: Renewed, renewal: Option<Arc<dyn Renewal>>) -> Self {
        let stock = RwLock::new(Stock::new(first, None));
        Self(Arc::new(Inner { stock, renewal, next_look: Mutex::default() }))
    }

    /// Makes the index anew at once, whether something changed or not.
    pub async fn renew(&self) {
        let mut next_look = self.0.next_look.lock().await;
        *next_look = Some(self.look(true).await);
    }

    /// What is handed out now.
    ///
    /// The request that finds it is time to look waits for the new index; the others go on with the old one.
    pub(crate) async fn stock(&self) -> Stock {
        if self.0.renewal.is_some()
            && let Ok(mut next_look) = self.0.next_look.try_lock()
            && next_look.is_none_or(|next| Instant::now() >= next)
        {
            *next_look = Some(self.look(false).await);
        }
        self.held()
    }

    fn held(&self) -> Stock {
        self.0.stock.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when to look again.
    async fn look(&self, is_asked_for: bool) -> Instant {
        let begun = Instant::now();
        let (inner, before) = (Arc::clone(&self.0), self.held().catalog);
        let looking = move || {
            let renewed = inner.renewal.as_ref()?.renew(is_asked_for)?;
            let stock = Stock::new(renewed, Some(&before));
            *inner.stock.write().unwrap_or_else(PoisonError::into_inner) = stock;
            Some(())
        };
        if spawn_blocking(looking).await.is_err() {
            tracing::warn!("what is handed out could not be looked at again, and stays as it was");
        }
        Instant::now() + PAUSE.max(begun.elapsed() * SHARE)
    }
}

impl Stock {
    /// Says what is not handed out and why, unless that was so before.
    fn new(renewed: Renewed, before: Option<&Catalog>) -> Self {
        let catalog = Catalog::new(renewed.index);
        let is_known = |remark: &str| before.is_some_and(|before| before.remarks.contains(remark));
        catalog.remarks.iter().filter(|remark| !is_known(remark)).for_each(|remark| tracing::warn!("{remark}"));
        Self { catalog: Arc::new(catalog), supply: renewed.supply }
    }
}

impl Index {
    /// These artifacts, as far as they lie within the folders `within`.
    pub fn of(artifacts: Vec<Served>, within: impl IntoIterator<Item = impl Into<std::path::PathBuf>>) -> Self {
        Self { artifacts, within: within.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}
