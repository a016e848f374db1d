//! Puts what this machine has into a bucket, so that others can take it from there.
//!
//! Every content is read and compared with its digests on the way; what is not what its name says never becomes
//! visible. What the bucket has is not sent again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::artifact::File;
use crate::bucket::{Bucket, BucketError, Key, LONGEST_IN_ONE, Shelf};
use crate::digest::{ContentHasher, DigestMismatch, Digests, Sha256};
use crate::fleet::State;
use crate::fsio;
use crate::monitor::{Event, Monitor};
use crate::observe::{Proof, Sighting};
use crate::pace::Pacer;
use crate::stores::FileState;

mod large;
mod ledger;

/// Small objects that are asked for or sent at the same time.
const AT_ONCE: usize = 8;

/// One content to put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parcel {
    /// Artifact and path, for people.
    pub item: String,
    /// Its length.
    pub bytes: u64,
    /// Where it lies here.
    pub from: PathBuf,
    /// What it will be there.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// Everything that it must agree with.
    #[serde(skip)]
    digests: Digests,
}

/// What goes into a bucket.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Load {
    /// Contents to put, each once under each of its names.
    pub parcels: Vec<Parcel>,
    /// Contents that the bucket has already.
    #[serde(serialize_with = "as_count")]
    pub there: Vec<Parcel>,
    /// Artifacts that are not put, because every user must accept their licence himself.
    pub withheld: Vec<String>,
    /// Files that cannot be put, and why.
    pub left: Vec<(String, String)>,
}

fn as_text<S: serde::Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}

fn as_count<S: serde::Serializer>(parcels: &[Parcel], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(parcels.len() as u64)
}

impl Load {
    /// Bytes to put.
    pub fn bytes(&self) -> u64 {
        self.parcels.iter().map(|parcel| parcel.bytes).sum()
    }
}

/// Why one content was not put.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It is not the content that its name says.
    #[error("The content of {path} is wrong")]
    Wrong {
        /// Where it lies here.
        path: PathBuf,
        /// What differs.
        #[source]
        source: DigestMismatch,
    },
    /// It has another length than it must have.
    #[error("{path} has {actual} bytes, {expected} are right")]
    Length {
        /// Where it lies here.
        path: PathBuf,
        /// What it must have.
        expected: u64,
        /// What it has.
        actual: u64,
    },
    /// It cannot be read, or what was sent of it cannot be noted.
    #[error("{path} cannot be read or written")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The bucket was of no use.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// What arrived is not what was sent.
    #[error("{what} has another length or no digest of {key} after it was sent")]
    NotThere {
        /// The bucket.
        what: String,
        /// The object.
        key: Key,
    },
    /// The run was stopped.
    #[error("Stopped; what was sent stays, and pushing again goes on from there")]
    Interrupted,
}

/// Everything that putting contents needs.
pub struct Means {
    /// Where to.
    pub bucket: Bucket,
    /// Where unfinished uploads are noted.
    pub ledgers: PathBuf,
    /// Who listens.
    pub monitor: Arc<dyn Monitor>,
    /// How fast.
    pub pacer: Pacer,
    /// Parts of one large content that are on their way at the same time.
    pub connections: usize,
    /// Stops the run; it can be continued later.
    pub stop: CancellationToken,
}

/// Decides what to put of `sightings`, of which only names and lengths are looked at, as if the bucket were empty.
///
/// `withheld` names the artifacts that are not put.
pub fn load(sightings: &[Sighting<'_>], withheld: &[String]) -> Load {
    let mut load = Load { withheld: withheld.to_vec(), ..Load::default() };
    let mut seen = HashSet::new();
    for sighting in sightings.iter().filter(|sighting| !withheld.contains(&sighting.artifact.name)) {
        for (index, file) in sighting.artifact.files.iter().enumerate() {
            let item = format!("{}/{}", sighting.artifact.name, file.path);
            match place(sighting, index, file) {
                Err(reason) => load.left.push((item, reason.to_owned())),
                Ok((from, bytes)) => {
                    let keys = file.digests.names().map(Key::Blob).filter(|key| seen.insert(key.clone()));
                    let parcel =
                        |key| Parcel { item: item.clone(), bytes, from: from.clone(), key, digests: file.digests };
                    load.parcels.extend(keys.map(parcel));
                }
            }
        }
        for found in &sighting.matches {
            let reason = "no digest of it is known: make it an artifact of its own with larder adopt";
            load.left.push((found.path.display().to_string(), reason.to_owned()));
        }
    }
    load
}

fn place(sighting: &Sighting<'_>, index: usize, file: &File) -> Result<(PathBuf, u64), &'static str> {
    let found = match (&sighting.observed.files[index], &sighting.proofs[index]) {
        (_, Proof::Refuted(_)) => return Err("its content is wrong"),
        (FileState::Present(found), _) => found,
        (FileState::Held, _) => return Err("a server keeps it where larder may not read"),
        _ => return Err("it is not here"),
    };
    if !file.digests.proves_content() {
        return Err("no digest of it is known, so nobody could tell whether it arrived");
    }
    Ok((found.path.clone(), found.size))
}

/// Takes out of `load` what the bucket has already: the same length, and the digest beside it.
pub async fn compare(load: &mut Load, bucket: &Bucket) -> Result<(), BucketError> {
    let objects = bucket.list(Shelf::Blobs).await?;
    let sizes: HashMap<&Key, u64> = objects.iter().map(|object| (&object.key, object.size)).collect();
    let all = std::mem::take(&mut load.parcels);
    let (perhaps, missing): (Vec<Parcel>, Vec<Parcel>) =
        all.into_iter().partition(|parcel| sizes.get(&parcel.key) == Some(&parcel.bytes));
    load.parcels = missing;
    let heads = futures_util::stream::iter(perhaps).map(|parcel| async {
        let head = bucket.head(&parcel.key).await;
        head.map(|head| (head.is_some_and(|head| is_content_of(&parcel, head.size, head.sha256)), parcel))
    });
    let mut heads = heads.buffered(AT_ONCE);
    while let Some(answer) = heads.next().await {
        let (is_there, parcel) = answer?;
        if is_there { load.there.push(parcel) } else { load.parcels.push(parcel) }
    }
    Ok(())
}

fn is_content_of(parcel: &Parcel, size: u64, told: Option<Sha256>) -> bool {
    let agrees = |told| parcel.digests.sha256.is_none_or(|known| known == told);
    size == parcel.bytes && told.is_some_and(agrees)
}

/// Of `load`, what was there when it was compared and is not any more: somebody has cleaned up since.
pub async fn vanished(load: &Load, bucket: &Bucket) -> Result<Vec<Parcel>, BucketError> {
    if load.there.is_empty() {
        return Ok(Vec::new());
    }
    let keys: HashSet<Key> = bucket.list(Shelf::Blobs).await?.into_iter().map(|object| object.key).collect();
    Ok(load.there.iter().filter(|parcel| !keys.contains(&parcel.key)).cloned().collect())
}

/// Puts `parcels`: small ones several at a time, large ones one after the other in parts.
///
/// Answers what failed, and why; one that fails does not stop the others.
pub async fn carry_out(parcels: &[Parcel], means: &Means) -> Vec<(String, PushError)> {
    let (small, large): (Vec<&Parcel>, Vec<&Parcel>) =
        parcels.iter().partition(|parcel| parcel.bytes <= LONGEST_IN_ONE);
    let mut failures = Vec::new();
    let mut sent = futures_util::stream::iter(small).map(|parcel| attempt(parcel, means)).buffer_unordered(AT_ONCE);
    while let Some(failure) = sent.next().await {
        failures.extend(failure);
    }
    drop(sent);
    for parcel in large {
        failures.extend(attempt(parcel, means).await);
    }
    failures
}

async fn attempt(parcel: &Parcel, means: &Means) -> Option<(String, PushError)> {
    if means.stop.is_cancelled() {
        return Some((parcel.item.clone(), PushError::Interrupted));
    }
    let item = parcel.item.as_str();
    let put =
        if parcel.bytes <= LONGEST_IN_ONE { put_small(parcel, means).await } else { large::put(parcel, means).await };
    match put {
        Ok(()) => {
            means.monitor.event(Event::Finished { item });
            None
        }
        Err(error) => {
            if !matches!(error, PushError::Interrupted) {
                means.monitor.event(Event::Failed { item, reason: &error.to_string() });
            }
            Some((parcel.item.clone(), error))
        }
    }
}

async fn put_small(parcel: &Parcel, means: &Means) -> Result<(), PushError> {
    let item = parcel.item.as_str();
    means.monitor.event(Event::Started { item, total: Some(parcel.bytes), resumed: 0, from: "this machine" });
    let reading = parcel.clone();
    let (content, sha256) = blocking(&parcel.from, move || read_whole(&reading)).await?;
    means.pacer.pass(content.len()).await;
    means.bucket.put(&parcel.key, content, sha256).await?;
    means.monitor.event(Event::Advanced { item, bytes: parcel.bytes });
    Ok(())
}

/// The content, proven, and its SHA-256.
fn read_whole(parcel: &Parcel) -> Result<(Bytes, Sha256), PushError> {
    use std::io::Read as _;
    let failed = |source| PushError::Io { path: parcel.from.clone(), source };
    let mut content = Vec::new();
    // One byte more than is right, so that a file that has grown is seen to have.
    let file = fs_err::File::open(&parcel.from).map_err(failed)?;
    file.take(parcel.bytes + 1).read_to_end(&mut content).map_err(failed)?;
    let mut hasher = ContentHasher::to_compare(&parcel.digests, Some(parcel.bytes));
    hasher.update(&content);
    let sha256 = proven(parcel, content.len() as u64, hasher)?;
    Ok((content.into(), sha256))
}

/// The SHA-256 of everything that was read, provided that it is the content.
fn proven(parcel: &Parcel, read: u64, hasher: ContentHasher) -> Result<Sha256, PushError> {
    if read != parcel.bytes {
        return Err(PushError::Length { path: parcel.from.clone(), expected: parcel.bytes, actual: read });
    }
    let measured = hasher.finish();
    parcel.digests.check(&measured).map_err(|source| PushError::Wrong { path: parcel.from.clone(), source })?;
    // A content hasher always takes sha256.
    Ok(measured.sha256.unwrap_or_else(|| Sha256::of(&[])))
}

/// Disks can take seconds to wake up; nothing else must wait for them.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, PushError> + Send + 'static,
) -> Result<T, PushError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PushError::Io { path: path.to_owned(), source: std::io::Error::other(error) }),
    }
}

/// Has the bucket forget uploads that were begun here for anything but `parcels`, and will never be gone on with.
///
/// What goes wrong is left for the next time: unfinished uploads are invisible.
pub async fn forget_stale(parcels: &[Parcel], means: &Means) {
    let keys: HashSet<&Key> = parcels.iter().map(|parcel| &parcel.key).collect();
    for (path, upload) in ledger::all(&means.ledgers, means.bucket.address()) {
        if !keys.contains(&upload.key) && means.bucket.abort(&upload).await.is_ok() {
            let _ = fsio::remove_file(&path);
        }
    }
}

/// What this machine says of itself, and what goes with it.
#[derive(Debug)]
pub struct Message {
    /// The state.
    pub state: State,
    /// The text of the lock that the state names.
    pub lock: Option<String>,
    /// The texts of the manifests that the state names.
    pub manifests: Vec<String>,
}

/// Puts what a machine says of itself: what the state names first, the state last.
pub async fn tell(message: &Message, key: &Key, bucket: &Bucket) -> Result<(), BucketError> {
    let named = message.manifests.iter().map(|text| (true, text)).chain(message.lock.iter().map(|text| (false, text)));
    for (is_manifest, text) in named {
        let digest = Sha256::of(text.as_bytes());
        let key = if is_manifest { Key::Manifest(digest) } else { Key::Lock(digest) };
        // Also where it is there already: so it is young, and nobody cleans it up.
        bucket.put(&key, Bytes::from(text.clone()), digest).await?;
    }
    let text = serde_json::to_vec_pretty(&message.state).unwrap_or_default();
    let digest = Sha256::of(&text);
    bucket.put(key, text.into(), digest).await
}
