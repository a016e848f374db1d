//! What other tools need to check or fetch the lab's files by themselves: paths, lengths, digests, addresses.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use url::Url;

use crate::artifact::{Artifact, File, Found, Reference};
use crate::digest::{ContentHasher, Md5, Sha256};
use crate::facts::{Facts, FactsError, Known};
use crate::fsio;
use crate::observe::Sighting;
use crate::sources::file_address;
use crate::stores::{FileState, Stores};

mod pieces;

pub use pieces::{PIECE, Pieces, PiecesError, read_pieces};

/// One file that other tools are told of.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The artifact that needs it; the first, where several do.
    pub artifact: String,
    /// Its store.
    pub store: String,
    /// The name under which programs read it.
    pub path: PathBuf,
    /// The same below the store's root.
    pub within: PathBuf,
    /// Its length in bytes, where known.
    pub size: Option<u64>,
    /// Its content.
    pub sha256: Sha256,
    /// Its content, where a consumer compares that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub md5: Option<Md5>,
    /// Where it can be fetched from, the preferred place first.
    pub addresses: Vec<Url>,
    /// Digests of its parts, where they were asked for.
    #[serde(skip)]
    pub pieces: Option<Pieces>,
}

/// A file that nothing can be said of, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The artifact.
    pub artifact: String,
    /// The file.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// Where files can be fetched from.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The hub that `hf:` means.
    pub hub: &'a Url,
    /// Machines that run `larder serve`: they are named before upstream.
    pub mirrors: &'a [Url],
}

/// Every file of `sightings` once, in their order, and what had to be left out.
///
/// Digests come from the lock, or else from the last time the very file that is here was read.
pub fn entries(
    sightings: &[Sighting<'_>],
    (stores, facts): (&Stores, &Facts),
    places: Places<'_>,
) -> Result<(Vec<Entry>, Vec<LeftOut>), FactsError> {
    let mut gathering = Gathering { places, seen: HashMap::new(), entries: Vec::new(), left_out: Vec::new() };
    let mut known: HashMap<&str, Known> = HashMap::new();
    for sighting in sightings {
        let Some(open) = stores.get(&sighting.artifact.store) else { continue };
        let root = open.store.root();
        if !known.contains_key(sighting.artifact.store.as_str()) {
            known.insert(&sighting.artifact.store, facts.below(root)?);
        }
        let known = &known[sighting.artifact.store.as_str()];
        for (file, state) in sighting.artifact.files.iter().zip(&sighting.observed.files) {
            let path = open.store.visible_path(sighting.artifact, file);
            gathering.add((sighting.artifact, file), path, root, measured(known, state));
        }
        for found in &sighting.matches {
            gathering.add_match(sighting.artifact, found, root, known);
        }
    }
    Ok((gathering.entries, gathering.left_out))
}

/// Reads the files that are here and that no digest is known of, and remembers what was measured; says how many.
///
/// One that cannot be read stays unknown.
pub fn measure_unknown(
    sightings: &[Sighting<'_>],
    stores: &Stores,
    facts: &Facts,
    at: i64,
) -> Result<usize, FactsError> {
    let mut measured = 0;
    for sighting in sightings {
        let Some(open) = stores.get(&sighting.artifact.store) else { continue };
        let known = facts.below(open.store.root())?;
        let listed =
            sighting.artifact.files.iter().zip(&sighting.observed.files).filter_map(|(file, state)| match state {
                FileState::Present(found) | FileState::Staged(found) if file.digests.sha256.is_none() => Some(found),
                _ => None,
            });
        for found in listed.chain(&sighting.matches).filter(|found| known.of(found).is_none()) {
            if let Ok((digests, _)) = fsio::hash_file(&found.path, ContentHasher::new()) {
                facts.record(found, &digests, at)?;
                measured += 1;
            }
        }
    }
    Ok(measured)
}

/// Reads every file that is here and gives its entry the digests of its pieces, several files at a time.
///
/// A file whose content is not the recorded one is left out: nobody must copy it.
pub fn add_pieces(entries: &mut Vec<Entry>, left_out: &mut Vec<LeftOut>) {
    let next = AtomicUsize::new(0);
    let read = Mutex::new(Vec::new());
    let work = || {
        while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
            let pieces = read_pieces(&entry.path, &entry.sha256);
            read.lock().unwrap_or_else(PoisonError::into_inner).push((entry.path.clone(), pieces));
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut read: HashMap<PathBuf, _> = read.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect();
    entries.retain_mut(|entry| match read.remove(&entry.path) {
        Some(Ok(pieces)) => {
            entry.size = Some(pieces.size);
            entry.pieces = Some(pieces);
            true
        }
        Some(Err(error)) => {
            let (artifact, path) = (entry.artifact.clone(), entry.within.display().to_string());
            left_out.push(LeftOut { artifact, path, reason: error.to_string() });
            false
        }
        None => false,
    });
}

fn measured(known: &Known, state: &FileState) -> Option<Sha256> {
    match state {
        FileState::Present(found) | FileState::Staged(found) => known.of(found)?.digests.sha256,
        _ => None,
    }
}

struct Gathering<'a> {
    places: Places<'a>,
    seen: HashMap<PathBuf, Sha256>,
    entries: Vec<Entry>,
    left_out: Vec<LeftOut>,
}

impl Gathering<'_> {
    fn add(&mut self, (artifact, file): (&Artifact, &File), path: PathBuf, root: &Path, measured: Option<Sha256>) {
        let Some(sha256) = file.digests.sha256.or(measured) else {
            self.leave_out(artifact, file.path.to_string());
            return;
        };
        if self.seen.insert(path.clone(), sha256).is_some() {
            return;
        }
        let addresses = self.addresses(artifact, file, &sha256);
        self.entries.push(Entry {
            artifact: artifact.name.clone(),
            store: artifact.store.clone(),
            within: path.strip_prefix(root).unwrap_or(&path).to_owned(),
            path,
            size: file.size,
            sha256,
            md5: file.digests.md5,
            addresses,
            pieces: None,
        });
    }

    /// A file that only a pattern knows: what was measured of it is all there is.
    fn add_match(&mut self, artifact: &Artifact, found: &Found, root: &Path, known: &Known) {
        let within = found.path.strip_prefix(root).unwrap_or(&found.path).to_owned();
        let Some(sha256) = known.of(found).and_then(|measured| measured.digests.sha256) else {
            self.leave_out(artifact, within.display().to_string());
            return;
        };
        if self.seen.insert(found.path.clone(), sha256).is_none() {
            self.entries.push(Entry {
                artifact: artifact.name.clone(),
                store: artifact.store.clone(),
                path: found.path.clone(),
                within,
                size: Some(found.size),
                sha256,
                md5: None,
                addresses: self.places.mirrors.iter().filter_map(|mirror| by_digest(mirror, &sha256)).collect(),
                pieces: None,
            });
        }
    }

    fn leave_out(&mut self, artifact: &Artifact, path: String) {
        let reason = "no sha256 of it is known: read it with --read, where it is here".to_owned();
        self.left_out.push(LeftOut { artifact: artifact.name.clone(), path, reason });
    }

    fn addresses(&self, artifact: &Artifact, file: &File, sha256: &Sha256) -> Vec<Url> {
        let mirrors = self.places.mirrors.iter().filter_map(|mirror| by_digest(mirror, sha256));
        let upstream = artifact.remotes(file).into_iter().filter_map(|remote| self.address(&remote.reference, sha256));
        let mut all: Vec<Url> = mirrors.chain(upstream).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|url| seen.insert(url.clone()));
        all
    }

    fn address(&self, reference: &Reference, sha256: &Sha256) -> Option<Url> {
        match reference {
            Reference::Hub { repo, revision, path: Some(path) } => {
                Some(file_address(self.places.hub, repo, revision.as_deref().unwrap_or("main"), path))
            }
            Reference::Ollama(name) => {
                let text = format!("https://{}/v2/{}/{}/blobs/sha256:{sha256}", name.host, name.namespace, name.model);
                Url::parse(&text).ok()
            }
            Reference::Url(url) => Some(url.clone()),
            _ => None,
        }
    }
}

/// Where a machine that runs `larder serve` has the content.
fn by_digest(mirror: &Url, sha256: &Sha256) -> Option<Url> {
    let mut url = mirror.clone();
    url.path_segments_mut().ok()?.pop_if_empty().extend(["blobs", "sha256", &sha256.to_string()]);
    Some(url)
}
