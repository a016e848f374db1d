//! All sources of a run, and which of them serves a reference.

use std::fmt;
use std::time::Duration;

use reqwest::Client;
use url::Url;

use super::body::unreachable;
use super::trail::plain;
use super::{
    DirectorySource, HttpConfig, HttpSource, HubConfig, HubSource, OllamaConfig, OllamaSource, Source, SourceError,
};
use crate::artifact::Reference;

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
    /// When a silent server is given up.
    pub timeouts: Timeouts,
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
            .field("timeouts", &self.timeouts)
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
#[derive(Debug)]
pub struct Sources {
    hub: HubSource,
    http: HttpSource,
    ollama: OllamaSource,
    directory: DirectorySource,
    offline: bool,
}

impl Sources {
    /// Prepares the sources; no request is made.
    ///
    /// Fails where the token or an address cannot be used, or where no TLS certificates can be loaded.
    pub fn new(settings: &SourceSettings) -> Result<Self, SourceError> {
        let client = client(settings.timeouts)?;
        let endpoint = settings.hub_endpoint.clone().map_or_else(|| PUBLIC_HUB.parse(), Ok);
        let endpoint = endpoint.map_err(|error: url::ParseError| SourceError::Protocol {
            what: PUBLIC_HUB.to_owned(),
            reason: error.to_string(),
        })?;
        let hub = HubConfig { endpoint, token: settings.hub_token.clone(), offline: settings.offline };
        let ollama =
            OllamaConfig { registry: settings.ollama_registry.clone(), version: settings.ollama_version.clone() };
        Ok(Self {
            hub: HubSource::new(hub, client.clone())?,
            http: HttpSource::new(HttpConfig { offline: settings.offline }, client.clone()),
            ollama: OllamaSource::new(ollama, client),
            directory: DirectorySource::new(),
            offline: settings.offline,
        })
    }

    /// The source that serves `reference`.
    ///
    /// Fails for references without upstream, and for network sources while offline.
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
            Reference::Hub { .. } => Ok(&self.hub),
            Reference::Url(_) => Ok(&self.http),
            Reference::Ollama(_) => Ok(&self.ollama),
        }
    }
}

/// One client for all: redirects are followed by the sources themselves, and nothing is decoded on the way.
fn client(timeouts: Timeouts) -> Result<Client, SourceError> {
    Client::builder()
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(timeouts.connect)
        .read_timeout(timeouts.stall)
        .build()
        .map_err(|error| unreachable(&error, "The network"))
}
