//! The inventory: the stores of this machine, profiles, machines, sources and policy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Deserialize;
use url::Url;

use crate::manifest::{Declared, InputError, Outline, Place, parse_toml};
use crate::size::Bytes;
use crate::span::Span;
use crate::trust::TrustConfig;

mod bucket;
mod check;
mod fit;
mod lan;

pub use bucket::{BucketConfig, BucketUrl, ParseBucketUrlError};
pub use fit::fit;
pub use lan::{Peer, ServeConfig};

/// What `inventory.toml` says.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Inventory {
    /// Manifest files, as globs relative to the inventory's folder.
    #[serde(default = "default_manifests")]
    pub manifests: Vec<String>,
    /// The machine this is, among `machines`; by default the host name.
    #[serde(default)]
    pub machine: Option<String>,
    /// The profile for machines that none is set for.
    #[serde(default)]
    pub profile: Option<String>,
    /// Places on this machine.
    pub stores: BTreeMap<String, StoreConfig>,
    /// Sets of artifacts.
    #[serde(default)]
    pub profiles: BTreeMap<String, Profile>,
    /// The lab's machines.
    #[serde(default)]
    pub machines: BTreeMap<String, Machine>,
    /// Where bytes may come from.
    #[serde(default)]
    pub sources: SourceConfig,
    /// How artifacts are handed to other machines.
    #[serde(default)]
    pub serve: ServeConfig,
    /// What is forbidden and required.
    #[serde(default)]
    pub policy: Policy,
    /// Whose signatures count.
    #[serde(default)]
    pub trust: TrustConfig,
    /// Python environments whose packages are checked.
    #[serde(default)]
    pub python: PythonConfig,
    /// Who is told when faults appear or are gone.
    #[serde(default)]
    pub notify: Option<NotifyConfig>,
    /// What it was read from, to say where something stands.
    #[serde(skip)]
    text: String,
}

fn default_manifests() -> Vec<String> {
    vec!["manifests/*.toml".to_owned()]
}

/// How the files of a store are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The Hugging Face hub cache.
    HfCache,
    /// Ollama's models directory.
    Ollama,
    /// Plain files under their own names.
    Folder,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Layout::HfCache => "hf-cache",
            Layout::Ollama => "ollama",
            Layout::Folder => "folder",
        })
    }
}

/// One store as people declare it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StoreConfig {
    /// Its layout.
    pub layout: Layout,
    /// Its root. `~` is the home of the user who asked.
    pub path: PathBuf,
    /// The user who must own what is written; by default who owns the root.
    #[serde(default)]
    pub owner: Option<String>,
    /// The path must be a mounted file system of its own: an empty mount point is not an empty store.
    #[serde(default)]
    pub mounted: Option<PathBuf>,
    /// A running Ollama server that installs models for this store.
    #[serde(default)]
    pub api: Option<Url>,
}

/// A named set of artifacts.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// Names with globs, `tag:T`, `store:S` or `section:S`.
    pub artifacts: Vec<String>,
    /// Taken out again.
    #[serde(default)]
    pub except: Vec<String>,
    /// What it is for.
    #[serde(default)]
    pub title: Option<String>,
}

impl Profile {
    /// Those of `artifacts` that belong to it, in their order.
    pub fn select<'a>(&self, artifacts: &'a [Declared]) -> Result<Vec<&'a Declared>, SelectorError> {
        let selector = |patterns: &[String]| Selector::new(patterns.iter().map(String::as_str));
        let (wanted, except) = (selector(&self.artifacts)?, selector(&self.except)?);
        Ok(artifacts.iter().filter(|artifact| wanted.matches(artifact) && !except.matches(artifact)).collect())
    }
}

/// One machine of the lab.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Machine {
    /// Which artifacts it must have.
    #[serde(default)]
    pub profile: Option<String>,
    /// How ssh reaches it.
    #[serde(default)]
    pub ssh: Option<String>,
    /// Store paths that differ there.
    #[serde(default)]
    pub stores: BTreeMap<String, PathBuf>,
    /// The order of sources there, where it differs: without `upstream`, nothing is fetched from outside the lab.
    #[serde(default)]
    pub order: Option<Vec<SourceKind>>,
    /// The limit for all downloads there, where it differs.
    #[serde(default)]
    pub max_rate: Option<String>,
}

/// Where bytes may come from, and how fast.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SourceConfig {
    /// Kinds of source, the preferred one first.
    #[serde(default = "default_order")]
    pub order: Vec<SourceKind>,
    /// Folders with files under their store paths or named by digest.
    #[serde(default)]
    pub drives: Vec<PathBuf>,
    /// Other machines that serve their artifacts, the preferred one first.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Object stores of the lab, the preferred one first.
    #[serde(default)]
    pub buckets: Vec<BucketConfig>,
    /// The hub, instead of `HF_ENDPOINT` or the public one.
    #[serde(default)]
    pub hub: Option<Url>,
    /// The Ollama registry, instead of the host in the name.
    #[serde(default)]
    pub ollama: Option<Url>,
    /// The Ollama version to present to the registry, which refuses newer models to older versions.
    #[serde(default)]
    pub ollama_version: Option<String>,
    /// Upper limit for all downloads together, such as `80 MB/s`.
    #[serde(default)]
    pub max_rate: Option<String>,
    /// The same for single sources: `hub`, `ollama`, or a host.
    #[serde(default)]
    pub max_rates: BTreeMap<String, String>,
    /// Sources that bring less than this together, such as `500 kB/s`, are helped by those of the next kind; or `never`.
    #[serde(default = "default_too_slow")]
    pub too_slow: String,
    /// Upper limit for what one run downloads from upstream and from other metered places, such as `20 GB`.
    #[serde(default)]
    pub max_download: Option<Bytes>,
    /// Files that are fetched at the same time.
    #[serde(default = "default_parallel")]
    pub parallel: usize,
    /// Whether content that the hub keeps in Xet is read from there.
    #[serde(default = "default_xet")]
    pub xet: bool,
    /// Answers under way at the same time from one origin.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// Connections that a large file begins with; more come while they make it faster.
    #[serde(default = "default_first_connections")]
    pub first_connections: usize,
    /// How long a connection may take to be made.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Span,
    /// How long a server may be silent.
    #[serde(default = "default_stall_timeout")]
    pub stall_timeout: Span,
    /// How often a passing error is tried again before the next progress.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// The longest first pause before trying again; each further one may be twice as long.
    #[serde(default = "default_retry_pause")]
    pub retry_pause: Span,
}

/// The kinds of source that `order` ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A folder on this machine.
    Drive,
    /// Another larder.
    Peer,
    /// An object store.
    Bucket,
    /// Where the artifact was published.
    Upstream,
}

fn default_order() -> Vec<SourceKind> {
    vec![SourceKind::Drive, SourceKind::Peer, SourceKind::Bucket, SourceKind::Upstream]
}

fn default_too_slow() -> String {
    "500 kB/s".to_owned()
}

fn default_parallel() -> usize {
    8
}

fn default_xet() -> bool {
    true
}

fn default_connections() -> usize {
    8
}

fn default_first_connections() -> usize {
    1
}

fn default_connect_timeout() -> Span {
    Span(Duration::from_secs(10))
}

fn default_stall_timeout() -> Span {
    Span(Duration::from_secs(30))
}

fn default_retries() -> u32 {
    5
}

fn default_retry_pause() -> Span {
    Span(Duration::from_secs(1))
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            order: default_order(),
            drives: Vec::new(),
            peers: Vec::new(),
            buckets: Vec::new(),
            hub: None,
            ollama: None,
            ollama_version: None,
            max_rate: None,
            max_rates: BTreeMap::new(),
            too_slow: default_too_slow(),
            max_download: None,
            parallel: default_parallel(),
            xet: default_xet(),
            connections: default_connections(),
            first_connections: default_first_connections(),
            connect_timeout: default_connect_timeout(),
            stall_timeout: default_stall_timeout(),
            retries: default_retries(),
            retry_pause: default_retry_pause(),
        }
    }
}

impl SourceConfig {
    /// The rate limit in bytes per second, or the text that is none.
    pub fn max_rate(&self) -> Result<Option<Bytes>, String> {
        self.max_rate.as_deref().map(parse_rate).transpose()
    }

    /// Bytes per second below which sources are helped, or the text that is none. `None` where that is never.
    pub fn too_slow(&self) -> Result<Option<Bytes>, String> {
        if self.too_slow.trim() == "never" { Ok(None) } else { parse_rate(&self.too_slow).map(Some) }
    }

    /// The rate limits of single sources in bytes per second; or whose is none, and the text.
    pub fn max_rates(&self) -> Result<BTreeMap<String, Bytes>, (String, String)> {
        let parse = |(who, text): (&String, &String)| {
            parse_rate(text).map(|rate| (who.clone(), rate)).map_err(|message| (who.clone(), message))
        };
        self.max_rates.iter().map(parse).collect()
    }
}

/// Reads bytes per second from a text such as `80 MB/s`.
pub fn parse_rate(text: &str) -> Result<Bytes, String> {
    let rate = text.trim().strip_suffix("/s").and_then(|size| size.parse::<Bytes>().ok()).filter(|rate| rate.0 > 0);
    rate.ok_or_else(|| format!("{text:?} is not a rate such as \"80 MB/s\""))
}

/// What is forbidden and required.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// Artifact names, as globs, that must not be on the machine.
    #[serde(default)]
    pub deny: Vec<String>,
    /// How content that another store already has is reused.
    #[serde(default)]
    pub reuse: Reuse,
}

/// How content that is here already is given a second place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reuse {
    /// Share blocks where the file system can, copy otherwise. Files stay independent.
    #[default]
    Copy,
    /// Fetch it again.
    Never,
}

/// Python environments.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PythonConfig {
    /// Roots of virtual environments.
    #[serde(default)]
    pub environments: Vec<PathBuf>,
}

/// A command that is told when faults appear or are gone.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NotifyConfig {
    /// Program and arguments; no shell is involved.
    pub command: Vec<String>,
    /// How long it may take.
    #[serde(default = "default_notify_seconds")]
    pub timeout_seconds: u64,
}

fn default_notify_seconds() -> u64 {
    60
}

/// Replaces a leading `~` by `home`.
pub fn expand_home(path: &Path, home: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => path.to_owned(),
    }
}

impl Inventory {
    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self, Vec<InputError>> {
        let text = fs_err::read_to_string(path).map_err(|error| {
            let unreadable = InputError::unreadable(path, &error);
            let is_absent = error.kind() == std::io::ErrorKind::NotFound;
            let begin = "begin with the inventory.toml of larder's repository, or name yours with --inventory";
            vec![if is_absent { unreadable.hint(begin) } else { unreadable }]
        })?;
        Self::parse(path, &text)
    }

    /// Parses an inventory's text; `path` is only named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Vec<InputError>> {
        let mut inventory: Self = parse_toml(path, text).map_err(|error| vec![error])?;
        let errors = check::check(&inventory, &Outline::new(path, text));
        inventory.text = text.to_owned();
        if errors.is_empty() { Ok(inventory) } else { Err(errors) }
    }

    /// Where the value under `keys` stands in the text at `path` that this was read from.
    pub fn place(&self, path: &Path, keys: &[&str]) -> Place {
        Outline::new(path, &self.text).place(keys)
    }

    /// Where `machine` may fetch from: `[sources]` with what the machine says differently.
    pub fn sources_of(&self, machine: &str) -> SourceConfig {
        let own = self.machines.get(machine);
        let mut sources = self.sources.clone();
        if let Some(order) = own.and_then(|machine| machine.order.clone()) {
            sources.order = order;
        }
        // Nobody asks himself, though the inventory is the same on every machine.
        sources.peers.retain(|peer| peer.name != machine);
        if let Some(rate) = own.and_then(|machine| machine.max_rate.clone()) {
            sources.max_rate = Some(rate);
        }
        sources
    }

    /// The profile of `machine`, or of the inventory itself; `None` means everything.
    pub fn profile_of(&self, machine: &str) -> Option<(&str, &Profile)> {
        let name = self.machines.get(machine).and_then(|machine| machine.profile.as_ref()).or(self.profile.as_ref())?;
        self.profiles.get_key_value(name).map(|(name, profile)| (name.as_str(), profile))
    }
}

/// Selects artifacts by `name*`, `tag:T`, `store:S` and `section:S`.
#[derive(Debug, Clone)]
pub struct Selector {
    names: GlobSet,
    tags: GlobSet,
    stores: GlobSet,
    sections: GlobSet,
}

/// A pattern that selects nothing because it is malformed.
#[derive(Debug, thiserror::Error)]
#[error("{pattern:?} is not a selection: {reason}")]
pub struct SelectorError {
    pattern: String,
    reason: String,
}

impl Selector {
    /// Combines patterns; an artifact is selected when any of them fits.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, SelectorError> {
        let mut sets = [(); 4].map(|()| GlobSetBuilder::new());
        for pattern in patterns {
            let (set, glob) = match pattern.split_once(':') {
                Some(("tag", glob)) => (1, glob),
                Some(("store", glob)) => (2, glob),
                Some(("section", glob)) => (3, glob),
                _ => (0, pattern),
            };
            let glob = Glob::new(glob)
                .map_err(|error| SelectorError { pattern: pattern.to_owned(), reason: error.kind().to_string() })?;
            sets[set].add(glob);
        }
        let [names, tags, stores, sections] = sets.map(|set| set.build());
        let built = |set: Result<GlobSet, globset::Error>| {
            set.map_err(|error| SelectorError { pattern: String::new(), reason: error.to_string() })
        };
        Ok(Self { names: built(names)?, tags: built(tags)?, stores: built(stores)?, sections: built(sections)? })
    }

    /// Whether `artifact` is selected.
    pub fn matches(&self, artifact: &Declared) -> bool {
        self.names.is_match(&artifact.name)
            || artifact.tags.iter().any(|tag| self.tags.is_match(tag))
            || self.stores.is_match(&artifact.store)
            || artifact.section.as_ref().is_some_and(|section| self.sections.is_match(section))
    }

    /// Whether `name` is selected as a name.
    pub fn matches_name(&self, name: &str) -> bool {
        self.names.is_match(name)
    }
}
