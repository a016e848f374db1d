//! A real registry: Debian's `docker-registry`, on a free port of the loopback.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reqwest::{Client, StatusCode};
use tempfile::TempDir;

#[path = "skip.rs"]
pub(crate) mod skip;

use crate::ollama_image::Image;
use larder::digest::Sha256;

/// A running registry; ends when dropped.
pub(crate) struct DockerRegistry {
    child: Child,
    dir: TempDir,
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
}

impl DockerRegistry {
    /// Starts an empty registry; `None`, loudly, where the program is not installed and this is not CI.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// Starts a pull-through mirror of `upstream`.
    pub(crate) fn start_mirror(upstream: &Self) -> Option<Self> {
        Self::start_mirror_of(&format!("http://{}", upstream.host))
    }

    /// Starts a pull-through mirror of whatever registry is at `url`.
    pub(crate) fn start_mirror_of(url: &str) -> Option<Self> {
        Self::start_with(&format!("proxy:\n  remoteurl: {url}\n"))
    }

    fn start_with(more: &str) -> Option<Self> {
        let program = program()?;
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{more}",
            dir.path().join("data").display()
        );
        let path = dir.path().join("registry.yml");
        larder::fsio::write_atomic(&path, config.as_bytes(), &larder::fsio::WriteOptions::default()).unwrap();
        let mut child =
            Command::new(program).arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut log = Vec::new();
        let host = lines.by_ref().find_map(|line| {
            let host =
                line.split_once("listening on ").map(|(_, rest)| rest.split(['"', ',']).next().unwrap().to_owned());
            log.push(line);
            host
        });
        let Some(host) = host else { panic!("docker-registry did not start:\n{}", log.join("\n")) };
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, dir, host })
    }

    /// Where the registry keeps a blob on its disk.
    pub(crate) fn blob_on_disk(&self, digest: &Sha256) -> PathBuf {
        let hex = digest.to_string();
        self.dir.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    /// Stores `image` as `repository:tag`, as a push does.
    pub(crate) async fn push(&self, image: &Image, repository: &str, tag: &str) {
        let (client, base) = (Client::new(), format!("http://{}/v2/{repository}", self.host));
        for blob in &image.blobs {
            let begun = client.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
            assert_eq!(begun.status(), StatusCode::ACCEPTED);
            let mut place = begun.url().join(begun.headers()["location"].to_str().unwrap()).unwrap();
            place.query_pairs_mut().append_pair("digest", &format!("sha256:{}", Sha256::of(blob)));
            assert_eq!(client.put(place).body(blob.clone()).send().await.unwrap().status(), StatusCode::CREATED);
        }
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let manifest = client.put(format!("{base}/manifests/{tag}")).header("content-type", kind);
        let stored = manifest.body(image.manifest.clone()).send().await.unwrap();
        assert_eq!(stored.status(), StatusCode::CREATED, "{}", stored.text().await.unwrap());
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "tests are told by the environment where their parts are")]
    let told = |name| std::env::var_os(name).unwrap_or_default();
    let parts = Path::new(env!("CARGO_MANIFEST_DIR")).join(told("LARDER_TEST_PARTS"));
    let path = told("PATH");
    let folders = [parts.join("bin"), parts].into_iter().chain(std::env::split_paths(&path));
    let found = folders.map(|folder| folder.join("docker-registry")).find(|program| program.is_file());
    if found.is_none() {
        skip::skipped("docker-registry is not installed (apt-get install docker-registry)");
    }
    found
}
