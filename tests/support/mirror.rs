//! A few artifacts on the disk and a server over them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder::artifact::{Artifact, File, OllamaManifest, Origin, Reference};
use larder::digest::{ContentHasher, Sha256};
use larder::serve::{Guests, Index, Served, Server, Traffic, router};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The commit that the hub repositories are locked at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Writes `content` below `folder` and describes it. `lfs` decides what the hub names it by.
pub(crate) fn put(folder: &Path, path: &str, content: &[u8], lfs: bool) -> (File, PathBuf) {
    let place = folder.join(path);
    std::fs::DirBuilder::new().recursive(true).create(place.parent().unwrap()).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(&place).unwrap();
    file.write_all(content).unwrap();
    let mut hasher = ContentHasher::new().with_git_sha1(content.len() as u64);
    hasher.update(content);
    let digests = hasher.finish();
    let file = File { size: Some(content.len() as u64), digests, lfs: Some(lfs), ..File::named(path.parse().unwrap()) };
    (file, place)
}

/// An artifact of these files, all of which are here.
pub(crate) fn served(name: &str, source: &str, revision: Option<&str>, files: Vec<(File, PathBuf)>) -> Served {
    let (files, places): (Vec<File>, Vec<PathBuf>) = files.into_iter().unzip();
    let artifact = Artifact {
        name: name.to_owned(),
        store: "store".to_owned(),
        source: source.parse().unwrap(),
        declared: String::new(),
        revision: revision.map(str::to_owned),
        origin: Origin::Upstream,
        complete: true,
        whole: true,
        folder: None,
        irreplaceable: false,
        ollama: None,
        pattern: None,
        files,
    };
    Served { artifact, content: places.into_iter().map(Some).collect() }
}

/// An Ollama image with one layer and a config, its manifest written in no usual way.
pub(crate) fn image(folder: &Path, name: &str, layer: &[u8]) -> Served {
    let config = br#"{"model_format":"gguf"}"#;
    let files = [("model", layer), ("config", &config[..])].map(|(role, content)| {
        let path = format!("blobs/sha256-{}", Sha256::of(content));
        let (file, place) = put(folder, &path, content, true);
        (File { role: Some(role.to_owned()), ..file }, place)
    });
    let manifest = format!(
        "{{ \"schemaVersion\":2,\n \"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\
         \"config\":{{\"mediaType\":\"application/vnd.docker.container.image.v1+json\",\"digest\":\"sha256:{}\",\"size\":{}}},\
         \"layers\":[{{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":\"sha256:{}\",\"size\":{},\"from\":\"/x\"}}]}}\n",
        Sha256::of(config),
        config.len(),
        Sha256::of(layer),
        layer.len()
    );
    let mut image = served(&format!("{name}-image"), &format!("ollama:{name}"), None, files.into());
    image.artifact.ollama = Some(OllamaManifest { digest: Sha256::of(manifest.as_bytes()), bytes: Some(manifest) });
    image
}

/// A reference to one file of a hub repository.
pub(crate) fn hub_file(text: &str) -> Option<Reference> {
    Some(text.parse().unwrap())
}

/// A running server, stopped when dropped.
pub(crate) struct Mirror {
    pub(crate) url: String,
    pub(crate) traffic: Arc<Traffic>,
    _stop: oneshot::Sender<()>,
    _running: JoinHandle<()>,
}

impl Mirror {
    pub(crate) async fn open(artifacts: Vec<Served>, lock: Option<&str>) -> Self {
        let index = Index { artifacts, lock: lock.map(str::to_owned), facts: None, within: vec!["/".into()] };
        Self::open_for(index, Guests::default(), |server| server).await
    }

    /// A server for `guests` only, set up by `set_up`.
    pub(crate) async fn open_for(index: Index, guests: Guests, set_up: impl FnOnce(Server) -> Server) -> Self {
        let traffic = Arc::new(Traffic::default());
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let server = set_up(server.counting_in(Arc::clone(&traffic)));
        let url = format!("http://{}", server.local_addr());
        let router = router(index, guests, Arc::clone(&traffic));
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let shutdown = async move {
                let _ = stopped.await;
            };
            server.run(router, shutdown).await;
        });
        Self { url, traffic, _stop: stop, _running: running }
    }

    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

/// The bytes of every file below `folder`, by path; links are followed.
pub(crate) fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    walkdir::WalkDir::new(folder)
        .follow_links(true)
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let path = entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            (path, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}
