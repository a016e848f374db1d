//! From an HTTP answer to a [`Body`]: what the answer claims is compared with what was asked for.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use reqwest::StatusCode;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER,
};
use tokio::time::Instant;

use super::network::Answer;
use super::trail::origin;
use super::{Body, ByteRange, SourceError};

/// What is no longer may be a page of a proxy or a pointer, whatever was locked: its first bytes tell.
const WORTH_A_LOOK: u64 = 256 << 10;
/// More than any disk holds: a length above it is nonsense.
pub(super) const ABSURD_LENGTH: u64 = 1 << 53;
/// Less than this is no transfer: at such a rate a model of 10 GiB takes four months.
const LEAST_BYTES_PER_SECOND: f64 = 1024.0;

/// Makes a [`Body`] of an answer to a request for `asked`, or says what the answer is instead.
///
/// `what` names the file in messages and carries neither query nor token. The stream never yields bytes
/// beyond `asked.end`, and ends with an error where fewer come than were announced or expected. A body
/// that turns out to be a web page or a git-lfs pointer is reported by its first bytes.
pub(super) fn into_body(
    response: Answer,
    what: &str,
    asked: ByteRange,
    expected_size: Option<u64>,
) -> Result<Body, SourceError> {
    let (start, total, end) = match response.status() {
        StatusCode::OK => (0, content_length(response.headers(), what)?, None),
        StatusCode::PARTIAL_CONTENT => partial(response.headers(), what, asked)?,
        StatusCode::RANGE_NOT_SATISFIABLE => return beyond_the_end(response.headers(), what, asked, expected_size),
        status => return Err(refusal(status, response.headers(), what)),
    };
    let surely_the_file = total.is_some() && total == expected_size;
    check_kind(response.headers(), what, surely_the_file)?;
    let changed = size_change(total, expected_size, what);
    if let Some(changed) = changed.filter(|_| !is_worth_a_look(start, total)) {
        return Err(changed);
    }
    let etag = entity_tag(response.headers(), &ETAG);
    let ignores_range = response.status() == StatusCode::OK && range_header(asked).is_some();
    let patience = Patience::new(response.network().timeouts().stall);
    // A server may give less than was asked for, if it says so: what is missing is asked for again.
    let what = what.to_owned();
    let watch = Watch {
        what,
        start,
        total,
        expected_size,
        asked_end: asked.end,
        part_end: end,
        got: 0,
        is_over: false,
        patience,
    };
    Ok(Body { start, total, ignores_range, etag, stream: watch.over(response) })
}

/// Whether only the first bytes tell what this is: too short for most files, and from the beginning.
pub(super) fn is_worth_a_look(start: u64, total: Option<u64>) -> bool {
    start == 0 && total.is_some_and(|total| total <= WORTH_A_LOOK)
}

/// The answer to a request for nothing: no bytes from `start` on.
pub(super) fn empty_body(start: u64, total: Option<u64>) -> Body {
    Body { start, total, ignores_range: false, etag: None, stream: futures_util::stream::empty().boxed() }
}

/// The value of a `Range` header; `None` for a whole file.
pub(super) fn range_header(asked: ByteRange) -> Option<HeaderValue> {
    let text = match asked.end {
        Some(end) => format!("bytes={}-{}", asked.start, end.saturating_sub(1)),
        None if asked.start == 0 => return None,
        None => format!("bytes={}-", asked.start),
    };
    HeaderValue::from_str(&text).ok()
}

/// Whether no byte lies within `asked`.
pub(super) fn is_empty(asked: ByteRange) -> bool {
    asked.end.is_some_and(|end| end <= asked.start)
}

/// What a status other than success means where no more is known about the server.
pub(super) fn refusal(status: StatusCode, headers: &HeaderMap, what: &str) -> SourceError {
    let what = what.to_owned();
    let wait = server_wait(headers);
    match status {
        StatusCode::UNAUTHORIZED => SourceError::Forbidden { what, message: "a login is asked for".to_owned() },
        StatusCode::FORBIDDEN => SourceError::Forbidden { what, message: server_message(headers) },
        StatusCode::NOT_FOUND | StatusCode::GONE => SourceError::NotFound { what, whole: false },
        StatusCode::TOO_MANY_REQUESTS => SourceError::RateLimited { what, wait },
        status => SourceError::Status { what, status: status.as_u16(), wait },
    }
}

/// Whether another server than the one that gave out the link does not accept it, which mostly means that its
/// time is over.
pub(super) fn is_stale_link(response: &Answer) -> bool {
    matches!(response.status().as_u16(), 400 | 401 | 403 | 404 | 410)
}

/// A link that is refused even when it is fresh. Asking again later gives another one, so this is not permanent.
pub(super) fn link_refused(what: &str, response: &Answer) -> SourceError {
    let reason = format!("{} refused the signed link ({})", origin(response.url()), response.status().as_u16());
    SourceError::Unreachable { what: what.to_owned(), reason }
}

/// A request that got no answer, or none that can be used. Names no address: those can carry signatures.
pub(super) fn unreachable(error: &reqwest::Error, what: &str) -> SourceError {
    let what = what.to_owned();
    if let Some(untrusted) = cause::<rustls::Error>(error) {
        return match untrusted {
            rustls::Error::InvalidCertificate(defect) => SourceError::Untrusted { what, reason: distrust(defect) },
            _ => SourceError::Protocol { what, reason: format!("TLS: {}", printable(&untrusted.to_string())) },
        };
    }
    match cause::<hyper::Error>(error) {
        Some(nonsense) if nonsense.is_parse() => {
            SourceError::Protocol { what, reason: printable(&nonsense.to_string()) }
        }
        _ => SourceError::Unreachable { what, reason: reason(error) },
    }
}

/// What is wrong with a certificate.
fn distrust(defect: &rustls::CertificateError) -> String {
    match defect {
        rustls::CertificateError::UnknownIssuer => {
            "nobody whom this machine trusts has signed its certificate".to_owned()
        }
        other => printable(&other.to_string()),
    }
}

/// The cause of one kind among all causes, also within I/O errors, which do not name theirs as a source.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match within {
            Some(within) => Some(within as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// An entity tag without quotes and weakness mark.
pub(super) fn entity_tag(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?.trim();
    let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
    (!text.is_empty()).then(|| text.to_owned())
}

/// A number in a header, where there is one.
pub(super) fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// A server's words, fit for one line of a terminal.
pub(super) fn printable(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    text.trim().trim_end_matches('.').to_owned()
}

/// The length that differs from the expected one, as an error.
pub(super) fn size_change(actual: Option<u64>, expected: Option<u64>, what: &str) -> Option<SourceError> {
    match (actual, expected) {
        (Some(actual), Some(expected)) if actual != expected => {
            Some(SourceError::Changed { what: what.to_owned(), expected, actual })
        }
        _ => None,
    }
}

/// The budget that a `RateLimit` header speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RateLimit {
    /// Requests left.
    pub(super) left: u64,
    /// Until the budget is full again.
    pub(super) renewed_in: Duration,
}

/// Reads `RateLimit: "resolvers";r=0;t=172`.
pub(super) fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    let text = headers.get("ratelimit")?.to_str().ok()?;
    let parameter = |name: &str| {
        text.split(';').filter_map(|part| part.trim().split_once('=')).find(|(key, _)| *key == name)?.1.parse().ok()
    };
    Some(RateLimit { left: parameter("r")?, renewed_in: Duration::from_secs(parameter("t")?) })
}

pub(super) fn server_wait(headers: &HeaderMap) -> Option<Duration> {
    let spent = rate_limit(headers).filter(|limit| limit.left == 0);
    // The window ends within the second that the server counts down to.
    let renewed = spent.map(|limit| limit.renewed_in.saturating_add(Duration::from_secs(1)));
    renewed.or_else(|| retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?.trim()))
}

fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    // A time that has passed already asks for no wait.
    Some(Duration::from_secs(u64::try_from(at.as_second() - jiff::Timestamp::now().as_second()).unwrap_or(0)))
}

fn server_message(headers: &HeaderMap) -> String {
    let message = headers.get("x-error-message").and_then(|value| value.to_str().ok()).map(printable);
    message.filter(|message| !message.is_empty()).unwrap_or_else(|| "the server refuses (403)".to_owned())
}

fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() && error.is_connect() {
        return "no connection within the time for it".to_owned();
    }
    if error.is_timeout() {
        return "no sign of life for too long".to_owned();
    }
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    // Without a cause the text would be the request's own, which names the whole address.
    if error.source().is_some() { printable(&cause.to_string()) } else { "the request failed".to_owned() }
}

fn protocol(what: &str, reason: impl Into<String>) -> SourceError {
    SourceError::Protocol { what: what.to_owned(), reason: reason.into() }
}

fn content_length(headers: &HeaderMap, what: &str) -> Result<Option<u64>, SourceError> {
    match headers.get(CONTENT_LENGTH) {
        None => Ok(None),
        Some(value) => match value.to_str().ok().and_then(|text| text.trim().parse().ok()) {
            Some(length) if length < ABSURD_LENGTH => Ok(Some(length)),
            _ => Err(protocol(what, format!("its Content-Length is {value:?}"))),
        },
    }
}

/// First byte, whole length and end that a 206 speaks of.
fn partial(headers: &HeaderMap, what: &str, asked: ByteRange) -> Result<(u64, Option<u64>, Option<u64>), SourceError> {
    let value = headers.get(CONTENT_RANGE).ok_or_else(|| protocol(what, "a part came without Content-Range"))?;
    let nonsense =
        || protocol(what, format!("its Content-Range is {value:?} where byte {} was asked for", asked.start));
    let (start, last, total) = value.to_str().ok().and_then(parse_content_range).ok_or_else(nonsense)?;
    if start > asked.start || last < start || last >= total.unwrap_or(ABSURD_LENGTH) {
        return Err(nonsense());
    }
    match content_length(headers, what)? {
        Some(length) if length != last - start + 1 => Err(nonsense()),
        _ => Ok((start, total, Some(last + 1))),
    }
}

/// Reads `bytes 5-9/100` and `bytes 5-9/*`: first byte, last byte, whole length.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(digits(total)?) };
    Some((digits(start)?, digits(last)?, total))
}

/// Digits only: `u64::from_str` would let a sign pass.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// 416: nothing is left to send, or the file is another one now, or the request was wrong.
fn beyond_the_end(
    headers: &HeaderMap,
    what: &str,
    asked: ByteRange,
    expected_size: Option<u64>,
) -> Result<Body, SourceError> {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let total = range.and_then(|text| digits(text.strip_prefix("bytes */")?));
    if let Some(changed) = size_change(total, expected_size, what) {
        return Err(changed);
    }
    let end = total.or(expected_size);
    if end == Some(asked.start) {
        Ok(empty_body(asked.start, end))
    } else {
        Err(refusal(StatusCode::RANGE_NOT_SATISFIABLE, headers, what))
    }
}

fn check_kind(headers: &HeaderMap, what: &str, surely_the_file: bool) -> Result<(), SourceError> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("").trim();
    let encoding = text(CONTENT_ENCODING);
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(instead(what, "compressed data"));
    }
    let kind = text(CONTENT_TYPE).split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let page = kind == "text/html" || kind == "application/xhtml+xml";
    // Servers mislabel files; one of exactly the right length is left to its digest.
    if page && !surely_the_file && !may_be_a_page(what) { Err(instead(what, "a web page")) } else { Ok(()) }
}

fn instead(what: &str, instead: &str) -> SourceError {
    SourceError::NotTheFile { what: what.to_owned(), instead: instead.to_owned() }
}

fn may_be_a_page(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".html", ".htm", ".xhtml", ".md"].iter().any(|ending| name.ends_with(ending))
}

/// Tells a slow transfer from one that only pretends. Counts the time that the network takes, nobody else's.
#[derive(Debug)]
struct Patience {
    /// As long as a silent server is waited for, twice.
    window: Duration,
    waited: Duration,
    got: usize,
}

impl Patience {
    fn new(stall: Duration) -> Self {
        Self { window: stall.saturating_mul(2), waited: Duration::ZERO, got: 0 }
    }

    /// Whether too little came within the window that ends now.
    fn ends(&mut self, waited: Duration, got: usize) -> bool {
        self.waited += waited;
        self.got += got;
        if self.waited < self.window {
            return false;
        }
        let least = self.waited.as_secs_f64() * LEAST_BYTES_PER_SECOND;
        let is_over = (self.got as f64) < least;
        (self.waited, self.got) = (Duration::ZERO, 0);
        is_over
    }
}

/// Watches a body as it passes by.
struct Watch {
    what: String,
    start: u64,
    total: Option<u64>,
    expected_size: Option<u64>,
    asked_end: Option<u64>,
    /// Where the part ends that the answer says it is.
    part_end: Option<u64>,
    got: u64,
    /// More comes than the file has: nothing of it is wanted.
    is_over: bool,
    patience: Patience,
}

impl Watch {
    fn over(self, response: Answer) -> BoxStream<'static, Result<Bytes, SourceError>> {
        futures_util::stream::unfold(Some((self, response)), |state| async {
            let (mut watch, mut response) = state?;
            match watch.next(&mut response).await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some((watch, response)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    async fn next(&mut self, response: &mut Answer) -> Result<Option<Bytes>, SourceError> {
        if self.is_over || self.is_satisfied() {
            return if response.is_cut() { Err(response.network().limit_reached(&self.what)) } else { Ok(None) };
        }
        let asked_at = Instant::now();
        let Some(mut bytes) = response.chunk().await.map_err(|error| self.broken(&error))? else {
            return self.ended().map_or(Ok(None), Err);
        };
        let is_trickle = self.patience.ends(asked_at.elapsed(), bytes.len());
        response.pace(bytes.len()).await;
        let granted = response.granted(bytes.len() as u64);
        if granted == 0 && !bytes.is_empty() {
            return Err(response.network().limit_reached(&self.what));
        }
        bytes.truncate(granted as usize);
        let bytes = self.take(bytes)?;
        if is_trickle && !self.is_satisfied() {
            return Err(SourceError::TooSlow { what: self.what.clone() });
        }
        Ok(Some(bytes))
    }

    /// How many bytes are to come, where that is known: up to the end that was asked for.
    fn wanted(&self) -> Option<u64> {
        let size = self.total.or(self.expected_size);
        let end = size.map(|size| size.min(self.asked_end.unwrap_or(size)).min(self.part_end.unwrap_or(size)));
        end.map(|end| end.saturating_sub(self.start))
    }

    /// Nothing beyond the asked end is passed on, so a server that ignores ranges need not finish.
    fn is_satisfied(&self) -> bool {
        self.got > 0 && self.asked_end.is_some_and(|end| self.start + self.got >= end)
    }

    fn take(&mut self, mut bytes: Bytes) -> Result<Bytes, SourceError> {
        if self.got == 0 && self.start == 0 {
            self.check_first(&bytes)?;
        }
        if let Some(end) = self.asked_end {
            let room = end.saturating_sub(self.start + self.got);
            bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        }
        // What follows a whole file is nobody's business; whether the file is right, its digest tells.
        if let Some(room) = self.wanted().map(|wanted| wanted.saturating_sub(self.got)) {
            self.is_over = bytes.len() as u64 > room;
            bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        }
        self.got += bytes.len() as u64;
        Ok(bytes)
    }

    fn check_first(&self, bytes: &[u8]) -> Result<(), SourceError> {
        let surely_the_file = self.total.is_some() && self.total == self.expected_size;
        if surely_the_file {
            return Ok(());
        }
        if self.expected_size.is_some() && bytes.starts_with(b"version https://git-lfs") {
            return Err(instead(&self.what, "a git-lfs pointer"));
        }
        if looks_like_a_page(bytes) && !may_be_a_page(&self.what) {
            return Err(instead(&self.what, "a web page"));
        }
        size_change(self.total, self.expected_size, &self.what).map_or(Ok(()), Err)
    }

    /// The end of the answer: too early, or of another length than expected, or in order.
    fn ended(&self) -> Option<SourceError> {
        if self.got == 0 && self.start == 0 {
            // An empty answer passes no first bytes.
            if let Some(changed) = size_change(self.total, self.expected_size, &self.what) {
                return Some(changed);
            }
        }
        self.wanted().filter(|wanted| self.got < *wanted).map(|expected| self.cut_short(expected))
    }

    fn broken(&self, error: &reqwest::Error) -> SourceError {
        let is_nonsense = cause::<hyper::Error>(error).is_some_and(hyper::Error::is_parse);
        match self.wanted() {
            Some(expected) if !error.is_timeout() && !is_nonsense => self.cut_short(expected),
            _ => unreachable(error, &self.what),
        }
    }

    fn cut_short(&self, expected: u64) -> SourceError {
        SourceError::CutShort { what: self.what.clone(), expected, got: self.got }
    }
}

fn looks_like_a_page(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let begins = |tag: &[u8]| bytes.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    begins(b"<!doctype html") || begins(b"<html")
}
