//! The demonstration: finds and mends what it breaks, and can be kept.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use crate::program::{INVENTORY, Lab, Said};

#[test]
fn all_four_faults_are_found_and_mended_and_the_lab_can_be_kept() {
    let lab = Lab::new(INVENTORY, "");
    let said = lab.run(&["demo", "--keep", "kept"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("4 of 4 faults were found and named, and everything is mended"), "{}", said.out);
    assert!(said.out.contains("(0 requests were made for that)"), "{}", said.out);
    let line = "larder status --inventory kept/lab/inventory.toml --state kept/state";
    assert!(said.out.contains(&format!("to play with: {line}\n")), "{}", said.out);
    let arguments: Vec<&str> = line.split(' ').skip(1).chain(["--json"]).collect();
    let status = lab.run(&arguments);
    assert_eq!(status.code, 0, "{}{}", status.out, status.err);
    assert!(status.out.contains("\"proven_at\": 1"), "what the demonstration proved is known: {}", status.out);
    a_kept_lab_can_be_broken_and_mended(&lab, &said);
    let again = lab.run(&["demo", "--keep", "kept"]);
    assert_eq!(again.code, 2, "a lab that was kept is not overwritten");
}

/// By the commands that the demonstration has printed.
fn a_kept_lab_can_be_broken_and_mended(lab: &Lab, demo: &Said) {
    let line = "larder serve --inventory kept/upstream/inventory.toml";
    assert!(demo.out.contains(line), "{}", demo.out);
    #[expect(clippy::disallowed_methods, reason = "the test breaks the lab")]
    for path in ["mmaudio/ext_weights", "huggingface/hub/models--demo--tiny-diffusion/blobs", "ollama/models/blobs"] {
        std::fs::remove_dir_all(lab.path("kept/machine").join(path)).unwrap();
    }
    let apply = ["apply", "--yes", "--inventory", "kept/lab/inventory.toml"];
    let alone = lab.run(&apply);
    assert!(alone.code != 0 && alone.out.contains("Connection refused"), "{}{}", alone.out, alone.err);
    let arguments: Vec<&str> = line.split(' ').skip(1).collect();
    let mut serving = lab.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let address = address_of(&mut serving);
    assert!(demo.out.contains(&format!("again at {address}, by:")), "{address}: {}", demo.out);
    let mended = lab.run(&apply);
    serving.kill().unwrap();
    serving.wait().unwrap();
    assert_eq!(mended.code, 0, "{}{}", mended.out, mended.err);
    let verified = lab.run(&["verify", "--full", "--inventory", "kept/lab/inventory.toml"]);
    assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
    let upstream = lab.run(&["verify", "--full", "--inventory", "kept/upstream/inventory.toml"]);
    assert_eq!(upstream.code, 0, "{}{}", upstream.out, upstream.err);
}

/// Where `serving` listens, once it does.
fn address_of(serving: &mut Child) -> String {
    let lines = BufReader::new(serving.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut lines = lines.filter(|line| line.starts_with("serving "));
    lines.next().unwrap().rsplit(' ').next().unwrap().to_owned()
}
