//! Verification of contents over time: what it finds and where, what it remembers, where it goes on.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use larder::facts::Facts;
use larder::fsio::{WriteOptions, write_atomic};
use rustix::process::{Pid, Signal, kill_process};

#[expect(dead_code, reason = "each test uses a part of the vault")]
#[path = "support/vault.rs"]
mod vault;

use vault::{CHUNK, FILES, Fault, Kept, Vault, chunk_of, flip, noise, rot};

fn number(said: &vault::Said, key: &str) -> u64 {
    said.json()[key].as_u64().unwrap()
}

/// Bytes of all content here, each file once.
fn all_bytes(vault: &Vault) -> u64 {
    number(&vault.larder(&["verify", "--full", "--json"]), "bytes_read")
}

#[test]
fn a_flipped_bit_is_found_by_its_chunk_in_every_store() {
    let vault = Vault::filled();
    assert_eq!(vault.faults(&[]), []);
    for file in FILES {
        let offset = file.len() - 3;
        flip(&vault.place(file), 8 * offset + 5);
        let expected = [Fault::of(file, "rotted", vec![chunk_of(offset, file.len())])];
        // By chunks, by whole digests, by chunks again: what is wrong and where is always the same.
        for way in [&[][..], &["--full"], &[]] {
            assert_eq!(vault.faults(way), expected, "{file:?} {way:?}");
        }
        let quick = vault.faults(&["--quick"]);
        assert_eq!((quick.len(), quick[0].kind.as_str()), (1, "corrupt"), "what was read is remembered");
        flip(&vault.place(file), 8 * offset + 5);
        assert_eq!(vault.faults(&[]), [], "{file:?}");
        assert_eq!(vault.faults(&["--quick"]), [], "{file:?}");
    }
}

#[test]
fn kinds_of_wrong_content_are_told_apart() {
    let vault = Vault::filled();
    vault.larder(&["verify"]).must_be(0);
    let (place, len) = (vault.place(Kept::Plain), Kept::Plain.len());
    let put = |bytes: &[u8]| write_atomic(&place, bytes, &WriteOptions::default()).unwrap();
    let of = |kind: &str, ranges| [Fault::of(Kept::Plain, kind, ranges)];
    rot(&place, CHUNK + 4096, |bytes| bytes.fill(0), 8192);
    let said = vault.larder(&["verify", "--json"]);
    assert_eq!(said.faults(), of("zero-filled", std::iter::once(CHUNK..2 * CHUNK).collect()));
    let zeros = format!("zeros from byte {} to {}", CHUNK + 4096, CHUNK + 4096 + 8191);
    assert!(said.out.contains(&zeros) && said.out.contains("nobody has written it since"), "{}", said.out);
    let mut other = Kept::Plain.bytes().to_vec();
    other[7] ^= 1;
    put(&other);
    assert_eq!(vault.faults(&[]), of("replaced", std::iter::once(0..CHUNK).collect()));
    put(&Kept::Image.bytes());
    assert_eq!(vault.faults(&[])[0].kind, "wrong", "another length is seen without reading");
    put(&Kept::Plain.bytes()[..len as usize - 1]);
    assert_eq!(vault.faults(&[])[0].kind, "truncated");
    put(&Kept::Plain.bytes());
    assert_eq!(vault.faults(&[]), []);
}

#[test]
fn content_that_was_right_under_an_older_lock_is_another_revision() {
    let vault = Vault::filled();
    vault.larder(&["verify", "--only", "vae"]).must_be(0);
    let manifest = vault.root().join("lab/manifests/models.toml");
    let newer = noise(Kept::Plain.len() as usize, 99);
    let old = Kept::Plain.sha256().to_string();
    let text = fs_err::read_to_string(&manifest).unwrap();
    let (before, vae) = text.split_at(text.find("name = \"vae\"").unwrap());
    let new = larder::digest::Sha256::of(&newer).to_string();
    let text = format!("{before}{}", vae.replacen(&old, &new, 1));
    write_atomic(&manifest, text.as_bytes(), &WriteOptions::default()).unwrap();
    vault.larder(&["lock", "--update", "vae"]).must_be(0);
    assert_eq!(vault.faults(&["--only", "vae"]), [Fault::of(Kept::Plain, "upgraded", Vec::new())]);
}

#[test]
fn files_without_a_digest_are_trusted_as_first_seen_and_it_is_said_every_time() {
    let vault = Vault::filled();
    let manifest = vault.root().join("lab/manifests/models.toml");
    let own = vault.machine.join("plain/lora/own.bin");
    write_atomic(&own, &noise(9 << 20, 5), &WriteOptions::default()).unwrap();
    let entry = "\n[[artifact]]\nname = \"own\"\nsource = \"local\"\nstore = \"plain\"\n  [[artifact.file]]\n  path = \"lora/own.bin\"\n";
    let text = fs_err::read_to_string(&manifest).unwrap() + entry;
    write_atomic(&manifest, text.as_bytes(), &WriteOptions::default()).unwrap();
    vault.larder(&["lock", "--update", "own"]).must_be(0);
    for _ in 0..3 {
        let said = vault.larder(&["verify", "--only", "own"]).must_be(0);
        assert!(said.out.contains("1 trusted as first seen"), "{}", said.out);
    }
    flip(&own, 8 * (5 << 20));
    let faults = vault.faults(&["--only", "own"]);
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].kind, "rotted");
    assert_eq!(faults[0].ranges.first(), Some(&(CHUNK..2 * CHUNK)));
}

#[test]
fn within_the_greatest_age_nothing_is_read_twice_and_a_wrong_clock_costs_a_reading() {
    let vault = Vault::filled();
    let all = all_bytes(&vault);
    let said = vault.larder(&["verify", "--max-age", "7d", "--json"]).must_be(0);
    assert_eq!((number(&said, "bytes_read"), number(&said, "unread")), (0, 0));
    assert_eq!(number(&said, "fresh"), number(&said, "files"));
    let facts = rusqlite::Connection::open(vault.facts()).unwrap();
    for (shift, expected) in [(-8 * 86_400, all), (1, 0), (86_400, all)] {
        // As if everything had been read then; the last one is tomorrow.
        facts
            .execute("UPDATE measured SET at = unixepoch() + ?1", [shift.min(86_400) - i64::from(shift == 1)])
            .unwrap();
        let said = vault.larder(&["verify", "--max-age", "7d", "--json"]).must_be(0);
        assert_eq!(number(&said, "bytes_read"), expected, "{shift}");
    }
}

#[test]
fn a_budget_is_kept_and_the_next_run_goes_on_inside_the_file() {
    let vault = Vault::filled();
    let all = all_bytes(&vault);
    for way in [&[][..], &["--full"]] {
        let facts = rusqlite::Connection::open(vault.facts()).unwrap();
        facts.execute("UPDATE measured SET at = at - 1000000", []).unwrap();
        let (mut read, mut runs) = (0, 0);
        loop {
            let budget = ["verify", "--json", "--max-age", "7d", "--budget", "5MB"];
            let said = vault.larder(&[&budget, way].concat()).must_be(0);
            let now = number(&said, "bytes_read");
            assert!(now <= 5_000_000 + 12 * CHUNK, "{now}");
            (read, runs) = (read + now, runs + 1);
            if number(&said, "unread") == 0 {
                break;
            }
            assert!(number(&said, "overdue") > 0 && runs < 100);
        }
        assert!(runs > 2, "{runs}");
        assert_eq!(read, all, "{way:?}: nothing is read twice");
    }
}

#[test]
fn a_fault_is_told_by_the_run_that_reads_it_and_by_the_one_that_reaches_the_end() {
    let vault = Vault::filled();
    vault.larder(&["verify"]).must_be(0);
    flip(&vault.place(Kept::Image), 80);
    let expected = [Fault::of(Kept::Image, "rotted", std::iter::once(0..CHUNK).collect())];
    let (mut runs, mut told) = (0, Vec::new());
    while told.last().is_none_or(|left| *left > 0) {
        let said = vault.larder(&["verify", "--json", "--only", "guard:1b", "--budget", "1MB"]);
        told.push(number(&said, "unread"));
        runs += 1;
        assert!(runs < 10, "{said:?}");
        if runs == 1 || told.last() == Some(&0) {
            assert_eq!(said.faults(), expected);
        }
    }
    assert!(runs > 2, "{runs}");
}

#[test]
fn a_signal_ends_it_at_once_and_what_was_read_is_remembered() {
    let vault = Vault::filled();
    let all = all_bytes(&vault);
    for (signal, way) in [(Signal::TERM, &[][..]), (Signal::INT, &["--full"])] {
        let facts = rusqlite::Connection::open(vault.facts()).unwrap();
        facts.execute("UPDATE measured SET at = at - 1000000", []).unwrap();
        drop(facts);
        let slowly = ["verify", "--json", "--max-age", "7d", "--max-rate", "20MB/s"];
        let child = vault.command(&[&slowly, way].concat()).spawn().unwrap();
        let begin = Instant::now();
        // The first results are written after a second.
        let some = || Facts::open(&vault.facts()).unwrap().stopped_readings().is_ok();
        while begin.elapsed() < Duration::from_millis(700) || !some() {
            std::thread::yield_now();
        }
        let told = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let said = vault::Said::of(&child.wait_with_output().unwrap()).must_be(130);
        assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
        let before = number(&said, "bytes_read");
        assert!(before > 0 && before < all, "{before} of {all}");
        let rest = vault.larder(&[&["verify", "--json", "--max-age", "7d"], way].concat()).must_be(0);
        assert_eq!(before + number(&rest, "bytes_read"), all, "{way:?}");
    }
}

#[test]
fn what_is_idle_and_what_is_limited_reads_the_same() {
    let vault = Vault::filled();
    let begin = Instant::now();
    let said = vault.larder(&["verify", "--idle", "--max-rate", "60MB/s", "--json"]).must_be(0);
    let least = number(&said, "bytes_read") as f64 / 60e6;
    assert!(begin.elapsed().as_secs_f64() > 0.7 * least, "{:?}", begin.elapsed());
}

#[test]
fn wrong_limits_are_refused_with_an_example() {
    let vault = Vault::empty(None);
    for (option, value, example) in
        [("--budget", "12", "2h or 200GB"), ("--max-age", "soon", "7d"), ("--max-rate", "0", "80MB/s")]
    {
        let said = vault.larder(&["verify", option, value]).must_be(2);
        assert!(said.err.contains(example), "{}", said.err);
    }
    vault.larder(&["verify", "--quick", "--budget", "2h"]).must_be(2);
}

#[test]
fn what_nobody_asked_for_is_named_and_is_no_fault() {
    let vault = Vault::filled();
    let put = |path: &str| {
        let path = vault.machine.join(path);
        write_atomic(&path, b"12345", &WriteOptions::default()).unwrap();
        path
    };
    let mut leftovers = [
        put("plain/vae/other.safetensors.aria2"),
        put("ollama/blobs/sha256-0000-partial-3"),
        put("huggingface/models--lab--paint/blobs/0123.incomplete"),
    ];
    let mut foreign = [put("plain/vae/own.safetensors"), put("huggingface/models--lab--paint/blobs/0123")];
    let said = vault.larder(&["verify", "--json"]).must_be(0);
    let strays = said.json()["strays"].as_array().unwrap().clone();
    let of = |kind: &str| {
        let own = strays.iter().filter(|stray| stray["kind"] == kind);
        let mut places: Vec<_> = own.map(|stray| std::path::PathBuf::from(stray["place"].as_str().unwrap())).collect();
        places.sort();
        places
    };
    leftovers.sort();
    foreign.sort();
    assert_eq!((of("leftover"), of("foreign")), (leftovers.to_vec(), foreign.to_vec()));
    let said = vault.larder(&["verify"]).must_be(0);
    assert!(said.out.contains("3 files left by stopped downloads of other programs: 15 B"), "{}", said.out);
}

#[test]
fn the_history_tells_with_sqlite3_what_happened_to_a_file() {
    let vault = Vault::filled();
    vault.larder(&["verify"]).must_be(0);
    let place = vault.place(Kept::Plain);
    flip(&place, 1);
    vault.larder(&["verify", "--only", "vae"]).must_be(3);
    let facts = Facts::open(&vault.facts()).unwrap();
    let events: Vec<String> = facts.history(&place).unwrap().into_iter().map(|happening| happening.event).collect();
    assert_eq!(events, ["rotted", "proven", "arrived"]);
    let ask = format!(
        "SELECT artifact, event FROM history WHERE CAST(path AS TEXT) = '{}' ORDER BY id DESC LIMIT 1",
        place.display()
    );
    let Ok(output) = std::process::Command::new("sqlite3").arg(vault.facts()).arg(ask).output() else { return };
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "vae|rotted");
}
