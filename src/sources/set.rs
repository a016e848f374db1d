//! All sources of a run, and which of them serves a reference.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder};
use url::Url;

use super::body::unreachable;
use super::trail::plain;
use super::{
    Allowance, BucketSource, DirectorySource, HttpConfig, HttpSource, HubConfig, HubSource, Listing, Manners, Network,
    OllamaConfig, OllamaSource, PeerConfig, PeerSource, PeerTerms, SftpConfig, SftpSource, Source, SourceError,
};
use crate::artifact::{Reference, Remote};
use crate::bucket::Place;
use crate::retry::{Backoff, RetryPolicy};

/// The hub that `hf:` means where nothing else is said.
pub const PUBLIC_HUB: &str = "https://huggingface.co";

/// What the command line and the inventory say about sources.
///
/// The library reads no environment: `cli::env` fills this in.
#[derive(Clone, Default)]
pub struct SourceSettings {
    /// `[sources] hub`, else `HF_ENDPOINT`, else the public hub.
    pub hub_endpoint: Option<Url>,
    /// `HF_TOKEN`, or the token file's content. Never logged, never written.
    pub hub_token: Option<String>,
    /// `HF_HUB_OFFLINE` or `--offline`: no network source answers.
    pub offline: bool,
    /// `[sources] ollama`: base address instead of the host in the name.
    pub ollama_registry: Option<Url>,
    /// The Ollama version to present.
    pub ollama_version: Option<String>,
    /// Other larders of the lab.
    pub peers: Vec<PeerConfig>,
    /// Machines whose files are read by sftp; they are peers to whoever plans.
    pub sftp: Vec<SftpConfig>,
    /// Object stores of the lab.
    pub buckets: Vec<Place>,
    /// Peers and buckets whose content the download limit is about, as it is about upstream's, by
    /// [`Reference::authority`].
    pub metered: Vec<String>,
    /// Nothing is taken from upstream, and no peer is asked to bring anything from there.
    pub only_local: bool,
    /// Content that the hub keeps in Xet is read from there, and the library that does it has this folder for
    /// its own use (it makes empty folders). `None` turns it off, as does a build without the feature `xet`.
    pub xet: Option<PathBuf>,
    /// How the hosts are treated.
    pub manners: Manners,
    /// How passing errors of lists and checks are tried again.
    pub retry: RetryPolicy,
}

/// Never prints the token.
impl fmt::Debug for SourceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceSettings")
            .field("hub_endpoint", &self.hub_endpoint.as_ref().map(Url::as_str))
            .field("hub_token", &self.hub_token.as_ref().map(|_| "(secret)"))
            .field("offline", &self.offline)
            .field("ollama_registry", &self.ollama_registry.as_ref().map(Url::as_str))
            .field("ollama_version", &self.ollama_version)
            .field("peers", &self.peers)
            .field("sftp", &self.sftp.iter().map(|machine| &machine.name).collect::<Vec<_>>())
            .field("buckets", &self.buckets)
            .field("metered", &self.metered)
            .field("only_local", &self.only_local)
            .field("xet", &self.xet)
            .field("manners", &self.manners)
            .field("retry", &self.retry)
            .finish()
    }
}

/// When a silent server is given up. Whole transfers may take as long as they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To make a connection.
    pub connect: Duration,
    /// Between two pieces of an answer.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), stall: Duration::from_secs(30) }
    }
}

/// All sources of a run. One HTTP client and one pacing budget for all of them.
pub struct Sources {
    hub: Box<dyn Source>,
    http: HttpSource,
    ollama: OllamaSource,
    directory: DirectorySource,
    peers: PeerSource,
    sftp: SftpSource,
    buckets: BucketSource,
    offline: bool,
    only_local: bool,
    metered: Vec<String>,
    allowance: Arc<Allowance>,
    retry: RetryPolicy,
}

impl Sources {
    /// Prepares the sources; no request is made.
    ///
    /// Fails where the token or an address cannot be used, or where no TLS certificates can be loaded.
    pub fn new(settings: &SourceSettings) -> Result<Self, SourceError> {
        let client = client(settings.manners.timeouts)?;
        let network = Network::new(client, settings.manners.clone());
        let endpoint = settings.hub_endpoint.clone().map_or_else(|| PUBLIC_HUB.parse(), Ok);
        let endpoint = endpoint.map_err(|error: url::ParseError| SourceError::Protocol {
            what: PUBLIC_HUB.to_owned(),
            reason: error.to_string(),
        })?;
        let hub = HubConfig { endpoint, token: settings.hub_token.clone(), offline: settings.offline };
        let ollama =
            OllamaConfig { registry: settings.ollama_registry.clone(), version: settings.ollama_version.clone() };
        let (metered, offline, only_local) = (&settings.metered, settings.offline, settings.only_local);
        let terms = PeerTerms { metered, may_bring: !only_local, offline };
        let peers = PeerSource::new(&settings.peers, terms, &network)?;
        let buckets = BucketSource::new(&settings.buckets, metered, offline, &network)?;
        Ok(Self {
            peers,
            sftp: SftpSource::new(&settings.sftp, network.clone()),
            buckets,
            hub: with_xet(HubSource::new(hub, network.clone())?, settings),
            http: HttpSource::new(HttpConfig { offline: settings.offline }, network.clone()),
            allowance: network.allowance(),
            ollama: OllamaSource::new(ollama, network),
            directory: DirectorySource::new(),
            offline,
            only_local,
            metered: settings.metered.clone(),
            retry: settings.retry,
        })
    }

    /// Other larders of the lab.
    pub fn peers(&self) -> &PeerSource {
        &self.peers
    }

    /// Machines whose files are read by sftp.
    pub fn sftp(&self) -> &SftpSource {
        &self.sftp
    }

    /// Object stores of the lab.
    pub fn buckets(&self) -> &BucketSource {
        &self.buckets
    }

    /// The cap on content that everything downloaded in this run is taken out of.
    pub fn allowance(&self) -> &Arc<Allowance> {
        &self.allowance
    }

    /// Whether bytes may come from `reference`, and from others beside it, that could also be waited for.
    ///
    /// Not where a data cap counts, nor from places that are paid by the byte.
    pub fn may_be_asked_in_addition(&self, reference: &Reference) -> bool {
        self.allowance.limit().is_none() && !self.metered.contains(&reference.authority())
    }

    /// Whether a peer fetched it from upstream for us in this run.
    pub fn was_brought(&self, reference: &Reference) -> bool {
        matches!(reference, Reference::Peer { peer, content } if self.peers.has_brought(peer, content))
    }

    /// Reads what a reference means now; passing errors are tried again.
    pub async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        let source = self.for_reference(reference)?;
        self.patiently(|| source.list(reference)).await
    }

    /// Asks whether `remote` may be read; passing errors are tried again.
    pub async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        let source = self.for_reference(&remote.reference)?;
        self.patiently(|| source.check(remote)).await
    }

    async fn patiently<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let mut backoff = Backoff::new(self.retry);
        loop {
            let error = match attempt().await {
                Err(error) if !error.is_permanent() => error,
                outcome => return outcome,
            };
            let Some(pause) = backoff.next(error.wait()) else { return Err(error) };
            tracing::info!("{error}; asking again in {:.1} s", pause.as_secs_f64());
            tokio::time::sleep(pause).await;
        }
    }

    /// The source that serves `reference`.
    ///
    /// Fails for references without upstream, for network sources while offline, and for upstream's where only the
    /// lab's own are asked.
    pub fn for_reference(&self, reference: &Reference) -> Result<&dyn Source, SourceError> {
        // Links can carry signatures in their query.
        let what = || match reference {
            Reference::Url(url) => plain(url),
            other => other.to_string(),
        };
        match reference {
            Reference::Directory(_) => Ok(&self.directory),
            Reference::Local | Reference::Unidentified => Err(SourceError::NoUpstream { what: what() }),
            _ if self.offline => Err(SourceError::Offline { what: what() }),
            Reference::Peer { peer, .. } if self.sftp.knows(peer) => Ok(&self.sftp),
            Reference::Peer { .. } => Ok(&self.peers),
            Reference::Bucket { .. } => Ok(&self.buckets),
            _ if self.only_local => Err(SourceError::OnlyLocal { what: what() }),
            Reference::Hub { .. } => Ok(self.hub.as_ref()),
            Reference::Url(_) => Ok(&self.http),
            Reference::Ollama(_) => Ok(&self.ollama),
        }
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("offline", &self.offline).finish_non_exhaustive()
    }
}

#[cfg(feature = "xet")]
fn with_xet(hub: HubSource, settings: &SourceSettings) -> Box<dyn Source> {
    match &settings.xet {
        Some(scratch) => {
            let Manners { timeouts, connections, .. } = settings.manners;
            Box::new(super::xet::XetSource::new(hub, scratch.clone(), timeouts, connections))
        }
        None => Box::new(hub),
    }
}

#[cfg(not(feature = "xet"))]
fn with_xet(hub: HubSource, _settings: &SourceSettings) -> Box<dyn Source> {
    Box::new(hub)
}

/// One client for all: redirects are followed by the sources themselves, and nothing is decoded on the way.
fn client(timeouts: Timeouts) -> Result<Client, SourceError> {
    builder(timeouts).build().map_err(|error| unreachable(&error, "The network"))
}

/// What all clients of ours have in common.
///
/// HTTP/1.1 only: by HTTP/2 all ranges of a host would share one connection, which one lost packet holds up and one
/// limit of a server slows down. The few questions besides content lose nothing by it: connections are kept.
pub(super) fn builder(timeouts: Timeouts) -> ClientBuilder {
    Client::builder()
        .http1_only()
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(timeouts.connect)
        .read_timeout(timeouts.stall)
}
