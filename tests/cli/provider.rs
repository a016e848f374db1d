//! A server of a few files on loopback, and a lab that is provided from it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder::artifact::{Artifact, File, Origin};
use larder::digest::Sha256;
use larder::serve::{Guests, Index, Served, Server, Traffic, router};

use crate::program::{INVENTORY, Lab};

/// What the lab wants: path and content.
pub(crate) const FILES: [(&str, &[u8]); 2] = [("a.bin", b"first content"), ("b.bin", b"second content, longer")];

/// A larder that serves a repository `acme/tiny`, and counts what it is asked.
pub(crate) struct Provider {
    pub(crate) address: String,
    traffic: Arc<Traffic>,
    _runtime: tokio::runtime::Runtime,
    _content: tempfile::TempDir,
}

impl Provider {
    pub(crate) fn start() -> Self {
        let content = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let traffic = Arc::new(Traffic::default());
        let server = runtime.block_on(Server::bind((Ipv4Addr::LOCALHOST, 0).into())).unwrap();
        let address = format!("http://{}", server.local_addr());
        let app = router(index(content.path()), Guests::default(), traffic.clone());
        runtime.spawn(server.run(app, std::future::pending()));
        Self { address, traffic, _runtime: runtime, _content: content }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.traffic.requests()
    }

    /// A lab whose one artifact `tiny` comes from here.
    pub(crate) fn lab(&self) -> Lab {
        Lab::new(&format!("{INVENTORY}\n[sources]\nhub = \"{}\"\n", self.address), &manifest())
    }
}

fn manifest() -> String {
    let file = |(path, bytes): (&str, &[u8])| {
        format!("[[artifact.file]]\npath = \"{path}\"\nsize = {}\nsha256 = \"{}\"\n", bytes.len(), Sha256::of(bytes))
    };
    let head = "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"hf:acme/tiny\"\n";
    format!("{head}{}", FILES.map(file).concat())
}

fn index(folder: &Path) -> Index {
    let place = |path: &str, bytes: &[u8]| -> Option<PathBuf> {
        let place = folder.join(path);
        larder::fsio::write_atomic(&place, bytes, &larder::fsio::WriteOptions::default()).unwrap();
        Some(place)
    };
    let content = FILES.map(|(path, bytes)| place(path, bytes)).to_vec();
    let files = FILES.map(|(path, bytes)| File {
        size: Some(bytes.len() as u64),
        digests: larder::digest::Digests::sha256(Sha256::of(bytes)),
        lfs: Some(true),
        ..File::named(path.parse().unwrap())
    });
    let artifact = Artifact {
        name: "tiny".to_owned(),
        store: "upstream".to_owned(),
        source: "hf:acme/tiny".parse().unwrap(),
        declared: String::new(),
        revision: Some("1a4d3c0ffee0000000000000000000000000cafe".to_owned()),
        origin: Origin::Upstream,
        complete: true,
        whole: true,
        folder: None,
        irreplaceable: false,
        ollama: None,
        pattern: None,
        files: files.to_vec(),
    };
    Index::of(vec![Served { artifact, content }], ["/"])
}
