//! Looks at the stores and joins what is seen there with what was measured before.
//!
//! No file contents are read: this is what `status` and `plan` begin with.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::artifact::{Artifact, File, Found};
use crate::digest::{DigestMismatch, Digests};
use crate::facts::{Damage, Facts, FactsError, InTurn, Known};
use crate::fsio::{self, Space};
use crate::inventory::Layout;
use crate::stores::{Absence, FileState, Observed, OpenStore, Stores, Unpublished, look_for_root};

mod served;

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
    /// It was read and was wrong; it has not changed since.
    Refuted {
        /// Seconds since 1970.
        at: i64,
        /// What differs.
        mismatch: DigestMismatch,
    },
    /// It was read, but no record says what it should be.
    FirstUse {
        /// Seconds since 1970.
        at: i64,
    },
    /// It was never read, or has changed since, or is not here.
    Unknown,
}

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

fn proof(known: &mut InTurn<'_>, wanted: &Digests, found: &Found) -> Proof {
    if let Some(refuted) = known.damage_of(found).and_then(|damage| refuted_by_chunks(wanted, damage)) {
        return refuted;
    }
    let Some(measured) = known.of(found) else { return Proof::Unknown };
    let at = measured.at;
    match wanted.check(&measured.digests) {
        Err(mismatch) => Proof::Refuted { at, mismatch },
        Ok(()) if wanted.same_content(&measured.digests) => Proof::Proven { at },
        Ok(()) if !wanted.proves_content() => Proof::FirstUse { at },
        Ok(()) => Proof::Unknown,
    }
}

/// What was compared chunk by chunk and found wrong, unless something else is wanted by now.
fn refuted_by_chunks(wanted: &Digests, damage: &Damage) -> Option<Proof> {
    wanted.check(&Digests::sha256(damage.content)).ok()?;
    let mismatch = DigestMismatch {
        algorithm: "blake3 of a chunk",
        expected: damage.expected.to_string(),
        actual: damage.actual.to_string(),
    };
    Some(Proof::Refuted { at: damage.at, mismatch })
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
    }
}
