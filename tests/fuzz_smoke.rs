//! Every parser of foreign input, fed with thousands of damaged examples in the ordinary test run.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

#[path = "support/fuzz_entries.rs"]
#[expect(unreachable_pub, reason = "shared with the targets in fuzz/")]
mod fuzz_entries;

use fuzz_entries::ENTRIES;

const CASES: u32 = 3000;
/// For parsers that work on files of their own, or on long ones.
const FEW_CASES: u32 = 100;

/// Good input for each parser: damage to it gets deeper than noise does.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let texts: &[&str] = match name {
        "manifest" => &[
            "[[section]]\nname = \"hf\"\ntitle = \"Hub\"\n\n[[artifact]]\nname = \"sd\"\nsource = \"hf:a/b@main\"\nstore = \"huggingface\"\n\
             include = [\"*.json\", \"te*/x\"]\nsize = \"25.7 GiB\"\ngated = true\ntags = [\"image\"]\n\n  [[artifact.file]]\n  path = \"clip/t5.safetensors\"\n  \
             source = \"hf:m/g/t5.safetensors\"\n  size = 4893934904\n  sha256 = \"7d330da4816157540d6bb7838bf63a0f02f573fc48ca4d8de34bb0cbfd514f09\"\n",
            "[[condition]]\nname = \"c\"\nwhy = \"w\"\nfix = \"f\"\nrequire = { kind = \"text-present\", file = \"x\", text = \"y\" }\n\
             [[package]]\nname = \"torch\"\nversion = \"2.9\"\n[[cloud]]\nname = \"A\"\nmodel = \"b\"\nprovider = \"c\"\nkey = \"k\"\n",
        ],
        "inventory" => &[
            "manifests = [\"manifests/*.toml\"]\nmachine = \"pc1\"\n[stores]\nhuggingface = { layout = \"hf-cache\", path = \"~/hub\" }\n\
             ollama = { layout = \"ollama\", path = \"/o\", api = \"http://127.0.0.1:11434\" }\n[profiles]\nall = { artifacts = [\"*\", \"tag:x\"] }\n\
             [machines]\npc1 = { profile = \"all\", ssh = \"u@pc1\" }\n[sources]\norder = [\"drive\", \"upstream\"]\nmax-rate = \"80 MB/s\"\n[policy]\ndeny = [\"qwen*\"]\n",
        ],
        "lock" => &[
            "{\"version\": 1, \"revision\": 0, \"artifacts\": [\n{\"name\":\"sd\",\"store\":\"hf\",\"source\":\"hf:a/b\",\"declared\":\"0\",\
             \"revision\":\"0123456789abcdef0123456789abcdef01234567\",\"origin\":\"upstream\",\"complete\":true,\"files\":[\n  \
             {\"path\":\"a/b.json\",\"size\":3,\"digests\":{\"git-sha1\":\"f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f\"},\"lfs\":false}]}\n]}\n",
        ],
        "reference" => &[
            "hf:datasets/acme/images@refs%2Fpr%2F1/a/b.bin",
            "ollama:127.0.0.1:5000/library/x:1b",
            "acme/tiny:latest",
            "https://example.org/a/b.pth?x=1",
            "file:/srv/models",
            "local",
        ],
        "relpath" => &["text_encoder/model-00001-of-00002.safetensors", "a b/ü.bin", "../x", "C:/x"],
        "shard_index" => &[
            "{\"metadata\":{\"total_size\":1.5e3},\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"sub/m-2.safetensors\"}}",
        ],
        "hub_tree" => &[
            "[{\"type\":\"directory\",\"oid\":\"d1e85db2887d95ee9e0f6206771a4c52f9233e2f\",\"size\":0,\"path\":\"vae\"},\
             {\"type\":\"file\",\"oid\":\"d1e85db2887d95ee9e0f6206771a4c52f9233e2f\",\"size\":706,\"path\":\"model_index.json\"},\
             {\"type\":\"file\",\"oid\":\"f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f\",\"size\":1389382176,\"path\":\"vae/x.safetensors\",\
             \"lfs\":{\"oid\":\"ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4\",\"size\":1389382176,\"pointerSize\":135}}]",
        ],
        "hub_revision" => &[
            "{\"id\":\"acme/tiny\",\"sha\":\"0123456789abcdef0123456789abcdef01234567\",\"private\":false,\"gated\":\"manual\",\
             \"siblings\":[{\"rfilename\":\"config.json\"}],\"cardData\":{\"license\":\"mit\"},\"lastModified\":\"2026-02-23T00:00:00.000Z\"}",
        ],
        "ollama_manifest" => {
            &["{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\
             \"config\":{\"mediaType\":\"application/vnd.docker.container.image.v1+json\",\
             \"digest\":\"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",\"size\":3},\
             \"layers\":[{\"mediaType\":\"application/vnd.ollama.image.model\",\
             \"digest\":\"sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\",\"size\":7}]}"]
        }
        "store_mark" => &["# larder knows this store by its id\nid = \"0123456789abcdef\"\nname = \"swarmui\"\n"],
        "facts" => return vec![facts()],
        "safetensors" => return vec![safetensors()],
        "gguf" => return vec![gguf()],
        "weights" => {
            return vec![
                safetensors(),
                gguf(),
                b"PK\x03\x04PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\x04\0\0\0\0\0".to_vec(),
                b"<!doctype html>".to_vec(),
            ];
        }
        "torch" => return examples(&["zip.pth", "legacy.pth", "float8.pt", "numpy.pt"]),
        "pickle" => return examples(&["arrays-protocol-0.pkl", "arrays-protocol-2.pkl", "arrays-protocol-5.pkl"]),
        "numpy" => return examples(&["array.npy", "arrays.npz"]),
        "blank" => return vec![large_safetensors()],
        other => panic!("no seeds for {other}"),
    };
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Files that torch, numpy and Python wrote.
fn examples(names: &[&str]) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickles/good");
    names.iter().map(|name| std::fs::read(folder.join(name)).unwrap()).collect()
}

/// One matrix that is large enough to be looked at for zeros, half of which are.
fn large_safetensors() -> Vec<u8> {
    let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"F32","shape":[256,300],"data_offsets":[2,307202]}}"#;
    let data = [vec![7; 153_602], vec![0; 153_600]].concat();
    [&(header.len() as u64).to_le_bytes()[..], header, &data].concat()
}

/// A database with one measurement and one mark.
fn facts() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("facts.sqlite");
    let facts = larder::facts::Facts::open(&path).unwrap();
    let found =
        larder::artifact::Found { path: "/store/a".into(), size: 3, mtime_ns: 5, inode: 7, device: 1, owner: (0, 0) };
    facts.record(&found, &larder::digest::Digests::sha256(larder::digest::Sha256::of(b"abc")), 77).unwrap();
    facts.remember_store_mark(std::path::Path::new("/store"), "id").unwrap();
    // Closing writes everything into the one file.
    drop(facts);
    std::fs::read(&path).unwrap()
}

fn safetensors() -> Vec<u8> {
    let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F4","shape":[4],"data_offsets":[8,10]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header, &[0; 10]].concat()
}

fn gguf() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let header = [
        b"GGUF\x03\0\0\0".to_vec(),
        1u64.to_le_bytes().to_vec(),
        2u64.to_le_bytes().to_vec(),
        text("general.architecture"),
        8u32.to_le_bytes().to_vec(),
        text("llama"),
        text("list"),
        [9u32, 8].map(u32::to_le_bytes).concat(),
        1u64.to_le_bytes().to_vec(),
        text("entry"),
        text("token_embd.weight"),
        2u32.to_le_bytes().to_vec(),
        [32u64, 2].map(u64::to_le_bytes).concat(),
        8u32.to_le_bytes().to_vec(),
        0u64.to_le_bytes().to_vec(),
    ];
    let mut file = header.concat();
    file.resize(file.len().next_multiple_of(32) + 68, 1);
    file
}

/// Changes, cuts, doubles and glues pieces of good input.
fn damaged(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<Index>(), any::<u8>()), 0..6);
    let piece = (any::<Index>(), any::<Index>(), any::<Index>());
    (proptest::sample::select(seeds), changes, proptest::option::of(piece), proptest::option::of(any::<Index>()))
        .prop_map(|(mut bytes, changes, piece, cut)| {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some((from, to, at)) = piece {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let copied = bytes[from.min(to)..from.max(to)].to_vec();
                let at = at.index(bytes.len());
                bytes.splice(at..at, copied);
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        })
}

#[test]
fn no_parser_breaks_its_promises_on_damaged_input() {
    for (name, entry) in ENTRIES {
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| entry(seed));
        let cases = if ["facts", "store_mark", "blank"].contains(name) { FEW_CASES } else { CASES };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let run = runner.run(&damaged(seeds), |bytes| {
            entry(&bytes);
            Ok(())
        });
        run.map_err(|error| format!("{name}: {error}")).unwrap();
    }
}

#[test]
fn the_seeds_are_good_input() {
    use std::path::Path;
    let text = |name: &str| String::from_utf8(seeds(name).remove(0)).unwrap();
    larder::manifest::Manifests::parse(Path::new("m"), &text("manifest")).unwrap();
    larder::inventory::Inventory::parse(Path::new("i"), &text("inventory")).unwrap();
    larder::lock::Lock::parse(Path::new("l"), &text("lock")).unwrap();
    assert!(larder::sources::parse_commit(&seeds("hub_revision")[0]).is_some());
    assert!(matches!(check("safetensors"), larder::weights::Kind::Safetensors(_)));
    assert!(matches!(check("gguf"), larder::weights::Kind::Gguf(_)));
    assert!(matches!(check("torch"), larder::weights::Kind::Torch(_)));
    assert!(matches!(check("numpy"), larder::weights::Kind::Numpy));
    assert!(matches!(check("blank"), larder::weights::Kind::Safetensors(_)));
}

fn check(name: &str) -> larder::weights::Kind {
    let bytes = seeds(name).remove(0);
    larder::weights::check(&mut std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap()
}

#[test]
fn every_entry_has_a_target_for_long_searches() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/Cargo.toml")).unwrap();
    for (name, _) in ENTRIES {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no target {name}");
        let target = format!("{}/fuzz/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        assert!(std::path::Path::new(&target).exists(), "{target} is missing");
    }
}
