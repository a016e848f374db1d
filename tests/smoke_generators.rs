//! `larder smoke` with whole generators: tiny ones, whose weights were set so that every part does its work.
#![cfg(feature = "smoke")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use larder::digest::Sha256;
use serde_json::Value;

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/machine.rs"]
mod machine;
#[path = "support/program.rs"]
mod program;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/tiny_generators.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod tiny_generators;

use machine::Machine;
use program::{INVENTORY, Lab, Said};
use tiny_generators::{Numbers, Tiny, safetensors};

/// What the tests call the commit.
const COMMIT: &str = "00000000000000000000000000000000000a11e7";

type Files = BTreeMap<String, Vec<u8>>;

/// An artifact of plain files in a folder of its name.
fn declared(name: &str, smoke: &str, files: &Files) -> String {
    let pinned = |(path, bytes): (&String, &Vec<u8>)| {
        let (size, sha256) = (bytes.len(), Sha256::of(bytes));
        format!("{{ path = \"{name}/{path}\", size = {size}, sha256 = \"{sha256}\" }}")
    };
    let files: Vec<String> = files.iter().map(pinned).collect();
    format!(
        "[[artifact]]\nname = \"{name}\"\nstore = \"plain\"\nsource = \"local\"\nsmoke = \"{smoke}\"\nfile = [{}]\n",
        files.join(", ")
    )
}

/// A lab that has these artifacts, each with its smoke test.
fn lab(artifacts: &[(&str, &str, &Files)]) -> Lab {
    let lab = Lab::new(INVENTORY, "# replaced below\n");
    lay(&lab, artifacts);
    lab
}

/// Puts these artifacts into a lab, in place of those that it has.
fn lay(lab: &Lab, artifacts: &[(&str, &str, &Files)]) {
    let manifest: String = artifacts.iter().map(|(name, smoke, files)| declared(name, smoke, files)).collect();
    lab.write("manifests/lab.toml", manifest);
    for (name, _, files) in artifacts {
        files.iter().for_each(|(path, bytes)| lab.write(&format!("home/plain/{name}/{path}"), bytes));
    }
}

/// The outcome of an artifact, the checks that did not pass, and the outputs.
fn verdict(said: &Said, artifact: &str) -> (String, Vec<String>, Vec<String>) {
    let json: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let verdict = json["artifacts"].as_array().unwrap().iter().find(|one| one["artifact"] == artifact).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = verdict["checks"].as_array().unwrap().iter().filter(|check| check["outcome"] != "passed");
    let outputs = verdict["outputs"].as_array().unwrap().iter().map(|output| text(&output["path"]));
    (text(&verdict["outcome"]), checks.map(|check| text(&check["name"])).collect(), outputs.collect())
}

/// The manifest of a repository on the hub, every file pinned.
fn pinned(files: &Files) -> String {
    let mut text = format!(
        "[[artifact]]\nname = \"painter\"\nsource = \"hf:lab/painter@{COMMIT}\"\nstore = \"huggingface\"\ncomplete = true\n\
         smoke = \"stable-diffusion-3-any-size\"\n"
    );
    for (path, bytes) in files {
        let (size, sha256) = (bytes.len(), Sha256::of(bytes));
        let _ = write!(text, "  [[artifact.file]]\n  path = {path:?}\n  size = {size}\n  sha256 = \"{sha256}\"\n");
    }
    text
}

#[test]
fn a_generator_from_the_hub_passes_every_level_and_its_picture_is_in_the_report() {
    let files = Tiny::pictures().files();
    let stores = "[stores]\nhuggingface = { layout = \"hf-cache\", path = \"~/hub\" }\n";
    let first = Machine::new(&format!("{stores}[sources]\ndrives = [\"drive\"]\n"), &pinned(&files));
    for (path, bytes) in &files {
        let place = first.path(&format!("drive/{path}"));
        larder::fsio::write_atomic(&place, bytes, &larder::fsio::WriteOptions::default()).unwrap();
    }
    first.larder(&["lock", "--offline"]).must_be(0);
    first.larder(&["apply", "--yes", "--offline"]).must_be(0);
    let serving = first.serve();
    let inventory = format!("{stores}[sources]\nhub = \"{}\"\n", serving.url());
    let second = Machine::new(&inventory, &pinned(&files));
    second.larder(&["lock"]).must_be(0);
    second.larder(&["apply", "--yes"]).must_be(0);

    let said = second.larder(&["smoke", "--level", "generate", "--out", "made"]).must_be(0);
    let said = said.must_say(&["component needs 2.0 GiB of memory", "a picture, denoise 2/4", "made: "]);
    assert!(said.out.starts_with("painter  passed"), "{said}");
    let picture = fs_err::read(second.path("made/painter/picture.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n"));
    // As wide and high as the largest that the model makes.
    assert_eq!(picture[16..24], [0, 0, 0, 28, 0, 0, 0, 28]);
    second.larder(&["smoke", "--level", "generate", "--out", "again"]).must_be(0);
    assert_eq!(fs_err::read(second.path("again/painter/picture.png")).unwrap(), picture, "the same seed");

    second.larder(&["report", "--format", "html", "--out", "report.html"]);
    let page = fs_err::read_to_string(second.path("report.html")).unwrap();
    assert_eq!(page.matches("src=\"data:image/png;base64,iVBORw0KGgo").count(), 2, "the drawing and the picture");
    assert!(page.contains("alt=\"a red square on a white ground\"") && page.contains("level generate"));
}

#[test]
fn without_a_level_each_artifact_is_tried_as_far_as_it_can_be() {
    let notes = Files::from([("notes.txt".to_owned(), b"of the class".to_vec())]);
    let lab = lab(&[
        ("notes", "", &notes),
        ("painter", "stable-diffusion-3-any-size", &Tiny::pictures().files()),
        ("player", "stable-audio-any-size", &Tiny::sounds().files()),
    ]);
    let levels = |said: &Said| -> Vec<(String, String)> {
        let json: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        json["artifacts"].as_array().unwrap().iter().map(|one| (text(&one["level"]), text(&one["outcome"]))).collect()
    };
    let all = |level: [&str; 3], outcome: [&str; 3]| -> Vec<(String, String)> {
        level.iter().zip(outcome).map(|(level, outcome)| ((*level).to_owned(), outcome.to_owned())).collect()
    };
    let fast = lab.run(&["smoke", "--json", "--level", "structure"]);
    assert_eq!((levels(&fast), fast.code), (all(["structure"; 3], ["passed"; 3]), 0));
    assert!(!lab.path("smoke").exists() && !fast.err.contains("to compute with"), "{}", fast.err);

    // Of a machine that lets a program have 1 GB, nothing is learnt of the model.
    let mut tight = std::process::Command::new("sh");
    tight.args(["-c", "ulimit -d 1000000; exec \"$0\" smoke --json", env!("CARGO_BIN_EXE_larder")]);
    tight.env_clear().env("HOME", lab.path("home")).env("LARDER_STATE", lab.path("state")).current_dir(lab.path(""));
    let tight = program::said(&mut tight, &lab.path(""));
    let machine = "environment-fault";
    assert_eq!(
        (levels(&tight), tight.code),
        (all(["structure", "component", "component"], ["passed", machine, machine]), 4)
    );
    assert!(tight.err.contains("  painter: component, generate; needs 2.0 GiB of memory, which is not there; makes a"));
    assert!(tight.out.contains("\"measured\": \"9") && tight.out.contains(" MiB can be used\""), "{}", tight.out);

    let said = lab.run(&["smoke", "--json"]);
    assert_eq!(
        (levels(&said), said.code),
        (all(["structure", "generate", "generate"], ["passed"; 3]), 0),
        "{}",
        said.err
    );
    let json: Value = serde_json::from_str(&said.out).unwrap();
    let player = serde_json::json!({
        "artifact": "player", "levels": ["component", "generate"], "memory": 2_u64 << 30, "device_memory": 0,
        "makes": ["a chord after the autoencoder", "a sound"],
    });
    assert_eq!((&json["level"], &json["ahead"][1]), (&"highest".into(), &player), "{json}");
    let [told, begun] = ["2 artifacts to compute with", "painter: component needs"].map(|text| said.err.find(text));
    assert!(told.is_some() && told < begun, "{}", said.err);
    assert!(lab.path("smoke/painter/picture.png").exists() && lab.path("smoke/player/sound.wav").exists());
}

#[test]
fn sounds_are_made_and_can_be_played_in_the_report() {
    let lab = lab(&[("player", "stable-audio-any-size", &Tiny::sounds().files())]);
    let said = lab.run(&["smoke", "--json", "--level", "generate", "--out", "made"]);
    let (outcome, wrong, outputs) = verdict(&said, "player");
    assert_eq!((outcome.as_str(), wrong, said.code), ("passed", vec![], 0), "{}", said.err);
    assert_eq!(
        outputs,
        ["LAB/made/player/chord.wav", "LAB/made/player/sound.wav"].map(|path| path.replace("LAB/", ""))
    );
    let sound = fs_err::read(lab.path("made/player/sound.wav")).unwrap();
    // Two channels of 16 bits at 8000 Hz; 11 steps of 8 samples.
    assert_eq!((&sound[..4], sound[22], sound[24..28].to_vec()), (&b"RIFF"[..], 2, 8000_u32.to_le_bytes().to_vec()));
    assert_eq!(sound.len(), 44 + 4 * 88);
    let page = lab.run(&["report", "--format", "html"]).out;
    assert_eq!(page.matches("<audio controls").count(), 2);
    assert!(page.contains("media-src data:") && page.contains("data:audio/wav;base64,UklGR"));
}

#[test]
fn each_check_says_what_was_measured_what_is_right_and_whence_it_is_known() {
    let lab = lab(&[
        ("painter", "stable-diffusion-3-any-size", &Tiny::pictures().files()),
        ("player", "stable-audio-any-size", &Tiny::sounds().files()),
    ]);
    let json: Value = serde_json::from_str(&lab.run(&["smoke", "--json"]).out).unwrap();
    // Chance is the same in every run, so another one measures the same.
    let text = lab.run(&["smoke"]).out;
    let page = lab.run(&["report", "--format", "html"]).out;
    let mut told = BTreeMap::new();
    for check in json["artifacts"].as_array().unwrap().iter().flat_map(|one| one["checks"].as_array().unwrap()) {
        let of = |key: &str| check[key].as_str().unwrap().to_owned();
        let [name, measured, threshold, basis] = ["name", "measured", "threshold", "basis"].map(of);
        assert!([&name, &measured, &threshold, &basis].iter().all(|text| !text.is_empty()), "{check}");
        let line = format!("{name}: passed: {measured}; right is: {threshold} ({basis})");
        assert_eq!(text.contains(&format!("  {line}\n")), of("level") != "structure", "{line}\n{text}");
        let shown = line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        assert!(page.contains(&format!("<li>{}</li>", shown.replace('\'', "&#39;"))), "{shown}");
        *told.entry(of("level")).or_insert(0) += 1;
    }
    assert!(told["structure"] > 10 && told["component"] > 20 && told["generate"] > 10, "{told:?}");
}

#[test]
fn what_was_not_in_the_page_cache_is_not_left_there_and_what_was_is() {
    use rustix::fs::{Advice, fadvise};
    let lab = lab(&[("painter", "stable-diffusion-3-any-size", &Tiny::pictures().files())]);
    let open = |part: &str| fs_err::File::open(lab.path(&format!("home/plain/painter/{part}.safetensors"))).unwrap();
    let weights = ["transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"];
    let parts = weights.map(open);
    let held = |file: &fs_err::File| larder_metal::cached_pages(file, 0, file.metadata().unwrap().len());
    parts.iter().for_each(|file| fadvise(file, 0, None, Advice::DontNeed).unwrap());
    if parts.iter().any(|file| held(file) != Some(0)) {
        return skip::skipped("the page cache of this file system does not let go, or does not tell");
    }
    let vae = fs_err::read(parts[1].path()).unwrap();
    let before = held(&parts[1]);
    assert_eq!(before, Some((vae.len() as u64).div_ceil(4096)));
    let said = lab.run(&["smoke"]);
    assert_eq!(said.code, 0, "{said:?}");
    let now: Vec<Option<u64>> = parts.iter().map(held).collect();
    assert_eq!(now, [Some(0), before, Some(0)]);
}

#[test]
fn progress_is_told_as_it_is_asked_for() {
    let lab = lab(&[("player", "stable-audio-any-size", &Tiny::sounds().files())]);
    let run = |how: &str| lab.run(&["smoke", "--progress", how]);
    assert_eq!(run("none").err, "");
    let lines = run("lines").err;
    assert!(lines.contains("player: a sound, denoise 3/4\n") && lines.ends_with("done: player\n"), "{lines}");
    let events: Vec<Value> =
        run("json").err.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    assert!(events.iter().all(|event| event["version"] == 1), "{events:?}");
    let stage = |stage: &str, done: u64, of: u64| serde_json::json!({"version": 1, "event": "stage", "item": "player", "stage": stage, "done": done, "of": of});
    let place = |wanted: &Value| events.iter().position(|event| event == wanted);
    let steps = [stage("reading words", 0, 3), stage("a sound, denoise", 0, 4), stage("a sound, denoise", 4, 4)];
    let places = steps.each_ref().map(place);
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{events:?}");
    assert_eq!(events.last().unwrap()["event"], "finished");
}

#[test]
fn random_weights_are_told_from_trained_ones() {
    let (pictures, sounds) = (Tiny::random_pictures().files(), Tiny::random_sounds().files());
    let lab =
        lab(&[("painter", "stable-diffusion-3-any-size", &pictures), ("player", "stable-audio-any-size", &sounds)]);
    let said = lab.run(&["smoke", "--json", "--level", "generate"]);
    assert_eq!(said.code, 3);
    let (outcome, wrong, _) = verdict(&said, "painter");
    assert_eq!(
        (outcome.as_str(), wrong),
        ("failed", vec!["pure noise is seen".to_owned(), "round trip of a drawing".to_owned()])
    );
    let (outcome, wrong, _) = verdict(&said, "player");
    assert!(outcome == "failed" && wrong.contains(&"round trip of a chord".to_owned()), "{wrong:?}");
    assert!(!lab.path("smoke/painter/picture.png").exists(), "what fails as a part is not tried as a whole");
    let page = lab.run(&["report", "--format", "html"]).out;
    assert!(page.contains("pure noise is seen: failed: "), "what is wrong is said in the report");
}

/// A single file of `tiny`, what is left in its folders, and its text encoders in files of their own.
fn apart(tiny: &mut Tiny, family: &str, parts: &[(&str, &str)], encoders: &[(&str, &str)]) -> [Files; 3] {
    let single = safetensors(&tiny.single_file(family, parts));
    let take = |(part, name): &(&str, &str)| {
        let tensors = tiny.weights.remove(&format!("{part}/model.safetensors")).unwrap();
        ((*name).to_owned(), safetensors(&tensors))
    };
    let loose = encoders.iter().map(take).collect();
    [Files::from([("sub/model.safetensors".to_owned(), single)]), tiny.files(), loose]
}

#[test]
fn single_files_find_their_settings_and_text_encoders_in_other_artifacts() {
    let parts = [("transformer", "model.diffusion_model."), ("vae", "first_stage_model.")];
    let encoders = [("text_encoder", "clip_l.safetensors"), ("text_encoder_3", "t5xxl_fp16.safetensors")];
    let [picture, folder, loose] = apart(&mut Tiny::pictures(), "sd3", &parts, &encoders);
    let parts = [
        ("transformer", "model.model."),
        ("projection_model", "conditioner.conditioners."),
        ("vae", "pretransform.model."),
    ];
    let mut tiny = Tiny::sounds();
    // The encoder as its makers give it away: with its decoder.
    let words = tiny.weights.get_mut("text_encoder/model.safetensors").unwrap();
    for other in ["decoder.final_layer_norm.weight", "decoder.block.0.layer.0.SelfAttention.q.weight", "lm_head.weight"]
    {
        let numbers = vec![0.5, 0.25, 0.125];
        words.insert(other.to_owned(), Numbers { shape: vec![3], numbers, dtype: "F32" });
    }
    let [sound, audio_folder, words] = apart(&mut tiny, "audio", &parts, &[("text_encoder", "t5_base.safetensors")]);
    let alone =
        lab(&[("painter", "stable-diffusion-3-any-size", &picture), ("player", "stable-audio-any-size", &sound)]);
    let said = alone.run(&["smoke", "--json", "--level", "generate"]);
    for artifact in ["painter", "player"] {
        let (outcome, wrong, _) = verdict(&said, artifact);
        assert_eq!((outcome.as_str(), wrong, said.code), ("not-possible", vec!["files".to_owned()], 4), "{}", said.err);
    }
    let whole = lab(&[
        ("painter", "stable-diffusion-3-any-size", &picture),
        ("painter-folder", "", &folder),
        ("encoders", "clip-text", &loose),
        ("player", "stable-audio-any-size", &sound),
        ("player-folder", "", &audio_folder),
        ("t5-base", "", &words),
    ]);
    for (artifact, output) in [("painter", "painter/picture.png"), ("player", "player/sound.wav")] {
        let said = whole.run(&["smoke", artifact, "--json", "--level", "generate"]);
        let (outcome, wrong, _) = verdict(&said, artifact);
        assert_eq!((outcome.as_str(), wrong, said.code), ("passed", vec![], 0), "{}", said.err);
        assert!(whole.path(&format!("smoke/{output}")).exists());
    }
}

#[test]
fn what_a_single_file_takes_from_others_is_named_and_part_of_its_record() {
    let parts = [("transformer", "model.diffusion_model."), ("vae", "first_stage_model.")];
    let encoders = [("text_encoder", "clip_l.safetensors"), ("text_encoder_3", "t5xxl_fp16.safetensors")];
    let mut tiny = Tiny::pictures();
    let mut other = Tiny::pictures();
    for (name, tensor) in other.weights.get_mut("text_encoder/model.safetensors").unwrap() {
        tensor.numbers = tiny_generators::filled(&format!("another {name}"), &tensor.shape);
    }
    let [picture, folder, loose] = apart(&mut tiny, "sd3", &parts, &encoders);
    let [_, _, another] = apart(&mut other, "sd3", &parts, &encoders);
    let artifacts = |loose| {
        [
            ("painter", "stable-diffusion-3-any-size", &picture),
            ("folder", "", &folder),
            ("encoders", "clip-text", loose),
        ]
    };
    let lab = lab(&artifacts(&loose));
    let smoke = |more: &[&str]| lab.run(&[&["smoke", "painter", "--level", "component"], more].concat());
    let told = smoke(&["--record"]);
    assert_eq!(told.code, 0, "{told:?}");
    let with = "  with text encoders of encoders, settings and tokenizers of folder, text encoders of folder\n";
    assert!(told.out.contains(with) && told.err.contains("component recorded as reference"), "{told:?}");
    let records =
        || -> Value { serde_json::from_slice(&fs_err::read(lab.path("inventory.smoke.json")).unwrap()).unwrap() };
    let taken = records()["records"][0]["taken"].clone();
    let named = |one: usize, file: &str| taken[one]["files"].as_array().unwrap().iter().any(|name| name == file);
    assert!(named(0, "encoders/clip_l.safetensors") && named(0, "encoders/t5xxl_fp16.safetensors"), "{taken}");
    assert!(named(1, "folder/tokenizer/vocab.json") && named(1, "folder/vae/config.json"), "{taken}");
    assert!(named(2, "folder/text_encoder_2/model.safetensors"), "{taken}");
    let names = taken.to_string();
    assert!(!names.contains("folder/transformer/diff") && !names.contains("painter/"), "what is its own: {taken}");

    let again: Value = serde_json::from_str(&smoke(&["--json"]).out).unwrap();
    let verdict = &again["artifacts"][0];
    assert_eq!(verdict["taken"], taken);
    assert!(verdict["checks"].as_array().unwrap().iter().any(|check| check["name"] == "reference"), "{verdict}");
    assert!(lab.run(&["report", "--format", "html"]).out.contains("<p>with text encoders of encoders, "));

    // The same file with another text encoder is another generator: nobody has vouched for it yet.
    lay(&lab, &artifacts(&another));
    let swapped = smoke(&["--json"]);
    assert!(!swapped.out.contains("\"reference\"") && !swapped.err.contains("compared with"), "{swapped:?}");
    let anew = smoke(&["--record"]);
    assert!(anew.err.contains("component recorded as reference, trusted because it is the first"), "{anew:?}");
    assert_eq!(records()["records"].as_array().unwrap().len(), 2, "and the first one is kept");
    lay(&lab, &artifacts(&loose));
    assert!(smoke(&[]).err.contains("compared with what pc1 on "));
}

#[test]
fn settings_that_no_model_has_are_a_fault_of_one_artifact() {
    let damaged = |key: &str, value: serde_json::Value| {
        let mut tiny = Tiny::sounds();
        let settings = tiny.settings.get_mut("vae/config.json").unwrap();
        let mut vae: Value = serde_json::from_slice(settings).unwrap();
        vae[key] = value;
        *settings = vae.to_string().into_bytes();
        tiny.files()
    };
    let (empty, slow) = (damaged("channel_multiples", serde_json::json!([])), damaged("sampling_rate", 10.into()));
    let right = Tiny::sounds().files();
    let lab = lab(&[
        ("empty", "stable-audio-any-size", &empty),
        ("right", "stable-audio-any-size", &right),
        ("slow", "stable-audio-any-size", &slow),
    ]);
    let said = lab.run(&["smoke", "--json", "--level", "component"]);
    assert_eq!(said.code, 3, "{}", said.err);
    let outcomes = ["empty", "right", "slow"].map(|artifact| verdict(&said, artifact).0);
    assert_eq!(outcomes, ["failed", "passed", "failed"], "{}", said.err);
    assert!(
        said.out.contains("The configuration's channel_multiples is missing or not supported ([])"),
        "{}",
        said.out
    );
    assert!(said.out.contains("0.5 s at 10 samples a second"), "{}", said.out);
}

#[test]
fn an_interrupted_run_ends_between_blocks() {
    let files = Tiny::pictures().files();
    let names: Vec<String> = (0..20).map(|i| format!("painter-{i:02}")).collect();
    let artifacts: Vec<_> = names.iter().map(|name| (name.as_str(), "stable-diffusion-3-any-size", &files)).collect();
    let lab = lab(&artifacts);
    let mut command = lab.command(&["smoke", "--level", "generate"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("painter-00: looking at noise")));
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(!rest.iter().any(|line| line.contains("painter-19")), "it went on to the end");
    assert!(!lab.path("state/smoke.json").exists(), "a run that was stopped has found nothing");
}
