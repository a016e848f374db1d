//! Puts what this machine has on a drive, so that another machine can take it from there.
//!
//! A drive need not know links, owners or modes: contents lie side by side under the names of their
//! digests, next to a lock that says what they are and a text for people. Every content is proven while it
//! is copied, so the drive never holds under a digest what is not that content.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::artifact::File;
use crate::digest::{ContentHasher, ContentName, Digests};
use crate::fsio::{self, Partial, ProofError, WriteOptions};
use crate::lock::Lock;
use crate::monitor::{Event, Monitor};
use crate::observe::{Proof, Sighting};
use crate::sources::drive_name;
use crate::stores::FileState;

/// Our own folder on the drive: what is being copied lies there until it is whole.
const STAGING: &str = ".larder";

const README: &str = "\
This drive carries AI models, packed by larder.

blobs/          their contents, each under the name of its digest
inventory.lock  which model needs which of them, with sizes and digests

On a machine with larder:   larder copy --from THIS-FOLDER
Without larder:             a file blobs/sha256-X is whole if `sha256sum` of it prints X;
                            inventory.lock, a text file, says what it is called in its model.
";

/// One content to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parcel {
    /// Artifact and path, for people.
    pub item: String,
    /// Its length.
    pub bytes: u64,
    /// Where it lies here.
    pub from: PathBuf,
    /// Where it will lie on the drive, relative to its root.
    pub to: PathBuf,
    #[serde(skip)]
    digests: Digests,
}

/// What goes on a drive.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Load {
    /// Contents to copy, each once.
    pub parcels: Vec<Parcel>,
    /// Contents that the drive has already, with the right length.
    pub there: usize,
    /// Files that cannot be packed, and why.
    pub left: Vec<(String, String)>,
    /// What the drive's lock will list.
    #[serde(skip)]
    lock: Lock,
}

impl Load {
    /// Bytes to copy.
    pub fn bytes(&self) -> u64 {
        self.parcels.iter().map(|parcel| parcel.bytes).sum()
    }
}

/// Decides what to copy of `sightings` to the drive at `root`, of which only names and lengths are looked at.
pub fn load(sightings: &[Sighting<'_>], root: &Path) -> Load {
    let mut load = Load::default();
    let mut seen = HashSet::new();
    for sighting in sightings {
        load.lock.artifacts.push(sighting.artifact.clone());
        for (index, file) in sighting.artifact.files.iter().enumerate() {
            let item = format!("{}/{}", sighting.artifact.name, file.path);
            match source(sighting, index, file) {
                Err(reason) => load.left.push((item, reason.to_owned())),
                Ok((name, _)) if !seen.insert(name) => {}
                Ok((name, from)) => load.add(item, file, (name, from), root),
            }
        }
    }
    load
}

fn source(sighting: &Sighting<'_>, index: usize, file: &File) -> Result<(ContentName, PathBuf), &'static str> {
    let found = match (&sighting.observed.files[index], &sighting.proofs[index]) {
        (_, Proof::Refuted(_)) => return Err("its content is wrong"),
        (FileState::Present(found), _) => found,
        _ => return Err("it is not here"),
    };
    let name =
        file.digests.names().next().ok_or("no digest of it is known, so nobody could tell whether it arrived")?;
    Ok((name, found.path.clone()))
}

impl Load {
    fn add(&mut self, item: String, file: &File, (name, from): (ContentName, PathBuf), root: &Path) {
        let to = Path::new("blobs").join(drive_name(&name));
        let bytes = file.size.or_else(|| fs_err::metadata(&from).ok().map(|found| found.len())).unwrap_or(0);
        if fs_err::metadata(root.join(&to)).is_ok_and(|found| found.len() == bytes) {
            self.there += 1;
            return;
        }
        let digests = match name {
            ContentName::Sha256(digest) => Digests::sha256(digest),
            ContentName::GitSha1(digest) => Digests { git_sha1: Some(digest), ..Digests::default() },
        };
        self.parcels.push(Parcel { item, bytes, from, to, digests });
    }
}

/// Copies one content to the drive at `root`: proven, written to the disk, and only then visible.
pub fn pack(parcel: &Parcel, root: &Path, monitor: &dyn Monitor) -> Result<(), ProofError> {
    let (item, from) = (parcel.item.as_str(), "this machine");
    monitor.event(Event::Started { item, total: Some(parcel.bytes), resumed: 0, from });
    let hasher = || ContentHasher::to_compare(&parcel.digests, Some(parcel.bytes));
    let key = parcel.to.file_name().unwrap_or_default().to_string_lossy();
    let mut partial = Partial::open(&root.join(STAGING), &key, ContentHasher::new(), None)?;
    partial.fill_from(&parcel.from, hasher())?;
    let proven = match partial.prove(Some(parcel.bytes), &parcel.digests) {
        Ok(proven) => proven,
        Err(unproven) => {
            // A copy of wrong content is of no use to anybody.
            let _ = unproven.partial.discard();
            return Err(unproven.error);
        }
    };
    let target = root.join(&parcel.to);
    proven.persist(&target, 0o644, None)?;
    monitor.event(Event::Advanced { item, bytes: parcel.bytes });
    monitor.event(Event::Finished { item });
    Ok(())
}

/// Writes what the drive's contents are, for larders and for people, and makes all of it durable.
///
/// What an earlier load left in the lock stays, unless this one has an artifact of the same name.
pub fn label(load: &Load, root: &Path) -> io::Result<()> {
    let path = root.join("inventory.lock");
    let mut lock = load.lock.clone();
    if let Some(earlier) = Lock::read(&path).map_err(io::Error::other)? {
        let is_new = |name: &str| load.lock.artifacts.iter().all(|artifact| artifact.name != name);
        lock.artifacts.extend(earlier.artifacts.into_iter().filter(|artifact| is_new(&artifact.name)));
    }
    lock.artifacts.sort_by(|a, b| a.name.cmp(&b.name));
    fsio::write_atomic(&path, lock.to_text().as_bytes(), &WriteOptions::default())?;
    fsio::write_atomic(&root.join("README.txt"), README.as_bytes(), &WriteOptions::default())?;
    fsio::sync_dir(&root.join("blobs")).or_else(|error| if fsio::is_absent(&error) { Ok(()) } else { Err(error) })?;
    fsio::sync_dir(root)
}
