//! Why larder does not fetch with the `hf-hub` crate (docs/decisions/0002-hf-hub.md).
//!
//! Each test asserts a defect as it is. One that fails tells that the defect is mended: look at the
//! decision again.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use futures_util::TryStreamExt;
use hf_hub::HFClient;
use hf_hub::repository::RepoTreeEntry;

#[path = "support/hub.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod hub;

use hub::{Fault, Hub};

/// A hub with one LFS file in `acme/tiny`.
fn hub_with(weights: &[u8]) -> Hub {
    let hub = Hub::start();
    hub.commit("acme/tiny", &[("model.bin", weights, true)]);
    hub
}

fn client(hub: &Hub, cache: &Path) -> HFClient {
    HFClient::builder().endpoint(hub.origin.clone()).token("hf_test").cache_dir(cache).build().unwrap()
}

async fn download(hub: &Hub, cache: &Path) -> Result<Vec<u8>, hf_hub::HFError> {
    let path = client(hub, cache).model("acme", "tiny").download_file().filename("model.bin").send().await?;
    Ok(fs_err::read(path).unwrap())
}

#[tokio::test]
async fn defect_1_a_tree_loses_the_sha256_of_lfs_files() {
    let (hub, cache) = (hub_with(b"weights"), tempfile::tempdir().unwrap());
    let model = client(&hub, cache.path()).model("acme", "tiny");
    let entries: Vec<RepoTreeEntry> = model.list_tree().recursive(true).send().unwrap().try_collect().await.unwrap();
    let [RepoTreeEntry::File { lfs: Some(lfs), path, .. }] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!(path, "model.bin");
    assert_eq!(lfs.sha256, None, "the hub did send it");
}

#[tokio::test]
async fn defect_2_a_refusal_becomes_the_blob() {
    let (hub, cache) = (hub_with(b"weights"), tempfile::tempdir().unwrap());
    hub.fail("xet-bridge", Fault::Status(404), 1);
    let downloaded = download(&hub, cache.path()).await;
    assert_eq!(downloaded.unwrap(), b"refused for the test\n");
    let blob = cache.path().join("models--acme--tiny/blobs").join(hub::sha256(b"weights"));
    assert_eq!(fs_err::read(blob).unwrap(), b"refused for the test\n", "under the name of the right content");
}

#[tokio::test]
async fn defect_3_wrong_content_is_not_noticed() {
    let (hub, cache) = (hub_with(b"weights"), tempfile::tempdir().unwrap());
    hub.fail("xet-bridge", Fault::WrongByte, 1);
    let downloaded = download(&hub, cache.path()).await.unwrap();
    assert_ne!(downloaded, b"weights");
    assert_eq!(hub::sha256(&downloaded).len(), hub::sha256(b"weights").len());
    assert_ne!(hub::sha256(&downloaded), hub::sha256(b"weights"));
}

#[tokio::test]
async fn defect_4_a_broken_download_starts_again_from_nothing() {
    let weights: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
    let (hub, cache) = (hub_with(&weights), tempfile::tempdir().unwrap());
    hub.fail("xet-bridge", Fault::CutAt(40_000), 1);
    download(&hub, cache.path()).await.unwrap_err();
    let partial = cache.path().join("models--acme--tiny/blobs").join(format!("{}.incomplete", hub::sha256(&weights)));
    assert!(fs_err::metadata(partial).unwrap().len() > 0, "there was something to go on from");
    hub.clear_log();
    assert_eq!(download(&hub, cache.path()).await.unwrap(), weights);
    let gets: Vec<_> = hub.log().into_iter().filter(|logged| logged.on_cdn).collect();
    assert_eq!(gets.len(), 1);
    assert_eq!((gets[0].range.as_deref(), gets[0].sent), (None, 50_000));
}
