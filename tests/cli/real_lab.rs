//! The repository's own lab: its lock is what its manifests say, and every command reads it.

use std::collections::BTreeSet;
use std::path::Path;

use larder::manifest::Manifests;
use serde_json::Value;

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

/// What `list` with these options says as JSON.
fn listed(lab: &Lab, options: &[&str]) -> Value {
    let said = run(lab, &[&["list", "--json"], options].concat());
    assert_eq!(said.code, 0, "{options:?}: {}", said.err);
    serde_json::from_str(&said.out).unwrap()
}

fn names(list: &Value) -> BTreeSet<&str> {
    list["artifacts"].as_array().unwrap().iter().map(|artifact| artifact["name"].as_str().unwrap()).collect()
}

fn entry<'a>(list: &'a Value, name: &str) -> &'a Value {
    list["artifacts"].as_array().unwrap().iter().find(|artifact| artifact["name"] == name).unwrap()
}

#[test]
fn list_all_shows_everything_that_the_manifests_know() {
    let lab = copy();
    let mut files: Vec<_> =
        fs_err::read_dir(lab.path("manifests")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let manifests = Manifests::read(&files).unwrap();
    let declared: BTreeSet<&str> = manifests.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    let all = listed(&lab, &["--all"]);
    assert_eq!(names(&all), declared);
    let text = run(&lab, &["list", "--all"]).out;
    for name in &declared {
        assert!(text.contains(name), "{name} is not in the text");
    }
    for title in ["Extra Diffusers caches", "In no edition of the document", "Added by the edition of 2026-03-24"] {
        assert!(text.contains(title), "{title} is not in the text");
    }
    assert!(text.contains("2 known copies"), "{text}");
}

#[test]
fn what_the_profile_leaves_out_can_be_found() {
    let lab = copy();
    let said = run(&lab, &["list", "--only", "section:huggingface-extra"]);
    assert_eq!(said.code, 2, "{}", said.out);
    assert!(said.err.contains("selects nothing in profile workstation"), "{}", said.err);
    let hint = "hint: the manifests have it, outside the profile: larder list --all --only section:huggingface-extra";
    assert!(said.err.contains(hint), "{}", said.err);
    let extra = run(&lab, &["list", "--all", "--only", "section:huggingface-extra"]);
    assert_eq!(extra.code, 0, "{}", extra.err);
    assert!(extra.out.contains("copy of sd35-large-turbo"), "{}", extra.out);
    let list = run(&lab, &["list"]).out;
    let outside = "Outside profile workstation: 13 artifacts and 2 known copies; see all with: larder list --all";
    assert!(list.contains(outside), "{list}");
    let unknown = run(&lab, &["list", "--all", "--only", "sd36"]);
    assert!(unknown.code == 2 && unknown.err.contains("selects nothing in the manifests"), "{}", unknown.err);
}

#[test]
fn each_profile_is_listed_with_what_it_sums_up_to() {
    let lab = copy();
    let list = listed(&lab, &[]);
    let profiles = list["profiles"].as_array().unwrap();
    let of = |name: &str| profiles.iter().find(|profile| profile["name"] == name).unwrap();
    assert_eq!(of("workstation")["total"], list["total"]);
    assert_eq!((&of("workstation")["listed"], &of("safety")["listed"]), (&true.into(), &false.into()));
    for name in ["workstation", "safety", "image", "video", "audio", "tier-b", "tier-c", "tier-e"] {
        let alone = listed(&lab, &["--profile", name]);
        assert_eq!(alone["total"], of(name)["total"], "{name}");
        assert!(!names(&alone).is_empty(), "{name}");
    }
    let text = run(&lab, &["list"]).out;
    assert!(text.contains("Profiles\n") && text.contains("tier-b"), "{text}");
    let unknown = run(&lab, &["list", "--profile", "tier-d"]);
    assert_eq!(unknown.code, 2, "{}", unknown.out);
    assert!(
        unknown.err.contains("no profile `tier-d`") && unknown.err.contains("hint: did you mean"),
        "{}",
        unknown.err
    );
}

#[test]
fn list_says_where_an_artifact_goes_and_what_an_admin_should_know() {
    let lab = copy();
    let list = listed(&lab, &["--all"]);
    let path = |name: &str| entry(&list, name)["path"].as_str().unwrap().to_owned();
    assert_eq!(path("sd35-large"), "LAB/home/.cache/huggingface/hub/models--stabilityai--stable-diffusion-3.5-large");
    assert_eq!(path("wan21-vae"), "LAB/home/ai/SwarmUI/Models/vae/wan_2.1_vae.safetensors");
    assert_eq!(path("sd35-solarization-lora"), "LAB/home/ai/SwarmUI/Models/loras");
    let ollama = "/usr/share/ollama/.ollama/models/manifests/registry.ollama.ai/library";
    assert_eq!(path("qwen3:4b"), format!("{ollama}/qwen3/4b"));
    assert_eq!(path("sd35-large-turbo-extra"), "LAB/home/ai/models/diffusers");
    let vision = entry(&list, "llama3.2-vision:latest");
    assert!(vision["note"].as_str().unwrap().contains("domiciled in the EU"), "{vision}");
    assert!(!vision["purpose"].as_str().unwrap().is_empty() && vision["tags"].as_array().is_some(), "{vision}");
    assert_eq!(entry(&list, "sd35-large-turbo")["copies"], serde_json::json!(["sd35-large-turbo-extra"]));

    let one = run(&lab, &["list", "--only", "llama3.2-vision:latest"]).out;
    assert!(one.contains("domiciled in the EU") && one.contains(&format!("{ollama}/llama3.2-vision/latest")), "{one}");
    let some = run(&lab, &["list", "--only", "store:ollama"]).out;
    assert!(!some.contains("domiciled in the EU"), "{some}");
    assert!(some.contains("1 of these has a note: larder list --verbose"), "{some}");
    let verbose = run(&lab, &["list", "--only", "store:ollama", "--verbose"]).out;
    assert!(verbose.contains("domiciled in the EU"), "{verbose}");
}
