//! Object stores of the lab: content by its digest.
//!
//! A bucket is trusted with nothing: what it sends is compared with the lock like everything else.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};

use crate::artifact::{Reference, Remote};
use crate::bucket::{Bucket, BucketError, Key, Place, Shelf};
use crate::digest::ContentName;
use crate::sources::body::{empty_body, into_body, is_empty, number, range_header, refusal, size_change, unreachable};
use crate::sources::gate::Budget;
use crate::sources::network::{Allowed, Answer, Network};
use crate::sources::set::builder;
use crate::sources::{Body, ByteRange, Listing, Source, SourceError};

/// How long a server may take with one part of an upload: the client counts its silence from the beginning.
const PATIENCE: Duration = Duration::from_secs(600);

/// The buckets of this machine.
#[derive(Debug)]
pub struct BucketSource {
    buckets: BTreeMap<String, Bucket>,
    /// Buckets whose content counts against the download limit.
    metered: Vec<String>,
    network: Network,
    offline: bool,
}

impl BucketSource {
    /// Prepares the source; nobody is asked. `metered` are the authorities whose content the download limit is about.
    pub fn new(places: &[Place], metered: &[String], offline: bool, network: &Network) -> Result<Self, SourceError> {
        let mut buckets = BTreeMap::new();
        if !places.is_empty() {
            let client = builder(network.timeouts()).read_timeout(PATIENCE).build();
            let client = client.map_err(|error| unreachable(&error, "The network"))?;
            for place in places {
                buckets.insert(place.name.clone(), Bucket::open(place.clone(), client.clone())?);
            }
        }
        Ok(Self { buckets, metered: metered.to_vec(), network: network.clone(), offline })
    }

    /// The names of the buckets, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.buckets.keys().map(String::as_str)
    }

    /// The bucket called `name`, to be asked for more than content.
    pub fn bucket(&self, name: &str) -> Result<&Bucket, SourceError> {
        let what = || format!("bucket {name}");
        if self.offline {
            return Err(SourceError::Offline { what: what() });
        }
        self.buckets.get(name).ok_or_else(|| SourceError::NoUpstream { what: what() })
    }

    /// All contents that a bucket has, with their lengths.
    pub async fn holdings(&self, name: &str) -> Result<HashMap<ContentName, u64>, SourceError> {
        let objects = self.bucket(name)?.list(Shelf::Blobs).await?;
        let blob = |object: crate::bucket::Object| match object.key {
            Key::Blob(content) => Some((content, object.size)),
            _ => None,
        };
        Ok(objects.into_iter().filter_map(blob).collect())
    }

    fn content(&self, reference: &Reference) -> Result<(&Bucket, Key), SourceError> {
        match reference {
            Reference::Bucket { bucket, content } => Ok((self.bucket(bucket)?, Key::Blob(*content))),
            other => Err(SourceError::NoUpstream { what: other.to_string() }),
        }
    }

    /// Redirects are answers like others here: a signature is for one server.
    async fn ask(&self, bucket: &Bucket, method: Method, key: &Key, more: HeaderMap) -> Result<Answer, SourceError> {
        let (url, mut headers) = bucket.signed(method.clone(), key)?;
        headers.extend(more);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let request = self.network.request(method, url).headers(headers);
        self.network.send(request, Budget::Other, &bucket.what()).await
    }
}

#[async_trait]
impl Source for BucketSource {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        Err(SourceError::NoUpstream { what: reference.to_string() })
    }

    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        let (bucket, key) = self.content(&remote.reference)?;
        let response = self.ask(bucket, Method::HEAD, &key, HeaderMap::new()).await?;
        if response.status() != StatusCode::OK {
            return Err(refused(bucket, &response));
        }
        size_change(number(response.headers(), &CONTENT_LENGTH), remote.size, &bucket.what()).map_or(Ok(()), Err)
    }

    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        let (bucket, key) = self.content(&remote.reference)?;
        if is_empty(range) {
            return Ok(empty_body(range.start, remote.size));
        }
        let what = bucket.what();
        let allowed = match self.metered.contains(&remote.reference.authority()) {
            true => self.network.allowed(range, remote.size, &what)?,
            false => Allowed::free(range),
        };
        let headers = range_header(allowed.range).map(|range| (RANGE, range)).into_iter().collect();
        let response = self.ask(bucket, Method::GET, &key, headers).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                let lane = self.network.lane(&[bucket.name(), bucket.address().host_str().unwrap_or("")]);
                into_body(response.within(allowed, lane), &what, allowed.range, remote.size)
            }
            _ => Err(refused(bucket, &response)),
        }
    }
}

/// An answer without content; its body, which may quote the request, is not read.
fn refused(bucket: &Bucket, response: &Answer) -> SourceError {
    match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let message = "its server does not accept the key, or not for this".to_owned();
            SourceError::Forbidden { what: bucket.what(), message }
        }
        status => refusal(status, response.headers(), &bucket.what()),
    }
}

impl From<BucketError> for SourceError {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::NoCredentials { what } => SourceError::TokenMissing { what },
            BucketError::Refused { what, code } => SourceError::Forbidden { what, message: code },
            BucketError::NoSuchBucket { what } => SourceError::NotFound { what, whole: true },
            BucketError::NotFound { what } => SourceError::NotFound { what, whole: false },
            BucketError::Unreachable { what, reason } => SourceError::Unreachable { what, reason },
            BucketError::NoSuchUpload { what } => {
                SourceError::Protocol { what, reason: "an upload is not known any more".to_owned() }
            }
            BucketError::Answer { what, code } => SourceError::Protocol { what, reason: code },
            BucketError::Nonsense { what, reason } => SourceError::Protocol { what, reason },
        }
    }
}
