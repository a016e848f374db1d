//! What `[serve]` says: how this lab's machines hand their artifacts to others.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

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
}
