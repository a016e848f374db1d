//! Manifests: what people write about the artifacts of the lab.
//!
//! A manifest is a TOML file with `[[section]]`, `[[artifact]]`, `[[package]]`, `[[cloud]]` and
//! `[[condition]]` tables; `docs/formats.md` describes every key. Unknown keys are refused.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::artifact::{Pattern, Reference};
use crate::digest::{Digests, GitSha1, Md5, Sha256};
use crate::relpath::RelPath;
use crate::size::Bytes;

mod check;
mod error;
mod explain;
mod outline;

pub use error::{InputError, Place};
pub use explain::{closest, did_you_mean, parse_toml};
pub use outline::Outline;

/// All manifests of an inventory, read together.
#[derive(Debug, Default)]
pub struct Manifests {
    /// Groups that `list` sums up, in the order they were read.
    pub sections: Vec<Section>,
    /// Artifacts, in the order they were read.
    pub artifacts: Vec<Declared>,
    /// Python packages that must be installed in exactly one version.
    pub packages: Vec<Package>,
    /// Models that are used over the network: no files, but a key.
    pub cloud: Vec<CloudModel>,
    /// Facts about the machine without which the models do not work.
    pub conditions: Vec<Condition>,
    places: Places,
}

/// Which file, and which of its tables, every entry was read from.
#[derive(Debug, Default)]
struct Places {
    outlines: Vec<Outline>,
    sections: Vec<Origin>,
    artifacts: Vec<Origin>,
    packages: Vec<Origin>,
    conditions: Vec<Origin>,
}

/// An outline by its number, and the number of the table in that file.
#[derive(Debug, Clone, Copy)]
struct Origin {
    outline: usize,
    table: usize,
}

impl Places {
    fn of(&self, origin: Option<&Origin>, kind: &str, keys: &[&str]) -> Place {
        let Some(origin) = origin else { return Place::file(Path::new("")) };
        let table = origin.table.to_string();
        let keys = [&[kind, table.as_str()], keys].concat();
        self.outlines[origin.outline].place(&keys)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ManifestFile {
    #[serde(default)]
    section: Vec<Section>,
    #[serde(default)]
    artifact: Vec<Declared>,
    #[serde(default)]
    package: Vec<Package>,
    #[serde(default)]
    cloud: Vec<CloudModel>,
    #[serde(default)]
    condition: Vec<Condition>,
}

/// A group of artifacts with the total that the lab's own document gives for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Section {
    /// Short name that artifacts refer to.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// The section whose total includes this one's.
    #[serde(default)]
    pub part_of: Option<String>,
    /// What the lab's document says it takes, such as `~16 GB`.
    #[serde(default)]
    pub documented: Option<String>,
    /// Why the sum of the artifacts differs from that.
    #[serde(default)]
    pub difference: Option<String>,
}

/// One artifact as people declare it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Declared {
    /// The lab's name for it: lower case, digits, `.`, `_`, `-`, `:` and `+`.
    pub name: String,
    /// What people call it.
    #[serde(default)]
    pub title: Option<String>,
    /// What the platform uses it for.
    #[serde(default)]
    pub purpose: Option<String>,
    /// Where it comes from. May be absent when every file has a source of its own.
    #[serde(default)]
    pub source: Option<Reference>,
    /// Repositories or registries with byte-identical files under the same paths.
    #[serde(default)]
    pub mirrors: Vec<Reference>,
    /// Sources of which nobody knows which one the lab's files came from.
    #[serde(default)]
    pub alternatives: Vec<Reference>,
    /// The artifact of which this is a known copy in another place.
    #[serde(default)]
    pub duplicate_of: Option<String>,
    /// The program that makes these files on the machine.
    #[serde(default)]
    pub generated_by: Option<String>,
    /// Globs of repository paths that belong to it; absent means the listed files, or all.
    #[serde(default)]
    pub include: Vec<String>,
    /// Globs of repository paths that do not belong to it.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Whether the listed files are everything that `include` selects.
    #[serde(default)]
    pub complete: Option<bool>,
    /// The store it belongs in.
    pub store: String,
    /// Folder within a plain store.
    #[serde(default)]
    pub folder: Option<RelPath>,
    /// Which kind of download this is, where one repository offers several.
    #[serde(default)]
    pub download: Option<Download>,
    /// Size for people before the first lock.
    #[serde(default)]
    pub size: Option<Bytes>,
    /// Exact length of all files together, where a record has it though not of every file.
    #[serde(default)]
    pub total: Option<Bytes>,
    /// Size as the lab's document prints it.
    #[serde(default)]
    pub documented: Option<String>,
    /// Licence, as an SPDX id or the maker's own name for it.
    #[serde(default)]
    pub license: Option<String>,
    /// Whether the hub asks for an accepted licence before it hands out files.
    #[serde(default)]
    pub gated: bool,
    /// Words to select by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Which smoke test proves it.
    #[serde(default)]
    pub smoke: Option<String>,
    /// The section it is counted in; by default the first of its file.
    #[serde(default)]
    pub section: Option<String>,
    /// Digest of the Ollama manifest: the ID that `ollama list` begins with.
    #[serde(default)]
    pub manifest: Option<Sha256>,
    /// Files known by a pattern only, such as in-house LoRAs.
    #[serde(default, rename = "match")]
    pub pattern: Option<Pattern>,
    /// What an admin should know.
    #[serde(default)]
    pub note: Option<String>,
    /// Files that are known by name.
    #[serde(default)]
    pub file: Vec<DeclaredFile>,
}

/// The kinds of download that one repository can offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Download {
    /// The files a pipeline loads.
    Pipeline,
    /// Everything in the repository.
    Repository,
    /// One file with the whole model.
    SingleFile,
}

/// One file as people declare it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DeclaredFile {
    /// Path in the store, or in the repository for hub artifacts; a digest for Ollama layers.
    pub path: RelPath,
    /// Where it comes from, if not from the artifact's source under the same path.
    #[serde(default)]
    pub source: Option<Reference>,
    /// Other places with the same bytes.
    #[serde(default)]
    pub mirrors: Vec<Reference>,
    /// Exact length in bytes.
    #[serde(default)]
    pub size: Option<Bytes>,
    /// SHA-256 of the content.
    #[serde(default)]
    pub sha256: Option<Sha256>,
    /// Git blob id of the content.
    #[serde(default)]
    pub git_sha1: Option<GitSha1>,
    /// MD5 of the content.
    #[serde(default)]
    pub md5: Option<Md5>,
    /// What an Ollama layer is: `model`, `template`, `license`, `params`, `config`…
    #[serde(default)]
    pub role: Option<String>,
}

impl Declared {
    /// Whether `file` names every file that belongs to the artifact.
    ///
    /// `complete` decides where it is written. Otherwise files are all there is unless more is selected
    /// by `include`, taken by a pattern, or made up by an Ollama image.
    pub fn lists_every_file(&self) -> bool {
        let selects_more = !self.include.is_empty() || self.pattern.is_some() || self.manifest.is_some();
        self.complete.unwrap_or(!self.file.is_empty() && !selects_more)
    }
}

impl DeclaredFile {
    /// A file of which only the path is known.
    pub fn named(path: RelPath) -> Self {
        Self {
            path,
            source: None,
            mirrors: Vec::new(),
            size: None,
            sha256: None,
            git_sha1: None,
            md5: None,
            role: None,
        }
    }

    /// The digests that the manifest pins.
    pub fn digests(&self) -> Digests {
        Digests { sha256: self.sha256, git_sha1: self.git_sha1, md5: self.md5 }
    }
}

/// A Python package that must be installed in one exact version.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Package {
    /// Name on the package index.
    pub name: String,
    /// The exact version; absent where only a `revision` is known, or none.
    #[serde(default)]
    pub version: Option<String>,
    /// Why it is needed.
    #[serde(default)]
    pub purpose: Option<String>,
    /// Package index, where it is not the usual one.
    #[serde(default)]
    pub index: Option<String>,
    /// File name of the wheel.
    #[serde(default)]
    pub wheel: Option<String>,
    /// Length of the wheel in bytes.
    #[serde(default)]
    pub size: Option<Bytes>,
    /// SHA-256 of the wheel.
    #[serde(default)]
    pub sha256: Option<Sha256>,
    /// The artifact that holds the wheel, for packages that no index has.
    #[serde(default)]
    pub artifact: Option<String>,
    /// Other wheels of which a digest is on record: for other Pythons, or of a version not to install.
    #[serde(default)]
    pub other_wheels: Vec<Wheel>,
    /// Source revision of an editable install.
    #[serde(default)]
    pub revision: Option<String>,
    /// The artifacts that need it; empty means the platform as a whole.
    #[serde(default)]
    pub needed_by: Vec<String>,
    /// Licence.
    #[serde(default)]
    pub license: Option<String>,
    /// Version that the lab's document names, where it is not the one to install.
    #[serde(default)]
    pub documented: Option<String>,
    /// What an admin should know.
    #[serde(default)]
    pub note: Option<String>,
}

/// A wheel that is known, though not the one to install here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Wheel {
    /// File name, or as much of it as is known.
    pub file: String,
    /// Length in bytes.
    #[serde(default)]
    pub size: Option<Bytes>,
    /// SHA-256 of the content.
    #[serde(default)]
    pub sha256: Option<Sha256>,
}

/// A model used over the network.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CloudModel {
    /// The platform's configuration variable.
    pub name: String,
    /// The provider's name of the model.
    pub model: String,
    /// Who runs it.
    pub provider: String,
    /// The file that holds the key, or a glob of one per checkout: must exist, be private, and be ignored by git.
    pub key: PathBuf,
    /// What it is used for.
    #[serde(default)]
    pub purpose: Option<String>,
}

/// A fact about the machine without which models misbehave though every file is right.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Condition {
    /// Short name.
    pub name: String,
    /// Which artifacts suffer when it does not hold.
    #[serde(default)]
    pub artifacts: Vec<String>,
    /// What must hold.
    pub require: Requirement,
    /// What goes wrong otherwise.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// What a [`Condition`] asks for.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, tag = "kind")]
pub enum Requirement {
    /// Of the installed packages that match `packages`, exactly `only` are there.
    OnlyPackages {
        /// Globs of package names.
        packages: Vec<String>,
        /// The complete list.
        only: Vec<String>,
    },
    /// The file contains a text.
    TextPresent {
        /// File, or a glob of one.
        file: PathBuf,
        /// The text.
        text: String,
    },
    /// No line of the file contains both texts, nor do two lines `within` so many lines of each other.
    TextAbsent {
        /// File, or a glob of one.
        file: PathBuf,
        /// The text that must not stand around `around`.
        text: String,
        /// The text it must not stand around.
        around: String,
        /// How many lines above `around` are looked at.
        within: usize,
    },
}

impl Manifests {
    /// Reads and checks manifest files together; the errors of all files are collected.
    pub fn read(files: &[PathBuf]) -> Result<Self, Vec<InputError>> {
        Self::read_with_texts(files).map(|(all, _)| all)
    }

    /// The same, and the text of each file as it was read: what a signature is compared with.
    pub fn read_with_texts(files: &[PathBuf]) -> Result<(Self, Vec<String>), Vec<InputError>> {
        let mut all = Self::default();
        let (mut texts, mut errors) = (Vec::new(), Vec::new());
        for path in files {
            match read_file(path) {
                Ok((file, text)) => {
                    all.take(path, file, &text);
                    texts.push(text);
                }
                Err(error) => errors.push(error),
            }
        }
        // What other files refer to may be in the ones that could not be read.
        let all_are_here = errors.is_empty();
        errors.extend(check::check(&all, all_are_here));
        if errors.is_empty() { Ok((all, texts)) } else { Err(errors) }
    }

    /// Parses one manifest's text; `path` is only named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Vec<InputError>> {
        let mut all = Self::default();
        all.take(path, parse_toml(path, text).map_err(|error| vec![error])?, text);
        let errors = check::check(&all, true);
        if errors.is_empty() { Ok(all) } else { Err(errors) }
    }

    /// The artifact called `name`.
    pub fn artifact(&self, name: &str) -> Option<&Declared> {
        self.artifacts.iter().find(|artifact| artifact.name == name)
    }

    /// Where `key` of the artifact called `name` stands, or the artifact, if it has no such key.
    pub fn place(&self, name: &str, key: &str) -> Option<Place> {
        let index = self.artifacts.iter().position(|artifact| artifact.name == name)?;
        Some(self.places.of(self.places.artifacts.get(index), "artifact", &[key]))
    }

    fn take(&mut self, path: &Path, file: ManifestFile, text: &str) {
        let outline = self.places.outlines.len();
        self.places.outlines.push(Outline::new(path, text));
        let origins = |number: usize| (0..number).map(move |table| Origin { outline, table });
        self.places.sections.extend(origins(file.section.len()));
        self.places.artifacts.extend(origins(file.artifact.len()));
        self.places.packages.extend(origins(file.package.len()));
        self.places.conditions.extend(origins(file.condition.len()));
        let first_section = file.section.first().map(|section| section.name.clone());
        for mut artifact in file.artifact {
            artifact.section = artifact.section.or_else(|| first_section.clone());
            self.artifacts.push(artifact);
        }
        self.sections.extend(file.section);
        self.packages.extend(file.package);
        self.cloud.extend(file.cloud);
        self.conditions.extend(file.condition);
    }
}

fn read_file(path: &Path) -> Result<(ManifestFile, String), InputError> {
    let text = fs_err::read_to_string(path).map_err(|error| InputError::unreadable(path, &error))?;
    Ok((parse_toml(path, &text)?, text))
}
