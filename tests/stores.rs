//! Every store keeps the contract; what is particular to a layout is tested beside it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use larder::artifact::{Artifact, File, Origin, Pattern};
use larder::digest::ContentHasher;
use larder::fsio::{self, Partial, Proven, WriteOptions};
use larder::stores::{Defect, FileState, FolderStore, HfCacheStore, OllamaStore, Store, StoreError, Unpublished};

#[path = "contract/store.rs"]
mod contract;
#[path = "support/ollama_image.rs"]
mod ollama_image;
#[path = "support/skip.rs"]
mod skip;

use contract::{Case, described};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn open_hf(root: &Path) -> Box<dyn Store> {
    Box::new(HfCacheStore::new("huggingface".to_owned(), root.to_owned(), None))
}

fn open_folder(root: &Path) -> Box<dyn Store> {
    Box::new(FolderStore::new("swarmui".to_owned(), root.to_owned(), None))
}

fn open_ollama(root: &Path) -> Box<dyn Store> {
    Box::new(OllamaStore::new("ollama".to_owned(), root.to_owned(), None))
}

fn artifact(name: &str, source: &str, files: Vec<File>) -> Artifact {
    Artifact {
        name: name.to_owned(),
        store: "store".to_owned(),
        source: source.parse().unwrap(),
        declared: "0".to_owned(),
        revision: None,
        origin: Origin::Upstream,
        complete: true,
        whole: false,
        folder: None,
        irreplaceable: false,
        ollama: None,
        pattern: None,
        files,
    }
}

fn in_git(path: &str, content: &[u8]) -> File {
    let file = described(path, content);
    let digests = larder::digest::Digests { sha256: None, ..file.digests };
    File { lfs: Some(false), digests, ..file }
}

fn in_lfs(path: &str, content: &[u8]) -> File {
    let file = described(path, content);
    let digests = larder::digest::Digests { git_sha1: None, ..file.digests };
    File { lfs: Some(true), digests, ..file }
}

fn nameless(path: &str, content: &[u8]) -> File {
    File { digests: larder::digest::Digests::default(), ..described(path, content) }
}

const CONTENTS: [&[u8]; 3] = [b"{\"model_type\": \"bert\"}", &[7; 6000], b"the third file"];

fn contents() -> Vec<Vec<u8>> {
    CONTENTS.map(<[u8]>::to_vec).to_vec()
}

fn hf_cases() -> Vec<Case> {
    let [config, model, third] = CONTENTS;
    let files = vec![in_git("config.json", config), in_lfs("model.safetensors", model), described("a/b/c.txt", third)];
    let whole = Artifact { revision: Some(COMMIT.to_owned()), whole: true, ..artifact("tiny", "hf:acme/tiny", files) };
    let files = vec![nameless("x.bin", config), nameless("deep/y.bin", model), nameless("z.bin", third)];
    let source = "hf:datasets/acme/set@refs%2Fpr%2F1";
    let branch = Artifact { revision: Some(OTHER_COMMIT.to_owned()), ..artifact("set", source, files) };
    let visible = |folder: &str, commit: &str, file: &str| Some(format!("{folder}/snapshots/{commit}/{file}"));
    vec![
        Case { visible: visible("models--acme--tiny", COMMIT, "config.json"), artifact: whole, contents: contents() },
        Case { visible: visible("datasets--acme--set", OTHER_COMMIT, "x.bin"), artifact: branch, contents: contents() },
    ]
}

fn folder_cases() -> Vec<Case> {
    let [config, model, third] = CONTENTS;
    let files = vec![
        described("clip/enc.safetensors", config),
        described("clip/model.safetensors", model),
        nameless("lora.safetensors", third),
    ];
    let artifact = artifact("clip", "https://example.org/clip", files);
    vec![Case { visible: Some("clip/enc.safetensors".to_owned()), artifact, contents: contents() }]
}

fn ollama_cases() -> Vec<Case> {
    let image = ollama_image::Image::new(7, 6000);
    let artifact = image.artifact("tiny:1b");
    let contents = artifact.files.iter().map(|file| image.content(file).to_vec()).collect();
    vec![Case { visible: Some(artifact.files[0].path.to_string()), artifact, contents }]
}

fn subject(layout: &str) -> contract::Subject {
    match layout {
        "hf-cache" => (open_hf, hf_cases()),
        "folder" => (open_folder, folder_cases()),
        "ollama" => (open_ollama, ollama_cases()),
        other => panic!("no cases for the layout {other}"),
    }
}

#[test]
fn the_hf_cache_keeps_the_contract() {
    contract::suite(&open_hf, &hf_cases());
    contract::other_content_is_refused(&open_hf, &hf_cases());
}

#[test]
fn the_folder_keeps_the_contract() {
    contract::suite(&open_folder, &folder_cases());
    contract::other_content_is_refused(&open_folder, &folder_cases());
}

#[test]
fn the_ollama_store_keeps_the_contract() {
    contract::suite(&open_ollama, &ollama_cases());
    contract::other_content_is_refused(&open_ollama, &ollama_cases());
}

#[test]
#[ignore = "the contract suite runs it as another user"]
fn look_as_a_stranger() {
    contract::look_as_a_stranger(subject);
}

fn write(path: &Path, bytes: &[u8]) {
    fsio::write_atomic(path, bytes, &WriteOptions::default()).unwrap();
}

fn link(target: impl AsRef<Path>, link: &Path) {
    fsio::symlink_atomic(target.as_ref(), link, None).unwrap();
}

fn proven(store: &dyn Store, file: &File, bytes: &[u8]) -> Proven {
    let size = Some(bytes.len() as u64);
    let hasher = ContentHasher::to_compare(&file.digests, size);
    let mut partial = Partial::open(&store.staging(), "key", hasher, store.owner()).unwrap();
    partial.restart(ContentHasher::to_compare(&file.digests, size)).unwrap();
    partial.append(bytes).unwrap();
    partial.prove(size, &file.digests).unwrap()
}

fn fill(store: &dyn Store, case: &Case) {
    for (file, bytes) in case.artifact.files.iter().zip(&case.contents) {
        store.place(&case.artifact, file, proven(store, file, bytes)).unwrap();
    }
    store.publish(&case.artifact).unwrap();
}

/// A new HF cache filled with the first case.
fn filled_cache() -> (tempfile::TempDir, Box<dyn Store>, Case) {
    let dir = tempfile::tempdir().unwrap();
    let (store, case) = (open_hf(dir.path()), hf_cases().swap_remove(0));
    fill(store.as_ref(), &case);
    (dir, store, case)
}

fn sha256(bytes: &[u8]) -> String {
    described("x", bytes).digests.sha256.unwrap().to_string()
}

fn git_sha1(bytes: &[u8]) -> String {
    described("x", bytes).digests.git_sha1.unwrap().to_string()
}

#[test]
fn the_cache_is_laid_out_as_the_hub_clients_do_it() {
    let (dir, store, case) = filled_cache();
    let repo = dir.path().join("models--acme--tiny");
    let snapshot = repo.join("snapshots").join(COMMIT);
    let target = |path: &str| fs_err::read_link(snapshot.join(path)).unwrap();
    assert_eq!(target("config.json"), PathBuf::from(format!("../../blobs/{}", git_sha1(CONTENTS[0]))));
    assert_eq!(target("model.safetensors"), PathBuf::from(format!("../../blobs/{}", sha256(CONTENTS[1]))));
    assert_eq!(target("a/b/c.txt"), PathBuf::from(format!("../../../../blobs/{}", sha256(CONTENTS[2]))));
    assert_eq!(fs_err::read(repo.join("refs/main")).unwrap(), COMMIT.as_bytes(), "no newline");
    let tag = fs_err::read_to_string(dir.path().join("CACHEDIR.TAG")).unwrap();
    assert!(tag.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n") && tag.lines().count() == 4);
    let locks = store.foreign_locks(&case.artifact, &case.artifact.files[1]);
    let lock = format!(".locks/models--acme--tiny/{}.lock", sha256(CONTENTS[1]));
    assert_eq!(locks, [dir.path().join(lock)]);
    let mode = fs_err::metadata(repo.join("blobs").join(sha256(CONTENTS[1]))).unwrap().mode() & 0o777;
    assert_eq!(mode, fs_err::metadata(repo.join("refs/main")).unwrap().mode() & 0o777, "both follow the umask");
}

#[test]
fn the_list_of_files_is_written_only_for_whole_repositories_that_are_fully_known() {
    let tree = format!("models--acme--tiny/trees/{COMMIT}.json");
    let write_case = |change: fn(&mut Artifact)| {
        let dir = tempfile::tempdir().unwrap();
        let mut case = hf_cases().swap_remove(0);
        case.artifact.files[2] = in_git("a/b/c.txt", CONTENTS[2]);
        change(&mut case.artifact);
        fill(open_hf(dir.path()).as_ref(), &case);
        fs_err::read_to_string(dir.path().join(&tree)).ok()
    };
    let text = write_case(|_| ()).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["format_version"], 1);
    assert_eq!(value["files"]["config.json"]["blob_id"], git_sha1(CONTENTS[0]));
    assert_eq!(value["files"]["model.safetensors"]["lfs_sha256"], sha256(CONTENTS[1]));
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 6000\n", sha256(&[7; 6000]));
    assert_eq!(value["files"]["model.safetensors"]["blob_id"], git_sha1(pointer.as_bytes()));
    assert_eq!(write_case(|artifact| artifact.whole = false), None);
    assert_eq!(write_case(|artifact| artifact.complete = false), None);
    assert_eq!(write_case(|artifact| artifact.files[0].lfs = None), None);
}

#[test]
fn the_reference_says_which_commit_programs_get() {
    let (dir, store, case) = filled_cache();
    let main = dir.path().join("models--acme--tiny/refs/main");
    for (text, actual) in
        [(OTHER_COMMIT.to_owned(), OTHER_COMMIT.to_owned()), (format!("{COMMIT}\n"), format!("{COMMIT}\\n"))]
    {
        write(&main, text.as_bytes());
        let published = store.observe(&case.artifact).published;
        let what = "refs/main".to_owned();
        assert_eq!(published, Err(Unpublished::Different { what, actual, wanted: COMMIT.to_owned() }));
        store.publish(&case.artifact).unwrap();
        assert_eq!(store.observe(&case.artifact).published, Ok(()));
    }
}

#[test]
fn a_pinned_commit_is_published_as_main_and_a_tag_under_its_own_name() {
    for (source, reference) in [
        (format!("hf:acme/tiny@{COMMIT}"), "main"),
        (format!("hf:acme/tiny@{}", &COMMIT[..9]), "main"),
        ("hf:acme/tiny@v1.0".to_owned(), "v1.0"),
        ("hf:acme/tiny@refs%2Fpr%2F7".to_owned(), "refs/pr/7"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut case = hf_cases().swap_remove(0);
        case.artifact.source = source.parse().unwrap();
        fill(open_hf(dir.path()).as_ref(), &case);
        let refs = dir.path().join("models--acme--tiny/refs");
        assert_eq!(fs_err::read_to_string(refs.join(reference)).unwrap(), COMMIT, "{source}");
        assert_eq!(refs.join("main").exists(), reference == "main", "{source}");
    }
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_hf(&dir.path().join("cache"));
    let mut case = hf_cases().swap_remove(0);
    let file = case.artifact.files[0].clone();
    for (source, revision) in [("hf:acme/tiny@%2Fetc%2Fx", COMMIT), ("hf:acme/tiny", "../../../etc"), ("local", COMMIT)]
    {
        case.artifact.source = source.parse().unwrap();
        case.artifact.revision = Some(revision.to_owned());
        let content = proven(store.as_ref(), &file, CONTENTS[0]);
        let placed = store.place(&case.artifact, &file, content);
        assert!(matches!(placed, Err(StoreError::Unsuitable { .. })), "{placed:?}");
        assert!(store.publish(&case.artifact).is_err());
        assert_eq!(store.observe(&case.artifact).files[0], FileState::Missing);
    }
}

#[test]
fn while_the_commit_is_unknown_the_cache_is_read_as_programs_read_it() {
    let (dir, store, mut case) = filled_cache();
    case.artifact.revision = None;
    let observed = store.observe(&case.artifact);
    assert_eq!(observed.published, Ok(()));
    assert!(observed.files.iter().all(|state| matches!(state, FileState::Present(_))));
    assert!(matches!(store.publish(&case.artifact), Err(StoreError::Unsuitable { .. })));
    fsio::remove_file(&dir.path().join("models--acme--tiny/refs/main")).unwrap();
    let observed = store.observe(&case.artifact);
    assert!(matches!(observed.files[0], FileState::Staged(_)), "{observed:?}");
    assert!(observed.published.is_err());
}

#[test]
fn a_blob_without_its_link_is_staged_and_publishing_links_it() {
    let (dir, store, case) = filled_cache();
    let snapshot = dir.path().join("models--acme--tiny/snapshots").join(COMMIT);
    fsio::remove_file(&snapshot.join("config.json")).unwrap();
    let model = snapshot.join("model.safetensors");
    fsio::remove_file(&model).unwrap();
    link("../../blobs/gone", &model);
    let observed = store.observe(&case.artifact);
    assert!(matches!(observed.files[0], FileState::Staged(_)) && matches!(observed.files[1], FileState::Staged(_)));
    assert!(matches!(observed.published, Err(Unpublished::Missing { .. })));
    store.publish(&case.artifact).unwrap();
    assert_eq!(store.observe(&case.artifact).published, Ok(()));
    assert_eq!(fs_err::read(model).unwrap(), CONTENTS[1]);
}

#[test]
fn everything_that_root_writes_belongs_to_the_stores_user() {
    if fsio::running_as().uid != 0 {
        return skip::skipped("only root can write for another user");
    }
    let nobody = fsio::Owner { uid: 65534, gid: 65534 };
    let dir = tempfile::tempdir().unwrap();
    let cache = HfCacheStore::new("huggingface".to_owned(), dir.path().join("cache"), Some(nobody));
    let folder = FolderStore::new("swarmui".to_owned(), dir.path().join("folder"), Some(nobody));
    write(&dir.path().join("folder/clip/enc.safetensors"), b"set aside");
    hf_cases().iter().for_each(|case| fill(&cache, case));
    fill(&folder, &folder_cases()[0]);
    for entry in walkdir::WalkDir::new(dir.path()).min_depth(1) {
        let entry = entry.unwrap();
        let was_there =
            ["folder", "folder/clip"].map(|name| dir.path().join(name)).iter().any(|path| path == entry.path());
        let is_aside = entry.path().starts_with(folder.staging().join("replaced")) && entry.file_type().is_file();
        let found = fs_err::symlink_metadata(entry.path()).unwrap();
        assert_eq!(found.uid() == nobody.uid, !was_there && !is_aside, "{}", entry.path().display());
    }
}

/// Moves the blob of the second file into the cache-wide store, as clients since 1.32 keep it.
fn share_the_model(cache: &Path) -> (PathBuf, PathBuf) {
    let blob = cache.join("models--acme--tiny/blobs").join(sha256(CONTENTS[1]));
    let payload = cache.join("blobs/ab").join("ab".repeat(32));
    write(&cache.join("blobs/.huggingface-shared-blobs"), b"1\n");
    write(&payload, CONTENTS[1]);
    fsio::remove_file(&blob).unwrap();
    link(format!("../../blobs/ab/{}", "ab".repeat(32)), &blob);
    (blob, payload)
}

#[test]
fn shared_blobs_are_followed_and_never_written() {
    let (dir, store, case) = filled_cache();
    let (blob, payload) = share_the_model(dir.path());
    let observed = store.observe(&case.artifact);
    assert_eq!(observed.published, Ok(()));
    let FileState::Present(found) = &observed.files[1] else { panic!("{observed:?}") };
    assert_eq!(found.inode, fs_err::metadata(&payload).unwrap().ino());

    write(&payload, b"rotten");
    let observed = store.observe(&case.artifact);
    let defect = Defect::Size { expected: 6000, actual: 6 };
    assert!(matches!(&observed.files[1], FileState::Wrong { defect: seen, .. } if *seen == defect), "{observed:?}");
    let file = &case.artifact.files[1];
    store.place(&case.artifact, file, proven(store.as_ref(), file, CONTENTS[1])).unwrap();
    assert_eq!(fs_err::read(&payload).unwrap(), b"rotten", "the payload belongs to the clients");
    assert!(fs_err::symlink_metadata(&blob).unwrap().is_file());
    assert_eq!(store.observe(&case.artifact).published, Ok(()));

    let (_, payload) = share_the_model(dir.path());
    fsio::remove_file(&payload).unwrap();
    let state = &store.observe(&case.artifact).files[1];
    let expected = format!("../../blobs/ab/{}", "ab".repeat(32));
    assert!(
        matches!(state, FileState::Wrong { defect: Defect::Dangling { target }, .. } if *target == expected),
        "{state:?}"
    );
}

#[test]
fn caches_without_links_and_other_clients_leftovers_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let (store, case) = (open_hf(dir.path()), hf_cases().swap_remove(0));
    let repo = dir.path().join("models--acme--tiny");
    write(&repo.join("blobs").join(format!("{}.1a2b3c4d.incomplete", sha256(CONTENTS[1]))), CONTENTS[1]);
    assert!(store.observe(&case.artifact).files.iter().all(|state| *state == FileState::Missing));
    for (file, bytes) in case.artifact.files.iter().zip(&case.contents) {
        write(&file.path.under(&repo.join("snapshots").join(COMMIT)), bytes);
    }
    write(&repo.join("refs/main"), COMMIT.as_bytes());
    assert_eq!(store.observe(&case.artifact).published, Ok(()));
    store.publish(&case.artifact).unwrap();
    let config = repo.join("snapshots").join(COMMIT).join("config.json");
    assert!(fs_err::symlink_metadata(config).unwrap().is_file(), "what serves is left as it is");
}

#[test]
fn files_of_unknown_length_are_judged_by_their_first_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_folder(dir.path());
    let names = ["a.pth", "b.pth", "c.pth", "d.pth", "page.html", "none"];
    let files = names.map(|name| File::named(name.parse().unwrap())).to_vec();
    write(&dir.path().join("a.pth"), b"PK\x03\x04");
    write(&dir.path().join("b.pth"), b"");
    write(&dir.path().join("c.pth"), b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n");
    write(&dir.path().join("d.pth"), format!("<html>{}</html>", "x".repeat(100_000)).as_bytes());
    write(&dir.path().join("page.html"), b"<html></html>");
    write(&dir.path().join("none"), b"");
    let mut artifact = artifact("mixed", "https://example.org/x", files);
    artifact.files[5].digests = described("none", b"").digests;
    let defects: Vec<Option<Defect>> = store.observe(&artifact).files.into_iter().map(defect).collect();
    assert_eq!(defects, [None, Some(Defect::Empty), Some(Defect::LfsPointer), Some(Defect::Html), None, None]);
}

fn defect(state: FileState) -> Option<Defect> {
    match state {
        FileState::Present(_) => None,
        FileState::Wrong { defect, .. } => Some(defect),
        other => panic!("{other:?}"),
    }
}

#[test]
fn unfinished_downloads_are_not_present_even_at_full_length() {
    let dir = tempfile::tempdir().unwrap();
    let (store, case) = (open_folder(dir.path()), folder_cases().remove(0));
    fill(store.as_ref(), &case);
    let file = dir.path().join("clip/enc.safetensors");
    write(&dir.path().join("clip/enc.safetensors.aria2"), b"control");
    let state = store.observe(&case.artifact).files.swap_remove(0);
    assert_eq!(defect(state), Some(Defect::Unfinished { evidence: "enc.safetensors.aria2 lies beside it".to_owned() }));
    assert!(store.publish(&case.artifact).is_err());
    fsio::remove_file(&dir.path().join("clip/enc.safetensors.aria2")).unwrap();
    // A file of the right length is not doubted for somebody's leftover …
    write(&dir.path().join("clip/enc.safetensors.part"), b"half");
    assert!(matches!(store.observe(&case.artifact).files[0], FileState::Present(_)));
    // … which is all there is once the file itself is gone.
    fsio::remove_file(&file).unwrap();
    let state = store.observe(&case.artifact).files.swap_remove(0);
    assert!(matches!(defect(state), Some(Defect::Unfinished { .. })));
}

#[test]
fn in_a_crowded_folder_only_the_unfinished_file_is_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..100).map(|number| format!("shards/{number}.safetensors")).collect();
    names.iter().for_each(|name| write(&dir.path().join(name), b"x"));
    write(&dir.path().join("shards/42.safetensors.aria2"), b"control");
    let files = names.iter().map(|name| described(name, b"x")).collect();
    let observed = open_folder(dir.path()).observe(&artifact("shards", "https://example.org/x", files));
    let wrong = (0..100).filter(|index| !matches!(observed.files[*index], FileState::Present(_)));
    assert_eq!(wrong.collect::<Vec<_>>(), [42]);
    assert!(matches!(&observed.files[42], FileState::Wrong { defect: Defect::Unfinished { .. }, .. }));
}

#[test]
fn a_link_into_another_tree_is_followed_and_never_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let (root, elsewhere) = (dir.path().join("Models"), dir.path().join("ComfyUI"));
    let (store, case) = (open_folder(&root), folder_cases().remove(0));
    let behind = elsewhere.join("enc.safetensors");
    write(&behind, CONTENTS[0]);
    let entry = root.join("clip/enc.safetensors");
    link(&behind, &entry);
    let FileState::Present(found) = &store.observe(&case.artifact).files[0] else { panic!("it is there") };
    assert_eq!(found.inode, fs_err::metadata(&behind).unwrap().ino());
    write(&behind, b"somebody's other version");
    let file = &case.artifact.files[0];
    store.place(&case.artifact, file, proven(store.as_ref(), file, CONTENTS[0])).unwrap();
    assert_eq!(fs_err::read(&behind).unwrap(), b"somebody's other version");
    assert!(fs_err::symlink_metadata(&entry).unwrap().is_file());
    let aside = walkdir::WalkDir::new(root.join(".larder/replaced")).into_iter().filter_map(Result::ok);
    let links = aside.filter(|entry| entry.path_is_symlink()).map(|entry| fs_err::read_link(entry.path()).unwrap());
    assert_eq!(links.collect::<Vec<_>>(), [behind]);
}

#[test]
fn what_nobody_can_miss_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (store, case) = (open_folder(dir.path()), folder_cases().remove(0));
    let file = &case.artifact.files[0];
    for debris in [&b""[..], b"<!doctype html><title>401</title>", CONTENTS[0]] {
        write(&dir.path().join("clip/enc.safetensors"), debris);
        store.place(&case.artifact, file, proven(store.as_ref(), file, CONTENTS[0])).unwrap();
    }
    assert!(!dir.path().join(".larder/replaced").exists());
}

#[test]
fn patterns_find_whole_files_through_links_and_nothing_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    let store = open_folder(&root);
    let find = |glob: &str| {
        let pattern = Pattern { glob: glob.to_owned(), count: 0 };
        let found = store.matching(&pattern).unwrap();
        found.iter().map(|found| found.path.strip_prefix(&root).unwrap().display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(find("loras/*.safetensors"), Vec::<String>::new(), "no root yet");
    for name in
        ["loras/sd35_a.safetensors", "loras/sub/sd35_b.safetensors", "loras/other.txt", ".larder/sd35_x.safetensors"]
    {
        write(&root.join(name), b"weights");
    }
    write(&root.join("loras/sd35_empty.safetensors"), b"");
    write(&dir.path().join("moved/sd35_c.safetensors"), b"weights");
    link("../../moved/sd35_c.safetensors", &root.join("loras/sd35_c.safetensors"));
    link("nowhere", &root.join("loras/sd35_d.safetensors"));
    link("..", &root.join("loras/circle"));
    link("../../moved", &root.join("loras/linked"));
    assert_eq!(find("loras/sd35_*.safetensors"), ["loras/sd35_a.safetensors", "loras/sd35_c.safetensors"]);
    assert_eq!(
        find("**/sd35_*.safetensors"),
        [
            "loras/linked/sd35_c.safetensors",
            "loras/sd35_a.safetensors",
            "loras/sd35_c.safetensors",
            "loras/sub/sd35_b.safetensors"
        ]
    );
    for bad in ["../*", "/etc/*", "a[", "x/../../*"] {
        assert!(store.matching(&Pattern { glob: bad.to_owned(), count: 0 }).is_err(), "{bad}");
    }
}
