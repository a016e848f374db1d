//! The repository's own lab: its lock is what its manifests say, and every command reads it.

use std::path::Path;

use crate::program::{Lab, Said};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A copy of the repository's lab, so that nothing here can change the original.
fn copy() -> Lab {
    let read = |path: &Path| fs_err::read_to_string(path).unwrap();
    let lab = Lab::new(&read(&root().join("inventory.toml")), "# replaced below\n");
    for entry in fs_err::read_dir(root().join("manifests")).unwrap() {
        let path = entry.unwrap().path();
        lab.write(&format!("manifests/{}", path.file_name().unwrap().to_str().unwrap()), read(&path));
    }
    lab
}

fn run(lab: &Lab, arguments: &[&str]) -> Said {
    lab.run(&[arguments, &["--offline"]].concat())
}

#[test]
fn the_lock_follows_from_the_manifests() {
    let lab = copy();
    let said = run(&lab, &["lock"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let (made, committed) = (fs_err::read(lab.path("inventory.lock")).unwrap(), root().join("inventory.lock"));
    assert!(made == fs_err::read(committed).unwrap(), "inventory.lock is stale: run larder lock --offline");
    assert_eq!(run(&lab, &["lock", "--check"]).code, 0);
}

#[test]
fn the_lab_can_be_listed_planned_and_looked_at() {
    let lab = copy();
    run(&lab, &["lock"]);
    let plan = run(&lab, &["plan", "--machine", "pc1"]);
    assert!(plan.code == 0 && plan.out.starts_with("pc1 · profile workstation · "), "{}{}", plan.out, plan.err);
    let behind_a_cap = run(&lab, &["plan", "--machine", "pc2"]);
    assert!(behind_a_cap.out.contains("this machine may not fetch from upstream"), "{}", behind_a_cap.out);
    let undecided = run(&lab, &["plan", "--machine", "pc1", "--only", "heartmula-oss-3b"]).out;
    assert!(undecided.contains("nobody knows which of 3 sources it comes from"), "{undecided}");
    for way in [
        "hf:HeartMuLa/HeartMuLa-RL-oss-3B-20260123",
        "hf:HeartMuLa/HeartMuLa-oss-3B,",
        "hf:HeartMuLa/HeartMuLa-oss-3B-happy-new-year@41f6fc68490e11dc43fdabaa6b5767946408c903",
        "`sha256sum HeartMuLa-oss-3B/model-00001-of-00004.safetensors`",
        "into the manifest as `source`",
    ] {
        assert_eq!(undecided.matches(way).count(), 1, "{way}: {undecided}");
    }
    let list = run(&lab, &["list"]);
    assert!(list.code == 0 && list.out.contains("sd35-large"), "{}", list.out);
    assert_eq!(run(&lab, &["status"]).code, 3);
    assert!(!lab.path("home").exists(), "looking has made something");
}
