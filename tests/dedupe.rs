//! `larder dedupe` on a file system that can share blocks, and on one that cannot.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use larder::digest::Sha256;
use larder::fsio::{WriteOptions, running_as, write_atomic};
use serde_json::Value;

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/disk.rs"]
mod disk;
#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;
#[path = "support/skip.rs"]
mod skip;

use disk::{Disk, Kind};
use program::Lab;

fn weights() -> Vec<u8> {
    (0..3_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A lab with two stores on `place` that hold the same 12 MB, both read; and one more file of another content.
fn lab(place: &Path) -> Lab {
    let file = |name: &str, store: &str, bytes: &[u8]| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nstore = \"{store}\"\nsource = \"local\"\nfile = [{{ path = \"{name}.bin\", sha256 = \"{}\" }}]\n",
            Sha256::of(bytes)
        )
    };
    let other: Vec<u8> = weights().into_iter().rev().collect();
    let manifest = [file("a", "one", &weights()), file("b", "two", &weights()), file("c", "two", &other)].concat();
    let store = |name: &str| format!("{name} = {{ layout = \"folder\", path = {:?} }}\n", place.join(name));
    let lab =
        Lab::new(&format!("machine = \"pc1\"\n[machines.pc1]\n[stores]\n{}{}", store("one"), store("two")), &manifest);
    for (path, bytes) in [("one/a.bin", &weights()), ("two/b.bin", &weights()), ("two/c.bin", &other)] {
        write_atomic(&place.join(path), bytes, &WriteOptions { mode: Some(0o640), ..WriteOptions::default() }).unwrap();
    }
    assert_eq!(lab.run(&["verify"]).code, 0);
    lab
}

fn used(place: &Path) -> u64 {
    rustix::fs::sync();
    let numbers = rustix::fs::statvfs(place).unwrap();
    (numbers.f_blocks - numbers.f_bfree) * numbers.f_frsize
}

#[test]
fn blocks_are_shared_and_files_stay_independent() {
    if running_as().uid != 0 {
        return skip::skipped("only root can mount a file system that shares blocks");
    }
    let disk = Disk::make(Kind::Xfs);
    let place = disk.path();
    let lab = lab(&place);
    let dry = lab.run(&["dedupe"]);
    assert!(dry.code == 0 && dry.out.contains("1 content in several places, 11.4 MiB to win"), "{dry:?}");
    let before = (used(&place), fs_err::metadata(place.join("two/b.bin")).unwrap());
    let unsaid = lab.run(&["dedupe", "--apply"]);
    assert!(unsaid.code == 2 && unsaid.err.contains("nothing was changed"), "{unsaid:?}");
    assert_eq!(used(&place), before.0);

    let done = lab.run(&["dedupe", "--apply", "--yes"]);
    assert!(done.code == 0 && done.out.ends_with("11.4 MiB won\n"), "{done:?}");
    // The file system gives back what nobody holds any more in its own time, which a sync hurries.
    let is_won = || {
        assert!(Command::new("sync").arg("-f").arg(&place).status().unwrap().success());
        used(&place) + (11 << 20) <= before.0
    };
    assert!((0..500).any(|_| is_won()), "{} is not less than {}", used(&place), before.0);
    let after = fs_err::metadata(place.join("two/b.bin")).unwrap();
    assert_eq!((after.mode(), after.mtime_nsec(), after.nlink()), (before.1.mode(), before.1.mtime_nsec(), 1));
    let again = lab.run(&["dedupe"]);
    assert!(again.out.contains("0 contents in several places, 0 B to win"), "it is done: {}", again.out);
    let status = lab.run(&["report", "--json"]);
    let report: Value = serde_json::from_str(&status.out).unwrap();
    assert!(report["totals"]["proven_at"].is_i64(), "what was read is still known: {report}");

    write_atomic(&place.join("one/a.bin"), b"changed", &WriteOptions::default()).unwrap();
    assert!(fs_err::read(place.join("two/b.bin")).unwrap() == weights(), "each is a file of its own");
}

#[test]
fn where_blocks_cannot_be_shared_nothing_is_changed_unless_links_are_asked_for() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let lab = lab(place.path());
    let inode = |path: &str| fs_err::metadata(place.path().join(path)).unwrap().ino();
    let before = inode("two/b.bin");
    let refused = lab.run(&["dedupe", "--apply", "--yes"]);
    if refused.code == 0 {
        return skip::skipped("this file system shares blocks, so that it cannot be tried here");
    }
    assert!(refused.code == 4 && refused.err.contains("cannot share blocks"), "{refused:?}");
    assert_eq!(inode("two/b.bin"), before);
    let linked = lab.run(&["dedupe", "--apply", "--yes", "--hardlink"]);
    assert!(linked.code == 0 && linked.out.ends_with("11.4 MiB won\n"), "{linked:?}");
    assert_eq!(inode("two/b.bin"), inode("one/a.bin"));
    assert_eq!(lab.run(&["verify"]).code, 0);
    assert!(lab.run(&["dedupe"]).out.contains("0 contents in several places"), "one file is no twin");
}

#[test]
fn hard_links_give_nobody_anothers_file_and_changed_files_are_left_alone() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let lab = lab(place.path());
    let b = place.path().join("two/b.bin");
    fs_err::set_permissions(&b, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let refused = lab.run(&["dedupe", "--apply", "--yes", "--hardlink"]);
    assert!(refused.code == 4 && refused.err.contains("differ in owner or permission bits"), "{refused:?}");
    let mut changed = weights();
    changed[77] ^= 1;
    write_atomic(&b, &changed, &WriteOptions::default()).unwrap();
    let nothing = lab.run(&["dedupe", "--apply", "--yes", "--hardlink"]);
    assert!(
        nothing.code == 0 && nothing.out.contains("0 contents"),
        "what has changed since it was read is no twin: {nothing:?}"
    );
    assert!(fs_err::read(&b).unwrap() == changed);
}
