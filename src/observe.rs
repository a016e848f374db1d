//! Looks at the stores and joins what is seen there with what was measured before.
//!
//! No file contents are read: this is what `status` and `plan` begin with.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::artifact::{Artifact, File, Found};
use crate::digest::{DigestMismatch, Digests};
use crate::facts::{Damage, Facts, FactsError, InTurn, Known, Measurement, Trusted};
use crate::fsio::{self, Space};
use crate::inventory::Layout;
use crate::stores::{Absence, FileState, Observed, OpenStore, Stores, Unpublished, look_for_root};

mod clashes;
mod elsewhere;
mod served;

pub use elsewhere::{Held, elsewhere};
pub use served::{ask, hear, servers_to_ask};

/// Everything that was seen of one artifact.
#[derive(Debug, Clone)]
pub struct Sighting<'a> {
    /// The lock's entry.
    pub artifact: &'a Artifact,
    /// Whether its store can be used; if not, everything below says "nothing seen".
    pub access: Access,
    /// Why nothing may be written there; no matter where nothing needs to be.
    pub write_refusal: Option<Absence>,
    /// The store's layout.
    pub layout: Layout,
    /// The store's view.
    pub observed: Observed,
    /// What is known of each file's content: of the artifact's own in its order, then of those in `matches`.
    pub proofs: Vec<Proof>,
    /// What a stopped run left of each file in our staging folder.
    pub partials: Vec<Unfinished>,
    /// Files that the artifact's pattern matches.
    pub matches: Vec<Found>,
    /// Files whose names the file system does not tell from another's.
    pub clashes: Vec<Clash>,
}

/// A file whose name is, on this file system, that of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// Its place in the artifact's list.
    pub file: usize,
    /// The other one: artifact and path.
    pub with: String,
}

impl Sighting<'_> {
    /// Every file that is here and can be read, with its number: the artifact's own in its order, then `matches`.
    pub fn here(&self) -> impl Iterator<Item = (usize, &Found)> {
        let own = self.observed.files.iter().enumerate().filter_map(|(number, state)| match state {
            FileState::Present(found) | FileState::Staged(found) => Some((number, found)),
            _ => None,
        });
        own.chain(self.matches.iter().enumerate().map(|(number, found)| (self.artifact.files.len() + number, found)))
    }

    /// What the lock wants the file of this number to be: nothing, where only a pattern knows it.
    pub fn wanted(&self, number: usize) -> Digests {
        self.artifact.files.get(number).map(|file| file.digests).unwrap_or_default()
    }

    /// The path of the file of this number within the artifact, or as its pattern writes it.
    pub fn path_of(&self, number: usize) -> String {
        let own = self.artifact.files.get(number).map(|file| file.path.to_string());
        own.unwrap_or_else(|| self.match_path(&self.matches[number - self.artifact.files.len()]))
    }

    /// The path of one of `matches`, as far as its pattern writes it.
    pub fn match_path(&self, found: &Found) -> String {
        let glob = self.artifact.pattern.as_ref().map_or("", |pattern| pattern.glob.as_str());
        let all: Vec<_> = found.path.iter().map(|part| part.to_string_lossy()).collect();
        // `**` stands for any number of folders.
        let parts = if glob.contains("**") { all.len() } else { glob.split('/').count() };
        all[all.len() - parts.min(all.len())..].join("/").replace("//", "/")
    }
}

/// What a stopped run left of one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Bytes that need not come again.
    pub bytes: u64,
    /// Bytes of the disk that it takes: for large files, all that they will need.
    pub allocated: u64,
}

/// Whether a store can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Yes.
    Open,
    /// larder may not look into it, but its running server said what it has.
    Told,
    /// It is not there, or may not be used.
    Absent(Absence),
    /// The inventory declares no store of this name.
    Undeclared,
}

/// What is known of the content of a file that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It was read at that time (seconds since 1970) and was right; it has not changed since.
    Proven {
        /// Seconds since 1970.
        at: i64,
    },
    /// It is wrong: it was read and has not changed since, or its length alone tells.
    Refuted(Box<Refutation>),
    /// It was read, but no record says what it should be.
    FirstUse {
        /// Seconds since 1970.
        at: i64,
        /// Since when this content is trusted, in seconds since 1970.
        since: i64,
    },
    /// It was never read, or has changed since, or is not here.
    Unknown,
}

impl Proof {
    /// When the content was last read, right or wrong, if the file has not changed since.
    pub fn read_at(&self) -> Option<i64> {
        match self {
            Self::Proven { at } | Self::FirstUse { at, .. } => Some(*at),
            Self::Refuted(wrong) => wrong.read_at,
            Self::Unknown => None,
        }
    }
}

/// In which way the content of a file is known to be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refutation {
    /// When it was read, in seconds since 1970; `None` where it need not be read to know.
    pub read_at: Option<i64>,
    /// The kind of fault, as `verify` calls it.
    pub kind: String,
    /// In words.
    pub detail: String,
    /// Which bytes are wrong; empty where that is not known.
    pub ranges: Vec<Range<u64>>,
}

impl Refutation {
    /// Whether it may not be read, though what lies there may be right.
    pub fn is_forbidden(&self) -> bool {
        self.is_unreadable() && self.ranges.is_empty()
    }

    /// Whether it could not be read, all of it or parts.
    pub fn is_unreadable(&self) -> bool {
        self.kind == UNREADABLE
    }
}

/// The kind of fault of what could not be read.
const UNREADABLE: &str = "unreadable";

/// Looks at `artifacts`, several at a time.
///
/// With `to_write`, it is also found out whether the stores may be written, unless a server writes them.
pub fn observe<'a>(
    stores: &Stores,
    artifacts: &[&'a Artifact],
    facts: &Facts,
    to_write: bool,
) -> Result<Vec<Sighting<'a>>, FactsError> {
    let mut views = HashMap::new();
    for (name, open) in stores.iter() {
        if artifacts.iter().any(|artifact| artifact.store == name) {
            views.insert(name, View::of(open, facts, to_write)?);
        }
    }
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(artifacts.len().max(1));
    let look = || {
        let mut seen = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(artifact) = artifacts.get(index) else { return seen };
            let sighting = match views.get(artifact.store.as_str()) {
                Some(view) => view.sight(artifact),
                None => unseen(artifact, Access::Undeclared),
            };
            seen.push((index, sighting));
        }
    };
    let (mut seen, known) = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..workers).map(|_| scope.spawn(look)).collect();
        // What was measured is read while the others look: the one takes about as long as the other.
        let known = known_of(&views, facts);
        let mut seen = look();
        for thread in threads {
            seen.extend(thread.join().unwrap_or_default());
        }
        known.map(|known| (seen, known))
    })?;
    seen.sort_unstable_by_key(|(index, _)| *index);
    let mut sightings: Vec<Sighting<'a>> = seen.into_iter().map(|(_, sighting)| sighting).collect();
    clashes::note(stores, &mut sightings);
    let share = sightings.len().div_ceil(workers).max(1);
    std::thread::scope(|scope| {
        for share in sightings.chunks_mut(share) {
            scope.spawn(|| share.iter_mut().for_each(|sighting| join(sighting, &known)));
        }
    });
    Ok(sightings)
}

/// What was measured in each of the stores.
fn known_of<'a>(views: &HashMap<&'a str, View<'_>>, facts: &Facts) -> Result<HashMap<&'a str, Known>, FactsError> {
    views.iter().map(|(name, view)| Ok((*name, facts.below(view.open.store.root())?))).collect()
}

/// Joins what was seen with what was measured before.
fn join(sighting: &mut Sighting<'_>, known: &HashMap<&str, Known>) {
    let (Access::Open, Some(known)) = (&sighting.access, known.get(sighting.artifact.store.as_str())) else { return };
    let mut known = known.in_turn();
    let mut proofs = std::mem::take(&mut sighting.proofs);
    for (number, found) in sighting.here() {
        proofs[number] = proof(&mut known, &sighting.wanted(number), found);
    }
    sighting.proofs = proofs;
}

fn proof(known: &mut InTurn<'_>, recorded: &Digests, found: &Found) -> Proof {
    let measured = known.of(found);
    if let Some(damage) = known.damage_of(found).filter(|damage| stands(damage, recorded, measured.as_ref())) {
        return refuted(damage);
    }
    let trusted = known.trusted(&found.path).filter(|_| !recorded.proves_content());
    if let Some(trusted) = trusted.filter(|trusted| trusted.size != found.size) {
        return of_another_length(found, trusted);
    }
    let Some(Measurement { digests, at }) = measured else { return Proof::Unknown };
    let wanted = trusted.map_or(*recorded, |trusted| recorded.or(Digests::sha256(trusted.sha256)));
    match wanted.check(&digests) {
        Err(mismatch) => mismatched(at, &mismatch),
        Ok(()) if recorded.same_content(&digests) => Proof::Proven { at },
        Ok(()) if !recorded.proves_content() => Proof::FirstUse { at, since: trusted.map_or(at, |trusted| trusted.at) },
        Ok(()) => Proof::Unknown,
    }
}

/// Whether what was found wrong still is, for who wants what is `recorded`: something else may be wanted by now.
fn stands(damage: &Damage, recorded: &Digests, measured: Option<&Measurement>) -> bool {
    if damage.kind == UNREADABLE {
        return true;
    }
    match damage.content {
        Some(content) => recorded.check(&Digests::sha256(content)).is_ok(),
        None => !measured.is_some_and(|now| now.at >= damage.at && recorded.same_content(&now.digests)),
    }
}

fn refuted(damage: &Damage) -> Proof {
    let Damage { kind, detail, ranges, at, .. } = damage.clone();
    Proof::Refuted(Box::new(Refutation { read_at: Some(at), kind, detail, ranges }))
}

fn mismatched(at: i64, mismatch: &DigestMismatch) -> Proof {
    let (kind, detail) = ("corrupt".to_owned(), format!("its content is wrong: {mismatch}"));
    Proof::Refuted(Box::new(Refutation { read_at: Some(at), kind, detail, ranges: Vec::new() }))
}

/// A file whose digest nobody recorded, and that has not even the length any more that it was trusted with.
fn of_another_length(found: &Found, trusted: &Trusted) -> Proof {
    let (size, before) = (found.size, trusted.size);
    let (kind, what) = if size < before { ("truncated", "it is truncated") } else { ("replaced", "it was replaced") };
    let detail = format!("{what}: it has {size} bytes, and had {before} when it was trusted as first seen");
    let kind = kind.to_owned();
    Proof::Refuted(Box::new(Refutation { read_at: None, kind, detail, ranges: Vec::new() }))
}

/// Free space of the file system of every store that `artifacts` need.
pub fn spaces(stores: &Stores) -> HashMap<String, Space> {
    let spaces =
        stores.iter().filter_map(|(name, open)| Some((name.to_owned(), fsio::free_space(open.store.root()).ok()?)));
    spaces.collect()
}

/// One store as it is at this moment.
struct View<'a> {
    open: &'a OpenStore,
    absence: Option<Absence>,
    write_refusal: Option<Absence>,
    partials: HashMap<String, Unfinished>,
}

impl<'a> View<'a> {
    fn of(open: &'a OpenStore, facts: &Facts, to_write: bool) -> Result<Self, FactsError> {
        let root = open.store.root();
        let mark = facts.store_mark(root)?;
        // Where a server installs, larder writes nothing.
        let to_write = to_write && open.config.api.is_none();
        let closed = open.closed.clone().filter(|_| to_write);
        let look = |to_write| look_for_root(open.store.as_ref(), &open.config, mark.as_deref(), to_write).err();
        let absence = look(false);
        let write_refusal = if to_write && absence.is_none() { look(true).or(closed) } else { None };
        Ok(Self { open, absence, write_refusal, partials: partials_in(&open.store.staging()) })
    }

    fn sight<'b>(&self, artifact: &'b Artifact) -> Sighting<'b> {
        if let Some(absence) = &self.absence {
            return unseen(artifact, Access::Absent(absence.clone()));
        }
        let observed = self.open.store.observe(artifact);
        let partials = artifact.files.iter().map(|file| self.partial(artifact, file)).collect();
        let matches = artifact.pattern.as_ref().map(|pattern| self.open.store.matching(pattern).unwrap_or_default());
        let matches = matches.unwrap_or_default();
        // Nothing is known of the contents until what was measured is joined.
        let proofs = vec![Proof::Unknown; artifact.files.len() + matches.len()];
        Sighting {
            artifact,
            access: Access::Open,
            write_refusal: self.write_refusal.clone(),
            layout: self.open.store.layout(),
            observed,
            proofs,
            partials,
            matches,
            clashes: Vec::new(),
        }
    }

    fn partial(&self, artifact: &Artifact, file: &File) -> Unfinished {
        if self.partials.is_empty() {
            return Unfinished::default();
        }
        self.partials.get(&file.content_key(artifact)).copied().unwrap_or_default()
    }
}

fn partials_in(staging: &Path) -> HashMap<String, Unfinished> {
    let Ok(entries) = fs_err::read_dir(staging) else { return HashMap::new() };
    let (mut partials, mut journaled) = (HashMap::new(), Vec::new());
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some((key, ending)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        match ending {
            "partial" => {
                let unfinished = Unfinished { bytes: metadata.len(), allocated: fsio::allocated(&metadata) };
                partials.insert(key.to_owned(), unfinished);
            }
            "journal" => journaled.push((key.to_owned(), fsio::journaled_bytes(metadata.len()))),
            _ => {}
        }
    }
    // Of what comes in parts, the length says nothing.
    for (key, bytes) in journaled {
        if let Some(partial) = partials.get_mut(&key) {
            partial.bytes = partial.bytes.min(bytes);
        }
    }
    partials
}

fn unseen(artifact: &Artifact, access: Access) -> Sighting<'_> {
    let count = artifact.files.len();
    let what = format!("store `{}`", artifact.store);
    let observed = Observed { files: vec![FileState::Missing; count], published: Err(Unpublished::Missing { what }) };
    Sighting {
        artifact,
        access,
        write_refusal: None,
        layout: Layout::Folder,
        observed,
        proofs: vec![Proof::Unknown; count],
        partials: vec![Unfinished::default(); count],
        matches: Vec::new(),
        clashes: Vec::new(),
    }
}
