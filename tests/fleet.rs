//! The lab's machines in a bucket: what they say of themselves, how they differ, and what nobody needs any more.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, SystemTime};

use serde_json::Value;

#[path = "support/bucket_lab.rs"]
mod bucket_lab;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "support/lab.rs"]
mod lab;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "support/program.rs"]
mod program;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "support/s3s.rs"]
mod s3s;

use bucket_lab::{FOLDER, artifact, blob, command, fill, has_all, machine, noise, run, write_inventory};
use program::{Lab, Said};
use s3s::{KEY, S3, SECRET};

type Files = Vec<(&'static str, Vec<u8>)>;

#[track_caller]
fn must_be(said: &Said, code: i32) {
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
}

fn json(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap()
}

/// Makes an object look as if it had been written so many days ago.
fn age(s3: &S3, key: &str, days: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(s3.on_disk("fleet", key)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
}

fn age_all(s3: &S3, days: u64) {
    s3.keys("fleet").iter().for_each(|key| age(s3, key, days));
}

/// What two machines want: something from the hub, and something that nobody else has.
fn model() -> Files {
    vec![("model.bin", noise(9000, 1))]
}

fn own() -> Files {
    vec![("own.bin", noise(8000, 2))]
}

const HUB: &str = "hf:acme/model@0123456789abcdef0123456789abcdef01234567";

fn manifest() -> String {
    format!("{}{}", artifact("model", HUB, "", &model()), artifact("own", "local", "", &own()))
}

fn filled(name: &str, s3: &S3) -> Lab {
    let lab = machine(name, s3, &["fleet"], &manifest());
    fill(&lab, &model());
    fill(&lab, &own());
    lab
}

#[test]
fn machines_are_seen_side_by_side() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let (first, second) = (filled("pc1", &s3), machine("pc2", &s3, &["fleet"], &manifest()));
    fill(&second, &model());
    must_be(&run(&first, &["push", "--report"]), 0);
    must_be(&run(&second, &["push", "--report"]), 0);
    assert!(s3.keys("fleet").iter().all(|key| !key.contains("/blobs/")), "only what machines say was put");
    let status = run(&first, &["status", "--fleet"]);
    must_be(&status, 3);
    assert!(status.out.contains("wrong: own (") && status.out.contains("is only on pc1"), "{}", status.out);
    let seen = json(&run(&first, &["status", "--fleet", "--json"]));
    let column = |key: &str| seen["machines"].as_array().unwrap().iter().map(|m| m[key].clone()).collect::<Vec<_>>();
    assert_eq!(column("machine"), ["pc1", "pc2"]);
    assert_eq!((column("wanted"), column("present")), (vec![2.into(), 2.into()], vec![2.into(), 1.into()]));
    let diff = run(&first, &["diff", "pc1", "pc2"]);
    must_be(&diff, 3);
    assert!(diff.out.contains("own") && diff.out.contains("missing") && !diff.out.contains("model"), "{}", diff.out);
    must_be(&run(&first, &["diff", "pc1", "pc1"]), 0);
    let nobody = run(&first, &["diff", "pc1", "pc9"]);
    must_be(&nobody, 2);
    assert!(nobody.err.contains("pc9 has told") && nobody.err.contains("larder push --report"), "{}", nobody.err);
    must_be(&run(&first, &["push", "--yes"]), 0);
    must_be(&run(&second, &["apply", "--yes"]), 0);
    assert!(has_all(&second, &own()));
    must_be(&run(&second, &["push", "--report"]), 0);
    must_be(&run(&second, &["status", "--fleet"]), 0);
    must_be(&run(&second, &["diff", "pc1", "pc2"]), 0);
}

#[test]
fn the_nightly_units_tell_the_bucket() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let lab = filled("pc1", &s3);
    let shown = run(&lab, &["schedule", "--push", "fleet"]);
    must_be(&shown, 0);
    assert!(shown.out.contains("push fleet --report"), "{}", shown.out);
    must_be(&run(&lab, &["schedule", "--push", "nowhere"]), 2);
}

#[test]
fn a_machine_with_another_version_differs_though_both_are_in_order() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let first = filled("pc1", &s3);
    let other: Files = vec![("model.bin", noise(9000, 7))];
    let second = machine("pc2", &s3, &["fleet"], &artifact("model", HUB, "", &other));
    fill(&second, &other);
    must_be(&run(&first, &["push", "--report"]), 0);
    must_be(&run(&second, &["push", "--report"]), 0);
    let diff = json(&run(&first, &["diff", "pc1", "pc2", "--json"]));
    let names: Vec<&str> =
        diff["differences"].as_array().unwrap().iter().map(|d| d["artifact"].as_str().unwrap()).collect();
    assert_eq!(names, ["model", "own"], "{diff}");
}

#[test]
fn what_no_machine_names_goes_after_the_grace_period() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let (first, second) = (filled("pc1", &s3), filled("pc2", &s3));
    must_be(&run(&first, &["push", "--yes"]), 0);
    must_be(&run(&second, &["push", "--report"]), 0);
    let (kept, dear) = (blob(&model()[0].1), blob(&own()[0].1));
    let newer: Files = vec![("model.bin", noise(9000, 3))];
    let (young, old) = (blob(&newer[0].1), kept.clone());
    // Both go over to a newer model, and stop wanting what nobody else has.
    let manifest = artifact("model", HUB, "", &newer);
    let change = |lab: &Lab| {
        lab.write("manifests/lab.toml", &manifest);
        fill(lab, &newer);
    };
    age_all(&s3, 60);
    change(&first);
    must_be(&run(&first, &["push", "--yes"]), 0);
    let named = run(&first, &["prune", "--bucket", "--apply", "--yes"]);
    must_be(&named, 0);
    assert!(s3.keys("fleet").contains(&old), "pc2 names it: {}", named.out);
    change(&second);
    must_be(&run(&second, &["push", "--report"]), 0);
    let shown = run(&first, &["prune", "--bucket"]);
    must_be(&shown, 0);
    assert!(shown.out.contains(old.strip_prefix("lab/").unwrap()), "{}", shown.out);
    assert!(s3.keys("fleet").contains(&old), "nothing is removed unless asked");
    let patient = run(&first, &["prune", "--bucket", "--older-than", "90d", "--apply", "--yes"]);
    assert!(patient.code == 0 && s3.keys("fleet").contains(&old), "{}", patient.out);
    must_be(&run(&first, &["prune", "--bucket", "--apply"]), 2);
    let swept = run(&first, &["prune", "--bucket", "--apply", "--yes", "--json"]);
    must_be(&swept, 0);
    let keys = s3.keys("fleet");
    assert!(!keys.contains(&old) && keys.contains(&young), "{}", swept.out);
    assert!(keys.contains(&dear), "what nobody else has stays for ever");
    assert_eq!(
        keys.iter().filter(|key| key.contains("/locks/")).count(),
        2,
        "and the lock that says what it is: {keys:?}"
    );
    assert_eq!(keys.iter().filter(|key| key.contains("/machines/")).count(), 2);
    must_be(&run(&second, &["push", "--yes"]), 0);
    let again = run(&first, &["prune", "--bucket"]);
    assert!(again.out.contains("0 objects"), "{}", again.out);
}

#[test]
fn nothing_goes_while_nobody_knows_what_is_needed() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let lab = filled("pc1", &s3);
    let empty = run(&lab, &["prune", "--bucket", "--apply", "--yes"]);
    must_be(&empty, 1);
    assert!(empty.err.contains("No machine has told"), "{}", empty.err);
    must_be(&run(&lab, &["push", "--yes"]), 0);
    age_all(&s3, 60);
    let before = s3.keys("fleet");
    let states = format!("{FOLDER}/machines/pc7/state.json");
    let write = |key: &str, text: &str| {
        let options = larder::fsio::WriteOptions::default();
        larder::fsio::write_atomic(&s3.on_disk("fleet", key), text.as_bytes(), &options).unwrap();
    };
    let lost = "0".repeat(64);
    for (text, expected) in [
        ("{\"version\": 9}".to_owned(), "version 9"),
        ("nonsense".to_owned(), "state of pc7 cannot be read"),
        (
            format!("{{\"version\":1,\"machine\":\"pc7\",\"at\":1,\"lock\":\"{lost}\",\"report\":{{}}}}"),
            "of pc7 is not in the bucket",
        ),
    ] {
        write(&states, &text);
        let said = run(&lab, &["prune", "--bucket", "--apply", "--yes"]);
        must_be(&said, 1);
        assert!(said.err.contains(expected), "{expected}: {}", said.err);
        assert!(before.iter().all(|key| s3.keys("fleet").contains(key)), "{text}");
    }
    write(&states, "{\"version\":1,\"machine\":\"pc7\",\"at\":1,\"lock\":null,\"report\":{}}");
    must_be(&run(&lab, &["prune", "--bucket", "--apply", "--yes"]), 0);
    let lock = before.iter().find(|key| key.contains("/locks/")).unwrap();
    write(lock, "{\"version\": 1, \"artifacts\": []}");
    let said = run(&lab, &["prune", "--bucket", "--apply", "--yes"]);
    must_be(&said, 1);
    assert!(said.err.contains("other content than its name says"), "{}", said.err);
}

#[test]
fn what_was_removed_meanwhile_is_put_again() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let lab = filled("pc1", &s3);
    must_be(&run(&lab, &["push", "--yes"]), 0);
    let key = blob(&model()[0].1);
    larder::fsio::remove_file(&s3.on_disk("fleet", &key)).unwrap();
    must_be(&run(&lab, &["push", "--yes"]), 0);
    assert!(std::fs::read(s3.on_disk("fleet", &key)).unwrap() == model()[0].1);
}

#[test]
fn machines_whose_names_fit_no_key_are_told() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let lab = filled("pc1", &s3);
    write_inventory(&lab, "pc1", &s3, &["fleet"], "");
    let text = std::fs::read_to_string(lab.path("inventory.toml")).unwrap();
    lab.write(
        "inventory.toml",
        text.replace("machine = \"pc1\"", "machine = \"pc/1\"").replace("pc1 = {}", "\"pc/1\" = {}"),
    );
    let said = run(&lab, &["push", "--report"]);
    must_be(&said, 2);
    assert!(said.err.contains("pc/1"), "{}", said.err);
    let _ = command(&lab, &[]);
}

#[test]
fn a_bucket_fills_every_kind_of_store() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let lab = lab::Lab::start();
    lab.apply().must_be(0);
    let inventory = std::fs::read_to_string(lab.inventory()).unwrap();
    let bucket = format!(
        "buckets = [{{ name = \"fleet\", url = \"s3://fleet/lab\", endpoint = \"{}\" }}]\norder = [\"bucket\"]\n",
        s3.endpoint
    );
    larder::fsio::write_atomic(
        &lab.inventory(),
        format!("{inventory}{bucket}").as_bytes(),
        &larder::fsio::WriteOptions::default(),
    )
    .unwrap();
    let larder = |arguments: &[&str]| {
        let mut command = lab.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        lab::Said::of(&command.output().unwrap())
    };
    larder(&["push", "--yes"]).must_be(0);
    lab.start_over();
    larder(&["apply", "--yes"]).must_be(0);
    assert!(lab.faults().is_empty());
    for file in lab::hub_files() {
        let place = lab.repo().join("snapshots").join(lab::COMMIT).join(&file.path);
        assert!(std::fs::read(&place).unwrap() == *file.bytes, "{}", file.path);
    }
    for file in lab::plain_files() {
        assert!(std::fs::read(lab.store("plain").join(&file.path)).unwrap() == *file.bytes, "{}", file.path);
    }
}
