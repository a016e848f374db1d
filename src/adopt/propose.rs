//! Proposals as a manifest and a lock.

use std::path::Path;

use serde::{Serialize, Serializer};

use crate::artifact::Reference;
use crate::digest::{GitSha1, Sha256};
use crate::inventory::Layout;
use crate::lock::Lock;
use crate::manifest::{InputError, Manifests};
use crate::relpath::RelPath;
use crate::resolve;

/// An artifact that the manifests lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// A name that no other artifact has.
    pub name: String,
    /// Its store.
    pub store: String,
    /// Where it comes from; `local` where nobody knows: it then counts as irreplaceable.
    #[serde(serialize_with = "as_text")]
    pub source: Reference,
    /// Digest of the Ollama manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Sha256>,
    /// What whoever reads the manifest should know.
    pub note: String,
    /// Its files.
    #[serde(rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ProposedFile>,
}

/// One file of a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProposedFile {
    /// In the store, or in the repository for hub caches.
    pub path: RelPath,
    /// Its length in bytes.
    pub size: u64,
    /// Its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Its content, as git names it.
    #[serde(rename = "git-sha1", skip_serializing_if = "Option::is_none")]
    pub git_sha1: Option<GitSha1>,
}

fn as_text<S: Serializer>(source: &Reference, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(source)
}

#[derive(Serialize)]
struct ManifestText<'a> {
    artifact: &'a [Proposal],
}

/// A manifest with all proposals, to be looked through by a person.
pub fn manifest_text(proposals: &[Proposal], machine: &str) -> String {
    let body = toml::to_string(&ManifestText { artifact: proposals }).expect("proposals have only text keys");
    let head =
        format!("# Found on {machine} by `larder adopt`: give these titles, sources and tags, or remove them.\n");
    if proposals.is_empty() { head } else { format!("{head}\n{body}") }
}

/// The lock's entries for a proposed manifest.
///
/// Fails where the manifest is none, which would be a mistake of larder's own.
pub fn lock_of(manifest: &str, layout: &dyn Fn(&str) -> Layout) -> Result<Lock, Vec<InputError>> {
    let manifests = Manifests::parse(Path::new("adopted.toml"), manifest)?;
    let artifacts = manifests.artifacts.iter().map(|declared| resolve::from_pins(declared, layout(&declared.store)));
    Ok(Lock { artifacts: artifacts.collect() })
}
