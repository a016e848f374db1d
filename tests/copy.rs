//! `larder copy`: over a real sshd in both directions, and by a drive that knows neither links nor owners.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use larder::artifact::{Artifact, File, OllamaManifest, Origin};
use larder::digest::{Digests, Sha256};
use larder::lock::Lock;

#[path = "support/program.rs"]
mod program;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/sshd.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod sshd;

use program::{INVENTORY, Lab, Said};
use sshd::{Sshd, remote_words};

/// Paths and contents of the one artifact that every lab here wants. The last is large enough to be interrupted.
fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let noise = |len: usize| (0..len as u64).flat_map(|n| *Sha256::of(&n.to_le_bytes()).as_bytes()).take(len).collect();
    vec![("config.json", b"{}".to_vec()), ("sub/middle.bin", noise(100_000)), ("large.bin", noise(6 << 20))]
}

fn manifest(contents: &[(&str, Vec<u8>)]) -> String {
    let head = "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n";
    let file = |(path, bytes): &(&str, Vec<u8>)| {
        format!("[[artifact.file]]\npath = \"{path}\"\nsize = {}\nsha256 = \"{}\"\n", bytes.len(), Sha256::of(bytes))
    };
    format!("{head}{}", contents.iter().map(file).collect::<String>())
}

/// A machine with nothing on it.
fn empty_machine() -> Lab {
    Lab::new(INVENTORY, &manifest(&contents()))
}

/// A machine that has everything.
fn full_machine() -> Lab {
    let lab = empty_machine();
    contents().iter().for_each(|(path, bytes)| lab.write(&format!("home/plain/{path}"), bytes));
    lab
}

fn assert_has_all(lab: &Lab) {
    for (path, bytes) in contents() {
        assert!(std::fs::read(lab.path(&format!("home/plain/{path}"))).unwrap() == bytes, "{path}");
    }
}

fn other(lab: &Lab) -> String {
    remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &lab.path(""))
}

/// Runs larder on `lab`, with ssh as the way to the machine of `there`.
fn run(lab: &Lab, sshd: &Sshd, there: &str, arguments: &[&str]) -> Said {
    let client = sshd.client();
    let mut command = lab.command(&["copy", "--ssh", &client, "--remote-larder", there]);
    command.args(arguments).env("PATH", "/usr/bin:/bin");
    program::said(&mut command, &lab.path(""))
}

#[test]
fn a_machine_takes_from_another_what_it_lacks() {
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (empty_machine(), full_machine());
    let words = other(&there);
    let shown = run(&here, &sshd, &words, &["pc9:", "--dry-run"]);
    assert_eq!(shown.code, 0, "{}{}", shown.out, shown.err);
    assert!(shown.out.contains("pc9 (peer)"), "{}", shown.out);
    assert!(!here.path("home/plain/config.json").exists());
    let unasked = run(&here, &sshd, &words, &["pc9:"]);
    assert_eq!(unasked.code, 2, "nobody is there to ask: {}", unasked.err);
    let copied = run(&here, &sshd, &words, &["pc9:", "--yes"]);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    assert_has_all(&here);
    let again = run(&here, &sshd, &words, &["--from", "pc9:", "--yes"]);
    assert_eq!(again.code, 0, "{}{}", again.out, again.err);
    assert!(again.out.contains("Nothing to do") || again.out.contains("in order"), "{}", again.out);

    // Who lacks nothing asks nobody: no larder answers there now.
    let settled = run(&here, &sshd, "false", &["pc9:", "--yes"]);
    assert!(settled.code == 0 && settled.out.contains("there is nothing to do"), "{}{}", settled.out, settled.err);
    here.write("home/plain/config.json", b"{}");
    let unanswered = run(&here, &sshd, "false", &["pc9:", "--yes"]);
    assert_ne!(unanswered.code, 0, "{}{}", unanswered.out, unanswered.err);
}

#[test]
fn a_machine_gives_to_another_what_that_lacks() {
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (full_machine(), empty_machine());
    let words = other(&there);
    let shown = run(&here, &sshd, &words, &["--to", "pc9:", "--dry-run"]);
    assert_eq!(shown.code, 0, "{}{}", shown.out, shown.err);
    assert!(shown.out.contains("tiny") && !there.path("home/plain/config.json").exists(), "{}", shown.out);
    assert!(shown.err.contains("Carry it out with: larder copy --to pc9:"), "{}", shown.err);
    let given = run(&here, &sshd, &words, &["--to", "pc9:", "--yes"]);
    assert_eq!(given.code, 0, "{}{}", given.out, given.err);
    assert_has_all(&there);
    let nothing = run(&here, &sshd, &words, &["--to", "pc9:", "--yes", "no-such-artifact"]);
    assert_eq!(nothing.code, 2, "{}{}", nothing.out, nothing.err);
}

#[test]
fn what_is_rotten_there_does_not_arrive_and_is_told() {
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (empty_machine(), full_machine());
    there.write("home/plain/sub/middle.bin", vec![7; 100_000]);
    let copied = run(&here, &sshd, &other(&there), &["pc9:", "--yes"]);
    assert_eq!(copied.code, 4, "{}{}", copied.out, copied.err);
    assert!(copied.err.contains("sub/middle.bin") || copied.out.contains("sub/middle.bin"), "{}", copied.out);
    assert!(!here.path("home/plain/sub/middle.bin").exists() && here.path("home/plain/large.bin").exists());
    there.write("home/plain/sub/middle.bin", &contents()[1].1);
    let copied = run(&here, &sshd, &other(&there), &["pc9:", "--yes"]);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    assert_has_all(&here);
}

#[test]
fn a_machine_that_cannot_be_reached_or_has_no_larder_is_explained() {
    let Some(sshd) = Sshd::start() else { return };
    let here = empty_machine();
    let none = run(&here, &sshd, "/nowhere/larder", &["pc9:", "--yes"]);
    assert_eq!(none.code, 1, "{}", none.err);
    assert!(none.err.contains("/nowhere/larder") && none.err.contains("larder must be there"), "{}", none.err);
    let none = run(&here, &sshd, "/nowhere/larder", &["--to", "pc9:", "--yes"]);
    assert_eq!(none.code, 1, "{}", none.err);
    assert!(none.err.contains("there is no larder on pc9"), "{}", none.err);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = here.command(&["copy", "--to", "pc9:", "--yes", "--ssh", &sshd.client_by(closed)]);
    let away = program::said(command.env("PATH", "/usr/bin:/bin"), &here.path(""));
    assert_eq!(away.code, 1, "{}", away.err);
    assert!(away.err.contains("pc9 could not be reached, or the connection to it was lost"), "{}", away.err);
    let mut command = here.command(&["copy", "pc9:", "--yes", "--ssh", "/nowhere/ssh"]);
    let unreachable = program::said(&mut command, &here.path(""));
    assert_eq!(unreachable.code, 1, "{}", unreachable.err);
    assert!(unreachable.err.contains("/nowhere/ssh cannot be started"), "{}", unreachable.err);
}

#[test]
fn places_that_are_none_are_explained() {
    let lab = empty_machine();
    for (arguments, expected) in [
        (&["copy"][..], "from where"),
        (&["copy", "pc1"], "neither a machine nor a folder"),
        (&["copy", "-oProxyCommand=x:"], "unexpected argument"),
        (&["copy", "--to=-oProxyCommand=x:"], "is no machine"),
        (&["copy", "--to", "/no/such/drive"], "is the drive mounted?"),
        (&["copy", "--from", "/no/such/drive"], "is the drive mounted?"),
        (&["copy", "--offline", "pc1:"], "--offline forbids"),
    ] {
        let said = lab.run(arguments);
        assert_eq!(said.code, 2, "{arguments:?}: {}", said.err);
        assert!(said.err.contains(expected), "{arguments:?}: {}", said.err);
    }
}

#[test]
fn a_drive_carries_everything_to_a_machine_without_a_network() {
    let (from, to) = (full_machine(), empty_machine());
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    let shown = from.run(&["copy", "--to", folder, "--dry-run"]);
    assert_eq!((shown.code, std::fs::read_dir(drive.path()).unwrap().count()), (0, 0), "{}", shown.err);
    let packed = from.run(&["copy", "--to", folder, "--yes"]);
    assert_eq!(packed.code, 0, "{}{}", packed.out, packed.err);
    let readme = std::fs::read_to_string(drive.path().join("README.txt")).unwrap();
    assert!(readme.contains("larder copy --from"));
    for entry in std::fs::read_dir(drive.path().join("blobs")).unwrap() {
        let entry = entry.unwrap();
        let digest = Sha256::of(&std::fs::read(entry.path()).unwrap());
        assert_eq!(entry.file_name().to_str().unwrap(), format!("sha256-{digest}"));
    }
    let again = from.run(&["copy", "--to", folder, "--yes"]);
    assert!(again.code == 0 && again.out.contains("3 there already"), "{}", again.out);
    assert!(!again.out.contains("read first"), "what was proven there is not read again: {}", again.out);
    let taken = to.run(&["copy", "--from", folder, "--yes"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    assert_has_all(&to);
}

#[test]
fn what_is_rotten_here_does_not_go_on_a_drive() {
    let from = full_machine();
    from.write("home/plain/sub/middle.bin", vec![7; 100_000]);
    let drive = tempfile::tempdir().unwrap();
    let packed = from.run(&["copy", "--to", drive.path().to_str().unwrap(), "--yes"]);
    assert_eq!(packed.code, 4, "{}{}", packed.out, packed.err);
    assert!(packed.out.contains("sub/middle.bin"), "{}", packed.out);
    let names = std::fs::read_dir(drive.path().join("blobs")).unwrap().count();
    assert_eq!(names, 2, "nothing lies under a digest that it does not have");
}

/// A length proves nothing: what was never read is read before the command says that all is in order.
#[test]
fn a_wrong_file_of_the_right_length_on_the_target_is_found_and_replaced() {
    let Some(sshd) = Sshd::start() else { return };
    let (pc1, pc2) = (full_machine(), full_machine());
    pc1.write("home/plain/sub/middle.bin", vec![7; 100_000]);
    let shown = run(&pc1, &sshd, &other(&pc2), &["pc9:", "--dry-run"]);
    assert!(shown.code == 0 && shown.out.contains("3 files (6.1 MiB) here were never read"), "{}", shown.out);
    let taken = run(&pc1, &sshd, &other(&pc2), &["pc9:", "--yes"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    assert_has_all(&pc1);
    pc2.write("home/plain/config.json", b"[]");
    let given = run(&pc1, &sshd, &other(&pc2), &["--to", "pc9:", "--yes"]);
    assert_eq!(given.code, 0, "{}{}", given.out, given.err);
    assert_has_all(&pc2);
}

#[test]
fn what_is_wrong_on_both_machines_is_told_and_is_not_in_order() {
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (full_machine(), full_machine());
    for lab in [&here, &there] {
        lab.write("home/plain/sub/middle.bin", vec![7; 100_000]);
    }
    let taken = run(&here, &sshd, &other(&there), &["pc9:", "--yes"]);
    assert_ne!(taken.code, 0, "{}{}", taken.out, taken.err);
    assert!(taken.out.contains("sub/middle.bin"), "{}", taken.out);
    assert!(std::fs::read(here.path("home/plain/sub/middle.bin")).unwrap() == vec![7; 100_000], "nothing is lost");
}

#[test]
fn a_wrong_content_of_the_right_length_on_a_drive_is_found_and_replaced() {
    let from = full_machine();
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    assert_eq!(from.run(&["copy", "--to", folder, "--yes"]).code, 0);
    let blob = drive.path().join(format!("blobs/sha256-{}", Sha256::of(&contents()[1].1)));
    let write = |bytes: &[u8]| larder::fsio::write_atomic(&blob, bytes, &Default::default()).unwrap();
    write(&vec![7; 100_000]);
    let shown = from.run(&["copy", "--to", folder, "--dry-run"]);
    assert!(shown.out.contains("1 file (97.7 KiB) there are read first"), "{}", shown.out);
    let again = from.run(&["copy", "--to", folder, "--yes"]);
    assert!(again.code == 0 && again.out.contains("was wrong on the drive: tiny/sub/middle.bin"), "{}", again.out);
    assert!(std::fs::read(&blob).unwrap() == contents()[1].1);
    // Wrong there, and no better here: not in order.
    write(&vec![7; 100_000]);
    from.write("home/plain/sub/middle.bin", vec![8; 100_000]);
    let neither = from.run(&["copy", "--to", folder, "--yes"]);
    assert_eq!(neither.code, 4, "{}{}", neither.out, neither.err);
}

/// The partial of a content on a drive, holding `bytes`.
fn leave_partial(drive: &Path, content: &[u8], bytes: &[u8]) {
    let place = drive.join(format!(".larder/sha256-{}.partial", Sha256::of(content)));
    larder::fsio::write_atomic(&place, bytes, &Default::default()).unwrap();
}

#[test]
fn a_drive_is_filled_behind_what_a_stopped_run_left() {
    let from = full_machine();
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    let large = &contents()[2].1;
    leave_partial(drive.path(), large, &large[..4 << 20]);
    leave_partial(drive.path(), &contents()[1].1, b"not the beginning of it");
    let packed = from.run(&["copy", "--to", folder, "--yes", "--progress", "json"]);
    assert_eq!(packed.code, 0, "{}{}", packed.out, packed.err);
    let events = packed.err.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut of_large = events.filter(|event| event["item"] == "tiny/large.bin" && event["event"] == "advanced");
    assert_eq!(of_large.next().unwrap()["here"], 5 << 20, "the first four are there already: {}", packed.err);
    for (_, content) in contents() {
        let blob = drive.path().join(format!("blobs/sha256-{}", Sha256::of(&content)));
        assert!(std::fs::read(blob).unwrap() == content);
    }
}

/// Whoever comes second waits, and finds done what the first did.
#[test]
fn two_runs_on_one_drive_do_not_write_into_each_others_files() {
    let from = full_machine();
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    let lock = larder::fsio::FileLock::try_acquire(&drive.path().join(".larder/lock"), None).unwrap().unwrap();
    let large = &contents()[2].1;
    leave_partial(drive.path(), large, &large[..1 << 20]);
    let mut command = from.command(&["copy", "--to", folder, "--yes", "--progress", "json"]);
    let mut second = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(second.stderr.take().unwrap()).lines().map(Result::unwrap);
    let waits = said.by_ref().find(|line| line.contains("waiting"));
    assert!(waits.is_some(), "it waits for the drive");
    let partial = drive.path().join(format!(".larder/sha256-{}.partial", Sha256::of(large)));
    assert_eq!(std::fs::metadata(partial).unwrap().len(), 1 << 20, "it touches nothing meanwhile");
    drop(lock);
    said.for_each(drop);
    assert!(second.wait().unwrap().success());
    let drive = tempfile::tempdir().unwrap();
    let arguments = ["copy", "--to", drive.path().to_str().unwrap(), "--yes", "--quiet"];
    let many: Vec<_> = (0..4).map(|_| from.command(&arguments).stdout(Stdio::null()).spawn().unwrap()).collect();
    assert!(many.into_iter().all(|mut one| one.wait().unwrap().success()));
    for (_, content) in contents() {
        let blob = drive.path().join(format!("blobs/sha256-{}", Sha256::of(&content)));
        assert!(std::fs::read(blob).unwrap() == content);
    }
}

/// Nothing but the program and the drive: the drive says what is wanted.
#[test]
fn a_machine_without_an_inventory_begins_with_what_is_on_the_drive() {
    let from = full_machine();
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    assert_eq!(from.run(&["copy", "--to", folder, "--yes"]).code, 0);
    let fresh = tempfile::tempdir().unwrap();
    let mut command = program::program(fresh.path());
    command.args(["copy", "--from", folder, "--yes"]).current_dir(fresh.path());
    let taken = program::said(&mut command, fresh.path());
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    assert!(taken.err.contains("going by") && taken.err.contains("inventory.toml"), "{}", taken.err);
    for (path, bytes) in contents() {
        assert!(std::fs::read(fresh.path().join("home/plain").join(path)).unwrap() == bytes, "{path}");
    }
    // As its README says.
    let script =
        format!("mkdir -p home/.config/larder && cp -r {folder}/inventory.* {folder}/manifests home/.config/larder/");
    assert!(Command::new("sh").args(["-c", &script]).current_dir(fresh.path()).status().unwrap().success());
    let verified = program::said(program::program(fresh.path()).arg("verify").current_dir(fresh.path()), fresh.path());
    assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
}

/// At one byte per second, nothing but the first piece ever passes: only a signal ends it.
fn stop_once_it_says(lab: &Lab, arguments: &[&str], told: impl Fn(&str) -> bool) -> (Option<i32>, String) {
    signal_once_it_says(lab, rustix::process::Signal::INT, arguments, told)
}

fn signal_once_it_says(
    lab: &Lab,
    signal: rustix::process::Signal,
    arguments: &[&str],
    told: impl Fn(&str) -> bool,
) -> (Option<i32>, String) {
    let mut command = lab.command(arguments);
    let mut running =
        command.args(["--progress", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(running.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.by_ref().any(|line| told(&line)), "{arguments:?} ended before");
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, signal).unwrap();
    said.for_each(drop);
    let output = running.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn copies_by_a_drive_keep_to_the_rate_and_can_be_stopped_and_continued() {
    let (from, to) = (full_machine(), empty_machine());
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    let is_large = |line: &str, event: &str| line.contains("large.bin") && line.contains(event);
    let slowly = ["copy", "--to", folder, "--yes", "--max-rate", "100KB/s"];
    let (code, out) = stop_once_it_says(&from, &slowly, |line| is_large(line, "advanced"));
    assert_eq!(code, Some(130), "{out}");
    assert!(out.contains(&format!("Stopped; larder copy --to {folder} continues from here")), "{out}");
    let partial = drive.path().join(format!(".larder/sha256-{}.partial", Sha256::of(&contents()[2].1)));
    assert!(std::fs::metadata(partial).unwrap().len() < 6 << 20);
    assert_eq!(from.run(&["copy", "--to", folder, "--yes"]).code, 0);
    let slowly = ["copy", "--from", folder, "--yes", "--max-rate", "1B/s"];
    let (code, out) = stop_once_it_says(&to, &slowly, |line| is_large(line, "started"));
    assert!(code == Some(130) && !to.path("home/plain/large.bin").exists(), "{out}");
    assert!(out.contains(&format!("Stopped; larder copy --from {folder} continues from here")), "{out}");
    let taken = to.run(&["copy", "--from", folder, "--yes"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    assert_has_all(&to);
}

/// Limits are obeyed by the larder that writes, on whichever machine that is.
/// What was copied before the signal is not copied again, and nothing of it is visible before it is whole.
#[test]
fn a_drive_keeps_what_was_packed_before_a_signal() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let (from, drive) = (full_machine(), tempfile::tempdir().unwrap());
        let folder = drive.path().to_str().unwrap();
        let is_large = |line: &str, event: &str| line.contains("large.bin") && line.contains(event);
        let slowly = ["copy", "--to", folder, "--yes", "--max-rate", "2MB/s"];
        let (code, out) = signal_once_it_says(&from, signal, &slowly, |line| is_large(line, "advanced"));
        assert_eq!(code, Some(130), "{out}");
        let name = format!("sha256-{}", Sha256::of(&contents()[2].1));
        let kept = std::fs::metadata(drive.path().join(format!(".larder/{name}.partial"))).unwrap().len();
        assert!(kept > 0 && kept < 6 << 20, "{kept} bytes");
        assert!(!drive.path().join("blobs").join(&name).exists());
        // Files go by their paths.
        let first = format!("sha256-{}", Sha256::of(&contents()[0].1));
        assert!(drive.path().join("blobs").join(first).exists(), "what was whole before stays");

        let mut again = from.command(&["copy", "--to", folder, "--yes", "--progress", "json"]);
        let said = program::said(&mut again, drive.path());
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let begun: Vec<&str> = said.err.lines().filter(|line| is_large(line, "\"started\"")).collect();
        assert!(begun.len() == 1 && begun[0].contains(&format!("\"resumed\":{kept}")), "{kept}: {begun:#?}");
        assert_eq!(std::fs::read(drive.path().join("blobs").join(&name)).unwrap(), contents()[2].1);
    }
}

/// A slow drive is written to while it is packed: otherwise gigabytes wait for a sync at the end, which no signal ends.
#[test]
fn what_is_packed_is_on_its_way_to_the_drive_before_the_end() {
    if !Path::new("/usr/bin/strace").exists() {
        return skip::skipped("strace is not installed (apt-get install strace)");
    }
    let content: Vec<u8> = (0..20_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let lab = Lab::new(INVENTORY, &manifest(&[("long.bin", content.clone())]));
    lab.write("home/plain/long.bin", &content);
    let drive = tempfile::tempdir().unwrap();
    let (calls, copy) =
        (drive.path().join("calls"), lab.command(&["copy", "--to", drive.path().to_str().unwrap(), "--yes"]));
    let mut strace = Command::new("/usr/bin/strace");
    strace.args(["-f", "-qq", "--seccomp-bpf", "-e", "trace=sync_file_range", "-o"]).arg(&calls);
    strace.arg(copy.get_program()).args(copy.get_args()).env_clear();
    strace.envs(copy.get_envs().filter_map(|(name, value)| Some((name, value?))));
    strace.current_dir(copy.get_current_dir().unwrap());
    let said = program::said(&mut strace, drive.path());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let begun = std::fs::read_to_string(calls).unwrap().lines().filter(|line| line.ends_with("= 0")).count();
    assert_eq!(begun, 2, "once for each eight of the twenty megabytes");
}

#[test]
fn limits_are_passed_on_to_the_other_machine() {
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (full_machine(), empty_machine());
    there.write(
        "larder",
        format!("#!/bin/sh\necho \"$@\" >> {}\nexec {} \"$@\"\n", there.path("typed").display(), other(&there)),
    );
    let script = there.path("larder");
    assert!(Command::new("chmod").arg("755").arg(&script).status().unwrap().success());
    let words = script.display().to_string();
    let limited =
        run(&here, &sshd, &words, &["--to", "pc9:", "--yes", "--max-download", "1MB", "--max-rate", "80MB/s"]);
    assert_eq!(limited.code, 4, "{}{}", limited.out, limited.err);
    assert!(
        limited.out.contains("download limit") && !there.path("home/plain/config.json").exists(),
        "{}",
        limited.out
    );
    let typed = std::fs::read_to_string(there.path("typed")).unwrap();
    assert!(typed.contains("--max-rate 80000000B/s --max-download 1000000"), "{typed}");
    let (folder, told) = (tempfile::tempdir().unwrap(), "--max-download limits what this machine fetches");
    let refused = here.run(&["copy", "--to", folder.path().to_str().unwrap(), "--max-download", "1MB"]);
    assert!(refused.code == 2 && refused.err.contains(told), "{}", refused.err);
}

#[test]
fn what_the_other_machine_does_not_have_is_said_to_be_missing_there() {
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (empty_machine(), empty_machine());
    there.write("home/plain/config.json", b"{}");
    let taken = run(&here, &sshd, &other(&there), &["pc9:", "--yes"]);
    assert_eq!(taken.code, 4, "{}{}", taken.out, taken.err);
    assert!(taken.out.contains("pc9 does not have it") && !taken.out.contains("upstream"), "{}", taken.out);
    let shown = run(&here, &sshd, &other(&full_machine()), &["pc9:", "--dry-run"]);
    assert!(shown.out.contains("Carry it out with: larder copy pc9:"), "{}", shown.out);
}

/// The store belongs to a service: its user writes there, though somebody else logs in.
#[test]
fn a_service_user_over_there_takes_what_the_one_who_logs_in_is_given() {
    if !rustix::process::geteuid().is_root() {
        return skip::skipped("to act as another user needs root");
    }
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (full_machine(), empty_machine());
    let owned = Command::new("chown").args(["-R", "65534:65534"]).arg(there.path("")).status().unwrap();
    assert!(owned.success());
    let words = format!("setpriv --reuid=65534 --regid=65534 --clear-groups {}", other(&there));
    let given = run(&here, &sshd, &words, &["--to", "pc9:", "--yes"]);
    assert_eq!(given.code, 0, "{}{}", given.out, given.err);
    assert_has_all(&there);
    let owner = std::fs::metadata(there.path("home/plain/large.bin")).unwrap().uid();
    assert_eq!(owner, 65534);
}

/// How long it takes is said once it was measured, and not before.
#[test]
fn a_dry_run_says_how_long_it_takes_where_that_was_measured() {
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (empty_machine(), full_machine());
    let words = other(&there);
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    let large = |lab: &Lab| lab.path("home/plain/large.bin");
    let first = run(&here, &sshd, &words, &["pc9:", "--dry-run"]);
    assert!(first.out.contains("move 6.1 MiB: 6.1 MiB from pc9\n"), "nobody knows yet: {}", first.out);
    assert_eq!(run(&here, &sshd, &words, &["pc9:", "--yes"]).code, 0);
    larder::fsio::remove_file(&large(&here)).unwrap();
    let again = run(&here, &sshd, &words, &["pc9:", "--dry-run"]);
    assert!(again.out.contains("from pc9 · about ") && again.out.contains("/s\n"), "{}", again.out);
    let pack = |how: &str| there.run(&["copy", "--to", folder, how]);
    assert!(!pack("--dry-run").out.contains(" · about "));
    assert_eq!(pack("--yes").code, 0);
    let blob = drive.path().join(format!("blobs/sha256-{}", Sha256::of(&contents()[2].1)));
    larder::fsio::remove_file(&blob).unwrap();
    let again = pack("--dry-run");
    assert!(again.out.contains("1 file (6.0 MiB), 2 there already · about "), "{}", again.out);
    assert_eq!(pack("--yes").code, 0);
    let unpack = |how: &str| here.run(&["copy", "--from", folder, how]);
    assert!(unpack("--dry-run").out.contains("move 6.0 MiB: 6.0 MiB from drives\n"));
    assert_eq!(unpack("--yes").code, 0);
    larder::fsio::remove_file(&large(&here)).unwrap();
    let again = unpack("--dry-run");
    assert!(again.out.contains("from drives · about "), "{}", again.out);
}

/// A running Ollama server takes in only what it pulls itself.
#[test]
fn a_store_that_a_server_fills_is_not_said_to_lack_upstream() {
    let api = "path = \"~/ollama\", api = \"http://127.0.0.1:9\" }";
    let inventory = INVENTORY.replace("path = \"~/ollama\" }", api);
    let lab =
        Lab::new(&inventory, "[[artifact]]\nname = \"small\"\nstore = \"ollama\"\nsource = \"ollama:small:1b\"\n");
    let digest = Sha256::of(b"layer");
    let file = File {
        size: Some(5),
        digests: Digests::sha256(digest),
        ..File::named(format!("blobs/sha256-{digest}").parse().unwrap())
    };
    let artifact = Artifact {
        name: "small".to_owned(),
        store: "ollama".to_owned(),
        source: "ollama:small:1b".parse().unwrap(),
        declared: String::new(),
        revision: None,
        origin: Origin::Upstream,
        complete: true,
        whole: false,
        irreplaceable: false,
        ollama: Some(OllamaManifest { digest: Sha256::of(b"manifest"), bytes: None }),
        pattern: None,
        folder: None,
        files: vec![file],
    };
    Lock { artifacts: vec![artifact] }.write(&lab.path("inventory.lock")).unwrap();
    larder::fsio::create_dir_all(&lab.path("home/ollama/blobs"), None).unwrap();
    let drive = tempfile::tempdir().unwrap();
    let shown = lab.run(&["copy", "--from", drive.path().to_str().unwrap(), "--dry-run"]);
    assert!(shown.out.contains("takes in only what it pulls itself"), "{}{}", shown.out, shown.err);
    assert!(shown.out.contains("[sources] ollama") && !shown.out.contains("\"upstream\""), "{}", shown.out);
}
