//! `larder apply` is killed at random moments and started again, over all three kinds of store.
//!
//! `LARDER_CRASH_ROUNDS=300` for a long run, `LARDER_CRASH_SEED` for other moments.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/chance.rs"]
mod chance;
#[expect(dead_code, reason = "each test uses a part of the lab")]
#[path = "support/lab.rs"]
mod lab;
#[path = "support/parts.rs"]
mod parts;
#[path = "support/python.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod python;
#[path = "support/rules.rs"]
mod rules;

use chance::{Random, number};
use lab::{Lab, Said};
use parts::skip;
use python::CLIENTS;

/// Slow enough that most kills hit transfers.
const PACE: Duration = Duration::from_millis(10);
/// Files that the program fetches at the same time.
const PARALLEL: u64 = 8;
/// What one kill may cost: for each file under way, what is between the server and the disk.
const LOST_BY_KILL: u64 = PARALLEL * (64 << 10);
/// How much is sent before a run is told to stop.
const HELD: u64 = 1 << 20;

/// Lets the program run for `moment` and kills it. A success means that it was done before.
fn kill_after(mut child: Child, moment: Duration) -> ExitStatus {
    chance::kill_at(&mut child, moment);
    child.wait().unwrap()
}

fn begin(lab: &Lab) -> Child {
    let mut command = lab.command(&["apply", "--yes"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// One machine from empty to complete, with kills on the way; returns how many.
fn live(lab: &Lab, random: &mut Random, longest: Duration, at_most: u64) -> u64 {
    let mut kills = 0;
    while kills < at_most {
        let moment = random.below(longest);
        let status = kill_after(begin(lab), moment);
        rules::nothing_visible_is_wrong(lab);
        if status.success() {
            break;
        }
        assert_eq!(status.code(), None, "it ended by itself after {moment:?} and failed");
        kills += 1;
    }
    lab.apply().must_be(0);
    rules::everything_is_there(lab);
    lab.larder(&["verify", "--full"]).must_be(0);
    kills
}

fn partials(root: &Path) -> Vec<(String, u64)> {
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    entries
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "partial"))
        .map(|entry| (entry.path().file_stem().unwrap().to_str().unwrap().to_owned(), entry.metadata().unwrap().len()))
        .collect()
}

#[test]
fn no_kill_shows_a_wrong_byte_or_fetches_a_file_again() {
    let (rounds, seed) = (number("LARDER_CRASH_ROUNDS", 25), number("LARDER_CRASH_SEED", 1));
    let (lab, mut random) = (Lab::start(), Random(seed));
    let (mut kills, mut lives) = (0, 0);
    while kills < rounds {
        // Every second machine is fetched at full speed, so that kills hit renames, links and manifests.
        let paced = lives % 2 == 0;
        lab.upstream.set_pace(if paced { PACE } else { Duration::ZERO });
        lab.start_over();
        let begin = Instant::now();
        lab.apply().must_be(0);
        let longest = begin.elapsed();
        lab.start_over();
        let before = lab.upstream.sent();
        let killed = live(&lab, &mut random, longest, (rounds - kills).min(12));
        let sent = lab.upstream.sent() - before;
        if paced {
            let bound = Lab::bytes_to_fetch() + killed * LOST_BY_KILL;
            assert!(sent <= bound, "{sent} bytes were sent, {bound} can be explained by {killed} kills");
        }
        kills += killed;
        lives += 1;
    }
    assert!(lives > 0 && kills >= rounds);
    hugging_face_finds_nothing_wrong(&lab);
}

/// What the rules say of the cache, its own program says too: both generations read every byte of it.
fn hugging_face_finds_nothing_wrong(lab: &Lab) {
    let home = tempfile::tempdir().unwrap();
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let mut verify = python::client(&hf, home.path());
        verify.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", format!("http://{}", lab.upstream.address));
        verify.args(["cache", "verify", "lab/paint", "--fail-on-missing-files", "--fail-on-extra-files"]);
        verify.arg("--cache-dir").arg(lab.machine.join("huggingface"));
        let said = python::output(&mut verify);
        assert!(said.contains("lab/paint"), "{name}: {said}");
    }
}

/// Kills at system calls that change names or make them durable, instead of at moments: the first one
/// in any thread, then the second one, and so on, until a run gets through.
#[test]
fn no_kill_before_a_change_of_names_shows_a_wrong_byte() {
    if !Path::new("/usr/bin/strace").exists() {
        return skip::skipped("strace is not installed (apt-get install strace)");
    }
    let lab = Lab::start();
    for calls in ["rename,renameat,renameat2", "symlink,symlinkat", "fsync", "mkdir,mkdirat", "chmod,fchmod,fchmodat"] {
        lab.start_over();
        let got_through = (1..60).find(|nth| {
            let mut strace = Command::new("/usr/bin/strace");
            strace.args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e"]).arg(format!("trace={calls}"));
            strace.arg("-e").arg(format!("inject={calls}:signal=SIGKILL:when={nth}"));
            let apply = lab.command(&["apply", "--yes"]);
            strace.arg(apply.get_program()).args(apply.get_args()).env_clear();
            strace.envs(apply.get_envs().filter_map(|(name, value)| Some((name, value?))));
            let status = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
            rules::nothing_visible_is_wrong(&lab);
            status.success()
        });
        assert!(got_through.is_some_and(|nth| nth > 1), "{calls}: {got_through:?}");
        rules::everything_is_there(&lab);
        lab.larder(&["verify", "--full"]).must_be(0);
    }
}

/// What was held back when the program was told to stop, and what it left.
fn stopped_by(lab: &Lab, signal: rustix::process::Signal) -> Vec<(String, u64)> {
    lab.upstream.set_pace(PACE);
    lab.upstream.hold_after(HELD);
    let child = lab.command(&["apply", "--yes"]).spawn().unwrap();
    lab.upstream.wait_until_held();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
    let said = Said::of(&child.wait_with_output().unwrap()).must_be(130);
    assert!(said.out.contains("continues from here"), "{said}");
    lab.upstream.set_pace(Duration::ZERO);
    lab.upstream.release();
    lab.upstream.take_asked();
    partials(&lab.machine)
}

#[test]
fn a_run_that_is_told_to_stop_keeps_what_it_has_and_continues_there() {
    let lab = Lab::start();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        lab.start_over();
        let before = lab.upstream.sent();
        let kept = stopped_by(&lab, signal);
        rules::nothing_visible_is_wrong(&lab);
        let kept_bytes = kept.iter().map(|(_, length)| length).sum::<u64>();
        assert!((HELD - LOST_BY_KILL..=HELD).contains(&kept_bytes), "{kept:?}");
        lab.apply().must_be(0);
        rules::everything_is_there(&lab);
        let asked = lab.upstream.take_asked();
        let is_begun = |key: &str, length: u64| length > 0 && lab::length_of(key).is_some_and(|whole| whole > length);
        for (_, length) in kept.iter().filter(|(key, length)| is_begun(key, *length)) {
            assert!(asked.iter().any(|asked| asked.from == *length), "nobody continued at {length}: {asked:?}");
        }
        let sent = lab.upstream.sent() - before;
        assert!(sent <= Lab::bytes_to_fetch() + LOST_BY_KILL, "{sent} bytes were sent");
        assert!(partials(&lab.machine).is_empty(), "nothing unfinished is left");
    }
}

#[test]
fn a_second_run_does_nothing_and_asks_nobody() {
    let lab = Lab::start();
    lab.apply().must_be(0);
    let (asked, before) = (lab.upstream.requests(), rules::tree(&lab.machine));
    let said = lab.apply().must_be(0);
    assert_eq!(lab.upstream.requests(), asked, "{said}");
    assert_eq!(rules::tree(&lab.machine), before);
}

/// Killed in the moment between writing a file beside its place and giving it its name.
#[test]
fn what_a_kill_leaves_of_small_files_is_swept_away_and_never_while_somebody_writes_it() {
    if !Path::new("/usr/bin/strace").exists() {
        return skip::skipped("strace is not installed (apt-get install strace)");
    }
    let lab = Lab::start();
    let apply = lab.command(&["apply", "--yes"]);
    let mut strace = Command::new("/usr/bin/strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=rename,renameat,renameat2"]);
    strace.args(["-e", "inject=rename,renameat,renameat2:error=EIO:signal=SIGKILL:when=1"]);
    strace.arg(apply.get_program()).args(apply.get_args()).env_clear();
    strace.envs(apply.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = strace.output().unwrap();
    assert!(!output.status.success(), "it was not killed");
    let staging = ["huggingface/.locks/.larder", "ollama/.larder", "plain/.larder"].map(|folder| lab.store(folder));
    let left = || -> Vec<_> {
        let folders = staging.iter().filter_map(|folder| fs_err::read_dir(folder).ok());
        let names = folders.flatten().map(|entry| entry.unwrap().path());
        names.filter(|path| path.extension().is_some_and(|end| end == "tmp")).collect()
    };
    let dead = left();
    assert!(!dead.is_empty(), "the kill left nothing");
    lab.apply().must_be(0);
    assert_eq!(left(), dead, "what is young may be somebody's");
    let held = fs_err::File::open(&dead[0]).unwrap();
    held.file().lock().unwrap();
    let sweep = || staging.iter().map(|folder| larder::fsio::sweep(folder, Duration::ZERO).unwrap()).sum::<usize>();
    assert_eq!(sweep(), dead.len() - 1, "what is held is somebody's");
    drop(held);
    assert_eq!((sweep(), left().len()), (1, 0));
    rules::everything_is_there(&lab);
}
