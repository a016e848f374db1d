//! How the lab's machines hand artifacts to each other: `[serve]` and `[[sources.peers]]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

use crate::digest::Sha256;

/// How `larder serve` serves, unless its options say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServeConfig {
    /// Where to listen; by default on loopback only.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// Networks whose machines need no token.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// A file with the token that everybody else must send.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Speak https, with a certificate that larder makes where none is given.
    #[serde(default)]
    pub tls: bool,
    /// The certificate chain (PEM) for https.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Also hand out artifacts whose licence every user must accept himself.
    #[serde(default)]
    pub gated: bool,
    /// Bring what others of the lab ask for and this machine lacks, so that it comes from upstream once.
    #[serde(default)]
    pub fetch_missing: bool,
    /// Whether Hugging Face's tools are told what contents are called in Xet, and read them by it; yes unless said.
    #[serde(default)]
    pub xet: Option<bool>,
    /// How fast contents go out to all clients together, such as `80 MB/s`.
    #[serde(default)]
    pub max_rate: Option<String>,
    /// How fast they go out to one client.
    #[serde(default)]
    pub max_rate_per_client: Option<String>,
}

/// A machine that serves its artifacts.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Peer {
    /// What people call it; the machine of this name does not ask itself.
    pub name: String,
    /// Where its `larder serve` listens.
    pub url: Url,
    /// A file with the token that it asks for.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The SHA-256 of its certificate, as `larder serve --tls` prints it.
    #[serde(default)]
    pub certificate: Option<Sha256>,
    /// Whether what comes from there counts as downloaded, for `max-download`; no unless said.
    #[serde(default)]
    pub metered: bool,
    /// Sockets that lead there, each by a way of its own. Never written in an inventory: `larder copy` opens them for its run.
    #[serde(skip)]
    pub sockets: Vec<PathBuf>,
    /// The token itself, where it is made for one run. Never logged, never written.
    #[serde(skip)]
    pub token: Option<String>,
}

/// Never prints the token.
impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("name", &self.name).field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

impl Peer {
    /// One that is reached through something of this machine's own: see [`Peer::sockets`].
    pub fn on_this_machine(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            url: "http://peer".parse().expect("a constant address"),
            token_file: None,
            certificate: None,
            sockets: Vec::new(),
            token: None,
            metered: false,
        }
    }
}
