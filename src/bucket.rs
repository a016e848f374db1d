//! The object store of a lab: what lies where in a bucket, and how its server is asked.
//!
//! ```text
//! blobs/sha256/HEX, blobs/git-sha1/HEX   contents, by each digest that a lock knows them by
//! locks/sha256/HEX                       locks, by the digest of their text
//! manifests/sha256/HEX                   manifests, by the digest of their text
//! machines/NAME/state.json               what one machine has; only that machine writes it
//! ```
//!
//! Everything but the states is named by its content and never changes, and every state has one writer. So
//! no server is asked for more than that a PUT replaces the whole object: conditional writes, which some
//! servers ignore, are not needed. Why: `docs/decisions/0011-bucket-layout.md`.

use std::fmt;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, GetOptions, ObjectStore as _, ObjectStoreExt as _, PutOptions,
    RetryConfig,
};
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Client, Method};
use url::Url;

use crate::digest::Sha256;
use crate::inventory::BucketUrl;
use crate::retry::RetryPolicy;

mod error;
mod key;
mod parts;

pub use error::BucketError;
pub use key::{Key, Shelf};
pub use parts::{LONGEST_IN_ONE, MOST_PARTS, PART, Upload, part_len};

/// What larder says of an object's content, beside it.
const SHA256: &str = "sha256";

/// Who asks. Never logged, never written.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The access key's name.
    pub key: String,
    /// The secret that goes with it.
    pub secret: String,
    /// What must be sent along with keys that end.
    pub session: Option<String>,
}

/// Never prints any of it.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(secret)")
    }
}

/// Where a bucket is, and as whom it is asked.
#[derive(Debug, Clone)]
pub struct Place {
    /// What people call it.
    pub name: String,
    /// The bucket, and the folder in it that is larder's.
    pub url: BucketUrl,
    /// The server; `None` means Amazon's of the region.
    pub endpoint: Option<Url>,
    /// The region that requests are signed for.
    pub region: String,
    /// Whether the bucket's name stands in the address's path, not in its host.
    pub path_style: bool,
    /// Who asks; without, nothing is asked.
    pub credentials: Option<Credentials>,
    /// How passing errors are tried again.
    pub retry: RetryPolicy,
}

/// A bucket that can be asked.
#[derive(Debug, Clone)]
pub struct Bucket {
    place: Place,
    base: Url,
    client: Client,
    store: Option<AmazonS3>,
}

/// What a listing says of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub key: Key,
    /// Its length.
    pub size: u64,
    /// When it was written, by the server's clock, in seconds since 1970.
    pub written_at: i64,
    /// The server's word for this very content, where it has one.
    pub etag: Option<String>,
}

/// What an object says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its length.
    pub size: u64,
    /// The SHA-256 that it had when larder put it there; absent where somebody else did.
    pub sha256: Option<Sha256>,
}

/// Uses the client of all sources: the same proxies, certificates and timeouts.
#[derive(Debug)]
struct SameClient(Client);

impl HttpConnector for SameClient {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

impl Bucket {
    /// Prepares the bucket; nobody is asked. Everything but [`Bucket::signed`] goes by `client`.
    pub fn open(place: Place, client: Client) -> Result<Self, BucketError> {
        let base = base(&place)?;
        let store = place.credentials.as_ref().map(|who| store(&place, &base, who, client.clone())).transpose()?;
        Ok(Self { place, base, client, store })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// How messages name it: never with an address that carries anything secret.
    pub fn what(&self) -> String {
        format!("bucket {} ({})", self.place.name, self.place.url)
    }

    /// The server and the bucket, the same for everybody who means this one.
    pub fn address(&self) -> &Url {
        &self.base
    }

    /// Address and headers of a request for `key` without a body. Headers may be added, those that are there not changed.
    pub fn signed(&self, method: Method, key: &Key) -> Result<(Url, HeaderMap), BucketError> {
        self.signed_with_query(method, key, "")
    }

    fn signed_with_query(&self, method: Method, key: &Key, query: &str) -> Result<(Url, HeaderMap), BucketError> {
        let who = self.place.credentials.as_ref().ok_or_else(|| self.no_credentials())?;
        let url = format!("{}/{}{query}", self.base.as_str().trim_end_matches('/'), self.path(key));
        let nonsense = |reason: String| BucketError::Nonsense { what: self.what(), reason };
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method;
        *request.uri_mut() = url.parse().map_err(|_| nonsense("its address cannot be completed".to_owned()))?;
        let credential = credential(who);
        AwsAuthorizer::new(&credential, "s3", &self.place.region)
            .try_authorize(&mut request, None)
            .map_err(|_| nonsense("its requests cannot be signed".to_owned()))?;
        let mut headers = std::mem::take(request.headers_mut());
        headers
            .iter_mut()
            .filter(|(name, _)| *name == AUTHORIZATION || name.as_str() == "x-amz-security-token")
            .for_each(|(_, value)| value.set_sensitive(true));
        let url = url.parse().map_err(|_| nonsense("its address cannot be completed".to_owned()))?;
        Ok((url, headers))
    }

    /// Everything on one shelf; what larder did not put there is left out.
    pub async fn list(&self, shelf: Shelf) -> Result<Vec<Object>, BucketError> {
        let prefix = self.within(shelf.folder());
        let objects = self.store()?.list(Some(&prefix)).map_err(|error| self.explain(&error));
        let known = |object: object_store::ObjectMeta| {
            let key = self.key_of(object.location.as_ref())?;
            let written_at = object.last_modified.timestamp();
            Some(Object { key, size: object.size, written_at, etag: object.e_tag })
        };
        objects.try_filter_map(|object| std::future::ready(Ok(known(object)))).try_collect().await
    }

    /// What an object says of itself; `None` where there is none.
    pub async fn head(&self, key: &Key) -> Result<Option<Head>, BucketError> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let asked = self.store()?.get_opts(&self.at(key), options).await;
        let Some(found) = self.unless_missing(asked)? else { return Ok(None) };
        let said = found.attributes.get(&Attribute::Metadata(SHA256.into()));
        Ok(Some(Head { size: found.meta.size, sha256: said.and_then(|text| text.as_ref().parse().ok()) }))
    }

    /// The whole of a small object, at most `limit` bytes; `None` where there is none.
    pub async fn get(&self, key: &Key, limit: usize) -> Result<Option<Bytes>, BucketError> {
        let asked = self.store()?.get_opts(&self.at(key), GetOptions::default()).await;
        let Some(found) = self.unless_missing(asked)? else { return Ok(None) };
        let nonsense =
            || BucketError::Nonsense { what: self.what(), reason: format!("{key} is longer than {limit} bytes") };
        if found.meta.size > limit as u64 {
            return Err(nonsense());
        }
        let mut bytes = Vec::new();
        let mut stream = found.into_stream();
        while let Some(piece) = stream.try_next().await.map_err(|error| self.explain(&error))? {
            if bytes.len() + piece.len() > limit {
                return Err(nonsense());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes.into()))
    }

    /// Writes an object in one request, whose server compares what arrived with its digest.
    pub async fn put(&self, key: &Key, content: Bytes, sha256: Sha256) -> Result<(), BucketError> {
        let options = PutOptions { attributes: told(sha256), ..PutOptions::default() };
        let stored = self.store()?.put_opts(&self.at(key), content.into(), options).await;
        stored.map(drop).map_err(|error| self.explain(&error))
    }

    /// Removes an object; one that is gone already is no error.
    pub async fn delete(&self, key: &Key) -> Result<(), BucketError> {
        let gone = self.store()?.delete(&self.at(key)).await;
        self.unless_missing(gone).map(drop)
    }

    fn store(&self) -> Result<&AmazonS3, BucketError> {
        self.store.as_ref().ok_or_else(|| self.no_credentials())
    }

    fn no_credentials(&self) -> BucketError {
        BucketError::NoCredentials { what: self.what() }
    }

    fn explain(&self, error: &object_store::Error) -> BucketError {
        error::explain(error, self.what())
    }

    fn unless_missing<T>(&self, asked: object_store::Result<T>) -> Result<Option<T>, BucketError> {
        match asked.map_err(|error| self.explain(&error)) {
            Ok(found) => Ok(Some(found)),
            Err(BucketError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn path(&self, key: &Key) -> String {
        self.within(&key.to_string()).to_string()
    }

    fn at(&self, key: &Key) -> Path {
        self.within(&key.to_string())
    }

    fn within(&self, name: &str) -> Path {
        Path::from_iter(self.place.url.folder.split('/').chain(name.split('/')).filter(|part| !part.is_empty()))
    }

    fn key_of(&self, path: &str) -> Option<Key> {
        let folder = &self.place.url.folder;
        let inner = if folder.is_empty() { path } else { path.strip_prefix(folder.as_str())?.strip_prefix('/')? };
        inner.parse().ok()
    }
}

/// The address that keys are appended to.
fn base(place: &Place) -> Result<Url, BucketError> {
    let nonsense = || BucketError::Nonsense {
        what: format!("bucket {}", place.name),
        reason: "its endpoint is no address of a server".to_owned(),
    };
    let of_region = || format!("https://s3.{}.amazonaws.com", place.region).parse();
    let mut base = place.endpoint.clone().map_or_else(of_region, Ok).map_err(|_| nonsense())?;
    let host = base.host_str().ok_or_else(nonsense)?.to_owned();
    if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
        return Err(nonsense());
    }
    if place.path_style {
        base.path_segments_mut().map_err(|()| nonsense())?.pop_if_empty().push(&place.url.bucket);
    } else {
        base.set_host(Some(&format!("{}.{host}", place.url.bucket))).map_err(|_| nonsense())?;
    }
    Ok(base)
}

fn store(place: &Place, base: &Url, who: &Credentials, client: Client) -> Result<AmazonS3, BucketError> {
    let address = base.as_str().trim_end_matches('/');
    // The bucket's name is in the address already, whichever way it stands there.
    let builder = AmazonS3Builder::new()
        .with_endpoint(address)
        .with_virtual_hosted_style_request(true)
        .with_bucket_name(&place.url.bucket)
        .with_region(&place.region)
        .with_access_key_id(&who.key)
        .with_secret_access_key(&who.secret)
        .with_disable_bulk_delete(true)
        .with_allow_http(true)
        .with_retry(retries(&place.retry))
        .with_http_connector(SameClient(client));
    let builder = who.session.iter().fold(builder, AmazonS3Builder::with_token);
    builder.build().map_err(|error| error::explain(&error, format!("bucket {}", place.name)))
}

fn retries(policy: &RetryPolicy) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: policy.first, max_backoff: policy.longest, ..BackoffConfig::default() },
        max_retries: policy.retries as usize,
        ..RetryConfig::default()
    }
}

fn credential(who: &Credentials) -> AwsCredential {
    AwsCredential { key_id: who.key.clone(), secret_key: who.secret.clone(), token: who.session.clone() }
}

/// What is written beside a content.
fn told(sha256: Sha256) -> Attributes {
    Attributes::from_iter([(Attribute::Metadata(SHA256.into()), sha256.to_string())])
}
