//! `larder prune` removes leftovers from a shown plan, and nothing else.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use larder::digest::Sha256;

#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;

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
