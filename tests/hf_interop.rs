//! The HF cache against the real Python clients: 1.31.0, the last with blobs per repository only, and the newest.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use larder::artifact::{Artifact, File, Origin};
use larder::digest::{ContentHasher, Digests};
use larder::fsio::{FileLock, Partial, WriteOptions, write_atomic};
use larder::stores::{FileState, HfCacheStore, Store, StoreMark};

#[path = "support/parts.rs"]
mod parts;

const COMMIT: &str = "fedcba9876543210fedcba9876543210fedcba98";
const CLIENTS: [&str; 2] = ["hf-1.31", "hf-latest"];

/// A repository of a tiny BERT: real configuration, real tokenizer, a safetensors file, a sub-folder, an empty file.
fn repository() -> Vec<(&'static str, bool, Vec<u8>)> {
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend_from_slice(header);
    weights.extend_from_slice(&[0, 0, 128, 63, 0, 0, 0, 64]);
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("config.json", false, text(CONFIG)),
        ("model.safetensors", true, weights),
        ("onnx/quantized/config.json", false, text("{}")),
        ("py/__init__.py", false, Vec::new()),
        ("tokenizer.json", false, text(TOKENIZER)),
        ("tokenizer_config.json", false, text(TOKENIZER_CONFIG)),
        ("vocab.txt", false, text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n")),
    ]
}

const CONFIG: &str = r#"{"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 7, "hidden_size": 32,
"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16}"#;

const TOKENIZER_CONFIG: &str = r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": true, "cls_token": "[CLS]",
"sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}"#;

const TOKENIZER: &str = r###"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [
{"id": 0, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
{"id": 1, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
{"id": 2, "content": "[CLS]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
{"id": 3, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
{"id": 4, "content": "[MASK]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
"normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
"pre_tokenizer": {"type": "BertPreTokenizer"},
"post_processor": {"type": "TemplateProcessing",
 "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
 "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
 "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
 "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "hello": 5, "world": 6}}}"###;

fn described(path: &str, lfs: bool, content: &[u8]) -> File {
    let size = content.len() as u64;
    let mut hasher = ContentHasher::new().with_git_sha1(size);
    hasher.update(content);
    let measured = hasher.finish();
    let digests = if lfs { Digests { git_sha1: None, ..measured } } else { Digests { sha256: None, ..measured } };
    File { size: Some(size), digests, lfs: Some(lfs), ..File::named(path.parse().unwrap()) }
}

fn artifact(name: &str, whole: bool) -> Artifact {
    Artifact {
        name: name.to_owned(),
        store: "huggingface".to_owned(),
        source: format!("hf:acme/{name}").parse().unwrap(),
        declared: "0".to_owned(),
        revision: Some(COMMIT.to_owned()),
        origin: Origin::Upstream,
        complete: true,
        whole,
        irreplaceable: false,
        ollama: None,
        pattern: None,
        files: repository().iter().map(|(path, lfs, content)| described(path, *lfs, content)).collect(),
    }
}

fn store(cache: &Path) -> HfCacheStore {
    HfCacheStore::new("huggingface".to_owned(), cache.to_owned(), None)
}

fn place(store: &dyn Store, artifact: &Artifact, file: &File, content: &[u8]) {
    let hasher = ContentHasher::to_compare(&file.digests, file.size);
    let mut partial = Partial::open(&store.staging(), "key", hasher, None).unwrap();
    partial.append(content).unwrap();
    drop(store.place(artifact, file, partial.prove(file.size, &file.digests).unwrap()).unwrap());
}

/// A cache as it is in the middle of larder's work: one repository done, one begun, a partial, the store's mark.
fn larder_writes(cache: &Path, whole: bool) -> Artifact {
    let (store, hand, begun) = (store(cache), artifact("hand", whole), artifact("begun", whole));
    for (file, (_, _, content)) in hand.files.iter().zip(repository()) {
        place(&store, &hand, file, &content);
    }
    store.publish(&hand).unwrap();
    place(&store, &begun, &begun.files[0], CONFIG.as_bytes());
    let mut partial = Partial::open(&store.staging(), "unfinished", ContentHasher::new(), None).unwrap();
    partial.append(b"half of it").unwrap();
    StoreMark::ensure(&store).unwrap();
    hand
}

/// A program of one of the clients, offline and at home in `home`, where the cache is `hub`.
fn client(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).env("HF_HOME", home);
    for name in ["HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "NO_COLOR"] {
        command.env(name, "1");
    }
    command
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hf_interop").join(name)
}

fn must_be_complete(store: &dyn Store, artifact: &Artifact) {
    let observed = store.observe(artifact);
    assert_eq!(observed.published, Ok(()), "{observed:?}");
    assert!(observed.files.iter().all(|state| matches!(state, FileState::Present(_))), "{observed:?}");
}

#[test]
fn python_reads_what_larder_wrote_and_warns_of_nothing() {
    for name in CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        for whole in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let cache = home.path().join("hub");
            let hand = larder_writes(&cache, whole);
            let files = hand.files.iter().map(|file| file.path.as_str());
            let read = client(&python, home.path()).arg(script("read.py")).arg(&cache).arg(COMMIT).args(files).output();
            let read = read.unwrap();
            assert!(read.status.success(), "{name}: {}", String::from_utf8_lossy(&read.stderr));

            let hf = python.with_file_name("hf");
            let listed = output(client(&hf, home.path()).args(["cache", "ls", "--show-warnings"]));
            assert!(listed.contains("acme/hand") && listed.contains("main"), "{name}: {listed}");
            assert!(!listed.to_lowercase().contains("warning"), "{name}: {listed}");

            output(client(&hf, home.path()).args(["cache", "prune", "--yes"]));
            must_be_complete(&store(&cache), &hand);
            let partial = Partial::path_of(&store(&cache).staging(), "unfinished");
            assert_eq!(fs_err::read(partial).unwrap(), b"half of it", "{name}: prune took a partial of ours");
        }
    }
}

#[test]
fn transformers_loads_what_larder_wrote() {
    let Some(python) = parts::part("hf-latest/bin/python") else { return };
    let home = tempfile::tempdir().unwrap();
    larder_writes(&home.path().join("hub"), true);
    let said = output(client(&python, home.path()).arg(script("transform.py")));
    assert!(said.contains("tokens [2, 5, 6, 3]"), "{said}");
}

/// Lets the client's own functions fill a cache; returns what the script printed.
fn python_writes(python: &Path, home: &Path, setting: (&str, &str)) -> String {
    let mut command = client(python, home);
    command.env(setting.0, setting.1).arg(script("write.py")).arg(home.join("hub")).arg(COMMIT);
    for (index, (path, lfs, content)) in repository().into_iter().enumerate() {
        let from = home.join(format!("content-{index}"));
        write_atomic(&from, &content, &WriteOptions::default()).unwrap();
        let digests = described(path, lfs, &content).digests;
        let etag = digests.sha256.map_or_else(|| digests.git_sha1.unwrap().to_string(), |sha256| sha256.to_string());
        command.arg(path).arg(etag).arg(from);
    }
    output(&mut command)
}

#[test]
fn what_python_wrote_is_complete_for_larder() {
    for (name, setting, expected) in [
        ("hf-1.31", ("PLAIN", "1"), "shared 0"),
        ("hf-latest", ("PLAIN", "1"), "shared 0"),
        ("hf-latest", ("SHARE", "1"), "shared 1"),
        ("hf-latest", ("HF_HUB_DISABLE_SYMLINKS", "1"), "shared 0"),
    ] {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        let home = tempfile::tempdir().unwrap();
        let said = python_writes(&python, home.path(), setting);
        assert!(said.contains(expected), "{name} {setting:?}: {said}");
        let cache = home.path().join("hub");
        let before = names(&cache);
        must_be_complete(&store(&cache), &artifact("hand", true));
        assert_eq!(names(&cache), before, "looking changed the cache");
        assert_eq!(cache.join("blobs").exists(), setting.0 == "SHARE", "the case is what it says");
    }
}

fn names(dir: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path()).collect()
}

#[test]
fn larder_and_python_keep_each_other_out_by_the_same_lock() {
    for name in CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        let home = tempfile::tempdir().unwrap();
        let hand = artifact("hand", true);
        let lock = store(&home.path().join("hub")).foreign_locks(&hand, &hand.files[1]).swap_remove(0);
        let held = FileLock::try_acquire(&lock, None).unwrap().expect("nobody holds it");
        let refused = client(&python, home.path()).arg(script("lock.py")).arg(&lock).arg("0.2").output().unwrap();
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("Timeout"));
        drop(held);

        let mut holder = client(&python, home.path());
        holder.arg(script("lock.py")).arg(&lock).arg("30").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        assert!(FileLock::try_acquire(&lock, None).unwrap().is_none(), "{name} holds it");
        drop(holder.stdin.take());
        assert!(holder.wait().unwrap().success());
        assert!(FileLock::try_acquire(&lock, None).unwrap().is_some());
    }
}
