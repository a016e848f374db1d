//! Disks that are too small, fill up, turn read-only, die or are not there, and stores of other users.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rstest::rstest;

#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/disk.rs"]
mod disk;
#[expect(dead_code, reason = "each test uses a part of the lab")]
#[path = "support/lab.rs"]
mod lab;
#[path = "support/rules.rs"]
mod rules;
#[path = "support/skip.rs"]
mod skip;

use disk::{Disk, Kind};
use lab::{Lab, Said};

/// `nobody` of Debian.
const NOBODY: u32 = 65534;
/// Somebody who has no name on this machine.
const SOMEBODY: u32 = 4711;
const PACE: Duration = Duration::from_millis(5);
/// What may be lost between the server and a disk that refuses: for eight files under way.
const UNDER_WAY: u64 = 8 * (256 << 10);

/// Whether file systems can be mounted here; says loudly if not.
fn is_root() -> bool {
    let is_root = larder::fsio::running_as().uid == 0;
    if !is_root {
        skip::skipped("file systems are mounted as root only");
    }
    is_root
}

fn remove(path: &Path) {
    #[expect(clippy::disallowed_methods, reason = "the test's own file")]
    std::fs::remove_file(path).unwrap();
}

/// A lab on `disk` in the middle of its first `apply`, with everything held back.
fn in_the_middle(disk: &Disk) -> (Lab, Child) {
    let lab = Lab::with_stores_in(Some(&disk.path().join("machine")));
    lab.upstream.set_pace(PACE);
    lab.upstream.hold_after(1 << 20);
    let child = lab.command(&["apply", "--yes"]).spawn().unwrap();
    lab.upstream.wait_until_held();
    (lab, child)
}

/// Lets everything pass again, and gives the program's last words.
fn end(lab: &Lab, child: Child) -> Said {
    lab.upstream.release();
    let said = Said::of(&child.wait_with_output().unwrap());
    // Some of the small files may have been in place before the disk refused.
    let is_sum = |line: &&str| line.starts_with("0 files placed") && line.ends_with(" 0 artifacts ready");
    let is_nothing_done = said.out.lines().any(|line| is_sum(&line));
    said.must_be(if is_nothing_done { 1 } else { 4 })
}

fn must_resume(lab: &Lab) {
    lab.upstream.set_pace(Duration::ZERO);
    lab.apply().must_be(0);
    rules::everything_is_there(lab);
    lab.larder(&["verify", "--full"]).must_be(0);
    let (sent, bound) = (lab.upstream.sent(), Lab::bytes_to_fetch() + UNDER_WAY);
    assert!(sent <= bound, "{sent} bytes were sent, {bound} can be explained");
}

#[rstest]
fn a_disk_that_is_too_small_is_refused_with_numbers_before_the_first_byte(#[values(Kind::Ext4, Kind::Xfs)] kind: Kind) {
    if !is_root() {
        return;
    }
    let disk = Disk::make(kind);
    let lab = Lab::with_stores_in(Some(&disk.path().join("machine")));
    let filler = disk.fill(3 << 20);
    for command in [&["plan"][..], &["apply", "--yes"]] {
        let said = lab.larder(command).line();
        assert!(said.contains("it needs 2.7 MiB, and") && said.contains("left for it"), "{said}");
        assert!(said.contains(&disk.path().display().to_string()), "{said}");
        assert!(said.contains("make room, or move the store to a larger disk"), "{said}");
    }
    assert_eq!((lab.apply().code, lab.upstream.sent()), (Some(4), 0));
    assert!(!lab.machine.exists());
    remove(&filler);
    must_resume(&lab);
}

#[rstest]
fn a_disk_that_fills_up_loses_nothing(#[values(Kind::Ext4, Kind::Xfs)] kind: Kind) {
    if !is_root() {
        return;
    }
    let disk = Disk::make(kind);
    let (lab, child) = in_the_middle(&disk);
    let filler = disk.fill(0);
    let said = end(&lab, child);
    assert!(said.out.contains("No space left on device"), "{said}");
    assert!(said.out.contains("make room, then run larder apply again"), "{said}");
    rules::nothing_visible_is_wrong(&lab);
    let sent = lab.upstream.sent();
    let again = lab.apply();
    assert!(again.line().contains("left for it"), "{again}");
    assert_eq!((again.code, lab.upstream.sent()), (Some(4), sent), "{again}");
    rules::nothing_visible_is_wrong(&lab);
    remove(&filler);
    must_resume(&lab);
}

#[test]
fn a_file_system_without_inodes_is_refused_or_told() {
    if !is_root() {
        return;
    }
    let disk = Disk::make(Kind::Memory { inodes: 200 });
    let (lab, child) = in_the_middle(&disk);
    let fillers = disk.use_up_inodes();
    let said = end(&lab, child);
    assert!(said.out.contains("No space left on device"), "{said}");
    rules::nothing_visible_is_wrong(&lab);
    let sent = lab.upstream.sent();
    let said = lab.apply();
    assert!(said.line().contains("has no room for so many"), "{said}");
    assert_eq!((said.code, lab.upstream.sent()), (Some(4), sent), "{said}");
    fillers.iter().for_each(|filler| remove(filler));
    must_resume(&lab);
}

#[test]
fn a_read_only_file_system_is_named() {
    if !is_root() {
        return;
    }
    let disk = Disk::make(Kind::Ext4);
    let lab = Lab::with_stores_in(Some(&disk.path().join("machine")));
    lab.larder(&["apply", "--yes", "--only", "vae"]).must_be(0);
    let sent = lab.upstream.sent();
    disk.remount("ro");
    let said = lab.apply();
    assert!(said.line().contains("is on a read-only file system"), "{said}");
    assert!(said.out.contains("mount -o remount,rw"), "{said}");
    assert_eq!((said.code, lab.upstream.sent()), (Some(4), sent), "{said}");
    lab.larder(&["verify", "--only", "vae"]).must_be(0);
    disk.remount("rw");
    must_resume(&lab);
}

#[test]
fn a_file_system_that_dies_shows_nothing_wrong_when_it_is_back() {
    if !is_root() {
        return;
    }
    let disk = Disk::make(Kind::Xfs);
    let (lab, child) = in_the_middle(&disk);
    disk::run("xfs_io", &["-x", "-c", "shutdown", &disk.path().display().to_string()]);
    let said = end(&lab, child);
    assert!(said.out.contains("Input/output error"), "{said}");
    disk.unmount();
    disk.mount();
    rules::nothing_visible_is_wrong(&lab);
    // What was not synced yet is gone with the power, so there is no bound here.
    lab.apply().must_be(0);
    rules::everything_is_there(&lab);
    lab.larder(&["verify", "--full"]).must_be(0);
}

#[test]
fn a_drive_that_is_not_mounted_is_never_filled_again() {
    if !is_root() {
        return;
    }
    let disk = Disk::make(Kind::Ext4);
    let lab = Lab::with_stores_in(Some(&disk.path().join("machine")));
    lab.apply().must_be(0);
    let (sent, requests) = (lab.upstream.sent(), lab.upstream.requests());
    disk.unmount();
    let said = lab.apply();
    assert!(said.line().contains("is not the store larder knows: its mark is missing"), "{said}");
    assert!(said.out.contains("attach the disk"), "{said}");
    assert_eq!(said.code, Some(4), "{said}");
    assert!(rules::tree(&disk.path()).is_empty(), "something was written below the empty mount point");
    let faults = lab.faults();
    assert!(!faults.is_empty() && faults.iter().all(|(_, _, kind)| kind == "store-absent"), "{faults:?}");
    disk.mount();
    lab.apply().must_be(0);
    assert_eq!((lab.upstream.sent(), lab.upstream.requests()), (sent, requests), "nothing was to do");
}

#[test]
fn stores_of_others_are_named_obstacles() {
    if !is_root() {
        return;
    }
    let lab = Lab::start();
    lab.apply().must_be(0);
    let (sent, before) = (lab.upstream.sent(), rules::tree(&lab.machine));
    give(lab.root(), NOBODY);
    give(&lab.store("ollama"), SOMEBODY);
    give(&lab.store("plain"), SOMEBODY);
    fs_err::set_permissions(lab.store("plain"), std::fs::Permissions::from_mode(0o700)).unwrap();
    remove(&lab.store("ollama").join("manifests/registry.ollama.ai/library/guard/1b"));
    let said = Said::of(&lab.command_as(NOBODY, &["apply", "--yes"]).output().unwrap());
    let told = said.line();
    assert!(told.contains("may not be written") && told.contains("cannot be read: Permission denied"), "{said}");
    assert!(said.out.contains(&format!("run larder as user {SOMEBODY}, or as root")), "{said}");
    assert_eq!((said.code, lab.upstream.sent()), (Some(4), sent), "{said}");
    // Root may, and what it writes belongs to the store's user.
    lab.apply().must_be(0);
    give(&lab.machine, 0);
    fs_err::set_permissions(lab.store("plain"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(rules::tree(&lab.machine) == before, "nothing else has changed");
}

#[test]
fn what_root_writes_belongs_to_the_user_of_the_store() {
    if !is_root() {
        return;
    }
    let lab = Lab::start();
    larder::fsio::create_dir_all(&lab.machine, None).unwrap();
    give(&lab.machine, SOMEBODY);
    lab.apply().must_be(0);
    let path = lab.repo().join("refs/main");
    remove(&path);
    lab.apply().must_be(0);
    for entry in walkdir::WalkDir::new(&lab.machine).into_iter().map(Result::unwrap) {
        let found = fs_err::symlink_metadata(entry.path()).unwrap();
        assert_eq!((found.uid(), found.gid()), (SOMEBODY, SOMEBODY), "{}", entry.path().display());
    }
    lab.larder(&["verify", "--full"]).must_be(0);
}

#[test]
fn what_root_writes_for_somebody_else_belongs_to_this_user() {
    if !is_root() {
        return;
    }
    let lab = Lab::start();
    let lock = lab.inventory().with_extension("lock");
    lab.start_over();
    give(lab.root(), SOMEBODY);
    // Looking alone makes the state; a lock is made where there is none.
    lab.larder(&["status"]).must_be(3);
    remove(&lock);
    lab.larder(&["lock"]).must_be(0);
    lab.apply().must_be(0);
    lab.larder(&["verify", "--full"]).must_be(0);
    for entry in walkdir::WalkDir::new(lab.root()).into_iter().map(Result::unwrap) {
        let found = fs_err::symlink_metadata(entry.path()).unwrap();
        assert_eq!((found.uid(), found.gid()), (SOMEBODY, SOMEBODY), "{}", entry.path().display());
    }
    // So this user goes on without root, with what root measured.
    Said::of(&lab.command_as(SOMEBODY, &["status"]).output().unwrap()).must_be(0);
    // A file that is there keeps its owner, whoever owns the folder.
    let folder = lock.parent().unwrap();
    std::os::unix::fs::chown(folder, Some(0), Some(0)).unwrap();
    let empty = b"{\"version\": 1, \"revision\": 1, \"artifacts\": [\n]}\n";
    #[expect(clippy::disallowed_methods, reason = "written in place, so that its owner stays")]
    std::fs::write(&lock, empty).unwrap();
    let relative = ["lock", "--offline", "--inventory", "inventory.toml"];
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(relative).current_dir(folder).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("HOME", lab.root()).env("LARDER_STATE", lab.state());
    Said::of(&command.output().unwrap()).must_be(0);
    let found = fs_err::metadata(&lock).unwrap();
    assert!(found.len() > 1000);
    assert_eq!((found.uid(), found.gid()), (SOMEBODY, SOMEBODY));
}

#[test]
fn a_store_of_a_newer_ollama_is_an_obstacle_before_the_first_byte() {
    let lab = Lab::start();
    let ollama = lab.store("ollama");
    larder::fsio::create_dir_all(&ollama.join("manifests-v2"), None).unwrap();
    let plan = lab.larder(&["plan", "--only", "store:ollama"]).must_be(0);
    assert!(plan.line().contains("is kept in a newer layout, which larder does not write"), "{plan}");
    assert!(plan.out.contains("give the store its address as `api` in inventory.toml"), "{plan}");
    let said = lab.apply().must_be(4);
    assert!(said.line().contains("is kept in a newer layout"), "{said}");
    let asked = lab.upstream.take_asked();
    assert!(!asked.is_empty() && !asked.iter().any(|asked| asked.path.contains("/blobs/")), "{asked:?}");
    let names: Vec<_> = rules::tree(&ollama).into_keys().collect();
    assert_eq!(names, [std::path::Path::new("manifests-v2")], "nothing was left there");
    lab.larder(&["verify", "--full", "--only", "store:plain", "--only", "store:huggingface"]).must_be(0);
}

fn give(root: &Path, user: u32) {
    for entry in walkdir::WalkDir::new(root).into_iter().map(Result::unwrap) {
        std::os::unix::fs::lchown(entry.path(), Some(user), Some(user)).unwrap();
    }
}
