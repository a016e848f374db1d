//! Verification and repair where things break: disks that cannot read, or not be written, facts that are gone, broken or
//! held by others, kills at any moment.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use larder::fsio::running_as;

#[expect(dead_code, reason = "each test uses a part of the disk")]
#[path = "support/disk.rs"]
mod disk;
#[path = "support/skip.rs"]
mod skip;
#[expect(dead_code, reason = "each test uses a part of the vault")]
#[path = "support/vault.rs"]
mod vault;

use disk::{Disk, Kind};
use vault::{CHUNK, Fault, Kept, Vault, flip};

fn on_a_disk() -> Option<(Disk, Vault)> {
    if running_as().uid != 0 {
        skip::skipped("only root mounts file systems");
        return None;
    }
    let disk = Disk::make(Kind::Ext4);
    let vault = Vault::empty(Some(&disk.path().join("machine")));
    vault.larder(&["apply", "--yes"]).must_be(0);
    vault.larder(&["verify"]).must_be(0);
    Some((disk, vault))
}

fn remove(path: &Path) {
    #[expect(clippy::disallowed_methods, reason = "the test's own files")]
    std::fs::remove_file(path).unwrap();
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// Where the parts of a file lie: bytes of the file, and the first byte on the disk.
fn extents(path: &Path) -> Vec<(Range<u64>, u64)> {
    let output = Command::new("/usr/sbin/filefrag").args(["-e", "-b1024"]).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers = |line: &str| -> Option<Vec<u64>> {
        let fields: Vec<&str> = line.split([':', '.']).map(str::trim).filter(|field| !field.is_empty()).collect();
        fields[..fields.len().min(5)].iter().map(|field| field.parse().ok()).collect()
    };
    let rows = text.lines().filter_map(numbers).filter(|row| row.len() == 5);
    rows.map(|row| (row[1] * 1024..(row[2] + 1) * 1024, row[3] * 1024)).collect()
}

/// A disk whose end cannot be read any more: the image behind it is cut off in front of that part of the file that lies
/// last on the disk. The file is written in two goes around a full disk, so that it has more than one part.
#[test]
fn what_the_disk_cannot_read_is_told_and_everything_else_is_read() {
    let Some((disk, vault)) = on_a_disk() else { return };
    if !Path::new("/usr/sbin/filefrag").exists() {
        return skip::skipped("filefrag is not installed (apt-get install e2fsprogs)");
    }
    let (place, bytes) = (vault.place(Kept::Plain), Kept::Plain.bytes());
    let pad = vault.place(Kept::Twin);
    remove(&place);
    append(&place, &bytes[..CHUNK as usize]);
    disk.fill(0);
    remove(&pad);
    append(&place, &bytes[CHUNK as usize..]);
    vault.larder(&["verify", "--only", "vae"]).must_be(0);
    let parts = extents(&place);
    let cut = parts.iter().map(|(_, from)| *from).max().unwrap();
    let bad: Vec<_> = parts.iter().filter(|(_, from)| *from >= cut).map(|(range, _)| range.clone()).collect();
    assert!(parts.len() > bad.len(), "the whole file lies behind the cut: {parts:?}");
    let image = disk.path().parent().unwrap().join("image");
    fs_err::OpenOptions::new().write(true).open(&image).unwrap().set_len(cut).unwrap();
    let file = std::fs::File::open(&place).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert!(file.read_exact_at(&mut [0; 4096], bad[0].start).is_err(), "the disk still reads it");
    let expected = in_pages(&bad);
    for way in [&[][..], &["--full"]] {
        let said = vault.larder(&[&["verify", "--only", "vae", "--json"], way].concat()).must_be(3);
        assert_eq!(said.faults(), [Fault::of(Kept::Plain, "unreadable", expected.clone())], "{way:?}");
        let lost = expected.iter().map(|range| range.end - range.start).sum::<u64>();
        let told = format!("the disk cannot read {lost} bytes of it, from byte {} on", expected[0].start);
        assert!(said.out.contains(&told) && said.out.contains("Input/output error"), "{}", said.out);
        assert_eq!(said.json()["bytes_read"].as_u64(), Some(Kept::Plain.len()), "the reading goes on: {way:?}");
    }
    let chunks: BTreeSet<u64> =
        expected.iter().flat_map(|range| range.start / CHUNK..=(range.end - 1) / CHUNK).collect();
    let shown = vault.larder(&["repair", "--check", "--only", "vae"]).must_be(3);
    assert!(shown.out.contains(&format!("{} of 3 chunks", chunks.len())), "{}", shown.out);
}

/// Damage is told in pages.
fn in_pages(bad: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut pages: Vec<Range<u64>> = Vec::new();
    for range in bad {
        let range = range.start / 4096 * 4096..range.end.next_multiple_of(4096).min(Kept::Plain.len());
        match pages.last_mut() {
            Some(before) if before.end >= range.start => before.end = range.end,
            _ => pages.push(range),
        }
    }
    pages
}

#[test]
fn a_disk_that_is_read_only_or_full_is_told_and_nothing_is_touched() {
    let Some((disk, vault)) = on_a_disk() else { return };
    let place = vault.place(Kept::Image);
    flip(&place, 8 * CHUNK);
    let rotten = fs_err::read(&place).unwrap();
    disk.remount("ro");
    vault.larder(&["verify"]).must_be(3);
    let said = vault.larder(&["repair", "--yes"]).must_be(4);
    assert!(said.out.contains("read-only"), "{said:?}");
    assert!(fs_err::read(&place).unwrap() == rotten);
    disk.remount("rw");
    let filler = disk.fill(0);
    let said = vault.larder(&["repair", "--yes"]);
    assert!(matches!(said.code, Some(1)), "{said:?}");
    assert!(fs_err::read(&place).unwrap() == rotten, "what cannot be kept is not overwritten");
    remove(&filler);
    vault.larder(&["repair", "--yes"]).must_be(0);
    vault.everything_is_right();
}

#[test]
fn facts_that_are_gone_or_broken_cost_a_reading_and_nothing_else() {
    let vault = Vault::filled();
    vault.larder(&["verify"]).must_be(0);
    let break_it = |from: usize| {
        let mut bytes = fs_err::read(vault.facts()).unwrap();
        bytes[from..].fill(0x5a);
        fs_err::OpenOptions::new().write(true).open(vault.facts()).unwrap().file().write_all_at(&bytes, 0).unwrap();
    };
    let all = vault.larder(&["verify", "--json"]).must_be(0).json()["bytes_read"].clone();
    for from in [0, 4096, 3 * 4096 + 100] {
        break_it(from);
        let said = vault.larder(&["verify", "--max-age", "7d", "--json"]).must_be(0);
        assert_eq!(said.json()["bytes_read"], all, "broken from {from} on");
        let said = vault.larder(&["verify", "--max-age", "7d", "--json"]).must_be(0);
        assert_eq!(said.json()["bytes_read"], 0, "broken from {from} on: it is remembered again");
        assert!(vault.facts().with_extension("sqlite.broken").exists());
    }
    remove(&vault.facts());
    let said = vault.larder(&["verify", "--max-age", "7d", "--json"]).must_be(0);
    assert_eq!(said.json()["bytes_read"], all);
    flip(&vault.place(Kept::Hub), 9);
    assert_eq!(vault.faults(&[]), [Fault::of(Kept::Hub, "rotted", std::iter::once(0..CHUNK).collect())]);
}

#[test]
fn facts_that_somebody_else_writes_hinder_nobody() {
    let vault = Vault::filled();
    vault.larder(&["verify"]).must_be(0);
    flip(&vault.place(Kept::Plain), 9);
    let other = rusqlite::Connection::open(vault.facts()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let said = vault.larder(&["verify", "--json", "--only", "vae"]).must_be(3);
    assert_eq!(said.faults().len(), 1);
    assert!(said.err.contains("not remembered yet"), "{}", said.err);
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    let together: Vec<_> = (0..3).map(|_| vault.command(&["verify", "--json"]).spawn().unwrap()).collect();
    for child in together {
        let said = vault::Said::of(&child.wait_with_output().unwrap()).must_be(3);
        assert_eq!(said.faults().len(), 1, "{said:?}");
    }
    let facts = rusqlite::Connection::open(vault.facts()).unwrap();
    let sound: String = facts.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let rows: i64 =
        facts.query_row("SELECT count(*) FROM history WHERE event = 'rotted'", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 3, "each of the three is in the history");
}

#[test]
fn a_kill_at_any_moment_of_a_verification_costs_at_most_a_reading() {
    let vault = Vault::filled();
    flip(&vault.place(Kept::Image), 8 * CHUNK + 1);
    let mut kills = 0;
    for round in 0..24_u64 {
        let way: &[&str] = if round % 2 == 0 { &["--full"] } else { &[] };
        let mut child = vault.command(&[&["verify", "--max-rate", "100MB/s"], way].concat()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(17 * (round + 1)));
        child.kill().unwrap();
        kills += u32::from(child.wait().unwrap().code().is_none());
        let facts = rusqlite::Connection::open(vault.facts()).unwrap();
        let sound: String = facts.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok", "round {round}");
    }
    assert!(kills > 4, "{kills}");
    let faults = vault.faults(&[]);
    assert_eq!((faults.len(), faults[0].artifact.as_str()), (1, "guard:1b"));
    vault.larder(&["repair", "--yes"]).must_be(0);
    vault.everything_is_right();
    assert_eq!(vault.faults(&["--full"]), []);
}
