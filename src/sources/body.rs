//! From an HTTP answer to a [`Body`].

use futures_util::StreamExt;
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName};
use reqwest::{Response, StatusCode};

use crate::sources::{Body, ByteRange, SourceError};

/// Turns a successful answer into the bytes that were asked for, or says why it is something else.
pub(super) fn into_body(
    response: Response,
    what: &str,
    asked: ByteRange,
    expected_size: Option<u64>,
) -> Result<Body, SourceError> {
    let headers = response.headers();
    refuse_substitutes(headers, what)?;
    let (start, end, total) = extent(&response, what)?;
    if start > asked.start {
        let reason = format!("its bytes begin at {start}, asked were {}", asked.start);
        return Err(SourceError::Protocol { what: what.to_owned(), reason });
    }
    if let (Some(expected), Some(actual)) = (expected_size, total)
        && expected != actual
    {
        return Err(SourceError::Changed { what: what.to_owned(), expected, actual });
    }
    let etag = text(headers, &ETAG).map(|etag| etag.trim_matches('"').to_owned());
    let length = end.map(|end| end - start);
    let what = what.to_owned();
    let stream = futures_util::stream::try_unfold((response.bytes_stream(), 0_u64), move |(mut bytes, got)| {
        let what = what.clone();
        async move {
            match bytes.next().await {
                Some(Ok(chunk)) => {
                    let got = got + chunk.len() as u64;
                    Ok(Some((chunk, (bytes, got))))
                }
                None if length.is_none_or(|length| length == got) => Ok(None),
                ended => Err(cut_short(what, length, got, ended.and_then(Result::err))),
            }
        }
    });
    Ok(Body { start, total, etag, stream: stream.boxed() })
}

fn cut_short(what: String, expected: Option<u64>, got: u64, error: Option<reqwest::Error>) -> SourceError {
    match (expected, error) {
        (Some(expected), _) => SourceError::CutShort { what, expected, got },
        (None, error) => {
            SourceError::Unreachable { what, reason: error.map_or_else(String::new, |error| error.to_string()) }
        }
    }
}

fn refuse_substitutes(headers: &HeaderMap, what: &str) -> Result<(), SourceError> {
    let instead = match (text(headers, &CONTENT_ENCODING), text(headers, &CONTENT_TYPE)) {
        (Some(encoding), _) if encoding != "identity" => "compressed data",
        (_, Some(kind)) if kind.starts_with("text/html") => "a web page",
        _ => return Ok(()),
    };
    Err(SourceError::NotTheFile { what: what.to_owned(), instead: instead.to_owned() })
}

/// First byte, byte after the last, and length of the whole, as far as the answer says.
fn extent(response: &Response, what: &str) -> Result<(u64, Option<u64>, Option<u64>), SourceError> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        let length = response.content_length();
        return Ok((0, length, length));
    }
    let range = text(response.headers(), &CONTENT_RANGE).unwrap_or_default();
    let parsed = (|| {
        let (span, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < u64::MAX).then(|| (first, Some(last + 1), total.parse().ok()))
    })();
    let reason = format!("its Content-Range is {range:?}");
    parsed.ok_or_else(|| SourceError::Protocol { what: what.to_owned(), reason })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
