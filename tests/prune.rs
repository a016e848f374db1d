//! `larder prune` removes leftovers from a shown plan, and nothing else.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use larder::digest::Sha256;

#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;
#[path = "support/skip.rs"]
mod skip;

use program::Lab;

const INVENTORY: &str = "machine = \"pc1\"\n[machines.pc1]\n[stores]\nplain = { layout = \"folder\", path = \"~/plain\" }\n\
    hub = { layout = \"hf-cache\", path = \"~/hub\" }\nollama = { layout = \"ollama\", path = \"~/ollama\" }\n";
/// One file that nobody else has; what lies in its place now is empty.
const MANIFEST: &str =
    "[[artifact]]\nname = \"own\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{ path = \"own.bin\" }]\n";

/// Files below the lab's home, larder's own left out.
fn files(lab: &Lab) -> BTreeSet<String> {
    let home = lab.path("home");
    let all = walkdir::WalkDir::new(&home).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    all.map(|entry| entry.path().strip_prefix(&home).unwrap().display().to_string()).collect()
}

fn age(path: &Path, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    fs_err::OpenOptions::new().write(true).open(path).unwrap().file().set_modified(then).unwrap();
}

#[test]
fn leftovers_go_only_when_asked_and_everything_else_stays() {
    let lab = Lab::new(INVENTORY, MANIFEST);
    let orphan = format!("ollama/blobs/sha256-{}", Sha256::of(b"orphan"));
    let commit = "0123456789012345678901234567890123456789";
    let leftovers = [
        ("plain/half.safetensors.part", b"half".as_slice()),
        ("plain/page.bin", b"<!DOCTYPE html><html></html>"),
        ("plain/pointer.bin", b"version https://git-lfs.github.com/spec/v1\n"),
        ("plain/empty.bin", b""),
        ("hub/models--a--b/blobs/0123.incomplete", b"half"),
        (orphan.as_str(), b"orphan"),
    ];
    let others = [
        ("plain/own.bin", b"".as_slice()),
        ("plain/unknown.bin", b"made in the lab"),
        ("plain/new.safetensors.part", b"a download is running"),
        ("hub/models--a--b/refs/main", commit.as_bytes()),
        ("hub/models--a--b/snapshots/0123456789012345678901234567890123456789/config.json", b"{}"),
    ];
    for (path, bytes) in leftovers.iter().chain(&others) {
        lab.write(&format!("home/{path}"), bytes);
        age(&lab.path(&format!("home/{path}")), 30);
    }
    age(&lab.path("home/plain/new.safetensors.part"), 1);
    // Without this folder nobody knows what the blobs are for.
    assert!(lab.run(&["prune"]).out.contains("5 leftovers, "));
    larder::fsio::create_dir_all(&lab.path("home/ollama/manifests"), None).unwrap();
    let all = files(&lab);

    let shown = lab.run(&["prune"]);
    assert!(shown.code == 0 && shown.out.contains("6 leftovers, "), "{shown:?}");
    assert!(
        shown.out.contains("keep   LAB/home/plain/own.bin: its place is that of a file that nobody else has"),
        "{}",
        shown.out
    );
    assert!(shown.out.contains("keep   LAB/home/plain/new.safetensors.part: it was changed lately"), "{}", shown.out);
    let unsaid = lab.run(&["prune", "--apply"]);
    assert!(unsaid.code == 2 && unsaid.err.contains("nothing was changed"), "{unsaid:?}");
    assert_eq!(files(&lab), all, "only shown");

    let done = lab.run(&["prune", "--apply", "--yes"]);
    assert_eq!(done.code, 0, "{done:?}");
    let expected: BTreeSet<String> = others.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(files(&lab), expected);
    assert!(lab.run(&["prune"]).out.contains("0 leftovers, 0 B to win"));
    assert!(lab.run(&["prune", "--older-than", "1h"]).out.contains("remove LAB/home/plain/new.safetensors.part"));
}

#[test]
fn what_a_broken_manifest_may_need_is_no_orphan() {
    let lab = Lab::new(INVENTORY, "");
    let orphan = format!("home/ollama/blobs/sha256-{}", Sha256::of(b"orphan"));
    lab.write(&orphan, b"orphan");
    age(&lab.path(&orphan), 30);
    lab.write("home/ollama/manifests/registry.ollama.ai/library/guard/1b", "{\"schemaVersion\":2");
    let said = lab.run(&["prune", "--apply", "--yes"]);
    assert!(said.code == 0 && said.out.contains("0 leftovers") && lab.path(&orphan).exists(), "{said:?}");
}

#[test]
fn blobs_of_a_cache_that_no_snapshot_leads_to_go_and_wanted_ones_stay() {
    let (linked, wanted, orphan, young) =
        (b"linked".as_slice(), b"wanted".as_slice(), b"orphan".as_slice(), b"young".as_slice());
    let manifest = format!(
        "[[artifact]]\nname = \"own\"\nstore = \"hub\"\nsource = \"hf:a/c\"\nfile = [{{ path = \"own.bin\", sha256 = \"{}\" }}]\n",
        Sha256::of(wanted)
    );
    let lab = Lab::new(INVENTORY, &manifest);
    let place = |bytes: &[u8]| format!("home/hub/models--a--b/blobs/{}", Sha256::of(bytes));
    for bytes in [linked, wanted, orphan, young] {
        lab.write(&place(bytes), bytes);
        age(&lab.path(&place(bytes)), if bytes == young { 1 } else { 30 });
    }
    // A snapshot of another repository may lead there as well.
    let snapshot = lab.path("home/hub/models--a--d/snapshots/0123456789012345678901234567890123456789");
    larder::fsio::create_dir_all(&snapshot, None).unwrap();
    let target = format!("../../../models--a--b/blobs/{}", Sha256::of(linked));
    #[expect(clippy::disallowed_methods, reason = "the test's own link")]
    std::os::unix::fs::symlink(target, snapshot.join("model.bin")).unwrap();
    let shown = lab.run(&["prune"]);
    assert!(shown.out.contains("1 leftover, ") && shown.out.contains("no snapshot leads to it"), "{shown:?}");
    assert!(shown.out.contains(&format!("{}: it was changed lately", Sha256::of(young))), "{shown:?}");
    assert_eq!(lab.run(&["prune", "--apply", "--yes"]).code, 0);
    let here = [linked, wanted, orphan, young].map(|bytes| lab.path(&place(bytes)).exists());
    assert_eq!(here, [true, true, false, true]);
}

const OLD: &str = "1111111111111111111111111111111111111111";
const LOCKED: &str = "2222222222222222222222222222222222222222";
const NEW: &str = "3333333333333333333333333333333333333333";

fn blob(bytes: &[u8]) -> String {
    Sha256::of(bytes).to_string()
}

fn link(target: &str, place: &Path) {
    larder::fsio::create_dir_all(place.parent().unwrap(), None).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the test's own link")]
    std::os::unix::fs::symlink(target, place).unwrap();
    age_itself(place);
}

/// Gives a place, a link itself, a time of change long ago.
fn age_itself(place: &Path) {
    let then = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: then, last_modification: then };
    rustix::fs::utimensat(rustix::fs::CWD, place, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A repository whose branch went on: three revisions, the first of which nobody names; its contents are in the blobs
/// that the cache's repositories share.
fn repository_that_went_on(lab: &Lab) {
    for bytes in [b"old".as_slice(), b"both", b"locked", b"new"] {
        lab.write(&format!("home/hub/blobs/{}", blob(bytes)), bytes);
        age(&lab.path(&format!("home/hub/blobs/{}", blob(bytes))), 30);
        let own = lab.path(&format!("home/hub/models--a--b/blobs/{}", blob(bytes)));
        link(&format!("../../blobs/{}", blob(bytes)), &own);
    }
    let contents = [
        (OLD, "x/old.bin", "old"),
        (OLD, "both.bin", "both"),
        (LOCKED, "locked.bin", "locked"),
        (NEW, "new.bin", "new"),
        (NEW, "both.bin", "both"),
    ];
    for (commit, path, bytes) in contents {
        let up = if path.contains('/') { "../../../blobs" } else { "../../blobs" };
        let entry = lab.path(&format!("home/hub/models--a--b/snapshots/{commit}/{path}"));
        link(&format!("{up}/{}", blob(bytes.as_bytes())), &entry);
    }
    lab.write("home/hub/models--a--b/refs/main", NEW);
    let list = format!("home/hub/models--a--b/trees/{OLD}.json");
    lab.write(&list, "[]");
    age(&lab.path(&list), 30);
}

#[test]
fn replaced_revisions_go_only_when_asked_for_and_what_others_share_stays() {
    let manifest =
        format!("[[artifact]]\nname = \"b\"\nstore = \"hub\"\nsource = \"hf:a/b@{LOCKED}\"\ninclude = [\"*\"]\n");
    let lab = Lab::new(INVENTORY, &manifest);
    repository_that_went_on(&lab);
    let plain = lab.run(&["prune"]);
    assert!(plain.out.contains("0 leftovers, ") && plain.out.contains("1 replaced revision more can go"), "{plain:?}");
    // A revision that came lately is part of somebody's work.
    let young = lab.path(&format!("home/hub/models--a--b/trees/{OLD}.json"));
    age(&young, 1);
    let shown = lab.run(&["prune", "--superseded"]);
    assert!(
        shown.out.contains("0 leftovers, ") && shown.out.contains(&format!("{OLD}: it was changed lately")),
        "{shown:?}"
    );
    age(&young, 30);
    let shown = lab.run(&["prune", "--superseded"]);
    assert!(shown.out.contains("5 leftovers, 5 B to win"), "{shown:?}");
    assert_eq!(lab.run(&["prune", "--superseded", "--apply", "--yes"]).code, 0);

    let cache = lab.path("home/hub/models--a--b");
    let snapshots: BTreeSet<_> = fs_err::read_dir(cache.join("snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(snapshots, BTreeSet::from([LOCKED.to_owned(), NEW.to_owned()]));
    let is_here = |bytes: &[u8]| lab.path(&format!("home/hub/blobs/{}", blob(bytes))).exists();
    assert_eq!([b"old".as_slice(), b"both", b"locked", b"new"].map(is_here), [false, true, true, true]);
    assert!(fs_err::symlink_metadata(cache.join("blobs").join(blob(b"old"))).is_err(), "a link to nothing would stay");
    assert_eq!(fs_err::read(cache.join("snapshots").join(NEW).join("both.bin")).unwrap(), b"both");
    assert!(lab.run(&["prune", "--superseded"]).out.contains("0 leftovers, 0 B to win"));
}

/// What programs of another store read by a link stays, and with it all of its revision.
#[test]
fn what_a_link_of_another_store_leads_to_stays() {
    let cases = [
        ("home/plain/clip.safetensors", format!("../hub/models--a--b/snapshots/{OLD}/x/old.bin")),
        ("home/plain/clip.safetensors", format!("../hub/blobs/{}", blob(b"old"))),
        ("home/plain/clip", format!("../hub/models--a--b/snapshots/{OLD}")),
    ];
    for (place, target) in cases {
        let lab = Lab::new(INVENTORY, "");
        repository_that_went_on(&lab);
        // The locked revision is nobody's here, and goes; both have nothing in common.
        link(&target, &lab.path(place));
        let pruned = lab.run(&["prune", "--superseded", "--apply", "--yes"]);
        assert!(pruned.code == 0 && pruned.out.contains("a link in another store leads to it"), "{target}: {pruned:?}");
        let read = if place.ends_with("clip") { format!("{place}/x/old.bin") } else { place.to_owned() };
        assert_eq!(fs_err::read(lab.path(&read)).unwrap(), b"old", "{target}");
        assert!(!lab.path(&format!("home/hub/models--a--b/snapshots/{LOCKED}")).exists(), "{target}");
    }
    // A link to all of the cache needs nothing of it in particular.
    let lab = Lab::new(INVENTORY, "");
    repository_that_went_on(&lab);
    link("../hub", &lab.path("home/plain/everything"));
    assert!(!lab.run(&["prune", "--superseded"]).out.contains("keep"));
}

#[test]
fn what_another_cache_leads_to_stays_and_all_of_it_where_a_store_cannot_be_looked_into() {
    let lab = Lab::new(&format!("{INVENTORY}moved = {{ layout = \"hf-cache\", path = \"~/moved\" }}\n"), "");
    repository_that_went_on(&lab);
    let entry = lab.path(&format!("home/moved/models--a--b/snapshots/{OLD}/old.bin"));
    link(&format!("../../../../hub/blobs/{}", blob(b"old")), &entry);
    let pruned = lab.run(&["prune", "--superseded", "--apply", "--yes"]);
    assert!(pruned.code == 0 && pruned.out.contains("a link in another store leads to it"), "{pruned:?}");
    assert_eq!(fs_err::read(&entry).unwrap(), b"old");

    let lab = Lab::new(INVENTORY, "");
    repository_that_went_on(&lab);
    let orphan = format!("home/hub/models--a--b/blobs/{}", blob(b"orphan"));
    let half = "home/hub/models--a--b/blobs/0123.incomplete";
    for place in [orphan.as_str(), half] {
        lab.write(place, b"orphan");
        age(&lab.path(place), 30);
    }
    // A folder that nobody can look into, whoever he is.
    link("ollama", &lab.path("home/ollama"));
    let before = entries(&lab);
    let pruned = lab.run(&["prune", "--superseded", "--apply", "--yes"]);
    assert!(pruned.code == 0 && pruned.out.contains("prune as a user who may"), "{pruned:?}");
    let gone: Vec<String> = before.difference(&entries(&lab)).cloned().collect();
    assert_eq!(gone, ["models--a--b/blobs/0123.incomplete"], "{pruned:?}");
}

/// Links to nothing below `folder`.
fn dangling(folder: &Path) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.unwrap().into_path());
    all.filter(|path| path.is_symlink() && !path.exists()).collect()
}

/// The program as it is killed, or refused, at its `nth` call of one of `calls`.
fn prune_with(lab: &Lab, calls: &str, inject: &str, nth: usize) -> Output {
    let prune = lab.command(&["prune", "--superseded", "--apply", "--yes"]);
    let mut strace = Command::new("/usr/bin/strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:{inject}:when={nth}")]);
    // The facts' own files do not count.
    for path in entries(lab) {
        strace.arg("-P").arg(lab.path("home/hub").join(path));
    }
    strace.arg(prune.get_program()).args(prune.get_args()).env_clear().current_dir(lab.path(""));
    strace.envs(prune.get_envs().filter_map(|(name, value)| Some((name, value?)))).output().unwrap()
}

#[test]
fn no_kill_and_no_refusal_leaves_a_link_to_nothing_and_the_next_run_ends_it() {
    if !Path::new("/usr/bin/strace").exists() {
        return skip::skipped("strace is not installed (apt-get install strace)");
    }
    let expected = {
        let lab = Lab::new(INVENTORY, "");
        repository_that_went_on(&lab);
        assert_eq!(lab.run(&["prune", "--superseded", "--apply", "--yes"]).code, 0);
        entries(&lab)
    };
    // Two revisions of three files have these, a list, two blobs and a link to each; and three folders.
    let unlink = "unlink,unlinkat";
    for (calls, inject, code, least) in
        [(unlink, "error=EIO", Some(4), 8), (unlink, "signal=KILL", None, 8), ("rmdir", "signal=KILL", None, 3)]
    {
        for nth in 1.. {
            let lab = Lab::new(INVENTORY, "");
            repository_that_went_on(&lab);
            let stopped = prune_with(&lab, calls, inject, nth);
            assert_eq!(dangling(&lab.path("home/hub")), Vec::<PathBuf>::new(), "{inject} {nth}");
            if stopped.status.success() {
                assert!(nth > least && entries(&lab) == expected, "{inject} {nth}: {stopped:?}");
                break;
            }
            assert_eq!(stopped.status.code(), code, "{inject} {nth}: {stopped:?}");
            // A folder has changed with the last that went from it.
            walkdir::WalkDir::new(lab.path("home/hub")).into_iter().for_each(|entry| age_itself(entry.unwrap().path()));
            assert_eq!(lab.run(&["prune", "--superseded", "--apply", "--yes"]).code, 0, "{inject} {nth}");
            assert_eq!(entries(&lab), expected, "{inject} {nth}");
        }
    }
}

/// Files, links and folders of the hub cache.
fn entries(lab: &Lab) -> BTreeSet<String> {
    let hub = lab.path("home/hub");
    let all = walkdir::WalkDir::new(&hub).into_iter().map(|entry| entry.unwrap().into_path());
    all.map(|path| path.strip_prefix(&hub).unwrap().display().to_string()).collect()
}

#[test]
fn a_repository_of_which_only_commits_are_asked_for_has_no_replaced_revisions() {
    let lab = Lab::new(INVENTORY, "");
    repository_that_went_on(&lab);
    // Whoever wrote it names revisions by their commits alone.
    larder::fsio::remove_file(&lab.path("home/hub/models--a--b/refs/main")).unwrap();
    let shown = lab.run(&["prune", "--superseded"]);
    assert!(shown.out.contains("0 leftovers, 0 B to win"), "{shown:?}");
}
