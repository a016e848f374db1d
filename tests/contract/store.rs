//! What every store must do, whatever its layout. Drive it with [`suite`].

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use larder::artifact::{Artifact, File};
use larder::digest::{ContentHasher, Digests};
use larder::fsio::{Partial, Proven, running_as, symlink_atomic};
use larder::stores::{Defect, FileState, Observed, Store, StoreError};

#[path = "../support/stranger.rs"]
mod stranger;

/// Opens the store under test at a root that does not exist yet.
pub(crate) type Factory<'a> = &'a dyn Fn(&Path) -> Box<dyn Store>;

/// How one layout is tested: how its store is opened, and with what it is filled.
pub(crate) type Subject = (fn(&Path) -> Box<dyn Store>, Vec<Case>);

/// An artifact with the bytes of its files.
pub(crate) struct Case {
    /// What the lock would say. At least two files, each of known size and not empty.
    pub(crate) artifact: Artifact,
    /// One content per file, in order.
    pub(crate) contents: Vec<Vec<u8>>,
    /// Where people and programs see the first file by name, relative to the root, if the layout has names.
    pub(crate) visible: Option<String>,
}

/// A store in a directory of its own, and the case to fill it with.
struct Bench<'a> {
    dir: tempfile::TempDir,
    store: Box<dyn Store>,
    case: &'a Case,
}

/// A rule with the sentence that names it in failures.
type Rule = (&'static str, fn(&Bench<'_>));

const RULES: &[Rule] = &[
    ("looking changes nothing", looking_changes_nothing),
    ("what is placed and published is seen, byte for byte", round_trip),
    ("its location is where programs find it", the_location_leads_to_it),
    ("placing and publishing again changes nothing", again_is_harmless),
    ("publishing is refused while a file is missing", incomplete_is_refused),
    ("an abandoned partial is not present", an_abandoned_partial_is_not_present),
    ("what is wrong with a file is told apart, and placing again mends it", defects_are_told_apart),
    ("a folder in the way is not destroyed", a_folder_in_the_way_is_kept),
    ("a different file in the way is not lost", a_file_in_the_way_is_kept),
    ("an unreadable file is neither present nor missing", the_unreadable_is_told_apart),
];

/// Runs every rule over every case.
///
/// The rule about unreadable files starts this test binary again as another user when root runs it; the
/// driver needs an ignored test called `look_as_a_stranger` that calls [`look_as_a_stranger`].
pub(crate) fn suite(factory: Factory<'_>, cases: &[Case]) {
    for case in cases {
        for (name, rule) in RULES {
            #[expect(clippy::print_stderr, reason = "shown when the rule fails")]
            let () = eprintln!("{}: {name}", case.artifact.name);
            rule(&Bench::new(factory, case));
        }
    }
}

/// For stores that compare what was proven with what the file must be: other content is refused.
pub(crate) fn other_content_is_refused(factory: Factory<'_>, cases: &[Case]) {
    for case in cases.iter().filter(|case| case.artifact.files[0].digests.proves_content()) {
        let bench = Bench::new(factory, case);
        let other = vec![b'?'; case.contents[0].len()];
        let proven = bench.proven("other", &other, &Digests::default());
        let file = &case.artifact.files[0];
        assert!(bench.store.place(&case.artifact, file, proven).is_err());
        assert!(!bench.store.content_path(&case.artifact, file).exists());
    }
}

impl<'a> Bench<'a> {
    fn new(factory: Factory<'_>, case: &'a Case) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = factory(&dir.path().join("store"));
        Self { dir, store, case }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn proven(&self, key: &str, bytes: &[u8], expected: &Digests) -> Proven {
        let size = Some(bytes.len() as u64);
        let hasher = ContentHasher::to_compare(expected, size);
        let mut partial = Partial::open(&self.store.staging(), key, hasher, self.store.owner()).unwrap();
        partial.append(bytes).unwrap();
        partial.prove(size, expected).unwrap()
    }

    fn place(&self, index: usize) -> Result<PathBuf, StoreError> {
        let file = &self.case.artifact.files[index];
        let proven = self.proven(&format!("file-{index}"), &self.case.contents[index], &file.digests);
        self.store.place(&self.case.artifact, file, proven)
    }

    fn place_all(&self) {
        (0..self.case.contents.len()).for_each(|index| drop(self.place(index).unwrap()));
    }

    fn fill(&self) {
        self.place_all();
        self.store.publish(&self.case.artifact).unwrap();
    }

    fn observe(&self) -> Observed {
        let observed = self.store.observe(&self.case.artifact);
        assert_eq!(observed.files.len(), self.case.artifact.files.len());
        observed
    }

    fn state(&self, index: usize) -> FileState {
        self.observe().files.swap_remove(index)
    }

    fn content_path(&self, index: usize) -> PathBuf {
        self.store.content_path(&self.case.artifact, &self.case.artifact.files[index])
    }

    fn is_complete(&self) -> bool {
        let observed = self.observe();
        observed.published.is_ok() && observed.files.iter().all(|state| matches!(state, FileState::Present(_)))
    }

    /// Every name in the store except our own, with what it holds.
    fn names(&self) -> BTreeMap<PathBuf, String> {
        walk(&self.root()).filter(|path| !path.starts_with(self.store.staging())).map(|path| describe(&path)).collect()
    }

    /// Whether some file below the root, ours included, has exactly these bytes.
    fn holds(&self, bytes: &[u8]) -> bool {
        walk(&self.root()).any(|path| path.is_file() && fs_err::read(&path).unwrap() == bytes)
    }
}

fn walk(root: &Path) -> impl Iterator<Item = PathBuf> {
    walkdir::WalkDir::new(root).min_depth(1).into_iter().filter_map(Result::ok).map(walkdir::DirEntry::into_path)
}

fn describe(path: &Path) -> (PathBuf, String) {
    let found = fs_err::symlink_metadata(path).unwrap();
    let what = if found.is_symlink() {
        format!("-> {}", fs_err::read_link(path).unwrap().display())
    } else if found.is_dir() {
        "folder".to_owned()
    } else {
        String::from_utf8_lossy(&fs_err::read(path).unwrap()).into_owned()
    };
    (path.to_owned(), what)
}

fn looking_changes_nothing(bench: &Bench<'_>) {
    let observed = bench.observe();
    assert!(observed.files.iter().all(|state| *state == FileState::Missing), "{observed:?}");
    assert!(observed.published.is_err());
    assert!(!bench.root().exists(), "observing made the root");
}

fn round_trip(bench: &Bench<'_>) {
    bench.place_all();
    for (index, bytes) in bench.case.contents.iter().enumerate() {
        match bench.state(index) {
            FileState::Present(found) | FileState::Staged(found) => assert_eq!(found.size, bytes.len() as u64),
            other => panic!("file {index} was placed and is {other:?}"),
        }
        assert_eq!(&fs_err::read(bench.content_path(index)).unwrap(), bytes);
    }
    bench.store.publish(&bench.case.artifact).unwrap();
    let observed = bench.observe();
    assert_eq!(observed.published, Ok(()));
    for (state, bytes) in observed.files.iter().zip(&bench.case.contents) {
        match state {
            FileState::Present(found) => assert_eq!(&fs_err::read(&found.path).unwrap(), bytes),
            other => panic!("a published file is {other:?}"),
        }
    }
}

fn the_location_leads_to_it(bench: &Bench<'_>) {
    let location = bench.store.location(&bench.case.artifact);
    assert!(location.starts_with(bench.root()), "{}", location.display());
    assert!(!location.exists(), "{} is there before anything was placed", location.display());
    bench.fill();
    assert!(location.exists(), "{} is not there", location.display());
    // A file is what leads to all others, such as Ollama's manifest.
    if let Some(visible) = bench.case.visible.as_ref().filter(|_| location.is_dir()) {
        let visible = bench.root().join(visible);
        assert!(visible.starts_with(&location), "{} is not in {}", visible.display(), location.display());
    }
}

fn again_is_harmless(bench: &Bench<'_>) {
    bench.fill();
    let before = bench.names();
    bench.fill();
    assert_eq!(bench.names(), before);
    assert!(bench.is_complete());
}

fn incomplete_is_refused(bench: &Bench<'_>) {
    let missing = bench.case.contents.len() - 1;
    (0..missing).for_each(|index| drop(bench.place(index).unwrap()));
    match bench.store.publish(&bench.case.artifact) {
        Err(StoreError::Incomplete { artifact, .. }) => assert_eq!(artifact, bench.case.artifact.name),
        other => panic!("publishing without file {missing} gave {other:?}"),
    }
    let observed = bench.observe();
    assert_eq!(observed.files[missing], FileState::Missing);
    assert!(observed.published.is_err());
}

fn an_abandoned_partial_is_not_present(bench: &Bench<'_>) {
    for (index, bytes) in bench.case.contents.iter().enumerate() {
        let staging = bench.store.staging();
        let mut partial = Partial::open(&staging, &format!("{index}"), ContentHasher::new(), None).unwrap();
        partial.append(&bytes[..bytes.len() / 2]).unwrap();
    }
    assert!(bench.observe().files.iter().all(|state| *state == FileState::Missing));
    assert!(bench.observe().published.is_err());
    assert!(bench.store.publish(&bench.case.artifact).is_err());
}

/// Damages a file, and tells which defect must be seen.
type Plant = fn(&Path, u64) -> Defect;

fn truncate(path: &Path, size: u64) -> Defect {
    fs_err::OpenOptions::new().write(true).open(path).unwrap().set_len(size - 1).unwrap();
    Defect::Size { expected: size, actual: size - 1 }
}

fn empty(path: &Path, _size: u64) -> Defect {
    fs_err::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
    Defect::Empty
}

fn dangle(path: &Path, _size: u64) -> Defect {
    remove(path);
    symlink_atomic(Path::new("no-such-file"), path, None).unwrap();
    Defect::Dangling { target: "no-such-file".to_owned() }
}

fn point_in_a_circle(path: &Path, _size: u64) -> Defect {
    remove(path);
    let name = path.file_name().unwrap().to_str().unwrap();
    symlink_atomic(Path::new(name), path, None).unwrap();
    Defect::Dangling { target: name.to_owned() }
}

fn make_a_folder(path: &Path, _size: u64) -> Defect {
    remove(path);
    fs_err::create_dir(path).unwrap();
    Defect::NotAFile
}

fn become_a_pointer(path: &Path, _size: u64) -> Defect {
    overwrite(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    Defect::LfsPointer
}

fn become_a_page(path: &Path, _size: u64) -> Defect {
    overwrite(path, b"\n<!DOCTYPE html><html><body>Please log in</body></html>");
    Defect::Html
}

fn remove(path: &Path) {
    larder::fsio::remove_file(path).unwrap();
}

fn overwrite(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    let mut file = fs_err::OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

fn defects_are_told_apart(bench: &Bench<'_>) {
    let plants: [Plant; 7] =
        [truncate, empty, dangle, point_in_a_circle, make_a_folder, become_a_pointer, become_a_page];
    bench.fill();
    for (index, bytes) in bench.case.contents.iter().enumerate() {
        for plant in plants {
            let expected = plant(&bench.content_path(index), bytes.len() as u64);
            match bench.state(index) {
                FileState::Wrong { defect, .. } => assert_eq!(defect, expected),
                other => panic!("{expected:?} was planted, seen was {other:?}"),
            }
            assert!(!bench.is_complete());
            bench.place(index).unwrap();
            bench.store.publish(&bench.case.artifact).unwrap();
            assert!(bench.is_complete(), "not mended after {expected:?}: {:?}", bench.observe());
        }
        remove(&bench.content_path(index));
        let state = bench.state(index);
        assert!(
            matches!(state, FileState::Missing | FileState::Wrong { defect: Defect::Dangling { .. }, .. }),
            "removed, and {state:?}"
        );
        bench.place(index).unwrap();
    }
}

fn a_folder_in_the_way_is_kept(bench: &Bench<'_>) {
    let path = bench.content_path(0);
    larder::fsio::create_dir_all(&path, None).unwrap();
    let options = larder::fsio::WriteOptions::default();
    larder::fsio::write_atomic(&path.join("thesis.txt"), b"years of work", &options).unwrap();
    let _ = bench.place(0);
    assert!(bench.holds(b"years of work"));
}

fn a_file_in_the_way_is_kept(bench: &Bench<'_>) {
    let Some(visible) = &bench.case.visible else {
        return;
    };
    let path = bench.root().join(visible);
    let right = &bench.case.contents[0];
    // The same length is the hard case: by size alone it would count as present.
    let (shorter, same_length) = (b"mine".to_vec(), vec![b'm'; right.len()]);
    for precious in [&shorter, &same_length] {
        larder::fsio::create_dir_all(path.parent().unwrap(), None).unwrap();
        larder::fsio::write_atomic(&path, precious, &larder::fsio::WriteOptions::default()).unwrap();
        bench.place_all();
        bench.store.publish(&bench.case.artifact).unwrap();
        assert!(bench.holds(precious), "{} bytes are gone", precious.len());
        assert_eq!(&fs_err::read(&path).unwrap(), right);
    }
    assert!(bench.holds(&shorter) && bench.holds(&same_length));
}

fn the_unreadable_is_told_apart(bench: &Bench<'_>) {
    bench.fill();
    set_mode(bench.dir.path(), 0o755);
    let files: Vec<PathBuf> = (0..bench.case.contents.len()).map(|index| bench.content_path(index)).collect();
    files.iter().for_each(|file| set_mode(file, 0o000));
    bench.must_be_unreadable();
    files.iter().for_each(|file| set_mode(file, 0o644));
    let folders: Vec<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    // Deepest first when locking, the other way round when opening again.
    folders.iter().for_each(|folder| set_mode(folder, 0o000));
    bench.must_be_unreadable();
    folders.iter().rev().for_each(|folder| set_mode(folder, 0o755));
    assert!(bench.is_complete());
}

fn set_mode(path: &Path, mode: u32) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

impl Bench<'_> {
    /// Observes as a user without rights: this one, or, as nothing is closed to root, `nobody`.
    fn must_be_unreadable(&self) {
        if running_as().uid != 0 {
            return assert_unreadable(&self.observe());
        }
        let (layout, artifact, root) = (self.store.layout(), &self.case.artifact.name, self.root());
        stranger::must_agree(self.dir.path(), &format!("{layout}\n{artifact}\n{}", root.display()));
    }
}

fn assert_unreadable(observed: &Observed) {
    let unreadable = |state: &FileState| matches!(state, FileState::Unreadable { .. });
    assert!(observed.files.iter().all(unreadable), "{observed:?}");
    assert!(observed.published.is_err(), "{observed:?}");
}

/// The half of the unreadable rule that runs as another user; `subject` finds what a layout is tested with.
pub(crate) fn look_as_a_stranger(subject: impl Fn(&str) -> Subject) {
    let Some(named) = stranger::question() else {
        return;
    };
    let mut parts = named.splitn(3, '\n');
    let mut next = || parts.next().expect("layout, artifact and root");
    let (layout, artifact, root) = (next(), next(), next());
    let (factory, cases) = subject(layout);
    let case = cases.iter().find(|case| case.artifact.name == artifact).expect("the same cases");
    assert_unreadable(&factory(Path::new(root)).observe(&case.artifact));
}

/// A file with every digest and the length of `content`.
pub(crate) fn described(path: &str, content: &[u8]) -> File {
    let mut hasher = ContentHasher::new().with_git_sha1(content.len() as u64);
    hasher.update(content);
    File { size: Some(content.len() as u64), digests: hasher.finish(), ..File::named(path.parse().unwrap()) }
}
