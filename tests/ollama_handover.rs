//! Images for a running Ollama server, from what the lab has: by ssh, by a drive, by the LAN, without an upstream.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use larder::digest::Sha256;
use larder::fsio::{WriteOptions, symlink_atomic, write_atomic};
use larder::lock::Lock;
use larder::serve::Served;

#[path = "support/fake_server.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod fake_server;
#[path = "support/mirror.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod mirror;
#[path = "support/ollama_image.rs"]
mod ollama_image;
#[path = "support/ollama_server.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod ollama_server;
#[path = "support/program.rs"]
mod program;
#[path = "support/s3s.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod s3s;
#[path = "support/sshd.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod sshd;

use fake_server::{FakeServer, answer};
use mirror::Mirror;
use ollama_image::Image;
use ollama_server::OllamaServer;
use program::{INVENTORY, Lab, Said};
use s3s::parts::skip;
use s3s::{KEY, S3, SECRET};
use sshd::{Sshd, remote_words};

const MANIFEST: &str = "[[artifact]]\nname = \"tiny:1b\"\nsource = \"ollama:tiny:1b\"\nstore = \"ollama\"\n";

fn image() -> Image {
    Image::new(7, 3 << 20)
}

fn size(image: &Image) -> u64 {
    image.blobs.iter().map(|blob| blob.len() as u64).sum()
}

/// A machine that wants `image`; nobody is upstream.
fn machine(image: &Image, store: &str, sources: &str) -> Lab {
    let inventory = INVENTORY.replace("path = \"~/ollama\" }", &format!("path = \"~/ollama\"{store} }}"));
    let lab = Lab::new(&format!("{inventory}\n[sources]\nollama = \"http://127.0.0.1:9\"\n{sources}"), MANIFEST);
    let lock = Lock { artifacts: vec![image.artifact("tiny:1b")] };
    lock.write(&lab.path("inventory.lock")).unwrap();
    lab
}

/// A machine whose models folder has `image`.
fn full_machine(image: &Image) -> Lab {
    let lab = machine(image, "", "");
    for (path, bytes) in installed(image) {
        lab.write(&format!("home/ollama/{path}"), bytes);
    }
    lab
}

/// How a server's folder looks to larder.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sight {
    /// It can be read, and not written.
    Open,
    /// It is on no file system of this machine.
    Elsewhere,
}

/// A machine whose store a running server keeps.
fn served_machine(image: &Image, server: &OllamaServer, sight: Sight, sources: &str) -> Lab {
    let lab = machine(image, &format!(", api = \"{}\"", server.url()), sources);
    if sight == Sight::Open {
        symlink_atomic(server.folder(), &lab.path("home/ollama"), None).unwrap();
    }
    lab
}

/// What lies in a models folder once `image` is installed.
fn installed(image: &Image) -> BTreeMap<String, Vec<u8>> {
    let blobs = image.blobs.iter().map(|blob| (format!("blobs/sha256-{}", Sha256::of(blob)), blob.clone()));
    let manifest = ("manifests/registry.ollama.ai/library/tiny/1b".to_owned(), image.manifest.clone().into_bytes());
    blobs.chain([manifest]).collect()
}

/// The server has the image, byte for byte, and nothing that only served to bring it.
#[track_caller]
fn assert_has_it(server: &OllamaServer, image: &Image, why: &str) {
    let models = BTreeMap::from([("tiny:1b".to_owned(), image.digest().to_string())]);
    assert_eq!(server.models(), models, "{why}");
    assert!(mirror::contents(server.folder()) == installed(image), "{why}");
}

fn copy(lab: &Lab, sshd: &Sshd, there: &Lab, arguments: &[&str]) -> Said {
    let (client, words) = (sshd.client(), remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &there.path("")));
    let mut command = lab.command(&["copy", "--ssh", &client, "--remote-larder", &words]);
    command.args(arguments).env("PATH", "/usr/bin:/bin");
    tokio::task::block_in_place(|| program::said(&mut command, &lab.path("")))
}

fn run(lab: &Lab, arguments: &[&str]) -> Said {
    tokio::task::block_in_place(|| lab.run(arguments))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_takes_what_another_machine_has() {
    let Some(sshd) = Sshd::start() else { return };
    let image = image();
    let there = full_machine(&image);
    for sight in [Sight::Open, Sight::Elsewhere] {
        let server = OllamaServer::start().await;
        let here = served_machine(&image, &server, sight, "");
        let shown = copy(&here, &sshd, &there, &["pc9:", "--dry-run"]);
        assert!(shown.out.contains("pc9 (peer), through the running Ollama server"), "{}{}", shown.out, shown.err);
        assert!(shown.out.contains("that a killed larder left of these images"), "what goes is shown: {}", shown.out);
        assert_eq!(server.models(), BTreeMap::new());
        let taken = copy(&here, &sshd, &there, &["pc9:", "--yes", "--json"]);
        assert_eq!(taken.code, 0, "{sight:?}: {}{}", taken.out, taken.err);
        assert_has_it(&server, &image, &format!("{sight:?}"));
        let outcome: serde_json::Value = serde_json::from_str(&taken.out).unwrap();
        assert_eq!(outcome["moved_bytes"], size(&image), "every byte once");
        if sight == Sight::Open {
            let status = run(&here, &["status"]);
            assert!(status.code == 0 && !status.out.contains("not read"), "{}{}", status.out, status.err);
            let again = copy(&here, &sshd, &there, &["pc9:", "--yes"]);
            assert!(again.code == 0 && again.out.contains("in order"), "{}{}", again.out, again.err);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_over_there_takes_what_it_is_given() {
    let Some(sshd) = Sshd::start() else { return };
    let (image, server) = (image(), OllamaServer::start().await);
    let (here, there) = (full_machine(&image), served_machine(&image, &server, Sight::Open, ""));
    let given = copy(&here, &sshd, &there, &["--to", "pc9:", "--yes"]);
    assert_eq!(given.code, 0, "{}{}", given.out, given.err);
    assert_has_it(&server, &image, &given.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_takes_what_a_drive_has() {
    let (image, server) = (image(), OllamaServer::start().await);
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    let packed = run(&full_machine(&image), &["copy", "--to", folder, "--yes"]);
    assert_eq!(packed.code, 0, "{}{}", packed.out, packed.err);
    let here = served_machine(&image, &server, Sight::Elsewhere, "");
    let taken = run(&here, &["copy", "--from", folder, "--yes"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    assert_has_it(&server, &image, &taken.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_takes_what_is_read_by_sftp() {
    let Some(sshd) = Sshd::start() else { return };
    let (image, server) = (image(), OllamaServer::start().await);
    let there = full_machine(&image);
    let places = format!("[machines.pc9.stores]\nollama = \"{}\"\n", there.path("home/ollama").display());
    let here = served_machine(&image, &server, Sight::Elsewhere, &places);
    let mut command = here.command(&["copy", "--ssh", &sshd.client(), "--sftp", "pc9:", "--yes"]);
    command.env("PATH", "/usr/bin:/bin");
    let taken = tokio::task::block_in_place(|| program::said(&mut command, &here.path("")));
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    assert_has_it(&server, &image, &taken.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_takes_what_a_bucket_has() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let (image, server) = (image(), OllamaServer::start().await);
    let bucket = format!("{{ name = \"fleet\", url = \"s3://fleet/lab\", endpoint = \"{}\" }}", s3.endpoint);
    let sources = format!("order = [\"bucket\"]\nbuckets = [{bucket}]\n");
    let with_keys = |lab: &Lab, arguments: &[&str]| {
        let mut command = lab.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        tokio::task::block_in_place(|| program::said(&mut command, &lab.path("")))
    };
    let from = machine(&image, "", &sources);
    installed(&image).into_iter().for_each(|(path, bytes)| from.write(&format!("home/ollama/{path}"), bytes));
    let pushed = with_keys(&from, &["push", "--yes"]);
    assert_eq!(pushed.code, 0, "{}{}", pushed.out, pushed.err);
    let here = served_machine(&image, &server, Sight::Elsewhere, &sources);
    let applied = with_keys(&here, &["apply", "--yes"]);
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert_has_it(&server, &image, &applied.out);
}

/// A peer of the LAN that has `image` where `folder` is.
async fn peer(image: &Image, folder: &Path) -> Mirror {
    let artifact = image.artifact("tiny:1b");
    let places = artifact.files.iter().map(|file| {
        let place = folder.join(file.digests.sha256.unwrap().to_string());
        write_atomic(&place, image.content(file), &WriteOptions::default()).unwrap();
        Some(place)
    });
    let content = places.collect();
    Mirror::open(vec![Served { artifact, content }], None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_takes_from_a_peer_for_the_server_and_asks_upstream_for_nothing() {
    let (image, server) = (image(), OllamaServer::start().await);
    let upstream = FakeServer::start(|_| answer(500, &[], "")).await;
    let folder = tempfile::tempdir().unwrap();
    let peer = peer(&image, folder.path()).await;
    let sources = format!("peers = [{{ name = \"pc2\", url = \"{}\" }}]\n", peer.url);
    let here = served_machine(&image, &server, Sight::Elsewhere, &sources);
    let inventory = std::fs::read_to_string(here.path("inventory.toml")).unwrap();
    here.write("inventory.toml", inventory.replace("http://127.0.0.1:9", &format!("http://{}", upstream.host)));
    let applied = run(&here, &["apply", "--yes", "--max-download", "0B"]);
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert_has_it(&server, &image, &applied.out);
    assert_eq!(upstream.lines(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rotten_at_the_peer_is_not_installed() {
    let (image, server) = (image(), OllamaServer::start().await);
    let folder = tempfile::tempdir().unwrap();
    let peer = peer(&image, folder.path()).await;
    let weights = &image.blobs[1];
    let rotten: Vec<u8> = weights.iter().map(|byte| byte ^ 1).collect();
    let place = folder.path().join(Sha256::of(weights).to_string());
    write_atomic(&place, &rotten, &WriteOptions::default()).unwrap();
    let sources = format!("peers = [{{ name = \"pc2\", url = \"{}\" }}]\n", peer.url);
    let here = served_machine(&image, &server, Sight::Elsewhere, &sources);
    let failed = run(&here, &["apply", "--yes"]);
    assert_ne!(failed.code, 0, "{}{}", failed.out, failed.err);
    assert!(failed.out.contains("failed: tiny:1b") && failed.out.contains("digest mismatch"), "{}", failed.out);
    assert!(failed.out.contains("hint: what it was given is not the image"), "{}", failed.out);
    assert_eq!(server.models(), BTreeMap::new());
}

/// A server never reads what it has. What larder cannot read either is not called proven.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_had_before_and_nobody_can_read_is_not_proven() {
    let (image, server) = (image(), OllamaServer::start().await);
    let folder = tempfile::tempdir().unwrap();
    let peer = peer(&image, folder.path()).await;
    let blob = format!("blobs/sha256-{}", Sha256::of(&image.blobs[1]));
    write_atomic(&server.folder().join(&blob), b"something else", &WriteOptions::default()).unwrap();
    let sources = format!("peers = [{{ name = \"pc2\", url = \"{}\" }}]\n", peer.url);
    let here = served_machine(&image, &server, Sight::Elsewhere, &sources);
    let failed = run(&here, &["apply", "--yes"]);
    assert_ne!(failed.code, 0, "{}{}", failed.out, failed.err);
    assert!(failed.out.contains("installed, but not proven") && failed.out.contains(&blob), "{}", failed.out);
    assert!(failed.out.contains("hint: run larder as a user who may read"), "{}", failed.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_killed_larders_left_are_removed_and_no_others() {
    let (image, server) = (image(), OllamaServer::start().await);
    let folder = tempfile::tempdir().unwrap();
    let peer = peer(&image, folder.path()).await;
    let theirs = ["127.0.0.1:9/larder-0123/tiny:3b", "127.0.0.1:9/somebody/tiny:1b"];
    for left in theirs.iter().chain(&["127.0.0.1:9/larder-0123/tiny:1b"]) {
        server.pretend(left, &image.digest().to_string());
        let place = server.folder().join("manifests").join(left.replace(":1b", "/1b").replace(":3b", "/3b"));
        write_atomic(&place, image.manifest.as_bytes(), &WriteOptions::default()).unwrap();
    }
    let sources = format!("peers = [{{ name = \"pc2\", url = \"{}\" }}]\n", peer.url);
    let here = served_machine(&image, &server, Sight::Elsewhere, &sources);
    let applied = run(&here, &["apply", "--yes"]);
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    let names: Vec<String> = server.models().into_keys().collect();
    assert_eq!(names, [theirs[0], theirs[1], "tiny:1b"]);
}

/// Where the server is another machine's, nothing on this one's loopback is of use to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_machine_is_not_sent_to_this_ones_loopback() {
    let image = image();
    let lab = machine(&image, ", api = \"http://192.0.2.7:11434\"", "");
    larder::fsio::create_dir_all(&lab.path("home/ollama/blobs"), None).unwrap();
    // Its folder is here, so that nobody need be asked what is in it.
    larder::fsio::create_dir_all(&lab.path("home/ollama/blobs"), None).unwrap();
    let drive = tempfile::tempdir().unwrap();
    let shown = run(&lab, &["copy", "--from", drive.path().to_str().unwrap(), "--dry-run"]);
    assert!(shown.out.contains("takes in only what it pulls itself"), "{}{}", shown.out, shown.err);
}
