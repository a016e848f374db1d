//! Everything that can be asked for, by the names that each face knows it by.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::artifact::{Artifact, File, HubRepo, OLLAMA_HOST, OllamaName, Reference};
use crate::digest::{ContentName, Digests, GitSha1, Sha256, XetHash};
use crate::facts::Facts;
use crate::serve::bounds::{Bounds, Survey};
use crate::serve::{Index, Served};

/// One file that an artifact has, whether its bytes are here or not.
#[derive(Debug, Default)]
pub(crate) struct Item {
    /// Artifact and path, for people.
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    pub(crate) digests: Digests,
    /// The artifact, and the file's number in it.
    pub(crate) whose: (String, usize),
    /// Whether it could be had from where it was published.
    pub(crate) has_upstream: bool,
    pub(crate) content: OnceLock<PathBuf>,
}

impl Item {
    /// Where its bytes are, if they are here.
    pub(crate) fn content(&self) -> Option<&PathBuf> {
        self.content.get()
    }

    /// It has arrived, and lies there.
    pub(crate) fn arrived(&self, path: PathBuf) {
        // Two arrivals of one content are as good as one.
        let _ = self.content.set(path);
    }
}

/// A hub repository, as far as artifacts come from it.
#[derive(Debug, Default)]
pub(crate) struct Repository {
    /// Branches and tags, and the commits they mean here.
    pub(crate) names: BTreeMap<String, String>,
    /// Files by path, by commit.
    pub(crate) snapshots: BTreeMap<String, BTreeMap<String, HubFile>>,
}

/// A file as the hub describes it.
#[derive(Debug, Clone)]
pub(crate) struct HubFile {
    pub(crate) item: Arc<Item>,
    pub(crate) size: u64,
    pub(crate) id: ContentId,
    pub(crate) xet: Option<XetHash>,
}

impl HubFile {
    /// The name by which it can be had from Xet's face: what is not here is not mentioned there.
    pub(crate) fn in_xet(&self) -> Option<XetHash> {
        self.xet.filter(|_| self.item.content().is_some())
    }
}

/// What the hub names a file's content by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentId {
    Lfs(Sha256),
    Git(GitSha1),
}

impl ContentId {
    /// The name that clients give the blob in their caches.
    pub(crate) fn etag(self) -> String {
        match self {
            ContentId::Lfs(digest) => digest.to_string(),
            ContentId::Git(digest) => digest.to_string(),
        }
    }
}

/// An Ollama model with its tags.
#[derive(Debug, Default)]
pub(crate) struct Images {
    pub(crate) tags: BTreeMap<String, Arc<ImageManifest>>,
    pub(crate) blobs: HashMap<Sha256, Arc<Item>>,
}

#[derive(Debug)]
pub(crate) struct ImageManifest {
    pub(crate) digest: Sha256,
    pub(crate) bytes: Bytes,
}

/// One artifact, in a few words.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Summary {
    name: String,
    source: Reference,
    revision: Option<String>,
    files: usize,
    here: usize,
    size: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) lock: Option<String>,
    pub(crate) facts: Option<Arc<Facts>>,
    pub(crate) bounds: Arc<Bounds>,
    /// What is not handed out, or not to everybody, and why: for the log.
    pub(crate) remarks: BTreeSet<String>,
    pub(crate) summaries: Vec<Summary>,
    pub(crate) files: HashMap<String, HashMap<String, Arc<Item>>>,
    pub(crate) blobs: HashMap<ContentName, Arc<Item>>,
    pub(crate) hub: HashMap<HubRepo, Repository>,
    pub(crate) xet: HashMap<XetHash, Arc<Item>>,
    pub(crate) registry: BTreeMap<String, Images>,
}

impl Catalog {
    pub(crate) fn new(mut index: Index) -> Self {
        let bounds = Arc::new(Bounds::new(index.within));
        let mut catalog = Self { lock: index.lock, facts: index.facts, bounds: Arc::clone(&bounds), ..Self::default() };
        let mut survey = Survey::new(&bounds);
        for served in &mut index.artifacts {
            catalog.leave_out_strays(served, &mut survey);
        }
        let mut claims = Vec::new();
        // Names on the default registry come before the same names on another one.
        let (default, other): (Vec<_>, Vec<_>) =
            index.artifacts.iter().partition(|served| !is_on_other_registry(served));
        for served in default.into_iter().chain(other) {
            let items = items(served);
            catalog.add_plain(&served.artifact, &items);
            catalog.add_hub(&served.artifact, &items, &mut claims);
            catalog.add_images(&served.artifact, &items);
        }
        catalog.summaries = index.artifacts.iter().map(summary).collect();
        catalog.name_revisions(claims);
        catalog
    }

    /// What lies elsewhere is as good as not here.
    fn leave_out_strays(&mut self, served: &mut Served, survey: &mut Survey<'_>) {
        for (file, content) in served.artifact.files.iter().zip(&mut served.content) {
            if let Some(path) = content.take_if(|path| !survey.has(path)) {
                self.remarks.insert(format!(
                    "{}/{} is not served: {} leads out of the stores; to serve it, declare the folder it leads to as a store",
                    served.artifact.name,
                    file.path,
                    path.display()
                ));
            }
        }
    }

    fn add_plain(&mut self, artifact: &Artifact, items: &[Arc<Item>]) {
        let files = self.files.entry(artifact.name.clone()).or_default();
        for (file, item) in artifact.files.iter().zip(items) {
            files.entry(file.path.to_string()).or_insert_with(|| Arc::clone(item));
            item.digests.names().for_each(|name| keep_better(&mut self.blobs, name, item));
        }
    }

    fn add_hub(&mut self, artifact: &Artifact, items: &[Arc<Item>], claims: &mut Vec<Claim>) {
        for (file, item) in artifact.files.iter().zip(items) {
            let Some(place) = HubPlace::of(artifact, file) else {
                continue;
            };
            let (Some(size), Some(id)) = (item.size, content_id(file)) else {
                self.remarks
                    .insert(format!("{} is not served as a hub file: its size or digest is not known", item.name));
                continue;
            };
            let xet = self.name_in_xet(file, item);
            if xet.is_none() && size > LARGEST_PLAIN && item.content().is_some() {
                self.remarks.insert(too_large(&item.name, &artifact.name));
            }
            let repository = self.hub.entry(place.claim.repo.clone()).or_default();
            let snapshot = repository.snapshots.entry(place.claim.commit.clone()).or_default();
            let known = snapshot.get(&place.path).is_some_and(|known| known.item.content().is_some());
            if !known {
                snapshot.insert(place.path, HubFile { item: Arc::clone(item), size, id, xet });
            }
            if claims.last() != Some(&place.claim) {
                claims.push(place.claim);
            }
        }
    }

    /// By which name clients find the file in Xet. They compare no digest, so a name stands for one content only.
    fn name_in_xet(&mut self, file: &File, item: &Arc<Item>) -> Option<XetHash> {
        let (name, digest) = (file.xet?, file.digests.sha256?);
        if item.size.is_none_or(|size| size == 0) {
            return None;
        }
        let known = self.xet.get(&name);
        if known.is_some_and(|known| known.digests.sha256 != Some(digest) || known.size != item.size) {
            self.remarks.insert(format!("{} is not served by Xet: another file has the same name there", item.name));
            return None;
        }
        keep_better(&mut self.xet, name, item);
        Some(name)
    }

    /// A name that somebody locked has precedence over `main` for want of a name.
    fn name_revisions(&mut self, mut claims: Vec<Claim>) {
        claims.sort_by_key(|claim| claim.name.is_none());
        for claim in claims {
            if let Some(repository) = self.hub.get_mut(&claim.repo) {
                repository.names.entry(claim.name.unwrap_or_else(|| "main".to_owned())).or_insert(claim.commit);
            }
        }
    }

    fn add_images(&mut self, artifact: &Artifact, items: &[Arc<Item>]) {
        let Reference::Ollama(name) = &artifact.source else {
            return;
        };
        let manifest = self.image_manifest(artifact);
        let images = self.registry.entry(repository_of(name)).or_default();
        for item in items {
            if let Some(digest) = item.digests.sha256 {
                keep_better(&mut images.blobs, digest, item);
            }
        }
        if let Some(manifest) = manifest {
            images.tags.entry(name.tag.clone()).or_insert(Arc::new(manifest));
        }
    }

    /// The manifest's bytes, provided that they are the ones that were locked.
    fn image_manifest(&mut self, artifact: &Artifact) -> Option<ImageManifest> {
        let manifest = artifact.ollama.as_ref()?;
        let bytes = Bytes::from(manifest.bytes.clone()?);
        if Sha256::of(&bytes) != manifest.digest {
            let name = &artifact.name;
            self.remarks.insert(format!("{name}'s manifest is not served: the bytes are not those of its digest"));
            return None;
        }
        Some(ImageManifest { digest: manifest.digest, bytes })
    }
}

/// The longest file that `huggingface_hub` takes in one plain download.
const LARGEST_PLAIN: u64 = 50_000_000_000;

fn too_large(item: &str, artifact: &str) -> String {
    format!(
        "{item} has more than 50 GB, which Hugging Face's tools take by Xet only, and it has no name there: larder takes \
         it plainly; for the tools, get the name with `larder lock --update {artifact}` (and leave `xet` on in [serve])"
    )
}

/// One name is enough for many copies: the first one that is here.
fn keep_better<Name: Hash + Eq>(known: &mut HashMap<Name, Arc<Item>>, name: Name, item: &Arc<Item>) {
    let entry = known.entry(name).or_insert_with(|| Arc::clone(item));
    if entry.content().is_none() {
        *entry = Arc::clone(item);
    }
}

fn items(served: &Served) -> Vec<Arc<Item>> {
    let contents = served.content.iter().cloned().chain(std::iter::repeat(None));
    let files = served.artifact.files.iter().zip(contents);
    files.enumerate().map(|(index, (_, content))| Arc::new(item(&served.artifact, index, content))).collect()
}

fn item(artifact: &Artifact, index: usize, content: Option<PathBuf>) -> Item {
    let file = &artifact.files[index];
    let on_disk = || fs_err::metadata(content.as_ref()?).ok().map(|found| found.len());
    let size = file.size.or_else(on_disk);
    Item {
        name: format!("{}/{}", artifact.name, file.path),
        size,
        digests: file.digests,
        whose: (artifact.name.clone(), index),
        has_upstream: !artifact.remotes(file).is_empty(),
        content: content.map(OnceLock::from).unwrap_or_default(),
    }
}

fn summary(served: &Served) -> Summary {
    let artifact = &served.artifact;
    Summary {
        name: artifact.name.clone(),
        source: artifact.source.clone(),
        revision: artifact.revision.clone(),
        files: artifact.files.len(),
        here: served.content.iter().filter(|content| content.is_some()).count(),
        size: artifact.size().0,
    }
}

fn content_id(file: &File) -> Option<ContentId> {
    let lfs = file.digests.sha256.map(ContentId::Lfs);
    let git = file.digests.git_sha1.map(ContentId::Git);
    if file.lfs == Some(false) { git.or(lfs) } else { lfs.or(git) }
}

/// That a name, or `main` where there is none, means a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    repo: HubRepo,
    name: Option<String>,
    commit: String,
}

struct HubPlace {
    claim: Claim,
    path: String,
}

impl HubPlace {
    /// Where `file` comes from on the hub; `None` for other sources, and where the commit is not known.
    fn of(artifact: &Artifact, file: &File) -> Option<Self> {
        let Reference::Hub { repo, revision: asked, .. } = file.source.as_deref().unwrap_or(&artifact.source) else {
            return None;
        };
        let Some(Reference::Hub { path: Some(path), .. }) = artifact.source_of(file) else {
            return None;
        };
        let locked = artifact.revision.as_ref().filter(|_| is_repository_of(artifact, repo));
        let named = asked.as_ref().filter(|revision| is_commit(revision));
        let commit = named.or(locked).filter(|commit| is_commit(commit))?.clone();
        let name = match asked {
            None => Some("main".to_owned()),
            Some(revision) => Some(revision.clone()).filter(|revision| !is_commit(revision)),
        };
        Some(Self { claim: Claim { repo: repo.clone(), name, commit }, path: path.to_string() })
    }
}

fn is_repository_of(artifact: &Artifact, wanted: &HubRepo) -> bool {
    matches!(&artifact.source, Reference::Hub { repo, .. } if repo == wanted)
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_on_other_registry(served: &Served) -> bool {
    matches!(&served.artifact.source, Reference::Ollama(name) if name.host != OLLAMA_HOST)
}

fn repository_of(name: &OllamaName) -> String {
    format!("{}/{}", name.namespace, name.model)
}
