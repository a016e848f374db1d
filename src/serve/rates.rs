//! How fast contents go out: to each client, and to all of them together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::pace::Pacer;
use crate::size::Bytes;

/// Limits of what is sent, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// To all clients together.
    pub total: Option<Bytes>,
    /// To one address, over all its connections.
    pub per_client: Option<Bytes>,
}

/// Keeps to [`Rates`].
#[derive(Debug)]
pub(crate) struct Paces {
    rates: Rates,
    total: Arc<Pacer>,
    clients: Mutex<HashMap<IpAddr, Weak<Pacer>>>,
}

/// What one answer has to keep to.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    total: Arc<Pacer>,
    client: Option<Arc<Pacer>>,
}

impl Paces {
    pub(crate) fn new(rates: Rates) -> Self {
        Self { rates, total: Arc::new(Pacer::new(rates.total)), clients: Mutex::default() }
    }

    /// The pace of an answer to `client`, which all its answers share for as long as there are any.
    pub(crate) fn of(&self, client: Option<IpAddr>) -> Pace {
        let client = client.filter(|_| self.rates.per_client.is_some()).map(|client| self.of_client(client));
        Pace { total: Arc::clone(&self.total), client }
    }

    fn of_client(&self, client: IpAddr) -> Arc<Pacer> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pacer) = clients.get(&client).and_then(Weak::upgrade) {
            return pacer;
        }
        clients.retain(|_, pacer| pacer.strong_count() > 0);
        let pacer = Arc::new(Pacer::new(self.rates.per_client));
        clients.insert(client, Arc::downgrade(&pacer));
        pacer
    }
}

impl Pace {
    /// Waits until `bytes` more may be sent.
    pub(crate) async fn pass(&self, bytes: usize) {
        if let Some(client) = &self.client {
            client.pass(bytes).await;
        }
        self.total.pass(bytes).await;
    }
}
