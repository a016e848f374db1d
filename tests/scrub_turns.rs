//! Verification of contents over time: whose turn it is, how much is read, and where the next run goes on.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use larder::digest::ContentHasher;
use larder::fsio::{WriteOptions, write_atomic};
use rustix::process::{Pid, Signal, kill_process};

#[path = "support/skip.rs"]
mod skip;
#[expect(dead_code, reason = "each test uses a part of the vault")]
#[path = "support/vault.rs"]
mod vault;

use vault::{CHUNK, FILES, Fault, Kept, Vault, flip, noise};

/// Longer than what is read between two notes of how far a reading came.
const LONG: u64 = 3 << 29;

/// What was read since everything was made to look old.
const NEWEST: &str = "SELECT count(*) FROM measured WHERE at > unixepoch() - 500000";

fn number(said: &vault::Said, key: &str) -> u64 {
    said.json()[key].as_u64().unwrap()
}

/// Bytes of all content here, each file once.
fn all_bytes(vault: &Vault) -> u64 {
    number(&vault.larder(&["verify", "--full", "--json"]), "bytes_read")
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
fn what_was_read_years_ahead_does_not_wait_for_that_year() {
    let vault = Vault::filled();
    let facts = rusqlite::Connection::open(vault.facts()).unwrap();
    let ahead = "UPDATE measured SET at = unixepoch() + 300000000 WHERE size = (SELECT min(size) FROM measured)";
    assert!(facts.execute(ahead, []).unwrap() > 0);
    let said = vault.larder(&["verify", "--budget", "5MB", "--json"]).must_be(0);
    assert!(number(&said, "unread") > 0, "the budget is too small for everything");
    let wrong = "SELECT count(*) FROM measured WHERE at > unixepoch()";
    let left: i64 = facts.query_row(wrong, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "its turn came first");
}

#[test]
fn what_was_read_longest_ago_comes_first_in_whatever_way_it_is_read() {
    let vault = Vault::filled();
    vault.larder(&["verify"]).must_be(0);
    let facts = rusqlite::Connection::open(vault.facts()).unwrap();
    // Short files are hashed as a whole, long ones compared by chunks.
    let days = "UPDATE measured SET at = at - 86400 * CASE WHEN size > 1000000 THEN ?1 ELSE ?2 END";
    let read = "SELECT count(*) FROM measured WHERE at > unixepoch() - 3600 AND (size > 1000000) = ?1";
    for (long, short) in [(20, 10), (10, 20)] {
        facts.execute(days, [long, short]).unwrap();
        vault.larder(&["verify", "--budget", "5MB"]).must_be(0);
        let shorts: i64 = facts.query_row(read, [false], |row| row.get(0)).unwrap();
        assert_eq!(shorts > 0, short > long, "{long} and {short} days old");
        vault.larder(&["verify"]).must_be(0);
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
fn a_file_that_other_programs_check_by_md5_is_not_begun_anew_either() {
    let vault = Vault::filled();
    let mut hasher = ContentHasher::new().with_md5();
    hasher.update(&Kept::Plain.bytes());
    let md5 = hasher.finish().md5.unwrap();
    let manifest = vault.root().join("lab/manifests/models.toml");
    let text = fs_err::read_to_string(&manifest).unwrap();
    let (before, vae) = text.split_at(text.find("name = \"vae\"").unwrap());
    let with = format!("path = \"vae.pth\"\n  md5 = \"{md5}\"\n");
    write_atomic(
        &manifest,
        format!("{before}{}", vae.replacen("path = \"vae.pth\"\n", &with, 1)).as_bytes(),
        &WriteOptions::default(),
    )
    .unwrap();
    vault.larder(&["lock", "--update", "vae"]).must_be(0);
    let (mut read, mut runs) = (0, 0);
    loop {
        let said = vault.larder(&["verify", "--full", "--only", "vae", "--budget", "1MB", "--json"]).must_be(0);
        (read, runs) = (read + number(&said, "bytes_read"), runs + 1);
        if number(&said, "unread") == 0 {
            assert_eq!(number(&said, "proven"), 1);
            break;
        }
        assert!(runs < 10, "{said:?}");
    }
    assert!(runs > 1, "{runs}");
    assert_eq!(read, Kept::Plain.len(), "nothing is read twice");
    let facts = rusqlite::Connection::open(vault.facts()).unwrap();
    let measured: i64 =
        facts.query_row("SELECT count(*) FROM measured WHERE md5 = ?1", [md5.as_bytes()], |row| row.get(0)).unwrap();
    assert_eq!(measured, 1, "md5 went along through all runs");
    flip(&vault.place(Kept::Plain), 8 * CHUNK);
    assert_eq!(vault.faults(&["--full", "--only", "vae"])[0].kind, "rotted");
}

#[test]
fn times_of_change_in_the_future_and_before_1970_are_times_like_others() {
    let vault = Vault::filled();
    let file = fs_err::OpenOptions::new().write(true).open(vault.place(Kept::Plain)).unwrap();
    let year = Duration::from_secs(365 * 86_400);
    for time in [SystemTime::now() + 80 * year, SystemTime::UNIX_EPOCH - year] {
        file.file().set_modified(time).unwrap();
        assert_eq!(vault.faults(&[]), [], "{time:?}");
        assert_eq!(number(&vault.larder(&["verify", "--max-age", "7d", "--json"]), "bytes_read"), 0, "{time:?}");
        flip(&vault.place(Kept::Plain), 9);
        assert_eq!(vault.faults(&[]), [Fault::of(Kept::Plain, "rotted", std::iter::once(0..CHUNK).collect())]);
        vault.larder(&["repair", "--yes"]).must_be(0);
        vault.everything_is_right();
        assert_eq!(vault.faults(&[]), [], "{time:?}");
    }
}

/// What the kernel may read ahead on its own, in pages: once, behind what was in the cache already.
fn read_ahead(file: &std::fs::File) -> u64 {
    let device = file.metadata().unwrap().dev();
    let name = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let setting = fs_err::read_to_string(format!("/sys/class/bdi/{name}/read_ahead_kb"));
    setting.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(128) / 4
}

#[test]
fn what_others_use_stays_in_the_page_cache_and_nothing_joins_it() {
    let vault = Vault::filled();
    let files = FILES.map(|file| std::fs::File::open(vault.place(file)).unwrap());
    let pages = |file: &std::fs::File| larder_metal::cached_pages(file, 0, 1 << 40);
    let used = 1 << 20;
    for file in &files {
        file.sync_all().unwrap();
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        file.read_exact_at(&mut vec![0; used], 0).unwrap();
    }
    if pages(&files[0]).is_none() {
        return skip::skipped("this kernel does not tell what its page cache holds (Linux 6.5 does)");
    }
    let before = files.each_ref().map(|file| pages(file).unwrap());
    for way in [&[][..], &["--full"]] {
        vault.larder(&[&["verify"], way].concat()).must_be(0);
        for ((file, before), kept) in files.iter().zip(before).zip(FILES) {
            let after = pages(file).unwrap();
            assert!(before >= used as u64 / 4096 && after >= before, "{kept:?} {way:?}: {before} pages, then {after}");
            assert!(after <= before + read_ahead(file), "{kept:?} {way:?}: {before} pages, then {after}");
        }
    }
}

#[test]
fn idle_is_last_in_line_for_the_processor_and_for_the_disk() {
    if !Path::new("/usr/bin/ionice").exists() {
        return skip::skipped("ionice is not installed (apt-get install util-linux)");
    }
    let vault = Vault::filled();
    let child = vault.command(&["verify", "--full", "--idle", "--max-rate", "1MB/s"]).spawn().unwrap();
    let (tasks, io) = (format!("/proc/{}/task", child.id()), format!("/proc/{}/io", child.id()));
    // Everything else that it reads is smaller than this.
    until(|| read_so_far(&fs_err::read_to_string(&io).unwrap()) > 3 << 20);
    let threads: Vec<String> =
        fs_err::read_dir(&tasks).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut judged = 0;
    for thread in &threads {
        let Ok(stat) = fs_err::read_to_string(format!("{tasks}/{thread}/stat")) else { continue };
        // Behind the name, which may have blanks: nice is the 19th field of all, the 17th from there.
        let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().to_owned();
        let class = std::process::Command::new("/usr/bin/ionice").args(["-p", thread]).output().unwrap();
        if !class.status.success() {
            // It has ended meanwhile.
            continue;
        }
        let class = String::from_utf8(class.stdout).unwrap();
        judged += 1;
        assert_eq!((nice.as_str(), class.trim()), ("19", "idle"), "thread {thread} of {threads:?}");
    }
    assert!(judged >= 2, "{judged} of {threads:?}");
    let told = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    vault::Said::of(&child.wait_with_output().unwrap()).must_be(130);
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
}

/// Bytes that a process has read, as `/proc/PID/io` tells them.
fn read_so_far(io: &str) -> u64 {
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
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
        let io = format!("/proc/{}/io", child.id());
        until(|| read_so_far(&fs_err::read_to_string(&io).unwrap()) > all / 2);
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

/// Waits for something that another process does.
fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::yield_now();
    }
}

#[test]
fn after_a_kill_it_goes_on_inside_the_file_and_what_it_finds_is_the_same() {
    let vault = Vault::filled();
    vault.larder(&["verify", "--full"]).must_be(0);
    let own = vault.machine.join("plain/lora/long.bin");
    write_atomic(&own, &noise(1 << 20, 5), &WriteOptions::default()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&own).unwrap();
    file.write_all_at(&noise(CHUNK as usize, 6), LONG - CHUNK).unwrap();
    drop(file);
    let sha256 = larder::fsio::hash_file(&own, ContentHasher::new()).unwrap().0.sha256.unwrap();
    let manifest = vault.root().join("lab/manifests/models.toml");
    let entry = format!(
        "\n[[artifact]]\nname = \"long\"\nsource = \"local\"\nstore = \"plain\"\n  [[artifact.file]]\n  path = \"lora/long.bin\"\n  size = {LONG}\n  sha256 = \"{sha256}\"\n"
    );
    let text = fs_err::read_to_string(&manifest).unwrap() + &entry;
    write_atomic(&manifest, text.as_bytes(), &WriteOptions::default()).unwrap();
    vault.larder(&["lock", "--update", "long"]).must_be(0);
    vault.larder(&["verify", "--only", "long", "--full"]).must_be(0);
    for way in [&["--full"][..], &[]] {
        let slowly = ["verify", "--only", "long", "--json", "--max-rate", "500MB/s"];
        let mut child = vault.command(&[&slowly, way].concat()).spawn().unwrap();
        let facts = rusqlite::Connection::open(vault.facts()).unwrap();
        let kept = "SELECT coalesce(max(done), 0) FROM progress";
        let done = || facts.query_row(kept, [], |row| row.get::<_, i64>(0)).unwrap();
        until(|| done() > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        flip(&own, 8 * (LONG - 9));
        let least = done().unsigned_abs();
        let said = vault.larder(&[&["verify", "--only", "long", "--json"], way].concat()).must_be(3);
        // A whole digest that is wrong is located by chunks, of which all are read.
        let located = if way.is_empty() { 0 } else { LONG };
        assert!(number(&said, "bytes_read") <= located + LONG - least, "{} and {least}", number(&said, "bytes_read"));
        assert_eq!(said.faults()[0].kind, "rotted", "{way:?}");
        flip(&own, 8 * (LONG - 9));
        vault.larder(&["verify", "--only", "long", "--full"]).must_be(0);
    }
}

#[test]
fn facts_that_are_deleted_while_it_runs_cost_a_reading_and_nothing_else() {
    let vault = Vault::filled();
    let slowly = ["verify", "--full", "--json", "--max-rate", "20MB/s"];
    let facts = rusqlite::Connection::open(vault.facts()).unwrap();
    facts.execute("UPDATE measured SET at = at - 1000000", []).unwrap();
    let child = vault.command(&slowly).spawn().unwrap();
    until(|| facts.query_row(NEWEST, [], |row| row.get::<_, i64>(0)).unwrap() > 0);
    drop(facts);
    for ending in ["sqlite", "sqlite-wal", "sqlite-shm"] {
        let _ = larder::fsio::remove_file(&vault.facts().with_extension(ending));
    }
    let said = vault::Said::of(&child.wait_with_output().unwrap()).must_be(0);
    let all = number(&said, "bytes_read");
    let again = vault.larder(&["verify", "--max-age", "7d", "--json"]).must_be(0);
    assert_eq!(number(&again, "bytes_read"), all, "nothing is known any more, and everything is read");
    assert_eq!(number(&vault.larder(&["verify", "--max-age", "7d", "--json"]).must_be(0), "bytes_read"), 0);
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
fn a_machine_that_is_needed_meanwhile_gets_its_peace_and_the_next_run_goes_on() {
    let vault = Vault::filled();
    // Free when the run begins, needed from then on.
    let marker = vault.root().join("asked");
    let probe = format!("test -e '{0}' || {{ touch '{0}'; exit 1; }}", marker.display());
    let said = vault.larder(&["verify", "--full", "--max-rate", "100KB/s", "--unless-busy", &probe, "--json"]);
    let said = said.must_be(130);
    assert!(said.err.contains("the machine is needed"), "{}", said.err);
    assert_eq!(said.json()["interrupted"], true);
    let read = number(&said, "bytes_read");
    let rest = number(&vault.larder(&["verify", "--full", "--json"]).must_be(0), "bytes_read");
    let all = number(&vault.larder(&["verify", "--full", "--json"]).must_be(0), "bytes_read");
    assert!(rest < all && read + rest >= all, "{read} {rest} {all}");
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
