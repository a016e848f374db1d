//! The sources that the hub of the tests is asked by, with short timeouts.

use std::time::Duration;

use larder::artifact::{Reference, Remote};
use larder::digest::{Digests, Sha256};
use larder::sources::{ByteRange, Manners, Source, SourceError, SourceSettings, Sources, Timeouts};

use crate::hub::Hub;

pub(crate) const ALWAYS: usize = usize::MAX;

/// Content that differs everywhere, so that a wrong offset shows.
pub(crate) fn content(len: usize) -> Vec<u8> {
    (0..len as u64).flat_map(|n| *Sha256::of(&n.to_le_bytes()).as_bytes()).take(len).collect()
}

/// The source that the hub's clients use, with short timeouts.
pub(crate) fn settings(hub: &Hub) -> SourceSettings {
    SourceSettings {
        hub_endpoint: Some(hub.origin.parse().unwrap()),
        manners: Manners {
            timeouts: Timeouts { connect: Duration::from_secs(5), stall: Duration::from_secs(1) },
            ..Manners::default()
        },
        ..SourceSettings::default()
    }
}

/// A source of a set, as a source of its own.
pub(crate) struct OneOf(pub(crate) Sources, pub(crate) Reference);

#[async_trait::async_trait]
impl Source for OneOf {
    async fn list(&self, reference: &Reference) -> Result<larder::sources::Listing, SourceError> {
        self.0.for_reference(&self.1)?.list(reference).await
    }
    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        self.0.for_reference(&self.1)?.check(remote).await
    }
    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<larder::sources::Body, SourceError> {
        self.0.for_reference(&self.1)?.open(remote, range).await
    }
}

pub(crate) fn source(hub: &Hub, reference: &str) -> OneOf {
    OneOf(Sources::new(&settings(hub)).unwrap(), reference.parse().unwrap())
}

pub(crate) fn remote(reference: &str, content: &[u8]) -> Remote {
    Remote {
        reference: reference.parse().unwrap(),
        size: Some(content.len() as u64),
        digests: Digests::sha256(Sha256::of(content)),
    }
}
