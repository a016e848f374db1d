//! `larder list`: what the lab wants, how big it is, and how much of it is pinned by a digest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::artifact::Reference;
use crate::inventory::{Profile, SelectorError};
use crate::lock::Lock;
use crate::manifest::{CloudModel, Condition, Declared, Download, Manifests, Package, Section};

mod details;
mod text;

pub use text::render;

/// What is asked, and what only the caller knows.
pub struct Request<'a> {
    /// Everything that is known.
    pub manifests: &'a Manifests,
    /// What is locked of it, whose figures are preferred.
    pub lock: Option<&'a Lock>,
    /// The sets of artifacts that are summed up.
    pub profiles: &'a BTreeMap<String, Profile>,
    /// Which artifacts are listed.
    pub wanted: &'a dyn Fn(&Declared) -> bool,
    /// The profile of which these are all.
    pub profile: Option<&'a str>,
    /// Where programs on this machine find an artifact; `None` where no store of the inventory takes it.
    pub location: &'a dyn Fn(&Declared) -> Option<PathBuf>,
}

/// Everything that `larder list` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct List {
    /// The artifacts, in the manifests' order.
    pub artifacts: Vec<ListedArtifact>,
    /// Sections that hold any of them, parts before what they are part of.
    pub sections: Vec<ListedSection>,
    /// All artifacts together.
    pub total: Total,
    /// Python packages.
    pub packages: Vec<ListedPackage>,
    /// Models used over the network.
    pub cloud: Vec<ListedCloudModel>,
    /// What must hold on the machine besides.
    pub conditions: Vec<ListedCondition>,
    /// The inventory's sets of artifacts, with what each one sums up to.
    pub profiles: Vec<ListedProfile>,
    /// What the manifests know besides; absent where a profile is not listed as a whole.
    pub outside: Option<Total>,
}

/// A set of artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedProfile {
    /// Its name in the inventory.
    pub name: String,
    /// What it is for.
    pub title: Option<String>,
    /// Whether this is what is listed, as a whole.
    pub listed: bool,
    /// All its artifacts.
    pub total: Total,
}

/// One artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedArtifact {
    /// The lab's name for it.
    pub name: String,
    /// The section it is counted in.
    pub section: Option<String>,
    /// What people call it.
    pub title: Option<String>,
    /// What the platform uses it for.
    pub purpose: Option<String>,
    /// What an admin should know.
    pub note: Option<String>,
    /// Words to select by.
    pub tags: Vec<String>,
    /// What is downloaded, or why nothing is.
    pub kind: Kind,
    /// How many files are known, by name or by number.
    pub files: usize,
    /// Whether these are all.
    pub files_complete: bool,
    /// How many files carry a digest that proves their content.
    pub pinned: usize,
    /// Whether a pinned Ollama manifest proves every layer, also those that are not listed.
    pub manifest_pinned: bool,
    /// How big it is.
    pub size: Size,
    /// The size as the lab's document prints it.
    pub documented: Option<String>,
    /// Licence.
    pub license: Option<String>,
    /// Whether an accepted licence and a token are needed.
    pub gated: bool,
    /// The store it belongs in.
    pub store: String,
    /// Folder within the store.
    pub folder: Option<String>,
    /// Where programs on this machine find it, whether it is here or not.
    pub path: Option<PathBuf>,
    /// Where it comes from; several where nobody knows which, or where each file has its own.
    pub sources: Vec<String>,
    /// The artifact of which it is a known copy.
    pub duplicate_of: Option<String>,
    /// The artifacts that are known copies of it.
    pub copies: Vec<String>,
    /// Where the figures are from.
    pub basis: Basis,
}

/// Where an artifact's figures are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// Written by people, before the first lock.
    Manifest,
    /// Locked by larder.
    Lock,
}

/// What is downloaded for an artifact, or why nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The files of a repository that a pipeline loads.
    Pipeline,
    /// A whole repository.
    Repository,
    /// One file with the whole model.
    SingleFile,
    /// An Ollama image.
    Image,
    /// Files of their own.
    Files,
    /// A copy that is known to be superfluous.
    Copy,
    /// Made in the lab: nowhere to download it from.
    InHouse,
    /// Known by name only.
    Unidentified,
}

/// How big something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Bytes; `None` where nothing is known.
    pub bytes: Option<u64>,
    /// How far that is right.
    pub certainty: Certainty,
}

/// How far a size is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// To the byte.
    Exact,
    /// As people wrote it.
    Approximate,
    /// The sizes of some files are not known.
    AtLeast,
    /// Nothing is known.
    Unknown,
}

/// A section with its total beside what the lab's document says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedSection {
    /// Short name.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// The section whose total includes this one's.
    pub part_of: Option<String>,
    /// The artifacts in it and in its parts.
    pub total: Total,
    /// What the document says; absent where only a part of the section is listed.
    pub documented: Option<String>,
    /// Why the two differ.
    pub difference: Option<String>,
}

/// A sum over artifacts. Known copies are not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// How many artifacts.
    pub artifacts: usize,
    /// How many files are known.
    pub files: usize,
    /// How many of the files carry a digest that proves their content.
    pub pinned: usize,
    /// Bytes, as far as known.
    pub bytes: u64,
    /// How many of the bytes are exact.
    pub exact_bytes: u64,
    /// How many artifacts have no known size at all.
    pub unknown: usize,
    /// Known copies, which are not counted above.
    pub copies: usize,
}

/// One Python package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedPackage {
    /// Name on the package index.
    pub name: String,
    /// The exact version.
    pub version: Option<String>,
    /// Source revision of an editable install.
    pub revision: Option<String>,
    /// Whether the wheel's digest is pinned.
    pub pinned: bool,
    /// Version that the lab's document names.
    pub documented: Option<String>,
    /// Why it is needed.
    pub purpose: Option<String>,
    /// What an admin should know.
    pub note: Option<String>,
}

/// One model used over the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedCloudModel {
    /// The platform's configuration variable.
    pub name: String,
    /// The provider's name of the model.
    pub model: String,
    /// Who runs it.
    pub provider: String,
    /// The file that holds the key.
    pub key: String,
}

/// One fact that must hold on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedCondition {
    /// Short name.
    pub name: String,
    /// The artifacts that suffer otherwise.
    pub artifacts: Vec<String>,
    /// What goes wrong otherwise.
    pub why: String,
}

/// Lists what is asked for, with the lock's figures where it has them.
///
/// Packages and conditions are listed when they belong to a listed artifact or to none in particular.
///
/// # Errors
///
/// A profile whose selection is malformed.
pub fn list(request: &Request<'_>) -> Result<List, SelectorError> {
    let manifests = request.manifests;
    let all: Vec<ListedArtifact> = manifests.artifacts.iter().map(|artifact| listed(artifact, request)).collect();
    let wanted: Vec<bool> = manifests.artifacts.iter().map(request.wanted).collect();
    let chosen = |want: bool| all.iter().zip(&wanted).filter(move |(_, wanted)| **wanted == want).map(|(it, _)| it);
    let concerns = |names: &[String]| {
        names.is_empty() || names.iter().any(|name| chosen(true).any(|artifact| artifact.name == *name))
    };
    let artifacts: Vec<ListedArtifact> = chosen(true).cloned().collect();
    Ok(List {
        sections: sections(manifests, &artifacts),
        total: total(artifacts.iter()),
        packages: manifests.packages.iter().filter(|package| concerns(&package.needed_by)).map(package).collect(),
        cloud: manifests.cloud.iter().map(cloud_model).collect(),
        conditions: manifests
            .conditions
            .iter()
            .filter(|condition| concerns(&condition.artifacts))
            .map(condition)
            .collect(),
        profiles: profiles(request, &all)?,
        outside: request.profile.map(|_| total(chosen(false))),
        artifacts,
    })
}

fn profiles(request: &Request<'_>, all: &[ListedArtifact]) -> Result<Vec<ListedProfile>, SelectorError> {
    let listed = |(name, profile): (&String, &Profile)| {
        let members = profile.select(&request.manifests.artifacts)?;
        let is_member = |artifact: &&ListedArtifact| members.iter().any(|member| member.name == artifact.name);
        Ok(ListedProfile {
            name: name.clone(),
            title: profile.title.clone(),
            listed: request.profile == Some(name),
            total: total(all.iter().filter(is_member)),
        })
    };
    request.profiles.iter().map(listed).collect()
}

fn listed(artifact: &Declared, request: &Request<'_>) -> ListedArtifact {
    let figures = Figures::of(artifact, request.lock);
    let is_copy = |other: &&Declared| other.duplicate_of.as_ref() == Some(&artifact.name);
    let counted = artifact.pattern.as_ref().map(|pattern| pattern.count);
    ListedArtifact {
        name: artifact.name.clone(),
        section: artifact.section.clone(),
        title: artifact.title.clone(),
        purpose: artifact.purpose.clone(),
        note: artifact.note.clone(),
        tags: artifact.tags.clone(),
        kind: kind(artifact),
        files: figures.files.max(counted.unwrap_or(0)),
        files_complete: figures.complete || counted.is_some(),
        pinned: figures.pinned,
        manifest_pinned: figures.manifest,
        size: size(artifact, &figures),
        documented: artifact.documented.clone(),
        license: artifact.license.clone(),
        gated: artifact.gated,
        store: artifact.store.clone(),
        folder: artifact.folder.as_ref().map(ToString::to_string),
        path: (request.location)(artifact),
        sources: sources(artifact),
        duplicate_of: artifact.duplicate_of.clone(),
        copies: request.manifests.artifacts.iter().filter(is_copy).map(|copy| copy.name.clone()).collect(),
        basis: figures.basis,
    }
}

/// What is known of an artifact's files, in the lock or else in the manifest.
struct Figures {
    files: usize,
    complete: bool,
    pinned: usize,
    manifest: bool,
    known_bytes: u64,
    every_size: bool,
    basis: Basis,
}

impl Figures {
    fn of(artifact: &Declared, lock: Option<&Lock>) -> Self {
        let Some(locked) = lock.and_then(|lock| lock.artifact(&artifact.name)) else {
            return Self::declared(artifact);
        };
        let (known_bytes, every_size) = locked.size();
        Self {
            files: locked.files.len(),
            complete: locked.complete,
            pinned: locked.files.iter().filter(|file| file.digests.proves_content()).count(),
            manifest: locked.ollama.is_some(),
            known_bytes,
            every_size: every_size && !locked.files.is_empty(),
            basis: Basis::Lock,
        }
    }

    fn declared(artifact: &Declared) -> Self {
        let complete = artifact.lists_every_file();
        let sizes = artifact.file.iter().map(|file| file.size);
        Self {
            files: artifact.file.len(),
            complete,
            pinned: artifact.file.iter().filter(|file| file.digests().proves_content()).count(),
            manifest: artifact.manifest.is_some(),
            known_bytes: sizes.clone().flatten().map(|size| size.0).sum(),
            every_size: complete && sizes.clone().all(|size| size.is_some()),
            basis: Basis::Manifest,
        }
    }
}

fn size(artifact: &Declared, figures: &Figures) -> Size {
    let (bytes, certainty) = if figures.every_size {
        (Some(figures.known_bytes), Certainty::Exact)
    } else if let Some(total) = artifact.total {
        (Some(total.0), Certainty::Exact)
    } else if let Some(size) = artifact.size {
        (Some(size.0.max(figures.known_bytes)), Certainty::Approximate)
    } else if figures.known_bytes > 0 {
        (Some(figures.known_bytes), Certainty::AtLeast)
    } else {
        (None, Certainty::Unknown)
    };
    Size { bytes, certainty }
}

fn kind(artifact: &Declared) -> Kind {
    match (&artifact.source, artifact.download) {
        _ if artifact.duplicate_of.is_some() => Kind::Copy,
        (Some(Reference::Local), _) => Kind::InHouse,
        (Some(Reference::Unidentified), _) => Kind::Unidentified,
        (Some(Reference::Ollama(_)), _) => Kind::Image,
        (_, Some(Download::Pipeline)) => Kind::Pipeline,
        (_, Some(Download::Repository)) => Kind::Repository,
        (_, Some(Download::SingleFile)) => Kind::SingleFile,
        (_, None) => Kind::Files,
    }
}

fn sources(artifact: &Declared) -> Vec<String> {
    let own = artifact.source.iter().chain(&artifact.alternatives);
    let of_files = artifact.file.iter().filter_map(|file| file.source.as_ref());
    own.chain(of_files).map(ToString::to_string).collect()
}

fn total<'a>(artifacts: impl Iterator<Item = &'a ListedArtifact>) -> Total {
    let mut total = Total::default();
    for artifact in artifacts {
        if artifact.kind == Kind::Copy {
            total.copies += 1;
            continue;
        }
        total.artifacts += 1;
        total.files += artifact.files;
        total.pinned += artifact.pinned;
        total.bytes += artifact.size.bytes.unwrap_or(0);
        match artifact.size.certainty {
            Certainty::Exact => total.exact_bytes += artifact.size.bytes.unwrap_or(0),
            Certainty::Unknown => total.unknown += 1,
            Certainty::Approximate | Certainty::AtLeast => {}
        }
    }
    total
}

fn sections(manifests: &Manifests, artifacts: &[ListedArtifact]) -> Vec<ListedSection> {
    let mut ordered = Vec::new();
    let mut roots: Vec<&Section> = manifests.sections.iter().filter(|section| section.part_of.is_none()).collect();
    // What is divided into parts is the lab itself; what stands alone is an extra and comes after it.
    roots.sort_by_key(|root| !manifests.sections.iter().any(|section| section.part_of.as_ref() == Some(&root.name)));
    for root in roots {
        push_with_parts(manifests, root, &mut ordered);
    }
    ordered.into_iter().filter_map(|section| listed_section(manifests, section, artifacts)).collect()
}

fn push_with_parts<'a>(manifests: &'a Manifests, section: &'a Section, into: &mut Vec<&'a Section>) {
    for part in manifests.sections.iter().filter(|part| part.part_of.as_ref() == Some(&section.name)) {
        push_with_parts(manifests, part, into);
    }
    into.push(section);
}

fn listed_section(manifests: &Manifests, section: &Section, artifacts: &[ListedArtifact]) -> Option<ListedSection> {
    let mut parts = Vec::new();
    push_with_parts(manifests, section, &mut parts);
    let inside = |name: &Option<String>| name.as_ref().is_some_and(|name| parts.iter().any(|part| part.name == *name));
    let listed: Vec<&ListedArtifact> = artifacts.iter().filter(|artifact| inside(&artifact.section)).collect();
    let declared = manifests.artifacts.iter().filter(|artifact| inside(&artifact.section)).count();
    // The document speaks of the whole section, so a part of it is not compared.
    let whole = listed.len() == declared;
    (!listed.is_empty()).then(|| ListedSection {
        name: section.name.clone(),
        title: section.title.clone(),
        part_of: section.part_of.clone(),
        total: total(listed.iter().copied()),
        documented: section.documented.clone().filter(|_| whole),
        difference: section.difference.clone().filter(|_| whole),
    })
}

fn package(package: &Package) -> ListedPackage {
    ListedPackage {
        name: package.name.clone(),
        version: package.version.clone(),
        revision: package.revision.clone(),
        pinned: package.sha256.is_some() || package.artifact.is_some(),
        documented: package.documented.clone(),
        purpose: package.purpose.clone(),
        note: package.note.clone(),
    }
}

fn cloud_model(model: &CloudModel) -> ListedCloudModel {
    ListedCloudModel {
        name: model.name.clone(),
        model: model.model.clone(),
        provider: model.provider.clone(),
        key: model.key.display().to_string(),
    }
}

fn condition(condition: &Condition) -> ListedCondition {
    ListedCondition { name: condition.name.clone(), artifacts: condition.artifacts.clone(), why: condition.why.clone() }
}
