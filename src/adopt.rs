//! Adoption: what lies in the stores of a machine that larder does not keep yet.
//!
//! Hub caches and Ollama's models say themselves what they hold. In plain folders, what does not lie in a
//! declared place is read, and recognised by its digest under whatever name; what nobody knows becomes a
//! proposal: a manifest to be looked through, in which such files count as irreplaceable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use serde::Serialize;

use crate::artifact::{Artifact, Pattern, Reference};
use crate::digest::Sha256;
use crate::facts::Facts;
use crate::inventory::Layout;
use crate::manifest::Manifests;
use crate::monitor::Monitor;
use crate::stores::{Store, Stores};

mod drive;
mod folder;
mod hub;
mod ollama;
mod propose;
mod sections;

pub use drive::survey_drive;
pub use propose::{Proposal, ProposedFile, lock_of, manifest_text};
pub use sections::{SectionSum, sections};

/// What is known before looking: digests and places, of the lock and of every manifest.
#[derive(Debug, Default)]
pub struct Known {
    by_digest: HashMap<Sha256, String>,
    /// The artifacts that have a content.
    owners: HashMap<Sha256, BTreeSet<String>>,
    /// Declared places: store and path, with the length where it is known.
    places: HashMap<(String, String), (String, Option<u64>)>,
    /// References by store, as they are written.
    sources: BTreeMap<(String, String), String>,
    /// Digests of wanted contents, as blobs are called by them.
    contents: BTreeSet<String>,
    /// Commits, branches and tags that artifacts name.
    revisions: BTreeSet<String>,
    /// Files that are known by pattern only, with the store they lie in.
    patterns: Vec<(String, Pattern, String)>,
    names: BTreeSet<String>,
}

impl Known {
    /// Gathers what `artifacts`, of the lock or of pins alone, and `manifests` know.
    pub fn new(artifacts: &[Artifact], manifests: &Manifests) -> Self {
        let mut known = Self::default();
        for artifact in artifacts {
            known.sources.insert((artifact.store.clone(), authority(&artifact.source)), artifact.name.clone());
            known.revisions.extend(artifact.revision.clone());
            let sources = artifact.files.iter().filter_map(|file| file.source.as_deref()).chain([&artifact.source]);
            known.revisions.extend(sources.filter_map(revision_of));
            let pattern = artifact.pattern.clone();
            known.patterns.extend(pattern.map(|pattern| (artifact.store.clone(), pattern, artifact.name.clone())));
            for file in &artifact.files {
                let name = format!("{}/{}", artifact.name, file.path);
                let names =
                    [file.digests.sha256.map(|it| it.to_string()), file.digests.git_sha1.map(|it| it.to_string())];
                known.contents.extend(names.into_iter().flatten());
                if let Some(digest) = file.digests.sha256 {
                    known.by_digest.entry(digest).or_insert_with(|| name.clone());
                    known.owners.entry(digest).or_default().insert(artifact.name.clone());
                }
                known.places.insert((artifact.store.clone(), file.path.to_string()), (name, file.size));
            }
        }
        for declared in &manifests.artifacts {
            known.names.insert(declared.name.clone());
        }
        known
    }

    /// The artifacts that have the content of this digest.
    fn owners(&self, digest: &Sha256) -> impl Iterator<Item = &str> {
        self.owners.get(digest).into_iter().flatten().map(String::as_str)
    }

    /// Whether `item`, an artifact and a path, is of a known artifact.
    fn has_artifact(&self, item: &str) -> bool {
        self.names.iter().any(|name| item.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/')))
    }

    /// By place, the artifact whose pattern a file of `store` matches.
    fn matched(&self, store: &dyn Store) -> HashMap<PathBuf, &str> {
        let of_store = self.patterns.iter().filter(|(name, ..)| name == store.name());
        of_store
            .flat_map(|(_, pattern, artifact)| {
                let found = store.matching(pattern).unwrap_or_default();
                found.into_iter().map(move |found| (found.path, artifact.as_str()))
            })
            .collect()
    }

    /// A name that no artifact has, made of `wanted`; it is taken from then on.
    fn new_name(&mut self, wanted: &str) -> String {
        let allowed =
            |c: char| if c.is_ascii_alphanumeric() || "._:+-".contains(c) { c.to_ascii_lowercase() } else { '-' };
        let slug: String = wanted.chars().map(allowed).collect();
        let slug = slug.trim_matches(['-', '.', ':', '_', '+']).to_owned();
        let slug = if slug.is_empty() { "adopted".to_owned() } else { slug };
        let mut name = slug.clone();
        let mut number = 2;
        while !self.names.insert(name.clone()) {
            name = format!("{slug}-{number}");
            number += 1;
        }
        name
    }
}

/// The revision of a hub repository that a reference names.
fn revision_of(source: &Reference) -> Option<String> {
    match source {
        Reference::Hub { revision, .. } => revision.clone(),
        _ => None,
    }
}

/// What is asked for as one, whatever the revision.
fn authority(source: &Reference) -> String {
    source.authority()
}

/// One thing that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Below the store's root.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// What it is, or what is wrong with it.
    pub what: String,
}

/// A revision of a hub repository that a newer one replaced, and that nobody names any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Superseded {
    /// Its snapshot's folder, below the store's root.
    pub path: String,
    /// The list of what it had, and the snapshot's files, links and empty folders.
    pub files: Vec<Seen>,
    /// Contents that it leads to, and no revision that somebody names.
    pub blobs: Vec<Seen>,
}

/// What was seen in one store.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StoreSurvey {
    /// The store's name.
    pub store: String,
    /// Its root.
    pub root: PathBuf,
    /// What lies where it is declared.
    pub known: Vec<Seen>,
    /// Declared content in another place or under another name.
    pub elsewhere: Vec<Seen>,
    /// What no manifest and no lock knows.
    pub unknown: Vec<Seen>,
    /// Links: into a store that is looked at as well, or out of all of them.
    pub links: Vec<Seen>,
    /// Leftovers of downloads, and what is no content.
    pub leftovers: Vec<Seen>,
    /// Revisions of hub repositories that were replaced by others, and that nobody names any more.
    pub superseded: Vec<Superseded>,
    /// What could not be looked at.
    pub unreadable: Vec<Seen>,
}

/// What was seen in all stores, and what it amounts to.
#[derive(Debug, Default, Serialize)]
pub struct Survey {
    /// One for each store that is there.
    pub stores: Vec<StoreSurvey>,
    /// What the manifests lack.
    pub proposals: Vec<Proposal>,
    /// Bytes that were read to recognise content.
    pub bytes_read: u64,
    /// What that means for the totals of the lab's document, where somebody compared.
    pub sections: Vec<SectionSum>,
}

/// How a survey is made.
pub struct Surveyor<'a> {
    /// Whether files of plain folders that nothing is known of are read.
    pub read: bool,
    /// What was measured is remembered here.
    pub facts: &'a Facts,
    /// Is told what is read.
    pub monitor: &'a dyn Monitor,
    /// The time now, seconds since 1970.
    pub at: i64,
}

/// Looks through the stores that `wanted` names.
///
/// Nothing on disk is changed. What cannot be looked at is part of the survey, never its end.
pub fn survey(stores: &Stores, wanted: &dyn Fn(&str) -> bool, known: &mut Known, how: &Surveyor<'_>) -> Survey {
    let mut survey = Survey::default();
    let there: Vec<_> = stores.iter().filter(|(name, open)| wanted(name) && open.store.root().is_dir()).collect();
    let roots: Vec<PathBuf> =
        stores.iter().filter_map(|(_, open)| fs_err::canonicalize(open.store.root()).ok()).collect();
    for (name, open) in there {
        let mut found =
            StoreSurvey { store: name.to_owned(), root: open.store.root().to_owned(), ..StoreSurvey::default() };
        let store = open.store.as_ref();
        survey.proposals.extend(match open.config.layout {
            Layout::HfCache => hub::look(store, known, &mut found),
            Layout::Ollama => ollama::look(store, known, &mut found),
            Layout::Folder => {
                let (proposals, read) = folder::look(store, (known, &roots), &mut found, how);
                survey.bytes_read += read;
                proposals
            }
        });
        survey.stores.push(found);
    }
    survey
}
