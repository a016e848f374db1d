//! Several programs at the same stores at the same time: each content crosses the wire once, and all is right.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[expect(dead_code, reason = "each test uses a part of the lab")]
#[path = "support/lab.rs"]
mod lab;
#[path = "support/parts.rs"]
mod parts;
#[path = "support/rules.rs"]
mod rules;

use lab::{COMMIT, Lab, Said};

/// Slow enough that all of them are at work at the same time.
const PACE: Duration = Duration::from_millis(5);

fn must_all_succeed(children: Vec<Child>) {
    for child in children {
        Said::of(&child.wait_with_output().unwrap()).must_be(0);
    }
}

/// Starts so many at once; each content must come once, for all of them together.
fn apply_at_once(lab: &Lab, programs: usize) {
    let before = lab.upstream.sent();
    lab.upstream.take_asked();
    let begin = || lab.command(&["apply", "--yes"]).spawn().unwrap();
    must_all_succeed((0..programs).map(|_| begin()).collect());
    rules::everything_is_there(lab);
    assert_eq!(lab.upstream.sent() - before, Lab::bytes_to_fetch(), "by {programs} programs");
    let mut times = BTreeMap::new();
    lab.upstream.take_asked().into_iter().for_each(|asked| *times.entry(asked.path).or_insert(0) += 1);
    assert!(times.values().all(|times| *times == 1), "by {programs} programs: {times:#?}");
    lab.larder(&["verify", "--full"]).must_be(0);
}

#[test]
fn many_at_once_fetch_each_content_once() {
    let lab = Lab::start();
    lab.upstream.set_pace(PACE);
    for programs in [2, 8] {
        lab.start_over();
        apply_at_once(&lab, programs);
    }
}

#[test]
fn one_that_waits_for_another_goes_on_when_that_one_is_killed() {
    let lab = Lab::start();
    lab.upstream.set_pace(PACE);
    lab.upstream.hold_after(1 << 20);
    let mut first = lab.command(&["apply", "--yes"]).spawn().unwrap();
    lab.upstream.wait_until_held();
    let second = lab.command(&["apply", "--yes"]).spawn().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    lab.upstream.release();
    must_all_succeed(vec![second]);
    rules::everything_is_there(&lab);
    lab.larder(&["verify", "--full"]).must_be(0);
}

fn hf_download(lab: &Lab, hf: &std::path::Path) -> Child {
    let mut command = Command::new(hf);
    command.args(["download", "lab/paint"]).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", lab.root());
    command.env("HF_HUB_CACHE", lab.store("huggingface")).env("HF_HOME", lab.root().join("hf-home"));
    command.env("HF_ENDPOINT", format!("http://{}", lab.upstream.address));
    for name in ["HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "HF_HUB_DISABLE_PROGRESS_BARS", "NO_COLOR"]
    {
        command.env(name, "1");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn apply_and_hf_download_of_the_same_repository_are_both_right() {
    for client in ["hf-1.31", "hf-latest"] {
        let Some(hf) = parts::part(&format!("{client}/bin/hf")) else { return };
        let lab = Lab::start();
        lab.upstream.set_pace(PACE);
        // The other program is in the middle of its first file when larder begins.
        lab.upstream.hold_after(100_000);
        let other = hf_download(&lab, &hf);
        lab.upstream.wait_until_held();
        let ours = lab.command(&["apply", "--yes", "--only", "paint"]).spawn().unwrap();
        lab.upstream.release();
        must_all_succeed(vec![other, ours]);
        for file in lab::hub_files() {
            let path = lab.repo().join("snapshots").join(COMMIT).join(&file.path);
            assert!(fs_err::read(&path).unwrap() == *file.bytes, "{client}: {}", path.display());
        }
        assert_eq!(fs_err::read_to_string(lab.repo().join("refs/main")).unwrap(), COMMIT, "{client}");
        lab.larder(&["verify", "--full", "--only", "paint"]).must_be(0);
        let contents: u64 = lab::hub_files().iter().map(|file| file.bytes.len() as u64).sum();
        // Both keep the same locks, so nothing comes twice.
        assert!(lab.upstream.sent() <= contents, "{client}: {} of {contents} bytes", lab.upstream.sent());
    }
}

/// Artifacts of which nobody knows a digest before the first fetch, by name and address.
fn declare_unpinned(lab: &Lab, artifacts: &[(&str, String)]) {
    let artifact = |(name, source): &(&str, String)| {
        format!("[[artifact]]\nname = \"{name}\"\nsource = \"{source}\"\nstore = \"plain\"\nfolder = \"{name}\"\n")
    };
    let text: String = artifacts.iter().map(artifact).collect();
    let path = lab.root().join("lab/manifests/unpinned.toml");
    larder::fsio::write_atomic(&path, text.as_bytes(), &Default::default()).unwrap();
}

fn vae_of(lab: &Lab) -> String {
    format!("http://{}/files/vae.pth/vae.pth", lab.upstream.address)
}

/// The names of the artifacts whose every file is pinned in the lock, and those of all.
fn pinned(lab: &Lab) -> (Vec<String>, Vec<String>) {
    let lock = larder::lock::Lock::read(&lab.inventory().with_extension("lock")).unwrap().unwrap();
    let is_pinned = |artifact: &&larder::artifact::Artifact| {
        !artifact.files.is_empty() && artifact.files.iter().all(|file| file.digests.proves_content())
    };
    let name = |artifact: &larder::artifact::Artifact| artifact.name.clone();
    (lock.artifacts.iter().filter(is_pinned).map(name).collect(), lock.artifacts.iter().map(name).collect())
}

#[track_caller]
fn must_pin(lab: &Lab, artifacts: &[&str]) {
    let pinned = pinned(lab).0;
    assert!(artifacts.iter().all(|name| pinned.iter().any(|pinned| pinned == name)), "{pinned:?}");
}

#[test]
fn what_two_runs_pin_at_once_is_all_kept() {
    let (lab, other) = (Lab::start(), Lab::start());
    let declared = [("slow", vae_of(&lab)), ("quick", vae_of(&other)), ("third", vae_of(&other))];
    for is_locked in [true, false] {
        lab.start_over();
        declare_unpinned(&lab, &declared);
        if is_locked {
            lab.larder(&["lock", "--offline"]).must_be(0);
        }
        lab.upstream.hold_after(100_000);
        let slow = lab.command(&["apply", "--yes", "--only", "slow"]).spawn().unwrap();
        lab.upstream.wait_until_held();
        // The first one read the lock long ago: what others write meanwhile is not its to undo.
        lab.larder(&["apply", "--yes", "--only", "quick"]).must_be(0);
        lab.larder(&["lock", "--update", "third"]).must_be(0);
        lab.upstream.release();
        must_all_succeed(vec![slow]);
        must_pin(&lab, &["slow", "quick"]);
        let third = fs_err::read_to_string(lab.inventory().with_extension("lock")).unwrap();
        let third = third.lines().find(|line| line.contains("\"name\":\"third\"")).unwrap().to_owned();
        assert!(third.contains("\"origin\":\"upstream\""), "{third}");
        assert_eq!(pinned(&lab).1[6..], ["slow", "quick", "third"], "the manifests' order");
        lab.larder(&["lock", "--check"]).must_be(0);
        // Without entries, the next round begins as a lab that never locked these.
        declare_unpinned(&lab, &[]);
        lab.larder(&["lock", "--offline"]).must_be(0);
    }
}

#[test]
fn a_look_up_that_takes_long_loses_no_pin() {
    use std::io::{BufRead as _, Write as _};
    let lab = Lab::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let far = format!("http://{}/far.bin", listener.local_addr().unwrap());
    declare_unpinned(&lab, &[("far", far), ("near", vae_of(&lab))]);
    lab.larder(&["lock", "--offline"]).must_be(0);
    let looking = lab.command(&["lock", "--update", "far", "--only", "far"]).spawn().unwrap();
    let (stream, _) = listener.accept().unwrap();
    lab.larder(&["apply", "--yes", "--only", "near"]).must_be(0);
    let mut lines = std::io::BufReader::new(&stream).lines();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n").unwrap();
    drop(stream);
    must_all_succeed(vec![looking]);
    must_pin(&lab, &["near"]);
    lab.larder(&["verify", "--full", "--only", "near"]).must_be(0);
}

#[test]
fn a_first_fetch_is_pinned_also_where_there_was_no_lock() {
    let lab = Lab::start();
    declare_unpinned(&lab, &[("new", vae_of(&lab))]);
    #[expect(clippy::disallowed_methods, reason = "the lab is to begin without a lock")]
    std::fs::remove_file(lab.inventory().with_extension("lock")).unwrap();
    lab.larder(&["apply", "--yes", "--only", "new", "--only", "vae"]).must_be(0);
    // What the manifest pins needs no lock; what was trusted at first sight does.
    assert_eq!(pinned(&lab), (vec!["new".to_owned()], vec!["new".to_owned()]));
    let path = lab.store("plain").join("new/vae.pth");
    larder::fsio::write_atomic(&path, &vec![0; 600_000], &Default::default()).unwrap();
    let faults = lab.faults();
    assert!(faults.iter().any(|(artifact, ..)| artifact == "new"), "{faults:?}");
}
