//! Finds what a bucket holds that nobody names any more, and removes it.
//!
//! What is named: every content of the locks that a machine's state names, of all locks that are younger than
//! the grace period, and of irreplaceable artifacts in any lock at all. What is younger than the grace period
//! stays too: somebody may be about to name it. Where a state or a lock cannot be read, nothing is removed,
//! because nobody knows what it names.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use futures_util::StreamExt as _;
use serde::Serialize;

use crate::bucket::{Bucket, BucketError, Key, Object, Shelf};
use crate::digest::Sha256;
use crate::fleet::{FleetError, State};
use crate::lock::Lock;
use crate::manifest::InputError;

/// A state or a lock that is longer is not read: a lock of a million files.
const LONGEST: usize = 512 << 20;
/// Objects that are removed before the machines' states are looked at again.
const BATCH: usize = 100;
/// Requests at the same time.
const AT_ONCE: usize = 8;

/// Why nothing can be removed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The bucket was of no use.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A machine's state cannot be read.
    #[error("The state of {machine} cannot be read, so nobody knows what it needs")]
    State {
        /// The machine.
        machine: String,
        /// Why.
        #[source]
        source: FleetError,
    },
    /// A lock cannot be read.
    #[error("The lock {lock} cannot be read, so nobody knows what it names")]
    Lock {
        /// Its digest.
        lock: Sha256,
        /// Why.
        #[source]
        source: InputError,
    },
    /// A lock is not what its name says.
    #[error("The lock {lock} has other content than its name says")]
    WrongLock {
        /// Its digest.
        lock: Sha256,
    },
    /// A machine's state names a lock that is not there.
    #[error("The lock {lock} of {machine} is not in the bucket, so nobody knows what it names")]
    NoLock {
        /// The machine.
        machine: String,
        /// The lock's digest.
        lock: Sha256,
    },
    /// Nobody has said anything there.
    #[error("No machine has told {what} what it needs, so everything would be removed")]
    Nobody {
        /// The bucket.
        what: String,
    },
}

/// Everything that a bucket holds, as it was at one moment.
#[derive(Debug)]
pub struct Stock {
    objects: Vec<Object>,
    states: Vec<State>,
    locks: HashMap<Sha256, Lock>,
}

/// One object that will be removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Removal {
    /// The object.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// Its length.
    pub size: u64,
    /// When it was written, in seconds since 1970, by the server's clock.
    pub written_at: i64,
}

fn as_text<S: serde::Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}

/// What will be removed, and how much stays for which reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sweep {
    /// What goes.
    pub removals: Vec<Removal>,
    /// Objects that a machine or a young lock names.
    pub named: usize,
    /// Objects that nobody names and that are irreplaceable.
    pub irreplaceable: usize,
    /// Objects that nobody names and that are younger than the grace period.
    pub young: usize,
}

impl Sweep {
    /// Bytes that go.
    pub fn bytes(&self) -> u64 {
        self.removals.iter().map(|removal| removal.size).sum()
    }
}

/// Reads what the bucket holds, with all states and locks.
pub async fn survey(bucket: &Bucket) -> Result<Stock, SweepError> {
    // Contents before names: what is put in between is too young to go.
    let mut objects = bucket.list(Shelf::Blobs).await?;
    objects.extend(bucket.list(Shelf::Manifests).await?);
    let in_locks = bucket.list(Shelf::Locks).await?;
    let states = states(bucket, &bucket.list(Shelf::States).await?).await?;
    let locks = read_locks(bucket, &in_locks).await?;
    for state in &states {
        if let Some(lock) = state.lock.filter(|lock| !locks.contains_key(lock)) {
            return Err(SweepError::NoLock { machine: state.machine.clone(), lock });
        }
    }
    if states.is_empty() {
        return Err(SweepError::Nobody { what: bucket.what() });
    }
    objects.extend(in_locks);
    Ok(Stock { objects, states, locks })
}

/// The states that a listing names.
pub async fn states(bucket: &Bucket, listed: &[Object]) -> Result<Vec<State>, SweepError> {
    let machines = listed.iter().filter_map(|object| match &object.key {
        Key::State(machine) => Some((machine.clone(), object.key.clone())),
        _ => None,
    });
    let read = futures_util::stream::iter(machines).map(|(machine, key)| async move {
        // One that has gone in between has nothing to say.
        let Some(text) = bucket.get(&key, LONGEST).await? else { return Ok(None) };
        State::parse(&text).map(Some).map_err(|source| SweepError::State { machine, source })
    });
    let mut read = read.buffered(AT_ONCE);
    let mut states = Vec::new();
    while let Some(state) = read.next().await {
        states.extend(state?);
    }
    Ok(states)
}

/// The lock with this digest; `None` where there is none.
pub async fn lock(bucket: &Bucket, digest: Sha256) -> Result<Option<Lock>, SweepError> {
    let Some(text) = bucket.get(&Key::Lock(digest), LONGEST).await? else { return Ok(None) };
    if Sha256::of(&text) != digest {
        return Err(SweepError::WrongLock { lock: digest });
    }
    let name = format!("{} of {}", Key::Lock(digest), bucket.what());
    let parsed = Lock::parse(Path::new(&name), &String::from_utf8_lossy(&text));
    parsed.map(Some).map_err(|source| SweepError::Lock { lock: digest, source })
}

async fn read_locks(bucket: &Bucket, listed: &[Object]) -> Result<HashMap<Sha256, Lock>, SweepError> {
    let digests = listed.iter().filter_map(|object| match object.key {
        Key::Lock(digest) => Some(digest),
        _ => None,
    });
    let read = futures_util::stream::iter(digests)
        .map(|digest| async move { lock(bucket, digest).await.map(|lock| lock.map(|lock| (digest, lock))) });
    let mut read = read.buffered(AT_ONCE);
    let mut locks = HashMap::new();
    while let Some(lock) = read.next().await {
        locks.extend(lock?);
    }
    Ok(locks)
}

/// Decides what of `stock` goes: what nobody names and what was written before `before` (seconds since 1970).
pub fn plan(stock: &Stock, before: i64) -> Sweep {
    let young: HashSet<&Key> =
        stock.objects.iter().filter(|object| object.written_at >= before).map(|object| &object.key).collect();
    let mut named: HashSet<Key> = HashSet::new();
    let mut dear: HashSet<Key> = HashSet::new();
    let manifests = stock.states.iter().flat_map(|state| &state.manifests);
    named.extend(manifests.map(|manifest| Key::Manifest(manifest.sha256)));
    for (digest, lock) in &stock.locks {
        let key = Key::Lock(*digest);
        let is_named = stock.states.iter().any(|state| state.lock == Some(*digest));
        if is_named || young.contains(&key) {
            named.insert(key);
            named.extend(lock.artifacts.iter().flat_map(contents));
        } else if lock.artifacts.iter().any(|artifact| artifact.irreplaceable) {
            // It alone says which contents these are.
            dear.insert(key);
        }
        let irreplaceable = lock.artifacts.iter().filter(|artifact| artifact.irreplaceable);
        dear.extend(irreplaceable.flat_map(contents));
    }
    let mut sweep = Sweep::default();
    for object in &stock.objects {
        if named.contains(&object.key) {
            sweep.named += 1;
        } else if dear.contains(&object.key) {
            sweep.irreplaceable += 1;
        } else if young.contains(&object.key) {
            sweep.young += 1;
        } else {
            let Object { key, size, written_at, .. } = object.clone();
            sweep.removals.push(Removal { key, size, written_at });
        }
    }
    // Locks last: as long as a content is there, so is what says what it is.
    sweep.removals.sort_by_key(|removal| (!matches!(removal.key, Key::Blob(_)), removal.key.clone()));
    sweep
}

fn contents(artifact: &crate::artifact::Artifact) -> impl Iterator<Item = Key> {
    artifact.files.iter().flat_map(|file| file.digests.names()).map(Key::Blob)
}

/// What came of one removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// The object.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// Bytes won, or why it stays.
    pub result: Result<u64, String>,
}

/// Removes what `sweep` says, as far as it still holds: before the first removal and after every hundred, the
/// bucket is looked at again if any machine has said something new.
pub async fn carry_out(sweep: &Sweep, bucket: &Bucket, before: i64) -> Result<Vec<Swept>, SweepError> {
    let mut said = bucket.list(Shelf::States).await?;
    let mut allowed = still_unnamed(bucket, before).await?;
    let mut swept = Vec::new();
    for batch in sweep.removals.chunks(BATCH) {
        let now = bucket.list(Shelf::States).await?;
        if now != said {
            said = now;
            allowed = still_unnamed(bucket, before).await?;
        }
        let removals = futures_util::stream::iter(batch).map(|removal| remove(removal, &allowed, bucket));
        swept.extend(removals.buffered(AT_ONCE).collect::<Vec<_>>().await);
    }
    Ok(swept)
}

async fn still_unnamed(bucket: &Bucket, before: i64) -> Result<HashSet<Removal>, SweepError> {
    Ok(plan(&survey(bucket).await?, before).removals.into_iter().collect())
}

async fn remove(removal: &Removal, allowed: &HashSet<Removal>, bucket: &Bucket) -> Swept {
    let result = if allowed.contains(removal) {
        bucket.delete(&removal.key).await.map(|()| removal.size).map_err(|error| error.to_string())
    } else {
        Err("somebody needs it again".to_owned())
    };
    Swept { key: removal.key.clone(), result }
}
