//! What a lock says of where files come from, and what it leaves to be derived.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use larder::artifact::Artifact;
use larder::inventory::Layout;
use larder::lock::Lock;
use larder::manifest::Manifests;
use larder::resolve;
use larder::sources::{SourceSettings, Sources};

const COMMIT: &str = "0123456789012345678901234567890123456789";

/// What `larder lock --offline` writes for the artifact of `manifest`, read again.
fn locked(manifest: &str, layout: Layout) -> (String, Artifact) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.toml");
    larder::fsio::write_atomic(&path, manifest.as_bytes(), &Default::default()).unwrap();
    let declared = Manifests::read(&[path]).unwrap().artifacts.remove(0);
    let text = Lock { artifacts: vec![resolve::from_pins(&declared, layout)] }.to_text();
    let artifact = parse(&text).artifacts.remove(0);
    (text, artifact)
}

fn parse(text: &str) -> Lock {
    Lock::parse(Path::new("inventory.lock"), text).unwrap()
}

fn origins(artifact: &Artifact) -> Vec<String> {
    let first = |file| artifact.remotes(file).first().map(|remote| remote.reference.to_string());
    artifact.files.iter().map(|file| first(file).unwrap_or_default()).collect()
}

fn manifest(more: &str, files: &str) -> String {
    format!(
        "[[artifact]]\nname = \"set\"\nstore = \"plain\"\nsource = \"hf:acme/set@{COMMIT}\"\n{more}\nfile = [{files}]\n"
    )
}

#[test]
fn a_source_that_follows_from_the_artifact_is_not_written_for_each_file() {
    let files = "{ path = \"a.bin\" }, { path = \"in/b.bin\" }";
    for (more, layout) in
        [("folder = \"models/set\"", Layout::Folder), ("", Layout::Folder), ("folder = \"unused\"", Layout::HfCache)]
    {
        let (text, artifact) = locked(&manifest(more, files), layout);
        assert_eq!(text.matches("hf:acme/set").count(), 1, "{text}");
        let expected = ["a.bin", "in/b.bin"].map(|path| format!("hf:acme/set@{COMMIT}/{path}"));
        assert_eq!(origins(&artifact), expected, "{text}");
    }
}

#[test]
fn a_source_of_its_own_is_written() {
    let files = "{ path = \"a.bin\", source = \"hf:acme/other/weights.bin\" }, { path = \"b.bin\" }";
    let (text, artifact) = locked(&manifest("folder = \"models\"", files), Layout::Folder);
    assert!(text.contains(r#"{"path":"models/a.bin","source":"hf:acme/other/weights.bin"}"#), "{text}");
    assert_eq!(origins(&artifact), ["hf:acme/other/weights.bin".to_owned(), format!("hf:acme/set@{COMMIT}/b.bin")]);
}

#[test]
fn files_of_a_drive_are_found_below_the_drive() {
    let manifest = "[[artifact]]\nname = \"set\"\nstore = \"plain\"\nsource = \"file:/mnt/drive/set\"\nfolder = \"here\"\n\
        file = [{ path = \"a/b.bin\" }]\n";
    assert_eq!(origins(&locked(manifest, Layout::Folder).1), ["file:/mnt/drive/set/a/b.bin"]);
}

/// As the patterns of `huggingface_hub` do, which people copy. Globs of `match` stay in their folder: tests/stores.rs.
#[tokio::test]
async fn a_star_of_include_and_exclude_crosses_folders() {
    let drive = tempfile::tempdir().unwrap();
    for path in ["a.bin", "in/b.bin", "in/deep/c.bin", "in/c.txt", "out/d.bin"] {
        larder::fsio::write_atomic(&drive.path().join(path), b"x", &Default::default()).unwrap();
    }
    let source = drive.path().display();
    let selected = async |selection: &str| {
        let text =
            format!("[[artifact]]\nname = \"set\"\nstore = \"plain\"\nsource = \"file:{source}\"\n{selection}\n");
        let declared = Manifests::parse(Path::new("m.toml"), &text).unwrap().artifacts.remove(0);
        let sources = Sources::new(&SourceSettings::default()).unwrap();
        let artifact = resolve::resolve(&declared, Layout::Folder, &sources).await.unwrap();
        artifact.files.iter().map(|file| file.path.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(selected("include = [\"*.bin\"]").await, ["a.bin", "in/b.bin", "in/deep/c.bin", "out/d.bin"]);
    assert_eq!(selected("include = [\"in/*.bin\"]").await, ["in/b.bin", "in/deep/c.bin"]);
    assert_eq!(selected("include = [\"*.bin\"]\nexclude = [\"in/*\"]").await, ["a.bin", "out/d.bin"]);
}

/// Locks of revision 0 say for each file of a plain folder where it comes from.
#[test]
fn a_lock_of_an_older_larder_means_the_same() {
    let old = parse(&format!(
        r#"{{"version": 1, "revision": 0, "artifacts": [
{{"name":"set","store":"plain","source":"hf:acme/set","declared":"x","revision":"{COMMIT}","origin":"upstream","complete":true,"files":[
  {{"path":"models/set/a.bin","source":"hf:acme/set@{COMMIT}/a.bin"}}]}}
]}}"#
    ));
    assert_eq!(origins(&old.artifacts[0]), [format!("hf:acme/set@{COMMIT}/a.bin")]);
    assert_eq!(parse(&old.to_text()), old, "nothing is lost when it is written again");
}

/// An older larder can still read a lock that has nothing new in it, and git shows no change.
#[test]
fn only_a_lock_that_names_content_in_xet_is_of_the_newest_revision() {
    let (pins, mut artifact) = locked(&manifest("", "{ path = \"a.bin\" }"), Layout::HfCache);
    assert!(pins.starts_with("{\"version\": 1, \"revision\": 1, "), "{pins}");
    assert!(!pins.contains("xet"), "{pins}");
    let name = "0123456789abcdef".repeat(4);
    artifact.files[0].xet = Some(name.parse().unwrap());
    let lock = Lock { artifacts: vec![artifact] };
    let text = lock.to_text();
    assert!(text.starts_with("{\"version\": 1, \"revision\": 2, "), "{text}");
    assert!(text.contains(&format!("{{\"path\":\"a.bin\",\"xet\":\"{name}\"}}")), "{text}");
    assert_eq!(parse(&text), lock);
}

#[test]
fn the_name_in_xet_stays_while_the_content_is_the_same() {
    let (_, mut before) = locked(&manifest("", "{ path = \"a.bin\" }, { path = \"b.bin\" }"), Layout::HfCache);
    for (file, digit) in before.files.iter_mut().zip(["1", "2"]) {
        file.digests.sha256 = Some(digit.repeat(64).parse().unwrap());
        file.xet = Some(digit.repeat(64).parse().unwrap());
    }
    let mut now = before.clone();
    now.files.iter_mut().for_each(|file| file.xet = None);
    now.files[1].digests.sha256 = Some("3".repeat(64).parse().unwrap());
    now.files[0].path = "moved.bin".parse().unwrap();
    resolve::keep_xet(&mut now, &before);
    assert_eq!(now.files[0].xet, before.files[0].xet, "the content is known by its digest, not by its path");
    assert_eq!(now.files[1].xet, None, "another content has another name");
    let newer = Some("4".repeat(64).parse().unwrap());
    now.files[0].xet = newer;
    resolve::keep_xet(&mut now, &before);
    assert_eq!(now.files[0].xet, newer, "what is said now counts");
}
