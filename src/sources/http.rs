//! Single files behind http and https, such as the assets of a release.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use percent_encoding::percent_decode_str;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE,
};
use reqwest::{Method, StatusCode};
use url::Url;

use super::body::{
    ABSURD_LENGTH, empty_body, into_body, is_empty, is_stale_link, link_refused, number, range_header, refusal,
    size_change,
};
use super::gate::Budget;
use super::network::{Answer, Network};
use super::trail::{Trail, plain};
use super::{Body, ByteRange, Listing, Source, SourceError};
use crate::artifact::{File, Reference, Remote};
use crate::relpath::RelPath;

/// How plain addresses are asked.
#[derive(Debug, Clone, Default)]
pub struct HttpConfig {
    /// No request is made; every answer is [`SourceError::Offline`].
    pub offline: bool,
}

/// Files behind http and https. Sends no credentials and keeps no cookies.
#[derive(Debug)]
pub struct HttpSource {
    config: HttpConfig,
    network: Network,
    /// Strong entity tags seen in this run, so that a resumed file is known to be the same one.
    tags: Mutex<HashMap<Url, HeaderValue>>,
}

impl HttpSource {
    /// Asks over `network`.
    pub fn new(config: HttpConfig, network: impl Into<Network>) -> Self {
        Self { config, network: network.into(), tags: Mutex::default() }
    }

    fn url<'a>(&self, reference: &'a Reference) -> Result<&'a Url, SourceError> {
        match reference {
            Reference::Url(url) if self.config.offline => Err(SourceError::Offline { what: plain(url) }),
            Reference::Url(url) => Ok(url),
            other => Err(SourceError::NoUpstream { what: other.to_string() }),
        }
    }

    /// The answer at the end of all redirects, whatever its status, and whether it is the first server's own.
    async fn ask(&self, method: Method, url: &Url, headers: HeaderMap) -> Result<(Answer, bool), SourceError> {
        let what = plain(url);
        let mut trail = Trail::from(url.clone(), &what);
        loop {
            let request = self.network.request(method.clone(), trail.here().clone()).headers(headers.clone());
            let response = self.network.send(request, Budget::Other, &what).await?;
            if !trail.follow(&response)? {
                return Ok((response, trail.is_at_home()));
            }
        }
    }

    /// The same for content, where a link that ran out on the way is worth one more question.
    async fn ask_afresh(&self, url: &Url, headers: HeaderMap) -> Result<Answer, SourceError> {
        let (answer, at_home) = self.ask(Method::GET, url, headers.clone()).await?;
        if at_home || !is_stale_link(&answer) {
            return Ok(answer);
        }
        drop(answer);
        let (answer, at_home) = self.ask(Method::GET, url, headers).await?;
        if !at_home && is_stale_link(&answer) { Err(link_refused(&plain(url), &answer)) } else { Ok(answer) }
    }

    /// The answer to HEAD, or to a request for one byte where HEAD is refused: its head and the file's length.
    async fn look(&self, url: &Url) -> Result<(HeaderMap, Option<u64>), SourceError> {
        let (response, _) = self.ask(Method::HEAD, url, identity()).await?;
        if response.status() == StatusCode::OK {
            let size = number(response.headers(), &CONTENT_LENGTH);
            return Ok((response.headers().clone(), size));
        }
        // Signed links and small servers answer GET only.
        if !matches!(response.status().as_u16(), 400 | 403 | 405 | 501) {
            return Err(refusal(response.status(), response.headers(), &plain(url)));
        }
        drop(response);
        let mut headers = identity();
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let (response, _) = self.ask(Method::GET, url, headers).await?;
        let size = match response.status() {
            StatusCode::OK => number(response.headers(), &CONTENT_LENGTH),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => length_in_range(response.headers()),
            status => return Err(refusal(status, response.headers(), &plain(url))),
        };
        Ok((response.headers().clone(), size))
    }

    fn remember(&self, url: &Url, headers: &HeaderMap) {
        let strong = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""));
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        // A copy: the value shares the memory of everything that was received with it.
        match strong.and_then(|tag| HeaderValue::from_bytes(tag.as_bytes()).ok()) {
            Some(tag) => tags.insert(url.clone(), tag),
            None => tags.remove(url),
        };
    }

    fn tag(&self, url: &Url) -> Option<HeaderValue> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner).get(url).cloned()
    }
}

#[async_trait]
impl Source for HttpSource {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        let url = self.url(reference)?;
        let path = file_name(url)?;
        let (headers, size) = self.look(url).await?;
        refuse_page(&headers, url, &path)?;
        if let Some(size) = size.filter(|size| *size >= ABSURD_LENGTH) {
            return Err(SourceError::Protocol { what: plain(url), reason: format!("it is said to have {size} bytes") });
        }
        self.remember(url, &headers);
        Ok(Listing { revision: None, files: vec![File { size, ..File::named(path) }], ollama_manifest: None })
    }

    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        let url = self.url(&remote.reference)?;
        let (_, size) = self.look(url).await?;
        size_change(size, remote.size, &plain(url)).map_or(Ok(()), Err)
    }

    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        let url = self.url(&remote.reference)?;
        if is_empty(range) {
            return Ok(empty_body(range.start, remote.size));
        }
        let allowed = self.network.allowed(range, remote.size, &plain(url))?;
        let range = allowed.range;
        let mut headers = identity();
        if let Some(asked) = range_header(range) {
            headers.insert(RANGE, asked);
            // A file that changed meanwhile then comes as a whole instead of as a part that does not fit.
            self.tag(url).and_then(|tag| headers.insert(IF_RANGE, tag));
        }
        let response = self.ask_afresh(url, headers).await?;
        if response.status().is_success() {
            self.remember(url, response.headers());
        }
        let lane = self.network.lane(&[url.host_str().unwrap_or("")]);
        into_body(response.within(allowed, lane), &plain(url), range, remote.size)
    }
}

fn identity() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))])
}

fn length_in_range(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}

/// The name that the file gets: the address's last part.
fn file_name(url: &Url) -> Result<RelPath, SourceError> {
    let refused = |reason: String| SourceError::Protocol { what: plain(url), reason };
    let last = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or("");
    let name = percent_decode_str(last).decode_utf8().map_err(|_| refused("its file name is not UTF-8".to_owned()))?;
    if name.is_empty() || name.contains('/') {
        return Err(refused("the address does not end in a file name".to_owned()));
    }
    name.parse().map_err(|error: crate::relpath::UnsafePath| refused(error.to_string()))
}

fn refuse_page(headers: &HeaderMap, url: &Url, path: &RelPath) -> Result<(), SourceError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").to_ascii_lowercase();
    let name = path.as_str().to_ascii_lowercase();
    if kind.starts_with("text/html") && ![".html", ".htm", ".md"].iter().any(|ending| name.ends_with(ending)) {
        return Err(SourceError::NotTheFile { what: plain(url), instead: "a web page".to_owned() });
    }
    Ok(())
}
