//! larder as it is typed, beside Python's clients: one downloads what the other serves, and reads what it wrote.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::fsio::{WriteOptions, write_atomic};

#[path = "support/hub.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod hub;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/parts.rs"]
mod parts;
#[path = "support/python.rs"]
mod python;
#[path = "support/tiny_bert.rs"]
mod tiny_bert;

use hub::{Access, Hub, Logged};
use machine::{Machine, Serving, contents};
use python::{CLIENTS, client, output, script};
use tiny_bert::repository;

const INVENTORY: &str = "[stores]\nhuggingface = { layout = \"hf-cache\", path = \"~/hub\" }\n";
const HAND: &str = "[[artifact]]\nname = \"hand\"\nsource = \"hf:acme/hand\"\nstore = \"huggingface\"\n";
const SECRET: &str =
    "[[artifact]]\nname = \"secret\"\nsource = \"hf:acme/secret\"\nstore = \"huggingface\"\ngated = true\n";

/// An independent hub with the tiny BERT, listed on several pages; and its commit.
fn upstream() -> (Hub, String) {
    let hub = Hub::start();
    hub.set_page_size(3);
    let files = repository();
    let files: Vec<_> = files.iter().map(|(path, lfs, content)| (*path, content.as_slice(), *lfs)).collect();
    let commit = hub.commit("acme/hand", &files);
    (hub, commit)
}

/// A machine that larder provisioned from `endpoint`.
fn provisioned(endpoint: &str) -> Machine {
    let machine = Machine::new(INVENTORY, HAND);
    let hub = [("HF_ENDPOINT", endpoint)];
    machine.larder_with(&hub, &["lock"]).must_be(0);
    machine.larder_with(&hub, &["apply", "--yes"]).must_be(0);
    machine
}

/// The hub, a machine that was provisioned from it, and that machine's server.
fn mirrored() -> (Machine, Serving, String) {
    let (hub, commit) = upstream();
    let machine = provisioned(&hub.origin);
    let serving = machine.serve();
    (machine, serving, commit)
}

/// A program of a client that may ask `endpoint`.
fn online(program: &Path, home: &Path, endpoint: &str) -> Command {
    let mut command = client(program, home);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", endpoint);
    command
}

fn snapshot(home: &Path, commit: &str) -> BTreeMap<String, Vec<u8>> {
    snapshot_in(&home.join("hub"), commit)
}

fn snapshot_in(cache: &Path, commit: &str) -> BTreeMap<String, Vec<u8>> {
    contents(&cache.join("models--acme--hand/snapshots").join(commit))
}

fn published() -> BTreeMap<String, Vec<u8>> {
    repository().into_iter().map(|(path, _, content)| (path.to_owned(), content)).collect()
}

#[test]
fn hf_downloads_from_larder_what_larder_fetches_from_it() {
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let (first, serving, commit) = mirrored();
        let second = provisioned(&serving.url());
        let home = tempfile::tempdir().unwrap();
        output(online(&hf, home.path(), &serving.url()).args(["download", "acme/hand"]));
        for home in [first.home(), second.home(), home.path()] {
            assert_eq!(snapshot(home, &commit), published(), "{name}: {}", home.display());
            let main = fs_err::read_to_string(home.join("hub/models--acme--hand/refs/main")).unwrap();
            assert_eq!(main, commit, "{name}: {}", home.display());
        }
    }
}

#[test]
fn hf_finds_nothing_wrong_in_what_larder_fetched_until_a_bit_flips() {
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let (_first, serving, commit) = mirrored();
        let second = provisioned(&serving.url());
        let listed = output(client(&hf, second.home()).args(["cache", "ls", "--show-warnings"]));
        assert!(listed.contains("acme/hand") && !listed.to_lowercase().contains("warning"), "{name}: {listed}");
        let verify = || {
            let mut verify = online(&hf, second.home(), &serving.url());
            verify.args(["cache", "verify", "acme/hand", "--fail-on-missing-files", "--fail-on-extra-files"]);
            verify
        };
        output(&mut verify());
        second.larder(&["verify"]).must_be(0);
        let files = repository();
        let mut read = client(&hf.with_file_name("python"), second.home());
        output(read.arg(script("read.py")).arg(second.path("hub")).arg(&commit).args(files.iter().map(|file| file.0)));

        flip_a_bit(&second.path(&format!("hub/models--acme--hand/snapshots/{commit}/model.safetensors")));
        assert!(!verify().output().unwrap().status.success(), "{name}: the check above can fail");
        second.larder(&["verify"]).must_be(3).must_say(&["model.safetensors", "wrong"]);
        second.larder_with(&[("HF_ENDPOINT", &serving.url())], &["apply", "--yes"]).must_be(0);
        output(&mut verify());
        assert_eq!(snapshot(second.home(), &commit), published(), "{name}");
    }
}

/// Changes the last byte of the file that `link` leads to.
fn flip_a_bit(link: &Path) {
    let place = fs_err::canonicalize(link).unwrap();
    let mut content = fs_err::read(&place).unwrap();
    *content.last_mut().unwrap() ^= 1;
    write_atomic(&place, &content, &WriteOptions::default()).unwrap();
}

#[test]
fn transformers_loads_what_larder_fetched() {
    let Some(python) = parts::part("hf-latest/bin/python") else { return };
    let (_first, serving, _) = mirrored();
    let second = provisioned(&serving.url());
    let said = output(client(&python, second.home()).arg(script("transform.py")));
    assert!(said.contains("tokens [2, 5, 6, 3]"), "{said}");
}

/// As a program of the lab does it: the mirror's address in the environment, and nothing in the cache.
#[test]
fn transformers_loads_from_larder_by_branch_and_by_commit() {
    for name in CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        // The older generation is installed without transformers, and snapshots are the part of it that asks.
        let programs: &[&str] = if name == "hf-latest" { &["online.py", "snapshot.py"] } else { &["snapshot.py"] };
        for program in programs {
            let (_first, serving, commit) = mirrored();
            for revision in ["main", commit.as_str()] {
                let home = tempfile::tempdir().unwrap();
                let run = |online_now: bool| {
                    let mut command = online(&python, home.path(), &serving.url());
                    if !online_now {
                        command.env("HF_HUB_OFFLINE", "1");
                    }
                    output(command.arg(script(program)).arg(revision).arg(&commit))
                };
                assert!(run(true).contains("loaded"), "{name} {program} {revision}");
                let asked = serving.requests();
                assert!(asked.iter().any(|line| line.contains("/resolve/")), "{name} {program} {revision}: {asked:?}");
                run(false);
                assert_eq!(serving.requests(), [""; 0], "{name} {program} {revision}: what came is enough");
                let kept = snapshot_in(&home.path().join("hub"), &commit);
                let all = published();
                assert!(
                    kept.iter().all(|(path, content)| all.get(path) == Some(content)),
                    "{name} {program} {revision}"
                );
            }
        }
    }
}

#[test]
fn what_hf_downloaded_is_complete_for_larder_without_a_request() {
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let (_first, serving, _) = mirrored();
        let url = serving.url();
        let second = Machine::new(INVENTORY, HAND);
        output(online(&hf, second.home(), &url).args(["download", "acme/hand"]));
        let hub = [("HF_ENDPOINT", url.as_str())];
        second.larder_with(&hub, &["lock"]).must_be(0);
        let before = everything_below(&second.path("hub"));
        let asked = serving.requests();
        assert!(asked.iter().any(|line| line.contains("/resolve/")), "{name} asked for files: {asked:?}");
        second.larder_with(&hub, &["status"]).must_be(0);
        second.larder_with(&hub, &["apply", "--yes"]).must_be(0).must_say(&["nothing to do"]);
        second.larder_with(&hub, &["verify"]).must_be(0);
        assert_eq!(serving.requests(), [""; 0], "{name}");
        assert_eq!(everything_below(&second.path("hub")), before, "{name}");
    }
}

#[test]
fn what_hf_downloaded_from_a_redirecting_hub_is_complete_for_larder_too() {
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let (hub, commit) = upstream();
        let machine = Machine::new(INVENTORY, HAND);
        output(online(&hf, machine.home(), &hub.origin).args(["download", "acme/hand"]));
        assert_eq!(snapshot(machine.home(), &commit), published(), "{name}");
        let endpoint = [("HF_ENDPOINT", hub.origin.as_str())];
        machine.larder_with(&endpoint, &["lock"]).must_be(0);
        let before = everything_below(&machine.path("hub"));
        hub.clear_log();
        machine.larder_with(&endpoint, &["status"]).must_be(0);
        machine.larder_with(&endpoint, &["apply", "--yes"]).must_be(0);
        machine.larder_with(&endpoint, &["verify"]).must_be(0);
        assert_eq!(hub.log().len(), 0, "{name}");
        assert_eq!(everything_below(&machine.path("hub")), before, "{name}");
    }
}

/// Path, inode and time of change of everything, links themselves included.
fn everything_below(folder: &Path) -> Vec<(PathBuf, u64, i64)> {
    let entries = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().map(Result::unwrap);
    let seen = |entry: walkdir::DirEntry| {
        let metadata = entry.metadata().unwrap();
        (entry.into_path(), metadata.ino(), metadata.mtime_nsec())
    };
    entries.map(seen).collect()
}

/// A hub with a public and a gated repository; `good` may read both, `known` has not accepted the licence.
fn gated() -> Hub {
    let (hub, _) = upstream();
    hub.commit("acme/secret", &[("config.json", b"{\"secret\": 1}", false), ("model.bin", &[7; 5000], true)]);
    let (accepted, known) = (vec!["good".to_owned()], vec!["good".to_owned(), "known".to_owned()]);
    hub.allow("acme/secret", Access::Gated { accepted, known });
    hub
}

fn is_about_secret(logged: &Logged) -> bool {
    logged.path.contains("/secret/")
}

#[test]
fn a_gated_repository_is_an_obstacle_before_the_first_byte() {
    let hub = gated();
    let machine = Machine::new(INVENTORY, &format!("{HAND}{SECRET}"));
    let endpoint = ("HF_ENDPOINT", hub.origin.as_str());
    machine.larder_with(&[endpoint], &["lock"]).must_be(0);
    hub.clear_log();
    for (token, reason) in [("", "token"), ("known", "licence")] {
        let variables = [endpoint, ("HF_TOKEN", token)];
        let plan = machine.larder_with(&variables, &["plan"]).must_be(0);
        let plan = plan.must_say(&["secret", "cannot", reason, "hint: ", "acme/secret"]);
        assert!(plan.out.contains("1 artifact cannot be provided"), "{plan}");
        machine.larder_with(&variables, &["plan", "--check"]).must_be(3);
        let told = machine.larder_with(&variables, &["plan", "--json"]).must_be(0).json();
        let artifacts = told["artifacts"].as_array().unwrap();
        let obstacles: Vec<usize> = artifacts.iter().map(|a| a["obstacles"].as_array().unwrap().len()).collect();
        assert_eq!(obstacles[0], 0, "{told}");
        assert!(obstacles[1] > 0 && artifacts[1]["steps"].as_array().unwrap().is_empty(), "{told}");
        assert!(artifacts[1]["obstacles"][0]["hint"].is_string(), "{told}");
    }
    assert_eq!(hub.count(|logged| logged.sent > 0 && (logged.on_cdn || is_about_secret(logged))), 0, "no byte moved");

    machine.larder_with(&[endpoint], &["apply", "--yes"]).must_be(4).must_say(&["hint: "]);
    assert!(machine.path("hub/models--acme--hand/refs/main").exists(), "one refusal does not stop the others");
    assert!(!machine.path("hub/models--acme--secret").exists());
    machine.larder_with(&[endpoint], &["apply", "--yes"]).must_be(4);
    machine.larder_with(&[endpoint], &["status"]).must_be(3);
}

#[test]
fn tokens_are_read_as_hugging_faces_own_tools_read_them_and_stay_with_the_hub() {
    for variables in [
        vec![("HF_TOKEN", " good\n")],
        vec![("HF_TOKEN_PATH", "~/elsewhere")],
        vec![],
        vec![("HF_TOKEN", "good"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")],
    ] {
        let hub = gated();
        let machine = Machine::new(INVENTORY, SECRET);
        match variables.first() {
            None => machine.write("token", "good\n"),
            Some(("HF_TOKEN_PATH", _)) => machine.write("elsewhere", "good"),
            Some(_) => machine.write("token", "never read"),
        }
        let mut variables = variables;
        variables.push(("HF_ENDPOINT", &hub.origin));
        machine.larder_with(&variables, &["lock"]).must_be(0);
        machine.larder_with(&variables, &["apply", "--yes"]).must_be(0);
        assert!(hub.count(|logged| logged.on_cdn && logged.sent > 0) == 1, "{variables:?}");
        assert_eq!(hub.count(|logged| logged.on_cdn && logged.authorized), 0, "{variables:?}");
        assert!(hub.count(|logged| !logged.on_cdn && logged.authorized) > 0, "{variables:?}");
    }
}

#[test]
fn a_token_file_is_left_alone_where_it_is_switched_off() {
    let hub = gated();
    let machine = Machine::new(INVENTORY, SECRET);
    machine.write("token", "good");
    let variables = [("HF_ENDPOINT", hub.origin.as_str()), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
    machine.larder_with(&variables, &["lock"]).must_be(0);
    machine.larder_with(&variables, &["plan", "--check"]).must_be(3).must_say(&["cannot"]);
    assert_eq!(hub.count(|logged| logged.authorized), 0);
}

#[test]
fn offline_means_no_request() {
    let (hub, _) = upstream();
    let machine = Machine::new(INVENTORY, HAND);
    let endpoint = ("HF_ENDPOINT", hub.origin.as_str());
    machine.larder_with(&[endpoint], &["lock"]).must_be(0);
    hub.clear_log();
    let offline = [endpoint, ("HF_HUB_OFFLINE", "1")];
    machine.larder_with(&offline, &["plan", "--check"]).must_be(3).must_say(&["hand", "cannot", "HF_HUB_OFFLINE"]);
    // Nothing is tried: the plan knows that it cannot be had.
    machine.larder_with(&offline, &["apply", "--yes"]).must_be(4);
    machine.larder_with(&offline, &["lock", "--update", "hand"]).must_be(4).must_say(&["HF_HUB_OFFLINE"]);
    assert_eq!(hub.log().len(), 0);
    machine.larder_with(&[endpoint], &["apply", "--yes"]).must_be(0);
    hub.clear_log();
    machine.larder_with(&offline, &["apply", "--yes"]).must_be(0);
    assert_eq!(hub.log().len(), 0, "nothing is missing, so offline is no obstacle");
}

#[test]
fn a_branch_that_moves_is_followed_when_asked_and_the_old_snapshot_stays() {
    let (hub, old) = upstream();
    let machine = provisioned(&hub.origin);
    let endpoint = [("HF_ENDPOINT", hub.origin.as_str())];
    let mut files = repository();
    files[1].2.extend([0; 8]);
    files.push(("new.json", false, b"{}".to_vec()));
    let moved: Vec<_> = files.iter().map(|(path, lfs, content)| (*path, content.as_slice(), *lfs)).collect();
    let new = hub.commit("acme/hand", &moved);
    hub.clear_log();
    machine.larder_with(&endpoint, &["lock"]).must_be(0);
    machine.larder_with(&endpoint, &["apply", "--yes"]).must_be(0).must_say(&["nothing to do"]);
    assert_eq!(hub.log().len(), 0, "what is locked stays");

    machine.larder_with(&endpoint, &["lock", "--update", "hand"]).must_be(0).must_say(&["changed: hand"]);
    machine.larder_with(&endpoint, &["apply", "--yes"]).must_be(0);
    let moved: BTreeMap<_, _> = files.into_iter().map(|(path, _, content)| (path.to_owned(), content)).collect();
    assert_eq!(snapshot(machine.home(), &new), moved);
    assert_eq!(snapshot(machine.home(), &old), published(), "programs that name the old commit still find it");
    assert_eq!(fs_err::read_to_string(machine.path("hub/models--acme--hand/refs/main")).unwrap(), new);
    let fetched = hub.count(|logged| logged.method == "GET" && logged.sent > 0 && !logged.path.contains("/tree/"));
    assert_eq!(fetched, 1, "the changed weights; the new file's content was here under another name");
}

/// Gives everything below `folder`, links themselves too, a time of change long ago.
fn age(folder: &Path) {
    let then = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: then, last_modification: then };
    for entry in walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap) {
        rustix::fs::utimensat(rustix::fs::CWD, entry.path(), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

#[test]
fn a_replaced_revision_goes_and_python_misses_nothing() {
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let (hub, old) = upstream();
        let machine = provisioned(&hub.origin);
        let endpoint = [("HF_ENDPOINT", hub.origin.as_str())];
        let mut files = repository();
        files[1].2.extend([0; 8]);
        let moved: Vec<_> = files.iter().map(|(path, lfs, content)| (*path, content.as_slice(), *lfs)).collect();
        let new = hub.commit("acme/hand", &moved);
        machine.larder_with(&endpoint, &["lock", "--update", "hand"]).must_be(0);
        machine.larder_with(&endpoint, &["apply", "--yes"]).must_be(0);
        age(&machine.path("hub"));
        machine.larder(&["prune"]).must_be(0).must_say(&["0 leftovers", "1 replaced revision more can go"]);
        machine.larder(&["prune", "--superseded", "--apply", "--yes"]).must_be(0);

        let moved: BTreeMap<_, _> = files.into_iter().map(|(path, _, content)| (path.to_owned(), content)).collect();
        assert_eq!(snapshot(machine.home(), &new), moved, "{name}");
        assert!(!machine.path(&format!("hub/models--acme--hand/snapshots/{old}")).exists(), "{name}");
        let blobs = fs_err::read_dir(machine.path("hub/models--acme--hand/blobs")).unwrap().count();
        assert_eq!(blobs, moved.len(), "{name}: one content was only of the old revision");
        let listed = output(client(&hf, machine.home()).args(["cache", "ls", "--show-warnings"]));
        assert!(listed.contains("acme/hand") && !listed.to_lowercase().contains("warning"), "{name}: {listed}");
        output(online(&hf, machine.home(), &hub.origin).args(["cache", "verify", "acme/hand"]));
        machine.larder(&["verify"]).must_be(0);
    }
}
