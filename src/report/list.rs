//! `larder list`: what the lab wants, how big it is, and how much of it is pinned by a digest.

use serde::Serialize;

use crate::artifact::Reference;
use crate::lock::Lock;
use crate::manifest::{CloudModel, Condition, Declared, Download, Manifests, Package, Section};

mod text;

pub use text::render;

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
    /// Where it comes from; several where nobody knows which, or where each file has its own.
    pub sources: Vec<String>,
    /// The artifact of which it is a known copy.
    pub duplicate_of: Option<String>,
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

/// Lists the artifacts that `wanted` selects, with the lock's figures where it has them.
///
/// Packages and conditions are listed when they belong to a selected artifact or to none in particular.
pub fn list(manifests: &Manifests, lock: Option<&Lock>, wanted: &dyn Fn(&Declared) -> bool) -> List {
    let artifacts: Vec<ListedArtifact> =
        manifests.artifacts.iter().filter(|artifact| wanted(artifact)).map(|artifact| listed(artifact, lock)).collect();
    let concerns = |names: &[String]| {
        names.is_empty() || names.iter().any(|name| artifacts.iter().any(|artifact| artifact.name == *name))
    };
    List {
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
        artifacts,
    }
}

fn listed(artifact: &Declared, lock: Option<&Lock>) -> ListedArtifact {
    let figures = Figures::of(artifact, lock);
    let counted = artifact.pattern.as_ref().map(|pattern| pattern.count);
    ListedArtifact {
        name: artifact.name.clone(),
        section: artifact.section.clone(),
        title: artifact.title.clone(),
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
        sources: sources(artifact),
        duplicate_of: artifact.duplicate_of.clone(),
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
