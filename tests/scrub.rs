//! Verification of contents: what it finds and where, and what it remembers.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use larder::facts::Facts;
use larder::fsio::{WriteOptions, write_atomic};

#[path = "support/tool.rs"]
mod tool;
#[expect(dead_code, reason = "each test uses a part of the vault")]
#[path = "support/vault.rs"]
mod vault;

use vault::{CHUNK, FILES, Fault, Kept, Vault, chunk_of, flip, noise, rot};

fn number(said: &vault::Said, key: &str) -> u64 {
    said.json()[key].as_u64().unwrap()
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
        assert_eq!((quick.len(), quick[0].kind.as_str()), (1, "rotted"), "what was read is remembered");
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
fn zeros_in_a_content_that_was_never_right_are_told_with_their_place() {
    let vault = Vault::filled();
    let place = vault.place(Kept::Plain);
    let mut half = Kept::Plain.bytes().to_vec();
    half[(1 << 20) + 4096..(3 << 20) + 4096].fill(0);
    // A machine that has no memory of it, as after a download by another program.
    larder::fsio::remove_file(&vault.facts()).unwrap();
    write_atomic(&place, &half, &WriteOptions::default()).unwrap();
    let zeros = (1 << 20) + 4096..(3 << 20) + 4096;
    let expected = [Fault::of(Kept::Plain, "zero-filled", std::iter::once(zeros).collect())];
    // Its twin is not read: it would bring the chunk digests.
    let said = vault.larder(&["verify", "--only", "vae", "--json"]).must_be(3);
    assert_eq!(said.faults(), expected);
    assert!(said.out.contains("its content is wrong, and it holds zeros from byte 1052672 to 3149823"), "{}", said.out);
    // Once the right chunks are known, those are compared.
    vault.larder(&["verify", "--only", "twin"]).must_be(0);
    let chunk = std::iter::once(0..CHUNK).collect();
    assert_eq!(vault.faults(&["--only", "vae"]), [Fault::of(Kept::Plain, "zero-filled", chunk)]);
    write_atomic(&place, &Kept::Plain.bytes(), &WriteOptions::default()).unwrap();
    assert_eq!(vault.faults(&[]), []);
}

#[test]
fn a_flipped_bit_among_zeros_that_belong_there_is_rot() {
    let vault = Vault::filled();
    let mut content = noise(9 << 20, 5);
    content[CHUNK as usize..2 * CHUNK as usize].fill(0);
    let place = of_our_own(&vault, "sparse", &content);
    vault.larder(&["verify", "--only", "sparse"]).must_be(0);
    rot(&place, CHUNK + 5000, |bytes| bytes[0] = 4, 1);
    let said = vault.larder(&["verify", "--only", "sparse", "--json"]).must_be(3);
    assert_eq!((said.faults()[0].kind.as_str(), said.faults().len()), ("rotted", 1), "{}", said.out);
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

/// Adds an artifact of one file that nobody has a digest of; returns where it lies.
fn of_our_own(vault: &Vault, name: &str, content: &[u8]) -> PathBuf {
    let manifest = vault.root().join("lab/manifests/models.toml");
    let place = vault.machine.join(format!("plain/lora/{name}.bin"));
    write_atomic(&place, content, &WriteOptions::default()).unwrap();
    let entry = format!(
        "\n[[artifact]]\nname = {name:?}\nsource = \"local\"\nstore = \"plain\"\n  [[artifact.file]]\n  path = \"lora/{name}.bin\"\n"
    );
    let text = fs_err::read_to_string(&manifest).unwrap() + &entry;
    write_atomic(&manifest, text.as_bytes(), &WriteOptions::default()).unwrap();
    vault.larder(&["lock", "--update", name]).must_be(0);
    place
}

#[test]
fn files_without_a_digest_are_trusted_as_first_seen_and_it_is_said_every_time() {
    let vault = Vault::filled();
    let own = of_our_own(&vault, "own", &noise(9 << 20, 5));
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
fn files_that_only_a_pattern_knows_are_read_like_all_others() {
    let vault = Vault::filled();
    let manifest = vault.root().join("lab/manifests/models.toml");
    let entry = "\n[[artifact]]\nname = \"loras\"\nsource = \"local\"\nstore = \"plain\"\n\
        match = { glob = \"loras/style*.bin\", count = 2 }\n";
    let text = fs_err::read_to_string(&manifest).unwrap() + entry;
    write_atomic(&manifest, text.as_bytes(), &WriteOptions::default()).unwrap();
    let place = |name: &str| vault.machine.join(format!("plain/loras/{name}.bin"));
    for (name, seed) in [("style-1", 5), ("style-2", 6)] {
        write_atomic(&place(name), &noise(9 << 20, seed), &WriteOptions::default()).unwrap();
    }
    let only = ["--only", "loras"];
    let status = || vault.larder(&["status", "--only", "loras"]).out;
    assert!(status().contains("not read yet"), "{}", status());
    let said = vault.larder(&["verify", "--only", "loras"]).must_be(0);
    assert!(said.out.contains("2 trusted as first seen"), "{}", said.out);
    assert!(!status().contains("not read yet"), "{}", status());
    // By now chunk digests are known.
    let said = vault.larder(&["verify", "--only", "loras", "--json"]).must_be(0);
    assert_eq!((number(&said, "first_use"), number(&said, "bytes_read")), (2, 18 << 20));
    flip(&place("style-2"), 8 * (5 << 20));
    for round in 0..2 {
        let said = vault.larder(&[&["verify", "--json"], &only[..]].concat()).must_be(3);
        let faults = said.faults();
        assert_eq!(faults.len(), 1, "{round} {}", said.out);
        let (path, kind) = (faults[0].path.as_str(), faults[0].kind.as_str());
        assert_eq!((path, kind), ("loras/style-2.bin", "rotted"), "{round}");
        assert_eq!(faults[0].ranges, std::iter::once(CHUNK..2 * CHUNK).collect::<Vec<_>>(), "{round}");
    }
    assert_eq!(vault.faults(&["--quick", "--only", "loras"]).len(), 1, "what was read is remembered");
    let said = vault.larder(&["repair", "--only", "loras", "--yes"]);
    assert!(said.out.contains("cannot be mended: loras/loras/style-2.bin"), "{}{}", said.out, said.err);
    let said = vault.larder(&["plan", "--only", "loras"]);
    assert!(said.out.contains("it has no upstream"), "{}", said.out);
    flip(&place("style-2"), 8 * (5 << 20));
    assert_eq!(vault.faults(&only), []);
}

#[test]
fn the_content_of_another_file_is_told_the_same_by_chunks_and_as_a_whole() {
    let vault = Vault::filled();
    vault.larder(&["verify"]).must_be(0);
    let manifest = vault.root().join("lab/manifests/models.toml");
    let text = fs_err::read_to_string(&manifest).unwrap();
    // Two files of the same length whose contents are both known.
    let other = noise(Kept::Plain.len() as usize, 99);
    let (old, new) = (Kept::Plain.sha256().to_string(), larder::digest::Sha256::of(&other).to_string());
    let (before, twin) = text.split_at(text.find("name = \"twin\"").unwrap());
    let mended = format!("{before}{}", twin.replacen(&old, &new, 1));
    write_atomic(&manifest, mended.as_bytes(), &WriteOptions::default()).unwrap();
    vault.larder(&["lock", "--update", "twin"]).must_be(0);
    write_atomic(&vault.place(Kept::Twin), &other, &WriteOptions::default()).unwrap();
    vault.larder(&["verify"]).must_be(0);
    write_atomic(&vault.place(Kept::Twin), &Kept::Plain.bytes(), &WriteOptions::default()).unwrap();
    write_atomic(&vault.place(Kept::Plain), &other, &WriteOptions::default()).unwrap();
    for way in [&[][..], &["--full"], &[]] {
        let said = vault.larder(&[&["verify", "--json"], way].concat()).must_be(3);
        let kinds: Vec<String> = said.faults().into_iter().map(|fault| fault.kind).collect();
        assert_eq!(kinds, ["upgraded", "upgraded"], "{way:?}: {}", said.out);
        assert!(said.out.contains("that of twin/twin/same.pth"), "{}", said.out);
    }
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
    let names =
        |said: &vault::Said| foreign.iter().filter(|place| said.out.contains(&place.display().to_string())).count();
    assert_eq!(names(&said), foreign.len(), "{}", said.out);
    let said = vault.larder(&["verify", "--quick"]).must_be(0);
    assert_eq!(names(&said), foreign.len(), "{}", said.out);
    let said = vault.larder(&["verify", "--only", "vae"]).must_be(0);
    let in_plain = foreign.iter().filter(|place| place.starts_with(vault.machine.join("plain"))).count();
    assert!(in_plain > 0 && in_plain < foreign.len());
    assert_eq!(names(&said), in_plain, "only the store concerned: {}", said.out);
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
    let Some(sqlite3) = tool::tool("sqlite3") else { return };
    let output = std::process::Command::new(sqlite3).arg(vault.facts()).arg(ask).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "vae|rotted");
}
