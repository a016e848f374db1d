//! The contract of all sources, kept by the hub, plain http, folders and sftp.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "tests lay out their own folders")]

use std::path::Path;

use larder::artifact::{Reference, Remote};
use larder::digest::{ContentName, Digests, Sha256};
use larder::sources::{ByteRange, DirectorySource, SftpConfig, Source as _, SourceError, SourceSettings, Sources};

#[path = "contract/source.rs"]
mod contract;
#[path = "support/hub.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod hub;
#[path = "support/hub_source.rs"]
mod hub_source;
#[path = "support/skip.rs"]
mod skip;

use contract::{Case, read, suite};
use hub::{Fault, Hub};
use hub_source::{ALWAYS, OneOf, content, remote, source};

/// A hub with one content under four names, of which two go wrong.
fn hub_with(content: &[u8], lfs: bool) -> Hub {
    let hub = Hub::start();
    let names = ["file.bin", "busy.bin", "short.bin", "sub folder/odd #1?.bin"];
    hub.commit("acme/tiny", &names.map(|name| (name, content, lfs)));
    hub.fail("busy.bin", Fault::Status(503), ALWAYS);
    hub
}

async fn hub_contract(lfs: bool) {
    let bytes = content(200_000);
    let hub = hub_with(&bytes, lfs);
    let mut other = bytes.clone();
    other[0] ^= 1;
    hub.commit("acme/broken", &[("short.bin", &other, lfs)]);
    // The CDN's links carry the content's name, not the file's.
    let broken_at = if lfs { hub::sha256(&other) } else { "acme/broken/".to_owned() };
    hub.fail(&broken_at, Fault::CutAt(70_000), ALWAYS);
    for name in ["file.bin", "sub folder/odd #1?.bin"] {
        let case = Case {
            source: Box::new(source(&hub, "hf:acme/tiny")),
            there: remote(&format!("hf:acme/tiny@main/{name}"), &bytes),
            content: bytes.clone(),
            missing: remote("hf:acme/tiny@main/missing.bin", &bytes),
            busy: Some(remote("hf:acme/tiny@main/busy.bin", &bytes)),
            short: None,
        };
        suite(&case).await;
    }
    let case = Case {
        source: Box::new(source(&hub, "hf:acme/tiny")),
        there: remote("hf:acme/tiny@main/file.bin", &bytes),
        content: other.clone(),
        missing: remote("hf:acme/tiny@main/missing.bin", &bytes),
        busy: None,
        short: Some(remote("hf:acme/broken/short.bin", &other)),
    };
    contract::short_is_cut_short(&case).await;
}

#[tokio::test]
async fn the_hub_keeps_the_contract_for_files_in_git() {
    hub_contract(false).await;
}

#[tokio::test]
async fn the_hub_keeps_the_contract_for_lfs_files() {
    hub_contract(true).await;
}

#[tokio::test]
async fn plain_http_keeps_the_contract() {
    let bytes = content(200_000);
    let hub = hub_with(&bytes, false);
    hub.fail("short.bin", Fault::CutAt(70_000), ALWAYS);
    let url = |name: &str| format!("{}/acme/tiny/resolve/main/{name}", hub.origin);
    let case = Case {
        source: Box::new(source(&hub, &url("file.bin"))),
        there: remote(&url("file.bin"), &bytes),
        content: bytes.clone(),
        missing: remote(&url("missing.bin"), &bytes),
        busy: Some(remote(&url("busy.bin"), &bytes)),
        short: Some(remote(&url("short.bin"), &bytes)),
    };
    suite(&case).await;
}

#[tokio::test]
async fn folders_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(3_000_000);
    fs_err::write(dir.path().join("file.bin"), &bytes).unwrap();
    let at = |name: &str| format!("file:{}", dir.path().join(name).display());
    let case = Case {
        source: Box::new(DirectorySource::new()),
        there: remote(&at("file.bin"), &bytes),
        content: bytes.clone(),
        missing: remote(&at("missing.bin"), &bytes),
        busy: None,
        short: None,
    };
    suite(&case).await;
}

const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// A source that reads the contents that lie at `places` by the sftp server of OpenSSH.
fn by_sftp(places: &[(Sha256, &Path)]) -> OneOf {
    let place =
        |(digest, path): &(Sha256, &Path)| (ContentName::Sha256(*digest), (None, vec![path.display().to_string()]));
    let config = SftpConfig {
        name: "pc9".to_owned(),
        command: vec![SFTP_SERVER.into()],
        sessions: 2,
        places: places.iter().map(place).collect(),
    };
    let settings = SourceSettings { sftp: vec![config], ..SourceSettings::default() };
    let reference = Reference::Peer { peer: "pc9".to_owned(), content: ContentName::Sha256(places[0].0) };
    OneOf(Sources::new(&settings).unwrap(), reference)
}

fn on_pc9(digest: Sha256, size: usize) -> Remote {
    let reference = Reference::Peer { peer: "pc9".to_owned(), content: ContentName::Sha256(digest) };
    Remote { reference, size: Some(size as u64), digests: Digests::sha256(digest) }
}

#[tokio::test]
async fn sftp_keeps_the_contract() {
    if !Path::new(SFTP_SERVER).exists() {
        return skip::skipped("OpenSSH's sftp server is missing; install it with scripts/test-parts");
    }
    let dir = tempfile::tempdir().unwrap();
    let (there, missing) = (dir.path().join("a name with spaces and ü"), dir.path().join("missing.bin"));
    // More than is on its way at a time.
    let bytes = content(9_000_001);
    fs_err::write(&there, &bytes).unwrap();
    let (digest, other) = (Sha256::of(&bytes), Sha256::of(b"other"));
    let case = Case {
        source: Box::new(by_sftp(&[(digest, &there), (other, &missing)])),
        there: on_pc9(digest, bytes.len()),
        content: bytes.clone(),
        missing: on_pc9(other, bytes.len()),
        busy: None,
        short: None,
    };
    suite(&case).await;
}

/// The file shrinks while it is read.
#[tokio::test]
async fn what_breaks_off_by_sftp_is_cut_short() {
    if !Path::new(SFTP_SERVER).exists() {
        return skip::skipped("OpenSSH's sftp server is missing; install it with scripts/test-parts");
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = (dir.path().join("file.bin"), content(20_000_000));
    fs_err::write(&path, &bytes).unwrap();
    let digest = Sha256::of(&bytes);
    let source = by_sftp(&[(digest, &path)]);
    let body = source.open(&on_pc9(digest, bytes.len()), ByteRange::default()).await.unwrap();
    fs_err::OpenOptions::new().write(true).open(&path).unwrap().set_len(1_000_000).unwrap();
    let (came, end) = read(body).await;
    assert!(matches!(end, Err(SourceError::CutShort { expected: 20_000_000, got: 1_000_000, .. })), "{end:?}");
    assert!(came == bytes[..1_000_000]);
}
