//! The Ollama registry, and every other registry of the Docker v2 protocol that holds Ollama images.
//!
//! The manifest's bytes are kept as they were sent, because their digest is what `ollama list` shows.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, USER_AGENT,
};
use reqwest::{Method, StatusCode};
use url::Url;

use crate::artifact::{MANIFEST_LIMIT, MANIFEST_TYPE, OllamaName, Reference, Remote, blob_name};
use crate::digest::Sha256;
use crate::sources::body::{
    ABSURD_LENGTH, empty_body, into_body, is_empty, is_stale_link, link_refused, range_header, unreachable,
};
use crate::sources::gate::Budget;
use crate::sources::network::{Answer, Network};
use crate::sources::trail::{Trail, origin, plain};
use crate::sources::{Body, ByteRange, Listing, Source, SourceError};

pub use crate::artifact::{ParseManifestError, parse_manifest};

mod refusal;
mod token;

use refusal::{Phase, refusal};
use token::Tokens;

/// The version of Ollama that is presented where none is configured.
pub const DEFAULT_VERSION: &str = "0.33.0";

/// How long the next piece of a manifest may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How registries are asked.
#[derive(Debug, Clone, Default)]
pub struct OllamaConfig {
    /// Base address to ask instead of the host in the name.
    pub registry: Option<Url>,
    /// The version of Ollama to present: registries refuse newer models to older versions.
    pub version: Option<String>,
}

/// Images of Ollama registries.
#[derive(Debug)]
pub struct OllamaSource {
    config: OllamaConfig,
    network: Network,
    tokens: Tokens,
}

impl OllamaSource {
    /// Prepares the source; no request is made.
    pub fn new(config: OllamaConfig, network: impl Into<Network>) -> Self {
        Self { config, network: network.into(), tokens: Tokens::default() }
    }

    fn version(&self) -> &str {
        self.config.version.as_deref().unwrap_or(DEFAULT_VERSION)
    }

    /// What Ollama itself sends; the registry reads the version from it.
    fn user_agent(&self) -> String {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        format!("ollama/{} ({arch} linux) Go/go1.24.1", self.version())
    }

    /// The address of `rest` within the repository of `name`.
    fn address(&self, name: &OllamaName, rest: &str) -> Result<Url, SourceError> {
        let base = match &self.config.registry {
            Some(registry) => registry.as_str().trim_end_matches('/').to_owned(),
            None => format!("{}://{}", if is_loopback(&name.host) { "http" } else { "https" }, name.host),
        };
        let address = format!("{base}/v2/{}/{}/{rest}", name.namespace, name.model);
        Url::parse(&address).map_err(|error| SourceError::Protocol {
            what: format!("ollama:{name}"),
            reason: format!("{address} is no address: {error}"),
        })
    }

    /// Asks once, with a token and along redirects where the registry wants that.
    ///
    /// A link that ran out on the way is worth one more question.
    async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, SourceError> {
        let is_stale = |response: &Answer| !same_origin(response.url(), &ask.address) && is_stale_link(response);
        let response = self.ask_with_token(ask).await?;
        if !is_stale(&response) {
            return self.accepted(ask, response).await;
        }
        drop(response);
        let response = self.ask_with_token(ask).await?;
        if is_stale(&response) { Err(link_refused(&ask.what(), &response)) } else { self.accepted(ask, response).await }
    }

    async fn ask_with_token(&self, ask: &Ask<'_>) -> Result<Answer, SourceError> {
        let response = self.follow(ask, self.tokens.known(&ask.address)).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !same_origin(response.url(), &ask.address) {
            return Ok(response);
        }
        let challenge = response.headers().clone();
        // Its turn is needed for the token, which often comes from the same host.
        drop(response);
        let token = self.tokens.fetch(&self.network, &self.user_agent(), ask, &challenge).await?;
        self.follow(ask, Some(token)).await
    }

    async fn accepted(&self, ask: &Ask<'_>, response: Answer) -> Result<Answer, SourceError> {
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            // At the end of a blob there is nothing left to send, which is no refusal.
            StatusCode::RANGE_NOT_SATISFIABLE if ask.range.is_some() => Ok(response),
            _ => Err(refusal(ask, self.version(), response).await),
        }
    }

    /// Follows redirects by hand: the token stays with its origin, and manifests never come from another.
    async fn follow(&self, ask: &Ask<'_>, token: Option<String>) -> Result<Answer, SourceError> {
        let mut trail = Trail::from(ask.address.clone(), &ask.what());
        loop {
            let token = token.as_ref().filter(|_| trail.is_at_home());
            let response = self.send(ask, trail.here(), token).await?;
            let goes_on = trail.follow(&response)?;
            // A client that follows redirects by itself has left the trail.
            ask.check_origin(trail.here())?;
            ask.check_origin(response.url())?;
            if !goes_on {
                return Ok(response);
            }
        }
    }

    async fn send(&self, ask: &Ask<'_>, address: &Url, token: Option<&String>) -> Result<Answer, SourceError> {
        let mut request = self
            .network
            .request(ask.method.clone(), address.clone())
            .header(USER_AGENT, self.user_agent())
            .header(ACCEPT_ENCODING, "identity");
        if ask.phase == Phase::Manifest {
            request = request.header(ACCEPT, MANIFEST_TYPE);
        }
        if let Some(range) = &ask.range {
            request = request.header(RANGE, range);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        self.network.send(request, Budget::Other, &plain(address)).await
    }

    async fn manifest(&self, name: &OllamaName) -> Result<Vec<u8>, SourceError> {
        let ask = Ask::new(name, Method::GET, Phase::Manifest, self.address(name, &format!("manifests/{}", name.tag))?);
        let response = self.ask(&ask).await?;
        refuse_substitutes(&ask, response.headers())?;
        let promised = response.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        let promised: Option<Sha256> = promised.and_then(|digest| digest.parse().ok());
        let bytes = read_limited(&ask.address, response, MANIFEST_LIMIT).await?;
        if promised.is_some_and(|promised| promised != Sha256::of(&bytes)) {
            return Err(ask.nonsense("the manifest does not have the digest that the registry names for it"));
        }
        Ok(bytes)
    }

    /// The blob that `remote` stands for.
    fn blob<'a>(&self, remote: &'a Remote, method: Method) -> Result<(Ask<'a>, Sha256), SourceError> {
        let name = image(&remote.reference)?;
        let digest = remote.digests.sha256.ok_or_else(|| SourceError::Protocol {
            what: format!("ollama:{name}"),
            reason: "blobs are asked for by sha256, and none is known; run `larder lock`".to_owned(),
        })?;
        let address = self.address(name, &format!("blobs/sha256:{digest}"))?;
        Ok((Ask::new(name, method, Phase::Blob(digest), address), digest))
    }
}

#[async_trait]
impl Source for OllamaSource {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        let name = image(reference)?;
        let bytes = self.manifest(name).await?;
        let files = parse_manifest(&bytes)
            .map_err(|error| SourceError::Protocol { what: format!("ollama:{name}"), reason: error.to_string() })?;
        if let Some(file) = files.iter().find(|file| file.size.is_some_and(|size| size >= ABSURD_LENGTH)) {
            let reason = format!("{} is said to have {} bytes", file.path, file.size.unwrap_or(0));
            return Err(SourceError::Protocol { what: format!("ollama:{name}"), reason });
        }
        let revision = Some(format!("sha256:{}", Sha256::of(&bytes)));
        Ok(Listing { revision, files, ollama_manifest: Some(bytes) })
    }

    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        if remote.digests.sha256.is_none() {
            return self.manifest(image(&remote.reference)?).await.map(|_| ());
        }
        let (ask, _) = self.blob(remote, Method::HEAD)?;
        let response = self.ask(&ask).await?;
        let length = response.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
        match (remote.size, length) {
            (Some(expected), Some(actual)) if expected != actual => {
                Err(SourceError::Changed { what: ask.what(), expected, actual })
            }
            _ => Ok(()),
        }
    }

    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        let (mut ask, digest) = self.blob(remote, Method::GET)?;
        if is_empty(range) {
            return Ok(empty_body(range.start, remote.size));
        }
        let allowed = self.network.allowed(range, remote.size, &ask.what())?;
        let range = allowed.range;
        ask.range = range_header(range);
        let response = self.ask(&ask).await?;
        let lane = self.network.lane(&["ollama", &ask.name.host]);
        let mut body = into_body(response.within(allowed, lane), &ask.what(), range, remote.size)?;
        // The address is the content's digest, whatever ETag the storage behind it sends.
        body.etag = Some(blob_name(&digest));
        Ok(body)
    }
}

/// One request: what for, where, and how.
struct Ask<'a> {
    name: &'a OllamaName,
    method: Method,
    phase: Phase,
    address: Url,
    range: Option<HeaderValue>,
}

impl<'a> Ask<'a> {
    fn new(name: &'a OllamaName, method: Method, phase: Phase, address: Url) -> Self {
        Self { name, method, phase, address, range: None }
    }

    /// How people are told what was asked for.
    fn what(&self) -> String {
        match &self.phase {
            Phase::Manifest => format!("ollama:{}", self.name),
            Phase::Blob(digest) => format!("blob {} of ollama:{}", blob_name(digest), self.name),
        }
    }

    fn nonsense(&self, reason: &str) -> SourceError {
        SourceError::Protocol { what: plain(&self.address), reason: reason.to_owned() }
    }

    /// Content may come from elsewhere, since its digest is known; a manifest may not.
    fn check_origin(&self, address: &Url) -> Result<(), SourceError> {
        if self.phase == Phase::Manifest && !same_origin(address, &self.address) {
            return Err(self.nonsense(&format!("the manifest is sent for to another place, {}", origin(address))));
        }
        Ok(())
    }
}

fn image(reference: &Reference) -> Result<&OllamaName, SourceError> {
    match reference {
        Reference::Ollama(name) => Ok(name),
        other => Err(SourceError::NoUpstream { what: other.to_string() }),
    }
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

fn is_loopback(host: &str) -> bool {
    Url::parse(&format!("http://{host}")).is_ok_and(|url| match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    })
}

/// Waits for a piece of an answer, but not for ever.
async fn in_time<T>(address: &Url, answer: impl Future<Output = Result<T, reqwest::Error>>) -> Result<T, SourceError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| unreachable(&error, &plain(address))),
        Err(_) => {
            let reason = format!("no answer within {} seconds", PATIENCE.as_secs());
            Err(SourceError::Unreachable { what: plain(address), reason })
        }
    }
}

fn refuse_substitutes(ask: &Ask<'_>, headers: &HeaderMap) -> Result<(), SourceError> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let instead = match (text(CONTENT_ENCODING), text(CONTENT_TYPE)) {
        (Some(encoding), _) if encoding != "identity" => "compressed data",
        (_, Some(kind)) if kind.starts_with("text/html") => "a web page",
        _ => return Ok(()),
    };
    Err(SourceError::NotTheFile { what: ask.what(), instead: instead.to_owned() })
}

async fn read_limited(address: &Url, mut response: Answer, limit: u64) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = in_time(address, response.chunk()).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            let reason = format!("it is longer than {limit} bytes");
            return Err(SourceError::Protocol { what: plain(address), reason });
        }
    }
    Ok(bytes)
}
