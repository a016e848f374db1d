//! Sources: where bytes come from.
//!
//! Every kind implements [`Source`] and passes the contract suite in `tests/contract/source.rs`.
//! A source makes one attempt at a time; trying again is the caller's business, and for lists and checks that of
//! [`Sources`].

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::artifact::{File, Reference, Remote};
use crate::size::Bytes as Size;

mod allowance;
mod body;
mod bucket;
mod directory;
mod gate;
mod http;
mod hub;
mod network;
pub mod ollama;
mod peer;
mod pin;
mod set;
mod sftp;
mod trail;
mod tunnel;
#[cfg(feature = "xet")]
mod xet;

pub use allowance::Allowance;
pub use bucket::BucketSource;
pub use directory::{DirectorySource, drive_name, find_in_drive};
pub use http::{HttpConfig, HttpSource};
pub use hub::{HubConfig, HubSource, ParseTreeError, file_address, parse_commit, parse_tree};
pub use network::{Manners, Network};
pub use ollama::{OllamaConfig, OllamaSource};
pub use peer::{Holdings, PeerConfig, PeerSource, PeerTerms};
pub use set::{PUBLIC_HUB, SourceSettings, Sources, Timeouts};
pub use sftp::{SftpConfig, SftpSource};
pub use tunnel::Tunnel;

/// Somewhere artifacts come from.
#[async_trait]
pub trait Source: Send + Sync {
    /// Reads what a reference means now: an exact revision and its files.
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError>;

    /// Asks, with as little traffic as possible, whether `remote` may be read.
    async fn check(&self, remote: &Remote) -> Result<(), SourceError>;

    /// Opens the bytes of `remote` from `range.start` on.
    ///
    /// The answer may begin earlier than asked (a server may ignore ranges): see [`Body::start`].
    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError>;

    /// Hears that what came from here as the whole of `remote` was not its content.
    ///
    /// Answers whether it will come in another way when asked for again; by default there is none.
    fn distrust(&self, _remote: &Remote) -> bool {
        false
    }
}

/// Bytes `start..end` of a file; to its end where `end` is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// First byte no longer wanted.
    pub end: Option<u64>,
}

impl ByteRange {
    /// From `start` to the end of the file.
    pub fn from(start: u64) -> Self {
        Self { start, end: None }
    }
}

/// What a reference means at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The exact revision, for sources that have such a thing.
    pub revision: Option<String>,
    /// All files, or the one file of a reference with a path.
    pub files: Vec<File>,
    /// The bytes of an Ollama manifest, verbatim.
    pub ollama_manifest: Option<Vec<u8>>,
}

/// An open stream of content.
pub struct Body {
    /// Offset of the first byte that the stream yields. Never greater than what was asked for.
    pub start: u64,
    /// Length of the whole file, where the source says so.
    pub total: Option<u64>,
    /// Whether the source sends the whole file, though a part was asked for; what is behind the part is not read.
    pub ignores_range: bool,
    /// The source's name for this content: changes when the content does.
    pub etag: Option<String>,
    /// The bytes. Ends early with an error, never silently, when the length is known; only where the source says
    /// beforehand that it gives a shorter part than was asked for, that is no error.
    pub stream: BoxStream<'static, Result<Bytes, SourceError>>,
}

impl Body {
    /// Whether only its first bytes tell what it is: something too short for the file, from its beginning on.
    pub fn is_worth_a_look(&self) -> bool {
        body::is_worth_a_look(self.start, self.total)
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("start", &self.start).field("total", &self.total).finish_non_exhaustive()
    }
}

/// Why a source did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// 401 where no token was sent.
    #[error("{what} asks for a token, and none is set")]
    TokenMissing {
        /// Repository or address.
        what: String,
    },
    /// 401 in spite of a token.
    #[error("{what} does not accept the token, or does not exist")]
    TokenRefused {
        /// Repository or address.
        what: String,
    },
    /// The repository's licence was not accepted by the token's user.
    #[error("{what} is gated: its licence is not accepted for this token")]
    Gated {
        /// Repository.
        what: String,
        /// Page where the licence can be accepted.
        page: String,
    },
    /// 403 for another reason.
    #[error("{what} may not be read: {message}")]
    Forbidden {
        /// Repository or address.
        what: String,
        /// The server's words.
        message: String,
    },
    /// 404, told apart as far as the server does.
    #[error("{what} does not exist")]
    NotFound {
        /// Repository, revision, file, tag or address.
        what: String,
        /// Whether it is more than one file: the repository, its revision, the image, the bucket.
        whole: bool,
    },
    /// 412 from the Ollama registry.
    #[error("{what} needs a newer Ollama than {version}")]
    NeedsNewerOllama {
        /// Image.
        what: String,
        /// The version that was presented.
        version: String,
    },
    /// 429.
    #[error("{what} asks to slow down")]
    RateLimited {
        /// Repository or host.
        what: String,
        /// How long the server asks to wait.
        wait: Option<Duration>,
    },
    /// Any other refusal.
    #[error("{what} answered {status}")]
    Status {
        /// Address, without query.
        what: String,
        /// HTTP status.
        status: u16,
        /// How long the server asks to wait.
        wait: Option<Duration>,
    },
    /// No connection, a connection that broke, or silence for too long.
    #[error("{what} cannot be reached: {reason}")]
    Unreachable {
        /// Address, without query.
        what: String,
        /// The cause.
        reason: String,
    },
    /// The bytes ended early.
    #[error("{what} broke off after {got} of {expected} bytes")]
    CutShort {
        /// Address, without query.
        what: String,
        /// Bytes expected in this answer.
        expected: u64,
        /// Bytes that came.
        got: u64,
    },
    /// So little came for so long that it would never end.
    #[error("{what} sends next to nothing")]
    TooSlow {
        /// Address, without query.
        what: String,
    },
    /// The answer is something other than the file.
    #[error("{what} sent {instead} instead of the file")]
    NotTheFile {
        /// Address, without query.
        what: String,
        /// `a web page`, `a git-lfs pointer`, `compressed data`…
        instead: String,
    },
    /// The source's file has changed since it was locked.
    #[error("{what} changed: it has {actual} bytes now, {expected} were locked")]
    Changed {
        /// Address.
        what: String,
        /// Locked length.
        expected: u64,
        /// Length now.
        actual: u64,
    },
    /// Two answers for one file are of two files.
    #[error("{what} was exchanged while it was fetched")]
    Exchanged {
        /// Address.
        what: String,
    },
    /// The answer breaks the protocol.
    #[error("{what} sent an answer that makes no sense: {reason}")]
    Protocol {
        /// Address.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The server's certificate is not signed by anybody whom this machine trusts.
    #[error("{what} is not trusted: {reason}")]
    Untrusted {
        /// Repository or address.
        what: String,
        /// What is wrong with the certificate.
        reason: String,
    },
    /// No more may be downloaded in this run.
    #[error("{what} is not fetched to its end: the download limit of {limit} is used up")]
    DownloadLimit {
        /// Repository or address.
        what: String,
        /// The limit.
        limit: Size,
    },
    /// Network use is switched off.
    #[error("{what} is not asked: network use is switched off (--offline or HF_HUB_OFFLINE)")]
    Offline {
        /// Repository.
        what: String,
    },
    /// Nothing may be taken from upstream.
    #[error("{what} is not asked: --only-local takes nothing from upstream")]
    OnlyLocal {
        /// Repository.
        what: String,
    },
    /// The reference has no upstream, or is of another kind than the source.
    #[error("{what} cannot be fetched from anywhere")]
    NoUpstream {
        /// The reference.
        what: String,
    },
    /// A local file could not be read.
    #[error("{what} cannot be read")]
    Io {
        /// Path.
        what: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

impl SourceError {
    /// Whether asking again later, unchanged, cannot help. `docs/guide/network.md` has the table.
    pub fn is_permanent(&self) -> bool {
        match self {
            SourceError::RateLimited { .. } | SourceError::Unreachable { .. } | SourceError::CutShort { .. } => false,
            SourceError::Status { status, .. } => !matches!(status, 408 | 425 | 500 | 502 | 503 | 504),
            _ => true,
        }
    }

    /// Whether it concerns `reference` alone, so that other files of its [`Reference::place`] may still be had.
    pub fn is_about_one_file(&self, reference: &Reference) -> bool {
        match self {
            // An image without one of its layers is of no use.
            _ if matches!(reference, Reference::Ollama(_)) => false,
            SourceError::NotFound { whole, .. } => !whole,
            // Behind plain addresses, each file has gates of its own.
            SourceError::TokenMissing { .. }
            | SourceError::TokenRefused { .. }
            | SourceError::Gated { .. }
            | SourceError::Forbidden { .. } => matches!(reference, Reference::Url(_)),
            SourceError::Status { status, .. } => !matches!(status, 407 | 502 | 503 | 504),
            SourceError::RateLimited { .. }
            | SourceError::Unreachable { .. }
            | SourceError::Untrusted { .. }
            | SourceError::NeedsNewerOllama { .. }
            | SourceError::DownloadLimit { .. }
            | SourceError::OnlyLocal { .. }
            | SourceError::Offline { .. } => false,
            SourceError::CutShort { .. }
            | SourceError::TooSlow { .. }
            | SourceError::NotTheFile { .. }
            | SourceError::Changed { .. }
            | SourceError::Exchanged { .. }
            | SourceError::Protocol { .. }
            | SourceError::NoUpstream { .. }
            | SourceError::Io { .. } => true,
        }
    }

    /// The same said of the whole place of `reference`, for errors that concern all of it.
    #[must_use]
    pub fn of_place(mut self, reference: &Reference) -> Self {
        if let (
            Reference::Hub { .. } | Reference::Url(_),
            SourceError::Status { what, .. }
            | SourceError::RateLimited { what, .. }
            | SourceError::Unreachable { what, .. }
            | SourceError::Untrusted { what, .. }
            | SourceError::OnlyLocal { what }
            | SourceError::Offline { what },
        ) = (reference, &mut self)
        {
            *what = reference.authority();
        }
        self
    }

    /// How long the server asked to wait.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            SourceError::RateLimited { wait, .. } | SourceError::Status { wait, .. } => *wait,
            _ => None,
        }
    }

    /// What a sysadmin can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            SourceError::TokenMissing { what } if what.starts_with("bucket ") => Some(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write a profile into ~/.aws/credentials".to_owned(),
            ),
            SourceError::TokenMissing { what } if !what.starts_with("hf:") => {
                Some("its server gives it only to users whom it knows, and larder has no login there".to_owned())
            }
            SourceError::TokenMissing { .. } => Some(
                "check the name (the hub answers the same where nothing exists), then set HF_TOKEN or log in once with: hf auth login"
                    .to_owned(),
            ),
            SourceError::TokenRefused { what } if !what.starts_with("hf:") => {
                Some("check the name: the server accepts nobody for it without a login".to_owned())
            }
            SourceError::TokenRefused { .. } => Some(
                "check the name, and make a token that may read it at https://huggingface.co/settings/tokens"
                    .to_owned(),
            ),
            SourceError::Gated { page, .. } => {
                Some(format!("accept the licence at {page} with the token's user, or add a machine that has the files"))
            }
            SourceError::NeedsNewerOllama { .. } => {
                Some("update Ollama, then set [sources] ollama-version to its version".to_owned())
            }
            SourceError::Offline { .. } => {
                Some("leave out --offline, unset HF_HUB_OFFLINE, or add a drive or a machine that has the files".to_owned())
            }
            SourceError::OnlyLocal { .. } => Some("leave out --only-local, or add a drive or a machine that has it".to_owned()),
            SourceError::NotTheFile { instead, .. } if instead.contains("pointer") => Some(
                "the address leads to the text of a git repository, not to the content behind it; name the one that the server has for large files"
                    .to_owned(),
            ),
            SourceError::NotTheFile { .. } => {
                Some("a proxy or login page is in the way; open the address in a browser".to_owned())
            }
            SourceError::TooSlow { .. } => {
                Some("what arrived is kept: run larder apply again when the server or the network is better".to_owned())
            }
            SourceError::Untrusted { .. } => Some(
                "if a mirror or proxy of the lab has its own authority, name a file with all trusted certificates in SSL_CERT_FILE"
                    .to_owned(),
            ),
            SourceError::DownloadLimit { .. } => {
                Some("what arrived is kept: run larder apply again with a larger --max-download, or none".to_owned())
            }
            SourceError::Status { status: 407, .. } => {
                Some("the proxy asks for a login: write it into HTTPS_PROXY or HTTP_PROXY as http://NAME:PASSWORD@HOST".to_owned())
            }
            SourceError::Unreachable { .. } | SourceError::CutShort { .. } => Some(
                "what arrived is kept: see that the network and the server work, then run the same command again".to_owned(),
            ),
            SourceError::RateLimited { .. } => Some(
                "what arrived is kept: run the same command again later; fewer [sources] connections ask less at once".to_owned(),
            ),
            SourceError::Status { status: 416, .. } => Some(
                "what arrived is kept: the server does not go on within the file; run the same command again later, or name a mirror"
                    .to_owned(),
            ),
            SourceError::Status { status: 500..=599, .. } => Some(
                "what arrived is kept: the server has a problem of its own; run the same command again later, or name a mirror"
                    .to_owned(),
            ),
            SourceError::Forbidden { .. } => Some(
                "what arrived is kept: its server does not give it to this machine; name a mirror, or add a machine that has the files"
                    .to_owned(),
            ),
            SourceError::Exchanged { .. } | SourceError::Changed { .. } => Some("look at the new state with: larder lock --update NAME".to_owned()),
            _ => None,
        }
    }
}
