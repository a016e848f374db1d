//! Tiny but real file contents, the same in every run.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;

use crate::artifact::{Artifact, File, Reference};
use crate::digest::Sha256;

/// Bytes without pattern, from a small generator (xorshift): compressible content hides damage.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// A safetensors file of one-dimensional F32 tensors.
pub(super) fn safetensors(tensors: &[(&str, usize)], seed: u64) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, len) in tensors {
        let begin = end;
        end += 4 * len;
        header.insert((*name).to_owned(), json!({"dtype": "F32", "shape": [len], "data_offsets": [begin, end]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    // Small finite numbers, so that the file is a valid model, not only valid bytes.
    bytes.extend(noise(end / 4, seed).into_iter().flat_map(|byte| (f32::from(byte) / 256.0 - 0.5).to_le_bytes()));
    bytes
}

/// A GGUF file of version 3 with one metadata entry and one F32 tensor.
fn gguf() -> Vec<u8> {
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(8u32.to_le_bytes());
    text(&mut bytes, "llama");
    text(&mut bytes, "token_embd.weight");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(8192u64.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(noise(8192, 6).into_iter().flat_map(|byte| (f32::from(byte) / 256.0 - 0.5).to_le_bytes()));
    bytes
}

pub(super) fn model_index() -> Vec<u8> {
    let index = json!({
        "_class_name": "StableDiffusion3Pipeline",
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
    });
    format!("{index:#}\n").into_bytes()
}

pub(super) fn shard_index() -> Vec<u8> {
    let shard = |n| format!("diffusion_pytorch_model-0000{n}-of-00002.safetensors");
    let index = json!({
        "metadata": {"total_size": 2_000_000},
        "weight_map": {"blocks.0.weight": shard(1), "blocks.1.weight": shard(2)},
    });
    format!("{index:#}\n").into_bytes()
}

/// The layers of the miniature's Ollama image under their blob names, the config last.
pub(super) fn ollama_files() -> Vec<(String, Vec<u8>)> {
    let layers = [
        gguf(),
        b"{{ .System }}{{ .Prompt }}".to_vec(),
        b"{\"temperature\":0,\"stop\":[\"<|eot_id|>\"]}".to_vec(),
        b"{\"model_format\":\"gguf\",\"model_family\":\"llama\",\"model_type\":\"8K\",\"file_type\":\"F32\"}".to_vec(),
    ];
    layers.into_iter().map(|bytes| (format!("blobs/sha256-{}", Sha256::of(&bytes)), bytes)).collect()
}

/// What an Ollama layer of the miniature is, told by its content.
pub(super) fn role_of(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'G', b'G', b'U', b'F', ..] => "model",
        [b'{', b'{', ..] => "template",
        bytes if bytes.starts_with(b"{\"temperature") => "params",
        _ => "config",
    }
}

/// A manifest as Ollama's registry sends it.
pub(super) fn ollama_manifest(files: &[File]) -> String {
    let entry = |file: &File, media: String| {
        let digest = file.digests.sha256.map(|digest| format!("sha256:{digest}"));
        json!({"mediaType": media, "digest": digest, "size": file.size})
    };
    let role = |file: &File| file.role.clone().unwrap_or_default();
    let (config, layers): (Vec<&File>, Vec<&File>) = files.iter().partition(|file| role(file) == "config");
    let layers: Vec<_> =
        layers.iter().map(|file| entry(file, format!("application/vnd.ollama.image.{}", role(file)))).collect();
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": config.first().map(|file| entry(file, "application/vnd.docker.container.image.v1+json".to_owned())),
        "layers": layers,
    })
    .to_string()
}

/// The inventory of the machine that is provisioned.
pub(super) fn inventory(root: &Path, server: SocketAddr) -> String {
    let machine = root.join("machine");
    let mut text = String::from("manifests = [\"manifests/*.toml\"]\nmachine = \"pc2\"\n\n[stores]\n");
    for (name, layout, folder) in [
        ("huggingface", "hf-cache", "huggingface/hub"),
        ("ollama", "ollama", "ollama/models"),
        ("swarmui", "folder", "swarmui"),
        ("heartmula", "folder", "heartlib/ckpt"),
        ("mmaudio", "folder", "mmaudio/ext_weights"),
        ("wheels", "folder", "wheels"),
    ] {
        let path = machine.join(folder);
        let _ = writeln!(text, "{name} = {{ layout = \"{layout}\", path = {:?} }}", path.display().to_string());
    }
    text.push_str(
        "\n[profiles]\nworkstation = { artifacts = [\"*\"] }\n\n[machines]\npc2 = { profile = \"workstation\" }\n\n",
    );
    let _ = writeln!(text, "[sources]\nhub = \"http://{server}\"\nollama = \"http://{server}\"");
    text
}

/// The inventory of the machine that serves: a store for each model, called like it.
pub(super) fn server_inventory(upstream: &Path, artifacts: &[Artifact], server: SocketAddr) -> String {
    let mut text = String::from("manifests = [\"manifests/*.toml\"]\nmachine = \"pc1\"\n\n[stores]\n");
    for artifact in artifacts {
        let path = upstream.join(&artifact.name).display().to_string();
        let _ = writeln!(text, "{:?} = {{ layout = \"folder\", path = {path:?} }}", artifact.store);
    }
    let _ = writeln!(text, "\n[machines]\npc1 = {{}}\n\n[serve]\naddress = \"{server}\"");
    text
}

/// The manifest of the machine that serves.
pub(super) fn server_manifest(artifacts: &[Artifact]) -> String {
    let mut text = String::from("[[section]]\nname = \"upstream\"\ntitle = \"What the miniature lab comes from\"\n");
    for artifact in artifacts {
        let (name, source, store) = (&artifact.name, artifact.source.to_string(), &artifact.store);
        let _ = write!(text, "\n[[artifact]]\nname = {name:?}\nsource = {source:?}\nstore = {store:?}\n");
        if artifact.source == Reference::Local {
            let files = artifact.files.iter().map(|file| format!("{{ path = {:?} }}", file.path.as_str()));
            let _ = writeln!(text, "file = [{}]", files.collect::<Vec<_>>().join(", "));
        }
    }
    text
}

/// The manifests of the miniature lab: one artifact per provider and store.
pub(super) fn manifest(server: SocketAddr) -> String {
    let vae = Sha256::of(&noise(100_000, 7));
    format!(
        r#"[[section]]
name = "miniature"
title = "Miniature lab"

[[artifact]]
name = "tiny-diffusion"
title = "Tiny diffusion pipeline"
source = "hf:demo/tiny-diffusion"
include = ["model_index.json", "text_encoder/*", "tokenizer/*", "transformer/*"]
store = "huggingface"
tags = ["image", "generator"]

[[artifact]]
name = "tiny-encoder"          # one file of the same repository, renamed on arrival
store = "swarmui"
tags = ["encoder"]
  [[artifact.file]]
  path = "clip/tiny_encoder.safetensors"
  source = "hf:demo/tiny-diffusion/text_encoder/model.safetensors"

[[artifact]]
name = "tiny-mula"
source = "hf:demo/tiny-mula"
store = "heartmula"
folder = "tiny-mula"
tags = ["music"]

[[artifact]]
name = "tiny-guard:1b"
source = "ollama:tiny-guard:1b"
store = "ollama"
tags = ["safety"]

[[artifact]]
name = "tiny-vae"
source = "http://{server}/files/tiny-vae.pth/tiny-vae.pth"
store = "mmaudio"
tags = ["audio"]
  [[artifact.file]]
  path = "tiny-vae.pth"
  size = 100000
  sha256 = "{vae}"             # pinned: the source is compared with it

[[artifact]]
name = "tiny-ner"
source = "http://{server}/files/tiny_ner-3.8.0-py3-none-any.whl/tiny_ner-3.8.0-py3-none-any.whl"
store = "wheels"
tags = ["safety"]

[[artifact]]
name = "lab-solarization"      # made in the lab: no upstream, never fetched again, never removed
source = "local"
store = "swarmui"
match = {{ glob = "loras/lab_solarization*.safetensors", count = 1 }}
tags = ["image", "lora"]
"#
    )
}
