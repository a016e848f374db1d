//! `larder apply` is killed at random moments while content comes from Xet, and started again.
//!
//! `LARDER_CRASH_ROUNDS=300` for a long run, `LARDER_CRASH_SEED` for other moments.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests, one of which measures")]

use std::collections::HashMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/cas.rs"]
mod cas;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/chance.rs"]
mod chance;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/hub.rs"]
mod hub;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/machine.rs"]
mod machine;
#[path = "support/peak.rs"]
mod peak;

use cas::Cas;
use chance::{Random, number};
use hub::{Hub, Xet};
use machine::Machine;

/// For each 16 KiB: slow enough that kills hit transfers and that a stretch stays at two megabytes.
const PAUSE: Duration = Duration::from_millis(12);
/// What one kill may cost: the stretch under way, the ends of its chunks, and what lies in sockets.
const LOST_BY_KILL: u64 = (2 << 20) + (512 << 10);

/// The longest chunk of the store: one that a stretch ends in comes with the next stretch again.
const CHUNK_OF_XET: u64 = 128 << 10;

/// A hub with these files in a store, and a machine that wants them.
fn lab(files: &[(&str, &[u8])], cas: &Cas) -> (Hub, Machine) {
    let hub = Hub::start();
    let contents: Vec<&[u8]> = files.iter().map(|(_, bytes)| *bytes).collect();
    let names = cas.upload(&contents);
    let hashes: HashMap<String, String> = contents.iter().map(|bytes| hub::sha256(bytes)).zip(names).collect();
    hub.keep_in_xet(Xet { address: cas.address.clone(), hashes, pass: cas.passes() });
    let files: Vec<(&str, &[u8], bool)> = files.iter().map(|(path, bytes)| (*path, *bytes, true)).collect();
    hub.commit("acme/tiny", &files);
    let inventory = format!(
        "manifests = [\"manifests/*.toml\"]\nmachine = \"pc1\"\n\n[stores]\ncache = {{ layout = \"hf-cache\", path = \"~/hub\" }}\n\n\
         [machines]\npc1 = {{}}\n\n[sources]\nhub = \"{}\"\n",
        hub.origin
    );
    let machine =
        Machine::new(&inventory, "[[artifact]]\nname = \"tiny\"\nsource = \"hf:acme/tiny\"\nstore = \"cache\"\n");
    machine.larder(&["lock"]).must_be(0);
    (hub, machine)
}

/// Every blob that is there is what its name says.
fn nothing_visible_is_wrong(machine: &Machine) -> usize {
    let blobs = machine.path("hub/models--acme--tiny/blobs");
    let Ok(entries) = fs_err::read_dir(&blobs) else { return 0 };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.inspect(|name| assert_eq!(hub::sha256(&fs_err::read(blobs.join(name)).unwrap()), *name)).count()
}

fn start_over(machine: &Machine) {
    for folder in ["hub", ".local"] {
        let folder = machine.path(folder);
        if folder.exists() {
            #[expect(clippy::disallowed_methods, reason = "the test's own folder")]
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
}

#[test]
fn no_kill_over_xet_shows_a_wrong_byte_or_fetches_a_file_again() {
    let (rounds, seed) = (number("LARDER_CRASH_ROUNDS", 8), number("LARDER_CRASH_SEED", 1));
    let mut random = Random(seed);
    let contents = [random.bytes(4 << 20), random.bytes(1_500_000)];
    let cas = Cas::start(None);
    let (hub, machine) = lab(&[("a.bin", &contents[0]), ("b.bin", &contents[1])], &cas);
    let whole: u64 = contents.iter().map(|bytes| bytes.len() as u64).sum();
    cas.set_pause(PAUSE);
    let begin = Instant::now();
    machine.larder(&["apply", "--yes"]).must_be(0);
    let longest = begin.elapsed();
    let mut kills = 0;
    while kills < rounds {
        start_over(&machine);
        let (before, mut killed) = (cas.sent(), 0);
        let asked_before = cas.count(cas::Logged::is_question);
        while killed < 4 {
            let mut command = machine.command(&["apply", "--yes"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            chance::kill_at(&mut child, random.below(longest));
            let status = child.wait().unwrap();
            nothing_visible_is_wrong(&machine);
            if status.success() {
                break;
            }
            assert_eq!(status.code(), None, "it ended by itself and failed");
            killed += 1;
        }
        machine.larder(&["apply", "--yes"]).must_be(0);
        assert_eq!(nothing_visible_is_wrong(&machine), contents.len());
        machine.larder(&["verify", "--full"]).must_be(0);
        // Both files are under way at the same time.
        let stretches = (cas.count(cas::Logged::is_question) - asked_before) as u64;
        let (sent, bound) = (cas.sent() - before, whole + stretches * CHUNK_OF_XET + killed * 2 * LOST_BY_KILL);
        assert!(sent <= bound, "{sent} bytes were sent, {bound} can be explained by {killed} kills");
        kills += killed.max(1);
    }
    assert_eq!(hub.count(|asked| asked.on_cdn), 0, "all of it came from the store");
}

/// Memory of its own: with 20 MiB of an optimised build's code it stays below 64 MiB.
const MEMORY_KIB: u64 = 44 << 10;

/// Eight files at once, each longer than the memory they may take together is per file.
///
/// `LARDER_XET_MIB=128` for longer files (eight of them: a gibibyte).
#[test]
fn eight_files_at_once_stay_within_the_memory() {
    let length = usize::try_from(number("LARDER_XET_MIB", 20)).unwrap() << 20;
    let mut random = Random(7);
    let contents: Vec<Vec<u8>> = (0..8).map(|_| random.bytes(length)).collect();
    let names: Vec<String> = (0..8).map(|n| format!("{n}.bin")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let cas = Cas::start(Some(folder.path()));
    let (hub, machine) = lab(&files, &cas);
    let begin = Instant::now();
    let (status, most) = peak::run(&mut machine.command(&["apply", "--yes"]));
    let took = begin.elapsed();
    assert!(status.success());
    assert_eq!(nothing_visible_is_wrong(&machine), 8);
    assert_eq!(hub.count(|asked| asked.on_cdn), 0);
    println!("{} MiB in {took:?}, at most {} MiB of memory", (8 * length) >> 20, most >> 10);
    assert!(most < MEMORY_KIB, "{} MiB", most >> 10);
}
