//! Lists of files that no file system should get to see.

use larder::digest::Sha256;
use larder::fsio::{WriteOptions, write_atomic};
use rstest::rstest;
use serde_json::{Value, json};

use crate::bench::{Bench, Kind, Phase, SIZE, content, phase, tree_entry};
use crate::exfat::Exfat;
use crate::hostile::{Answer, Asked, Hostile};
use crate::machine::Machine;

/// Lets the hub list these files, and says what `larder lock` makes of it.
fn lock_with(files: &Value) -> (Bench, String) {
    lock_with_answer({
        let files = files.clone();
        move |_| Answer::json(&files)
    })
}

fn lock_with_answer(tree: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (Bench, String) {
    let bench = Bench::new(Kind::Hub);
    bench.misbehave(move |asked| asked.path().contains("/tree/").then(|| tree(asked)));
    let said = bench.machine.larder(&["lock"]);
    let told = said.out.lines().find(|line| line.contains("failed: ")).unwrap_or("it is accepted").trim().to_owned();
    assert_eq!(said.code, Some(if told == "it is accepted" { 0 } else { 4 }), "{said}");
    let told = bench.normal(&told).replace(&"n".repeat(300), "nnn…");
    (bench, told)
}

fn named(name: &str) -> String {
    let sha256 = Sha256::of(&content()).to_string();
    let (bench, told) = lock_with(&json!([tree_entry("good.bin", &sha256), tree_entry(name, &sha256)]));
    // Nothing outside the stores, the lock and larder's own folders came into being.
    let entries = fs_err::read_dir(bench.machine.home()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut entries: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    entries.sort();
    // The lock's own guard is there once the lock was changed.
    entries.retain(|entry| entry != ".inventory.lock.flock");
    assert_eq!(entries, [".local", "inventory.lock", "inventory.toml", "manifests"], "{name:?}");
    told
}

#[test]
fn names_that_are_no_paths_are_refused() {
    let names = [
        "../escaped.bin",
        "a/../../escaped.bin",
        "/etc/escaped.bin",
        "a//b.bin",
        "./a.bin",
        "a/",
        "",
        "a\0b.bin",
        "a\\b.bin",
        "..\\escaped.bin",
        "C:\\escaped.bin",
        "a\nb.bin",
        "\u{1b}[2Ja.bin",
        "good.bin",
        &"n".repeat(300),
        &"d/".repeat(3000),
    ];
    let mut table = String::new();
    for name in names {
        let shown: String = format!("{name:?}").chars().take(40).collect();
        let told: String = named(name).chars().collect();
        table.push_str(&format!("{shown}\n    {told}\n"));
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "../snapshots/hostile" }, {
        insta::assert_snapshot!("names", table);
    });
}

#[test]
fn names_that_differ_in_case_are_two_files() {
    let sha256 = Sha256::of(&content()).to_string();
    let (bench, told) = lock_with(&json!([tree_entry("weights.bin", &sha256), tree_entry("WEIGHTS.BIN", &sha256)]));
    assert_eq!(told, "it is accepted");
    bench.behave();
    bench.apply().must_be(0);
    assert!(bench.has_it());
}

/// On a file system that takes two names for one, the second file would replace the first.
#[test]
fn names_that_differ_in_case_are_refused_where_they_are_one_file() {
    let Some(drive) = Exfat::make() else { return };
    for (other, is_one) in [("WEIGHTS.BIN", true), ("weights2.bin", false)] {
        let (server, sums) = two_contents(other);
        let store = drive.path().join(if is_one { "one" } else { "two" });
        let machine = Machine::new(&inventory_with_store(&store), &two_files(&server.origin(), &sums));
        machine.larder(&["lock", "--offline"]).must_be(0);
        server.now(two_contents_answer);
        let said = machine.larder(&["apply", "--yes"]);
        if !is_one {
            said.must_be(0);
            continue;
        }
        let said = said.must_be(4).must_say(&[
            "model/weights.bin",
            "does not tell its name from that of model/WEIGHTS.BIN",
            "keep it in a store on a file system that tells them apart",
        ]);
        assert!(!said.to_string().contains("placed"), "{said}");
        assert_eq!(server.served().len(), 0, "neither is fetched");
        assert!(!store.join("weights.bin").exists() && !store.join("WEIGHTS.BIN").exists());
        // Where one lies there already, it stays, and is not said to be both.
        write_atomic(&store.join("weights.bin"), &numbered(1), &WriteOptions::default()).unwrap();
        machine.larder(&["apply", "--yes"]).must_be(4);
        assert!(fs_err::read(store.join("weights.bin")).unwrap() == numbered(1));
        machine.larder(&["verify", "--full"]).must_be(3).must_say(&["fault: model/WEIGHTS.BIN", "1 proven, 1 fault"]);
    }
}

/// The same length, other bytes.
fn numbered(n: u8) -> Vec<u8> {
    let mut bytes = content().to_vec();
    bytes[7] ^= n;
    bytes
}

fn two_contents_answer(asked: &Asked) -> Answer {
    let n = if asked.path().ends_with("/weights.bin") { 1 } else { 2 };
    Answer::file(asked, &numbered(n), &[])
}

fn two_contents(other: &str) -> (Hostile, [(String, Sha256); 2]) {
    let server = Hostile::start(two_contents_answer);
    (server, [("weights.bin".to_owned(), Sha256::of(&numbered(1))), (other.to_owned(), Sha256::of(&numbered(2)))])
}

fn inventory_with_store(store: &std::path::Path) -> String {
    format!(
        "manifests = [\"manifests/*.toml\"]\nmachine = \"pc\"\n[stores]\n\
         plain = {{ layout = \"folder\", path = \"{}\" }}\n[machines]\npc = {{}}\n",
        store.display()
    )
}

fn two_files(origin: &str, sums: &[(String, Sha256); 2]) -> String {
    let file = |(name, sha256): &(String, Sha256)| {
        format!(
            "  [[artifact.file]]\n  path = \"{name}\"\n  size = {SIZE}\n  sha256 = \"{sha256}\"\n  source = \"{origin}/files/{name}\"\n"
        )
    };
    let head = "[[section]]\nname = \"lab\"\ntitle = \"Lab\"\n\n[[artifact]]\nname = \"model\"\nstore = \"plain\"\n";
    format!("{head}{}{}", file(&sums[0]), file(&sums[1]))
}

#[test]
fn a_file_cannot_be_a_folder_too() {
    let sha256 = Sha256::of(&content()).to_string();
    let (_, told) = lock_with(&json!([tree_entry("a", &sha256), tree_entry("a/b.bin", &sha256)]));
    insta::assert_snapshot!(told, @"failed: model cannot be looked up: hf:lab/model@COMMIT sent an answer that makes no sense: a is listed as a file and as a folder");
}

#[rstest]
#[case::empty("empty", Answer::new(200, &[], b""))]
#[case::text("text", Answer::new(200, &[], b"all is well"))]
#[case::cut("cut", Answer::new(200, &[], b"[{\"type\":\"file\",\"path\":\"a\""))]
#[case::object("object", Answer::json(&json!({"error": "no"})))]
#[case::numbers("numbers", Answer::json(&json!([1, 2, 3])))]
#[case::deep("deep", Answer::new(200, &[], "[".repeat(100_000).as_bytes()))]
#[case::page("page", Answer::new(200, &[("Content-Type", "text/html")], b"<!DOCTYPE html><html>log in</html>"))]
#[case::negative("negative", Answer::json(&json!([{"type": "file", "path": "a", "oid": "x", "size": -1}])))]
#[case::endless_size("size", Answer::json(&json!([{"type": "file", "path": "a", "oid": "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f", "size": u64::MAX}])))]
#[case::not_unicode("not-unicode", Answer::new(200, &[], b"[{\"type\":\"file\",\"path\":\"\xff\xfe\"}]"))]
#[case::large("large", Answer::new(200, &[], &vec![b' '; 70 << 20]))]
fn lists_that_are_none(#[case] name: &str, #[case] answer: Answer) {
    let (bench, told) = lock_with_answer(move |_| answer.clone());
    assert!(bench.server.served().len() <= 4, "{} requests", bench.server.served().len());
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "../snapshots/hostile" }, {
        insta::assert_snapshot!(format!("list-{name}"), told);
    });
}

#[test]
fn pages_without_end_are_not_followed_for_ever() {
    let (bench, told) = lock_with_answer(|asked| {
        let next = format!("<{}?cursor={}>; rel=\"next\"", asked.path(), asked.before);
        Answer::new(200, &[("Link", &next)], b"[]")
    });
    assert!(bench.server.served().len() < 20, "{} requests", bench.server.served().len());
    assert!(told.ends_with("its list of files has no end"), "{told}");
}

#[test]
fn the_next_page_is_not_looked_for_elsewhere() {
    let (bench, told) = lock_with_answer(|_| {
        Answer::new(200, &[("Link", "<http://localhost:1/stolen?cursor=1>; rel=\"next\"")], b"[]")
    });
    assert!(told.ends_with("its API leads to another server, http://localhost:1"), "{told}");
    assert_eq!(bench.server.served().len(), 2);
}

#[test]
fn manifests_of_images_are_read_with_care() {
    let digest = format!("sha256:{}", Sha256::of(&content()));
    let layer = |digest: &str, size: Value| json!({"mediaType": "x", "digest": digest, "size": size});
    let manifest = |layers: Value| json!({"schemaVersion": 2, "config": layer(&digest, json!(SIZE)), "layers": layers});
    let bodies = [
        b"".to_vec(),
        b"<html>".to_vec(),
        manifest(json!([layer("sha256:../../etc/passwd", json!(1))])).to_string().into_bytes(),
        manifest(json!([layer("md5:00", json!(1))])).to_string().into_bytes(),
        manifest(json!([layer(&digest, json!(-1))])).to_string().into_bytes(),
        manifest(json!([layer(&format!("sha256:{}", "0".repeat(64)), json!(u64::MAX))])).to_string().into_bytes(),
        manifest(json!([layer(&digest, json!(SIZE)), layer(&digest, json!(7))])).to_string().into_bytes(),
        vec![b' '; 8 << 20],
    ];
    let mut table = String::new();
    for body in bodies {
        let bench = Bench::new(Kind::Ollama);
        let shown: String = String::from_utf8_lossy(&body).trim().chars().take(30).collect();
        bench.misbehave(move |asked| (phase(asked) == Phase::Listing).then(|| Answer::new(200, &[], &body)));
        let said = bench.machine.larder(&["lock"]);
        let told = said.out.lines().find(|line| line.contains("failed: ")).unwrap_or("it is accepted").trim();
        table.push_str(&format!("{shown}\n    {}\n", bench.normal(told)));
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "../snapshots/hostile" }, {
        insta::assert_snapshot!("image-manifests", table);
    });
}
