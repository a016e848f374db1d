//! The Hugging Face hub, or a mirror that speaks its API.
//!
//! Two requests list a repository of up to a thousand files, one opens a file. Redirects are followed by
//! hand: the token goes to the hub's own origin and nowhere else.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK, RANGE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use url::Url;

use super::body::{
    empty_body, entity_tag, into_body, is_empty, is_stale_link, link_refused, number, range_header, refusal,
    size_change, unreachable,
};
use super::gate::Budget;
use super::network::{Allowed, Answer, Network};
use super::trail::{Trail, origin};
use super::{Body, ByteRange, Listing, Source, SourceError};
use crate::artifact::{File, HubRepo, Reference, Remote};
use crate::pace::Pacer;
use crate::relpath::RelPath;

#[cfg(feature = "xet")]
mod announced;
mod asked;
mod links;
mod tree;

use asked::Asked;
use links::{Link, Links};
pub use tree::{ParseTreeError, parse_commit, parse_tree};

#[cfg(feature = "xet")]
pub(super) use announced::{Announced, Opened, Pass};

/// One page of a tree is at most a thousand entries; this is far more than they need.
const JSON_LIMIT: usize = 64 << 20;
/// An endless list is a fault, of pages as well as of files.
const MOST_PAGES: usize = 10_000;
const MOST_FILES: usize = 2_000_000;

const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const XET_HASH: HeaderName = HeaderName::from_static("x-xet-hash");

/// The address of one file's content on the hub at `endpoint`.
pub fn file_address(endpoint: &Url, repo: &HubRepo, revision: &str, path: &RelPath) -> Url {
    Asked { repo, revision, path: Some(path) }.resolve(endpoint)
}

/// Which hub is asked, and as whom.
#[derive(Clone)]
pub struct HubConfig {
    /// The hub's address, such as `https://huggingface.co`; a path in it is kept.
    pub endpoint: Url,
    /// Sent to the endpoint's origin only. Never printed.
    pub token: Option<String>,
    /// No request is made; every answer is [`SourceError::Offline`].
    pub offline: bool,
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint.as_str())
            .field("token", &self.token.as_ref().map(|_| "(secret)"))
            .field("offline", &self.offline)
            .finish()
    }
}

/// Repositories of a Hugging Face hub.
#[derive(Debug)]
pub struct HubSource {
    endpoint: Url,
    authorization: Option<HeaderValue>,
    offline: bool,
    network: Network,
    links: Links,
}

/// The end of a trail of redirects.
struct Landed {
    response: Answer,
    /// Whether the answer is the hub's own, not a CDN's.
    at_home: bool,
    /// Name and length of the content, as the hub (never the CDN) gave them on the way.
    linked: (Option<String>, Option<u64>),
    /// The content's name in Xet: the redirect that gave it was not followed.
    #[cfg_attr(not(feature = "xet"), expect(dead_code, reason = "nobody asks for it"))]
    xet: Option<String>,
}

impl HubSource {
    /// Asks over `network`.
    ///
    /// Fails where the token cannot be sent, or the endpoint is neither http nor https.
    pub fn new(config: HubConfig, network: impl Into<Network>) -> Result<Self, SourceError> {
        let refused =
            |reason: &str| SourceError::Protocol { what: origin(&config.endpoint), reason: reason.to_owned() };
        if !matches!(config.endpoint.scheme(), "http" | "https") {
            return Err(refused("a hub's address begins with https:// or http://"));
        }
        let token = config.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        let authorization = token
            .map(|token| HeaderValue::from_str(&format!("Bearer {token}")))
            .transpose()
            .map_err(|_| refused("the token contains characters that no token has"))?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        Ok(Self {
            endpoint: config.endpoint,
            authorization,
            offline: config.offline,
            network: network.into(),
            links: Links::default(),
        })
    }

    fn asked<'a>(&self, reference: &'a Reference) -> Result<Asked<'a>, SourceError> {
        let Reference::Hub { repo, revision, path } = reference else {
            return Err(SourceError::NoUpstream { what: reference.to_string() });
        };
        if self.offline {
            return Err(SourceError::Offline { what: reference.to_string() });
        }
        let revision = revision.as_deref().unwrap_or("main");
        if revision.is_empty() || matches!(revision, "." | "..") {
            // Such a segment would be folded away and the address would mean something else.
            return Err(SourceError::NotFound { what: reference.to_string(), whole: true });
        }
        Ok(Asked { repo, revision, path: path.as_ref() })
    }

    /// One request, with the token where it may go.
    async fn send(
        &self,
        request: RequestBuilder,
        at_home: bool,
        budget: Budget,
        what: &str,
    ) -> Result<Answer, SourceError> {
        let request = match &self.authorization {
            Some(authorization) if at_home => request.header(AUTHORIZATION, authorization.clone()),
            _ => request,
        };
        self.network.send(request, if at_home { budget } else { Budget::Other }, what).await
    }

    /// The answer to a question to the API. Redirects lead to renamed repositories, on the hub only.
    async fn api(&self, asked: Asked<'_>, url: Url, form: Option<String>) -> Result<Answer, SourceError> {
        let name = asked.name();
        let mut trail = Trail::from(url, &name);
        loop {
            let method = if form.is_some() { Method::POST } else { Method::GET };
            let mut request = self.network.request(method, trail.here().clone());
            if let Some(form) = &form {
                request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone());
            }
            let response = self.send(request, true, Budget::Api, &name).await?;
            if trail.follow(&response)? {
                if !trail.is_at_home() {
                    return Err(elsewhere(&name, trail.here()));
                }
                continue;
            }
            if response.status() != StatusCode::OK {
                return Err(self.refusal(asked, &response));
            }
            return Ok(response);
        }
    }

    /// The commit that `asked` means now.
    async fn commit(&self, asked: Asked<'_>) -> Result<String, SourceError> {
        if tree::is_commit(asked.revision) {
            return Ok(asked.revision.to_owned());
        }
        let response = self.api(asked, asked.api(&self.endpoint, "revision"), None).await?;
        let json = read(response, &asked.name()).await?;
        tree::parse_commit(&json)
            .ok_or_else(|| protocol(&asked.name(), "its answer about the revision names no commit"))
    }

    /// All files of a commit, page by page.
    async fn tree(&self, asked: Asked<'_>) -> Result<Vec<File>, SourceError> {
        let name = asked.name();
        let mut next = Some(asked.api(&self.endpoint, "tree"));
        next.iter_mut().for_each(|url| url.set_query(Some("recursive=true&expand=false")));
        let mut files: Vec<File> = Vec::new();
        let mut pages = 0;
        while let Some(url) = next {
            let response = self.api(asked, url.clone(), None).await?;
            next = next_page(response.headers(), &url, &name)?;
            let page = parse_tree(&read(response, &name).await?).map_err(|error| unusable(&name, &error))?;
            // Folders count as entries too, but a page of nothing but folders has no thousand of them.
            pages += if page.is_empty() { MOST_PAGES / 10 } else { 1 };
            files.extend(page);
            if pages > MOST_PAGES || files.len() > MOST_FILES {
                return Err(protocol(&name, "its list of files has no end"));
            }
        }
        tree::refuse_twins(&files).map_err(|error| unusable(&name, &error))?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// What the hub knows of one path at a commit.
    async fn path_info(&self, asked: Asked<'_>, path: &RelPath) -> Result<File, SourceError> {
        let name = asked.name();
        let url = asked.api(&self.endpoint, "paths-info");
        let response = self.api(asked, url, Some(path_question(path))).await?;
        let files = parse_tree(&read(response, &name).await?).map_err(|error| unusable(&name, &error))?;
        files.into_iter().find(|file| file.path == *path).ok_or(SourceError::NotFound { what: name, whole: false })
    }

    /// Follows a file's redirects to the answer; metadata (`HEAD`) stops where the hub's own words end.
    ///
    /// With `stop_at_xet`, the way ends where the hub names the content in Xet.
    async fn resolve(
        &self,
        asked: Asked<'_>,
        method: Method,
        range: ByteRange,
        stop_at_xet: bool,
    ) -> Result<Landed, SourceError> {
        let name = asked.name();
        let mut trail = Trail::from(asked.resolve(&self.endpoint), &name);
        let mut linked = (None, None);
        // A commit's file is the same for ever, so the way to it need not be asked for with every range.
        if let Some(link) = self.links.find(trail.here()).filter(|_| method == Method::GET) {
            trail.go(link.to)?;
            linked = link.linked;
        }
        loop {
            let at_home = trail.is_at_home();
            let mut request = self.network.request(method.clone(), trail.here().clone());
            // Compressed, the length would be unknown and ranges would mean something else.
            request = request.header(ACCEPT_ENCODING, "identity");
            if let Some(asked_range) = range_header(range) {
                request = request.header(RANGE, asked_range);
            }
            let response = self.send(request, at_home, Budget::Resolvers, &name).await?;
            if at_home {
                linked.0 = entity_tag(response.headers(), &LINKED_ETAG).or(linked.0);
                linked.1 = number(response.headers(), &LINKED_SIZE).or(linked.1);
            }
            let xet = if stop_at_xet && at_home { xet_hash(&response) } else { None };
            if xet.is_some() || !trail.follow(&response)? || (method == Method::HEAD && !trail.is_at_home()) {
                return Ok(Landed { response, at_home, linked, xet });
            }
        }
    }

    /// What was asked for, where it is one file.
    fn asked_file<'a>(&self, remote: &'a Remote) -> Result<Asked<'a>, SourceError> {
        let asked = self.asked(&remote.reference)?;
        if asked.path.is_none() {
            return Err(SourceError::NoUpstream { what: format!("{} without a file in it", asked.name()) });
        }
        Ok(asked)
    }

    /// The same for content, where a link that ran out on the way is worth one more question.
    async fn resolve_afresh(
        &self,
        asked: Asked<'_>,
        range: ByteRange,
        stop_at_xet: bool,
    ) -> Result<Landed, SourceError> {
        let (place, is_fixed) = (asked.resolve(&self.endpoint), tree::is_commit(asked.revision));
        let landed = self.resolve(asked, Method::GET, range, stop_at_xet).await;
        let is_good = |landed: &Landed| !landed.at_home && landed.response.status().is_success();
        match &landed {
            Ok(landed) if is_fixed && is_good(landed) => {
                self.links.keep(place, Link { to: landed.response.url().clone(), linked: landed.linked.clone() });
            }
            _ => self.links.forget(&place),
        }
        match landed {
            Ok(landed) if !landed.at_home && is_stale_link(&landed.response) => {
                drop(landed);
                self.resolve(asked, Method::GET, range, stop_at_xet).await
            }
            other => other,
        }
    }

    /// The content at the end of a trail.
    fn body_of(
        &self,
        asked: Asked<'_>,
        landed: Landed,
        remote: &Remote,
        allowed: Allowed,
    ) -> Result<Body, SourceError> {
        let Landed { response, at_home, linked: (etag, size), .. } = landed;
        if let Some(changed) = size_change(size, remote.size, &asked.name()) {
            return Err(changed);
        }
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            let answer = response.within(allowed, self.lane());
            let mut body = into_body(answer, &asked.name(), allowed.range, remote.size.or(size))?;
            // A CDN has names of its own for the content, which change from link to link.
            body.etag = etag.or(body.etag.filter(|_| at_home));
            return Ok(body);
        }
        if at_home { Err(self.refusal(asked, &response)) } else { Err(elsewhere_refused(&asked.name(), &response)) }
    }

    /// The rate limit that content of the hub passes under, whoever sends it.
    pub(super) fn lane(&self) -> Option<Arc<Pacer>> {
        self.network.lane(&["hub", self.endpoint.host_str().unwrap_or("")])
    }

    /// What the hub's content is fetched over.
    #[cfg(feature = "xet")]
    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    fn refusal(&self, asked: Asked<'_>, response: &Response) -> SourceError {
        asked.refusal(&self.endpoint, self.authorization.is_some(), (response.status(), response.headers()))
    }
}

#[async_trait]
impl Source for HubSource {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        let asked = self.asked(reference)?;
        let commit = self.commit(asked).await?;
        let at = Asked { revision: &commit, ..asked };
        let files = match asked.path {
            Some(path) => vec![self.path_info(at, path).await?],
            None => self.tree(at).await?,
        };
        Ok(Listing { revision: Some(commit), files, ollama_manifest: None })
    }

    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        let asked = self.asked(&remote.reference)?;
        if asked.path.is_none() {
            return self.api(asked, asked.api(&self.endpoint, "revision"), None).await.map(drop);
        }
        let landed = self.resolve(asked, Method::HEAD, ByteRange::default(), false).await?;
        let status = landed.response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refusal(asked, &landed.response));
        }
        let own_size = if status.is_success() { number(landed.response.headers(), &CONTENT_LENGTH) } else { None };
        let size = landed.linked.1.or(own_size);
        size_change(size, remote.size, &asked.name()).map_or(Ok(()), Err)
    }

    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        let asked = self.asked_file(remote)?;
        if is_empty(range) {
            return Ok(empty_body(range.start, remote.size));
        }
        let allowed = self.network.allowed(range, remote.size, &asked.name())?;
        let landed = self.resolve_afresh(asked, allowed.range, false).await?;
        self.body_of(asked, landed, remote, allowed)
    }
}

fn path_question(path: &RelPath) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("paths", path.as_str()).append_pair("expand", "False").finish()
}

/// The content's name in Xet, beside a redirect to its plain bytes. Nonsense counts as none.
fn xet_hash(response: &Response) -> Option<String> {
    let hash = response.headers().get(XET_HASH)?.to_str().ok()?.trim();
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (is_hash && response.status().is_redirection()).then(|| hash.to_owned())
}

/// Whoever keeps the content for the hub refuses it.
fn elsewhere_refused(what: &str, response: &Answer) -> SourceError {
    if is_stale_link(response) {
        return link_refused(what, response);
    }
    refusal(response.status(), response.headers(), what)
}

fn protocol(what: &str, reason: &str) -> SourceError {
    SourceError::Protocol { what: what.to_owned(), reason: reason.to_owned() }
}

fn elsewhere(what: &str, url: &Url) -> SourceError {
    protocol(what, &format!("its API leads to another server, {}", origin(url)))
}

/// `SourceError::Protocol` has no source, so the reason is spelled out.
fn unusable(what: &str, error: &ParseTreeError) -> SourceError {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    protocol(what, &shortened(format!("{error}{source}")))
}

/// Names in a list can be as long as the server likes; messages need not be.
fn shortened(text: String) -> String {
    if text.chars().count() <= 400 {
        return text;
    }
    let (start, end): (String, Vec<char>) = (text.chars().take(200).collect(), text.chars().rev().take(100).collect());
    format!("{start} … {}", end.into_iter().rev().collect::<String>())
}

/// The address of the next page, from a `Link` header; absolute or relative, on the same origin.
fn next_page(headers: &HeaderMap, page: &Url, what: &str) -> Result<Option<Url>, SourceError> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    let Some(target) = links.filter_map(next_target).next() else { return Ok(None) };
    let next = page.join(target).map_err(|_| protocol(what, "the link to its next page is no address"))?;
    if next.origin() != page.origin() {
        return Err(elsewhere(what, &next));
    }
    if next == *page {
        return Err(protocol(what, "the link to its next page leads to the same page"));
    }
    Ok(Some(next))
}

fn next_target(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = |parameter: &str| matches!(parameter.trim(), r#"rel="next""# | "rel=next");
    parameters.split(';').any(is_next).then_some(target)
}

/// A whole answer of the API, if it is of a sane length.
async fn read(mut response: Answer, what: &str) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error, what))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > JSON_LIMIT {
            return Err(protocol(what, "its list of files has more than 64 MiB on one page"));
        }
    }
    Ok(bytes)
}
