//! Content that the hub keeps in Xet: over the crates' own store, with real xorbs and shards.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use larder::artifact::Remote;
use larder::digest::{Digests, Sha256};
use larder::sources::{Body, ByteRange, Listing, Manners, Source, SourceError, SourceSettings, Sources, Timeouts};

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/cas.rs"]
mod cas;
#[path = "contract/source.rs"]
mod contract;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/hub.rs"]
mod hub;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/machine.rs"]
mod machine;
#[path = "support/parts.rs"]
mod parts;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/python.rs"]
mod python;

use cas::Cas;
use contract::{Case, read, suite};
use hub::{Fault, Hub, Xet};
use machine::Machine;

const ALWAYS: usize = usize::MAX;

/// Bytes without pattern: several chunks and more than one stretch.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// Numbers as weights have them, which the store keeps compressed and grouped by byte.
fn weights(len: usize) -> Vec<u8> {
    (0..len as u32 / 4).flat_map(|n| ((n % 5000) as f32 * 0.001).to_le_bytes()).collect()
}

/// A hub whose LFS files lie in a store, and a folder for what the client writes.
struct World {
    hub: Hub,
    cas: Cas,
    /// Names in Xet by sha256.
    hashes: HashMap<String, String>,
    dir: tempfile::TempDir,
}

impl World {
    /// `files` of `acme/tiny`, all of them LFS files.
    fn with(files: &[(&str, &[u8])]) -> Self {
        let (hub, cas) = (Hub::start(), Cas::start(None));
        let contents: Vec<&[u8]> = files.iter().map(|(_, bytes)| *bytes).collect();
        let names = cas.upload(&contents);
        let hashes: HashMap<String, String> = contents.iter().map(|bytes| hub::sha256(bytes)).zip(names).collect();
        let files: Vec<(&str, &[u8], bool)> = files.iter().map(|(path, bytes)| (*path, *bytes, true)).collect();
        hub.commit("acme/tiny", &files);
        let world = Self { hub, cas, hashes, dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        world.announce_at(&world.cas.address);
        world
    }

    /// Lets the hub call the store by this address.
    fn announce_at(&self, address: &str) {
        let (address, hashes) = (address.to_owned(), self.hashes.clone());
        self.hub.keep_in_xet(Xet { address, hashes, pass: self.cas.passes() });
    }

    fn sources(&self) -> Arc<Sources> {
        self.sources_with(Timeouts::default())
    }

    fn sources_with(&self, timeouts: Timeouts) -> Arc<Sources> {
        let settings = SourceSettings {
            hub_endpoint: Some(self.hub.origin.parse().unwrap()),
            hub_token: Some("hf_secret".to_owned()),
            xet: Some(self.dir.path().join("xet")),
            manners: Manners { timeouts, ..Manners::default() },
            ..SourceSettings::default()
        };
        Arc::new(Sources::new(&settings).unwrap())
    }

    /// Requests for content by plain http.
    fn plain(&self) -> usize {
        self.hub.count(|asked| asked.on_cdn)
    }

    fn passes(&self) -> usize {
        self.hub.count(|asked| asked.path.contains("/xet-read-token/"))
    }

    fn resolved(&self) -> usize {
        self.hub.count(|asked| asked.path.contains("/resolve/"))
    }
}

fn remote(path: &str, content: &[u8]) -> Remote {
    Remote {
        reference: format!("hf:acme/tiny@main/{path}").parse().unwrap(),
        size: Some(content.len() as u64),
        digests: Digests::sha256(Sha256::of(content)),
    }
}

async fn open(sources: &Sources, remote: &Remote, start: u64, end: Option<u64>) -> Body {
    sources.for_reference(&remote.reference).unwrap().open(remote, ByteRange { start, end }).await.unwrap()
}

/// Exactly the bytes of a range: nothing before it, nothing after it.
async fn get(sources: &Sources, remote: &Remote, start: u64, end: Option<u64>) -> Vec<u8> {
    let body = open(sources, remote, start, end).await;
    assert_eq!((body.start, body.total), (start, remote.size));
    let (bytes, end) = read(body).await;
    end.unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_comes_from_the_store_and_nothing_of_it_by_plain_http() {
    for content in [noise(5_000_001, 1), weights(6 << 20)] {
        let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
        let (sources, remote) = (world.sources(), remote("model.bin", &content));
        let body = open(&sources, &remote, 0, None).await;
        assert_eq!(body.etag, Some(hub::sha256(&content)), "the hub's name of the content");
        let (bytes, end) = read(body).await;
        end.unwrap();
        assert!(bytes == content);
        assert_eq!((world.plain(), world.passes(), world.resolved()), (0, 1, 1));
        let log = world.cas.log();
        assert!(log.iter().any(cas::Logged::is_question) && log.iter().any(cas::Logged::is_content));
        for asked in &log {
            assert_eq!((asked.method.as_str(), asked.status / 100), ("GET", 2), "nothing is reported: {asked:?}");
            let pass = asked.is_question().then(|| "Bearer secret-pass-1".to_owned());
            assert_eq!(asked.authorization, pass, "passes go to the store, the hub's token nowhere: {asked:?}");
            assert!(asked.user_agent.starts_with("larder/"), "{asked:?}");
        }
        let files = walkdir::WalkDir::new(world.dir.path()).into_iter().map(Result::unwrap);
        assert_eq!(files.filter(|entry| entry.file_type().is_file()).count(), 0, "nothing is kept on disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_content_costs_less_than_its_length() {
    let content = weights(6 << 20);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    assert!(get(&world.sources(), &remote("model.bin", &content), 0, None).await == content);
    assert!(world.cas.sent() < content.len() as u64 / 2, "{} bytes crossed the wire", world.cas.sent());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_range_comes_exactly() {
    let content = noise(3_000_000, 2);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    let (sources, remote, size) = (world.sources(), remote("model.bin", &content), content.len() as u64);
    let mut ranges = vec![(0, 1), (size - 1, size), (0, size), (1, size - 1), (1 << 20, 2 << 20), (65_536, 65_537)];
    let mut places = noise(16 * 20, 3);
    for place in places.chunks_exact_mut(16) {
        let at = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap()) % size;
        let (a, b) = (at(&place[..8]), at(&place[8..]));
        ranges.push((a.min(b), a.max(b) + 1));
    }
    for (start, end) in ranges {
        let bytes = get(&sources, &remote, start, Some(end)).await;
        assert!(bytes == content[start as usize..end as usize], "{start}..{end}");
    }
    // A short range fetches the chunks it lies in, not the file.
    world.cas.clear_log();
    get(&sources, &remote, 1_500_000, Some(1_500_010)).await;
    assert!(world.cas.sent() <= 2 * (128 << 10) + 64, "{} bytes for ten", world.cas.sent());
    assert_eq!((world.plain(), world.passes(), world.resolved()), (0, 1, 1));
}

/// A source of a set, as a source of its own.
struct OneOf(Arc<Sources>, Remote);

#[async_trait::async_trait]
impl Source for OneOf {
    async fn list(&self, reference: &larder::artifact::Reference) -> Result<Listing, SourceError> {
        self.0.for_reference(&self.1.reference)?.list(reference).await
    }
    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        self.0.for_reference(&self.1.reference)?.check(remote).await
    }
    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        self.0.for_reference(&self.1.reference)?.open(remote, range).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_in_xet_keeps_the_contract() {
    let content = noise(2_000_000, 4);
    let files: [(&str, &[u8]); 2] = [("file.bin", &content), ("busy.bin", &content)];
    let world = tokio::task::block_in_place(|| World::with(&files));
    world.hub.fail("busy.bin", Fault::Status(503), ALWAYS);
    let there = remote("file.bin", &content);
    let case = Case {
        source: Box::new(OneOf(world.sources(), there.clone())),
        there,
        content: content.clone(),
        missing: remote("missing.bin", &content),
        busy: Some(remote("busy.bin", &content)),
        short: None,
    };
    suite(&case).await;
    assert!(world.cas.count(cas::Logged::is_content) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_ranges_at_once_ask_for_one_pass_and_one_name() {
    let content = Arc::new(noise(8 << 20, 5));
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    let (sources, remote) = (world.sources(), remote("model.bin", &content));
    get(&sources, &remote, 0, Some(1)).await;
    let ranges = (0..8_u64).map(|n| {
        let (sources, remote) = (Arc::clone(&sources), remote.clone());
        tokio::spawn(async move { get(&sources, &remote, n << 20, Some((n + 1) << 20)).await })
    });
    let ranges: Vec<_> = ranges.collect();
    let mut joined = Vec::new();
    for range in ranges {
        joined.extend(range.await.unwrap());
    }
    assert!(joined == *content);
    assert_eq!((world.plain(), world.passes(), world.resolved()), (0, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_runs_out_in_the_middle_is_renewed() {
    let content = noise(9 << 20, 6);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    world.cas.limit_passes(1);
    assert!(get(&world.sources(), &remote("model.bin", &content), 0, None).await == content);
    let refused = world.cas.count(|asked| asked.status == 401);
    assert!(refused >= 2, "{refused} passes were refused");
    assert_eq!((world.plain(), world.passes()), (0, refused + 1), "each refused pass is replaced once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_accepts_no_pass_is_left_for_plain_ranges() {
    let content = noise(1 << 20, 7);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    world.cas.limit_passes(0);
    let (sources, remote) = (world.sources(), remote("model.bin", &content));
    assert!(get(&sources, &remote, 0, None).await == content);
    assert_eq!((world.plain(), world.passes()), (1, 2), "one fresh pass is tried, then none");
    assert!(get(&sources, &remote, 10, Some(2000)).await == content[10..2000]);
    assert_eq!((world.plain(), world.passes()), (2, 2), "the file stays with plain ranges");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_in_the_middle_is_left_where_it_died() {
    let content = noise(12 << 20, 8);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    world.cas.die_at(5 << 20);
    assert!(get(&world.sources(), &remote("model.bin", &content), 3, None).await == content[3..]);
    let log = world.hub.log();
    let plain: Vec<_> = log.iter().filter(|asked| asked.on_cdn).collect();
    assert_eq!(plain.len(), 1);
    let range = plain[0].range.clone().unwrap();
    let from: u64 = range.strip_prefix("bytes=").unwrap().split('-').next().unwrap().parse().unwrap();
    assert!((1 << 20..5 << 20).contains(&from), "continued at {range}");
    assert_eq!(plain[0].sent, content.len() as u64 - from, "nothing comes twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_falls_silent_is_left_before_anybody_loses_patience() {
    let content = noise(4 << 20, 17);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    world.cas.stall_at(2 << 20);
    let stall = Duration::from_secs(3);
    let sources = world.sources_with(Timeouts { connect: stall, stall });
    let (mut stream, mut bytes) = (open(&sources, &remote("model.bin", &content), 0, None).await.stream, Vec::new());
    while let Some(piece) = tokio::time::timeout(stall, stream.next()).await.expect("the caller's patience") {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert!(bytes == content);
    assert_eq!(world.plain(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_costs_no_byte() {
    let content = noise(300_000, 9);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    world.cas.die();
    assert!(get(&world.sources(), &remote("model.bin", &content), 0, None).await == content);
    assert_eq!(world.plain(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_gives_no_usable_pass_is_asked_for_plain_ranges() {
    let content = noise(300_000, 10);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let trap = folder.path().join("trap");
    for address in [format!("local://{}", trap.display()), "memory://".to_owned(), "http://a:b@127.0.0.1:1".to_owned()]
    {
        let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
        world.announce_at(&address);
        assert!(get(&world.sources(), &remote("model.bin", &content), 0, None).await == content);
        assert_eq!((world.plain(), world.passes()), (1, 1));
    }
    assert!(!trap.exists(), "the hub must not name paths of this machine");
    // Announced, but no such service at all.
    let hub = Hub::start();
    hub.commit("acme/tiny", &[("model.bin", &content, true)]);
    hub.advertise_xet();
    let cas = tokio::task::block_in_place(|| Cas::start(None));
    let world = World { hub, cas, hashes: HashMap::new(), dir: folder };
    assert!(get(&world.sources(), &remote("model.bin", &content), 7, None).await == content[7..]);
    assert_eq!((world.plain(), world.passes()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_three_failed_files_the_store_is_asked_no_more() {
    let contents: Vec<Vec<u8>> = (0..5).map(|n| noise(200_000, 20 + n)).collect();
    let names: Vec<String> = (0..5).map(|n| format!("{n}.bin")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    let world = tokio::task::block_in_place(|| World::with(&files));
    world.cas.limit_passes(0);
    let sources = world.sources();
    let mut questions = Vec::new();
    for (name, content) in &files {
        assert!(get(&sources, &remote(name, content), 0, None).await == *content);
        questions.push(world.cas.count(cas::Logged::is_question));
    }
    assert_eq!(world.plain(), 5);
    assert!(questions[0] < questions[1] && questions[1] < questions[2], "{questions:?}");
    assert_eq!(questions[2], questions[4], "{questions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_turned_out_wrong_do_not_come_that_way_again() {
    let content = noise(2 << 20, 11);
    let world = tokio::task::block_in_place(|| World::with(&[("model.bin", &content)]));
    world.cas.send_wrong_bytes();
    let (sources, remote) = (world.sources(), remote("model.bin", &content));
    let source = sources.for_reference(&remote.reference).unwrap();
    assert!(!source.distrust(&remote), "nothing came yet");
    assert!(get(&sources, &remote, 0, None).await != content);
    assert!(source.distrust(&remote), "there is another way");
    assert!(get(&sources, &remote, 0, None).await == content);
    assert!(!source.distrust(&remote), "there is no third one");
    assert_eq!(world.plain(), 1);
}

/// A machine that wants `acme/tiny` from the world's hub.
fn machine(world: &World, sources: &str) -> Machine {
    let inventory = format!(
        "manifests = [\"manifests/*.toml\"]\nmachine = \"pc1\"\n\n[stores]\ncache = {{ layout = \"hf-cache\", path = \"~/hub\" }}\n\n\
         [machines]\npc1 = {{}}\n\n[sources]\nhub = \"{}\"\n{sources}\n",
        world.hub.origin
    );
    let machine =
        Machine::new(&inventory, "[[artifact]]\nname = \"tiny\"\nsource = \"hf:acme/tiny\"\nstore = \"cache\"\n");
    machine.larder(&["lock"]).must_be(0);
    machine
}

fn blob(machine: &Machine, content: &[u8]) -> PathBuf {
    machine.path("hub/models--acme--tiny/blobs").join(hub::sha256(content))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap);
    entries.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

#[test]
fn the_program_uses_the_store_and_keeps_nothing_of_its_own_there() {
    let content = noise(5 << 20, 12);
    let world = World::with(&[("model.bin", &content)]);
    let machine = machine(&world, "");
    machine.larder(&["apply", "--yes"]).must_be(0);
    assert!(fs_err::read(blob(&machine, &content)).unwrap() == content);
    assert_eq!(world.plain(), 0);
    assert!(world.cas.sent() >= content.len() as u64);
    assert_eq!(world.cas.count(|asked| asked.method != "GET"), 0, "nothing is reported");
    assert!(!machine.path(".cache").exists(), "the library's own cache stays away");
    assert_eq!(files_below(&machine.path(".local/state/larder/xet")), Vec::<PathBuf>::new());
    machine.larder(&["verify", "--full"]).must_be(0);
}

#[test]
fn the_lock_keeps_the_name_in_xet_for_whole_repositories_and_single_files() {
    let content = noise(70_000, 21);
    let world = World::with(&[("model.bin", &content)]);
    let row = format!("\"xet\":\"{}\"", world.hashes[&hub::sha256(&content)]);
    let locked = |machine: &Machine| fs_err::read_to_string(machine.path("inventory.lock")).unwrap();
    let machine = machine(&world, "");
    assert_eq!(locked(&machine).matches(&row).count(), 1, "{}", locked(&machine));
    machine.write(
        "manifests/lab.toml",
        "[[artifact]]\nname = \"one\"\nstore = \"cache\"\n  [[artifact.file]]\n  path = \"model.bin\"\n  source = \"hf:acme/tiny/model.bin\"\n",
    );
    machine.larder(&["lock"]).must_be(0);
    assert_eq!(locked(&machine).matches(&row).count(), 1, "{}", locked(&machine));
}

#[test]
fn the_program_leaves_the_store_alone_where_it_is_switched_off() {
    let content = noise(1 << 20, 13);
    let world = World::with(&[("model.bin", &content)]);
    for (sources, variable) in [("xet = false", "0"), ("", "1"), ("", "true")] {
        let machine = machine(&world, sources);
        world.hub.clear_log();
        machine.larder_with(&[("HF_HUB_DISABLE_XET", variable)], &["apply", "--yes"]).must_be(0);
        assert!(fs_err::read(blob(&machine, &content)).unwrap() == content);
        assert_eq!((world.plain(), world.passes(), world.cas.log().len()), (1, 0, 0), "{sources} {variable}");
    }
}

#[test]
fn the_store_is_asked_through_the_proxy_that_is_set() {
    let content = noise(1 << 20, 19);
    let world = World::with(&[("model.bin", &content)]);
    let machine = machine(&world, "");
    world.announce_at("http://store.invalid");
    let proxy = [("HTTP_PROXY", world.cas.address.as_str()), ("NO_PROXY", "127.0.0.1,localhost")];
    machine.larder_with(&proxy, &["apply", "--yes"]).must_be(0);
    assert!(fs_err::read(blob(&machine, &content)).unwrap() == content);
    assert_eq!(world.plain(), 0);
    assert!(world.cas.count(cas::Logged::is_question) > 0);
}

#[test]
fn wrong_bytes_from_the_store_are_caught_and_come_again_by_plain_ranges() {
    let content = noise(5 << 20, 14);
    let world = World::with(&[("model.bin", &content)]);
    world.cas.send_wrong_bytes();
    let machine = machine(&world, "");
    let said = machine.larder(&["-v", "apply", "--yes"]).must_be(0);
    assert!(fs_err::read(blob(&machine, &content)).unwrap() == content);
    assert!(world.plain() >= 1);
    assert_eq!(said.err.matches("because Xet failed").count(), 1, "{said}");
    machine.larder(&["verify", "--full"]).must_be(0);
}

#[test]
fn a_failing_store_is_told_of_once_and_only_to_those_who_ask() {
    let contents = [noise(200_000, 15), noise(200_000, 16)];
    let world = World::with(&[("a.bin", &contents[0]), ("b.bin", &contents[1])]);
    world.cas.die();
    let said = machine(&world, "").larder(&["-v", "apply", "--yes"]).must_be(0);
    assert_eq!(said.err.matches("because Xet failed").count(), 1, "{said}");
    assert!(!said.to_string().contains("secret-"), "{said}");
    let said = machine(&world, "").larder(&["apply", "--yes"]).must_be(0);
    assert!(!said.to_string().contains("Xet"), "{said}");
}

/// The hub and the store of these tests are what the real client expects of the real ones.
#[test]
fn the_real_client_reads_the_same_content_from_the_same_store() {
    let contents = [noise(3 << 20, 18), weights(3 << 20)];
    let world = World::with(&[("noise.bin", &contents[0]), ("weights.bin", &contents[1])]);
    let Some(hf) = parts::part("hf-latest/bin/hf") else { return };
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut download = python::client(&hf, home.path());
    download.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &world.hub.origin);
    python::output(download.args(["download", "acme/tiny", "--local-dir"]).arg(home.path().join("here")));
    for (name, content) in ["noise.bin", "weights.bin"].iter().zip(&contents) {
        assert!(fs_err::read(home.path().join("here").join(name)).unwrap() == *content, "{name}");
    }
    assert_eq!(world.plain(), 0);
    assert!(world.cas.count(|asked| asked.is_content() && !asked.user_agent.starts_with("larder")) > 0);
}
