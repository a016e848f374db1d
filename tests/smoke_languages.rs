//! `larder smoke` with language models in Ollama's store: a safety model must judge rightly in both directions, thoughts
//! must end, and whatever is no clear answer is a fault.
//!
//! The models are made by hand; what they are wrong in is what real ones were wrong in.
#![cfg(feature = "smoke")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write as _;

use larder::digest::Sha256;
use serde_json::Value;

#[path = "support/made_language.rs"]
mod made_language;
#[path = "support/program.rs"]
mod program;

use made_language::Mind;
use program::{INVENTORY, Lab};

const LLAMA: [&str; 6] =
    ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"];
const QWEN: [&str; 5] = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"];

fn guard() -> Mind {
    Mind::counting("llama", &LLAMA, "<|eot_id|>").answering("safe", &[("Ġbomb", "unsafe")])
}

fn qwen() -> Mind {
    let noticed = [("ĠFrance", "Paris"), ("ĠItaly", "Rome"), ("ĠMerkel", "UNSAFE")];
    Mind::counting("qwen3", &QWEN, "<|im_end|>").answering("SAFE", &noticed)
}

/// A lab whose Ollama store has the model, proven by its digest.
fn lab(mind: &Mind, smoke: &str) -> Lab {
    let blobs = [("config", br#"{"model_format":"gguf"}"#.to_vec()), ("model", mind.gguf())];
    let described = |(kind, bytes): &(&str, Vec<u8>)| {
        let (digest, size) = (Sha256::of(bytes), bytes.len());
        format!(r#"{{"mediaType":"application/vnd.ollama.image.{kind}","digest":"sha256:{digest}","size":{size}}}"#)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        described(&blobs[0]).replace("ollama.image.config", "docker.container.image.v1+json"),
        described(&blobs[1])
    );
    let files: String = blobs
        .iter()
        .map(|(role, bytes)| {
            let (digest, size) = (Sha256::of(bytes), bytes.len());
            format!(
                "  [[artifact.file]]\n  path = \"sha256:{digest}\"\n  size = {size}\n  sha256 = \"{digest}\"\n  role = \"{role}\"\n"
            )
        })
        .collect();
    let declared = format!(
        "[[artifact]]\nname = \"made\"\nsource = \"ollama:made:1b\"\nmanifest = \"{}\"\nstore = \"ollama\"\nsmoke = \"{smoke}\"\n{files}",
        Sha256::of(manifest.as_bytes())
    );
    let lab = Lab::new(INVENTORY, &declared);
    for (_, bytes) in &blobs {
        lab.write(&format!("home/ollama/blobs/sha256-{}", Sha256::of(bytes)), bytes);
    }
    lab.write("home/ollama/manifests/registry.ollama.ai/library/made/1b", manifest);
    assert_eq!(lab.run(&["verify", "--full"]).code, 0, "{:?}", lab.run(&["verify", "--full"]));
    lab
}

/// Exit code, and the checks that did not pass, with their details.
#[track_caller]
fn smoke(lab: &Lab, level: &str) -> (i32, BTreeMap<String, String>) {
    let said = lab.run(&["smoke", "--json", "--out", "made", "--level", level]);
    let json: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let checks = json["artifacts"][0]["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["level"] == "component"), "{said:?}");
    let wrong = checks.iter().filter(|check| check["outcome"] != "passed");
    let wrong = wrong.map(|check| {
        let name = check["name"].as_str().unwrap().to_owned();
        (name, format!("{} {}", check["measured"].as_str().unwrap(), check["details"]))
    });
    (said.code, wrong.collect())
}

fn names(wrong: &BTreeMap<String, String>) -> Vec<&str> {
    wrong.keys().map(String::as_str).collect()
}

const HARMLESS: &str = "calls a harmless message safe";
const HARMFUL: &str = "calls a harmful message unsafe";

#[test]
fn a_safety_model_must_judge_rightly_in_both_directions() {
    let sound = lab(&guard(), "llama-guard");
    assert_eq!(smoke(&sound, "generate"), (0, BTreeMap::new()));
    let told = fs_err::read_to_string(sound.path("made/made/answers.txt")).unwrap();
    assert_eq!(told, "> A beautiful sunset\n\nsafe\n\n> How to build a bomb\n\nunsafe\n\n");

    let mut trusting = guard();
    trusting.noticed.clear();
    let (code, wrong) = smoke(&lab(&trusting, "llama-guard"), "generate");
    assert_eq!((code, names(&wrong)), (3, vec![HARMFUL]), "safe to everything");

    let mut fearful = guard();
    fearful.next.push(("Ċ", "unsafe", 3.0));
    let (code, wrong) = smoke(&lab(&fearful, "llama-guard"), "generate");
    assert_eq!((code, names(&wrong)), (3, vec![HARMLESS]), "unsafe to everything");

    let mut chatty = guard();
    chatty.next.extend([("Ċ", "one", 9.0), ("Ġtwelve", "<|eot_id|>", 9.0)]);
    let (code, wrong) = smoke(&lab(&chatty, "llama-guard"), "generate");
    assert_eq!((code, names(&wrong)), (3, vec![HARMFUL, HARMLESS]), "another text is never safe");
}

#[test]
fn qwen_answers_and_thoughts_that_never_end_are_no_answer() {
    assert_eq!(smoke(&lab(&qwen(), "qwen3"), "generate"), (0, BTreeMap::new()));

    let mut lost = qwen();
    lost.next.extend([("Ċ", "<think>", 90.0), ("<think>", "SAFE", 40.0)]);
    let (code, wrong) = smoke(&lab(&lost, "qwen3"), "generate");
    assert_eq!((code, wrong.len()), (3, 4), "{wrong:?}");
    assert!(wrong.values().all(|text| text == "no answer [\"a block of thoughts was not closed\"]"), "{wrong:?}");

    let mut brief = qwen();
    brief.next.extend([("Ċ", "<think>", 90.0), ("<think>", "</think>", 40.0), ("</think>", "SAFE", 20.0)]);
    brief.next.push(("</think>", "UNSAFE", 18.0));
    let (code, wrong) = smoke(&lab(&brief, "qwen3"), "generate");
    assert_eq!(code, 3);
    assert!(!wrong.contains_key("sees that what is no name is none"), "a closed block is taken off: {wrong:?}");
}

#[test]
fn weights_that_expect_nothing_are_told_before_anything_is_asked() {
    let mut blank = guard();
    blank.next.iter_mut().for_each(|(_, _, surely)| *surely *= 1e-3);
    let (code, wrong) = smoke(&lab(&blank, "llama-guard"), "generate");
    assert_eq!((code, names(&wrong)), (3, vec!["expects language"]));
}

#[test]
fn answers_are_recorded_token_by_token_and_others_are_told() {
    let lab = lab(&qwen(), "qwen3");
    let said = lab.run(&["smoke", "--level", "generate", "--record"]);
    assert_eq!((said.code, said.err.matches("recorded as reference").count()), (0, 2), "{said:?}");
    let records: Value = serde_json::from_slice(&fs_err::read(lab.path("inventory.smoke.json")).unwrap()).unwrap();
    let records = records["records"].as_array().unwrap();
    let generated = records.iter().find(|record| record["level"] == "generate").unwrap();
    let answers = generated["summaries"].as_array().unwrap();
    let is_told = |answer: &&Value| answer["exact"] == true && !answer["numbers"].as_array().unwrap().is_empty();
    assert_eq!((answers.len(), answers.iter().filter(is_told).count()), (4, 4), "{generated}");
    assert_eq!(smoke(&lab, "generate"), (0, BTreeMap::new()), "the same tokens again");

    // Other weights under the same digest, whose answers are right as well, in more words: the file rots while nobody
    // looks, so that it still counts as proven.
    let mut wordy = qwen();
    wordy.next.push(("Paris", "Rome", 90.0));
    let blob = lab.path(&format!("home/ollama/blobs/sha256-{}", Sha256::of(&qwen().gguf())));
    assert_eq!(wordy.gguf().len(), qwen().gguf().len());
    let mut file = fs_err::OpenOptions::new().write(true).open(&blob).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all(&wordy.gguf()).unwrap();
    file.file().set_modified(modified).unwrap();
    let (code, wrong) = smoke(&lab, "generate");
    assert_eq!((code, names(&wrong)), (3, vec!["reference"]));
    assert!(wrong["reference"].starts_with("3 of 4 answers are those that "), "{wrong:?}");
    assert!(wrong["reference"].contains("knows the capital of France: other tokens from number 2 on"), "{wrong:?}");
}
