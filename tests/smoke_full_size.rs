//! The whole lab at full size in a few MiB of disk: `larder smoke` judges it by reading headers, and little else.
//!
//! The weights are holes behind real headers, so each file fails for being blank and for nothing else.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests, of which one tells what it measured")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use larder::fsio::{WriteOptions, write_atomic};
use serde_json::{Value, json};

#[expect(dead_code, reason = "the program is started in another way here")]
#[path = "support/program.rs"]
mod program;
#[path = "support/sparse.rs"]
mod sparse;

use program::Lab;
use sparse::{Tensors, expected, prefixed};

/// Which list a file of this name has, its element type (or, where its matrices have 8 bits, what their scales are
/// called), and what stands before its names.
const LISTS: &[(&str, &str, &str, &str)] = &[
    ("flux2-dev.safetensors", "flux2_dev.single", "BF16", ""),
    ("flux2_dev_fp8mixed.safetensors", "flux2_dev.single", "weight_scale", ""),
    ("sd3.5_large.safetensors", "sd35_large_transformer.single", "F16", "model.diffusion_model."),
    ("sd3.5_large_turbo.safetensors", "sd35_large_transformer.single", "F16", "model.diffusion_model."),
    ("low_noise_14B_fp8_scaled.safetensors", "wan22_i2v_14b.single", "scale_weight", ""),
    ("high_noise_14B_fp8_scaled.safetensors", "wan22_i2v_14b.single", "scale_weight", ""),
    ("wan2.2_ti2v_5B_fp16.safetensors", "wan22_ti2v_5b.single", "F16", ""),
    ("ltxv-13b-0.9.7-dev-fp8.safetensors", "ltxv_13b_097.single", "F8_E4M3", "model.diffusion_model."),
    ("qwen_image_bf16.safetensors", "qwen_image", "BF16", ""),
    ("qwen_image_fp8_e4m3fn.safetensors", "qwen_image", "F8_E4M3", ""),
    ("qwen_image_edit_2511_fp8mixed.safetensors", "qwen_image", "weight_scale", ""),
    ("mistral_3_small_flux2_bf16.safetensors", "mistral_small_24b_text", "BF16", ""),
    ("mistral_3_small_flux2_fp8.safetensors", "mistral_small_24b_text", "F8_E4M3", ""),
    ("qwen_2.5_vl_7b.safetensors", "qwen25_vl_7b.older", "BF16", ""),
    ("qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen25_vl_7b.older", "scale_weight", ""),
    ("t5xxl_fp16.safetensors", "t5_xxl_encoder", "F16", ""),
    ("t5xxl_enconly.safetensors", "t5_xxl_encoder", "F8_E4M3", ""),
    ("t5xxl_fp8_e4m3fn.safetensors", "t5_xxl_encoder", "F8_E4M3", ""),
    ("clip_g.safetensors", "clip_g_proj", "F16", ""),
    ("clip_l.safetensors", "clip_l_proj", "F16", ""),
    ("qwen_3_4b.safetensors", "qwen3_4b", "BF16", ""),
    ("text_encoder/model.safetensors", "clip_l_proj", "F16", ""),
    ("text_encoder_2/model.safetensors", "clip_g_proj", "F16", ""),
    ("flux2-vae.safetensors", "flux2_vae.single", "F32", ""),
];
/// Weights in several files: the beginning of their names, within these artifacts, and the list of all of them.
const SHARDED: &[(&str, &str, &str, &str)] = &[
    ("sd35-large", "transformer/diffusion_pytorch_model", "sd35_large_transformer", "BF16"),
    ("sd35-large", "text_encoder_3/model", "t5_xxl_encoder", "F16"),
    ("sd35-large-turbo", "transformer/diffusion_pytorch_model", "sd35_large_transformer", "BF16"),
    ("sd35-large-turbo", "text_encoder_3/model", "t5_xxl_encoder", "F16"),
    ("wan22-ti2v-5b", "transformer/diffusion_pytorch_model", "wan22_ti2v_5b", "BF16"),
    ("wan22-ti2v-5b", "text_encoder/model", "umt5_xxl_encoder", "BF16"),
];

/// The repository's lab in a folder of its own, and how many files with how many bytes were made.
struct FullSize {
    lab: Lab,
    files: usize,
    bytes: u64,
}

impl FullSize {
    fn make() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &Path| fs_err::read_to_string(path).unwrap();
        let lab = Lab::new(&read(&root.join("inventory.toml")), "# replaced below\n");
        for entry in fs_err::read_dir(root.join("manifests")).unwrap().map(Result::unwrap) {
            lab.write(&format!("manifests/{}", entry.file_name().to_str().unwrap()), read(&entry.path()));
        }
        let mut lock: Value = serde_json::from_str(&read(&root.join("inventory.lock"))).unwrap();
        let mut made = Self { lab, files: 0, bytes: 0 };
        for artifact in lock["artifacts"].as_array_mut().unwrap() {
            made.add(artifact);
        }
        made.lab.write("inventory.lock", lock.to_string());
        made
    }

    /// Makes the files of one artifact; what the lock knows of their contents is taken out of it.
    fn add(&mut self, artifact: &mut Value) {
        let Some(folder) = self.folder(artifact) else { return };
        if let Some(pattern) = artifact.get("pattern") {
            for number in 0..pattern["count"].as_u64().unwrap() {
                let name = pattern["glob"].as_str().unwrap().replace('*', &format!("-{number}"));
                self.sparse(&folder.join(name), &lora(), "BF16");
            }
        }
        let name = artifact["name"].as_str().unwrap().to_owned();
        let files = artifact["files"].as_array_mut().unwrap();
        for file in files.iter_mut() {
            let path = file["path"].as_str().unwrap().to_owned();
            let size = file["size"].as_u64().unwrap_or(1 << 30);
            self.put(&name, &folder.join(&path), &path, size);
            ["size", "digests", "lfs", "first-use"]
                .iter()
                .for_each(|key| drop(file.as_object_mut().unwrap().remove(*key)));
        }
        let paths: Vec<String> = files.iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect();
        for (_, start, list, dtype) in SHARDED.iter().filter(|(artifact, ..)| *artifact == name) {
            self.shards(&folder, &paths, (start, list, dtype));
        }
    }

    fn folder(&self, artifact: &Value) -> Option<PathBuf> {
        let plain = |path: &str| Some(self.lab.path("home").join(path));
        match artifact["store"].as_str().unwrap() {
            "swarmui" => plain("ai/SwarmUI/Models"),
            "gpu-service" => plain("ai/ai4artsed_development/gpu_service"),
            "wheels" => plain("ai/wheels"),
            "heartmula" => plain("ai/heartlib/ckpt"),
            "huggingface" => {
                let source = artifact["source"].as_str().unwrap().strip_prefix("hf:").unwrap();
                let (repo, _) = source.split_once('@').unwrap_or((source, ""));
                let revision = artifact["revision"].as_str()?;
                let hub = self.lab.path("home").join(".cache/huggingface/hub");
                let hub = hub.join(format!("models--{}", repo.replace('/', "--")));
                write_atomic(&hub.join("refs/main"), revision.as_bytes(), &WriteOptions::default()).unwrap();
                Some(hub.join("snapshots").join(revision))
            }
            _ => None,
        }
    }

    fn put(&mut self, artifact: &str, place: &Path, path: &str, size: u64) {
        let list = LISTS.iter().find(|(ending, ..)| path.ends_with(ending));
        match list {
            None if artifact.starts_with("sd35-large") && path.starts_with("vae/diffusion") => {
                return self.sparse(place, &expected("sd35_vae"), "BF16");
            }
            Some((_, list, dtype, prefix)) => return self.sparse(place, &prefixed(prefix, expected(list)), dtype),
            None if path.ends_with(".safetensors") && path.starts_with("loras/") => {
                return self.sparse(place, &lora(), "BF16");
            }
            None if path.ends_with(".safetensors") => {
                let rows = (size / 2048).max(1);
                return self.sparse(place, &Tensors::from([("weight".to_owned(), vec![rows, 1024])]), "BF16");
            }
            None => {}
        }
        let example = |name: &str| {
            fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickles/good").join(name)).unwrap()
        };
        let bytes = match path.rsplit('.').next().unwrap() {
            "pth" | "pt" | "bin" | "ckpt" => example("zip.pth"),
            "whl" => example("arrays.npz"),
            "json" if artifact == "wan22-ti2v-5b" || path == "model_index.json" => b"{}".to_vec(),
            "json" => b"{\"model\": {\"vocab\": {\"a\": 0}}}".to_vec(),
            "model" => b"\x0a\x08\x0a\x01a\x15\0\0\0\0".to_vec(),
            _ => b"a text".to_vec(),
        };
        self.files += 1;
        self.bytes += bytes.len() as u64;
        write_atomic(place, &bytes, &WriteOptions::default()).unwrap();
    }

    fn sparse(&mut self, place: &Path, tensors: &Tensors, dtype: &str) {
        self.files += 1;
        self.bytes += match dtype {
            "scale_weight" | "weight_scale" => sparse::write_typed(place, &sparse::scaled(tensors, dtype), &[]),
            dtype => sparse::write(place, tensors, dtype),
        };
    }

    /// Shares the tensors of a list among the shards, and writes the index.
    fn shards(&mut self, folder: &Path, paths: &[String], (start, list, dtype): (&str, &str, &str)) {
        let all = expected(list);
        let shards: Vec<&String> =
            paths.iter().filter(|path| path.starts_with(start) && path.ends_with(".safetensors")).collect();
        let tensors: Vec<(&String, &Vec<u64>)> = all.iter().collect();
        let mut map = BTreeMap::new();
        for (part, path) in tensors.chunks(tensors.len().div_ceil(shards.len())).zip(&shards) {
            let part: Tensors = part.iter().map(|(name, shape)| ((*name).clone(), (*shape).clone())).collect();
            map.extend(part.keys().map(|name| (name.clone(), path.rsplit('/').next().unwrap())));
            let before = fs_err::metadata(folder.join(path)).unwrap().len();
            self.bytes = self.bytes - before + sparse::write(&folder.join(path), &part, dtype);
        }
        let index = folder.join(format!("{start}.safetensors.index.json"));
        write_atomic(&index, json!({"weight_map": map}).to_string().as_bytes(), &WriteOptions::default()).unwrap();
    }
}

fn lora() -> Tensors {
    let pair = |block: u64| {
        let module = format!("diffusion_model.blocks.{block}.ffn.0");
        [(format!("{module}.lora_down.weight"), vec![64, 5120]), (format!("{module}.lora_up.weight"), vec![13824, 64])]
    };
    (0..40).flat_map(pair).collect()
}

/// Bytes that a process has asked to read, when it has ended and nobody has yet asked how.
fn bytes_read(child: &Child) -> u64 {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let pid = Pid::from_child(child);
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    let io = fs_err::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn the_whole_lab_is_judged_by_its_headers() {
    let made = FullSize::make();
    assert!(made.files >= 160 && made.bytes > 500_000_000_000, "{} files, {} bytes", made.files, made.bytes);
    let answer = made.lab.path("answer.json");
    let out = fs_err::OpenOptions::new().write(true).create_new(true).open(&answer).unwrap();
    let began = Instant::now();
    // More memory than this it does not get, whatever the sizes: 256 MiB.
    let limited = "ulimit -d 262144; exec \"$0\" smoke --json --offline --level structure";
    let mut command = Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_larder")]).current_dir(made.lab.path(""));
    command.env_clear().env("HOME", made.lab.path("home")).env("LARDER_STATE", made.lab.path("state"));
    let mut child = command.stdout(Stdio::from(out.into_file())).spawn().unwrap();
    let read = bytes_read(&child);
    let took = began.elapsed();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let said: Value = serde_json::from_str(&fs_err::read_to_string(&answer).unwrap()).unwrap();
    let verdicts = said["artifacts"].as_array().unwrap();
    // What is seen depends on the machine; how much is read does not.
    println!("{} files, {} bytes: {read} bytes read in {took:?}", made.files, made.bytes);
    assert!(read < 64 << 20, "{read} bytes were read");
    for name in
        ["flux2-dev", "sd35-large", "sd35-large-single", "wan22-i2v-low-fp8", "wan22-i2v-high-fp8", "t5xxl-fp16"]
    {
        let verdict = verdicts.iter().find(|verdict| verdict["artifact"] == name).unwrap();
        let checks = verdict["checks"].as_array().unwrap();
        let failed: Vec<&str> = checks
            .iter()
            .filter(|check| check["outcome"] == "failed" && check["name"] != "files")
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert_eq!(failed, ["written"], "{name}: {verdict}");
        let known = checks.iter().filter(|check| check["basis"].as_str().unwrap().contains("reference class"));
        assert!(known.count() > 0, "{name}: {verdict}");
    }
}
