//! A miniature of the lab, made on the spot: real formats, tiny contents, one artifact per provider.
//!
//! `larder demo` serves it on loopback and provisions a second "machine" from it with the very same
//! commands, and damages that machine in four ways.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::artifact::{Artifact, File, OllamaManifest, Origin, Reference};
use crate::digest::{ContentHasher, Digests, Sha256};
use crate::fsio::{self, WriteOptions};
use crate::lock::Lock;
use crate::manifest::Manifests;
use crate::relpath::RelPath;
use crate::resolve;
use crate::serve::{Index, Served};

mod content;
mod damage;

pub use damage::{Damage, plant};

/// One model of the miniature.
struct Model {
    name: &'static str,
    source: &'static str,
    files: Vec<(String, Vec<u8>)>,
}

/// The miniature lab on disk.
pub struct Miniature {
    root: PathBuf,
}

/// The commit that the miniature's hub repositories are at.
const COMMIT: &str = "1a4d3c0ffee0000000000000000000000000cafe";

impl Miniature {
    /// Makes the models of the serving machine below `root/upstream`.
    pub fn make(root: &Path) -> io::Result<Self> {
        let miniature = Self { root: root.to_owned() };
        for model in models() {
            for (path, bytes) in &model.files {
                let place = miniature.place(model.name, path);
                fsio::write_atomic(&place, bytes, &WriteOptions::default())?;
            }
        }
        Ok(miniature)
    }

    /// What the serving machine hands out.
    pub fn index(&self) -> Index {
        Index::of(models().iter().map(|model| self.served(model)).collect(), [self.root.join("upstream")])
    }

    /// Writes the inventory and the manifests of a machine that provisions itself from `server`.
    ///
    /// Returns the inventory's path. One LoRA is put there beforehand: it has no upstream.
    pub fn write_lab(&self, server: SocketAddr) -> io::Result<PathBuf> {
        let lab = self.root.join("lab");
        let write = |path: &Path, text: &str| fsio::write_atomic(path, text.as_bytes(), &WriteOptions::default());
        let inventory = lab.join("inventory.toml");
        write(&inventory, &content::inventory(&self.root, server))?;
        write(&lab.join("manifests/models.toml"), &content::manifest(server))?;
        let lora = self.root.join("machine/swarmui/loras/lab_solarization.safetensors");
        fsio::write_atomic(&lora, &content::safetensors(&[("lora_up.weight", 16)], 9), &WriteOptions::default())?;
        Ok(inventory)
    }

    /// Writes inventory, manifest and lock of the serving machine, so that `larder serve` can be it at `server`.
    ///
    /// Returns the inventory's path.
    pub fn write_server(&self, server: SocketAddr) -> io::Result<PathBuf> {
        let upstream = self.root.join("upstream");
        let inventory = upstream.join("inventory.toml");
        let served = self.index().artifacts.into_iter().map(|served| served.artifact);
        // Each model has a folder, and so a store, of its own.
        let mut artifacts: Vec<Artifact> =
            served.map(|artifact| Artifact { store: artifact.name.clone(), ..artifact }).collect();
        let manifest = content::server_manifest(&artifacts);
        let path = upstream.join("manifests/models.toml");
        let write = |path: &Path, text: &str| fsio::write_atomic(path, text.as_bytes(), &WriteOptions::default());
        write(&inventory, &content::server_inventory(&upstream, &artifacts, server))?;
        write(&path, &manifest)?;
        let declared =
            Manifests::parse(&path, &manifest).map_err(|_| io::Error::other("the miniature's manifest is wrong"))?;
        for (artifact, declared) in artifacts.iter_mut().zip(&declared.artifacts) {
            artifact.declared = resolve::fingerprint(declared);
        }
        Lock { artifacts }.write(&inventory.with_extension("lock"))?;
        Ok(inventory)
    }

    fn place(&self, model: &str, path: &str) -> PathBuf {
        self.root.join("upstream").join(model).join(path)
    }

    fn served(&self, model: &Model) -> Served {
        let source: Reference = model.source.parse().expect("the miniature's sources are well-formed");
        let files: Vec<File> = model.files.iter().map(|(path, bytes)| file(&source, path, bytes)).collect();
        let content = model.files.iter().map(|(path, _)| Some(self.place(model.name, path))).collect();
        let is_hub = matches!(source, Reference::Hub { .. });
        let mut artifact = Artifact {
            name: model.name.to_owned(),
            store: "upstream".to_owned(),
            folder: None,
            declared: String::new(),
            revision: is_hub.then(|| COMMIT.to_owned()),
            origin: Origin::Upstream,
            complete: true,
            whole: is_hub,
            irreplaceable: false,
            ollama: None,
            pattern: None,
            files,
            source,
        };
        if matches!(artifact.source, Reference::Ollama(_)) {
            let bytes = content::ollama_manifest(&artifact.files);
            let digest = Sha256::of(bytes.as_bytes());
            artifact.ollama = Some(OllamaManifest { digest, bytes: Some(bytes) });
        }
        Served { artifact, content }
    }
}

fn file(source: &Reference, path: &str, bytes: &[u8]) -> File {
    let mut hasher = ContentHasher::new().with_git_sha1(bytes.len() as u64);
    hasher.update(bytes);
    let all = hasher.finish();
    // As on the hub: weights are LFS files, named by sha256; the rest lies in git.
    let lfs = [".safetensors", ".pth", ".bin", ".gguf"].iter().any(|end| path.ends_with(end));
    let is_hub = matches!(source, Reference::Hub { .. });
    let digests = match (is_hub, lfs) {
        (true, false) => Digests { sha256: None, ..all },
        _ => Digests { git_sha1: None, ..all },
    };
    let role = path.strip_prefix("blobs/").map(|_| content::role_of(bytes).to_owned());
    File {
        size: Some(bytes.len() as u64),
        digests,
        lfs: is_hub.then_some(lfs),
        role,
        ..File::named(path.parse::<RelPath>().expect("the miniature's paths are clean"))
    }
}

fn models() -> Vec<Model> {
    let model = |name, source, files: Vec<(&str, Vec<u8>)>| Model {
        name,
        source,
        files: files.into_iter().map(|(path, bytes)| (path.to_owned(), bytes)).collect(),
    };
    let encoder = content::safetensors(&[("text_model.embeddings.weight", 4096)], 3);
    vec![
        model(
            "tiny-diffusion",
            "hf:demo/tiny-diffusion",
            vec![
                ("README.md", b"# tiny-diffusion\nNot part of the artifact: `include` leaves it out.\n".to_vec()),
                ("model_index.json", content::model_index()),
                ("text_encoder/model.safetensors", encoder),
                ("tokenizer/merges.txt", b"#version: 0.2\na b\nab c\n".to_vec()),
                ("tokenizer/vocab.json", b"{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4}\n".to_vec()),
                (
                    "transformer/config.json",
                    b"{\"_class_name\": \"SD3Transformer2DModel\", \"num_layers\": 2}\n".to_vec(),
                ),
                (
                    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
                    content::safetensors(&[("blocks.0.weight", 300_000)], 1),
                ),
                (
                    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
                    content::safetensors(&[("blocks.1.weight", 200_000)], 2),
                ),
                ("transformer/diffusion_pytorch_model.safetensors.index.json", content::shard_index()),
            ],
        ),
        model(
            "tiny-mula",
            "hf:demo/tiny-mula",
            vec![
                ("config.json", b"{\"vocab_size\": 8197}\n".to_vec()),
                ("model.safetensors", content::safetensors(&[("tok_embeddings.weight", 50_000)], 4)),
            ],
        ),
        Model { name: "tiny-guard", source: "ollama:tiny-guard:1b", files: content::ollama_files() },
        model("tiny-vae.pth", "local", vec![("tiny-vae.pth", content::noise(100_000, 7))]),
        model(
            "tiny_ner-3.8.0-py3-none-any.whl",
            "local",
            vec![("tiny_ner-3.8.0-py3-none-any.whl", content::noise(5_000, 8))],
        ),
    ]
}
