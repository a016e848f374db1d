//! Large files and everything that can happen to a disk while they come: it fills up, fails, dies, turns bits, is slow.
//!
//! `LARDER_CRASH_ROUNDS=300` for a long run, `LARDER_CRASH_SEED` for other moments: `scripts/crash`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use larder::fsio::{WriteOptions, write_atomic};
use rstest::rstest;

#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/chance.rs"]
mod chance;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/disk.rs"]
mod disk;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/machine.rs"]
mod machine;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/one_file.rs"]
mod one_file;
#[path = "support/skip.rs"]
mod skip;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/upstream.rs"]
mod upstream;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/wanting.rs"]
mod wanting;

use chance::{Random, number};
use disk::{Disk, Kind};
use machine::{Machine, Said};
use upstream::Upstream;
use wanting::{CHUNK, CONNECTIONS, CONTENT, LOST_BY_KILL, SHA256, Wanting, serve, size};

/// Whether file systems can be mounted here; says loudly if not.
fn is_root() -> bool {
    let is_root = larder::fsio::running_as().uid == 0;
    if !is_root {
        skip::skipped("file systems are mounted as root only");
    }
    is_root
}

/// A machine with its store on `disk`, in the middle of its first `apply`, with everything held back.
fn in_the_middle(disk: &Disk, upstream: &Upstream) -> (Wanting, Child) {
    let address = format!("{}/files/model", upstream.address);
    let wanting = Wanting::from_url(&address, 1, Some(&disk.path().join("store")));
    upstream.hold_after(size() / 3);
    let child = wanting.begin();
    upstream.wait_until_held();
    (wanting, child)
}

#[rstest]
fn a_disk_that_fills_up_does_not_stop_what_has_its_room(#[values(Kind::Ext4, Kind::Xfs)] kind: Kind) {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (disk, upstream) = (Disk::make(kind), serve(folder.path()));
    let (wanting, child) = in_the_middle(&disk, &upstream);
    disk.fill(0);
    upstream.release();
    Wanting::end(child).must_be(0);
    wanting.nothing_visible_is_wrong();
    assert_eq!(upstream.sent(), size());
}

#[test]
fn a_disk_that_cannot_reserve_and_fills_up_loses_nothing() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (disk, upstream) = (Disk::make(Kind::Ext2), serve(folder.path()));
    let (wanting, child) = in_the_middle(&disk, &upstream);
    let filler = disk.fill(0);
    upstream.release();
    let said = Wanting::end(child);
    said.must_be(1).must_say(&["No space left on device", "make room, then run larder apply again"]);
    wanting.nothing_visible_is_wrong();
    #[expect(clippy::disallowed_methods, reason = "the test's own file")]
    std::fs::remove_file(filler).unwrap();
    wanting.must_finish();
    assert!(upstream.sent() <= size() + LOST_BY_KILL + (8 << 20), "{} bytes were sent", upstream.sent());
}

#[test]
fn a_file_system_that_dies_is_told_and_continued_when_it_is_back() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (disk, upstream) = (Disk::make(Kind::Xfs), serve(folder.path()));
    let (wanting, child) = in_the_middle(&disk, &upstream);
    disk::run("xfs_io", &["-x", "-c", "shutdown", &disk.path().display().to_string()]);
    upstream.release();
    Wanting::end(child).must_be(1).must_say(&["Input/output error"]);
    disk.unmount();
    disk.mount();
    wanting.nothing_visible_is_wrong();
    wanting.must_finish();
}

/// Every call to the disk fails once, in turn: the message names the error, and the next run is right.
#[rstest]
#[case("pwrite64", "EIO", 3, "Input/output error")]
#[case("pwrite64", "ENOSPC", 40, "No space left on device")]
#[case("fdatasync", "EIO", 1, "Input/output error")]
#[case("fsync", "EIO", 1, "Input/output error")]
#[case("fallocate", "ENOSPC", 1, "No space left on device")]
#[case("fallocate", "EROFS", 1, "Read-only file system")]
fn an_error_of_the_disk_is_told_and_mended_by_the_next_run(
    #[case] call: &str,
    #[case] error: &str,
    #[case] nth: u32,
    #[case] told: &str,
) {
    if !Path::new("/usr/bin/strace").exists() {
        return skip::skipped("strace is not installed (apt-get install strace)");
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let upstream = serve(folder.path());
    let wanting = Wanting::from_hub(&upstream.address.to_string(), 1);
    let said = wanting.apply_with_error(call, error, u64::from(nth));
    said.must_be(1).must_say(&[told]);
    wanting.nothing_visible_is_wrong();
    assert!(!wanting.place().exists());
    wanting.must_finish();
    assert!(upstream.sent() <= 2 * size(), "{} bytes were sent", upstream.sent());
}

/// How often the loops below are gone through where nobody says otherwise.
const FEW: u64 = 2;

fn rounds(seed: u64) -> (u64, Random) {
    (number("LARDER_CRASH_ROUNDS", FEW), Random(number("LARDER_CRASH_SEED", 1) << 8 | seed))
}

/// A server of the file at a pace that leaves time for things to happen, and the folder it serves from.
fn paced() -> (tempfile::TempDir, Upstream) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let upstream = serve(folder.path());
    upstream.set_pace(Duration::from_micros(700));
    (folder, upstream)
}

fn with_store_on(disk: &Disk, upstream: &Upstream) -> Wanting {
    let address = format!("{}/files/model", upstream.address);
    Wanting::from_url(&address, CONNECTIONS, Some(&disk.path().join("store")))
}

/// Starts larder, and lets `happen` at a random byte; what larder said at its end.
fn at_a_random_byte(wanting: &Wanting, upstream: &Upstream, random: &mut Random, happen: impl FnOnce()) -> Said {
    let until = upstream.sent() + random.number_below(size());
    let mut child = wanting.begin();
    upstream.wait_until_sent(until, || child.try_wait().unwrap().is_some());
    happen();
    Wanting::end(child)
}

#[test]
fn no_shutdown_of_the_file_system_shows_a_wrong_byte() {
    if !is_root() {
        return;
    }
    let (rounds, mut random) = rounds(3);
    let (_folder, upstream) = paced();
    let mut done = 0;
    while done < rounds {
        let disk = Disk::make(Kind::Xfs);
        let wanting = with_store_on(&disk, &upstream);
        for _ in 0..(rounds - done).min(3) {
            done += 1;
            let said = at_a_random_byte(&wanting, &upstream, &mut random, || {
                disk::run("xfs_io", &["-x", "-c", "shutdown", &disk.path().display().to_string()]);
            });
            assert!(said.code == Some(0) || said.out.contains("Input/output error"), "{said}");
            disk.unmount();
            disk.mount();
            wanting.nothing_visible_is_wrong();
            if said.code == Some(0) {
                break;
            }
        }
        wanting.must_finish();
    }
    assert!(upstream.most_open() >= 4, "{} answers at once", upstream.most_open());
}

#[test]
fn no_full_disk_shows_a_wrong_byte() {
    if !is_root() {
        return;
    }
    let (rounds, mut random) = rounds(4);
    let (_folder, upstream) = paced();
    for round in 0..rounds {
        // ext2 cannot reserve room: there it is missed at any offset.
        let kind = [Kind::Ext2, Kind::Xfs, Kind::Ext4][usize::try_from(round % 3).unwrap()];
        let disk = Disk::make(kind);
        let wanting = with_store_on(&disk, &upstream);
        let left = random.number_below(4 << 20);
        let mut filler = None;
        let said = at_a_random_byte(&wanting, &upstream, &mut random, || filler = Some(disk.fill(left)));
        let is_told = said.out.contains("No space left on device") || said.out.contains("left for it");
        assert!(said.code == Some(0) || is_told, "{kind:?}: {said}");
        wanting.nothing_visible_is_wrong();
        #[expect(clippy::disallowed_methods, reason = "the test's own file")]
        filler.into_iter().for_each(|filler| std::fs::remove_file(filler).unwrap());
        wanting.must_finish();
    }
}

#[test]
fn no_error_of_the_disk_shows_a_wrong_byte() {
    if !Path::new("/usr/bin/strace").exists() {
        return skip::skipped("strace is not installed (apt-get install strace)");
    }
    let (rounds, mut random) = rounds(5);
    let (_folder, upstream) = paced();
    upstream.set_pace(Duration::ZERO);
    let wanting = Wanting::from_hub(&upstream.address.to_string(), CONNECTIONS);
    let mut told = 0;
    for _ in 0..rounds {
        wanting.start_over();
        for _ in 0..2 {
            let (call, most) = [("pwrite64", 90), ("pread64", 60), ("fdatasync,fsync", 3)]
                [usize::try_from(random.number_below(3)).unwrap()];
            let (error, words) = [("EIO", "Input/output error"), ("ENOSPC", "No space left on device")]
                [usize::try_from(random.number_below(2)).unwrap()];
            let said = wanting.apply_with_error(call, error, 1 + random.number_below(most));
            wanting.nothing_visible_is_wrong();
            // A number beyond the last call hits none.
            if said.code == Some(0) {
                break;
            }
            assert!(said.out.contains(words), "{call} {error}: {said}");
            told += 1;
        }
        wanting.must_finish();
    }
    assert!(told > 0, "no error was met");
}

#[test]
fn no_flipped_bit_in_what_a_kill_left_shows_a_wrong_byte() {
    let (rounds, mut random) = rounds(6);
    let (_folder, upstream) = paced();
    let wanting = Wanting::from_hub(&upstream.address.to_string(), CONNECTIONS);
    let (mut flipped, mut lives) = (0, 0);
    while flipped < rounds {
        lives += 1;
        assert!(lives <= 4 * rounds, "kills come too late");
        wanting.start_over();
        let before = upstream.sent();
        let until = upstream.sent() + random.number_below(size());
        let mut child = wanting.begin();
        upstream.wait_until_sent(until, || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        Wanting::end(child);
        if !wanting.partial().exists() {
            continue;
        }
        let at = random.number_below(size());
        flip(&wanting.partial(), at, 1 << random.number_below(8));
        flipped += 1;
        wanting.must_finish();
        let (sent, bound) = (upstream.sent() - before, size() + 2 * LOST_BY_KILL + CHUNK);
        assert!(sent <= bound, "{sent} bytes were sent, {bound} can be explained by a kill and a bit at {at}");
    }
}

fn flip(path: &Path, at: u64, bit: u8) {
    use std::os::unix::fs::FileExt as _;
    let file = fs_err::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    if file.file().read_at(&mut byte, at).unwrap() == 1 {
        file.file().write_all_at(&[byte[0] ^ bit], at).unwrap();
    }
}

/// Ctrl-C in the middle of a copy from another store: it ends there, and the next run goes on where it ended.
#[test]
fn a_copy_within_the_machine_is_stopped_and_continued() {
    if !Path::new("/usr/bin/strace").exists() {
        return skip::skipped("strace is not installed (apt-get install strace)");
    }
    let (size, sha256) = (size(), *SHA256);
    let artifact = |name: &str, store: &str| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nstore = \"{store}\"\nsource = \"local\"\n  [[artifact.file]]\n  path = \"model.bin\"\n  \
             size = {size}\n  sha256 = \"{sha256}\"\n"
        )
    };
    let stores = ["one", "two"].map(|name| format!("{name} = {{ layout = \"folder\", path = \"~/{name}\" }}\n"));
    let inventory = format!("manifests = [\"manifests/*.toml\"]\n[stores]\n{}", stores.concat());
    let machine = Machine::new(&inventory, &(artifact("here", "one") + &artifact("copy", "two")));
    write_atomic(&machine.path("one/model.bin"), &CONTENT, &WriteOptions::default()).unwrap();
    machine.larder(&["lock"]).must_be(0);
    machine.larder(&["verify", "--full", "--only", "here"]);
    let partial = machine.path("two/.larder").join(format!("{sha256}.copy.partial"));
    let length = || fs_err::metadata(&partial).map_or(0, |found| found.len());

    let apply = machine.command(&["apply", "--yes"]);
    let mut strace = Command::new("/usr/bin/strace");
    strace.args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=write", "-P"]).arg(&partial);
    // A disk that writes twenty megabytes a second.
    strace.args(["-e", "inject=write:delay_exit=50000"]);
    strace.arg(apply.get_program()).args(apply.get_args()).env_clear().current_dir(machine.home());
    strace.envs(apply.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = strace.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while length() < size / 8 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let traced = fs_err::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let traced = rustix::process::Pid::from_raw(traced.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(traced, rustix::process::Signal::INT).unwrap();
    let said = Wanting::end(child).must_be(130);
    let kept = length();
    assert!(kept >= size / 8 && kept < size / 2, "{kept} of {size} bytes: {said}");
    assert!(!machine.path("two/model.bin").exists());

    let said = machine.larder(&["apply", "--yes", "--progress", "json"]).must_be(0);
    let told = said.to_string();
    let begun = told.lines().find(|line| line.contains("\"started\"")).unwrap_or_else(|| panic!("{told}"));
    assert!(begun.contains(&format!("\"resumed\":{kept}")), "{begun}");
    assert!(told.contains("\"advanced\"") || told.contains("\"progress\""), "{told}");
    assert!(fs_err::read(machine.path("two/model.bin")).unwrap() == **CONTENT);
    assert!(!partial.exists());
}
