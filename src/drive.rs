//! Puts what this machine has on a drive, so that another machine can take it from there.
//!
//! A drive need not know links, owners or modes: contents lie side by side under the names of their
//! digests, next to a lock that says what they are and a text for people. Every content is proven while it
//! is copied, so the drive never holds under a digest what is not that content.
//!
//! One larder at a time writes on a drive: [`Drive::hold`].

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::artifact::File;
use crate::digest::{ContentHasher, ContentName, Digests};
use crate::fsio::{self, Copying, FileLock, Pass, ProofError, WriteOptions};
use crate::lock::Lock;
use crate::monitor::{Event, Monitor};
use crate::observe::{Proof, Sighting};
use crate::sources::drive_name;
use crate::stores::FileState;

mod papers;
mod stamps;

pub use papers::Papers;
use stamps::Stamps;

/// Our own folder on the drive: what is being copied lies there until it is whole.
const STAGING: &str = ".larder";
/// How long another larder may write on the drive.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// One content to copy, or to read where it lies on the drive already.
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
    /// Contents that the drive has already, proven when they were written or read there, and not changed since.
    pub there: usize,
    /// Contents of the right length on the drive that nobody has proven there: to be read.
    pub unread: Vec<Parcel>,
    /// What was read on the drive and is wrong there; it is among the parcels.
    pub wrong: Vec<String>,
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

    /// Bytes to read on the drive.
    pub fn unread_bytes(&self) -> u64 {
        self.unread.iter().map(|parcel| parcel.bytes).sum()
    }
}

/// Decides what to copy of `sightings` to the drive at `root`, of which only names, lengths and times are looked at.
pub fn load(sightings: &[Sighting<'_>], root: &Path) -> Load {
    let mut load = Load::default();
    let mut seen = HashSet::new();
    let place = Place { root, stamps: Stamps::read(root), longest: fsio::longest_file(root) };
    for sighting in sightings {
        load.lock.artifacts.push(sighting.artifact.clone());
        for (index, file) in sighting.artifact.files.iter().enumerate() {
            let item = format!("{}/{}", sighting.artifact.name, file.path);
            match source(sighting, index, file) {
                Err(reason) => load.left.push((item, reason.to_owned())),
                Ok((name, _)) if !seen.insert(name) => {}
                Ok((name, from)) => load.add(parcel(item, file, (name, from)), &place),
            }
        }
    }
    load
}

fn source(sighting: &Sighting<'_>, index: usize, file: &File) -> Result<(ContentName, PathBuf), &'static str> {
    let found = match (&sighting.observed.files[index], &sighting.proofs[index]) {
        (_, Proof::Refuted(_)) => return Err("its content is wrong"),
        (FileState::Present(found), _) => found,
        (FileState::Held, _) => return Err("only the store's server can read it"),
        _ => return Err("it is not here"),
    };
    let name =
        file.digests.names().next().ok_or("no digest of it is known, so nobody could tell whether it arrived")?;
    Ok((name, found.path.clone()))
}

fn parcel(item: String, file: &File, (name, from): (ContentName, PathBuf)) -> Parcel {
    let to = Path::new("blobs").join(drive_name(&name));
    let bytes = file.size.or_else(|| fs_err::metadata(&from).ok().map(|found| found.len())).unwrap_or(0);
    let digests = match name {
        ContentName::Sha256(digest) => Digests::sha256(digest),
        ContentName::GitSha1(digest) => Digests { git_sha1: Some(digest), ..Digests::default() },
    };
    Parcel { item, bytes, from, to, digests }
}

/// What a drive looks like before anything is put there.
struct Place<'a> {
    root: &'a Path,
    stamps: Stamps,
    longest: Option<u64>,
}

impl Load {
    fn add(&mut self, parcel: Parcel, place: &Place<'_>) {
        let there = fsio::find(&place.root.join(&parcel.to)).ok().flatten();
        match there.filter(|found| found.size == parcel.bytes) {
            Some(found) if place.stamps.vouch_for(&found) => self.there += 1,
            Some(_) => self.unread.push(parcel),
            None if place.longest.is_some_and(|longest| parcel.bytes > longest) => {
                let reason = "this drive is formatted with FAT, which holds no file of 4 GiB or more";
                self.left.push((parcel.item, reason.to_owned()));
            }
            None => self.parcels.push(parcel),
        }
    }
}

/// A drive that nobody else writes on while this lives.
#[derive(Debug)]
pub struct Drive {
    root: PathBuf,
    _lock: FileLock,
}

impl Drive {
    /// Waits until nobody else writes on the drive at `root`; `waiting` is called once if somebody does.
    pub fn hold(root: &Path, waiting: impl FnOnce()) -> io::Result<Self> {
        let lock = FileLock::acquire(&root.join(STAGING).join("lock"), None, PATIENCE, waiting)?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Reads what nobody has proven on the drive: what is wrong there becomes something to copy.
    ///
    /// `pass` is asked before each piece; its error is the only one.
    pub fn read(&self, load: &mut Load, monitor: &dyn Monitor, pass: Pass<'_>) -> io::Result<()> {
        for parcel in std::mem::take(&mut load.unread) {
            let (item, place) = (parcel.item.as_str(), self.root.join(&parcel.to));
            monitor.event(Event::Started { item, total: Some(parcel.bytes), resumed: 0, from: "the drive" });
            if self.is_right(&parcel, &place, pass)? {
                self.stamp(&place)?;
                monitor.event(Event::Finished { item });
                load.there += 1;
            } else {
                let reason = "it is wrong on the drive, and is copied again";
                monitor.event(Event::Restarted { item, reason });
                load.wrong.push(parcel.item.clone());
                load.parcels.push(parcel);
            }
        }
        Ok(())
    }

    /// What cannot be read is as good as wrong.
    fn is_right(&self, parcel: &Parcel, place: &Path, pass: Pass<'_>) -> io::Result<bool> {
        let hasher = ContentHasher::to_compare(&parcel.digests, Some(parcel.bytes));
        let mut stopped = None;
        let read = fsio::hash_file_by(place, hasher, &mut |bytes| {
            pass(bytes).map_err(|error| {
                let kind = error.kind();
                stopped = Some(error);
                kind.into()
            })
        });
        match (stopped, read) {
            (Some(error), _) => Err(error),
            (None, Ok((digests, _))) => Ok(parcel.digests.check(&digests).is_ok()),
            (None, Err(_)) => Ok(false),
        }
    }

    /// Copies one content to the drive, behind what a stopped run left: proven, written to the disk, and only then visible.
    ///
    /// `pass` is asked before each piece.
    pub fn pack(&self, parcel: &Parcel, monitor: &dyn Monitor, pass: Pass<'_>) -> Result<(), ProofError> {
        let (item, from) = (parcel.item.as_str(), "this machine");
        let key = parcel.to.file_name().unwrap_or_default().to_string_lossy();
        let copying = Copying {
            from: &parcel.from,
            staging: &self.root.join(STAGING),
            key: &key,
            owner: None,
            size: Some(parcel.bytes),
            digests: &parcel.digests,
        };
        let resumed = copying.resumed();
        monitor.event(Event::Started { item, total: Some(parcel.bytes), resumed, from });
        let hasher = || ContentHasher::to_compare(&parcel.digests, Some(parcel.bytes));
        let proven = copying.copy(hasher, &mut |bytes| {
            pass(bytes)?;
            if bytes > 0 {
                monitor.event(Event::Advanced { item, bytes });
            }
            Ok(())
        })?;
        let target = proven.persist(&self.root.join(&parcel.to), 0o644, None)?;
        self.stamp(&target)?;
        monitor.event(Event::Finished { item });
        Ok(())
    }

    fn stamp(&self, place: &Path) -> io::Result<()> {
        match fsio::find(place)? {
            Some(found) => Stamps::add(&self.root, &found),
            None => Ok(()),
        }
    }

    /// Writes what the drive's contents are, for larders and for people, and makes all of it durable.
    ///
    /// What an earlier load left in the lock stays, unless this one has an artifact of the same name; a lock that is
    /// somebody's word, among `papers`, stays as that word.
    pub fn label(&self, load: &Load, papers: &Papers) -> io::Result<()> {
        papers.write(&self.root)?;
        if !papers.have_lock() {
            self.write_lock(load)?;
        }
        let blobs = self.root.join("blobs");
        Stamps::read(&self.root).write(&self.root)?;
        fsio::sync_dir(&blobs).or_else(|error| if fsio::is_absent(&error) { Ok(()) } else { Err(error) })?;
        fsio::sync_dir(&self.root)
    }

    fn write_lock(&self, load: &Load) -> io::Result<()> {
        let path = self.root.join(papers::LOCK);
        let mut lock = load.lock.clone();
        if let Some(earlier) = Lock::read(&path).map_err(io::Error::other)? {
            let is_new = |name: &str| load.lock.artifacts.iter().all(|artifact| artifact.name != name);
            lock.artifacts.extend(earlier.artifacts.into_iter().filter(|artifact| is_new(&artifact.name)));
        }
        lock.artifacts.sort_by(|a, b| a.name.cmp(&b.name));
        fsio::write_atomic(&path, lock.to_text().as_bytes(), &WriteOptions::default())
    }
}
