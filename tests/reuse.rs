//! What this machine has is not fetched again: not for another artifact, not from another store, not in another run.
#![expect(clippy::unwrap_used, reason = "tests")]

use larder::fsio::{WriteOptions, write_atomic};
use rstest::rstest;

#[expect(dead_code, reason = "each test uses a part of the lab")]
#[path = "support/lab.rs"]
mod lab;

use lab::Lab;

/// The content that `encoder` in the plain folder and a file of `paint` in the cache have in common.
fn encoder(lab: &Lab) -> lab::Content {
    let file = lab::plain_files().into_iter().find(|file| file.path.starts_with("clip/")).unwrap();
    assert!(fs_err::metadata(lab.store("plain").join(&file.path)).is_err());
    file
}

/// Brings `encoder` alone, which must cost nothing.
fn must_come_from_here(lab: &Lab) {
    let (file, sent) = (encoder(lab), lab.upstream.sent());
    let said = lab.larder(&["apply", "--yes", "--only", "encoder"]).must_be(0);
    assert_eq!(lab.upstream.sent(), sent, "{said}");
    assert!(said.out.contains("copied from other places on this machine"), "{said}");
    assert!(fs_err::read(lab.store("plain").join(&file.path)).unwrap() == *file.bytes);
    lab.larder(&["verify", "--full", "--only", "encoder"]).must_be(0);
}

#[test]
fn what_is_not_selected_is_copied_from() {
    let lab = Lab::start();
    lab.larder(&["apply", "--yes", "--only", "paint"]).must_be(0);
    let plan = lab.larder(&["plan", "--only", "encoder"]).must_be(0);
    assert!(plan.line().contains("same content as paint/text_encoder/model.safetensors"), "{plan}");
    assert!(!plan.line().contains(" vae ") && !plan.line().contains(" voice "), "nothing else is planned: {plan}");
    must_come_from_here(&lab);
}

#[test]
fn what_the_profile_leaves_out_is_copied_from() {
    let lab = Lab::start();
    lab.larder(&["apply", "--yes", "--only", "paint"]).must_be(0);
    let inventory = fs_err::read_to_string(lab.inventory()).unwrap();
    let profiled = inventory.replace("pc2 = {}", "pc2 = { profile = \"small\" }");
    let profiled = format!("{profiled}\n[profiles]\nsmall = {{ artifacts = [\"encoder\"] }}\n");
    write_atomic(&lab.inventory(), profiled.as_bytes(), &WriteOptions::default()).unwrap();
    must_come_from_here(&lab);
}

#[test]
fn what_only_the_facts_know_is_copied_from() {
    let lab = Lab::start();
    lab.larder(&["apply", "--yes", "--only", "paint"]).must_be(0);
    let path = lab.root().join("lab/manifests/models.toml");
    let manifest = fs_err::read_to_string(&path).unwrap();
    let without =
        manifest.replace("name = \"paint\"\nsource = \"hf:lab/paint\"\nstore = \"huggingface\"\n\n[[artifact]]\n", "");
    assert_ne!(without, manifest);
    write_atomic(&path, without.as_bytes(), &WriteOptions::default()).unwrap();
    lab.larder(&["lock", "--offline"]).must_be(0);
    let lock = fs_err::read_to_string(lab.inventory().with_extension("lock")).unwrap();
    assert!(!lock.contains("\"name\":\"paint\""), "{lock}");
    must_come_from_here(&lab);
}

/// What a download left, and whether the content it is then copied from is right.
#[rstest]
fn a_download_that_was_stopped_outlives_a_rotten_original(#[values(true, false)] is_rotten: bool) {
    let lab = Lab::start();
    let file = encoder(&lab);
    lab.upstream.hold_after(200_000);
    let mut stopped = lab.command(&["apply", "--yes", "--only", "encoder"]).spawn().unwrap();
    lab.upstream.wait_until_held();
    let partial = lab.store("plain").join(format!(".larder/{}.partial", file.sha256));
    // What was sent is on the disk once it is in the file, and then it outlives the program.
    while fs_err::metadata(&partial).map_or(0, |found| found.len()) < 100_000 {
        std::thread::yield_now();
    }
    stopped.kill().unwrap();
    stopped.wait().unwrap();
    lab.upstream.release();
    let left = fs_err::metadata(&partial).unwrap().len();
    lab.larder(&["apply", "--yes", "--only", "paint"]).must_be(0);
    if is_rotten {
        let blob = lab.repo().join("blobs").join(file.sha256.to_string());
        let mut wrong = file.bytes.to_vec();
        wrong[300_000] ^= 1;
        write_atomic(&blob, &wrong, &WriteOptions::default()).unwrap();
    }
    let sent = lab.upstream.sent();
    lab.larder(&["apply", "--yes", "--only", "encoder"]).must_be(0);
    let expected = if is_rotten { file.bytes.len() as u64 - left } else { 0 };
    assert_eq!(lab.upstream.sent() - sent, expected, "{left} bytes were here already");
    assert!(fs_err::read(lab.store("plain").join(&file.path)).unwrap() == *file.bytes);
    let staging = fs_err::read_dir(lab.store("plain").join(".larder")).unwrap();
    let names: Vec<String> = staging.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.ends_with(".partial")), "{names:?}");
}
