//! `larder smoke` with the genuine all-MiniLM-L6-v2, pulled from another machine: the similarities are those of the
//! reference run, and what a machine recorded tells changed weights whose structure is intact.
#![cfg(feature = "smoke")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use larder::digest::Sha256;
use larder::fsio;
use serde_json::Value;

#[path = "support/machine.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod machine;
#[path = "support/parts.rs"]
mod parts;
#[path = "support/python.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod python;

use machine::{Machine, Said, contents};
use python::{client, output};

const REPOSITORY: &str = "sentence-transformers/all-MiniLM-L6-v2";
/// What the tests call the commit; the wheel that the files come from does not tell it.
const COMMIT: &str = "00000000000000000000000000000000000a11e6";

fn declared(files: &str) -> String {
    format!(
        "[[artifact]]\nname = \"minilm\"\nsource = \"hf:{REPOSITORY}@{COMMIT}\"\nstore = \"huggingface\"\n\
         smoke = \"sentence-embedding\"\n{files}"
    )
}

fn inventory(name: &str, sources: &str) -> String {
    format!(
        "machine = \"{name}\"\n[stores]\nhuggingface = {{ layout = \"hf-cache\", path = \"~/hub\" }}\n[sources]\n\
         {sources}\n[profiles.all]\nartifacts = [\"*\"]\n[machines.pc1]\nprofile = \"all\"\n[machines.pc2]\n\
         profile = \"all\"\n"
    )
}

/// Every file of `drive`, pinned.
fn pinned(drive: &Path) -> String {
    let mut text = "complete = true\n".to_owned();
    for (path, bytes) in contents(drive) {
        let (size, sha256) = (bytes.len(), Sha256::of(&bytes));
        let _ = write!(text, "  [[artifact.file]]\n  path = {path:?}\n  size = {size}\n  sha256 = \"{sha256}\"\n");
    }
    text
}

/// The first machine, which has the model from a drive, and the second, which pulled it from the first one's server.
fn lab(drive: &Path) -> (Machine, Machine) {
    let first = Machine::new(&inventory("pc1", &format!("drives = [{drive:?}]")), &declared(&pinned(drive)));
    first.larder(&["lock", "--offline"]).must_be(0);
    first.larder(&["apply", "--yes", "--offline"]).must_be(0);
    let serving = first.serve();
    let second = Machine::new(&inventory("pc2", &format!("hub = \"{}\"", serving.url())), &declared(""));
    second.larder(&["lock"]).must_be(0);
    second.larder(&["apply", "--yes"]).must_be(0);
    (first, second)
}

const SMOKE: [&str; 5] = ["smoke", "minilm", "--level", "component", "--json"];

/// The checks of the level that computes: outcome and what was measured, by their names.
fn checks(said: &Said) -> BTreeMap<String, (String, String)> {
    let json = said.json();
    let checks = json["artifacts"][0]["checks"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of_level = checks.iter().filter(|check| check["level"] == "component");
    of_level.map(|check| (text(&check["name"]), (text(&check["outcome"]), text(&check["measured"])))).collect()
}

fn weights(machine: &Machine) -> PathBuf {
    let repository = REPOSITORY.replace('/', "--");
    let snapshot = machine.path(&format!("hub/models--{repository}/snapshots/{COMMIT}"));
    fs_err::canonicalize(snapshot.join("model.safetensors")).unwrap()
}

/// Exchanges the numbers of two tensors of one shape.
fn exchange(path: &Path, names: [&str; 2]) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).unwrap();
    let length = u64::from_le_bytes(length);
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, 8).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    let found = names.map(|name| {
        let at = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap();
        let mut bytes = vec![0; (at(1) - at(0)) as usize];
        file.read_exact_at(&mut bytes, 8 + length + at(0)).unwrap();
        (8 + length + at(0), bytes)
    });
    assert_eq!(found[0].1.len(), found[1].1.len());
    file.write_all_at(&found[1].1, found[0].0).unwrap();
    file.write_all_at(&found[0].1, found[1].0).unwrap();
}

#[test]
fn genuine_weights_embed_as_the_reference_does_and_changed_ones_are_told_by_the_record() {
    let (Some(drive), Some(python)) = (parts::part("minilm"), parts::part("hf-latest/bin/python")) else { return };
    let (first, second) = lab(&drive);

    // The same sentences by transformers' tokenizer and numpy, on what the second machine pulled.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_weights/embed.py");
    let reference = output(client(&python, second.home()).arg(script).arg(REPOSITORY));
    let reference = reference.lines().find_map(|line| line.split_once("104 tensors, ")).unwrap().1;
    let reference: Vec<f64> = reference.split(' ').map(|number| number.parse().unwrap()).collect();
    let said = second.larder(&SMOKE).must_be(0);
    let made: Value =
        serde_json::from_slice(&fs_err::read(second.path("smoke/minilm/sentences.json")).unwrap()).unwrap();
    for (i, expected) in reference.iter().enumerate() {
        let found = made["similarities"][i][2].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }
    assert!(said.err.contains("minilm: component needs"), "{said}");
    let page = second.larder(&["report", "--format", "html"]).out;
    assert!(page.contains("The weather is lovely today. – It&#39;s so sunny outside!"), "a person can read it there");
    assert!(!checks(&said).contains_key("reference"), "nobody has recorded anything");

    let recorded = second.larder(&[&SMOKE[..], &["--record"]].concat()).must_be(0);
    assert!(recorded.err.contains("recorded as reference, trusted because it is the first"), "{recorded}");
    let trusted = second.larder(&SMOKE).must_be(0);
    assert_eq!(checks(&trusted)["reference"].0, "passed");
    assert!(trusted.err.contains("compared with what pc2 on "), "{trusted}");

    // The file travels to another machine of the lab, which has the same files by another way.
    let records = fs_err::read_to_string(second.path("inventory.smoke.json")).unwrap();
    first.write("inventory.smoke.json", &records);
    let elsewhere = first.larder(&SMOKE).must_be(0);
    assert_eq!(checks(&elsewhere)["reference"].0, "passed", "{elsewhere}");

    let names = ["query", "key"].map(|part| format!("encoder.layer.5.attention.self.{part}.weight"));
    exchange(&weights(&first), [&names[0], &names[1]]);
    let structure = first.larder(&["smoke", "minilm", "--level", "structure"]).must_be(0);
    assert!(structure.out.contains("passed"), "{structure}");
    let changed = first.larder(&[&SMOKE[..], &["--record"]].concat()).must_be(3);
    let failed: Vec<String> =
        checks(&changed).into_iter().filter(|(_, (outcome, _))| outcome == "failed").map(|(name, _)| name).collect();
    assert_eq!(failed, ["reference"], "it still embeds, but otherwise: {changed}");
    let kept = fs_err::read_to_string(first.path("inventory.smoke.json")).unwrap();
    assert_eq!(kept, records, "a run that differs takes nobody's place");
}

#[test]
fn a_tokenizer_that_is_gone_is_named_and_nothing_is_recorded_without_a_digest() {
    let Some(drive) = parts::part("minilm") else { return };
    let manifest = "[[artifact]]\nname = \"minilm\"\nsource = \"local\"\nstore = \"plain\"\nsmoke = \"sentence-embedding\"\n\
                    file = [{ path = \"config.json\" }, { path = \"model.safetensors\" }, { path = \"tokenizer.json\" }]\n";
    let machine = Machine::new("[stores]\nplain = { layout = \"folder\", path = \"~/plain\" }\n", manifest);
    fsio::create_dir_all(&machine.path("plain"), None).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs_err::copy(drive.join(name), machine.path(&format!("plain/{name}"))).unwrap();
    }
    let said = machine.larder(&[&SMOKE[..], &["--record"]].concat()).must_be(0);
    assert!(said.err.contains("nothing is recorded, because no digest of config.json is known yet"), "{said}");
    assert!(!machine.path("inventory.smoke.json").exists());
    machine.write("plain/tokenizer.json", "{}");
    let broken = machine.larder(&SMOKE);
    assert_eq!(broken.code, Some(3), "{broken}");
    assert!(broken.out.contains("tokenizer.json"), "{broken}");
}
