//! Repairs: only what is wrong is fetched, from the nearest place, and afterwards everything is as it was.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use larder::fsio::{WriteOptions, write_atomic};
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

#[path = "support/skip.rs"]
mod skip;
#[expect(dead_code, reason = "each test uses a part of the vault")]
#[path = "support/vault.rs"]
mod vault;

use vault::{CHUNK, FILES, Fault, Kept, SMALL, Said, Vault, chunk_of, flip, rot};

/// Provisioned and read once, so that chunk digests are known.
fn verified() -> Vault {
    let vault = Vault::filled();
    vault.larder(&["verify"]).must_be(0);
    vault
}

fn repair(vault: &Vault) -> Said {
    vault.larder(&["repair", "--yes"])
}

fn overwritten(vault: &Vault) -> Vec<String> {
    let walk = walkdir::WalkDir::new(&vault.machine).into_iter().map(Result::unwrap);
    let backups = walk.filter(|entry| {
        let is_backup = entry.path().parent().is_some_and(|parent| parent.ends_with("overwritten"));
        is_backup && entry.file_type().is_file()
    });
    backups.map(|entry| entry.path().display().to_string()).collect()
}

#[test]
fn a_flipped_bit_costs_one_chunk_and_leaves_no_trace() {
    let vault = verified();
    for file in [Kept::Hub, Kept::Image] {
        let place = vault.place(file);
        let before = fs_err::metadata(&place).unwrap();
        flip(&place, 8 * CHUNK + 3);
        vault.larder(&["verify"]).must_be(3);
        let sent = vault.upstream.sent();
        let shown = vault.larder(&["repair", "--check"]).must_be(3);
        assert!(shown.out.contains("1 of 3 chunks") && shown.out.contains("4.0 MiB"), "{}", shown.out);
        assert_eq!(vault.upstream.sent(), sent, "showing fetches nothing");
        let said = repair(&vault).must_be(0);
        assert!(said.out.contains("1 file repaired and proven as a whole, 4.0 MiB fetched"), "{}", said.out);
        // One chunk; what is on its way when the last byte has come is not counted twice.
        assert!(vault.upstream.sent() - sent <= 2 * CHUNK, "{}", vault.upstream.sent() - sent);
        vault.everything_is_right();
        let after = fs_err::metadata(&place).unwrap();
        let who =
            |found: &std::fs::Metadata| (found.ino(), found.mode(), found.uid(), found.mtime(), found.mtime_nsec());
        assert_eq!(who(&after), who(&before), "the same file, of the same time");
        assert_eq!(overwritten(&vault), [""; 0]);
        assert_eq!(vault.faults(&["--quick"]), [], "what was repaired is known to be right");
        let said = repair(&vault).must_be(0);
        assert!(said.out.contains("Nothing is known to be wrong"), "{}", said.out);
    }
}

#[test]
fn the_nearest_copy_is_taken_and_the_network_is_not_asked() {
    let vault = verified();
    flip(&vault.place(Kept::Twin), 5);
    vault.larder(&["verify"]).must_be(3);
    let sent = vault.upstream.sent();
    let said = repair(&vault).must_be(0);
    assert!(said.out.contains("vae/vae/vae.pth") && said.out.contains("copied from other places"), "{}", said.out);
    assert_eq!(vault.upstream.sent(), sent);
    vault.everything_is_right();
    // The copy is wrong in the same chunk, and nobody knows yet: its bytes are not taken.
    flip(&vault.place(Kept::Plain), 7);
    flip(&vault.place(Kept::Twin), 5);
    vault.larder(&["verify", "--only", "twin"]).must_be(3);
    repair(&vault).must_be(0);
    assert_eq!(vault.upstream.sent() - sent, CHUNK);
    assert!(fs_err::read(vault.place(Kept::Twin)).unwrap() == *Kept::Twin.bytes());
}

/// What a repair would take the wrong chunks of `vae` from.
fn donor(vault: &Vault) -> String {
    let shown = vault.larder(&["repair", "--check", "--json"]).must_be(3).json();
    shown["patches"][0]["from"][0].to_string()
}

#[test]
fn a_drive_gives_the_wrong_chunk_and_the_network_is_not_asked() {
    let vault = verified();
    let drive = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = drive.path().to_str().unwrap();
    vault.larder(&["copy", "--to", folder, "--yes"]).must_be(0);
    vault.write_inventory(&format!("drives = [{folder:?}]\n"));
    for file in [Kept::Hub, Kept::Plain] {
        flip(&vault.place(file), 8 * CHUNK + 5);
        // Both of the same content, so that no other file here has it.
        if file == Kept::Plain {
            flip(&vault.place(Kept::Twin), 8 * CHUNK + 5);
        }
        vault.larder(&["verify"]).must_be(3);
        let from = donor(&vault);
        assert!(from.contains(folder), "{file:?}: {from}");
        let sent = vault.upstream.sent();
        repair(&vault).must_be(0);
        assert_eq!(vault.upstream.sent(), sent, "{file:?}");
        vault.everything_is_right();
    }
    // A drive that rots is noticed, and somebody else is asked.
    let name = format!("{}", Kept::Hub.sha256());
    let walk = walkdir::WalkDir::new(drive.path()).into_iter().map(Result::unwrap);
    let copy = walk.filter(|entry| entry.file_name().to_string_lossy().contains(&name)).last().unwrap();
    flip(copy.path(), 8 * CHUNK + 9);
    flip(&vault.place(Kept::Hub), 8 * CHUNK + 5);
    vault.larder(&["verify"]).must_be(3);
    let sent = vault.upstream.sent();
    repair(&vault).must_be(0);
    assert!(vault.upstream.sent() > sent);
    vault.everything_is_right();
    assert_eq!(vault.faults(&["--full"]), []);
}

#[test]
fn a_peer_gives_the_wrong_chunk_and_no_more() {
    let vault = verified();
    let address = vault.upstream.address;
    // Upstream serves like a larder; the hub and the registry are not there any more.
    vault.write_inventory(&format!("order = [\"peer\"]\npeers = [{{ name = \"pc2\", url = \"http://{address}\" }}]\n"));
    for file in [Kept::Hub, Kept::Image] {
        flip(&vault.place(file), 8 * CHUNK + 5);
        vault.larder(&["verify"]).must_be(3);
        let from = donor(&vault);
        assert!(from.contains(&format!("peer:pc2/sha256:{}", file.sha256())), "{file:?}: {from}");
        let sent = vault.upstream.sent();
        repair(&vault).must_be(0);
        assert!(vault.upstream.sent() - sent <= 2 * CHUNK, "{file:?}: {}", vault.upstream.sent() - sent);
        vault.everything_is_right();
        assert_eq!(vault.faults(&["--full"]), [], "{file:?}");
    }
}

#[test]
fn a_file_that_somebody_wrote_since_is_not_written_into() {
    let vault = verified();
    let place = vault.place(Kept::Plain);
    flip(&place, 5);
    vault.larder(&["verify"]).must_be(3);
    let mut own = Kept::Plain.bytes().to_vec();
    own[CHUNK as usize] ^= 1;
    write_atomic(&place, &own, &WriteOptions::default()).unwrap();
    let said = repair(&vault).must_be(0);
    assert!(said.out.contains("Nothing is known to be wrong"), "{}", said.out);
    assert!(fs_err::read(&place).unwrap() == own);
    assert_eq!(vault.faults(&[]), [Fault::of(Kept::Plain, "replaced", std::iter::once(CHUNK..2 * CHUNK).collect())]);
    repair(&vault).must_be(0);
    vault.everything_is_right();
}

#[test]
fn without_chunk_digests_the_whole_file_is_fetched() {
    let vault = Vault::filled();
    // Arrival took them; a machine that was filled by other means has none.
    larder::fsio::remove_file(&vault.facts()).unwrap();
    flip(&vault.place(Kept::Hub), 5);
    vault.larder(&["verify"]).must_be(3);
    let sent = vault.upstream.sent();
    repair(&vault).must_be(0);
    assert_eq!(vault.upstream.sent() - sent, Kept::Hub.len());
    vault.everything_is_right();
}

/// A machine that was filled by other means: it knows of no chunks, and upstream is a peer of it.
fn without_chunk_digests() -> Vault {
    let vault = Vault::filled();
    larder::fsio::remove_file(&vault.facts()).unwrap();
    let address = vault.upstream.address;
    vault.write_inventory(&format!("order = [\"peer\"]\npeers = [{{ name = \"pc2\", url = \"http://{address}\" }}]\n"));
    vault
}

/// The peer says of `file` that its chunks are those of `content`.
fn peer_says(vault: &Vault, file: Kept, content: &[u8]) {
    let mut hasher = larder::digest::ChunkHasher::default();
    hasher.update(content);
    vault.upstream_knows.record_chunks(&file.sha256(), &hasher.finish()).unwrap();
}

#[test]
fn a_peer_says_which_chunks_are_wrong_where_nobody_here_knows() {
    let vault = without_chunk_digests();
    for file in [Kept::Hub, Kept::Image] {
        let _ = larder::fsio::remove_file(&vault.facts());
        flip(&vault.place(file), 8 * CHUNK + 5);
        assert_eq!(vault.faults(&[])[0].ranges, [], "{file:?}: where it is wrong is not known here");
        peer_says(&vault, file, &file.bytes());
        let sent = vault.upstream.sent();
        let shown = vault.larder(&["repair", "--check"]).must_be(3);
        assert!(shown.out.contains("1 of 3 chunks"), "{}", shown.out);
        assert!(
            shown.out.contains("pc2 says which chunks; if that does not help, the whole is fetched"),
            "{}",
            shown.out
        );
        assert_eq!(vault.upstream.sent(), sent, "showing fetches nothing");
        let said = repair(&vault).must_be(0);
        assert!(said.out.contains("1 file repaired and proven as a whole, 4.0 MiB fetched"), "{}", said.out);
        assert!(vault.upstream.sent() - sent <= 2 * CHUNK, "{file:?}: {}", vault.upstream.sent() - sent);
        vault.everything_is_right();
        // The whole was proven with these chunks, so that the next fault has an address at once.
        flip(&vault.place(file), 8);
        assert_eq!(vault.faults(&[]), [Fault::of(file, "rotted", std::iter::once(0..CHUNK).collect())]);
        repair(&vault).must_be(0);
        assert_eq!(vault.faults(&["--full"]), [], "{file:?}");
    }
}

#[test]
fn a_peer_that_lies_about_chunks_costs_a_whole_fetch_and_harms_nothing() {
    let vault = without_chunk_digests();
    let file = Kept::Image;
    let right = file.bytes();
    // It says that the wrong chunk is right, and that a right one is wrong: as it is at its own place, or like nothing.
    let mut rotten = right.to_vec();
    rotten[CHUNK as usize + 5] ^= 1;
    let mut elsewhere = rotten.clone();
    elsewhere[0] ^= 1;
    for (lie, in_passing) in [(&elsewhere, 2 * CHUNK), (&rotten, 0)] {
        flip(&vault.place(file), 8 * (CHUNK + 5));
        vault.larder(&["verify"]).must_be(3);
        peer_says(&vault, file, lie);
        let sent = vault.upstream.sent();
        let said = repair(&vault).must_be(0);
        assert_eq!(said.out.contains("what pc2 said of the chunks of guard:1b/"), in_passing > 0, "{}", said.out);
        let cost = vault.upstream.sent() - sent;
        assert!((file.len()..=file.len() + in_passing).contains(&cost), "{cost}: {}", said.out);
        vault.everything_is_right();
        assert_eq!(overwritten(&vault), [""; 0]);
        assert_eq!(vault.faults(&["--full"]), []);
        larder::fsio::remove_file(&vault.facts()).unwrap();
    }
}

#[test]
fn what_has_no_good_copy_is_told_and_not_touched() {
    let vault = verified();
    let manifest = vault.root().join("lab/manifests/models.toml");
    let own = vault.machine.join("plain/lora/own.bin");
    let bytes = vault::noise(9 << 20, 5);
    write_atomic(&own, &bytes, &WriteOptions::default()).unwrap();
    let digest = larder::digest::Sha256::of(&bytes);
    let entry = format!(
        "\n[[artifact]]\nname = \"own\"\nsource = \"local\"\nstore = \"plain\"\n  [[artifact.file]]\n  path = \"lora/own.bin\"\n  sha256 = \"{digest}\"\n"
    );
    let text = fs_err::read_to_string(&manifest).unwrap() + &entry;
    write_atomic(&manifest, text.as_bytes(), &WriteOptions::default()).unwrap();
    vault.larder(&["lock", "--update", "own"]).must_be(0);
    vault.larder(&["verify"]).must_be(0);
    flip(&own, 8 * (5 << 20));
    let rotten = fs_err::read(&own).unwrap();
    vault.larder(&["verify"]).must_be(3);
    for arguments in [&["repair", "--check"][..], &["repair", "--yes"]] {
        let said = vault.larder(arguments);
        assert_eq!(said.code, Some(if arguments[1] == "--check" { 3 } else { 4 }), "{said:?}");
        assert!(
            said.out.contains("cannot be mended: own/lora/own.bin") && said.out.contains("no upstream"),
            "{said:?}"
        );
        assert!(fs_err::read(&own).unwrap() == rotten);
    }
}

#[test]
fn a_file_that_may_not_be_written_is_replaced_by_a_new_one() {
    let vault = verified();
    if larder::fsio::running_as().uid == 0 {
        // Root may write everything that is not immutable.
        let place = vault.place(Kept::Plain);
        flip(&place, 5);
        vault.larder(&["verify"]).must_be(3);
        let immutable = |flag: &str| std::process::Command::new("chattr").arg(flag).arg(&place).status();
        if immutable("+i").is_ok_and(|status| status.success()) {
            let before = fs_err::read(&place).unwrap();
            let said = repair(&vault);
            immutable("-i").unwrap();
            assert_eq!(said.code, Some(1), "{said:?}");
            assert!(said.out.contains("failed: vae/vae/vae.pth"), "{said:?}");
            assert!(fs_err::read(&place).unwrap() == before);
        }
    } else {
        let place = vault.place(Kept::Plain);
        flip(&place, 5);
        vault.larder(&["verify"]).must_be(3);
        fs_err::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    }
    repair(&vault).must_be(0);
    vault.everything_is_right();
}

/// Kills right before each system call that writes, syncs, renames or removes, one after the other.
#[test]
fn no_kill_leaves_more_than_a_wrong_chunk() {
    if !Path::new("/usr/bin/strace").exists() {
        return skip::skipped("strace is not installed (apt-get install strace)");
    }
    let vault = verified();
    let place = vault.place(Kept::Image);
    for calls in ["pwrite64", "fdatasync,fsync", "utimensat", "rename,renameat,renameat2", "unlink,unlinkat"] {
        let mut through = false;
        for nth in 1..12 {
            flip(&place, 8 * CHUNK);
            flip(&place, 16 * CHUNK + 1);
            vault.larder(&["verify", "--only", "guard:1b"]).must_be(3);
            let mut strace = std::process::Command::new("/usr/bin/strace");
            strace.args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e"]).arg(format!("trace={calls}"));
            strace.arg("-e").arg(format!("inject={calls}:signal=SIGKILL:when={nth}"));
            let command = vault.command(&["repair", "--yes"]);
            strace.arg(command.get_program()).args(command.get_args()).env_clear();
            strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            through = strace.output().unwrap().status.success();
            // Outside the two chunks nothing ever changed.
            let (now, right) = (fs_err::read(&place).unwrap(), Kept::Image.bytes());
            let first = CHUNK as usize;
            assert!(now.len() == right.len() && now[..first] == right[..first], "{calls} {nth}");
            if !through {
                // Whatever is still wrong is named, and mended.
                let named = vault.faults(&["--only", "guard:1b"]);
                assert_eq!(named.is_empty(), now == *right, "{calls} {nth}: {named:?}");
                repair(&vault).must_be(0);
            }
            vault.everything_is_right();
            assert_eq!(overwritten(&vault), [""; 0], "{calls} {nth}");
            if through {
                break;
            }
        }
        assert!(through, "{calls}");
    }
}

/// What happens to a file.
#[derive(Debug, Clone)]
enum Damage {
    /// Bits, by their place in the file (0 to 1).
    Flips(Vec<f64>),
    /// A range from there, of so many bytes.
    Zeros(f64, u64),
    /// So many bytes are left.
    Cut(f64),
    /// Somebody else's bytes of the same length.
    Swapped,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => proptest::collection::vec(0.0..1.0_f64, 1..4).prop_map(Damage::Flips),
        2 => (0.0..1.0_f64, 4096..6_000_000_u64).prop_map(|(from, len)| Damage::Zeros(from, len)),
        1 => (0.0..1.0_f64).prop_map(Damage::Cut),
        1 => any::<bool>().prop_map(|_| Damage::Swapped),
    ]
}

/// Does it; returns what must be told of it and how many bytes may be fetched for it.
fn inflict(vault: &Vault, file: Kept, damage: &Damage) -> (Fault, u64) {
    let (place, len) = (vault.place(file), file.len());
    let at = |part: f64| ((part * len as f64) as u64).min(len - 1);
    let right = file.bytes();
    match damage {
        Damage::Flips(places) => {
            let mut offsets: Vec<u64> = places.iter().map(|part| at(*part)).collect();
            offsets.sort_unstable();
            offsets.dedup();
            offsets.iter().for_each(|offset| flip(&place, 8 * offset + offset % 8));
            let ranges = joined(offsets.iter().map(|offset| chunk_of(*offset, len)));
            // What has no chunks is compared, and fetched, as a whole.
            let ranges = if len < CHUNK { Vec::new() } else { ranges };
            (Fault::of(file, "rotted", ranges), len.min(2 * CHUNK * offsets.len() as u64))
        }
        Damage::Zeros(..) if len < 4096 => {
            rot(&place, 0, |bytes| bytes.fill(0), len as usize);
            (Fault::of(file, "rotted", Vec::new()), len)
        }
        Damage::Zeros(from, zeros) => {
            // At least one whole page, aligned as disks do it.
            let start = at(*from) / 4096 * 4096;
            let start = start.min((len - 4096) / 4096 * 4096);
            let end = (start + zeros / 4096 * 4096).min(len);
            rot(&place, start, |bytes| bytes.fill(0), (end - start) as usize);
            let chunks = (start / CHUNK..=(end - 1) / CHUNK).map(|number| chunk_of(number * CHUNK, len));
            let ranges = joined(chunks);
            let bytes = ranges.iter().map(|range| range.end - range.start).sum();
            (Fault::of(file, "zero-filled", ranges), bytes)
        }
        Damage::Cut(part) => {
            let left = at(*part);
            write_atomic(&place, &right[..left as usize], &WriteOptions::default()).unwrap();
            (Fault::of(file, "truncated", Vec::new()), len)
        }
        Damage::Swapped => {
            let other = vault::noise(len as usize, 77);
            write_atomic(&place, &other, &WriteOptions::default()).unwrap();
            let ranges = if len < CHUNK { Vec::new() } else { std::iter::once(0..len).collect() };
            (Fault::of(file, "replaced", ranges), len)
        }
    }
}

/// Two files of the same length, each in the place of the other; returns what must be told of both.
fn exchange(vault: &Vault, files: [Kept; 2]) -> [Fault; 2] {
    let [one, other] = files;
    assert!(one.len() == other.len() && one.sha256() != other.sha256());
    for (file, with) in [(one, other), (other, one)] {
        write_atomic(&vault.place(file), &with.bytes(), &WriteOptions::default()).unwrap();
    }
    files.map(|file| Fault::of(file, "upgraded", std::iter::once(0..file.len()).collect()))
}

fn joined(ranges: impl Iterator<Item = std::ops::Range<u64>>) -> Vec<std::ops::Range<u64>> {
    let mut joined: Vec<std::ops::Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

fn cases() -> u32 {
    #[expect(clippy::disallowed_methods, reason = "how long a test runs is told by the environment")]
    std::env::var("LARDER_SCRUB_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// Another one in each run; a failure tells it, and `LARDER_SCRUB_SEED` brings it back.
#[expect(clippy::print_stderr, reason = "shown where the test fails")]
fn seed() -> [u8; 32] {
    #[expect(clippy::disallowed_methods, reason = "what a test repeats is told by the environment")]
    let asked = std::env::var("LARDER_SCRUB_SEED").ok();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = asked.unwrap_or_else(|| since.as_nanos().to_string());
    eprintln!("repeat it with LARDER_SCRUB_SEED={seed}");
    *larder::digest::Sha256::of(seed.as_bytes()).as_bytes()
}

#[test]
fn whatever_happens_to_files_is_named_and_mended_and_nothing_else_is_accused() {
    let vault = verified();
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed()));
    let all = [&FILES[..], &SMALL].concat();
    let several = proptest::sample::subsequence(all.clone(), 1..=all.len());
    for case in 0..cases() {
        let mut files = several.new_tree(&mut runner).unwrap().current();
        let exchanged = if case % 4 == 1 { Some([Kept::Hub, Kept::Plain]) } else { None };
        files.retain(|file| exchanged.iter().flatten().all(|exchanged| exchanged != file));
        let inflicted: Vec<(Kept, Damage)> =
            files.into_iter().map(|file| (file, damage().new_tree(&mut runner).unwrap().current())).collect();
        let (mut expected, mut bound) = (Vec::new(), 0);
        if let Some(files) = exchanged {
            expected.extend(exchange(&vault, files));
            bound += files.iter().map(|file| file.len()).sum::<u64>();
        }
        for (file, damage) in &inflicted {
            let (fault, bytes) = inflict(&vault, *file, damage);
            expected.push(fault);
            bound += bytes;
        }
        expected.sort_by(|a, b| (&a.artifact, &a.path).cmp(&(&b.artifact, &b.path)));
        let way: &[&str] = if case % 3 == 2 { &["--full"] } else { &[] };
        assert_eq!(vault.faults(way), expected, "case {case}: {inflicted:?}");
        let sent = vault.upstream.sent();
        repair(&vault).must_be(0);
        assert!(vault.upstream.sent() - sent <= bound, "case {case}: {inflicted:?}");
        vault.everything_is_right();
        SMALL.iter().for_each(|file| assert!(fs_err::read(vault.place(*file)).unwrap() == *file.bytes(), "{file:?}"));
        assert_eq!(vault.faults(&[]), [], "case {case}: {inflicted:?}");
    }
}

/// The keys of an object and what lies below them.
fn keys(value: &serde_json::Value, above: &str, into: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                let path = format!("{above}.{key}");
                into.insert(path.trim_start_matches('.').to_owned());
                keys(value, &path, into);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, &format!("{above}[]"), into)),
        _ => {}
    }
}

#[test]
fn scripts_can_rely_on_the_keys_of_a_repair() {
    let vault = verified();
    flip(&vault.place(Kept::Hub), 8 * CHUNK);
    vault.larder(&["verify"]).must_be(3);
    let shown = vault.larder(&["repair", "--check", "--json"]).must_be(3).json();
    let done = vault.larder(&["repair", "--yes", "--json"]).must_be(0).json();
    let mut seen = std::collections::BTreeSet::new();
    [&shown, &done].into_iter().for_each(|value| keys(value, "", &mut seen));
    insta::assert_snapshot!(seen.into_iter().collect::<Vec<_>>().join("\n"), @r"
    command
    parts
    parts.failures
    parts.interrupted
    parts.misled
    parts.moved_bytes
    parts.repaired
    parts.reused_bytes
    patches
    patches[].artifact
    patches[].bytes
    patches[].chunks
    patches[].from
    patches[].from[].remote
    patches[].of
    patches[].path
    patches[].place
    patches[].store
    version
    whole
    whole.artifacts
    whole.rooms
    whole_files
    whole_files.failures
    whole_files.interrupted
    whole_files.left_out
    whole_files.moved_bytes
    whole_files.placed
    whole_files.published
    whole_files.reused_bytes
    ");
}
