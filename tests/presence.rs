//! An absent drive is not an empty store: what larder sees of a store's root, with real mounts and users.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::fsio::{Owner, create_dir_all, running_as, symlink_atomic};
use larder::inventory::{Layout, StoreConfig};
use larder::stores::{Absence, FolderStore, HfCacheStore, Store, StoreMark, look_for_root};

#[path = "support/skip.rs"]
mod skip;
#[path = "support/stranger.rs"]
mod stranger;

fn store(root: &Path) -> FolderStore {
    FolderStore::new("drive".to_owned(), root.to_owned(), None)
}

fn config(root: &Path, mounted: Option<&Path>) -> StoreConfig {
    let mounted = mounted.map(Path::to_owned);
    StoreConfig { layout: Layout::Folder, path: root.to_owned(), owner: None, mounted, api: None }
}

fn look(root: &Path, mark: Option<&str>, to_write: bool) -> Result<(), Absence> {
    look_for_root(&store(root), &config(root, None), mark, to_write)
}

fn look_mounted(root: &Path, mount: &Path) -> Result<(), Absence> {
    look_for_root(&store(root), &config(root, Some(mount)), None, false)
}

/// A mounted file system, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Self {
        create_dir_all(at, None).unwrap();
        let status = Command::new("mount").args(arguments).arg(at).status().unwrap();
        assert!(status.success(), "mount {arguments:?}");
        Self(at.to_owned())
    }

    fn make_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn is_root() -> bool {
    let is_root = running_as().uid == 0;
    if !is_root {
        skip::skipped("only root can mount");
    }
    is_root
}

#[test]
fn a_root_that_will_be_made_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(look(&dir.path().join("not/yet"), None, true), Ok(()));
    assert_eq!(look(dir.path(), None, true), Ok(()));
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0, "looking made something");
}

#[test]
fn an_empty_mount_point_is_not_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("my drive");
    create_dir_all(&mount, None).unwrap();
    let not_mounted = Err(Absence::NotMounted { path: mount.display().to_string() });
    assert_eq!(look_mounted(&mount.join("models"), &mount), not_mounted);
    assert!(look_mounted(&mount.join("models"), &dir.path().join("gone")).is_err());
    if is_root() {
        let mounted = Mount::new(&["-t", "tmpfs", "tmpfs"], &mount);
        assert_eq!(look_mounted(&mount.join("models"), &mount), Ok(()));
        drop(mounted);
        assert_eq!(look_mounted(&mount.join("models"), &mount), not_mounted);
    }
}

#[test]
fn a_bind_mount_of_the_same_device_is_a_mount() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("a \\ b"));
    create_dir_all(&from, None).unwrap();
    if is_root() {
        let _mounted = Mount::new(&["--bind", from.to_str().unwrap()], &to);
        assert_eq!(look_mounted(&to, &to), Ok(()));
        assert!(look_mounted(&from, &from).is_err());
    }
}

#[test]
fn a_read_only_file_system_can_be_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    if is_root() {
        let mounted = Mount::new(&["-t", "tmpfs", "tmpfs"], &dir.path().join("mount"));
        let root = mounted.0.join("models");
        mounted.make_read_only();
        assert_eq!(look(&root, None, false), Ok(()));
        assert_eq!(look(&root, None, true), Err(Absence::ReadOnly { path: root.display().to_string() }));
    }
}

#[test]
fn a_store_is_known_again_by_its_mark() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    assert_eq!(StoreMark::read(&store(&root)).unwrap(), None);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let ensure = || StoreMark::ensure(&store(&root)).unwrap().id;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ensure)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0] && id.len() == 32), "{ids:?}");
    assert_eq!(look(&root, Some(&ids[0]), true), Ok(()));

    let other = StoreMark::ensure(&store(&dir.path().join("other"))).unwrap().id;
    assert_ne!(other, ids[0]);
    assert!(matches!(look(&root, Some(&other), false), Err(Absence::OtherStore { .. })));

    larder::fsio::remove_file(&StoreMark::path(&store(&root))).unwrap();
    let missing = Err(Absence::MarkMissing { path: root.display().to_string() });
    assert_eq!(look(&root, Some(&ids[0]), false), missing);
    let gone = dir.path().join("gone");
    assert!(matches!(look(&gone, Some(&ids[0]), false), Err(Absence::MarkMissing { .. })));
}

#[test]
fn the_mark_of_a_cache_lies_where_no_client_looks() {
    let dir = tempfile::tempdir().unwrap();
    let cache = HfCacheStore::new("huggingface".to_owned(), dir.path().to_owned(), None);
    StoreMark::ensure(&cache).unwrap();
    assert_eq!(StoreMark::path(&cache), cache.staging().join("store.toml"));
    let names: Vec<_> = fs_err::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [".locks"]);
}

#[test]
fn a_root_that_is_no_folder_is_named_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file) = (dir.path().join("models"), dir.path().join("file"));
    symlink_atomic(Path::new("/run/media/no-such-drive"), &root, None).unwrap();
    let reason = "it is a link to /run/media/no-such-drive, which does not exist".to_owned();
    assert_eq!(look(&root, None, false), Err(Absence::Unreadable { path: root.display().to_string(), reason }));
    larder::fsio::write_atomic(&file, b"x", &larder::fsio::WriteOptions::default()).unwrap();
    assert!(matches!(look(&file, None, false), Err(Absence::Unreadable { .. })));
}

/// What somebody sees who is neither the owner nor root.
#[test]
fn closed_roots_are_unreadable_or_not_ours_and_never_missing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    create_dir_all(&root, None).unwrap();
    let mode = |path: &Path, mode: u32| fs_err::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(dir.path(), 0o755);
    for (bits, expected) in [(0o555, "not ours"), (0o000, "unreadable")] {
        mode(&root, bits);
        let question = format!("{expected}\n{}", root.display());
        if running_as().uid == 0 {
            stranger::must_agree(dir.path(), &question);
        } else {
            answer(&question);
        }
    }
    mode(&root, 0o755);
}

fn answer(question: &str) {
    let (expected, root) = question.split_once('\n').unwrap();
    let root = Path::new(root);
    let foreign = FolderStore::new("drive".to_owned(), root.to_owned(), Some(Owner { uid: 0, gid: 0 }));
    let seen = look_for_root(&foreign, &config(root, None), None, true).unwrap_err();
    match expected {
        "not ours" => assert!(matches!(&seen, Absence::NotOurs { owner, .. } if owner == "root"), "{seen:?}"),
        _ => assert!(matches!(seen, Absence::Unreadable { .. }), "{seen:?}"),
    }
    assert!(!seen.hint().is_empty());
    let below = look(&root.join("below"), None, true);
    assert!(below.is_err(), "{below:?}");
}

#[test]
#[ignore = "other tests run it as another user"]
fn look_as_a_stranger() {
    if let Some(question) = stranger::question() {
        answer(&question);
    }
}
