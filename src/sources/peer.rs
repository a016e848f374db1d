//! Another larder of the lab: content by its digest.
//!
//! A peer is trusted with nothing. What it sends is compared with the lock like everything else; its
//! certificate, where it has one, is known by its fingerprint.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue, RANGE};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::artifact::{Reference, Remote};
use crate::digest::{Blake3, CHUNK_LEN, ChunkDigests, ContentName, GitSha1, Sha256};
use crate::sources::body::{empty_body, into_body, is_empty, number, range_header, refusal, size_change, unreachable};
use crate::sources::gate::Budget;
use crate::sources::network::{Allowed, Answer, Network};
use crate::sources::pin::pinned;
use crate::sources::set::builder;
use crate::sources::trail::plain;
use crate::sources::{Body, ByteRange, Listing, Source, SourceError, Timeouts};

/// The longest list that is read from a peer: names of a million files.
const LONGEST_LIST: usize = 128 << 20;
/// How long a peer may take for a list. It knows it by heart.
const PATIENCE: Duration = Duration::from_secs(30);
/// The shortest time between two questions whether a content has been brought.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);

/// Content that a peer has, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// What is there.
    pub here: HashSet<ContentName>,
    /// What it would bring from upstream if asked for it.
    pub brings: HashSet<ContentName>,
}

/// How one peer is reached.
#[derive(Clone)]
pub struct PeerConfig {
    /// What people call it.
    pub name: String,
    /// Where its `larder serve` listens.
    pub url: Url,
    /// The token that it asks for. Never logged, never written.
    pub token: Option<String>,
    /// The SHA-256 of its certificate, where nobody else vouches for it.
    pub certificate: Option<Sha256>,
    /// A socket on this machine that leads there, such as [`crate::sources::Tunnel::socket`].
    pub socket: Option<PathBuf>,
}

/// Never prints the token.
impl std::fmt::Debug for PeerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerConfig")
            .field("name", &self.name)
            .field("url", &self.url.as_str())
            .field("token", &self.token.as_ref().map(|_| "(secret)"))
            .field("certificate", &self.certificate)
            .field("socket", &self.socket)
            .finish()
    }
}

/// The peers of this machine.
#[derive(Debug)]
pub struct PeerSource {
    peers: BTreeMap<String, Peer>,
    /// Whether they may fetch from upstream what they lack.
    may_bring: bool,
    offline: bool,
}

/// What peers may do for us, and what it costs.
#[derive(Debug, Clone, Copy)]
pub struct PeerTerms<'a> {
    /// The authorities whose content the download limit is about.
    pub metered: &'a [String],
    /// Whether peers may fetch from upstream what they lack.
    pub may_bring: bool,
    /// Whether nobody is asked.
    pub offline: bool,
}

fn through(socket: &Path, timeouts: Timeouts) -> Result<Client, SourceError> {
    // No proxy stands between a program and its own socket.
    let client = builder(timeouts).no_proxy().unix_socket(socket).build();
    client.map_err(|error| unreachable(&error, &socket.display().to_string()))
}

#[derive(Debug)]
struct Peer {
    config: PeerConfig,
    network: Network,
    is_metered: bool,
    /// What it fetched from upstream for us: that is upstream's content, by another way.
    brought: Mutex<HashSet<ContentName>>,
}

impl PeerSource {
    /// Prepares the source; nobody is asked. Peers without a certificate of their own are asked over `network`.
    pub fn new(peers: &[PeerConfig], terms: PeerTerms<'_>, network: &Network) -> Result<Self, SourceError> {
        let prepared = peers.iter().map(|config| {
            let timeouts = network.timeouts();
            let network = match (&config.socket, &config.certificate) {
                (Some(socket), _) => network.by(through(socket, timeouts)?),
                (None, Some(certificate)) => network.by(pinned(*certificate, timeouts)?),
                (None, None) => network.clone(),
            };
            let is_metered = terms.metered.contains(&format!("peer:{}", config.name));
            let peer = Peer { config: config.clone(), network, is_metered, brought: Mutex::default() };
            Ok((config.name.clone(), peer))
        });
        let PeerTerms { may_bring, offline, .. } = terms;
        Ok(Self { peers: prepared.collect::<Result<_, SourceError>>()?, may_bring, offline })
    }

    /// The names of the peers, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.peers.keys().map(String::as_str)
    }

    /// Whether `peer` fetched `content` from upstream for us in this run.
    pub(super) fn has_brought(&self, peer: &str, content: &ContentName) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.brought().contains(content))
    }

    /// Everything that `peer` has or would bring, by digest.
    pub async fn holdings(&self, peer: &str) -> Result<Holdings, SourceError> {
        #[derive(Deserialize)]
        struct Told {
            #[serde(flatten)]
            here: Names,
            #[serde(default)]
            brings: Names,
        }
        let told: Told = self.peer(peer)?.object("have").await?;
        Ok(Holdings { here: told.here.into_set(), brings: told.brings.into_set() })
    }

    /// The chunk digests that `peer` took of a content; they are that peer's word until the whole is proven.
    pub async fn chunks(&self, peer: &str, content: &Sha256) -> Result<ChunkDigests, SourceError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Told {
            size: u64,
            chunk_len: u64,
            blake3: Vec<Blake3>,
        }
        let peer = self.peer(peer)?;
        let told: Told = peer.object(&format!("chunks/sha256/{content}")).await?;
        let chunks = (told.chunk_len == CHUNK_LEN).then(|| ChunkDigests::new(told.size, told.blake3)).flatten();
        chunks.ok_or_else(|| peer.nonsense("its chunk digests do not fit the length"))
    }

    fn peer(&self, name: &str) -> Result<&Peer, SourceError> {
        let what = || format!("peer {name}");
        if self.offline {
            return Err(SourceError::Offline { what: what() });
        }
        self.peers.get(name).ok_or_else(|| SourceError::NoUpstream { what: what() })
    }

    fn content<'a>(&self, reference: &'a Reference) -> Result<(&Peer, &'a ContentName), SourceError> {
        match reference {
            Reference::Peer { peer, content } => Ok((self.peer(peer)?, content)),
            other => Err(SourceError::NoUpstream { what: other.to_string() }),
        }
    }
}

#[async_trait]
impl Source for PeerSource {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        Err(SourceError::NoUpstream { what: reference.to_string() })
    }

    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        let (peer, content) = self.content(&remote.reference)?;
        let response = peer.ask(Method::HEAD, &peer.blob(content)?, HeaderMap::new()).await?;
        if self.may_bring && can_be_brought(&response) {
            return Ok(());
        }
        if response.status() != StatusCode::OK {
            return Err(peer.refusal(&response));
        }
        size_change(number(response.headers(), &CONTENT_LENGTH), remote.size, &peer.what()).map_or(Ok(()), Err)
    }

    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        let (peer, content) = self.content(&remote.reference)?;
        if is_empty(range) {
            return Ok(empty_body(range.start, remote.size));
        }
        let (mut allowed, mut response) = peer.get(content, range, remote.size).await?;
        if self.may_bring && can_be_brought(&response) {
            drop(response);
            peer.bring(content).await?;
            peer.brought().insert(*content);
            (allowed, response) = peer.get(content, range, remote.size).await?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                let lane = peer.network.lane(&[&peer.config.name, peer.config.url.host_str().unwrap_or("")]);
                into_body(response.within(allowed, lane), &peer.what(), allowed.range, remote.size)
            }
            _ => Err(peer.refusal(&response)),
        }
    }
}

impl Peer {
    /// How messages name it.
    fn what(&self) -> String {
        if self.config.socket.is_some() {
            return self.config.name.clone();
        }
        format!("peer {} ({})", self.config.name, plain(&self.config.url))
    }

    fn nonsense(&self, reason: &str) -> SourceError {
        SourceError::Protocol { what: self.what(), reason: reason.to_owned() }
    }

    fn address(&self, path: &str) -> Result<Url, SourceError> {
        let base = self.config.url.as_str().trim_end_matches('/');
        format!("{base}/{path}").parse().map_err(|_| self.nonsense("its address cannot be completed"))
    }

    fn blob(&self, content: &ContentName) -> Result<Url, SourceError> {
        self.named("blobs", content)
    }

    fn named(&self, what: &str, content: &ContentName) -> Result<Url, SourceError> {
        self.address(&match content {
            ContentName::Sha256(digest) => format!("{what}/sha256/{digest}"),
            ContentName::GitSha1(digest) => format!("{what}/git-sha1/{digest}"),
        })
    }

    /// Asks for a part of `content`, as far as the download limit allows it where it is about this.
    async fn get(
        &self,
        content: &ContentName,
        range: ByteRange,
        size: Option<u64>,
    ) -> Result<(Allowed, Answer), SourceError> {
        let is_counted = self.is_metered || self.brought().contains(content);
        let allowed = if is_counted { self.network.allowed(range, size, &self.what())? } else { Allowed::free(range) };
        let headers = range_header(allowed.range).map(|range| (RANGE, range)).into_iter().collect();
        Ok((allowed, self.ask(Method::GET, &self.blob(content)?, headers).await?))
    }

    fn brought(&self) -> MutexGuard<'_, HashSet<ContentName>> {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the peer has brought `content` to itself, however long that takes.
    async fn bring(&self, content: &ContentName) -> Result<(), SourceError> {
        let address = self.named("bring", content)?;
        let mut asked_at = Instant::now();
        loop {
            let response = self.ask(Method::POST, &address, HeaderMap::new()).await?;
            match response.status() {
                StatusCode::OK => return Ok(()),
                StatusCode::ACCEPTED => tracing::info!(%content, "{} is still fetching it for us", self.what()),
                // That it cannot get the content either is final for it, though a gateway's errors pass elsewhere.
                StatusCode::BAD_GATEWAY => return Err(SourceError::NoUpstream { what: self.what() }),
                _ => return Err(self.refusal(&response)),
            }
            // A peer that answers without having waited is not asked more often than this.
            tokio::time::sleep_until(asked_at + BETWEEN_QUESTIONS).await;
            asked_at = Instant::now();
        }
    }

    /// Redirects are answers like others here: a larder never redirects.
    async fn ask(&self, method: Method, url: &Url, mut headers: HeaderMap) -> Result<Answer, SourceError> {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let request = self.network.request(method, url.clone()).headers(headers);
        let request = self.config.token.iter().fold(request, |request, token| request.bearer_auth(token));
        self.network.send(request, Budget::Other, &self.what()).await
    }

    async fn object<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, SourceError> {
        let asked = async {
            let response = self.ask(Method::GET, &self.address(path)?, HeaderMap::new()).await?;
            if response.status() != StatusCode::OK {
                return Err(self.refusal(&response));
            }
            self.text(response).await
        };
        let late = |_| SourceError::Unreachable { what: self.what(), reason: "it takes too long to answer".to_owned() };
        let text = tokio::time::timeout(PATIENCE, asked).await.map_err(late)??;
        serde_json::from_slice(&text).map_err(|error| self.nonsense(&error.to_string()))
    }

    async fn text(&self, mut response: Answer) -> Result<Vec<u8>, SourceError> {
        let mut text = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| unreachable(&error, &self.what()))? {
            if text.len() + piece.len() > LONGEST_LIST {
                return Err(self.nonsense("its answer does not end"));
            }
            text.extend_from_slice(&piece);
        }
        Ok(text)
    }

    fn refusal(&self, response: &Response) -> SourceError {
        match (response.status(), &self.config.token) {
            (StatusCode::UNAUTHORIZED, None) => SourceError::TokenMissing { what: self.what() },
            (StatusCode::UNAUTHORIZED, Some(_)) => SourceError::TokenRefused { what: self.what() },
            (status, _) => refusal(status, response.headers(), &self.what()),
        }
    }
}

/// Names as a peer lists them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Names {
    sha256: Vec<Sha256>,
    git_sha1: Vec<GitSha1>,
}

impl Names {
    fn into_set(self) -> HashSet<ContentName> {
        let (large, small) = (self.sha256.into_iter(), self.git_sha1.into_iter());
        large.map(ContentName::Sha256).chain(small.map(ContentName::GitSha1)).collect()
    }
}

/// Whether the peer says that it does not have the content yet, but would bring it.
fn can_be_brought(response: &Response) -> bool {
    let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
    response.status() == StatusCode::NOT_FOUND && code == Some("CanBeBrought")
}
