//! The registry's face towards those who speak the registry API: Debian's registry as a mirror of it, skopeo, and what
//! Ollama asks for.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

use larder::artifact::OllamaManifest;
use larder::digest::Sha256;
use larder::serve::{Guests, Index, Served, Token};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

#[path = "support/docker_registry.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod docker_registry;
#[path = "support/machine.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod machine;
#[path = "support/mirror.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod mirror;
#[path = "support/ollama_image.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod ollama_image;

use docker_registry::DockerRegistry;
use machine::Machine;
use mirror::{Mirror, image};

const LAYER: &[u8] = &[5; 300_000];

fn manifest(image: &Served) -> OllamaManifest {
    image.artifact.ollama.clone().unwrap()
}

async fn get(url: &str) -> Response {
    let client = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
    client.get(url).send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// An independent client of registries takes everything through itself, checks it, and keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_mirrors_larder_and_larder_takes_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "tiny:1b", LAYER);
    let manifest = manifest(&image);
    let mirror = Mirror::open(vec![image], None).await;
    let Some(registry) = DockerRegistry::start_mirror_of(&mirror.url) else { return };
    let base = format!("http://{}/v2/library/tiny", registry.host);
    // Who does not name this kind gets one of an older kind from Debian's.
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let client = Client::builder().no_proxy().build().unwrap();
    let told = client.get(format!("{base}/manifests/1b")).header("accept", kind).send().await.unwrap();
    assert_eq!(told.status(), 200);
    assert_eq!(header(&told, "docker-content-digest"), format!("sha256:{}", manifest.digest));
    assert_eq!(told.text().await.unwrap(), manifest.bytes.unwrap());
    let layer = get(&format!("{base}/blobs/sha256:{}", Sha256::of(LAYER))).await;
    assert_eq!((layer.status().as_u16(), layer.bytes().await.unwrap().as_ref()), (200, LAYER));

    let inventory = format!(
        "[stores]\nollama = {{ layout = \"ollama\", path = \"~/models\" }}\n\n[sources]\nollama = \"http://{}\"\n",
        registry.host
    );
    let tiny = "[[artifact]]\nname = \"tiny:1b\"\nsource = \"ollama:tiny:1b\"\nstore = \"ollama\"\n";
    let machine = Machine::new(&inventory, tiny);
    tokio::task::block_in_place(|| {
        machine.larder(&["lock"]).must_be(0);
        machine.larder(&["apply", "--yes"]).must_be(0);
        machine.larder(&["verify"]).must_be(0);
    });
    let blob = machine.path(&format!("models/blobs/sha256-{}", Sha256::of(LAYER)));
    assert_eq!(fs_err::read(blob).unwrap(), LAYER);
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_inspects_lists_and_copies() {
    let skopeo = Path::new("/usr/bin/skopeo");
    if !skopeo.exists() {
        return docker_registry::skip::skipped("skopeo is missing; install it with scripts/test-parts");
    }
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (image(dir.path(), "tiny:1b", LAYER), image(dir.path(), "tiny:2b", b"another layer"));
    // It copies no layers of Ollama's own kind, whoever serves them.
    let mut plain = image(dir.path(), "tiny:plain", LAYER);
    let text = manifest(&one).bytes.unwrap();
    let text = text.replace("application/vnd.ollama.image.model", "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let digest = Sha256::of(text.as_bytes());
    plain.artifact.ollama = Some(OllamaManifest { digest, bytes: Some(text.clone()) });
    let manifest = manifest(&one);
    let mirror = Mirror::open(vec![one, other, plain], None).await;
    let name = format!("docker://{}/library/tiny", mirror.url.trim_start_matches("http://"));
    let run = |args: &[&str]| {
        let mut command = Command::new(skopeo);
        command.env_clear().env("HOME", dir.path()).env("PATH", "/usr/bin:/bin").args(args);
        let said = tokio::task::block_in_place(|| command.output()).unwrap();
        assert!(said.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said.stderr));
        said.stdout
    };
    let raw = run(&["inspect", "--tls-verify=false", "--raw", &format!("{name}:1b")]);
    assert_eq!(String::from_utf8(raw).unwrap(), manifest.bytes.unwrap());
    let listed: Value = serde_json::from_slice(&run(&["list-tags", "--tls-verify=false", &name])).unwrap();
    assert_eq!(listed["Tags"], json!(["1b", "2b", "plain"]));

    let copied = dir.path().join("copied");
    let to = format!("dir:{}", copied.display());
    let policy = ["--insecure-policy", "copy", "--src-tls-verify=false"];
    run(&[&policy[..], &[&format!("{name}@sha256:{digest}"), &to]].concat());
    assert_eq!(fs_err::read_to_string(copied.join("manifest.json")).unwrap(), text);
    assert_eq!(fs_err::read(copied.join(Sha256::of(LAYER).to_string())).unwrap(), LAYER);
}

/// Asks for the whole layer, takes no more than the head of the answer, and has the pieces from where that pointed,
/// without whatever it may have shown before.
#[tokio::test(flavor = "multi_thread")]
async fn what_ollama_asks_for_is_answered_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "tiny:1b", LAYER);
    let mirror = Mirror::open(vec![image], None).await;
    let told: Value = get(&mirror.at("/v2/library/tiny/manifests/1b")).await.json().await.unwrap();
    let layer = &told["layers"][0];
    let (digest, size) = (layer["digest"].as_str().unwrap(), layer["size"].as_u64().unwrap());
    let asked = mirror.at(&format!("/v2/library/tiny/blobs/{digest}"));
    let client = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
    let head = client.request(Method::HEAD, &asked).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, size.to_string().as_str()));
    let whole = client.get(&asked).bearer_auth("shown once").send().await.unwrap();
    let place = whole.url().join(header(&whole, "location")).unwrap();
    drop(whole);
    let mut got = Vec::new();
    for start in (0..size).step_by(100_000) {
        let range = format!("bytes={start}-{}", (start + 100_000).min(size) - 1);
        let piece = client.get(place.clone()).header("range", range).send().await.unwrap();
        assert_eq!(piece.status(), 206);
        got.extend_from_slice(&piece.bytes().await.unwrap());
    }
    assert!(got == LAYER);
}

#[tokio::test(flavor = "multi_thread")]
async fn repositories_and_tags_are_listed_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["tiny:1b", "tiny:2b", "tiny:3b", "acme/other:latest", "hf.co/Acme/Tiny:Q4"];
    let mirror = Mirror::open(names.map(|name| image(dir.path(), name, LAYER)).into(), None).await;
    let mut told = Vec::new();
    for (path, key) in [("/v2/_catalog?n=2", "repositories"), ("/v2/library/tiny/tags/list?n=2", "tags")] {
        let mut next = Some(mirror.at(path));
        while let Some(url) = next {
            let response = get(&url).await;
            let link = header(&response, "link").to_owned();
            next = link
                .strip_prefix('<')
                .and_then(|link| link.strip_suffix(">; rel=\"next\""))
                .map(|path| mirror.at(path));
            told.push(response.json::<Value>().await.unwrap()[key].clone());
        }
    }
    let pages = [json!(["Acme/Tiny", "acme/other"]), json!(["library/tiny"]), json!(["1b", "2b"]), json!(["3b"])];
    assert_eq!(told, pages);
    let tags: Value = get(&mirror.at("/v2/library/tiny/tags/list")).await.json().await.unwrap();
    assert_eq!(tags, json!({ "name": "library/tiny", "tags": ["1b", "2b", "3b"] }));
    assert_eq!(get(&mirror.at("/v2/_catalog?n=many")).await.status(), 400);
    let none: Value = get(&mirror.at("/v2/_catalog?n=0")).await.json().await.unwrap();
    assert_eq!(none, json!({ "repositories": [] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_one_that_clients_of_registries_understand() {
    let dir = tempfile::tempdir().unwrap();
    let open = Mirror::open(vec![image(dir.path(), "tiny:1b", LAYER)], None).await;
    let cases = [
        (Method::GET, "/v2/tiny/manifests/1b", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/a/b/c/tags/list", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/library/tiny", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/library/tiny/tags/other", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/library/tiny/referrers/sha256:0", 404, "NAME_UNKNOWN"),
        (Method::PUT, "/v2/library/tiny/manifests/1b", 405, "UNSUPPORTED"),
        (Method::DELETE, "/v2/library/tiny/manifests/1b", 405, "UNSUPPORTED"),
    ];
    let client = Client::builder().no_proxy().build().unwrap();
    for (method, path, status, code) in cases {
        let response = client.request(method, open.at(path)).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(response.json::<Value>().await.unwrap()["errors"][0]["code"], code, "{path}");
    }
    let elsewhere = vec!["192.0.2.0/24".parse().unwrap()];
    let with_token = Guests { networks: Vec::new(), token: Token::new("s3cret") };
    let closed = Guests { networks: elsewhere, token: None };
    for (guests, status, code) in [(with_token, 401, "UNAUTHORIZED"), (closed, 403, "DENIED")] {
        let index = Index::of(vec![image(dir.path(), "tiny:1b", LAYER)], ["/"]);
        let mirror = Mirror::open_for(index, guests, |server| server).await;
        for path in ["/v2/", "/v2/library/tiny/manifests/1b", "/v2/_catalog"] {
            let refused = get(&mirror.at(path)).await;
            assert_eq!(
                (refused.status().as_u16(), refused.headers().contains_key("www-authenticate")),
                (status, status == 401)
            );
            assert_eq!(refused.json::<Value>().await.unwrap()["errors"][0]["code"], code, "{path}");
        }
    }
}
