//! Ollama images as a sysadmin gets them: from Debian's registry into a folder, or through a running server.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use larder::digest::Sha256;
use larder::fsio::{WriteOptions, symlink_atomic, write_atomic};
use serde_json::{Value, json};

#[path = "support/docker_registry.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod docker_registry;
#[path = "support/fake_server.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod fake_server;
#[path = "support/machine.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod machine;
#[path = "support/ollama_image.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod ollama_image;
#[path = "support/ollama_server.rs"]
mod ollama_server;

use docker_registry::DockerRegistry;
use machine::{Machine, contents};
use ollama_image::Image;
use ollama_server::OllamaServer;

const TINY: &str = "[[artifact]]\nname = \"tiny:1b\"\nsource = \"ollama:tiny:1b\"\nstore = \"ollama\"\n";

/// A registry that has `image` as `tiny:1b`.
async fn registry(image: &Image) -> Option<DockerRegistry> {
    let registry = DockerRegistry::start()?;
    registry.push(image, "library/tiny", "1b").await;
    Some(registry)
}

fn machine(registry: &DockerRegistry, more: &str, manifest: &str) -> Machine {
    let inventory = format!(
        "[stores]\nollama = {{ layout = \"ollama\", path = \"~/models\"{more} }}\n\n[sources]\nollama = \"http://{}\"\n",
        registry.host
    );
    Machine::new(&inventory, manifest)
}

/// What lies in a models folder once `image` is installed as `tiny:1b`, by path.
fn installed(image: &Image) -> BTreeMap<String, Vec<u8>> {
    let blobs = image.blobs.iter().map(|blob| (format!("blobs/sha256-{}", Sha256::of(blob)), blob.clone()));
    let manifest = ("manifests/registry.ollama.ai/library/tiny/1b".to_owned(), image.manifest.clone().into_bytes());
    blobs.chain([manifest]).collect()
}

/// What Ollama would see of a models folder.
fn visible(models: &Path) -> BTreeMap<String, Vec<u8>> {
    if !models.exists() {
        return BTreeMap::new();
    }
    contents(models).into_iter().filter(|(path, _)| !path.starts_with(".larder/")).collect()
}

fn locked(machine: &Machine) -> Value {
    let lock: Value = serde_json::from_slice(&fs_err::read(machine.path("inventory.lock")).unwrap()).unwrap();
    lock["artifacts"][0].clone()
}

fn size(image: &Image) -> u64 {
    image.blobs.iter().map(|blob| blob.len() as u64).sum()
}

#[tokio::test]
async fn an_image_comes_byte_for_byte_and_is_pinned_by_its_manifest() {
    let image = Image::new(7, 100_000);
    let Some(registry) = registry(&image).await else { return };
    let machine = machine(&registry, "", TINY);
    machine.larder(&["lock"]).must_be(0);
    assert_eq!(locked(&machine)["ollama"], json!({"digest": image.digest().to_string(), "bytes": image.manifest}));
    let plan = machine.larder(&["plan", "--json"]).must_be(0).json();
    assert_eq!(plan["bytes_to_move"], size(&image));
    assert_eq!(visible(&machine.path("models")), BTreeMap::new(), "a plan changes nothing");
    let applied = machine.larder(&["apply", "--yes", "--json"]).must_be(0).json();
    assert_eq!(applied["moved_bytes"], size(&image));
    assert_eq!(visible(&machine.path("models")), installed(&image));
    machine.larder(&["verify"]).must_be(0);
    drop(registry);
    machine.larder(&["apply", "--yes"]).must_be(0).must_say(&["nothing to do"]);
}

#[tokio::test]
async fn a_tag_that_moved_is_told_and_the_lock_is_kept() {
    let (image, other) = (Image::new(7, 100_000), Image::new(8, 100_000));
    let Some(registry) = registry(&image).await else { return };
    let pin = format!("{TINY}manifest = \"{}\"\n", image.digest());
    let (pinned, free) = (machine(&registry, "", &pin), machine(&registry, "", TINY));
    pinned.larder(&["lock"]).must_be(0);
    free.larder(&["lock"]).must_be(0);
    let before = fs_err::read(pinned.path("inventory.lock")).unwrap();
    registry.push(&other, "library/tiny", "1b").await;

    let (wanted, found) = (image.digest().to_string(), other.digest().to_string());
    let told = pinned.larder(&["lock", "--update", "tiny*"]).must_be(4);
    told.must_say(&["the image ollama:tiny:1b", &wanted[..12], &found[..12], "hint: "]);
    assert_eq!(fs_err::read(pinned.path("inventory.lock")).unwrap(), before);
    for machine in [&pinned, &free] {
        machine.larder(&["apply", "--yes"]).must_be(0);
        assert_eq!(visible(&machine.path("models")), installed(&image), "what is locked, not what the tag names now");
    }

    free.larder(&["lock"]).must_be(0);
    assert_eq!(locked(&free)["ollama"]["digest"], wanted, "a lock does not move by itself");
    free.larder(&["lock", "--update", "tiny*"]).must_be(0).must_say(&["changed: tiny:1b"]);
    free.larder(&["apply", "--yes"]).must_be(0);
    let now = visible(&free.path("models"));
    assert!(installed(&other).iter().all(|(path, content)| now.get(path) == Some(content)));
}

#[tokio::test]
async fn rot_in_the_registry_never_becomes_visible() {
    let image = Image::new(7, 100_000);
    let Some(registry) = registry(&image).await else { return };
    let machine = machine(&registry, "", TINY);
    machine.larder(&["lock"]).must_be(0);
    let weights = &image.blobs[1];
    let digest = Sha256::of(weights);
    let on_disk = registry.blob_on_disk(&digest);
    let mut rotten = weights.clone();
    rotten[50_000] ^= 1;
    write_atomic(&on_disk, &rotten, &WriteOptions::default()).unwrap();
    let failed = machine.larder(&["apply", "--yes"]).must_be(4);
    failed.must_say(&["failed: tiny:1b/blobs/sha256-", "is not the file", &digest.to_string(), "hint: "]);
    assert_eq!(visible(&machine.path("models")), BTreeMap::new());
    machine.larder(&["status"]).must_be(3);

    write_atomic(&on_disk, weights, &WriteOptions::default()).unwrap();
    let applied = machine.larder(&["apply", "--yes", "--json"]).must_be(0).json();
    assert_eq!(applied["moved_bytes"], weights.len() as u64, "only what was wrong comes again");
    assert_eq!(visible(&machine.path("models")), installed(&image));
}

/// Where larder looks for a server's folder that is not on its file systems, or is closed to it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sight {
    Open,
    Elsewhere,
    Closed,
}

/// A locked machine whose store is kept by a running server.
async fn served(registry: &DockerRegistry, sight: Sight) -> (Machine, OllamaServer) {
    let server = OllamaServer::start().await;
    let machine = machine(registry, &format!(", api = \"{}\"", server.url()), TINY);
    match sight {
        Sight::Open => symlink_atomic(server.folder(), &machine.path("models"), None).unwrap(),
        Sight::Elsewhere => {}
        Sight::Closed => symlink_atomic(&machine.path("nowhere"), &machine.path("models"), None).unwrap(),
    }
    machine.larder(&["lock"]).must_be(0);
    assert_eq!(server.lines(), [""; 0]);
    (machine, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_installs_and_is_asked_no_more_than_needed() {
    let image = Image::new(7, 100_000);
    let Some(registry) = registry(&image).await else { return };
    for sight in [Sight::Open, Sight::Elsewhere, Sight::Closed] {
        let (machine, server) = served(&registry, sight).await;
        machine.larder(&["status"]).must_be(3);
        let asked = server.lines().len();
        let plan = machine.larder(&["plan", "--json"]).must_be(0).json();
        assert_eq!(plan["artifacts"][0]["steps"], json!([{"do": "install", "bytes": size(&image)}]), "{sight:?}");
        assert_eq!(server.lines()[asked..], ["GET /api/tags"], "{sight:?}");
        let applied = machine.larder(&["apply", "--yes"]).must_be(0);
        applied.must_say(&[
            "97.8 KiB from the Ollama registry",
            "through the running Ollama server",
            "1 artifact ready",
        ]);
        assert_eq!(server.models(), BTreeMap::from([("tiny:1b".to_owned(), image.digest().to_string())]), "{sight:?}");

        let asked = server.lines().len();
        machine.larder(&["apply", "--yes"]).must_be(0).must_say(&["nothing to do"]);
        machine.larder(&["status"]).must_be(0).must_say(&["4 of 4"]);
        let expected: &[&str] = if sight == Sight::Open { &[] } else { &["GET /api/tags", "GET /api/tags"] };
        assert_eq!(server.lines()[asked..], *expected, "{sight:?}: once per run, and only where larder cannot look");
        let verified = machine.larder(&["verify"]);
        let code = if sight == Sight::Open { 0 } else { 3 };
        verified.must_be(code).must_say(&[if code == 0 { "no fault" } else { "server" }]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gets_another_model_is_an_error_and_loses_nothing() {
    let (image, other) = (Image::new(7, 100_000), Image::new(8, 100_000));
    let Some(registry) = registry(&image).await else { return };
    for sight in [Sight::Open, Sight::Elsewhere] {
        registry.push(&image, "library/tiny", "1b").await;
        let (machine, server) = served(&registry, sight).await;
        let old = Sha256::of(b"an older manifest").to_string();
        server.pretend("tiny:1b", &old);
        registry.push(&other, "library/tiny", "1b").await;
        let failed = machine.larder(&["apply", "--yes"]).must_be(1);
        failed.must_say(&["failed: tiny:1b", &other.digest().to_string(), &image.digest().to_string(), "hint: "]);
        assert_eq!(server.models(), BTreeMap::from([("tiny:1b".to_owned(), old)]), "{sight:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_mends_what_is_missing_and_cannot_mend_what_rotted() {
    let image = Image::new(7, 100_000);
    let Some(registry) = registry(&image).await else { return };
    let (machine, server) = served(&registry, Sight::Open).await;
    machine.larder(&["apply", "--yes"]).must_be(0);
    let weights = server.folder().join(format!("blobs/sha256-{}", Sha256::of(&image.blobs[1])));

    #[expect(clippy::disallowed_methods, reason = "the damage")]
    std::fs::remove_file(&weights).unwrap();
    machine.larder(&["status"]).must_be(3);
    machine.larder(&["apply", "--yes"]).must_be(0).must_say(&["install", "3 of 4", "1 artifact ready"]);
    machine.larder(&["verify"]).must_be(0);

    let mut rotten = image.blobs[1].clone();
    rotten[500] ^= 1;
    write_atomic(&weights, &rotten, &WriteOptions::default()).unwrap();
    machine.larder(&["verify"]).must_be(3);
    let asked = server.lines().len();
    machine.larder(&["apply", "--yes"]).must_be(4).must_say(&[
        "cannot",
        "wrong",
        "hint: remove tiny:1b with `ollama rm`",
    ]);
    assert_eq!(server.lines().len(), asked, "a pull would not read it again");
    assert!(!server.folder().join(".larder").exists(), "the folder is the server's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_upstream_has_no_server_fetch_for_it() {
    let image = Image::new(7, 1000);
    let Some(registry) = registry(&image).await else { return };
    let (machine, server) = served(&registry, Sight::Elsewhere).await;
    let inventory = fs_err::read_to_string(machine.path("inventory.toml")).unwrap();
    let local = machine.larder(&["apply", "--yes", "--only-local"]).must_be(4);
    local.must_say(&["cannot", "its server would pull it from upstream", "hint: leave out --only-local"]);
    assert_eq!(server.models(), BTreeMap::new());
    machine.write("inventory.toml", &format!("{inventory}order = [\"drive\"]\n"));
    machine.larder(&["apply", "--yes"]).must_be(4).must_say(&["cannot", "upstream"]);
    assert_eq!(server.models(), BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_an_obstacle_with_a_hint() {
    let image = Image::new(7, 1000);
    let Some(registry) = registry(&image).await else { return };
    for sight in [Sight::Open, Sight::Elsewhere, Sight::Closed] {
        let (machine, server) = served(&registry, sight).await;
        let url = server.url();
        let offline = machine.larder(&["plan", "--check", "--offline"]).must_be(3);
        assert!(!offline.out.contains("install"), "{sight:?}: {offline}");
        assert_eq!(server.lines(), [""; 0], "{sight:?}");
        let _folder = server.stop();
        let plan = machine.larder(&["plan", "--check"]).must_be(3);
        plan.must_say(&["cannot", "cannot be reached", "hint: start the server", &url]);
        machine.larder(&["apply", "--yes"]).must_be(4);
        machine.larder(&["status"]).must_be(3);
    }
}
