//! Ollama's models directory as Ollama itself would find it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use larder::artifact::{Artifact, File, OllamaManifest, Pattern, parse_manifest};
use larder::digest::{ContentHasher, Sha256};
use larder::fsio::{Owner, Partial, Proven, WriteOptions, remove_file, running_as, touch, write_atomic};
use larder::stores::{Defect, FileState, OllamaStore, Store, StoreError, Unpublished};
use tempfile::TempDir;

#[path = "support/ollama_image.rs"]
mod ollama_image;

use ollama_image::Image;

const NAME: &str = "tiny:1b";
const MANIFEST: &str = "manifests/registry.ollama.ai/library/tiny/1b";

struct Lab {
    dir: TempDir,
    store: OllamaStore,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = OllamaStore::new("ollama".to_owned(), dir.path().join("models"), None);
        Self { dir, store }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join("models").join(relative)
    }

    fn write(&self, relative: &str, bytes: &[u8]) {
        write_atomic(&self.path(relative), bytes, &WriteOptions::default()).unwrap();
    }

    fn prove(&self, bytes: &[u8]) -> Proven {
        let key = Sha256::of(bytes).to_string();
        let mut partial = Partial::open(&self.store.staging(), &key, ContentHasher::new(), None).unwrap();
        partial.append(bytes).unwrap();
        partial.prove(None, &larder::digest::Digests::default()).unwrap()
    }

    fn place(&self, artifact: &Artifact, file: &File, image: &Image) -> PathBuf {
        self.store.place(artifact, file, self.prove(image.content(file))).unwrap()
    }

    fn place_all(&self, artifact: &Artifact, image: &Image) {
        artifact.files.iter().for_each(|file| drop(self.place(artifact, file, image)));
    }

    fn install(&self, name: &str, image: &Image) -> Artifact {
        let artifact = image.artifact(name);
        self.place_all(&artifact, image);
        self.store.publish(&artifact).unwrap();
        artifact
    }

    fn names_in(&self, folder: &str) -> BTreeSet<String> {
        let entries = fs_err::read_dir(self.path(folder)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Contents that were set aside, sorted.
    fn set_aside(&self) -> Vec<Vec<u8>> {
        let entries = walkdir::WalkDir::new(self.path(".larder/replaced")).into_iter().flatten();
        let files = entries.filter(|entry| entry.file_type().is_file());
        let mut contents: Vec<_> = files.map(|entry| fs_err::read(entry.path()).unwrap()).collect();
        contents.sort();
        contents
    }

    /// What Ollama's pruning at start would do: everything it deletes, and whether it gives up.
    fn pruned_by_ollama(&self) -> Result<BTreeSet<String>, String> {
        let mut used = BTreeSet::new();
        for entry in walkdir::WalkDir::new(self.path("manifests")).min_depth(4).max_depth(4).into_iter().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                return Err(format!("{name} is no tag: pruning is given up"));
            }
            let files = parse_manifest(&fs_err::read(entry.path()).unwrap()).map_err(|error| error.to_string())?;
            used.extend(files.iter().map(|file| file.path.file_name().to_owned()));
        }
        Ok(self.names_in("blobs").difference(&used).cloned().collect())
    }
}

fn mode(path: &Path) -> u32 {
    fs_err::metadata(path).unwrap().mode() & 0o7777
}

fn is_staged(state: &FileState) -> bool {
    matches!(state, FileState::Staged(_))
}

fn is_present(state: &FileState) -> bool {
    matches!(state, FileState::Present(_))
}

#[test]
fn an_image_becomes_visible_at_once_and_never_has_orphans() {
    let (lab, image) = (Lab::new(), Image::new(1, 1000));
    let artifact = image.artifact(NAME);
    assert!(lab.store.observe(&artifact).files.iter().all(|state| *state == FileState::Missing));
    for (index, file) in artifact.files.iter().enumerate() {
        let path = lab.place(&artifact, file, &image);
        assert_eq!(path, lab.store.staging().join("ready").join(file.path.file_name()));
        assert_eq!(path, lab.store.content_path(&artifact, file));
        assert_eq!(lab.names_in("blobs"), BTreeSet::new(), "nothing in blobs/ before the manifest can follow");
        assert!(!lab.path("manifests").exists());
        let observed = lab.store.observe(&artifact);
        assert_eq!(observed.files.iter().filter(|state| is_staged(state)).count(), index + 1);
        assert_eq!(observed.published, Err(Unpublished::Missing { what: MANIFEST.to_owned() }));
    }
    lab.store.publish(&artifact).unwrap();
    let observed = lab.store.observe(&artifact);
    assert!(observed.files.iter().all(is_present), "{observed:?}");
    assert_eq!(observed.published, Ok(()));
    assert_eq!(lab.pruned_by_ollama(), Ok(BTreeSet::new()));
    assert_eq!(lab.names_in("blobs").len(), 4);
    assert_eq!(lab.names_in(".larder/ready"), BTreeSet::new());
    assert_eq!(fs_err::read(lab.path(MANIFEST)).unwrap(), image.manifest.as_bytes());
    for file in &artifact.files {
        let path = lab.store.content_path(&artifact, file);
        assert_eq!(path, file.path.under(lab.store.root()));
        assert_eq!((fs_err::read(&path).unwrap(), mode(&path)), (image.content(file).to_vec(), 0o644));
    }
    assert_eq!((mode(&lab.path(MANIFEST)), mode(&lab.path("blobs"))), (0o644, 0o755));
    assert_eq!(mode(lab.path(MANIFEST).parent().unwrap()), 0o755);
}

#[test]
fn publishing_again_changes_nothing() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = lab.install(NAME, &image);
    let times = || {
        let mut paths: Vec<_> = artifact.files.iter().map(|file| file.path.under(lab.store.root())).collect();
        paths.push(lab.path(MANIFEST));
        paths.iter().map(|path| fs_err::metadata(path).unwrap()).map(|m| (m.ino(), m.mtime_nsec())).collect::<Vec<_>>()
    };
    let before = times();
    lab.store.publish(&artifact).unwrap();
    assert_eq!(before, times());
}

#[test]
fn an_image_with_a_missing_blob_stays_invisible() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = image.artifact(NAME);
    artifact.files.iter().skip(1).for_each(|file| drop(lab.place(&artifact, file, &image)));
    let error = lab.store.publish(&artifact).unwrap_err();
    assert!(
        matches!(&error, StoreError::Incomplete { missing, .. } if *missing == artifact.files[0].path.to_string()),
        "{error}"
    );
    assert!(!lab.path("manifests").exists());
    assert_eq!(lab.names_in("blobs"), BTreeSet::new());
}

#[test]
fn the_manifest_decides_which_blobs_are_needed() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let mut artifact = image.artifact(NAME);
    let forgotten = artifact.files.pop().unwrap();
    lab.place_all(&artifact, &image);
    let error = lab.store.publish(&artifact).unwrap_err().to_string();
    assert!(error.contains(forgotten.path.as_str()), "{error}");
}

#[test]
fn a_blob_of_wrong_length_is_wrong_and_is_kept_aside_when_replaced() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = lab.install(NAME, &image);
    let file = &artifact.files[1];
    let expected = file.size.unwrap();
    for (bytes, defect) in [(&b"half"[..], Defect::Size { expected, actual: 4 }), (&b""[..], Defect::Empty)] {
        lab.write(file.path.as_str(), bytes);
        let observed = lab.store.observe(&artifact);
        assert!(matches!(&observed.files[1], FileState::Wrong { defect: seen, found: Some(_) } if *seen == defect));
        assert_eq!(observed.published, Ok(()));
        assert!(matches!(lab.store.publish(&artifact), Err(StoreError::Incomplete { .. })));
        lab.place(&artifact, file, &image);
        assert!(is_staged(&lab.store.observe(&artifact).files[1]));
        lab.store.publish(&artifact).unwrap();
        assert!(is_present(&lab.store.observe(&artifact).files[1]));
    }
    assert_eq!(lab.set_aside(), [b"half".to_vec()], "nobody misses an empty file");
    assert_eq!(lab.pruned_by_ollama(), Ok(BTreeSet::new()));
}

#[test]
fn a_corrupt_blob_of_right_length_is_mended_and_kept_aside() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = lab.install(NAME, &image);
    let file = &artifact.files[1];
    let mut rotten = image.content(file).to_vec();
    rotten[5] ^= 1;
    lab.write(file.path.as_str(), &rotten);
    assert!(is_present(&lab.store.observe(&artifact).files[1]), "names and lengths do not show it");
    lab.place(&artifact, file, &image);
    lab.store.publish(&artifact).unwrap();
    assert_eq!(fs_err::read(file.path.under(lab.store.root())).unwrap(), image.content(file));
    assert_eq!(lab.set_aside(), [rotten]);
}

#[test]
fn leftovers_and_oddities_are_not_content() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = image.artifact(NAME);
    let name = |index: usize| artifact.files[index].path.as_str().to_owned();
    lab.write(&format!("{}-partial", name(0)), b"sparse");
    fs_err::os::unix::fs::symlink("nowhere", lab.path(&name(1))).unwrap();
    lab.write(&format!("{}/x", name(2)), b"in a folder");
    lab.write(
        &format!("blobs/sha256:{}", artifact.files[3].digests.sha256.unwrap()),
        image.content(&artifact.files[3]),
    );
    let states = lab.store.observe(&artifact).files;
    assert!(matches!(&states[0], FileState::Wrong { defect: Defect::Unfinished { .. }, found: None }), "{states:?}");
    assert!(matches!(&states[1], FileState::Wrong { defect: Defect::Dangling { target }, .. } if target == "nowhere"));
    assert!(matches!(&states[2], FileState::Wrong { defect: Defect::NotAFile, .. }));
    assert!(is_present(&states[3]), "content under the name that old versions gave it");
}

#[test]
fn content_under_an_old_name_is_given_the_new_one() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = image.artifact(NAME);
    for file in &artifact.files {
        lab.write(&format!("blobs/sha256:{}", file.digests.sha256.unwrap()), image.content(file));
    }
    lab.store.publish(&artifact).unwrap();
    assert_eq!(lab.pruned_by_ollama(), Ok(BTreeSet::new()));
    assert_eq!(lab.names_in("blobs").len(), 4);
}

#[test]
fn a_store_of_a_newer_layout_is_read_and_not_written() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = image.artifact(NAME);
    lab.write("manifests-v2/ollama.com/library/tiny/1b", image.manifest.as_bytes());
    for file in &artifact.files {
        lab.write(file.path.as_str(), image.content(file));
    }
    let observed = lab.store.observe(&artifact);
    assert!(observed.files.iter().all(is_present));
    assert_eq!(observed.published, Ok(()));
    assert!(matches!(lab.store.publish(&artifact), Err(StoreError::ForeignLayout { .. })));
    let content = lab.prove(image.content(&artifact.files[0]));
    assert!(matches!(lab.store.place(&artifact, &artifact.files[0], content), Err(StoreError::ForeignLayout { .. })));
    assert!(!lab.path("manifests").exists() && !lab.path(".larder/ready").exists());
}

#[test]
fn a_moved_tag_is_seen_and_the_old_manifest_is_kept_aside() {
    let (lab, old, new) = (Lab::new(), Image::new(1, 10), Image::new(2, 10));
    lab.install(NAME, &old);
    let artifact = new.artifact(NAME);
    let Err(Unpublished::Different { what, actual, wanted }) = lab.store.observe(&artifact).published else {
        panic!("the old manifest counts as the new one");
    };
    assert_eq!(what, MANIFEST);
    assert_eq!((actual, wanted), (format!("sha256:{}", old.digest()), format!("sha256:{}", new.digest())));
    let only_digest =
        Artifact { ollama: Some(OllamaManifest { digest: old.digest(), bytes: None }), ..artifact.clone() };
    assert_eq!(lab.store.observe(&only_digest).published, Ok(()), "the digest alone is enough to recognise it");
    lab.place_all(&artifact, &new);
    lab.store.publish(&artifact).unwrap();
    assert_eq!(lab.store.observe(&artifact).published, Ok(()));
    assert_eq!(lab.set_aside(), [old.manifest.as_bytes()]);
    assert_eq!(lab.pruned_by_ollama().unwrap().len(), 1, "the old weights are left to Ollama's own pruning");
}

#[test]
fn images_share_blobs() {
    let (lab, one, two) = (Lab::new(), Image::new(1, 10), Image::new(2, 10));
    let first = one.artifact(NAME);
    let second = two.artifact("tiny:2b");
    lab.place_all(&first, &one);
    lab.place_all(&second, &two);
    assert_eq!(lab.names_in(".larder/ready").len(), 5, "config, template and license are the same");
    lab.store.publish(&first).unwrap();
    lab.store.publish(&second).unwrap();
    assert_eq!(lab.store.observe(&first).published, Ok(()));
    assert!(lab.store.observe(&second).files.iter().all(is_present));
    assert_eq!(lab.pruned_by_ollama(), Ok(BTreeSet::new()));
}

#[test]
fn two_that_publish_at_once_do_not_take_blobs_from_each_other() {
    for round in 0..20 {
        let (lab, one, two) = (Lab::new(), Image::new(1, 10), Image::new(2, 10));
        let images = [(one.artifact(NAME), &one), (two.artifact("tiny:2b"), &two)];
        images.iter().for_each(|(artifact, image)| lab.place_all(artifact, image));
        let publish = |artifact| {
            let store = OllamaStore::new("ollama".to_owned(), lab.path(""), None);
            store.publish(artifact).unwrap();
        };
        std::thread::scope(|scope| images.iter().for_each(|(artifact, _)| drop(scope.spawn(|| publish(artifact)))));
        for (artifact, _) in &images {
            assert_eq!(lab.store.observe(artifact).published, Ok(()), "round {round}");
            assert!(lab.store.observe(artifact).files.iter().all(is_present));
        }
    }
}

#[test]
fn a_publication_that_was_killed_half_way_is_finished() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = image.artifact(NAME);
    lab.place_all(&artifact, &image);
    for file in &artifact.files[..2] {
        lab.write(file.path.as_str(), image.content(file));
        remove_file(&lab.store.staging().join("ready").join(file.path.file_name())).unwrap();
    }
    assert_eq!(lab.store.observe(&artifact).published, Err(Unpublished::Missing { what: MANIFEST.to_owned() }));
    lab.store.publish(&artifact).unwrap();
    assert!(lab.store.observe(&artifact).files.iter().all(is_present));
    assert_eq!((lab.pruned_by_ollama(), lab.set_aside().len()), (Ok(BTreeSet::new()), 0));
}

#[test]
fn old_blobs_are_made_young_before_the_manifest_names_them() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let artifact = image.artifact(NAME);
    lab.place_all(&artifact, &image);
    let shared = &artifact.files[1];
    lab.write(shared.path.as_str(), image.content(shared));
    remove_file(&lab.store.staging().join("ready").join(shared.path.file_name())).unwrap();
    let path = shared.path.under(lab.store.root());
    let long_ago = SystemTime::now() - Duration::from_secs(3 * 60 * 60);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    lab.store.publish(&artifact).unwrap();
    let age = fs_err::metadata(&path).unwrap().modified().unwrap().elapsed().unwrap();
    assert!(age < Duration::from_secs(60), "{age:?}");
}

#[test]
fn touching_what_is_not_there_is_an_error_with_the_path() {
    let lab = Lab::new();
    let error = touch(&lab.path("nothing")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert!(error.to_string().contains("nothing"));
}

#[test]
fn a_name_that_differs_only_in_case_is_not_hidden() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    lab.install("hf.co/acme/Tiny-GGUF:Q4_K_M", &image);
    let artifact = image.artifact("hf.co/acme/tiny-gguf:q4_k_m");
    let published = lab.store.observe(&artifact).published;
    let Err(Unpublished::Different { actual, .. }) = &published else { panic!("{published:?}") };
    assert!(actual.contains("manifests/hf.co/acme/Tiny-GGUF/Q4_K_M"), "{actual}");
    lab.place_all(&artifact, &image);
    let error = lab.store.publish(&artifact).unwrap_err();
    assert!(matches!(&error, StoreError::Unsuitable { reason, .. } if reason.contains("ollama rm")), "{error}");
    assert!(!lab.path("manifests/hf.co/acme/tiny-gguf").exists());
}

#[test]
fn what_cannot_be_published_says_why() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    let good = image.artifact(NAME);
    let with = |bytes: Option<&str>| Artifact {
        ollama: Some(OllamaManifest { digest: image.digest(), bytes: bytes.map(str::to_owned) }),
        ..good.clone()
    };
    let bad_json = "{}";
    let no_manifest = OllamaManifest { digest: Sha256::of(bad_json.as_bytes()), bytes: Some(bad_json.to_owned()) };
    for (artifact, reason) in [
        (with(None), "larder lock"),
        (Artifact { ollama: None, ..good.clone() }, "larder lock"),
        (with(Some("{}")), "does not have the digest"),
        (Artifact { ollama: Some(no_manifest), ..good.clone() }, "not an Ollama manifest"),
        (Artifact { source: "hf:a/b".parse().unwrap(), ..good.clone() }, "Ollama registry"),
    ] {
        let error = lab.store.publish(&artifact).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let wrong = lab.prove(b"something else");
    let error = lab.store.place(&good, &good.files[0], wrong).unwrap_err().to_string();
    assert!(error.contains("is not that file"), "{error}");
}

#[test]
fn files_belong_to_the_user_of_the_store() {
    let (dir, image) = (tempfile::tempdir().unwrap(), Image::new(1, 10));
    // Only root can act for another user.
    let owner = if running_as().uid == 0 { Owner { uid: 4711, gid: 4712 } } else { running_as() };
    let store = OllamaStore::new("ollama".to_owned(), dir.path().join("models"), Some(owner));
    let lab = Lab { dir, store };
    let artifact = image.artifact(NAME);
    for file in &artifact.files {
        let content = lab.prove(image.content(file));
        lab.store.place(&artifact, file, content).unwrap();
    }
    lab.store.publish(&artifact).unwrap();
    let foreign: Vec<_> = walkdir::WalkDir::new(lab.store.root())
        .into_iter()
        .map(Result::unwrap)
        // The test itself made the staging folder, as the user it runs as.
        .filter(|entry| entry.path() != lab.store.root() && !entry.path().ends_with(".larder"))
        .filter(|entry| Owner::of(entry.path()).unwrap() != owner)
        .map(|entry| entry.into_path())
        .collect();
    assert_eq!(foreign, Vec::<PathBuf>::new());
}

#[test]
fn what_cannot_be_looked_at_is_not_missing() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    fs_err::create_dir(lab.store.root()).unwrap();
    // A link to itself fails for every user, root too.
    fs_err::os::unix::fs::symlink("blobs", lab.path("blobs")).unwrap();
    fs_err::os::unix::fs::symlink("manifests", lab.path("manifests")).unwrap();
    let observed = lab.store.observe(&image.artifact(NAME));
    assert!(observed.files.iter().all(|state| matches!(state, FileState::Unreadable { .. })), "{observed:?}");
    assert!(matches!(observed.published, Err(Unpublished::Unreadable { .. })), "{observed:?}");
}

#[test]
fn files_are_found_by_pattern_without_ours() {
    let (lab, image) = (Lab::new(), Image::new(1, 10));
    lab.install(NAME, &image);
    lab.place_all(&image.artifact(NAME), &image);
    let count = |glob: &str| lab.store.matching(&Pattern { glob: glob.to_owned(), count: 0 }).unwrap().len();
    assert_eq!((count("blobs/*"), count("**"), count("manifests/*"), count("manifests/**")), (4, 5, 0, 1));
}
