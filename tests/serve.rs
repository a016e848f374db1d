//! The LAN server as its clients see it: plain requests over real sockets, and the real `hf` program.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "tests are told by the environment where their parts are")]
#![expect(clippy::print_stderr, reason = "a part that is missing must be seen")]

use std::path::{Path, PathBuf};
use std::process::Output;

use larder::digest::Sha256;
use larder::serve::Served;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[path = "support/mirror.rs"]
mod mirror;

use mirror::{COMMIT, Mirror, contents, hub_file, image, put, served};

/// Bytes without a pattern that a wrong offset could hide in.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A repository as most are: small files in git, weights by LFS, folders, a name with a blank.
fn repository(folder: &Path) -> Served {
    let files = vec![
        put(folder, "config.json", br#"{"model_type":"tiny"}"#, false),
        put(folder, "model.safetensors", &noise(700_001), true),
        put(folder, "text encoder/ü.txt", b"umlaut", false),
        put(folder, "text encoder/deep/empty", b"", false),
    ];
    served("tiny", "hf:acme/tiny", Some(COMMIT), files)
}

async fn ask(method: Method, url: &str, headers: &[(&'static str, &str)]) -> Response {
    let headers: HeaderMap =
        headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect();
    Client::builder().no_proxy().build().unwrap().request(method, url).headers(headers).send().await.unwrap()
}

async fn get(url: &str) -> Response {
    ask(Method::GET, url, &[]).await
}

async fn get_json(url: &str) -> Value {
    let response = get(url).await;
    assert_eq!(response.status(), 200, "{url}");
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// Sends exactly these bytes and returns everything that comes back: no client cleans the path first.
async fn raw(mirror: &Mirror, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(mirror.url.trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that has said no may close while the rest of the request is still on its way.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_face_describes_and_lists_a_repository() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::open(vec![repository(dir.path())], None).await;
    for path in ["/api/models/acme/tiny", "/api/models/acme/tiny/revision/main"] {
        let summary = get_json(&mirror.at(path)).await;
        assert_eq!(summary["id"], "acme/tiny");
        assert_eq!(summary["sha"], COMMIT);
        assert_eq!(summary["gated"], false);
        assert_eq!(summary["siblings"].as_array().unwrap().len(), 4);
    }
    let by_commit = get_json(&mirror.at(&format!("/api/models/acme/tiny/revision/{COMMIT}?blobs=true"))).await;
    let model = &by_commit["siblings"][1];
    assert_eq!(model["lfs"]["sha256"], Sha256::of(&noise(700_001)).to_string());
    assert_eq!(model["size"], 700_001);

    let tree = get_json(&mirror.at("/api/models/acme/tiny/tree/main")).await;
    let names: Vec<&str> = tree.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "text encoder"]);
    assert_eq!(tree[1]["lfs"]["oid"], model["lfs"]["sha256"]);
    assert_eq!(tree[0]["lfs"], Value::Null);
    let all = get_json(&mirror.at("/api/models/acme/tiny/tree/main?recursive=true&expand=false")).await;
    assert_eq!(all.as_array().unwrap().len(), 6, "four files and two folders");
    let below = get_json(&mirror.at("/api/models/acme/tiny/tree/main/text%20encoder%2Fdeep")).await;
    assert_eq!(below[0]["path"], "text encoder/deep/empty");
    let refs = get_json(&mirror.at("/api/models/acme/tiny/refs")).await;
    assert_eq!(refs["branches"][0]["targetCommit"], COMMIT);
    assert!(!all.to_string().contains("xet"));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_listings_come_in_pages_with_whole_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let (file, place) = put(dir.path(), "one", b"same content", false);
    let numbered = |number: usize| {
        let path = format!("part {number:04}").parse().unwrap();
        (larder::artifact::File { path, ..file.clone() }, place.clone())
    };
    let mirror =
        Mirror::open(vec![served("many", "hf:acme/many", Some(COMMIT), (0..2500).map(numbered).collect())], None).await;
    let mut next = Some(mirror.at("/api/models/acme/many/tree/main?recursive=true&expand=false"));
    let mut paths = Vec::new();
    let mut pages = 0;
    while let Some(url) = next {
        assert!(url.starts_with(&mirror.url), "{url}");
        let response = get(&url).await;
        let link = header(&response, "link").to_owned();
        next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).map(str::to_owned);
        let page: Vec<Value> = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        paths.extend(page.iter().map(|entry| entry["path"].as_str().unwrap().to_owned()));
        pages += 1;
    }
    assert_eq!(pages, 3);
    assert_eq!(paths, (0..2500).map(|number| format!("part {number:04}")).collect::<Vec<_>>());
    assert_eq!(mirror.traffic.requests(), 3);
    assert_eq!(get(&mirror.at("/api/models/acme/many/tree/main?cursor=x")).await.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_asked_for_by_form_and_by_json() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::open(vec![repository(dir.path())], None).await;
    let url = mirror.at("/api/models/acme/tiny/paths-info/main");
    let client = Client::builder().no_proxy().build().unwrap();
    let form = client
        .post(&url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body("paths=config.json&paths=text+encoder%2Fdeep&paths=absent&expand=False");
    let json = client.post(&url).json(&serde_json::json!({"paths": ["config.json", "text encoder/deep", "absent"]}));
    for request in [form, json] {
        let found: Value = request.send().await.unwrap().json().await.unwrap();
        let kinds: Vec<_> = found.as_array().unwrap().iter().map(|entry| entry["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["file", "directory"]);
    }
    assert_eq!(
        client.post(&url).header("content-type", "application/json").body("{").send().await.unwrap().status(),
        400
    );
    let not_allowed = get(&url).await;
    assert_eq!(not_allowed.status(), 405);
    assert_eq!(header(&not_allowed, "allow"), "POST");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_whole_with_their_names_for_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let repository = repository(dir.path());
    let git = repository.artifact.files[0].digests.git_sha1.unwrap().to_string();
    let mirror = Mirror::open(vec![repository], None).await;
    let model = mirror.at("/acme/tiny/resolve/main/model.safetensors");

    let head = ask(Method::HEAD, &model, &[]).await;
    assert_eq!(head.status(), 200);
    assert_eq!(header(&head, "etag"), format!("\"{}\"", Sha256::of(&noise(700_001))));
    assert_eq!(header(&head, "x-repo-commit"), COMMIT);
    assert_eq!(header(&head, "content-length"), "700001");
    assert_eq!(header(&head, "accept-ranges"), "bytes");
    assert!(!head.headers().keys().any(|name| name.as_str().contains("xet")));
    assert_eq!(mirror.traffic.bytes(), 0, "HEAD reads nothing");

    assert_eq!(get(&model).await.bytes().await.unwrap(), noise(700_001));
    assert_eq!(mirror.traffic.bytes(), 700_001);
    let config = get(&mirror.at(&format!("/acme/tiny/resolve/{COMMIT}/config.json"))).await;
    assert_eq!(header(&config, "etag"), format!("\"{git}\""));
    let umlaut = get(&mirror.at("/acme/tiny/resolve/main/text%20encoder/%C3%BC.txt")).await;
    assert_eq!(umlaut.bytes().await.unwrap(), "umlaut");
    let empty = get(&mirror.at("/acme/tiny/resolve/main/text%20encoder%2Fdeep%2Fempty")).await;
    assert_eq!((empty.status().as_u16(), empty.content_length()), (200, Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_conditions_are_answered_as_the_standard_says() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::open(vec![repository(dir.path())], None).await;
    let url = mirror.at("/acme/tiny/resolve/main/model.safetensors");
    let content = noise(700_001);
    let ranges = [
        ("bytes=0-0", 0..1),
        ("bytes=262143-524289", 262_143..524_290),
        ("bytes=700000-", 700_000..700_001),
        ("bytes=-5", 699_996..700_001),
        ("bytes=9-99999999999999999999999999", 9..700_001),
    ];
    for (range, expected) in ranges {
        let part = ask(Method::GET, &url, &[("range", range)]).await;
        assert_eq!(part.status(), 206, "{range}");
        let said = format!("bytes {}-{}/700001", expected.start, expected.end - 1);
        assert_eq!(header(&part, "content-range"), said);
        assert_eq!(part.bytes().await.unwrap(), content[expected], "{range}");
    }
    for range in ["bytes=700001-", "bytes=99999999999999999999999999-", "bytes=-0"] {
        let refused = ask(Method::GET, &url, &[("range", range)]).await;
        assert_eq!((refused.status().as_u16(), header(&refused, "content-range")), (416, "bytes */700001"), "{range}");
    }
    for range in ["bytes=0-1,4-5", "bytes=x-y", "lines=1-2"] {
        let whole = ask(Method::GET, &url, &[("range", range)]).await;
        assert_eq!((whole.status().as_u16(), whole.content_length()), (200, Some(700_001)), "{range}");
    }
    let etag = header(&ask(Method::HEAD, &url, &[]).await, "etag").to_owned();
    for known in [etag.clone(), format!("\"other\", W/{etag}"), "*".to_owned()] {
        let known = ask(Method::GET, &url, &[("if-none-match", &known)]).await;
        assert_eq!((known.status().as_u16(), header(&known, "x-repo-commit")), (304, COMMIT));
    }
    assert_eq!(ask(Method::GET, &url, &[("if-none-match", "\"other\"")]).await.status(), 200);
    let same = ask(Method::GET, &url, &[("if-range", &etag), ("range", "bytes=1-2")]).await;
    assert_eq!(same.status(), 206);
    let changed = ask(Method::GET, &url, &[("if-range", "\"other\""), ("range", "bytes=1-2")]).await;
    assert_eq!(changed.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_face_does_not_have_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut repository = repository(dir.path());
    repository.content[0] = None;
    let mirror = Mirror::open(vec![repository], None).await;
    let cases = [
        ("/acme/none/resolve/main/x", "RepoNotFound", ""),
        ("/api/models/acme/none", "RepoNotFound", ""),
        ("/api/datasets/acme/tiny/tree/main", "RepoNotFound", ""),
        ("/acme/tiny/resolve/dev/config.json", "RevisionNotFound", ""),
        ("/api/models/acme/tiny/tree/dev", "RevisionNotFound", ""),
        ("/acme/tiny/resolve/main/absent", "EntryNotFound", COMMIT),
        ("/api/models/acme/tiny/tree/main/absent", "EntryNotFound", COMMIT),
        ("/acme/tiny/resolve/main/config.json", "NotHere", ""),
    ];
    for (path, code, commit) in cases {
        let response = get(&mirror.at(path)).await;
        assert_eq!(response.status(), 404, "{path}");
        assert_eq!((header(&response, "x-error-code"), header(&response, "x-repo-commit")), (code, commit), "{path}");
    }
    assert_eq!(get(&mirror.at("/api/whoami-v2")).await.status(), 401);
    assert_eq!(get(&mirror.at("/api/agent-harnesses")).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_branches_that_overlap_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let other = "f".repeat(40);
    let one = |text: &str| vec![put(&dir.path().join(text), "name", text.as_bytes(), false)];
    let artifacts = vec![
        served("word", "hf:acme", Some(COMMIT), one("word")),
        served("pinned", &format!("hf:acme/refs@{other}"), Some(&other), one("pinned")),
        served("moving", "hf:acme/refs", Some(COMMIT), one("moving")),
        served("branch", "hf:acme/refs@fp16", Some(&"e".repeat(40)), one("branch")),
        served("data", "hf:datasets/acme/refs@refs%2Fpr%2F1", Some(COMMIT), one("data")),
    ];
    let mirror = Mirror::open(artifacts, None).await;
    let text = async |path: &str| get(&mirror.at(path)).await.text().await.unwrap();
    assert_eq!(text("/acme/resolve/main/name").await, "word");
    assert_eq!(text("/acme/refs/resolve/main/name").await, "moving");
    assert_eq!(text(&format!("/acme/refs/resolve/{other}/name")).await, "pinned");
    assert_eq!(text("/acme/refs/resolve/fp16/name").await, "branch");
    assert_eq!(text("/datasets/acme/refs/resolve/refs%2Fpr%2F1/name").await, "data");
    assert_eq!(get_json(&mirror.at("/api/models/acme/refs")).await["id"], "acme/refs");
    assert_eq!(get_json(&mirror.at("/api/models/acme/tree/main")).await[0]["path"], "name");
    let requests = get_json(&mirror.at("/api/datasets/acme/refs/refs?include_prs=1")).await;
    assert_eq!(requests["pullRequests"][0]["ref"], "refs/pr/1");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_plain_folders_are_served_under_the_repositories_they_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let mut clip = put(dir.path(), "clip/encoder.safetensors", b"encoder", true);
    clip.0.source = hub_file(&format!("hf:acme/encoders@{COMMIT}/t5/encoder.safetensors")).map(Box::new);
    let mut vae = put(dir.path(), "vae/ae.safetensors", b"vae", true);
    vae.0.source = hub_file(&format!("hf:acme/encoders@{COMMIT}/ae.safetensors")).map(Box::new);
    let artifacts = vec![served("encoder", "local", None, vec![clip]), served("vae", "local", None, vec![vae])];
    let mirror = Mirror::open(artifacts, None).await;
    let tree = get_json(&mirror.at("/api/models/acme/encoders/tree/main?recursive=true")).await;
    let paths: Vec<&str> = tree.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["ae.safetensors", "t5", "t5/encoder.safetensors"]);
    let encoder = get(&mirror.at("/acme/encoders/resolve/main/t5/encoder.safetensors")).await;
    assert_eq!(encoder.text().await.unwrap(), "encoder");
    assert_eq!(get(&mirror.at("/files/encoder/clip/encoder.safetensors")).await.text().await.unwrap(), "encoder");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_face_serves_images_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let layer = noise(300_000);
    let image = image(dir.path(), "hf.co/Acme/Tiny:Q4_K_M", &layer);
    let manifest = image.artifact.ollama.clone().unwrap();
    let mirror = Mirror::open(vec![image], None).await;
    assert_eq!(get(&mirror.at("/v2/")).await.text().await.unwrap(), "{}");

    for reference in ["Q4_K_M".to_owned(), format!("sha256:{}", manifest.digest)] {
        let url = mirror.at(&format!("/v2/Acme/Tiny/manifests/{reference}"));
        let head = ask(Method::HEAD, &url, &[]).await;
        assert_eq!(header(&head, "content-length"), manifest.bytes.as_ref().unwrap().len().to_string());
        let response = get(&url).await;
        assert_eq!(header(&response, "content-type"), "application/vnd.docker.distribution.manifest.v2+json");
        assert_eq!(header(&response, "docker-content-digest"), format!("sha256:{}", manifest.digest));
        assert_eq!(&response.text().await.unwrap(), manifest.bytes.as_ref().unwrap());
    }
    let path = format!("/v2/Acme/Tiny/blobs/sha256:{}", Sha256::of(&layer));
    let head = ask(Method::HEAD, &mirror.at(&path), &[]).await;
    assert_eq!((header(&head, "content-length"), header(&head, "location")), ("300000", ""));
    let whole = get(&mirror.at(&path)).await;
    assert_eq!((whole.status().as_u16(), header(&whole, "location")), (200, path.as_str()));
    assert_eq!(whole.bytes().await.unwrap(), layer);
    let part = ask(Method::GET, &mirror.at(&path), &[("range", "bytes=100-199")]).await;
    assert_eq!((part.status().as_u16(), header(&part, "location")), (206, ""));
    assert_eq!(part.bytes().await.unwrap(), layer[100..200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_face_does_not_have_is_said_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut broken = image(dir.path(), "acme/broken:latest", b"other layer");
    broken.artifact.ollama.as_mut().unwrap().digest = Sha256::of(b"something else");
    let mut image = image(dir.path(), "tiny:1b", b"layer");
    image.content[0] = None;
    let mirror = Mirror::open(vec![image, broken], None).await;
    let cases = [
        ("/v2/library/none/manifests/1b".to_owned(), "NAME_UNKNOWN"),
        ("/v2/Library/tiny/manifests/1b".to_owned(), "NAME_UNKNOWN"),
        ("/v2/library/tiny/manifests/2b".to_owned(), "MANIFEST_UNKNOWN"),
        ("/v2/acme/broken/manifests/latest".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/tiny/blobs/sha256:{}", Sha256::of(b"layer")), "BLOB_UNKNOWN"),
        (format!("/v2/library/tiny/blobs/sha256:{}", Sha256::of(b"other layer")), "BLOB_UNKNOWN"),
        ("/v2/library/tiny/blobs/..%2f..%2fetc%2fpasswd".to_owned(), "BLOB_UNKNOWN"),
    ];
    for (path, code) in cases {
        let response = get(&mirror.at(&path)).await;
        assert_eq!(response.status(), 404, "{path}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["errors"][0]["code"], code, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn larders_own_face_serves_files_blobs_and_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let mirror =
        Mirror::open(vec![repository(dir.path()), image(dir.path(), "qwen3:4b", b"layer")], Some("{\"version\": 1}"))
            .await;
    let home = get_json(&mirror.at("/")).await;
    assert_eq!((home["name"].as_str(), home["artifacts"][0]["here"].as_u64()), (Some("larder"), Some(4)));
    assert_eq!(get(&mirror.at("/lock")).await.text().await.unwrap(), "{\"version\": 1}");
    let file = get(&mirror.at("/files/tiny/text%20encoder/%C3%BC.txt")).await;
    assert_eq!(header(&file, "etag"), format!("\"{}\"", Sha256::of(b"umlaut")));
    assert_eq!(file.text().await.unwrap(), "umlaut");
    let blob = mirror.at(&format!("/blobs/sha256/{}", Sha256::of(b"layer")));
    assert_eq!(get(&blob).await.text().await.unwrap(), "layer");
    assert_eq!(ask(Method::GET, &blob, &[("range", "bytes=1-3")]).await.text().await.unwrap(), "aye");
    assert_eq!(header(&ask(Method::HEAD, &blob, &[]).await, "content-length"), "5");
    let home_len = get(&mirror.at("/")).await.bytes().await.unwrap().len().to_string();
    assert_eq!(header(&ask(Method::HEAD, &mirror.at("/"), &[]).await, "content-length"), home_len);
    for absent in ["/files/tiny/none", "/files/none/x", "/blobs/sha256/00", "/nothing"] {
        assert_eq!(get(&mirror.at(absent)).await.status(), 404, "{absent}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        assert_eq!(ask(method, &blob, &[]).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
    let without_lock = Mirror::open(Vec::new(), None).await;
    assert_eq!(get(&without_lock.at("/lock")).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_in_a_request_reaches_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "secret", b"SECRET", false);
    let mirror = Mirror::open(vec![repository(&dir.path().join("store"))], None).await;
    let absolute = dir.path().join("secret").to_str().unwrap().to_owned();
    let escapes = [
        "../secret",
        "..%2fsecret",
        "..%2Fsecret",
        "%2e%2e/secret",
        "text%20encoder/../../secret",
        "config.json%00",
        "config.json/",
        "./config.json",
        "/config.json",
        &absolute,
        &absolute.replace('/', "%2f"),
        "..\\secret",
        "%ff",
    ];
    for prefix in [
        "/files/tiny/",
        "/acme/tiny/resolve/main/",
        "/api/models/acme/tiny/tree/main/",
        "/blobs/sha256/",
        "/v2/acme/tiny/blobs/",
    ] {
        for escape in escapes {
            let answer =
                raw(&mirror, &format!("GET {prefix}{escape} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
            let status = answer.get(9..12).unwrap_or("none");
            assert!(["400", "404"].contains(&status), "{prefix}{escape}: {answer}");
            assert!(!answer.contains("SECRET"));
        }
    }
    assert_eq!(mirror.traffic.bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_headers_are_refused_and_the_server_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::open(vec![repository(dir.path())], None).await;
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(2 << 20));
    assert!(!raw(&mirror, &long).await.starts_with("HTTP/1.1 200"));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Many: a\r\n".repeat(1000));
    assert!(!raw(&mirror, &many).await.starts_with("HTTP/1.1 200"));
    let host = "GET /api/models/acme/tiny/tree/main?limit=1 HTTP/1.1\r\nHost: evil.example/>; rel=x\r\nConnection: close\r\n\r\n";
    assert!(!raw(&mirror, host).await.contains("evil"), "a host that is none is not repeated");
    assert_eq!(get(&mirror.at("/")).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_vanished_files_are_refused_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let repository = repository(dir.path());
    let places: Vec<PathBuf> = repository.content.iter().flatten().cloned().collect();
    let mirror = Mirror::open(vec![repository], None).await;
    std::fs::OpenOptions::new().write(true).open(&places[1]).unwrap().set_len(699_999).unwrap();
    larder::fsio::remove_file(&places[0]).unwrap();
    let short = get(&mirror.at("/acme/tiny/resolve/main/model.safetensors")).await;
    assert_eq!(short.status(), 500);
    assert!(header(&short, "x-error-message").contains("damaged on this machine"));
    let gone = get(&mirror.at("/acme/tiny/resolve/main/config.json")).await;
    assert_eq!((gone.status().as_u16(), header(&gone, "x-error-code")), (404, "NotHere"));
    assert!(!header(&gone, "x-error-message").contains(places[0].to_str().unwrap()), "paths stay here");
    assert_eq!(mirror.traffic.bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_streamed_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    // Sparse: 3 GiB to the reader, nothing on the disk.
    let (mut file, place) = put(dir.path(), "large", b"", true);
    std::fs::OpenOptions::new().write(true).open(&place).unwrap().set_len(3 << 30).unwrap();
    file.size = Some(3 << 30);
    let mirror = Mirror::open(vec![served("large", "local", None, vec![(file, place)])], None).await;
    let before = resident_kib();
    let mut response = get(&mirror.at("/files/large/large")).await;
    // While the client does not read, the server must not run ahead.
    let first = response.chunk().await.unwrap().unwrap().len() as u64;
    let mut received = first;
    while received < 256 << 20 {
        received += response.chunk().await.unwrap().unwrap().len() as u64;
    }
    assert!(mirror.traffic.bytes() < received + (64 << 20), "{} sent, {received} taken", mirror.traffic.bytes());
    assert!(resident_kib() < before + (64 << 10), "{} KiB, {before} before", resident_kib());
}

/// The subscriber is the whole program's: one for a single thread is deaf to call sites that other
/// tests reached first.
#[tokio::test]
async fn the_access_log_tells_paths_and_never_queries() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mirror = Mirror::open(Vec::new(), Some("{}")).await;
    ask(Method::GET, &mirror.at("/lock?token=hf_secret"), &[("authorization", "Bearer hf_secret")]).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("/lock") && text.contains("status=200") && text.contains("127.0.0.1"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A virtual environment with the given version of `huggingface_hub`, or a loud note that it is missing.
fn hf_program(version: &str) -> Option<PathBuf> {
    let parts = std::env::var_os("LARDER_TEST_PARTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-parts"), PathBuf::from);
    let program = parts.join(version).join("bin/hf");
    if program.exists() {
        return Some(program);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing", program.display());
    eprintln!("SKIPPED: {} is missing; install it with scripts/test-parts", program.display());
    None
}

async fn hf(program: &Path, mirror: &Mirror, home: &Path, args: &[&str]) -> Output {
    let output = tokio::process::Command::new(program)
        .args(args)
        .env_clear()
        .env("HOME", home)
        .env("HF_HOME", home.join("hf"))
        .env("HF_ENDPOINT", &mirror.url)
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_HUB_DISABLE_UPDATE_CHECK", "1")
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        .env("NO_COLOR", "1")
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "hf {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    output
}

/// Downloads by the real program, compares every byte, and lets the program verify its own cache.
async fn real_client(version: &str) {
    let Some(program) = hf_program(version) else {
        return;
    };
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = dir.path().join("store");
    let repository = repository(&store);
    let size: u64 = repository.artifact.size().0;
    let mirror = Mirror::open(vec![repository], None).await;

    hf(&program, &mirror, home.path(), &["download", "acme/tiny"]).await;
    let cache = home.path().join("hf/hub/models--acme--tiny");
    assert_eq!(contents(&cache.join("snapshots").join(COMMIT)), contents(&store));
    assert_eq!(std::fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(mirror.traffic.bytes(), size, "every byte is sent once");
    let model = format!("blobs/{}", Sha256::of(&noise(700_001)));
    assert!(cache.join(model).exists(), "content is named by its sha256");
    hf(&program, &mirror, home.path(), &["cache", "verify", "acme/tiny", "--fail-on-missing-files"]).await;

    hf(&program, &mirror, home.path(), &["download", "acme/tiny"]).await;
    assert_eq!(mirror.traffic.bytes(), size, "a second download moves nothing");
    let fresh = tempfile::tempdir().unwrap();
    let one = ["download", "acme/tiny", "text encoder/ü.txt", "--revision", COMMIT];
    hf(&program, &mirror, fresh.path(), &one).await;
    assert_eq!(mirror.traffic.bytes(), size + 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn huggingface_hub_1_31_downloads_and_verifies() {
    real_client("hf-1.31").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_huggingface_hub_downloads_and_verifies() {
    real_client("hf-latest").await;
}
