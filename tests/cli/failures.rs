//! One failure stops no other: what cannot be had of a place says nothing about the rest of it.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;

use crate::fake_server::{FakeServer, Seen};
use crate::program::{INVENTORY, Lab};
use crate::provider::Provider;

const GOOD: &[u8] = b"what is there";

/// A host that has `good.bin` and nothing else.
fn host(runtime: &tokio::runtime::Runtime) -> FakeServer {
    runtime.block_on(FakeServer::start(|seen: &Seen| {
        let answer = Response::builder();
        match seen.line.split_once(' ') {
            Some(("HEAD", "/good.bin")) => answer.header("content-length", GOOD.len()).body(Body::empty()).unwrap(),
            Some((_, "/good.bin")) => answer.body(Body::from(GOOD)).unwrap(),
            _ => answer.status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap(),
        }
    }))
}

fn artifact(name: &str, source: &str) -> String {
    format!("[[artifact]]\nname = \"{name}\"\nstore = \"plain\"\nsource = \"{source}\"\n")
}

/// What the plan says of each artifact: its steps, and why something cannot be done.
fn planned(lab: &Lab, arguments: &[&str]) -> Vec<(String, usize, Vec<String>)> {
    let said = lab.run(&[&["plan", "--json"][..], arguments].concat());
    let plan: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}", said.err));
    let entry = |entry: &Value| {
        let obstacles = entry["obstacles"].as_array().unwrap();
        let reasons = obstacles.iter().map(|obstacle| obstacle["reason"].as_str().unwrap().to_owned());
        let name = entry["artifact"].as_str().unwrap().to_owned();
        (name, entry["steps"].as_array().unwrap().len(), reasons.collect())
    };
    plan["artifacts"].as_array().unwrap().iter().map(entry).collect()
}

#[test]
fn an_asset_that_vanished_blocks_no_other_of_its_host() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = host(&runtime);
    let from = |file: &str| format!("http://{}/{file}", server.host);
    let manifest = format!("{}{}", artifact("a-gone", &from("gone.bin")), artifact("b-good", &from("good.bin")));
    let lab = Lab::new(INVENTORY, &manifest);
    let plan = planned(&lab, &[]);
    let gone = format!("{} does not exist", from("gone.bin"));
    assert_eq!(plan, [("a-gone".to_owned(), 0, vec![gone]), ("b-good".to_owned(), 2, vec![])]);
    assert_eq!(server.seen().len(), 2, "each file is asked for once");
    let said = lab.run(&["apply", "--yes"]);
    assert_eq!(said.code, 4, "{}{}", said.out, said.err);
    assert_eq!(fs_err::read(lab.path("home/plain/good.bin")).unwrap(), GOOD);
}

#[test]
fn a_missing_file_of_a_repository_blocks_none_of_its_neighbours() {
    let provider = Provider::start();
    let lab = provider.lab();
    let good = fs_err::read_to_string(lab.path("manifests/lab.toml")).unwrap();
    let missing = "[[artifact.file]]\npath = \"0.bin\"\nsource = \"hf:acme/tiny/0.bin\"\nsize = 3\n";
    lab.write("manifests/lab.toml", format!("{good}{missing}"));
    let plan = planned(&lab, &[]);
    assert_eq!(plan[0].1, 2, "the two files that are there: {plan:?}");
    assert!(matches!(plan[0].2.as_slice(), [reason] if reason.contains("0.bin")), "{plan:?}");
}

#[test]
fn a_repository_that_does_not_exist_is_asked_once() {
    let provider = Provider::start();
    let lab = provider.lab();
    let files = (0..20).map(|n| format!("[[artifact.file]]\npath = \"{n}.bin\"\nsize = 3\n"));
    let files: String = files.collect();
    lab.write("manifests/lab.toml", format!("{}{files}", artifact("none", "hf:acme/none")));
    let plan = planned(&lab, &[]);
    assert_eq!((plan[0].1, plan[0].2.len()), (0, 20), "{plan:?}");
    assert!(plan[0].2.iter().all(|reason| reason == "hf:acme/none does not exist"), "{plan:?}");
    assert_eq!(provider.requests(), 1);
}

#[test]
fn offline_no_file_is_blamed_for_another() {
    let from = |file: &str| format!("http://127.0.0.1:9/{file}");
    let manifest = format!("{}{}", artifact("one", &from("one.bin")), artifact("two", &from("two.bin")));
    let lab = Lab::new(INVENTORY, &manifest);
    for arguments in [&["--offline"][..], &[]] {
        for (name, steps, reasons) in planned(&lab, arguments) {
            assert_eq!((steps, reasons.len()), (0, 1), "{name}");
            assert!(reasons[0].starts_with("http://127.0.0.1:9 "), "{name}: {reasons:?}");
        }
    }
}

#[test]
fn offline_no_look_up_destroys_what_an_earlier_one_knew() {
    let provider = Provider::start();
    let lab = provider.lab();
    lab.write("manifests/lab.toml", artifact("tiny", "hf:acme/tiny"));
    assert_eq!(lab.run(&["lock"]).code, 0);
    let before = fs_err::read_to_string(lab.path("inventory.lock")).unwrap();
    assert_eq!(before.matches("\"sha256\"").count(), 2, "{before}");
    let said = lab.run(&["lock", "--offline", "--update", "tiny"]);
    assert_eq!(said.code, 4, "{}{}", said.out, said.err);
    assert!(said.out.contains("tiny is not looked up again: --offline forbids to ask"), "{}", said.out);
    assert!(said.out.contains("hint: run it again without --offline"), "{}", said.out);
    assert_eq!(fs_err::read_to_string(lab.path("inventory.lock")).unwrap(), before);
    // Another declaration is another artifact: what was known of the old one does not count for it.
    lab.write("manifests/lab.toml", artifact("tiny", "hf:acme/other"));
    assert_eq!(lab.run(&["lock", "--offline"]).code, 0);
    assert!(!fs_err::read_to_string(lab.path("inventory.lock")).unwrap().contains("sha256"));
}
