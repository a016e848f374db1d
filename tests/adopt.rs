//! `larder adopt` on machines that have models and no larder: a SwarmUI tree, a cache that Python wrote, Ollama's.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests set up the trees that larder looks at")]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use larder::digest::Sha256;
use serde_json::Value;

#[path = "support/hub.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod hub;
#[path = "support/parts.rs"]
mod parts;
#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;
#[path = "support/python.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod python;
#[path = "support/tiny_bert.rs"]
mod tiny_bert;

use program::Lab;

const INVENTORY: &str = "machine = \"pc1\"\n[machines.pc1]\n[stores]\n\
    swarmui = { layout = \"folder\", path = \"~/swarm\" }\ncomfy = { layout = \"folder\", path = \"~/comfy\" }\n\
    hub = { layout = \"hf-cache\", path = \"~/hub\" }\nollama = { layout = \"ollama\", path = \"~/ollama\" }\n";

fn content(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// What was seen, by kind and path.
fn survey(lab: &Lab, arguments: &[&str]) -> (i32, BTreeMap<String, String>, Value) {
    let said = lab.run(&[&["adopt", "--json", "--quiet"], arguments].concat());
    let value: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let mut seen = BTreeMap::new();
    for store in value["stores"].as_array().unwrap() {
        for kind in ["known", "elsewhere", "unknown", "links", "leftovers", "unreadable"] {
            for one in store[kind].as_array().unwrap() {
                let text = |key: &str| one[key].as_str().unwrap().to_owned();
                seen.insert(format!("{kind} {}/{}", store["store"].as_str().unwrap(), text("path")), text("what"));
            }
        }
    }
    (said.code, seen, value)
}

#[test]
fn what_a_pattern_knows_is_known() {
    let manifest = "[[artifact]]\nname = \"style\"\nstore = \"swarmui\"\nsource = \"local\"\n\
        match = { glob = \"loras/style*.safetensors\", count = 2 }\n";
    let lab = Lab::new(INVENTORY, manifest);
    for (name, seed) in [("style-1", 1), ("style-2", 2), ("other", 3)] {
        lab.write(&format!("home/swarm/loras/{name}.safetensors"), content(seed, 9_000));
    }
    let (code, seen, _) = survey(&lab, &[]);
    assert_eq!(code, 3);
    let known: Vec<_> = seen.iter().map(|(what, which)| (what.as_str(), which.as_str())).collect();
    assert_eq!(
        known[..2],
        [("known swarmui/loras/style-1.safetensors", "style"), ("known swarmui/loras/style-2.safetensors", "style"),]
    );
    assert_eq!((known.len(), known[2].0), (3, "unknown swarmui/loras/other.safetensors"));
}

/// The owner's document gives totals that its rows do not add up to ("+ weitere"): what lies there is told by section.
#[test]
fn totals_of_the_document_are_compared_with_what_lies_here() {
    let section = |name: &str, more: &str| format!("[[section]]\nname = \"{name}\"\ntitle = \"The {name}\"\n{more}\n");
    let entry = |name: &str, section: &str, path: &str, len: usize| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nsection = \"{section}\"\nstore = \"swarmui\"\nsource = \"local\"\nfile = [{{ path = \"{path}\", size = {len} }}]\n"
        )
    };
    let manifest = [
        section("all", "documented = \"~700 KB\""),
        section("clip", "documented = \"~134 KB\"\npart-of = \"all\""),
        section("vae", "part-of = \"all\""),
        section("absent", "documented = \"~9 GB\""),
        entry("clip-l", "clip", "clip/l.bin", 9_000),
        entry("deep", "vae", "clip/vae/own.bin", 8_000),
        entry("kl", "vae", "vae/kl.bin", 7_000),
    ];
    let lab = Lab::new(INVENTORY, &manifest.concat());
    for (path, len) in [
        ("clip/l.bin", 9_000),
        ("clip/umt5.bin", 5_000),
        ("clip/more/other.bin", 500),
        ("clip/vae/own.bin", 8_000),
        ("clip/vae/weitere.bin", 300),
        ("vae/kl.bin", 7_000),
        ("loras/nobody.bin", 50),
    ] {
        lab.write(&format!("home/swarm/{path}"), content(len as u8, len));
    }
    let (_, _, value) = survey(&lab, &[]);
    let sections: Vec<_> = value["sections"].as_array().unwrap().iter().map(|one| one.to_string()).collect();
    let told = |name: &str, documented: &str, known: u64, unknown: u64, count: u64| {
        serde_json::json!({
            "name": name, "title": format!("The {name}"), "documented": documented, "known_bytes": known,
            "unknown_bytes": unknown, "unknown": count,
        })
        .to_string()
    };
    assert_eq!(sections, [told("all", "~700 KB", 24_000, 5_800, 3), told("clip", "~134 KB", 9_000, 5_500, 2)]);
    let said = lab.run(&["adopt"]);
    let line = said.out.lines().find(|line| line.contains("The clip")).unwrap_or_else(|| panic!("{said:?}"));
    assert!(line.contains("~134 KB") && line.contains("2: 5."), "{line}");
}

/// The names of a cache's blobs say what they are, whatever the repository's folder is called.
#[test]
fn repositories_under_other_names_are_known_by_their_blobs() {
    let contents = [content(1, 40_000), content(2, 30_000), content(3, 20_000)];
    let entry = |name: &str, source: &str, files: &[usize]| {
        let file = |number: &usize| {
            let bytes = &contents[*number];
            format!("{{ path = \"{number}.bin\", size = {}, sha256 = \"{}\" }}", bytes.len(), Sha256::of(bytes))
        };
        let files: Vec<String> = files.iter().map(file).collect();
        let file = files.join(", ");
        format!("[[artifact]]\nname = \"{name}\"\nstore = \"hub\"\nsource = \"hf:{source}\"\nfile = [{file}]\n")
    };
    let manifest = [entry("paint", "lab/paint", &[0, 1]), entry("talk", "lab/talk", &[1])].concat();
    let lab = Lab::new(INVENTORY, &manifest);
    let commit = "0123456789012345678901234567890123456789";
    let own = content(9, 10_000);
    let all = [("0.bin", &contents[0]), ("1.bin", &contents[1])];
    let (some, none) = ([("0.bin", &contents[0]), ("own.bin", &own)], [("own.bin", &own)]);
    let folders = [
        ("models--lab--paint-fork", &all[..]),
        ("old paint", &all),
        ("models--lab--mixture", &some),
        ("old mixture", &some),
        ("old own", &none),
    ];
    for (folder, files) in folders {
        let snapshot = format!("home/hub/{folder}/snapshots/{commit}");
        std::fs::create_dir_all(lab.path(&snapshot)).unwrap();
        // Small files are named by git's digest, and tell nothing.
        let readme = ("README.md", "00c0ffee00000000000000000000000000c0ffee".to_owned(), b"read me".to_vec());
        let large = files.iter().map(|(name, bytes)| (*name, Sha256::of(bytes).to_string(), (*bytes).clone()));
        for (name, blob, bytes) in large.chain([readme]) {
            lab.write(&format!("home/hub/{folder}/blobs/{blob}"), bytes);
            symlink(format!("../../blobs/{blob}"), lab.path(&snapshot).join(name)).unwrap();
        }
    }
    let (code, seen, value) = survey(&lab, &[]);
    assert_eq!(code, 3);
    let what = |key: &str| seen.get(key).map(String::as_str).unwrap_or_else(|| panic!("{key} is not in {seen:#?}"));
    assert_eq!(what("elsewhere hub/models--lab--paint-fork"), "the files of paint, as a repository of another name");
    assert_eq!(what("elsewhere hub/old paint"), "the files of paint, in a folder of another name");
    let half = "1 of its 2 large files are those of paint";
    assert!(what("unknown hub/models--lab--mixture").ends_with(&format!("; {half}")), "{seen:#?}");
    assert!(what("unknown hub/old mixture").ends_with(&format!("does not say which; {half}")), "{seen:#?}");
    assert!(what("unknown hub/old own").ends_with("does not say which"), "{seen:#?}");
    let proposed = value["proposals"].as_array().unwrap();
    assert_eq!(proposed.len(), 1, "where a source is known and no artifact has all of it: {proposed:?}");
    assert!(!seen.keys().any(|key| key.starts_with("leftovers")), "{seen:#?}");
}

#[test]
fn a_tree_with_links_in_both_directions_is_understood_and_adopted() {
    let vae = content(1, 70_000);
    let manifest = format!(
        "[[artifact]]\nname = \"vae\"\nstore = \"swarmui\"\nsource = \"https://example.org/vae.safetensors\"\nfile = [{{ path = \"vae/vae.safetensors\", size = {}, sha256 = \"{}\" }}]\n\
         [[artifact]]\nname = \"clip\"\nstore = \"swarmui\"\nsource = \"https://example.org/clip.bin\"\nfile = [{{ path = \"clip/clip.bin\", size = 9 }}]\n",
        vae.len(),
        Sha256::of(&vae)
    );
    let lab = Lab::new(INVENTORY, &manifest);
    for (path, bytes) in [
        ("swarm/checkpoints/Renamed VAE.safetensors", vae.as_slice()),
        ("swarm/clip/clip.bin", b"123456789"),
        ("swarm/loras/Solarization (v2).safetensors", &content(2, 50_000)),
        ("swarm/loras/Solarization (v2).json", b"{\"trigger\": \"solar\"}"),
        ("swarm/llm/config.json", b"{}"),
        ("swarm/llm/model-00001-of-00002.bin", &content(3, 9_000)),
        ("swarm/llm/part/config.json", b"{\"a\": 1}"),
        ("swarm/half.safetensors.aria2", b"control"),
        ("swarm/half.safetensors", &content(4, 5_000)),
        ("swarm/empty.bin", b""),
        ("swarm/page.bin", b"<!DOCTYPE html><html>401</html>"),
        ("swarm/pointer.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("comfy/loras/own.safetensors", &content(5, 4_000)),
        ("outside/model.bin", b"outside"),
    ] {
        lab.write(&format!("home/{path}"), bytes);
    }
    symlink(lab.path("home/comfy/loras/own.safetensors"), lab.path("home/swarm/loras/own.safetensors")).unwrap();
    symlink("../../swarm/clip/clip.bin", lab.path("home/comfy/loras/clip.bin")).unwrap();
    symlink(lab.path("home/outside"), lab.path("home/swarm/more")).unwrap();
    symlink("nowhere", lab.path("home/swarm/gone")).unwrap();

    let (code, seen, value) = survey(&lab, &["--out", "."]);
    assert_eq!(code, 3);
    let what = |key: &str| seen.get(key).map(String::as_str).unwrap_or_else(|| panic!("{key} is not in {seen:#?}"));
    assert_eq!(what("elsewhere swarmui/checkpoints/Renamed VAE.safetensors"), "the content of vae/vae/vae.safetensors");
    assert_eq!(what("known swarmui/clip/clip.bin"), "clip/clip/clip.bin");
    assert!(what("links swarmui/loras/own.safetensors").starts_with("a link within the stores"));
    assert!(what("links comfy/loras/clip.bin").starts_with("a link within the stores"));
    assert!(what("links swarmui/more").starts_with("a link out of all stores"));
    assert_eq!(what("links swarmui/gone"), "a link to nothing");
    for (path, why) in [
        ("half.safetensors", "aria2 has not finished it"),
        ("half.safetensors.aria2", "an unfinished download"),
        ("empty.bin", "empty"),
        ("page.bin", "a web page"),
        ("pointer.bin", "a git-lfs pointer"),
    ] {
        assert_eq!(what(&format!("leftovers swarmui/{path}")), why);
    }
    let proposals = value["proposals"].as_array().unwrap();
    let names: Vec<(&str, usize)> =
        proposals.iter().map(|one| (one["name"].as_str().unwrap(), one["file"].as_array().unwrap().len())).collect();
    assert_eq!(names, [("own", 1), ("llm", 3), ("solarization--v2", 2)], "each file once, models together");
    assert!(proposals.iter().all(|one| one["source"] == "local"));

    let lock = fs_err::read_to_string(lab.path("adopted.lock")).unwrap();
    assert_eq!(lock.matches("\"irreplaceable\":true").count(), 3, "{lock}");
    let again = lab.run(&["adopt", "--out", "."]);
    assert!(again.code == 2 && again.err.contains("adopted.toml exists"), "{again:?}");
    lab.write("manifests/adopted.toml", fs_err::read(lab.path("adopted.toml")).unwrap());
    let verified = lab.run(&["verify", "--only", "own", "--only", "llm", "--only", "solarization--v2"]);
    assert!(verified.code == 0 && verified.out.contains("6 proven, no fault"), "{verified:?}");
    let (code, seen, value) = survey(&lab, &[]);
    assert!(code == 0 && seen.keys().all(|key| !key.starts_with("unknown")), "{seen:#?}");
    assert_eq!(value["bytes_read"], 0, "what was read is remembered");
}

#[test]
fn a_cache_that_python_wrote_is_adopted_without_reading_it() {
    for name in python::CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let upstream = hub::Hub::start();
        let files = tiny_bert::repository();
        let files: Vec<_> = files.iter().map(|(path, lfs, content)| (*path, content.as_slice(), *lfs)).collect();
        let commit = upstream.commit("acme/hand", &files);
        let lab = Lab::new(INVENTORY, "");
        let mut download: Command = python::client(&hf, &lab.path("home"));
        download.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &upstream.origin);
        python::output(download.args(["download", "acme/hand"]));
        let stray = lab.path("home/hub/models--acme--hand/blobs/0123.incomplete");
        larder::fsio::write_atomic(&stray, b"half", &larder::fsio::WriteOptions::default()).unwrap();

        let (code, seen, value) = survey(&lab, &["--out", "."]);
        assert_eq!((code, &value["bytes_read"]), (3, &Value::from(0)));
        assert_eq!(seen["unknown hub/models--acme--hand"], format!("hf:acme/hand@{commit}"));
        assert_eq!(seen["leftovers hub/models--acme--hand/blobs/0123.incomplete"], "an unfinished download");
        let proposal = &value["proposals"][0];
        assert_eq!(proposal["file"].as_array().unwrap().len(), files.len());
        adopt_and_verify(&lab, "hand");
    }
}

/// Takes the proposal over; the files must be what it says.
#[track_caller]
fn adopt_and_verify(lab: &Lab, name: &str) {
    lab.write("manifests/adopted.toml", fs_err::read(lab.path("adopted.toml")).unwrap());
    lab.write("inventory.lock", fs_err::read(lab.path("adopted.lock")).unwrap());
    let verified = lab.run(&["verify", "--only", name]);
    assert!(verified.code == 0 && verified.out.contains("no fault"), "{verified:?}");
    let (code, seen, _) = survey(lab, &[]);
    assert!(code == 0 && seen.keys().any(|key| key.starts_with("known")), "{seen:#?}");
}

#[test]
fn an_ollama_store_is_adopted_and_orphans_are_told() {
    let lab = Lab::new(INVENTORY, "");
    let blob = |bytes: &[u8]| {
        let digest = Sha256::of(bytes);
        lab.write(&format!("home/ollama/blobs/sha256-{digest}"), bytes);
        digest
    };
    let (model, config) = (content(7, 40_000), b"{\"model_format\":\"gguf\"}");
    let layer = |kind: &str, bytes: &[u8]| {
        format!("{{\"mediaType\":\"{kind}\",\"digest\":\"sha256:{}\",\"size\":{}}}", blob(bytes), bytes.len())
    };
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\"config\":{},\"layers\":[{}]}}",
        layer("application/vnd.docker.container.image.v1+json", config),
        layer("application/vnd.ollama.image.model", &model)
    );
    lab.write("home/ollama/manifests/registry.ollama.ai/library/guard/1b", &manifest);
    let orphan = blob(b"nobody wants me");
    let (_, seen, _) = survey(&lab, &["--store", "ollama"]);
    assert_eq!(seen[&format!("leftovers ollama/blobs/sha256-{orphan}")], "no manifest names it");
    lab.write("home/ollama/manifests/registry.ollama.ai/library/broken/1b", "<html>");

    let (code, seen, value) = survey(&lab, &["--out", ".", "--store", "ollama"]);
    assert_eq!(code, 3);
    assert_eq!(seen["unknown ollama/manifests/registry.ollama.ai/library/guard/1b"], "ollama:guard:1b");
    let why = "no manifest that can be read names it";
    assert_eq!(seen[&format!("unknown ollama/blobs/sha256-{orphan}")], why, "the broken one may need it");
    assert!(seen.contains_key("unreadable ollama/manifests/registry.ollama.ai/library/broken/1b"), "{seen:#?}");
    assert_eq!(value["proposals"][0]["manifest"], Sha256::of(manifest.as_bytes()).to_string());
    assert_eq!(value["proposals"][0]["name"], "guard:1b");
    let text = fs_err::read_to_string(lab.path("adopted.toml")).unwrap();
    assert!(text.contains("source = \"ollama:guard:1b\""), "{text}");
    lab.write("manifests/adopted.toml", text);
    let (code, seen, _) = survey(&lab, &[]);
    assert!(code == 0 && seen.keys().any(|key| key.starts_with("known ollama/")), "{seen:#?}");
}

#[test]
fn nothing_is_written_unless_asked() {
    let lab = Lab::new(INVENTORY, "");
    lab.write("home/swarm/a.bin", b"a");
    let said = lab.run(&["adopt"]);
    assert!(said.code == 3 && said.out.contains("unknown: swarmui/a.bin: 1 B, "), "{said:?}");
    assert!(said.err.contains("Nothing has been written"), "{}", said.err);
    let names: Vec<_> =
        fs_err::read_dir(lab.path("home/swarm")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a.bin"], "the store is as it was");
    assert!(!Path::new(&lab.path("adopted.toml")).exists());
}

/// A drive that another machine packed: its lock says what this machine's manifests do not.
#[test]
fn a_drive_says_what_is_on_it_and_what_the_manifests_lack() {
    let (vae, rare) = (content(1, 70_000), content(2, 90_000));
    let entry = |name: &str, path: &str, bytes: &[u8]| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nstore = \"swarmui\"\nsource = \"local\"\nfile = [{{ path = \"{path}\", size = {}, sha256 = \"{}\" }}]\n",
            bytes.len(),
            Sha256::of(bytes)
        )
    };
    let (first, second) = (entry("vae", "vae/a.safetensors", &vae), entry("rare", "lora/rare.safetensors", &rare));
    let packing = Lab::new(INVENTORY, &format!("{first}{second}"));
    packing.write("home/swarm/vae/a.safetensors", &vae);
    packing.write("home/swarm/lora/rare.safetensors", &rare);
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    assert_eq!(packing.run(&["copy", "--to", folder, "--yes"]).code, 0);
    std::fs::write(drive.path().join("blobs/holiday.jpg"), b"?").unwrap();
    std::fs::write(drive.path().join(".larder/sha256-ab.partial"), b"half").unwrap();
    let here = Lab::new(INVENTORY, &first);
    let (code, seen, value) = survey(&here, &["--drive", folder]);
    assert_eq!(code, 3, "{value}");
    let blob = |bytes: &[u8]| format!("drive/blobs/sha256-{}", Sha256::of(bytes));
    assert_eq!(seen[&format!("known {}", blob(&vae))], "vae/vae/a.safetensors");
    assert_eq!(seen[&format!("unknown {}", blob(&rare))], "rare/lora/rare.safetensors, says the drive's lock");
    assert_eq!(seen["unknown drive/blobs/holiday.jpg"], "its name is no digest");
    assert!(seen.contains_key("leftovers drive/.larder/sha256-ab.partial"), "{seen:?}");
    assert_eq!((value["proposals"].as_array().unwrap().len(), &value["proposals"][0]["name"]), (1, &"rare".into()));
    assert_eq!(here.run(&["adopt", "--drive", folder, "--out", "."]).code, 3);
    std::fs::copy(here.path("adopted.toml"), here.path("manifests/adopted.toml")).unwrap();
    let taken = here.run(&["copy", "--from", folder, "--yes"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    assert!(std::fs::read(here.path("home/swarm/lora/rare.safetensors")).unwrap() == rare);
    let nowhere = here.run(&["adopt", "--drive", "/no/such/drive"]);
    assert!(nowhere.code == 2 && nowhere.err.contains("is the drive mounted?"), "{}", nowhere.err);
}
