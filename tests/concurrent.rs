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
