//! The hub, plain http and folders as sources: what they list, what they ask for, and what they make of bad answers.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "tests lay out their own folders")]

use std::path::Path;
use std::time::{Duration, Instant};

use larder::artifact::Reference;
use larder::digest::{Digests, Sha256};
use larder::sources::{ByteRange, DirectorySource, Source as _, SourceError, SourceSettings, Sources, find_in_drive};

#[path = "contract/source.rs"]
#[expect(dead_code, reason = "the contract is kept in source_contract.rs; here only bodies are read by it")]
mod contract;
#[path = "support/hub.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod hub;
#[path = "support/hub_source.rs"]
mod hub_source;

use contract::read;
use hub::{Fault, Hub};
use hub_source::{ALWAYS, content, remote, settings, source};

/// Path, length, sha256 or git-sha1, by LFS.
fn described(listing: &larder::sources::Listing) -> Vec<(String, u64, String, Option<bool>)> {
    let digest = |digests: &Digests| {
        let sha256 = digests.sha256.map(|digest| digest.to_string());
        sha256.or(digests.git_sha1.map(|digest| digest.to_string())).unwrap_or_default()
    };
    listing
        .files
        .iter()
        .map(|file| (file.path.to_string(), file.size.unwrap(), digest(&file.digests), file.lfs))
        .collect()
}

#[tokio::test]
async fn listing_a_repository_takes_one_request_and_one_for_each_page() {
    for relative in [false, true] {
        let hub = Hub::start();
        let files: [(&str, &[u8], bool); 4] = [
            ("b/model.bin", b"weights", true),
            ("config.json", b"{}", false),
            ("a.txt", b"a", false),
            ("z", b"", false),
        ];
        let commit = hub.commit("acme/tiny", &files);
        hub.set_page_size(2);
        if relative {
            hub.use_relative_links();
        }
        let reference: Reference = "hf:acme/tiny".parse().unwrap();
        let listing = source(&hub, "hf:acme/tiny").list(&reference).await.unwrap();
        assert_eq!(listing.revision.as_deref(), Some(commit.as_str()));
        assert_eq!(
            described(&listing),
            [
                ("a.txt".to_owned(), 1, hub::git_sha1(b"a"), Some(false)),
                ("b/model.bin".to_owned(), 7, hub::sha256(b"weights"), Some(true)),
                ("config.json".to_owned(), 2, hub::git_sha1(b"{}"), Some(false)),
                ("z".to_owned(), 0, hub::git_sha1(b""), Some(false)),
            ]
        );
        // Four files and one folder make three pages.
        let paths: Vec<String> =
            hub.log().iter().map(|logged| logged.path.split('?').next().unwrap().to_owned()).collect();
        let tree = format!("/api/models/acme/tiny/tree/{commit}");
        assert_eq!(paths, ["/api/models/acme/tiny/revision/main", &tree, &tree, &tree]);
        assert!(hub.log()[0].user_agent.starts_with("larder/"));

        hub.clear_log();
        let pinned: Reference = format!("hf:acme/tiny@{commit}").parse().unwrap();
        source(&hub, "hf:acme/tiny").list(&pinned).await.unwrap();
        assert_eq!(hub.log().len(), 3, "a commit needs no resolving");
    }
}

#[tokio::test]
async fn listing_one_file_takes_two_requests() {
    let hub = Hub::start();
    let commit = hub.commit("datasets/acme/images", &[("a b/x&y=z.bin", b"weights", true), ("other", b"o", false)]);
    hub.tag("datasets/acme/images", "refs/pr/1", &commit);
    let reference: Reference = "hf:datasets/acme/images@refs%2Fpr%2F1/a b/x&y=z.bin".parse().unwrap();
    let listing = source(&hub, "hf:acme/tiny").list(&reference).await.unwrap();
    assert_eq!(described(&listing), [("a b/x&y=z.bin".to_owned(), 7, hub::sha256(b"weights"), Some(true))]);
    let log: Vec<String> = hub.log().iter().map(|logged| format!("{} {}", logged.method, logged.path)).collect();
    assert_eq!(
        log,
        [
            "GET /api/datasets/acme/images/revision/refs%2Fpr%2F1".to_owned(),
            format!("POST /api/datasets/acme/images/paths-info/{commit}"),
        ]
    );
}

#[tokio::test]
async fn opening_an_lfs_file_asks_the_hub_once_and_the_cdn_once_for_the_missing_bytes_only() {
    let hub = Hub::start();
    let bytes = content(100_000);
    let commit = hub.commit("acme/tiny", &[("model.bin", &bytes, true)]);
    hub.advertise_xet();
    let there = remote(&format!("hf:acme/tiny@{commit}/model.bin"), &bytes);
    let body = source(&hub, "hf:acme/tiny").open(&there, ByteRange::from(90_000)).await.unwrap();
    assert_eq!((body.start, body.total), (90_000, Some(100_000)));
    assert_eq!(body.etag, Some(hub::sha256(&bytes)), "the hub's name for the content, not the CDN's");
    let (got, end) = read(body).await;
    end.unwrap();
    assert_eq!(got, bytes[90_000..]);
    let log = hub.log();
    assert_eq!(log.len(), 2);
    assert!(!log[0].on_cdn && log[1].on_cdn);
    assert_eq!(log[1].range.as_deref(), Some("bytes=90000-"));
    assert_eq!(log[1].sent, 10_000);
}

#[tokio::test]
async fn the_hub_is_asked_once_for_many_ranges_and_again_when_its_link_runs_out() {
    let hub = Hub::start();
    let bytes = content(90_000);
    let commit = hub.commit("acme/tiny", &[("model.bin", &bytes, true)]);
    let source = source(&hub, "hf:acme/tiny");
    let there = remote(&format!("hf:acme/tiny@{commit}/model.bin"), &bytes);
    let mut got = Vec::new();
    for start in [0, 30_000, 60_000] {
        if start == 60_000 {
            hub.fail("xet-bridge", Fault::Status(403), 1);
        }
        let range = ByteRange { start, end: Some(start + 30_000) };
        let body = source.open(&there, range).await.unwrap();
        assert_eq!(body.etag, Some(hub::sha256(&bytes)), "the name is the hub's, however the bytes are reached");
        let (part, end) = read(body).await;
        end.unwrap();
        got.extend(part);
    }
    assert_eq!(got, bytes);
    let asked: Vec<bool> = hub.log().iter().map(|logged| logged.on_cdn).collect();
    assert_eq!(asked, [false, true, true, true, false, true], "hub, CDN, CDN, refused, hub, CDN");

    // A branch may move, so its files are asked for anew.
    hub.clear_log();
    let moving = remote("hf:acme/tiny@main/model.bin", &bytes);
    for _ in 0..2 {
        source.open(&moving, ByteRange { start: 0, end: Some(10) }).await.unwrap();
    }
    assert_eq!(hub.count(|logged| !logged.on_cdn), 2);
}

#[tokio::test]
async fn checking_reads_no_content() {
    let hub = Hub::start();
    let bytes = content(100_000);
    hub.commit("acme/tiny", &[("model.bin", &bytes, true), ("small.bin", &bytes, false)]);
    let source = source(&hub, "hf:acme/tiny");
    source.check(&remote("hf:acme/tiny/model.bin", &bytes)).await.unwrap();
    assert_eq!(hub.log().len(), 1, "the CDN is not asked");
    source.check(&remote("hf:acme/tiny/small.bin", &bytes)).await.unwrap();
    assert_eq!(hub.log().iter().map(|logged| logged.sent).sum::<u64>(), 0);
}

#[tokio::test]
async fn a_link_that_ran_out_is_not_permanent_and_a_fresh_one_works() {
    let hub = Hub::start();
    let bytes = content(5_000);
    hub.commit("acme/tiny", &[("model.bin", &bytes, true)]);
    hub.set_link_uses(0);
    let source = source(&hub, "hf:acme/tiny");
    let there = remote("hf:acme/tiny/model.bin", &bytes);
    let error = source.open(&there, ByteRange::default()).await.unwrap_err();
    assert!(!error.is_permanent(), "{error}");
    assert!(error.to_string().ends_with("refused the signed link (403)"), "{error}");
    assert!(!error.to_string().contains("secret-signature"), "{error}");
    hub.set_link_uses(1);
    read(source.open(&there, ByteRange::default()).await.unwrap()).await.1.unwrap();
}

/// What comes of opening a file of a repository whose bytes go wrong.
async fn outcome(fault: Fault, lfs: bool, range: ByteRange) -> (Vec<u8>, Option<SourceError>) {
    let hub = Hub::start();
    let bytes = content(5_000);
    hub.commit("acme/tiny", &[("model.bin", &bytes, lfs)]);
    hub.fail(if lfs { "xet-bridge" } else { "resolve-cache" }, fault, 1);
    let there = remote("hf:acme/tiny/model.bin", &bytes);
    match source(&hub, "hf:acme/tiny").open(&there, range).await {
        Err(error) => (Vec::new(), Some(error)),
        Ok(body) => {
            let (got, end) = read(body).await;
            (got, end.err())
        }
    }
}

#[tokio::test]
async fn answers_that_are_not_the_file_are_recognised_before_a_byte_is_passed_on() {
    for lfs in [false, true] {
        for (fault, message) in [
            (Fault::Page { labelled: true }, "sent a web page instead of the file"),
            (Fault::Page { labelled: false }, "sent a web page instead of the file"),
            (Fault::Pointer, "sent a git-lfs pointer instead of the file"),
            (Fault::Gzip, "sent compressed data instead of the file"),
            (Fault::Longer(3_000), "changed: it has 8000 bytes now, 5000 were locked"),
        ] {
            let (got, error) = outcome(fault.clone(), lfs, ByteRange::default()).await;
            let error = error.unwrap_or_else(|| panic!("{fault:?} passed"));
            assert_eq!(error.to_string(), format!("hf:acme/tiny@main/model.bin {message}"), "{fault:?}");
            assert!(got.is_empty() && error.is_permanent(), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn nonsense_in_content_range_is_refused() {
    for range in [
        "bytes 20-4999/5000",
        // Of the right length, but a hole lies before it.
        "bytes 20-5009/*",
        "bytes 5-1/5000",
        "bytes 0-4999",
        "0-4999/5000",
        "bytes 10-5000/5000",
        "bytes +10-4999/5000",
    ] {
        let (_, error) = outcome(Fault::ContentRange(range), true, ByteRange::from(10)).await;
        let error = error.unwrap();
        assert!(matches!(error, SourceError::Protocol { .. }), "{range}: {error}");
        assert!(error.to_string().contains("its Content-Range is"), "{range}: {error}");
    }
    let (_, error) = outcome(Fault::ContentRange("bytes 10-4999/6000"), true, ByteRange::from(10)).await;
    assert!(matches!(error, Some(SourceError::Changed { actual: 6000, expected: 5000, .. })), "{error:?}");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_sends_the_file_from_its_start() {
    let (got, error) = outcome(Fault::IgnoreRange, true, ByteRange::from(1_000)).await;
    assert!(error.is_none() && got == content(5_000));
    let part = ByteRange { start: 1_000, end: Some(1_500) };
    let (got, error) = outcome(Fault::IgnoreRange, true, part).await;
    assert!(error.is_none() && got == content(5_000)[..1_500], "nothing beyond the end that was asked for");
}

#[tokio::test]
async fn a_body_without_a_length_is_measured_by_the_expected_one() {
    let (got, error) = outcome(Fault::Chunked { send: 5_000 }, false, ByteRange::default()).await;
    assert!(error.is_none() && got == content(5_000));
    let (got, error) = outcome(Fault::Chunked { send: 4_000 }, false, ByteRange::default()).await;
    assert!(matches!(error, Some(SourceError::CutShort { expected: 5_000, got: 4_000, .. })), "{error:?}");
    assert_eq!(got, content(4_000));
    let (got, error) = outcome(Fault::Chunked { send: 6_000 }, false, ByteRange::default()).await;
    assert!(error.is_none() && got == content(5_000), "nothing but the file was passed on: {error:?}");
}

#[tokio::test]
async fn silence_ends_after_the_stall_timeout_with_what_came_so_far() {
    let (got, error) = outcome(Fault::StallAt(2_000), true, ByteRange::default()).await;
    assert_eq!(got, content(5_000)[..2_000]);
    let error = error.unwrap();
    assert_eq!(error.to_string(), "hf:acme/tiny@main/model.bin cannot be reached: no sign of life for too long");
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn a_spent_budget_is_waited_for_before_the_next_request() {
    let hub = Hub::start();
    hub.commit("acme/tiny", &[("config.json", b"{}", false)]);
    hub.fail("/revision/main", Fault::Spent { seconds: 1 }, 1);
    let began = Instant::now();
    source(&hub, "hf:acme/tiny").list(&"hf:acme/tiny".parse().unwrap()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(950), "{:?}", began.elapsed());
    assert_eq!(hub.log().len(), 2, "no request was refused");
}

#[tokio::test]
async fn offline_nothing_is_asked_but_folders_still_answer() {
    let hub = Hub::start();
    hub.commit("acme/tiny", &[("config.json", b"{}", false)]);
    let sources = Sources::new(&SourceSettings { offline: true, ..settings(&hub) }).unwrap();
    for text in ["hf:acme/tiny", "ollama:qwen3:4b", &format!("{}/x?signature=secret", hub.origin)] {
        let error = sources.for_reference(&text.parse().unwrap()).err().unwrap();
        assert!(matches!(error, SourceError::Offline { .. }) && !error.to_string().contains("secret"), "{error}");
    }
    assert!(sources.for_reference(&"file:/srv".parse().unwrap()).is_ok());
    assert!(hub.log().is_empty());
}

#[tokio::test]
async fn plain_http_lists_the_one_file_and_falls_back_to_get() {
    let hub = Hub::start();
    hub.commit("acme/tiny", &[("a b.bin", &content(3_000), true)]);
    let reference: Reference =
        format!("{}/acme/tiny/resolve/main/a%20b.bin?download=true", hub.origin).parse().unwrap();
    let source = source(&hub, "https://example.org/x");
    for refused in [false, true] {
        if refused {
            hub.fail("xet-bridge", Fault::Status(405), 1);
        }
        let listing = source.list(&reference).await.unwrap();
        assert_eq!(listing.files.len(), 1);
        assert_eq!((listing.files[0].path.as_str(), listing.files[0].size), ("a b.bin", Some(3_000)));
        assert!(hub.log().iter().map(|logged| logged.sent).sum::<u64>() <= 1);
    }
    let error = source.list(&format!("{}/folder/", hub.origin).parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().ends_with("the address does not end in a file name"), "{error}");
    let error = source.list(&format!("{}/a%2Fb", hub.origin).parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn a_plain_file_that_was_exchanged_meanwhile_comes_whole() {
    let hub = Hub::start();
    let (old, new) = (content(3_000), content(3_032)[32..].to_vec());
    hub.commit("acme/tiny", &[("a.bin", &old, true)]);
    let there = remote(&format!("{}/acme/tiny/resolve/main/a.bin", hub.origin), &old);
    let source = source(&hub, "https://example.org/x");
    let first = ByteRange { start: 0, end: Some(1_000) };
    assert_eq!(read(source.open(&there, first).await.unwrap()).await.0, old[..1_000]);
    let body = source.open(&there, ByteRange::from(1_000)).await.unwrap();
    assert_eq!((body.start, read(body).await.0.len()), (1_000, 2_000), "the same file goes on");
    assert!(hub.log().last().unwrap().if_range.is_some());

    hub.commit("acme/tiny", &[("a.bin", &new, true)]);
    let body = source.open(&there, ByteRange::from(1_000)).await.unwrap();
    assert_eq!(body.start, 0, "a part of the new file must not be joined to the old one");
    assert_eq!(read(body).await.0, new);
}

#[tokio::test]
async fn redirects_that_lead_nowhere_end() {
    let hub = Hub::start();
    let url = format!("{}/here.bin", hub.origin);
    hub.fail("here.bin", Fault::Redirect(url.clone()), ALWAYS);
    let source = source(&hub, &url);
    let error = source.list(&url.parse().unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{url} sent an answer that makes no sense: its redirects lead in a circle"));
    assert_eq!(hub.log().len(), 1);
}

#[tokio::test]
async fn nobody_at_home_is_not_permanent() {
    let hub = Hub::start();
    let there = remote(&format!("{}/gone.bin?signature=secret", hub.origin), b"x");
    let source = source(&hub, "https://example.org/x");
    drop(hub);
    let error = source.open(&there, ByteRange::default()).await.unwrap_err();
    assert!(!error.is_permanent() && error.to_string().contains("refused"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

fn lay(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, bytes).unwrap();
}

#[tokio::test]
async fn folders_list_what_lies_within_them() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("drive");
    lay(&root, "b/two.bin", b"22");
    lay(&root, "a.txt", b"1");
    lay(&root, ".larder/x.partial", b"unfinished");
    std::os::unix::fs::symlink("b/two.bin", root.join("link.bin")).unwrap();
    let list = || async {
        let listing = DirectorySource::new().list(&Reference::Directory(root.clone())).await;
        listing.map(|listing| listing.files.iter().map(|f| (f.path.to_string(), f.size)).collect::<Vec<_>>())
    };
    let expected = [("a.txt", 1), ("b/two.bin", 2), ("link.bin", 2)].map(|(path, size)| (path.to_owned(), Some(size)));
    assert_eq!(list().await.unwrap(), expected);

    lay(dir.path(), "outside.bin", b"secret");
    std::os::unix::fs::symlink("../outside.bin", root.join("out.bin")).unwrap();
    let error = list().await.unwrap_err().to_string();
    assert!(error.contains("out.bin") && error.contains("the link leads out of"), "{error}");
    fs_err::remove_file(root.join("out.bin")).unwrap();

    std::os::unix::fs::symlink("nowhere", root.join("dangling.bin")).unwrap();
    let error = list().await.unwrap_err();
    assert!(matches!(&error, SourceError::NotFound { what, .. } if what.ends_with("dangling.bin")), "{error}");
    fs_err::remove_file(root.join("dangling.bin")).unwrap();

    std::os::unix::fs::symlink("..", root.join("b/loop")).unwrap();
    let error = list().await.unwrap_err().to_string();
    assert!(error.contains("leads to a folder above itself"), "{error}");

    let error = DirectorySource::new().list(&Reference::Directory(dir.path().join("none"))).await.unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }));
}

#[test]
fn a_drive_may_hold_content_in_three_ways() {
    let dir = tempfile::tempdir().unwrap();
    let sha256 = Sha256::of(b"weights");
    let own = "sub/model.bin".parse().unwrap();
    let find = || -> Vec<String> {
        let found = find_in_drive(dir.path(), &Digests::sha256(sha256), Some(7), std::slice::from_ref(&own)).unwrap();
        found.iter().map(|f| f.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert!(find().is_empty());
    lay(dir.path(), &format!("blobs/sha256/{sha256}"), b"weights");
    lay(dir.path(), &format!("blobs/sha256-{sha256}"), b"weights");
    lay(dir.path(), "sub/model.bin", b"weights");
    assert_eq!(find(), [format!("sha256-{sha256}"), sha256.to_string(), "model.bin".to_owned()]);
    lay(dir.path(), "sub/model.bin", b"other length");
    assert_eq!(find().len(), 2);
}

#[test]
fn no_settings_print_the_token() {
    let token = "hf_verysecretverysecret";
    let settings = SourceSettings { hub_token: Some(token.to_owned()), ..SourceSettings::default() };
    let sources = Sources::new(&settings).unwrap();
    let config = larder::sources::HubConfig {
        endpoint: "https://huggingface.co".parse().unwrap(),
        token: Some(token.to_owned()),
        offline: false,
    };
    for printed in [format!("{settings:?}"), format!("{sources:?}"), format!("{config:?}"), format!("{config:#?}")] {
        assert!(!printed.contains("verysecret"), "{printed}");
    }
    let broken = SourceSettings { hub_token: Some(format!("{token}\nx")), ..SourceSettings::default() };
    let error = Sources::new(&broken).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("verysecret"), "{error:?}");
}
