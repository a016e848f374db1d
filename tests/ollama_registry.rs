//! Ollama images from a real registry, and from one that misbehaves.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use larder::artifact::{Artifact, File, Reference, Remote};
use larder::digest::{ContentHasher, Digests, Sha256};
use larder::fsio::{Partial, ProofError, WriteOptions, write_atomic};
use larder::sources::{Body, ByteRange, OllamaConfig, OllamaSource, Source, SourceError};
use larder::stores::{FileState, OllamaStore, Store};

#[path = "contract/source.rs"]
mod contract;
#[path = "support/docker_registry.rs"]
mod docker_registry;
#[path = "support/fake_server.rs"]
mod fake_server;
#[path = "support/ollama_image.rs"]
mod ollama_image;
#[path = "support/scripted.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod scripted;

use docker_registry::DockerRegistry;
use fake_server::{FakeServer, answer};
use ollama_image::Image;
use scripted::{Reply, Scripted};

fn source() -> OllamaSource {
    OllamaSource::new(OllamaConfig::default(), reqwest::Client::new())
}

fn name(host: &str, rest: &str) -> Reference {
    format!("ollama:{host}/{rest}").parse().unwrap()
}

fn remote(reference: &Reference, file: &File) -> Remote {
    Remote { reference: reference.clone(), size: file.size, digests: file.digests }
}

async fn read(body: Body) -> Result<Vec<u8>, SourceError> {
    let chunks: Vec<bytes::Bytes> = body.stream.try_collect().await?;
    Ok(chunks.concat())
}

async fn fetch(source: &OllamaSource, remote: &Remote, range: ByteRange) -> Result<(u64, Vec<u8>), SourceError> {
    let body = source.open(remote, range).await?;
    let start = body.start;
    read(body).await.map(|bytes| (start, bytes))
}

#[tokio::test]
async fn a_real_registry_keeps_the_contract_of_sources() {
    let Some(registry) = DockerRegistry::start() else { return };
    let image = Image::new(7, 200_000);
    registry.push(&image, "library/tiny", "1b").await;
    let file = &image.files()[1];
    let content = image.content(file).to_vec();
    let from = |host: &str| remote(&name(host, "library/tiny:1b"), file);
    // What a registry in order never does, others do in its place.
    let busy = FakeServer::start(|_| answer(503, &[], "")).await;
    let short = Scripted::start(Arc::new(content.clone()), |_| Reply { cut_after: Some(70_000), ..Reply::default() });
    let never_pushed = Remote { digests: Digests::sha256(Sha256::of(b"never pushed")), ..from(&registry.host) };
    let case = contract::Case {
        source: Box::new(source()),
        there: from(&registry.host),
        content,
        missing: never_pushed,
        busy: Some(from(&busy.host)),
        short: Some(from(&short.address.to_string())),
    };
    contract::suite(&case).await;
}

#[tokio::test]
async fn an_image_travels_from_a_real_registry_into_a_store() {
    let Some(registry) = DockerRegistry::start() else { return };
    let image = Image::new(7, 100_000);
    registry.push(&image, "library/tiny", "Q4_K_M").await;
    let (source, reference) = (source(), name(&registry.host, "library/tiny:Q4_K_M"));
    let listing = source.list(&reference).await.unwrap();
    assert_eq!(listing.ollama_manifest.as_deref(), Some(image.manifest.as_bytes()), "byte for byte");
    assert_eq!(listing.revision, Some(format!("sha256:{}", image.digest())));
    assert_eq!(listing.files, image.files());
    let dir = tempfile::tempdir().unwrap();
    let store = OllamaStore::new("ollama".to_owned(), dir.path().join("models"), None);
    let artifact = Artifact { source: reference.clone(), ..image.artifact("tiny:Q4_K_M") };
    for file in &listing.files {
        let remote = &artifact.remotes(file)[0];
        source.check(remote).await.unwrap();
        let (start, bytes) = fetch(&source, remote, ByteRange::default()).await.unwrap();
        assert_eq!((start, bytes.as_slice()), (0, image.content(file)));
        let key = file.path.file_name();
        let mut partial = Partial::open(&store.staging(), key, ContentHasher::new(), None).unwrap();
        partial.append(&bytes).unwrap();
        store.place(&artifact, file, partial.prove(file.size, &file.digests).unwrap()).unwrap();
    }
    store.publish(&artifact).unwrap();
    let observed = store.observe(&artifact);
    assert_eq!(observed.published, Ok(()));
    assert!(observed.files.iter().all(|state| matches!(state, FileState::Present(_))));
}

#[tokio::test]
async fn ranges_and_resumption_from_a_real_registry() {
    let Some(registry) = DockerRegistry::start() else { return };
    let image = Image::new(7, 100_000);
    registry.push(&image, "library/tiny", "1b").await;
    let (source, reference) = (source(), name(&registry.host, "library/tiny:1b"));
    let file = &image.files()[1];
    let (remote, content) = (remote(&reference, file), image.content(file));
    let middle = fetch(&source, &remote, ByteRange { start: 500, end: Some(1500) }).await.unwrap();
    assert_eq!(middle, (500, content[500..1500].to_vec()));
    let dir = tempfile::tempdir().unwrap();
    let mut partial = Partial::open(dir.path(), "model", ContentHasher::new(), None).unwrap();
    partial.append(&content[..40_000]).unwrap();
    drop(partial);
    let mut partial = Partial::open(dir.path(), "model", ContentHasher::new(), None).unwrap();
    let body = source.open(&remote, ByteRange::from(partial.len())).await.unwrap();
    assert_eq!((body.start, body.total, body.etag.as_deref()), (40_000, file.size, Some(file.path.file_name())));
    partial.append(&read(body).await.unwrap()).unwrap();
    drop(partial.prove(file.size, &file.digests).unwrap());
}

#[tokio::test]
async fn rot_on_the_registrys_disk_is_caught() {
    let Some(registry) = DockerRegistry::start() else { return };
    let image = Image::new(7, 100_000);
    registry.push(&image, "library/tiny", "1b").await;
    let (source, reference) = (source(), name(&registry.host, "library/tiny:1b"));
    let file = &image.files()[1];
    let on_disk = registry.blob_on_disk(&file.digests.sha256.unwrap());
    let mut rotten = image.content(file).to_vec();
    rotten[50_000] ^= 1;
    write_atomic(&on_disk, &rotten, &WriteOptions::default()).unwrap();
    let (_, bytes) = fetch(&source, &remote(&reference, file), ByteRange::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut partial = Partial::open(dir.path(), "model", ContentHasher::new(), None).unwrap();
    partial.append(&bytes).unwrap();
    let error = partial.prove(file.size, &file.digests).unwrap_err().error;
    assert!(matches!(error, ProofError::Content(_)), "{error:?}");
    write_atomic(&on_disk, &rotten[..60_000], &WriteOptions::default()).unwrap();
    let error = fetch(&source, &remote(&reference, file), ByteRange::default()).await.unwrap_err();
    assert!(matches!(error, SourceError::CutShort { .. } | SourceError::Changed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_mirror_that_ignores_ranges_is_understood() {
    let Some(registry) = DockerRegistry::start() else { return };
    let Some(mirror) = DockerRegistry::start_mirror(&registry) else { return };
    let image = Image::new(7, 100_000);
    registry.push(&image, "library/tiny", "1b").await;
    let reference = name(&mirror.host, "library/tiny:1b");
    let listing = source().list(&reference).await.unwrap();
    assert_eq!(listing.ollama_manifest.as_deref(), Some(image.manifest.as_bytes()));
    let file = &listing.files[1];
    let (start, bytes) = fetch(&source(), &remote(&reference, file), ByteRange::from(70_000)).await.unwrap();
    assert_eq!(start, 0, "the mirror sent the whole blob");
    assert_eq!(bytes, image.content(file));
}

#[tokio::test]
async fn what_a_real_registry_lacks_is_named() {
    let Some(registry) = DockerRegistry::start() else { return };
    let image = Image::new(7, 10);
    registry.push(&image, "library/tiny", "1b").await;
    let source = source();
    let absent = |error: SourceError| match error {
        SourceError::NotFound { what, .. } => what,
        other => panic!("{other:?}"),
    };
    let tag = absent(source.list(&name(&registry.host, "library/tiny:70b")).await.unwrap_err());
    assert_eq!(tag, format!("tag 70b of model library/tiny of registry {}", registry.host));
    let model = absent(source.list(&name(&registry.host, "library/huge:1b")).await.unwrap_err());
    assert!(model.contains("library/huge"), "{model}");
    let digests = Digests::sha256(Sha256::of(b"never pushed"));
    let reference = name(&registry.host, "library/tiny:1b");
    let blob = Remote { reference, size: None, digests };
    let expected = format!("blob sha256-{} of ollama:{}/library/tiny:1b", digests.sha256.unwrap(), registry.host);
    assert_eq!(absent(source.check(&blob).await.unwrap_err()), expected);
    assert_eq!(absent(source.open(&blob, ByteRange::default()).await.unwrap_err()), expected);
}

#[tokio::test]
async fn the_registry_sees_what_ollama_would_send_and_can_be_replaced() {
    let image = Image::new(7, 10);
    let manifest = image.manifest.clone();
    let server = FakeServer::start(move |_| answer(200, &[("content-type", "text/plain")], manifest.clone())).await;
    let registry = Some(format!("http://{}/mirror/", server.host).parse().unwrap());
    let config = OllamaConfig { registry, version: Some("0.99.1".to_owned()) };
    let source = OllamaSource::new(config, reqwest::Client::new());
    source.list(&"ollama:qwen3:4b".parse().unwrap()).await.unwrap();
    let seen = server.seen();
    assert_eq!(server.lines(), ["GET /mirror/v2/library/qwen3/manifests/4b"]);
    assert_eq!(seen[0].header("accept"), "application/vnd.docker.distribution.manifest.v2+json");
    assert!(seen[0].header("user-agent").starts_with("ollama/0.99.1 ("), "{}", seen[0].header("user-agent"));
    assert!(seen[0].header("user-agent").contains(" linux) Go/go1."));
    assert_eq!(seen[0].body, "");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (status, headers, body, expected) in [
        (412, vec![], "newer version", "needs a newer Ollama than 0.33.0"),
        (403, vec![], r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#, "may not be read: not for you"),
        (404, vec![], r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#, "model library/x of registry"),
        (404, vec![], "404 page not found", "model or tag"),
        (500, vec![], "", "answered 500"),
        (200, vec![("content-type", "text/html; charset=utf-8")], "<html>", "a web page"),
        (200, vec![("content-encoding", "gzip")], "x", "compressed data"),
        (200, vec![], r#"{"schemaVersion":1}"#, "schemaVersion"),
        (
            200,
            vec![("docker-content-digest", "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")],
            "abd",
            "does not have the digest",
        ),
        (302, vec![("location", "http://[")], "", "no address"),
        (302, vec![("location", "/v2/library/x/manifests/y")], "", "lead in a circle"),
    ] {
        let server = FakeServer::start(move |_| answer(status, &headers, body)).await;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let source = OllamaSource::new(OllamaConfig::default(), client);
        let error = source.list(&name(&server.host, "library/x:y")).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{status} {body}: {error:?}");
    }
}

#[tokio::test]
async fn waiting_times_are_passed_on() {
    for (text, least, most) in [("7", 7, 7), ("Thu, 01 Jan 2099 00:00:00 GMT", 1_000_000, u64::MAX), ("soon", 0, 0)] {
        let server = FakeServer::start(move |_| answer(429, &[("retry-after", text)], "")).await;
        let error = source().list(&name(&server.host, "library/x:y")).await.unwrap_err();
        assert!(matches!(error, SourceError::RateLimited { .. }), "{error:?}");
        assert!(!error.is_permanent());
        let wait = error.wait().unwrap_or(Duration::ZERO).as_secs();
        assert!((least..=most).contains(&wait), "{text}: {wait}");
    }
}

#[tokio::test]
async fn an_endless_manifest_is_not_read_to_its_end() {
    let server = FakeServer::start(|_| answer(200, &[], vec![b' '; 5 << 20])).await;
    let error = source().list(&name(&server.host, "library/x:y")).await.unwrap_err();
    assert!(error.to_string().contains("longer than 4194304 bytes"), "{error}");
}

/// Asks for a token, and hands one out; `elsewhere` gets the blobs.
async fn guarded(image: &Image, elsewhere: Option<String>) -> FakeServer {
    let image = Image { manifest: image.manifest.clone(), blobs: image.blobs.clone() };
    let image = Arc::new(image);
    FakeServer::start(move |seen| {
        if seen.line.starts_with("GET /token?service=reg&scope=repository%3Alibrary%2Ftiny%3Apull") {
            return answer(200, &[], r#"{"token":"s3cret"}"#);
        }
        if seen.header("authorization") != "Bearer s3cret" {
            let realm = format!(
                r#"Bearer realm="http://{}/token",service="reg",scope="repository:library/tiny:pull""#,
                seen.header("host")
            );
            return answer(401, &[("www-authenticate", &realm)], "");
        }
        match &elsewhere {
            Some(host) if seen.line.contains("/blobs/") => {
                answer(307, &[("location", &format!("http://{host}/signed?key=very-secret"))], "")
            }
            _ => answer(200, &[], image.manifest.clone()),
        }
    })
    .await
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_never_leaves_its_origin() {
    let image = Image::new(7, 10);
    let content = image.blobs[1].clone();
    for policy in [reqwest::redirect::Policy::none(), reqwest::redirect::Policy::limited(5)] {
        let content = content.clone();
        let storage = FakeServer::start(move |_| answer(200, &[], content.clone())).await;
        let registry = guarded(&image, Some(storage.host.clone())).await;
        let client = reqwest::Client::builder().redirect(policy).build().unwrap();
        let source = OllamaSource::new(OllamaConfig::default(), client);
        let reference = name(&registry.host, "library/tiny:1b");
        let listing = source.list(&reference).await.unwrap();
        let (_, bytes) = fetch(&source, &remote(&reference, &listing.files[1]), ByteRange::default()).await.unwrap();
        assert_eq!(bytes, image.blobs[1]);
        let lines = registry.lines();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[1].starts_with("GET /token"), "{lines:?}");
        assert_eq!(storage.lines(), ["GET /signed?key=very-secret"]);
        assert_eq!(storage.seen()[0].header("authorization"), "", "the token stayed at home");
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_had_is_not_asked_for_elsewhere() {
    let stranger = FakeServer::start(|_| answer(200, &[], r#"{"token":"x"}"#)).await;
    // Another name for the same machine is another host.
    let elsewhere = stranger.host.replace("127.0.0.1", "localhost");
    for challenge in
        [format!(r#"Bearer realm="http://{elsewhere}/token""#), r#"Basic realm="registry""#.to_owned(), String::new()]
    {
        let registry = FakeServer::start(move |_| answer(401, &[("www-authenticate", &challenge)], "")).await;
        let error = source().list(&name(&registry.host, "library/tiny:1b")).await.unwrap_err();
        assert!(matches!(error, SourceError::TokenMissing { .. }), "{error:?}");
        assert_eq!((registry.lines().len(), stranger.lines().len()), (1, 0));
    }
    let stubborn = FakeServer::start(|seen| match seen.line.starts_with("GET /token") {
        true => answer(200, &[], r#"{"access_token":"useless"}"#),
        false => {
            answer(401, &[("www-authenticate", &format!(r#"Bearer realm="http://{}/token""#, seen.header("host")))], "")
        }
    })
    .await;
    let error = source().list(&name(&stubborn.host, "library/tiny:1b")).await.unwrap_err();
    assert!(matches!(error, SourceError::TokenRefused { .. }), "{error:?}");
    assert_eq!(stubborn.lines().len(), 3, "once without, once for the token, once with it");
}

#[tokio::test]
async fn a_manifest_from_another_origin_is_refused() {
    let image = Image::new(7, 10);
    let other = FakeServer::start(move |_| answer(200, &[], image.manifest.clone())).await;
    let target = format!("http://{}/v2/library/tiny/manifests/1b", other.host);
    let registry = FakeServer::start(move |_| answer(302, &[("location", &target)], "")).await;
    let none = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    for client in [none, reqwest::Client::new()] {
        let source = OllamaSource::new(OllamaConfig::default(), client);
        let error = source.list(&name(&registry.host, "library/tiny:1b")).await.unwrap_err();
        assert!(error.to_string().contains("another place"), "{error}");
    }
}

#[tokio::test]
async fn wrong_blobs_are_recognised_for_what_they_are() {
    let image = Image::new(7, 100);
    let file = image.files()[1].clone();
    let size = file.size.unwrap();
    let beyond = format!("bytes 50-{}/{size}", size - 1);
    for (status, headers, range, expected) in [
        (200, vec![("content-type", "text/html")], ByteRange::default(), "a web page"),
        (200, vec![("content-encoding", "gzip")], ByteRange::default(), "compressed data"),
        (200, vec![("content-length", "4")], ByteRange::default(), "4 bytes now"),
        (206, vec![("content-range", beyond.as_str())], ByteRange::from(10), ""),
        (206, vec![], ByteRange::from(10), ""),
        (206, vec![("content-range", "bytes 10-13/99")], ByteRange::from(10), "99 bytes now"),
        (416, vec![], ByteRange::from(1 << 40), "416"),
    ] {
        let headers: Vec<(String, String)> = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let server = FakeServer::start(move |_| {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            answer(status, &headers, "abcd")
        })
        .await;
        let reference = name(&server.host, "library/tiny:1b");
        let error = fetch(&source(), &remote(&reference, &file), range).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{status}: {error:?}");
        assert!(!expected.is_empty() || matches!(error, SourceError::Protocol { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn checking_asks_for_no_content() {
    let image = Image::new(7, 100);
    let size = image.files()[1].size.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let server = FakeServer::start(move |_| {
        let wrong = count.fetch_add(1, Ordering::SeqCst) > 0;
        answer(200, &[("content-length", &(size + u64::from(wrong)).to_string())], axum::body::Body::empty())
    })
    .await;
    let reference = name(&server.host, "library/tiny:1b");
    let remote = remote(&reference, &image.files()[1]);
    source().check(&remote).await.unwrap();
    let error = source().check(&remote).await.unwrap_err();
    assert!(matches!(error, SourceError::Changed { expected, actual, .. } if (expected, actual) == (size, size + 1)));
    let line = format!("HEAD /v2/library/tiny/blobs/sha256:{}", remote.digests.sha256.unwrap());
    assert_eq!(server.lines(), [line.clone(), line]);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_is_no_image_or_has_no_digest_is_refused_without_a_request() {
    let server = FakeServer::start(|_| answer(500, &[], "")).await;
    let reference = name(&server.host, "library/tiny:1b");
    let nameless = Remote { reference, size: None, digests: Digests::default() };
    let error = source().open(&nameless, ByteRange::default()).await.unwrap_err();
    assert!(error.to_string().contains("larder lock"), "{error}");
    let error = source().list(&"hf:a/b".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, SourceError::NoUpstream { .. }));
    assert_eq!(server.lines(), Vec::<String>::new());
    let gone = server.host.clone();
    drop(server);
    tokio::task::yield_now().await;
    let error = source().list(&name(&gone, "library/tiny:1b")).await.unwrap_err();
    assert!(!error.is_permanent(), "{error:?}");
}
