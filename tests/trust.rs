//! Files that no record has a digest of: what they had when they were first seen is what they must have, until somebody
//! says otherwise.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use larder::fsio::{WriteOptions, write_atomic};
use rstest::rstest;

#[expect(dead_code, reason = "each test uses a part of the vault")]
#[path = "support/vault.rs"]
mod vault;

use vault::{CHUNK, Vault, flip, noise};

const SMALL: usize = 300_000;
const LARGE: usize = 9 << 20;

fn put(place: &Path, content: &[u8]) {
    write_atomic(place, content, &WriteOptions::default()).unwrap();
}

/// A lab with one file of our own, that was read once; and where it lies.
fn with_own(len: usize) -> (Vault, PathBuf) {
    let vault = Vault::empty(None);
    let place = vault.machine.join("plain/lora/own.bin");
    put(&place, &noise(len, 5));
    let manifest = vault.root().join("lab/manifests/models.toml");
    let entry = "\n[[artifact]]\nname = \"own\"\nsource = \"local\"\nstore = \"plain\"\n  [[artifact.file]]\n  path = \"lora/own.bin\"\n";
    put(&manifest, (fs_err::read_to_string(&manifest).unwrap() + entry).as_bytes());
    vault.larder(&["lock", "--update", "own"]).must_be(0);
    let said = vault.larder(&["verify", "--only", "own"]).must_be(0);
    assert!(
        said.out.contains("1 file trusted as first seen") && said.out.contains("own/lora/own.bin, since "),
        "{said:?}"
    );
    (vault, place)
}

/// What kind of fault `way` finds with the file, if any.
#[track_caller]
fn kind(vault: &Vault, way: &[&str]) -> Option<String> {
    let faults = vault.faults(&[&["--only", "own"], way].concat());
    assert!(faults.len() <= 1, "{faults:?}");
    faults.into_iter().next().map(|fault| fault.kind)
}

#[rstest]
#[case::small(SMALL, &[])]
#[case::small_whole(SMALL, &["--full"])]
#[case::large(LARGE, &[])]
#[case::large_whole(LARGE, &["--full"])]
fn rot_is_told_by_every_run_until_the_content_is_what_it_was(#[case] len: usize, #[case] way: &[&str]) {
    let (vault, place) = with_own(len);
    let bit = 8 * (len as u64 - 9);
    flip(&place, bit);
    for run in 0..3 {
        assert_eq!(kind(&vault, way).as_deref(), Some("rotted"), "run {run}");
        assert_eq!(kind(&vault, &["--quick"]).as_deref(), Some("rotted"), "run {run}");
        assert_eq!(kind(&vault, &["--max-age", "7d"]).as_deref(), Some("rotted"), "run {run}");
        let report = vault.larder(&["report", "--only", "own"]).must_be(3);
        assert!(report.out.contains("own/lora/own.bin: it rotted"), "{}", report.out);
    }
    // A digest that another command takes of it changes nothing either.
    vault.larder(&["export", "--format", "sha256sums", "--only", "own"]);
    assert_eq!(kind(&vault, &["--quick"]).as_deref(), Some("rotted"));
    flip(&place, bit);
    assert_eq!(kind(&vault, way), None);
    assert_eq!(kind(&vault, &["--quick"]), None);
    vault.larder(&["report", "--only", "own"]).must_be(0);
}

#[rstest]
#[case::small(SMALL, &[])]
#[case::small_whole(SMALL, &["--full"])]
#[case::large(LARGE, &[])]
#[case::large_whole(LARGE, &["--full"])]
fn another_content_is_told_until_it_is_accepted_and_is_trusted_from_then_on(#[case] len: usize, #[case] way: &[&str]) {
    let (vault, place) = with_own(len);
    put(&place, &noise(len, 6));
    for run in 0..2 {
        assert_eq!(kind(&vault, way).as_deref(), Some("replaced"), "run {run}");
        assert_eq!(kind(&vault, &["--quick"]).as_deref(), Some("replaced"), "run {run}");
    }
    put(&place, &noise(len, 5)[..len - 1]);
    assert_eq!(kind(&vault, &["--quick"]).as_deref(), Some("truncated"), "its length tells without reading");
    for run in 0..2 {
        assert_eq!(kind(&vault, way).as_deref(), Some("truncated"), "run {run}");
    }
    put(&place, &noise(len + 1, 5));
    assert_eq!(kind(&vault, way).as_deref(), Some("replaced"));
    let said = vault.larder(&["verify", "--only", "own"]).must_be(3);
    assert!(said.out.contains("if that is meant: larder verify --accept own"), "{}", said.out);
    let said = vault.larder(&["verify", "--accept", "own"]).must_be(0);
    assert!(
        said.out.contains("accepted: own/lora/own.bin: sha256 ") && said.out.contains(" instead of "),
        "{}",
        said.out
    );
    assert_eq!(kind(&vault, way), None);
    assert_eq!(kind(&vault, &["--quick"]), None);
    flip(&place, 77);
    assert_eq!(kind(&vault, way).as_deref(), Some("rotted"));
    let facts = larder::facts::Facts::open(&vault.facts()).unwrap();
    let events: Vec<String> = facts.history(&place).unwrap().into_iter().map(|one| one.event).collect();
    assert!(events.contains(&"accepted".to_owned()), "{events:?}");
}

#[test]
fn a_file_under_a_new_time_of_change_is_trusted_as_before() {
    let (vault, place) = with_own(SMALL);
    let since =
        |vault: &Vault| vault.larder(&["verify", "--only", "own", "--json"]).must_be(0).json()["trusted"].clone();
    let facts = rusqlite::Connection::open(vault.facts()).unwrap();
    facts.execute("UPDATE trusted SET at = at - 1000000", []).unwrap();
    let before = since(&vault);
    put(&place, &noise(SMALL, 5));
    assert_eq!(since(&vault), before);
    flip(&place, 77);
    assert_eq!(kind(&vault, &[]).as_deref(), Some("rotted"), "nobody has written it since that reading");
}

#[test]
fn what_was_read_not_long_ago_is_named_too_and_a_rotten_range_has_its_address() {
    let (vault, place) = with_own(LARGE);
    let said = vault.larder(&["verify", "--only", "own", "--max-age", "7d", "--json"]).must_be(0);
    assert_eq!(
        (said.json()["bytes_read"].as_u64(), said.json()["trusted"][0]["path"].as_str()),
        (Some(0), Some("lora/own.bin"))
    );
    flip(&place, 8 * CHUNK);
    for way in [&[][..], &["--full"], &["--quick"]] {
        let faults = vault.faults(&[&["--only", "own"], way].concat());
        assert_eq!(faults[0].ranges, std::iter::once(CHUNK..2 * CHUNK).collect::<Vec<_>>(), "{way:?}");
    }
}

#[test]
fn files_that_only_a_pattern_knows_are_trusted_told_and_accepted_like_all_others() {
    let vault = Vault::empty(None);
    let place = |name: &str| vault.machine.join(format!("plain/loras/{name}.bin"));
    let manifest = vault.root().join("lab/manifests/models.toml");
    let entry = "\n[[artifact]]\nname = \"loras\"\nsource = \"local\"\nstore = \"plain\"\n\
        match = { glob = \"loras/style*.bin\", count = 2 }\n";
    put(&manifest, (fs_err::read_to_string(&manifest).unwrap() + entry).as_bytes());
    for (name, seed) in [("style-1", 5), ("style-2", 6)] {
        put(&place(name), &noise(SMALL, seed));
    }
    let said = vault.larder(&["verify", "--only", "loras"]).must_be(0);
    assert!(said.out.contains("loras/loras/style-2.bin, since "), "{}", said.out);
    let said = vault.larder(&["verify", "--only", "loras", "--quick"]).must_be(0);
    assert!(said.out.contains("loras/loras/style-1.bin, since "), "{}", said.out);
    // Another content is told by each run, also by one that reads nothing.
    put(&place("style-2"), &noise(SMALL, 7));
    for way in [&[][..], &["--quick"], &["--full"], &["--max-age", "7d"]] {
        let faults = vault.faults(&[&["--only", "loras"], way].concat());
        assert_eq!(faults.len(), 1, "{way:?} {faults:?}");
        assert_eq!((faults[0].path.as_str(), faults[0].kind.as_str()), ("loras/style-2.bin", "replaced"), "{way:?}");
    }
    let said = vault.larder(&["verify", "--accept", "loras"]).must_be(0);
    assert!(said.out.contains("accepted: loras/loras/style-2.bin: sha256 "), "{}", said.out);
    assert_eq!(vault.faults(&["--only", "loras"]), []);
    put(&place("style-1"), &noise(SMALL - 1, 5));
    let faults = vault.faults(&["--only", "loras", "--quick"]);
    assert_eq!(faults.first().map(|fault| fault.kind.as_str()), Some("truncated"), "its length tells without reading");
}

#[test]
fn what_the_lock_has_a_digest_of_cannot_be_accepted() {
    let (vault, _) = with_own(SMALL);
    let said = vault.larder(&["verify", "--accept", "vae"]).must_be(2);
    assert!(
        said.err.contains("The lock has a digest of every file of vae")
            && said.err.contains("larder lock --update vae"),
        "{said:?}"
    );
    vault.larder(&["verify", "--accept", "own", "--quick"]).must_be(2);
    vault.larder(&["verify", "--accept", "nobody"]).must_be(2);
}

/// What an older larder left: tables of version 4, and rot that it told once and trusted afterwards.
#[test]
fn facts_of_an_older_larder_are_taken_over_with_what_was_trusted_first() {
    let (vault, place) = with_own(SMALL);
    flip(&place, 77);
    assert_eq!(kind(&vault, &["--full"]).as_deref(), Some("rotted"));
    let facts = rusqlite::Connection::open(vault.facts()).unwrap();
    facts
        .execute_batch(
            "DROP TABLE trusted; DROP TABLE damaged; DROP INDEX history_of_news;
             CREATE TABLE damaged (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
                 inode INTEGER NOT NULL, device INTEGER NOT NULL, content BLOB NOT NULL, ranges TEXT NOT NULL,
                 expected BLOB NOT NULL, actual BLOB NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
             ALTER TABLE run DROP COLUMN unread; ALTER TABLE run DROP COLUMN unread_bytes;
             ALTER TABLE run DROP COLUMN overdue; ALTER TABLE run DROP COLUMN overdue_bytes;
             INSERT INTO history (at, path, artifact, event, sha256, bytes, detail)
                 SELECT at, path, artifact, 'first-use', sha256, bytes, '' FROM history WHERE event = 'rotted';
             PRAGMA user_version = 4;",
        )
        .unwrap();
    drop(facts);
    let said = vault.larder(&["verify", "--quick", "--only", "own", "--json"]).must_be(3);
    assert_eq!(said.faults().len(), 1, "{said:?}");
    assert_eq!(kind(&vault, &["--full"]).as_deref(), Some("rotted"));
    let broken = vault.facts().with_extension("sqlite.broken");
    assert!(!broken.exists(), "nothing is thrown away");
    flip(&place, 77);
    assert_eq!(kind(&vault, &["--full"]), None);
    let runs: i64 = rusqlite::Connection::open(vault.facts())
        .unwrap()
        .query_row("SELECT count(*) FROM run", [], |row| row.get(0))
        .unwrap();
    assert!(runs > 3, "{runs}");
}
