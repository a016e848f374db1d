//! A file system that fails where a test wants it (FUSE): what verification, repair and the fetch engine make of errors
//! in the middle of files, full disks, short writes and bits that flip on the way.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use larder::fsio::{WriteOptions, journaled_bytes, write_atomic};
use rstest::rstest;

#[path = "support/fault_fs.rs"]
mod fault_fs;
#[path = "support/skip.rs"]
mod skip;
#[expect(dead_code, reason = "each test uses a part of the vault")]
#[path = "support/vault.rs"]
mod vault;

use fault_fs::{FaultFs, What};
use vault::{CHUNK, COMMIT, FILES, Fault, Kept, Vault, chunk_of, flip, noise};

/// A locked lab whose stores will lie on a file system with faults; `None` where there can be none.
fn empty() -> Option<(FaultFs, Vault)> {
    let faults = FaultFs::mount()?;
    let vault = Vault::empty(Some(&faults.path().join("machine")));
    Some((faults, vault))
}

/// The same, fetching over one connection: what comes lies on the disk in its order.
fn in_order() -> Option<(FaultFs, Vault)> {
    let (faults, vault) = empty()?;
    vault.write_inventory("connections = 1\n");
    Some((faults, vault))
}

/// Provisioned and read once, so that chunk digests are known.
fn verified() -> Option<(FaultFs, Vault)> {
    let (faults, vault) = empty()?;
    vault.larder(&["apply", "--yes"]).must_be(0);
    vault.larder(&["verify"]).must_be(0);
    vault.everything_is_right();
    Some((faults, vault))
}

/// The end of the path of a file's content, whichever layout it lies in.
fn ending(vault: &Vault, file: Kept) -> String {
    vault.place(file).strip_prefix(&vault.machine).unwrap().display().to_string()
}

fn bytes_read(said: &vault::Said) -> u64 {
    said.json()["bytes_read"].as_u64().unwrap()
}

#[test]
fn a_range_that_cannot_be_read_is_named_and_everything_around_it_is_read() {
    let Some((faults, vault)) = verified() else { return };
    let all = bytes_read(&vault.larder(&["verify", "--json"]).must_be(0));
    for file in FILES {
        let bad = CHUNK + 8192..CHUNK + 3 * 4096 + 1;
        let told: Range<u64> = CHUNK + 8192..CHUNK + 4 * 4096;
        faults.set(&[(&ending(&vault, file), What::Unreadable(bad))]);
        for way in [&[][..], &["--full"]] {
            let said = vault.larder(&[&["verify", "--json"], way].concat()).must_be(3);
            assert_eq!(said.faults(), [Fault::of(file, "unreadable", vec![told.clone()])], "{file:?} {way:?}");
            assert!(said.out.contains("Input/output error"), "{}", said.out);
            assert_eq!(bytes_read(&said), all, "the reading goes on: {file:?} {way:?}");
        }
        assert!(faults.happened() > 0);
        faults.set(&[]);
        assert_eq!(vault.faults(&[]), [], "{file:?}: what can be read again is not accused any more");
    }
}

/// Short files have no chunks: what is wrong with them is remembered all the same, by everybody who is asked.
#[test]
fn a_short_file_that_cannot_be_read_is_wrong_for_every_command_until_it_is_mended() {
    let Some((faults, vault)) = verified() else { return };
    let own = vault.machine.join("plain/lora/own.bin");
    write_atomic(&own, &noise(300_000, 5), &WriteOptions::default()).unwrap();
    let manifest = vault.root().join("lab/manifests/models.toml");
    let entry = "\n[[artifact]]\nname = \"own\"\nsource = \"local\"\nstore = \"plain\"\n  [[artifact.file]]\n  path = \"lora/own.bin\"\n";
    let text = fs_err::read_to_string(&manifest).unwrap() + entry;
    write_atomic(&manifest, text.as_bytes(), &WriteOptions::default()).unwrap();
    vault.larder(&["lock", "--update", "own"]).must_be(0);
    vault.larder(&["verify"]).must_be(0);
    let config = fs_err::canonicalize(
        vault.machine.join(format!("huggingface/models--lab--paint/snapshots/{COMMIT}/config.json")),
    )
    .unwrap();
    let ending = |place: &Path| place.strip_prefix(&vault.machine).unwrap().display().to_string();
    faults.set(&[(&ending(&own), What::Unreadable(102_400..102_401)), (&ending(&config), What::Unreadable(0..9))]);
    let found = vault.larder(&["verify", "--full", "--json"]).must_be(3).faults();
    let told: Vec<_> = found.iter().map(|fault| (fault.artifact.as_str(), fault.kind.as_str())).collect();
    assert_eq!(told, [("own", "unreadable"), ("paint", "unreadable")]);
    assert_eq!(found[0].ranges, std::iter::once(102_400..106_496).collect::<Vec<_>>());
    assert!(faults.happened() > 0);
    for way in [&["--quick"][..], &["--max-age", "7d"]] {
        assert_eq!(vault.faults(way), found, "{way:?}");
    }
    faults.set(&[]);
    assert_eq!(vault.faults(&["--quick"]), found, "nobody has read them since");
    for command in [&["status"][..], &["report"], &["report", "--format", "markdown"], &["report", "--format", "html"]]
    {
        let said = vault.larder(command).must_be(3);
        let places = said.out.matches("cannot read").count();
        assert!(places >= 2 && said.out.contains("from byte 102400 on"), "{command:?}: {}", said.out);
    }
    let metrics = vault.larder(&["report", "--format", "prometheus"]).must_be(3).out;
    for artifact in [r#"artifact="own",store="plain""#, r#"artifact="paint",store="huggingface""#] {
        assert!(metrics.contains(&format!("larder_faults{{{artifact},kind=\"unreadable\"}} 1")), "{metrics}");
        assert!(metrics.contains(&format!("larder_artifact_in_order{{{artifact}}} 0")), "{metrics}");
        assert!(!metrics.contains(&format!("larder_artifact_proven_timestamp_seconds{{{artifact}}}")), "{metrics}");
    }
    let sent = vault.upstream.sent();
    let said = vault.larder(&["repair", "--yes"]).must_be(4);
    assert!(said.out.contains("cannot be mended: own") && said.out.contains("no upstream"), "{}", said.out);
    assert!(vault.upstream.sent() - sent < 10_000, "only the short file came");
    assert_eq!(vault.faults(&["--quick"]).len(), 1, "the other one has no source");
    assert_eq!(vault.faults(&["--max-age", "7d"]), [], "what can be read again is not accused any more");
    vault.larder(&["report"]).must_be(0);
}

#[test]
fn the_first_block_of_a_file_without_a_known_length_is_the_disks_fault_and_not_one_of_rights() {
    let Some((faults, vault)) = verified() else { return };
    let manifest = vault.root().join("lab/manifests/models.toml");
    let text = fs_err::read_to_string(&manifest).unwrap().replace(&format!("size = {}\n", Kept::Plain.len()), "\n");
    write_atomic(&manifest, text.as_bytes(), &WriteOptions::default()).unwrap();
    vault.larder(&["lock", "--update", "vae"]).must_be(0);
    faults.set(&[(&ending(&vault, Kept::Plain), What::Unreadable(0..4096))]);
    for way in [&[][..], &["--full"]] {
        let said = vault.larder(&[&["verify", "--only", "vae", "--json"], way].concat()).must_be(3);
        assert_eq!(
            said.faults(),
            [Fault::of(Kept::Plain, "unreadable", std::iter::once(0..4096).collect())],
            "{way:?}"
        );
        assert!(said.out.contains("the disk cannot read"), "{}", said.out);
    }
    let said = vault.larder(&["verify", "--only", "vae", "--quick"]).must_be(3);
    assert!(!said.out.contains("may not be read"), "{}", said.out);
    let sent = vault.upstream.sent();
    let said = vault.larder(&["repair", "--yes", "--only", "vae"]).must_be(0);
    assert!(!said.err.contains("run larder as the user"), "{}", said.err);
    assert!(vault.upstream.sent() - sent <= 2 * CHUNK, "{}", vault.upstream.sent() - sent);
    faults.set(&[]);
    vault.everything_is_right();
    assert_eq!(vault.faults(&["--full"]), []);
}

#[test]
fn a_bit_that_flips_on_the_way_is_found_in_its_chunk_and_forgotten_when_it_is_gone() {
    let Some((faults, vault)) = verified() else { return };
    for file in FILES {
        let offset = file.len() - 7;
        faults.set(&[(&ending(&vault, file), What::FlippedBit(8 * offset + 3))]);
        for way in [&[][..], &["--full"]] {
            let expected = [Fault::of(file, "rotted", vec![chunk_of(offset, file.len())])];
            assert_eq!(vault.faults(way), expected, "{file:?} {way:?}");
        }
        assert!(faults.happened() > 0);
        faults.set(&[]);
        assert_eq!(vault.faults(&[]), [], "{file:?}");
    }
}

#[test]
fn a_slow_disk_is_waited_for_and_a_budget_of_time_holds_on_it() {
    let Some((faults, vault)) = verified() else { return };
    faults.set(&[("", What::SlowReads(Duration::from_millis(300)))]);
    vault.larder(&["verify", "--only", "vae"]).must_be(0);
    let said = vault.larder(&["verify", "--full", "--budget", "1s", "--json"]).must_be(0);
    assert!(said.json()["unread"].as_u64().unwrap() > 0, "{}", said.out);
    assert!(faults.happened() > 0);
    faults.set(&[]);
    let said = vault.larder(&["verify", "--full", "--json"]).must_be(0);
    assert_eq!(said.json()["unread"], 0);
}

#[test]
fn an_original_that_cannot_be_read_is_no_reason_not_to_fetch() {
    let Some((faults, vault)) = verified() else { return };
    #[expect(clippy::disallowed_methods, reason = "the test's own file")]
    std::fs::remove_file(vault.place(Kept::Plain)).unwrap();
    faults.set(&[(&ending(&vault, Kept::Twin), What::Unreadable(CHUNK..CHUNK + 4096))]);
    let sent = vault.upstream.sent();
    vault.larder(&["apply", "--yes"]).must_be(0);
    assert!(faults.happened() > 0, "it was to be copied first");
    assert_eq!(vault.upstream.sent() - sent, Kept::Plain.len());
    faults.set(&[]);
    vault.everything_is_right();
}

#[test]
fn a_repair_writes_over_what_cannot_be_read() {
    let Some((faults, vault)) = verified() else { return };
    for file in [Kept::Hub, Kept::Image, Kept::Plain] {
        faults.set(&[(&ending(&vault, file), What::Unreadable(CHUNK + 4096..CHUNK + 8192))]);
        vault.larder(&["verify"]).must_be(3);
        assert!(faults.happened() > 0);
        let sent = vault.upstream.sent();
        vault.larder(&["repair", "--yes"]).must_be(0);
        assert!(vault.upstream.sent() - sent <= 2 * CHUNK, "{file:?}: {}", vault.upstream.sent() - sent);
        faults.set(&[]);
        vault.everything_is_right();
        assert_eq!(vault.faults(&["--full"]), [], "{file:?}");
    }
}

#[rstest]
#[case::error(What::Unwritable(2 * CHUNK..2 * CHUNK + 1), "Input/output error")]
#[case::full(What::NoRoomFrom(2 * CHUNK), "No space left on device")]
#[case::not_durable(What::Unsynced, "Input/output error")]
fn a_repair_that_cannot_write_says_so_and_leaves_the_rest_as_it_was(#[case] what: What, #[case] told: &str) {
    let Some((faults, vault)) = verified() else { return };
    let place = vault.place(Kept::Image);
    flip(&place, 8 * (2 * CHUNK + 77));
    vault.larder(&["verify"]).must_be(3);
    let rotten = fs_err::read(&place).unwrap();
    faults.set(&[(&ending(&vault, Kept::Image), what)]);
    let said = vault.larder(&["repair", "--yes"]).must_be(1);
    assert!(said.out.contains(told) || said.err.contains(told), "{said:?}");
    assert!(faults.happened() > 0);
    faults.set(&[]);
    let after = fs_err::read(&place).unwrap();
    let differ = after.iter().zip(&rotten).enumerate().filter(|(_, (now, then))| now != then).map(|(at, _)| at as u64);
    let differ: Vec<u64> = differ.filter(|at| !(2 * CHUNK..3 * CHUNK).contains(at)).collect();
    assert_eq!((after.len(), differ), (rotten.len(), Vec::new()), "outside of the wrong chunk nothing changes");
    // What could not be made durable may be right all the same.
    assert!(matches!(vault.larder(&["verify"]).code, Some(0 | 3)));
    vault.larder(&["repair", "--yes"]).must_be(0);
    vault.everything_is_right();
    assert_eq!(vault.faults(&["--full"]), []);
}

#[test]
fn a_repair_and_a_fetch_through_short_writes_lose_no_byte() {
    let Some((faults, vault)) = empty() else { return };
    faults.set(&[("", What::ShortWrites(1009))]);
    vault.larder(&["apply", "--yes", "--only", "vae"]).must_be(0);
    assert!(faults.happened() > 0);
    faults.set(&[]);
    vault.larder(&["apply", "--yes"]).must_be(0);
    vault.larder(&["verify"]).must_be(0);
    flip(&vault.place(Kept::Hub), 8 * CHUNK);
    vault.larder(&["verify"]).must_be(3);
    faults.set(&[(&ending(&vault, Kept::Hub), What::ShortWrites(1009))]);
    vault.larder(&["repair", "--yes"]).must_be(0);
    assert!(faults.happened() > 0);
    faults.set(&[]);
    vault.everything_is_right();
}

const HALF: u64 = CHUNK / 2;

/// Until the journal speaks of a whole chunk: the server is ahead of what is written.
fn wait_for_a_chunk(vault: &Vault) {
    let journal = vault.machine.join(format!("plain/.larder/{}.journal", Kept::Plain.sha256()));
    let begin = Instant::now();
    while fs_err::metadata(&journal).map_or(0, |found| journaled_bytes(found.len())) < CHUNK {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing arrives");
        std::thread::yield_now();
    }
}

/// What a fetch meets, where, what it says, and how much of the file is asked for again at most.
#[rstest]
#[case::error(What::Unwritable(CHUNK + HALF..CHUNK + HALF + 1), "Input/output error", Kept::Plain.len() - CHUNK)]
#[case::full(What::NoRoomFrom(CHUNK + HALF), "No space left on device", Kept::Plain.len() - CHUNK)]
#[case::not_durable(What::Unsynced, "Input/output error", Kept::Plain.len())]
fn a_disk_that_fails_while_a_fetch_writes_is_named_and_the_next_run_moves_what_is_missing(
    #[case] what: What,
    #[case] told: &str,
    #[case] again: u64,
) {
    let Some((faults, vault)) = in_order() else { return };
    faults.set(&[(".partial", what)]);
    let said = vault.larder(&["apply", "--yes", "--only", "vae"]).must_be(1);
    assert!(faults.happened() > 0, "{said:?}");
    let place = vault.place(Kept::Plain);
    assert!(said.out.contains(told) && said.out.contains("vae"), "{said:?}");
    assert!(!place.exists(), "nothing is visible before it is right");
    faults.set(&[]);
    let sent = vault.upstream.sent();
    vault.larder(&["apply", "--yes", "--only", "vae"]).must_be(0);
    assert!(fs_err::read(&place).unwrap() == *Kept::Plain.bytes());
    assert!(vault.upstream.sent() - sent <= again, "{} bytes again", vault.upstream.sent() - sent);
    assert_eq!(vault.faults(&["--full", "--only", "vae"]), []);
}

/// A fetch is killed half-way, and its partial file is not what was written when the next one goes on.
#[rstest]
#[case::flipped(What::FlippedBit(8 * 4097))]
#[case::unreadable(What::Unreadable(4096..8192))]
fn a_partial_file_that_went_bad_between_two_runs_is_never_believed(#[case] what: What) {
    let Some((faults, vault)) = in_order() else { return };
    vault.upstream.hold_after(CHUNK + CHUNK / 2);
    let mut child = vault.command(&["apply", "--yes", "--only", "vae"]).spawn().unwrap();
    vault.upstream.wait_until_held();
    wait_for_a_chunk(&vault);
    child.kill().unwrap();
    child.wait().unwrap();
    vault.upstream.release();
    faults.set(&[(".partial", what)]);
    let said = vault.larder(&["apply", "--yes", "--only", "vae"]);
    assert!(faults.happened() > 0, "{said:?}");
    let place = vault.place(Kept::Plain);
    let is_right = || fs_err::read(&place).unwrap() == *Kept::Plain.bytes();
    assert!(!place.exists() || is_right(), "{said:?}");
    assert!(said.code == Some(0) || said.out.contains("failed: vae"), "{said:?}");
    faults.set(&[]);
    vault.larder(&["apply", "--yes", "--only", "vae"]).must_be(0);
    assert!(is_right());
    assert_eq!(vault.faults(&["--full", "--only", "vae"]), []);
}
