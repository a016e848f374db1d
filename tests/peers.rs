//! Other larders as sources: what is taken from them, what they are not trusted with, and what happens without them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use larder::artifact::{Reference, Remote};
use larder::digest::{ContentName, Digests, GitSha1, Sha256};
use larder::serve::{Guests, Index, Served, Tls, Token};
use larder::sources::{PeerConfig, Source, SourceError, SourceSettings, Sources};

#[path = "contract/source.rs"]
mod contract;
#[path = "support/fake_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod fake_server;
#[path = "support/mirror.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod mirror;
#[path = "support/program.rs"]
mod program;

use contract::{Case, suite};
use fake_server::{FakeServer, Seen, answer};
use mirror::{COMMIT, Mirror, put, served};
use program::{INVENTORY, Lab, Said};

/// Content that differs everywhere, so that a wrong offset shows.
fn content(len: usize) -> Vec<u8> {
    (0..len as u64).flat_map(|n| *Sha256::of(&n.to_le_bytes()).as_bytes()).take(len).collect()
}

fn config(mirror: &Mirror, token: Option<&str>, certificate: Option<Sha256>) -> PeerConfig {
    let url = if certificate.is_some() { mirror.url.replace("http:", "https:") } else { mirror.url.clone() };
    PeerConfig {
        name: "pc2".to_owned(),
        url: url.parse().unwrap(),
        token: token.map(str::to_owned),
        certificate,
        sockets: Vec::new(),
    }
}

fn sources(peer: PeerConfig) -> Sources {
    Sources::new(&SourceSettings { peers: vec![peer], ..SourceSettings::default() }).unwrap()
}

fn remote(content: ContentName, size: usize) -> Remote {
    let reference = Reference::Peer { peer: "pc2".to_owned(), content };
    Remote { reference, size: Some(size as u64), digests: Digests::default() }
}

fn by_sha256(content: &[u8]) -> ContentName {
    ContentName::Sha256(Sha256::of(content))
}

/// A peer as a source of its own.
struct Peers(Sources);

#[async_trait::async_trait]
impl Source for Peers {
    async fn list(&self, reference: &Reference) -> Result<larder::sources::Listing, SourceError> {
        self.0.peers().list(reference).await
    }
    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        self.0.peers().check(remote).await
    }
    async fn open(
        &self,
        remote: &Remote,
        range: larder::sources::ByteRange,
    ) -> Result<larder::sources::Body, SourceError> {
        self.0.peers().open(remote, range).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_keeps_the_contract_of_sources() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = content(300_001);
    let tls = Tls::of_own(state.path(), vec!["localhost".to_owned()]).unwrap();
    let certificate = tls.fingerprint();
    let guests = || Guests { networks: Vec::new(), token: Token::new("s3cret") };
    let artifact = || served("one", "hf:acme/one", Some(COMMIT), vec![put(dir.path(), "one.bin", &bytes, true)]);
    let index = || Index::of(vec![artifact()], ["/"]);
    let plain = Mirror::open_for(index(), guests(), |server| server).await;
    let encrypted = Mirror::open_for(index(), guests(), |server| server.with_tls(tls)).await;
    for peer in [config(&plain, Some("s3cret"), None), config(&encrypted, Some("s3cret"), Some(certificate))] {
        suite(&Case {
            source: Box::new(Peers(sources(peer))),
            there: remote(by_sha256(&bytes), bytes.len()),
            content: bytes.clone(),
            missing: remote(by_sha256(b"missing"), 7),
            busy: None,
            short: None,
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_another_certificate_or_token_gives_nothing() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = content(2000);
    let artifact = served("one", "hf:acme/one", Some(COMMIT), vec![put(dir.path(), "one.bin", &bytes, true)]);
    let tls = Tls::of_own(state.path(), vec!["localhost".to_owned()]).unwrap();
    let (guests, index) =
        (Guests { networks: Vec::new(), token: Token::new("s3cret") }, Index::of(vec![artifact], ["/"]));
    let right = tls.fingerprint();
    let mirror = Mirror::open_for(index, guests, |server| server.with_tls(tls)).await;
    let wanted = remote(by_sha256(&bytes), bytes.len());
    let imposter = sources(config(&mirror, Some("s3cret"), Some(Sha256::of(b"another"))));
    let error = imposter.peers().check(&wanted).await.unwrap_err();
    assert!(error.to_string().contains("not the one that was agreed on"), "{error}");
    assert_eq!(mirror.traffic.requests(), 0, "the token was not shown to whom it was not meant for");
    let stranger = sources(config(&mirror, None, Some(right)));
    assert!(matches!(stranger.peers().holdings("pc2").await.unwrap_err(), SourceError::TokenMissing { .. }));
    let guessing = sources(config(&mirror, Some("guess"), Some(right)));
    let error = guessing.peers().holdings("pc2").await.unwrap_err();
    assert!(matches!(error, SourceError::TokenRefused { .. }) && !error.to_string().contains("guess"), "{error}");
    let held = sources(config(&mirror, Some("s3cret"), Some(right))).peers().holdings("pc2").await.unwrap();
    assert!(held.here.contains(&by_sha256(&bytes)));
}

/// Whoever asks a peer shows a token; nobody who reads what larder says sees it, however much that is, and whatever fails.
#[tokio::test(flavor = "multi_thread")]
async fn the_token_for_a_peer_is_in_nothing_that_larder_says() {
    let dir = tempfile::tempdir().unwrap();
    let guests = Guests { networks: Vec::new(), token: Token::new("s3cret-of-the-lab") };
    let mirror = Mirror::open_for(Index::of(vec![holding(dir.path())], ["/"]), guests, |server| server).await;
    let lab = lab(&mirror, "[\"peer\"]", "hf:acme/tiny");
    let inventory = std::fs::read_to_string(lab.path("inventory.toml")).unwrap();
    lab.write("inventory.toml", inventory.replace("name = \"pc2\",", "name = \"pc2\", token-file = \"~/token\","));
    for (token, code) in [("s3cret-guessed", 4), ("s3cret-of-the-lab", 0)] {
        lab.write("home/token", token);
        for arguments in
            [&["-vv", "plan", "--json"][..], &["-vv", "apply", "--yes"], &["-vv", "apply", "--yes", "--json"]]
        {
            let mut command = lab.command(arguments);
            command.env("LARDER_LOG", "trace");
            let said = tokio::task::block_in_place(|| program::said(&mut command, &lab.path("")));
            let all = format!("{}{}", said.out, said.err);
            assert!(all.contains("TRACE") || all.contains("DEBUG"), "everything is told: {all}");
            assert!(!all.contains("s3cret"), "{arguments:?}: {all}");
        }
        let applied = run(&lab, &["apply", "--yes"]).await;
        assert_eq!(applied.code, code, "{}{}", applied.out, applied.err);
    }
    assert!(has_both(&lab));
}

const LARGE: &[u8] = b"weights, named by their sha256";
const SMALL: &[u8] = b"{\"small\": \"and named by git\"}";

/// What the peer has: one artifact of two files.
fn holding(folder: &Path) -> Served {
    let files = vec![put(folder, "large.bin", LARGE, true), put(folder, "small.json", SMALL, false)];
    served("theirs", "hf:acme/theirs", Some(COMMIT), files)
}

fn git_name(content: &[u8]) -> GitSha1 {
    let mut hasher = larder::digest::ContentHasher::new().with_git_sha1(content.len() as u64);
    hasher.update(content);
    hasher.finish().git_sha1.unwrap()
}

/// A lab that wants the same two files, from nobody in particular or from `source`.
fn lab(mirror: &Mirror, order: &str, source: &str) -> Lab {
    let manifest = format!(
        "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"{source}\"\n\
         [[artifact.file]]\npath = \"large.bin\"\nsize = {}\nsha256 = \"{}\"\n\
         [[artifact.file]]\npath = \"small.json\"\nsize = {}\ngit-sha1 = \"{}\"\n",
        LARGE.len(),
        Sha256::of(LARGE),
        SMALL.len(),
        git_name(SMALL)
    );
    let sources = format!(
        "[sources]\norder = {order}\nhub = \"http://127.0.0.1:9\"\npeers = [\n\
         {{ name = \"pc1\", url = \"http://127.0.0.1:9\" }},\n{{ name = \"pc2\", url = \"{}\" }}]\n",
        mirror.url
    );
    Lab::new(&format!("{INVENTORY}\n{sources}"), &manifest)
}

async fn run(lab: &Lab, arguments: &[&str]) -> Said {
    tokio::task::block_in_place(|| lab.run(arguments))
}

fn has_both(lab: &Lab) -> bool {
    let is = |path: &str, content: &[u8]| std::fs::read(lab.path(path)).is_ok_and(|found| found == content);
    is("home/plain/large.bin", LARGE) && is("home/plain/small.json", SMALL)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_provided_by_its_peer_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::open(vec![holding(dir.path())], None).await;
    let lab = lab(&mirror, "[\"peer\"]", "hf:acme/tiny");
    let planned = run(&lab, &["plan"]).await;
    assert!(planned.out.contains("pc2 (peer)"), "{}{}", planned.out, planned.err);
    let before = mirror.traffic.requests();
    let applied = run(&lab, &["apply", "--yes"]).await;
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert!(has_both(&lab));
    assert_eq!(mirror.traffic.requests() - before, 4, "the list, whether it answers, and two files");
    let again = run(&lab, &["apply", "--yes"]).await;
    assert_eq!((again.code, mirror.traffic.requests() - before), (0, 4), "nobody is asked for nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_publishes_comes_from_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::open(vec![holding(dir.path())], None).await;
    let lab = lab(&mirror, "[\"peer\", \"upstream\"]", "local");
    let applied = run(&lab, &["apply", "--yes"]).await;
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert!(has_both(&lab));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_peer_is_named_and_nothing_of_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = holding(dir.path());
    put(dir.path(), "large.bin", &LARGE.to_ascii_uppercase(), true);
    let mirror = Mirror::open(vec![artifact], None).await;
    let lab = lab(&mirror, "[\"peer\"]", "hf:acme/tiny");
    let applied = run(&lab, &["apply", "--yes"]).await;
    assert_eq!(applied.code, 4, "{}{}", applied.out, applied.err);
    assert!(applied.err.contains("peer:pc2"), "{}", applied.err);
    assert!(!lab.path("home/plain/large.bin").exists());
    assert!(lab.path("home/plain/small.json").exists(), "the other file is not to blame");
}

/// A peer whose lock names contents of its own for the files that are wanted, and who has just these.
fn answer_with_another_lock(seen: &Seen) -> axum::response::Response {
    let (ours, theirs) = (Sha256::of(LARGE), Sha256::of(b"what mallory wants to be run"));
    let path = seen.line.split(' ').nth(1).unwrap();
    match path.rsplit('/').next().unwrap() {
        "have" => {
            let names = format!("{{\"sha256\": [\"{ours}\", \"{theirs}\"], \"git-sha1\": [\"{}\"]}}", git_name(SMALL));
            answer(200, &[("content-type", "application/json")], names)
        }
        "lock" => {
            let file = format!("{{\"path\": \"large.bin\", \"size\": 28, \"sha256\": \"{theirs}\"}}");
            let artifact =
                format!("{{\"name\": \"tiny\", \"store\": \"plain\", \"source\": \"local\", \"files\": [{file}]}}");
            answer(200, &[], format!("{{\"version\": 99, \"artifacts\": [{artifact}]}}"))
        }
        name if name == ours.to_string() || name == theirs.to_string() => {
            answer(200, &[], "what mallory wants to be run".repeat(2)[..LARGE.len()].to_owned())
        }
        name if name == git_name(SMALL).to_string() => answer(200, &[], SMALL),
        _ => answer(404, &[], ""),
    }
}

/// What is wanted is said by this machine's own lock and manifests; a peer is not even asked what it thinks of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_another_lock_changes_nothing_of_what_is_wanted() {
    let evil = FakeServer::start(answer_with_another_lock).await;
    let dir = tempfile::tempdir().unwrap();
    let good = Mirror::open(vec![holding(dir.path())], Some("{}")).await;
    let lab = lab(&good, "[\"peer\"]", "hf:acme/tiny");
    let inventory = std::fs::read_to_string(lab.path("inventory.toml")).unwrap();
    let alone = inventory.replace(&good.url, &format!("http://{}", evil.host));
    lab.write("inventory.toml", &alone);
    for arguments in [&["plan"][..], &["apply", "--yes"], &["status"], &["repair", "--yes"]] {
        let said = run(&lab, arguments).await;
        assert!(!said.out.contains("mallory"), "{}", said.out);
    }
    assert!(evil.seen().len() > 2, "it was asked for what it says it has");
    assert!(!evil.lines().iter().any(|line| line.ends_with("/lock")), "{:?}", evil.lines());
    assert!(!lab.path("home/plain/large.bin").exists(), "the digest that is wanted is this machine's");
    let lock = std::fs::read_to_string(lab.path("inventory.lock")).unwrap_or_default();
    assert!(!lock.contains(&Sha256::of(b"what mallory wants to be run").to_string()), "{lock}");
    // With an honest one beside it everything comes.
    let honest = format!("{{ name = \"pc3\", url = \"{}\" }}", good.url);
    let both = alone.replace("{ name = \"pc1\", url = \"http://127.0.0.1:9\" }", &honest);
    assert_ne!(both, alone);
    lab.write("inventory.toml", &both);
    let applied = run(&lab, &["apply", "--yes"]).await;
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert!(has_both(&lab));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_peer_a_machine_goes_on_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut theirs = holding(dir.path());
    theirs.artifact.source = "hf:acme/tiny".parse().unwrap();
    let mirror = Mirror::open(vec![theirs], None).await;
    let lab = lab(&mirror, "[\"peer\", \"upstream\"]", "hf:acme/tiny");
    let inventory = std::fs::read_to_string(lab.path("inventory.toml")).unwrap();
    // The peer is gone; the hub is where the peer was.
    let inventory = inventory
        .replace(&mirror.url, "http://127.0.0.1:8")
        .replace("hub = \"http://127.0.0.1:9\"", &format!("hub = \"{}\"", mirror.url));
    lab.write("inventory.toml", inventory);
    let applied = run(&lab, &["apply", "--yes"]).await;
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert!(applied.err.contains("peer pc2") && applied.err.contains("nothing is taken from there"), "{}", applied.err);
    assert!(has_both(&lab));
}

/// A hub that has everything, and a lab that may ask it.
async fn with_upstream(mirror: &Mirror, folder: &Path) -> (Mirror, Lab) {
    let mut published = holding(folder);
    published.artifact.source = "hf:acme/tiny".parse().unwrap();
    let hub = Mirror::open(vec![published], None).await;
    let lab = lab(mirror, "[\"peer\", \"upstream\"]", &format!("hf:acme/tiny@{COMMIT}"));
    let inventory = std::fs::read_to_string(lab.path("inventory.toml")).unwrap();
    let inventory = inventory.replace("hub = \"http://127.0.0.1:9\"", &format!("hub = \"{}\"", hub.url));
    // What the machine says itself about the order of its sources counts before what the lab says.
    lab.write(
        "inventory.toml",
        inventory.replace("profile = \"all\"", "profile = \"all\"\norder = [\"peer\", \"upstream\"]"),
    );
    (hub, lab)
}

/// A peer that has only the large file.
async fn half_a_peer(folder: &Path) -> Mirror {
    let files = vec![put(folder, "large.bin", LARGE, true)];
    Mirror::open(vec![served("theirs", "hf:acme/theirs", Some(COMMIT), files)], None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_only_local_upstream_is_asked_for_nothing() {
    let (theirs, published) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mirror = half_a_peer(theirs.path()).await;
    let (hub, lab) = with_upstream(&mirror, published.path()).await;
    let planned = run(&lab, &["plan", "--only-local"]).await;
    assert!(planned.out.contains("--only-local takes nothing from upstream"), "{}{}", planned.out, planned.err);
    let applied = run(&lab, &["apply", "--yes", "--only-local"]).await;
    assert_eq!(applied.code, 4, "{}{}", applied.out, applied.err);
    assert!(lab.path("home/plain/large.bin").exists() && !lab.path("home/plain/small.json").exists());
    assert_eq!(hub.traffic.requests(), 0);
    let repaired = run(&lab, &["repair", "--yes", "--only-local"]).await;
    assert_eq!((repaired.code, hub.traffic.requests()), (0, 0), "{}{}", repaired.out, repaired.err);
    let applied = run(&lab, &["apply", "--yes"]).await;
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert!(has_both(&lab) && hub.traffic.requests() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_download_limit_is_about_upstream_and_not_about_peers() {
    let (theirs, published) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mirror = Mirror::open(vec![holding(theirs.path())], None).await;
    let (hub, lab) = with_upstream(&mirror, published.path()).await;
    let planned = run(&lab, &["plan", "--max-download", "0B"]).await;
    assert!(planned.out.contains("everything fits"), "{}{}", planned.out, planned.err);
    let applied = run(&lab, &["apply", "--yes", "--max-download", "0B"]).await;
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert!(has_both(&lab));
    assert_eq!(hub.traffic.requests(), 0, "the peer has everything: a lab without an internet waits for nobody");
    drop(hub);
    // A peer behind a line that is paid by the byte says so.
    larder::fsio::remove_file(&lab.path("home/plain/large.bin")).unwrap();
    let inventory = std::fs::read_to_string(lab.path("inventory.toml")).unwrap();
    lab.write("inventory.toml", inventory.replace("name = \"pc2\",", "name = \"pc2\", metered = true,"));
    let applied = run(&lab, &["apply", "--yes", "--max-download", "0B"]).await;
    assert_eq!(applied.code, 4, "{}{}", applied.out, applied.err);
    assert!(applied.out.contains("download limit"), "{}", applied.out);
}

#[test]
fn mistakes_about_peers_are_explained() {
    let sources = "[sources]\npeers = [{ name = \"a\", url = \"pc1:8014\" }, { name = \"a\", url = \"http://b\", certificate = \"sha256:00\" }]\n";
    let lab = Lab::new(&format!("{INVENTORY}\n{sources}"), "");
    let said = lab.run(&["plan"]);
    assert_eq!(said.code, 2, "{}", said.err);
    let digest = "0".repeat(64);
    lab.write("inventory.toml", format!("{INVENTORY}\n{}", sources.replace("sha256:00", &digest)));
    let said = lab.run(&["plan"]);
    for part in ["two peers are called `a`", "its address is not https", "pc1:8014"] {
        assert!(said.err.contains(part), "{part}: {}", said.err);
    }
    assert_eq!(said.code, 2);
}
