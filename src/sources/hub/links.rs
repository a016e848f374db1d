//! Where the hub has sent for content, so that it is not asked again for every range of a file.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use url::Url;

/// Signed links live for about an hour; one that runs out earlier is noticed when it is refused.
const LIFETIME: Duration = Duration::from_secs(600);

/// The way to one file's content, and what the hub said of it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) to: Url,
    /// Name and length of the content.
    pub(super) linked: (Option<String>, Option<u64>),
}

/// Links by the address that led to them. Carry signatures, so they are never printed.
#[derive(Default)]
pub(super) struct Links(Mutex<HashMap<Url, (Link, Instant)>>);

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Links(secret)")
    }
}

impl Links {
    /// The link of `place`, while it is fresh.
    pub(super) fn find(&self, place: &Url) -> Option<Link> {
        self.all().get(place).filter(|(_, since)| since.elapsed() < LIFETIME).map(|(link, _)| link.clone())
    }

    /// Keeps a link that worked; the time of a known one does not begin anew.
    pub(super) fn keep(&self, place: Url, link: Link) {
        let mut all = self.all();
        match all.get(&place) {
            Some((known, since)) if known.to == link.to && since.elapsed() < LIFETIME => {}
            _ => drop(all.insert(place, (link, Instant::now()))),
        }
    }

    /// Forgets a link that did not work.
    pub(super) fn forget(&self, place: &Url) {
        self.all().remove(place);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Url, (Link, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
