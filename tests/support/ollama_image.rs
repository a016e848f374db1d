//! A tiny Ollama image: real GGUF bytes, real digests, a manifest as a registry keeps it.

use larder::artifact::{Artifact, File, OllamaManifest, Origin, Reference, parse_manifest};
use larder::digest::Sha256;

/// One image with everything it consists of.
pub(crate) struct Image {
    /// The manifest, byte for byte; ends in a newline and has fields larder does not know.
    pub(crate) manifest: String,
    /// Config first, then the layers.
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl Image {
    /// An image whose weights are `padding` bytes longer than a GGUF header, filled with `fill`.
    pub(crate) fn new(fill: u8, padding: usize) -> Self {
        let config = br#"{"model_format":"gguf","model_family":"llama","architecture":"amd64","os":"linux"}"#;
        let mut gguf = gguf_header();
        gguf.resize(gguf.len() + padding, fill);
        let layers = [("model", gguf), ("template", b"{{ .Prompt }}".to_vec()), ("license", b"MIT".to_vec())];
        let described: Vec<String> = layers
            .iter()
            .map(|(kind, bytes)| {
                let mut layer = described(&format!("application/vnd.ollama.image.{kind}"), bytes);
                layer.insert_str(layer.len() - 1, r#","from":"/somewhere/else""#);
                layer
            })
            .collect();
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\"config\":{},\"layers\":[{}] , \"unknown\": 1}}\n",
            described_config(config),
            described.join(",")
        );
        let blobs = std::iter::once(config.to_vec()).chain(layers.into_iter().map(|(_, bytes)| bytes)).collect();
        Self { manifest, blobs }
    }

    /// SHA-256 of the manifest.
    pub(crate) fn digest(&self) -> Sha256 {
        Sha256::of(self.manifest.as_bytes())
    }

    /// The files that the manifest names.
    pub(crate) fn files(&self) -> Vec<File> {
        parse_manifest(self.manifest.as_bytes()).unwrap()
    }

    /// The content of `file`.
    pub(crate) fn content(&self, file: &File) -> &[u8] {
        let digest = file.digests.sha256.unwrap();
        self.blobs.iter().find(|blob| Sha256::of(blob) == digest).unwrap()
    }

    /// The image as a lock would name it.
    pub(crate) fn artifact(&self, name: &str) -> Artifact {
        Artifact {
            name: name.to_owned(),
            store: "ollama".to_owned(),
            source: format!("ollama:{name}").parse::<Reference>().unwrap(),
            declared: String::new(),
            revision: Some(format!("sha256:{}", self.digest())),
            origin: Origin::Upstream,
            complete: true,
            whole: true,
            folder: None,
            irreplaceable: false,
            ollama: Some(OllamaManifest { digest: self.digest(), bytes: Some(self.manifest.clone()) }),
            pattern: None,
            files: self.files(),
        }
    }
}

fn described(kind: &str, bytes: &[u8]) -> String {
    format!(r#"{{"mediaType":"{kind}","digest":"sha256:{}","size":{}}}"#, Sha256::of(bytes), bytes.len())
}

fn described_config(bytes: &[u8]) -> String {
    described("application/vnd.docker.container.image.v1+json", bytes)
}

/// Magic, version 3, no tensors, one key: `general.architecture = "llama"`.
fn gguf_header() -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    for (text, kind) in [("general.architecture", Some(8_u32)), ("llama", None)] {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(kind.map(u32::to_le_bytes).into_iter().flatten());
    }
    bytes
}
