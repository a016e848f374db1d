//! The store that `larder serve` puts behind its hub: Python's real clients and larder's own read files from it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use larder::artifact::Remote;
use larder::digest::{Digests, Sha256};
use larder::serve::{Guests, Index, Served, Tls};
use larder::sources::{ByteRange, SourceSettings, Sources};
use reqwest::StatusCode;
use serde_json::Value;

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/cas.rs"]
mod cas;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "contract/source.rs"]
mod contract;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/hub.rs"]
mod hub;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/machine.rs"]
mod machine;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/mirror.rs"]
mod mirror;
#[path = "support/parts.rs"]
mod parts;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/python.rs"]
mod python;
#[path = "support/xet_by_hand.rs"]
mod xet_by_hand;

use cas::Cas;
use hub::{Hub, Xet};
use machine::{Machine, Serving, contents};
use mirror::{COMMIT, Mirror, put, served};
use python::{CLIENTS, client, output};
use xet_by_hand::{get, get_aside, link, pass, put_together, question, sent_bytes};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What a chunk of the server holds, and a term.
const CHUNK: usize = 64 * KIB;
const TERM: usize = 16 * MIB;
const INVENTORY: &str = "[stores]\nhuggingface = { layout = \"hf-cache\", path = \"~/hub\" }\n";
const LAB: &str = "[[artifact]]\nname = \"lab\"\nsource = \"hf:acme/lab\"\nstore = \"huggingface\"\n";
const SECRET: &str =
    "[[artifact]]\nname = \"secret\"\nsource = \"hf:acme/secret\"\nstore = \"huggingface\"\ngated = true\n";

/// Bytes without a pattern that a wrong offset could hide in.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A machine that was provisioned from a hub, and what that hub calls its contents in Xet.
struct World {
    machine: Machine,
    hub: Hub,
    /// The hub's commit.
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// By path.
    names: HashMap<String, String>,
}

impl World {
    /// `acme/lab` with these files by LFS, named as the library itself names them, and one that lies in git.
    fn with(files: &[(&str, Vec<u8>)]) -> Self {
        Self::set_up(files, LAB, INVENTORY)
    }

    fn set_up(files: &[(&str, Vec<u8>)], manifest: &str, inventory: &str) -> Self {
        let (hub, cas) = (Hub::start(), Cas::start(None));
        let contents: Vec<&[u8]> = files.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let names = cas.upload(&contents);
        let hashes = contents.iter().map(|bytes| hub::sha256(bytes)).zip(names.iter().cloned()).collect();
        hub.keep_in_xet(Xet { address: cas.address.clone(), hashes, pass: cas.passes() });
        let small: (&str, &[u8], bool) = ("config.json", b"{\"model_type\": \"tiny\"}", false);
        let listed: Vec<_> = files.iter().map(|(path, bytes)| (*path, bytes.as_slice(), true)).chain([small]).collect();
        let commit = hub.commit("acme/lab", &listed);
        hub.commit("acme/secret", &listed);
        let machine = provisioned(&hub.origin, manifest, inventory);
        Self {
            machine,
            hub,
            commit,
            files: listed.iter().map(|(path, bytes, _)| ((*path).to_owned(), bytes.to_vec())).collect(),
            names: files.iter().map(|(path, _)| (*path).to_owned()).zip(names).collect(),
        }
    }

    /// What a client at home in `home` has of it.
    fn snapshot(&self, home: &Path) -> BTreeMap<String, Vec<u8>> {
        contents(&home.join("hub/models--acme--lab/snapshots").join(&self.commit))
    }

    /// Requests for this file's content: in Xet, and plain.
    fn asked_for(&self, path: &str, log: &[String]) -> (usize, usize) {
        let xorb = self.names.get(path).map_or("none".to_owned(), |name| format!("GET /api/xet/xorbs/{name}"));
        let count = |matches: &dyn Fn(&str) -> bool| log.iter().filter(|line| matches(line)).count();
        let plain = format!("/{path}");
        (
            count(&|line| line == xorb),
            count(&|line| line.starts_with("GET /acme/lab/resolve/") && line.ends_with(&plain)),
        )
    }
}

/// A machine that larder provisioned from `endpoint`, over plain http.
fn provisioned(endpoint: &str, manifest: &str, inventory: &str) -> Machine {
    let machine = Machine::new(inventory, manifest);
    let hub = [("HF_ENDPOINT", endpoint), ("HF_HUB_DISABLE_XET", "1")];
    machine.larder_with(&hub, &["lock"]).must_be(0);
    machine.larder_with(&hub, &["apply", "--yes"]).must_be(0);
    machine
}

/// `hf download acme/lab` by one of the clients, from `endpoint`.
fn download(hf: &Path, home: &Path, endpoint: &str) -> Command {
    let mut command = client(hf, home);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", endpoint).args(["download", "acme/lab"]);
    command
}

/// Every length at which something could be off by one; one file has several terms.
fn every_size() -> Vec<(&'static str, Vec<u8>)> {
    let sizes = [("one.bin", 1), ("chunk.bin", CHUNK), ("over.bin", CHUNK + 1), ("large.bin", 40 * MIB + 5)];
    sizes.iter().zip(1..).map(|((path, len), seed)| (*path, noise(*len, seed))).collect()
}

/// As people have them; with the older question; with a large file asked about in pieces.
const MANNERS: [&[(&str, &str)]; 3] = [
    &[],
    &[("HF_XET_CLIENT_RECONSTRUCTION_API_VERSION", "1")],
    &[
        ("HF_XET_RECONSTRUCTION_MIN_RECONSTRUCTION_FETCH_SIZE", "8mb"),
        ("HF_XET_RECONSTRUCTION_MAX_RECONSTRUCTION_FETCH_SIZE", "8mb"),
    ],
];

#[test]
fn the_real_clients_take_files_of_every_size_in_xet_and_get_them_right() {
    let world = World::with(&every_size());
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let serving = world.machine.serve();
        for manner in MANNERS {
            let before = sent_bytes(&serving);
            serving.requests();
            let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            output(download(&hf, home.path(), &serving.url()).envs(manner.iter().copied()));
            assert!(world.snapshot(home.path()) == world.files, "{name} {manner:?}");
            let log = serving.requests();
            for path in world.names.keys() {
                let (xorbs, plain) = world.asked_for(path, &log);
                let least = if path == "large.bin" { 3 } else { 1 };
                assert!(xorbs >= least && plain == 0, "{name} {manner:?} {path}: {log:?}");
            }
            assert_eq!(world.asked_for("config.json", &log), (0, 1), "{name}: what lies in git comes plainly");
            let question = if manner.iter().any(|(_, value)| *value == "1") { "/v1/" } else { "/v2/" };
            let about = format!("GET /api/xet{question}reconstructions/{}", world.names["large.bin"]);
            let questions = log.iter().filter(|line| **line == about).count();
            assert!(questions >= if manner.len() == 2 { 3 } else { 1 }, "{name} {manner:?}: {log:?}");
            let length: u64 = world.files.values().map(|bytes| bytes.len() as u64).sum();
            // A question that begins or ends within a chunk is answered with the whole of it.
            let most = length + length / 1000 + ((questions - 1) * CHUNK) as u64;
            let sent = sent_bytes(&serving) - before;
            assert!((length..most).contains(&sent), "{name} {manner:?}: {sent} for {length}");
        }
    }
}

/// The name of a content whose name nobody told would be a wrong one in the client's cache.
#[test]
fn what_has_no_name_in_xet_and_what_is_empty_comes_plainly() {
    let (named, unnamed) = (noise(100_000, 7), noise(100_000, 8));
    let hub = Hub::start();
    let hashes = [(named.as_slice(), "1"), (b"", "2")].map(|(bytes, digit)| (hub::sha256(bytes), digit.repeat(64)));
    hub.keep_in_xet(Xet {
        address: String::new(),
        hashes: hashes.into(),
        pass: Box::new(|| unreachable!("nobody asks it")),
    });
    let files = [("named.bin", &named[..], true), ("unnamed.bin", &unnamed[..], true), ("empty.bin", b"", true)];
    let commit = hub.commit("acme/lab", &files);
    let machine = provisioned(&hub.origin, LAB, INVENTORY);
    let serving = machine.serve();
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        output(&mut download(&hf, home.path(), &serving.url()));
        let found = contents(&home.path().join("hub/models--acme--lab/snapshots").join(&commit));
        let log = serving.requests();
        for (path, bytes, _) in files {
            assert!(found[path] == bytes, "{name} {path}");
            let plain = log.iter().any(|line| line.starts_with("GET ") && line.ends_with(&format!("/{path}")));
            // The older client makes an empty file without asking for its content.
            assert!(path == "empty.bin" || plain == (path == "unnamed.bin"), "{name} {path}: {log:?}");
        }
        let in_xet: Vec<&String> = log.iter().filter(|line| line.contains("/api/xet/")).collect();
        assert!(!in_xet.is_empty() && in_xet.iter().all(|line| line.ends_with(&"1".repeat(64))), "{name}: {log:?}");
    }
    let tree = get(&format!("{}/api/models/acme/lab/tree/main", serving.url()), &[]).json();
    let told: Vec<(&str, &Value)> =
        tree.as_array().unwrap().iter().map(|entry| (entry["path"].as_str().unwrap(), &entry["xetHash"])).collect();
    let expected = Value::from("1".repeat(64));
    assert_eq!(told, [("empty.bin", &Value::Null), ("named.bin", &expected), ("unnamed.bin", &Value::Null)]);
}

#[test]
fn the_real_clients_need_the_token_for_it_once_and_nobody_writes_it_down() {
    let inventory = format!("{INVENTORY}[serve]\ntoken-file = \"~/serve-token\"\n");
    let world = World::set_up(&[("model.bin", noise(3 * CHUNK, 9))], LAB, &inventory);
    world.machine.write("serve-token", "s3cret-of-the-lab\n");
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let serving = world.machine.serve();
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for wrong in ["", "s3cret-of-the-la"] {
            let refused = download(&hf, home.path(), &serving.url()).env("HF_TOKEN", wrong).output().unwrap();
            assert!(!refused.status.success(), "{name}");
            assert!(!serving.requests().iter().any(|line| line.contains("/api/xet/")), "{name}");
        }
        output(download(&hf, home.path(), &serving.url()).env("HF_TOKEN", "s3cret-of-the-lab"));
        assert!(world.snapshot(home.path()) == world.files, "{name}");
        let log = serving.log();
        assert!(log.iter().any(|line| line.contains(&format!("/api/xet/xorbs/{}", world.names["model.bin"]))));
        let pass = pass(&serving, "s3cret-of-the-lab");
        let seal = pass.split_once('.').unwrap().1;
        for line in log.iter().chain(&serving.log()) {
            for secret in ["s3cret", "signature", "expires", "Bearer", seal] {
                assert!(!line.contains(secret), "{name}: {line}");
            }
        }
    }
}

#[test]
fn passes_and_links_that_are_not_this_servers_are_refused() {
    let inventory = format!("{INVENTORY}[serve]\ntoken-file = \"~/serve-token\"\n");
    let files = [("a.bin", noise(CHUNK, 10)), ("b.bin", noise(CHUNK, 11))];
    let world = World::set_up(&files, LAB, &inventory);
    let serve_for = |token: &str| {
        world.machine.write("serve-token", token);
        world.machine.serve()
    };
    let (other, serving) = (serve_for("other\n"), serve_for("s3cret\n"));
    let (a, b) = (&world.names["a.bin"], &world.names["b.bin"]);
    let ask = |serving: &Serving, name: &str, pass: &str| {
        get(&question(serving, 2, name), &[("authorization", &format!("Bearer {pass}"))])
    };
    let (ours, theirs) = (pass(&serving, "s3cret"), pass(&other, "other"));
    let (expires, seal) = ours.split_once('.').unwrap();
    let later = format!("{}.{seal}", expires.parse::<u64>().unwrap() + 3600);
    let unsealed = format!("{expires}.");
    for wrong in ["", "s3cre", expires, &later, &unsealed, &theirs, &ours[..ours.len() - 1]] {
        let refused = ask(&serving, a, wrong);
        assert_eq!((refused.status.as_u16(), refused.header("www-authenticate")), (401, "Bearer"), "{wrong}");
        assert!(!String::from_utf8_lossy(&refused.body).contains("xorbs"), "{wrong}");
    }
    assert_eq!(get(&question(&serving, 1, a), &[]).status, 401);
    let other_face = format!("{}/acme/lab/resolve/main/a.bin", serving.url());
    assert_eq!(get(&other_face, &[("authorization", &format!("Bearer {ours}"))]).status, 401, "a pass is no token");

    let answer = ask(&serving, a, &ours);
    assert_eq!(answer.header("cache-control"), "no-store");
    let good = link(&answer.json());
    let whole = get(&good, &[]);
    assert_eq!((whole.status.as_u16(), whole.body.len()), (200, CHUNK + 8), "a link needs no pass");
    let (plain, query) = good.split_once('?').unwrap();
    let (expires, signature) = query.split_once('&').unwrap();
    let forged = [
        plain.to_owned(),
        format!("{plain}?{signature}"),
        format!("{plain}?{expires}"),
        format!("{plain}?{expires}0&{signature}"),
        format!("{plain}?expires=1&{signature}"),
        format!("{plain}?{expires}&signature={}", "0".repeat(64)),
        format!("{plain}?{expires}&signature={seal}"),
        good.replace(a, b),
        good.replace(a, &"0".repeat(64)),
        good.replace(&serving.host, &other.host),
    ];
    for link in forged {
        let refused = get(&link, &[]);
        assert_eq!(refused.status, 403, "{link}");
        assert!(!refused.body.windows(64).any(|part| part == &files[0].1[..64]), "{link}");
    }
    let again = serve_for("s3cret\n");
    assert_eq!(ask(&again, a, &ours).status, 200, "a server that was started anew");
    assert_eq!(get(&good.replace(&serving.host, &again.host), &[]).body, whole.body);
    let unknown = "0".repeat(64);
    assert_eq!(ask(&serving, &unknown, &ours).status, 404);
    for nonsense in ["x", "..%2f..%2fetc%2fpasswd", &a[1..]] {
        assert_eq!(get(&question(&serving, 2, nonsense), &[("authorization", "Bearer s3cret")]).status, 404);
    }
}

#[test]
fn every_range_is_told_of_in_both_manners_and_what_is_past_the_end_is_not() {
    let content = noise(TERM + 3 * CHUNK + 17, 12);
    let world = World::with(&[("model.bin", content.clone()), ("one.bin", vec![7])]);
    let serving = world.machine.serve();
    let (len, name) = (content.len(), &world.names["model.bin"]);
    let ranges: [Range<usize>; 7] =
        [0..1, 0..CHUNK, CHUNK - 1..CHUNK + 1, TERM - 1..TERM + 1, 5..TERM + 2, len - 1..len, 0..len];
    for version in [1, 2] {
        let question = question(&serving, version, name);
        let whole = get(&question, &[]).json();
        assert_eq!(whole["terms"].as_array().unwrap().len(), 2);
        assert!(put_together(&whole, len) == content, "v{version}");
        for range in &ranges {
            let told = get(&question, &[("range", &format!("bytes={}-{}", range.start, range.end - 1))]).json();
            assert!(put_together(&told, range.len()) == content[range.clone()], "v{version} {range:?}");
        }
        let beyond = get(&question, &[("range", &format!("bytes={}-{}", len - 2, len + 5000))]).json();
        assert!(put_together(&beyond, 2) == content[len - 2..]);
        let past = get(&question, &[("range", &format!("bytes={len}-"))]);
        assert_eq!((past.status.as_u16(), past.header("content-range")), (416, format!("bytes */{len}").as_str()));
    }
    let one = get(&question(&serving, 2, &world.names["one.bin"]), &[]).json();
    assert_eq!(put_together(&one, 1), [7]);
    let past = get(&link(&one), &[("range", "bytes=9-")]);
    assert_eq!((past.status.as_u16(), past.header("content-range")), (416, "bytes */9"));
}

#[test]
fn what_is_withheld_is_not_to_be_had_in_xet_either() {
    let files = [("model.bin", noise(2 * CHUNK, 13))];
    for (serve, visible) in [("", false), ("[serve]\ngated = true\n", true)] {
        let world = World::set_up(&files, SECRET, &format!("{INVENTORY}{serve}"));
        let serving = world.machine.serve();
        let told = get(&question(&serving, 2, &world.names["model.bin"]), &[]);
        let pass = get(&format!("{}/api/models/acme/secret/xet-read-token/main", serving.url()), &[]);
        let expected = if visible { StatusCode::OK } else { StatusCode::NOT_FOUND };
        assert_eq!((told.status, pass.status), (expected, expected));
        if visible {
            assert!(put_together(&told.json(), 2 * CHUNK) == files[0].1);
        }
    }
}

#[test]
fn nothing_is_said_of_xet_where_it_is_switched_off() {
    let inventory = format!("{INVENTORY}[serve]\nxet = false\n");
    let world = World::set_up(&[("model.bin", noise(2 * CHUNK, 19))], LAB, &inventory);
    let serving = world.machine.serve();
    assert_eq!(get(&question(&serving, 2, &world.names["model.bin"]), &[]).status, 404);
    let resolved = get(&format!("{}/acme/lab/resolve/main/model.bin", serving.url()), &[]);
    assert!(resolved.body == world.files["model.bin"] && resolved.header("x-xet-hash").is_empty());
    serving.requests();
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        output(&mut download(&hf, home.path(), &serving.url()));
        assert!(world.snapshot(home.path()) == world.files, "{name}");
        let log = serving.requests();
        assert!(!log.iter().any(|line| line.contains("xet")), "{name}: {log:?}");
        assert_eq!(world.asked_for("model.bin", &log), (0, 1), "{name}: {log:?}");
    }
}

/// A file that went, or that is damaged, is as absent here as everywhere.
#[test]
fn content_that_is_not_here_is_not_mentioned_or_refused() {
    let world = World::with(&[("model.bin", noise(CHUNK, 14)), ("gone.bin", noise(CHUNK, 15))]);
    let blob = |path: &str| {
        let snapshot = world.machine.path("hub/models--acme--lab/snapshots").join(&world.commit);
        fs_err::canonicalize(snapshot.join(path)).unwrap()
    };
    larder::fsio::remove_file(&blob("gone.bin")).unwrap();
    let serving = world.machine.serve();
    let tree = get(&format!("{}/api/models/acme/lab/tree/main", serving.url()), &[]).json();
    let named: Vec<&str> = tree.as_array().unwrap().iter().filter_map(|entry| entry["xetHash"].as_str()).collect();
    assert_eq!(named, [&world.names["model.bin"]]);
    assert_eq!(get(&question(&serving, 2, &world.names["gone.bin"]), &[]).status, 404);
    let good = link(&get(&question(&serving, 2, &world.names["model.bin"]), &[]).json());
    larder::fsio::write_atomic(&blob("model.bin"), b"short", &larder::fsio::WriteOptions::default()).unwrap();
    assert_eq!(get(&question(&serving, 2, &world.names["model.bin"]), &[]).status, 500);
    assert_eq!(get(&good, &[]).status, 500);
}

/// What is served in turn by who took it from here: its lock knows the names too.
#[test]
fn larder_itself_takes_plain_ranges_from_larder_and_keeps_the_names() {
    let world = World::with(&[("model.bin", noise(5 * MIB, 16))]);
    let serving = world.machine.serve();
    let url = serving.url();
    let second = Machine::new(INVENTORY, LAB);
    second.larder_with(&[("HF_ENDPOINT", &url)], &["lock"]).must_be(0);
    second.larder_with(&[("HF_ENDPOINT", &url)], &["apply", "--yes"]).must_be(0);
    assert!(world.snapshot(second.home()) == world.files);
    let log = serving.requests();
    assert!(!log.iter().any(|line| line.contains("xet")), "{log:?}");
    assert!(world.asked_for("model.bin", &log).1 > 0, "{log:?}");
    let locks =
        [&world.machine, &second].map(|machine| fs_err::read_to_string(machine.path("inventory.lock")).unwrap());
    assert_eq!(locks[0], locks[1]);
    assert!(locks[1].contains(&world.names["model.bin"]));

    let peers = format!("{INVENTORY}[sources]\norder = [\"peer\"]\npeers = [{{ name = \"pc1\", url = \"{url}\" }}]\n");
    let third = Machine::new(&peers, LAB);
    third.write("inventory.lock", &locks[0]);
    third.larder(&["apply", "--yes"]).must_be(0);
    assert!(world.snapshot(third.home()) == world.files);
    let log = serving.requests();
    assert!(!log.iter().any(|line| line.contains("xet") || line.contains("resolve")), "{log:?}");

    let Some(hf) = parts::part("hf-latest/bin/hf") else { return };
    let (serving, home) = (second.serve(), tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    output(&mut download(&hf, home.path(), &serving.url()));
    assert!(world.snapshot(home.path()) == world.files);
    assert!(world.asked_for("model.bin", &serving.requests()).0 > 0);
}

/// A hub that keeps its content in this server: larder reads it as it reads the real one's.
#[tokio::test(flavor = "multi_thread")]
async fn larders_own_reader_of_xet_reads_from_it() {
    let content = noise(TERM + MIB, 17);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", content.clone())]));
    let serving = world.machine.serve();
    let pass = {
        let url = format!("{}/api/models/acme/lab/xet-read-token/main", serving.url());
        let told = tokio::task::block_in_place(|| get_aside(url)).json();
        (told["accessToken"].as_str().unwrap().to_owned(), told["exp"].as_u64().unwrap())
    };
    let hashes = [(hub::sha256(&content), world.names["model.bin"].clone())].into();
    let address = format!("{}/api/xet", serving.url());
    world.hub.keep_in_xet(Xet { address, hashes, pass: Box::new(move || pass.clone()) });
    world.hub.clear_log();
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let sources = Sources::new(&SourceSettings {
        hub_endpoint: Some(world.hub.origin.parse().unwrap()),
        xet: Some(scratch.path().join("xet")),
        ..SourceSettings::default()
    });
    let (sources, digests) = (sources.unwrap(), Digests::sha256(Sha256::of(&content)));
    let reference = format!("hf:acme/lab@{}/model.bin", world.commit).parse().unwrap();
    let remote = Remote { reference, size: Some(content.len() as u64), digests };
    for range in [0..content.len(), CHUNK - 1..CHUNK + 1, TERM - 5..TERM + 5] {
        let asked = ByteRange { start: range.start as u64, end: Some(range.end as u64) };
        let body = sources.for_reference(&remote.reference).unwrap().open(&remote, asked).await.unwrap();
        let (bytes, end) = contract::read(body).await;
        end.unwrap();
        assert!(bytes == content[range.clone()], "{range:?}");
    }
    assert_eq!(world.hub.count(|asked| asked.on_cdn), 0, "nothing came plainly");
    assert!(world.asked_for("model.bin", &serving.requests()).0 >= 3);
}

fn one_in_xet(folder: &Path, content: &[u8]) -> Served {
    let (mut file, place) = put(folder, "model.bin", content, true);
    file.xet = Some("1".repeat(64).parse().unwrap());
    served("lab", "hf:acme/lab", Some(COMMIT), vec![(file, place)])
}

/// Python's plain download refuses such a file.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_beyond_fifty_gigabytes_is_told_of_and_read_to_its_last_byte() {
    const LEN: u64 = 61_343_809_537;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut model = one_in_xet(folder.path(), b"begins with this");
    let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("model.bin")).unwrap();
    file.set_len(LEN).unwrap();
    file.write_all_at(b"end", LEN - 3).unwrap();
    model.artifact.files[0].size = Some(LEN);
    let index = Index::of(vec![model], ["/"]);
    let mirror = Mirror::open_for(index, Guests::default(), |server| server).await;
    for version in [1, 2] {
        let about = mirror.at(&format!("/api/xet/v{version}/reconstructions/{}", "1".repeat(64)));
        let (asked, ranges) = (about.clone(), [format!("bytes={}-", LEN - 5), "bytes=0-9".to_owned()]);
        let parts = std::thread::spawn(move || {
            ranges.map(|range| {
                put_together(&get(&asked, &[("range", &range)]).json(), if range.ends_with('-') { 5 } else { 10 })
            })
        });
        let [last, first] = tokio::task::block_in_place(|| parts.join().unwrap());
        assert_eq!((last.as_slice(), first.as_slice()), (&b"\0\0end"[..], &b"begins wit"[..]), "v{version}");
        let whole = tokio::task::block_in_place(|| get_aside(about));
        let terms = whole.json()["terms"].as_array().unwrap().clone();
        let lengths = terms.iter().map(|term| term["unpacked_length"].as_u64().unwrap());
        assert_eq!(lengths.sum::<u64>(), LEN, "v{version}");
        assert!(whole.body.len() < 4 * MIB, "v{version}: {} bytes of answer", whole.body.len());
    }
}

/// The library has a way of its own to trust certificates: it must be the one of its Python.
#[tokio::test(flavor = "multi_thread")]
async fn the_real_clients_read_over_https_with_the_certificate_that_was_made() {
    let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let content = noise(3 * CHUNK + 1, 18);
    let tls = Tls::of_own(state.path(), vec!["localhost".to_owned()]).unwrap();
    let index = Index::of(vec![one_in_xet(folder.path(), &content)], ["/"]);
    let mirror = Mirror::open_for(index, Guests::default(), |server| server.with_tls(tls)).await;
    let endpoint = mirror.url.replace("http://127.0.0.1", "https://localhost");
    for name in CLIENTS {
        let Some(hf) = parts::part(&format!("{name}/bin/hf")) else { return };
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let before = mirror.traffic.bytes();
        let mut download = download(&hf, home.path(), &endpoint);
        download.env("SSL_CERT_FILE", state.path().join("serve-certificate.pem"));
        tokio::task::block_in_place(|| output(&mut download));
        let place = home.path().join("hub/models--acme--lab/snapshots").join(COMMIT).join("model.bin");
        assert!(fs_err::read(place).unwrap() == content, "{name}");
        let sent = mirror.traffic.bytes() - before;
        assert_eq!(sent, content.len() as u64 + 4 * 8, "{name}: every chunk has a header, and plain bytes have none");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_those_by_which_the_client_came() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::of(vec![one_in_xet(folder.path(), b"weights")], ["/"]);
    let mirror = Arc::new(Mirror::open_for(index, Guests::default(), |server| server).await);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (scheme, expected) in [("", "http"), ("https", "https"), ("https, http", "https"), ("gopher", "http")] {
        let ask = |path: &str| {
            let asked = client.get(mirror.at(path)).header("host", "models.lab:8443");
            if scheme.is_empty() { asked } else { asked.header("x-forwarded-proto", scheme) }
        };
        let origin = format!("{expected}://models.lab:8443");
        let resolved = ask("/acme/lab/resolve/main/model.bin").send().await.unwrap();
        let links = resolved.headers()["link"].to_str().unwrap();
        let hash = "1".repeat(64);
        assert_eq!(resolved.headers()["x-xet-hash"].to_str().unwrap(), hash);
        assert_eq!(
            links,
            format!(
                "<{origin}/api/models/acme/lab/xet-read-token/{COMMIT}>; rel=\"xet-auth\", \
                 <{origin}/api/xet/v1/reconstructions/{hash}>; rel=\"xet-reconstruction-info\""
            )
        );
        let pass = ask("/api/models/acme/lab/xet-read-token/main").send().await.unwrap();
        assert_eq!(pass.headers()["x-xet-cas-url"].to_str().unwrap(), format!("{origin}/api/xet"));
        let told = ask(&format!("/api/xet/v2/reconstructions/{hash}")).send().await.unwrap();
        assert!(told.text().await.unwrap().contains(&format!("\"{origin}/api/xet/xorbs/{hash}?")));
    }
}
