//! `larder smoke` and the machine it runs on: it leaves a machine alone that is needed, ends soon when it is told to,
//! and a machine's fault is none of the model's.
#![cfg(feature = "smoke")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use larder::digest::Sha256;
use serde_json::Value;

#[path = "support/made_language.rs"]
mod made_language;
#[path = "support/program.rs"]
mod program;

use made_language::Mind;
use program::{INVENTORY, Lab};

/// A lab with a model that never comes to an end, twice.
fn lab() -> Lab {
    const CONTROL: [&str; 5] = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"];
    let mut mind = Mind::counting("qwen3", &CONTROL, "<|im_end|>").answering("SAFE", &[]);
    mind.next.extend([("SAFE", "SAFE", 40.0)]);
    let (file, digest) = (mind.gguf(), Sha256::of(&mind.gguf()));
    let one = |name: &str| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nstore = \"plain\"\nsource = \"local\"\nsmoke = \"qwen3\"\n\
             file = [{{ path = \"{name}.gguf\", size = {}, sha256 = \"{digest}\" }}]\n",
            file.len()
        )
    };
    let lab = Lab::new(INVENTORY, &[one("first"), one("second")].concat());
    for name in ["first", "second"] {
        lab.write(&format!("home/plain/{name}.gguf"), &file);
    }
    let said = lab.run(&["verify"]);
    assert_eq!(said.code, 0, "{said:?}");
    lab
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_machine_that_is_needed_is_left_alone_before_the_run_and_between_models() {
    let lab = lab();
    let said = lab.run(&["smoke", "--json", "--level", "component", "--unless-busy", "exit 0"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(json(&said.out)["skipped"], "`exit 0` says so");
    assert!(!lab.path("smoke").exists(), "nothing was made");
    assert_eq!(lab.run(&["smoke", "--level", "structure", "--unless-busy", "exit 1"]).code, 0);

    // Somebody needs the machine from the third time on that is asked: after the first model.
    let probe = "echo >> asked; test $(wc -l < asked) -ge 3";
    let said = lab.run(&["smoke", "--json", "--level", "component", "--unless-busy", probe]);
    assert_eq!(said.code, 4, "{said:?}");
    let json = json(&said.out);
    let outcomes: Vec<&Value> = (0..2).map(|i| &json["artifacts"][i]["outcome"]).collect();
    assert_eq!(outcomes, ["passed", "environment-fault"], "{json}");
    assert!(lab.path("smoke/first").exists() && !lab.path("smoke/second").exists());
    assert!(said.err.contains("second: component needs 1.0 GiB of memory"), "{}", said.err);
}

#[test]
fn a_signal_ends_a_run_between_two_tokens() {
    let lab = lab();
    let mut command = lab.command(&["smoke", "--json", "--level", "generate"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // The first answer is being written, of which there is no end.
    let writes = |line: &String| line.contains("write");
    lines.by_ref().map(Result::unwrap).find(writes).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{rest:?}");
    assert!(!rest.iter().any(|line| line.contains("\"done\":480")), "it went on to the end: {rest:?}");
    let json = json(&String::from_utf8(ended.stdout).unwrap());
    assert_eq!(json["interrupted"], true);
    let [first, second] = [0, 1].map(|i| &json["artifacts"][i]);
    assert_eq!((&first["outcome"], &second["level"]), (&"not-possible".into(), &"structure".into()), "{json}");
    let generated = first["checks"].as_array().unwrap().iter().find(|check| check["level"] == "generate").unwrap();
    assert_eq!(generated["measured"], "it was stopped");
    assert!(!lab.path("smoke/first/answers.txt").exists() && !lab.path("smoke/second").exists());
}
