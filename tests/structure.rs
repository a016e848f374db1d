//! `verify --quick` on real and broken weight files: what each file is, is told by its bytes.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use larder::fsio::{WriteOptions, write_atomic};
use serde_json::{Value, json};

#[path = "support/parts.rs"]
mod parts;
#[expect(dead_code, reason = "each test uses a part of what the program says")]
#[path = "support/program.rs"]
mod program;

use program::{INVENTORY, Lab};

/// A lab whose one artifact has these files, of which nothing is known but the names.
fn lab(files: &[&str]) -> Lab {
    let list: Vec<String> = files.iter().map(|path| format!("{{ path = {path:?} }}")).collect();
    let manifest = format!(
        "[[artifact]]\nname = \"model\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{}]\n",
        list.join(", ")
    );
    Lab::new(INVENTORY, &manifest)
}

/// The faults that a quick verification names: path, kind and detail.
#[track_caller]
fn faults(lab: &Lab) -> Vec<(String, String, String)> {
    let said = lab.run(&["verify", "--quick", "--json"]);
    let json: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let text = |fault: &Value, key: &str| fault[key].as_str().unwrap_or_default().to_owned();
    let faults: Vec<_> = json["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| (text(fault, "path"), text(fault, "kind"), text(fault, "detail")))
        .collect();
    assert_eq!(said.code, if faults.is_empty() { 0 } else { 3 }, "{said:?}");
    faults
}

fn example(name: &str) -> Vec<u8> {
    fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickles").join(name)).unwrap()
}

/// A safetensors file of square matrices of 256 KiB each, without a zero byte.
fn matrices(names: &[&str]) -> Vec<u8> {
    const LEN: usize = 256 << 10;
    let entry = |(index, name): (usize, &&str)| {
        let place = [index * LEN, (index + 1) * LEN];
        ((*name).to_owned(), json!({"dtype": "F32", "shape": [256, 256], "data_offsets": place}))
    };
    let header = serde_json::to_vec(&names.iter().enumerate().map(entry).collect::<serde_json::Map<_, _>>()).unwrap();
    let data = vec![0x3f; names.len() * LEN];
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

#[test]
fn unsafe_pickles_are_named_whatever_the_file_is_called() {
    let bad = [
        ("bad/zip.pth", "a.pth"),
        ("bad/legacy.pth", "b.pt"),
        ("bad/system-protocol-0.bin", "c.bin"),
        ("bad/system-protocol-4.bin", "d.ckpt"),
        ("bad/nested.pth", "e.pth"),
        ("bad/zip.pth", "f.safetensors"),
        ("bad/objects.npz", "g.npz"),
    ];
    let lab = lab(&bad.map(|(_, name)| name));
    for (file, name) in bad {
        lab.write(&format!("home/plain/{name}"), example(file));
    }
    let faults = faults(&lab);
    assert_eq!(faults.len(), bad.len(), "{faults:?}");
    for (path, kind, detail) in faults {
        assert_eq!(kind, "unsafe-pickle", "{path}: {detail}");
        assert!(detail.contains("imports system from posix") || detail.contains("imports eval"), "{path}: {detail}");
        assert!(detail.contains("do not load it"), "{path}: {detail}");
    }
}

#[test]
fn what_a_file_is_its_bytes_say_and_never_its_name() {
    let weights = matrices(&["a", "b"]);
    let broken = [
        ("bad/zip.pth", "notes.json", "unsafe-pickle"),
        ("bad/system-protocol-4.bin", "weights", "unsafe-pickle"),
        ("bad/system-protocol-0.bin", "readme.md", "unsafe-pickle"),
        ("bad/system-protocol-1.bin", "blob.weights", "unsafe-pickle"),
    ];
    let texts = [
        ("config.json", &b"{\"a\": [1, 2.5, \"(tR.\"]}\n"[..]),
        ("merges.txt", b"#version: 0.2\ni n\nt h\n"),
        ("cautions.txt", b"can be used\nfor good\n(or not at all)\nRead on.\n"),
        ("import.txt", b"cos\nsystem\n"),
        ("empty", b""),
    ];
    let names: Vec<&str> = broken.iter().map(|(_, name, _)| *name).chain(texts.map(|(name, _)| name)).collect();
    let lab = lab(&[&names[..], &["model.weights", "cut.weights"]].concat());
    for (file, name, _) in broken {
        lab.write(&format!("home/plain/{name}"), example(file));
    }
    for (name, text) in &texts[..4] {
        lab.write(&format!("home/plain/{name}"), text);
    }
    lab.write("home/plain/empty", b"\n");
    lab.write("home/plain/model.weights", &weights);
    lab.write("home/plain/cut.weights", &weights[..weights.len() - 5]);
    let mut expected: Vec<(&str, &str)> = broken.map(|(_, name, kind)| (name, kind)).to_vec();
    expected.push(("cut.weights", "truncated"));
    let faults = faults(&lab);
    let mut kinds: Vec<_> = faults.iter().map(|(path, kind, _)| (path.as_str(), kind.as_str())).collect();
    kinds.sort_unstable();
    expected.sort_unstable();
    assert_eq!(kinds, expected);
}

#[test]
fn an_unsafe_pickle_stays_one_though_its_digest_is_proven() {
    let evil = example("bad/zip.pth");
    let good = example("good/zip.pth");
    let pin =
        |name: &str, bytes: &[u8]| format!("{{ path = {name:?}, sha256 = \"{}\" }}", larder::digest::Sha256::of(bytes));
    let manifest = format!(
        "[[artifact]]\nname = \"model\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{}, {}, {}]\n",
        pin("evil.pth", &evil),
        pin("notes.json", &evil),
        pin("good.pth", &good)
    );
    let lab = Lab::new(INVENTORY, &manifest);
    for (name, bytes) in [("evil.pth", &evil), ("notes.json", &evil), ("good.pth", &good)] {
        lab.write(&format!("home/plain/{name}"), bytes);
    }
    for way in [&["--full"][..], &[], &["--quick"], &["--max-age", "1d"], &["--quick"]] {
        let said = lab.run(&[&["verify", "--json"], way].concat());
        let json: Value = serde_json::from_str(&said.out).unwrap();
        let kinds: Vec<_> = json["faults"].as_array().unwrap().iter().map(|f| (&f["path"], &f["kind"])).collect();
        let told = json!("unsafe-pickle");
        assert_eq!(kinds, [(&json!("evil.pth"), &told), (&json!("notes.json"), &told)], "{way:?}");
        assert_eq!(said.code, 3, "{way:?}");
    }
    let said = lab.run(&["report"]);
    assert!(said.code == 3 && said.out.contains("imports system from posix"), "{said:?}");
}

/// A digest that agrees says that it is what was published: it is brought, and told from then on.
#[test]
fn an_unsafe_pickle_that_apply_brings_is_told_by_everything_that_looks_afterwards() {
    let evil = example("bad/zip.pth");
    let drive = tempfile::tempdir().unwrap();
    write_atomic(&drive.path().join("evil.pth"), &evil, &WriteOptions::default()).unwrap();
    let inventory =
        format!("{INVENTORY}[sources]\norder = [\"drive\"]\ndrives = [{:?}]\n", drive.path().display().to_string());
    let manifest = format!(
        "[[artifact]]\nname = \"model\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{{ path = \"evil.pth\", size = {}, sha256 = \"{}\" }}]\n",
        evil.len(),
        larder::digest::Sha256::of(&evil)
    );
    let lab = Lab::new(&inventory, &manifest);
    let applied = lab.run(&["apply", "--yes"]);
    assert!(applied.code == 0 && applied.out.contains("1 file placed"), "{applied:?}");
    let words = "imports system from posix";
    // It reads no contents, so that it cannot tell.
    assert_eq!(lab.run(&["status"]).code, 0);
    for arguments in [&["verify", "--quick"][..], &["verify"], &["verify", "--full"], &["report"]] {
        let said = lab.run(arguments);
        assert_eq!(said.code, 3, "{arguments:?}: {said:?}");
        assert!(said.out.contains(words), "{arguments:?}: {said:?}");
    }
    // Nothing is to be mended: what is published is what is here.
    assert!(lab.run(&["repair", "--check"]).out.contains("Nothing is known to be wrong"));
    assert_eq!(lab.run(&["plan", "--check"]).code, 0);
    assert!(fs_err::read(lab.path("home/plain/evil.pth")).unwrap() == evil);
}

#[test]
fn good_files_have_no_fault_and_wrong_ones_are_told_what_they_are() {
    let files =
        ["good.pth", "old.pt", "arrays.npz", "model.pth", "model.bin", "model.safetensors", "table.npy", "model.gguf"];
    let lab = lab(&files);
    lab.write("home/plain/good.pth", example("good/zip.pth"));
    lab.write("home/plain/old.pt", example("good/legacy.pth"));
    lab.write("home/plain/arrays.npz", example("good/arrays.npz"));
    // A header of safetensors is a pickle to `torch.load`, which such names are given to.
    lab.write("home/plain/model.pth", matrices(&["a"]));
    lab.write("home/plain/model.bin", matrices(&["a"]));
    lab.write("home/plain/model.safetensors", example("good/zip.pth"));
    lab.write("home/plain/table.npy", b"just a text that is longer than nothing");
    lab.write("home/plain/model.gguf", vec![0; 5000]);
    let faults = faults(&lab);
    let kinds: Vec<_> = faults.iter().map(|(path, kind, _)| (path.as_str(), kind.as_str())).collect();
    let wrong = [
        ("model.bin", "structure"),
        ("model.gguf", "zero-filled"),
        ("model.pth", "structure"),
        ("model.safetensors", "structure"),
        ("table.npy", "structure"),
    ];
    assert_eq!(kinds, wrong);
    assert!(faults[3].2.contains("it is PyTorch"), "{faults:?}");
}

#[test]
fn what_was_never_written_is_found_behind_a_perfect_header() {
    let lab = lab(&["hole.safetensors", "zeros.safetensors", "whole.safetensors"]);
    let whole = matrices(&["a", "b", "c", "d"]);
    lab.write("home/plain/whole.safetensors", &whole);
    // As a downloader leaves it that writes one tensor after another: `c` and `d` never came.
    let half = whole.len() - (512 << 10);
    let sparse = lab.path("home/plain/hole.safetensors");
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(&sparse).unwrap();
    file.write_all(&whole[..half]).unwrap();
    file.set_len(whole.len() as u64).unwrap();
    let mut zeros = whole.clone();
    zeros[half..].fill(0);
    lab.write("home/plain/zeros.safetensors", &zeros);
    let faults = faults(&lab);
    let kinds: Vec<_> = faults.iter().map(|(path, kind, _)| (path.as_str(), kind.as_str())).collect();
    assert_eq!(kinds, [("hole.safetensors", "zero-filled"), ("zeros.safetensors", "zero-filled")]);
    assert!(faults[0].2.contains("were never written: tensors c, d are blank"), "{faults:?}");
    assert!(faults[1].2.contains("as far as they were looked at: tensors c, d are blank"), "{faults:?}");
}

/// A matrix of 4 MiB without a zero byte, but that `hole` of its file is not written. `beforehand`, the whole room is
/// allocated first, as downloaders do it.
fn matrix_with_hole(place: &Path, hole: std::ops::Range<u64>, beforehand: bool) -> Vec<u8> {
    let header = json!({"a": {"dtype": "F32", "shape": [1024, 1024], "data_offsets": [0, 4 << 20]}}).to_string();
    let data = vec![0x3f; 4 << 20];
    let mut whole = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    larder::fsio::create_dir_all(place.parent().unwrap(), None).unwrap();
    let mut file = fs_err::File::create(place).unwrap();
    if beforehand {
        rustix::fs::fallocate(file.file(), rustix::fs::FallocateFlags::empty(), 0, whole.len() as u64).unwrap();
    }
    file.write_all(&whole[..hole.start as usize]).unwrap();
    file.seek(SeekFrom::Start(hole.end)).unwrap();
    file.write_all(&whole[hole.end as usize..]).unwrap();
    file.sync_all().unwrap();
    whole[hole.start as usize..hole.end as usize].fill(0);
    assert!(fs_err::read(place).unwrap() == whole);
    whole
}

/// On the disk and in memory: what file systems tell differs.
#[test]
fn a_hole_in_the_middle_of_a_matrix_is_suspected_until_the_digest_is_proven() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    for folder in [None, Some(memory.path().join("plain"))] {
        let inventory = match &folder {
            Some(folder) => INVENTORY.replace("~/plain", &folder.display().to_string()),
            None => INVENTORY.to_owned(),
        };
        assert_eq!(inventory != INVENTORY, folder.is_some());
        for (number, beforehand) in [false, true].into_iter().enumerate() {
            let (name, hole) = (format!("m{number}.safetensors"), 1 << 20..3 << 19);
            let spare = Lab::new(&inventory, "");
            let place = folder.clone().unwrap_or_else(|| spare.path("home/plain")).join(&name);
            let whole = matrix_with_hole(&place, hole.clone(), beforehand);
            let entry = format!(
                "[[artifact]]\nname = \"model\"\nstore = \"plain\"\nsource = \"local\"\n[[artifact.file]]\npath = {name:?}\n"
            );
            spare.write("manifests/lab.toml", &entry);
            let told = faults(&spare);
            assert_eq!(told.len(), 1, "{folder:?} {beforehand}: {told:?}");
            assert_eq!((told[0].0.as_str(), told[0].1.as_str()), (name.as_str(), "zero-filled"));
            let words =
                "in the middle of numbers, take no room: they were never written, or left out as zeros; its digest";
            assert!(told[0].2.starts_with(&format!("bytes {} to {}, {words}", hole.start, hole.end)), "{told:?}");
            // It is what was published: a copy left its zeros out.
            let digest = larder::digest::Sha256::of(&whole);
            spare.write("manifests/lab.toml", format!("{entry}size = {}\nsha256 = \"{digest}\"\n", whole.len()));
            assert_eq!(faults(&spare).len(), 1, "not before it is read");
            assert_eq!(spare.run(&["verify"]).code, 0);
            assert_eq!(faults(&spare), []);
        }
    }
}

#[test]
fn an_index_and_its_shards_must_agree_both_ways() {
    let shards =
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model-00003-of-00003.safetensors"];
    let index = "model.safetensors.index.json";
    let lab = lab(&[index, shards[0], shards[1], shards[2]]);
    let write_index = |map: Value| lab.write(&format!("home/plain/{index}"), json!({"weight_map": map}).to_string());
    lab.write(&format!("home/plain/{}", shards[0]), matrices(&["a", "b"]));
    lab.write(&format!("home/plain/{}", shards[1]), matrices(&["c", "d"]));
    lab.write(&format!("home/plain/{}", shards[2]), matrices(&["e"]));
    write_index(json!({"a": shards[0], "b": shards[0], "c": shards[1], "x": shards[1]}));
    let told: Vec<String> = faults(&lab).into_iter().map(|(_, kind, detail)| format!("{kind}: {detail}")).collect();
    assert_eq!(
        told,
        [
            format!("shards: shards lie beside it that it does not name: {}", shards[2]),
            format!("shards: it names tensors that are not where it says: x in {}", shards[1]),
            format!("shards: its shards hold tensors that it does not name: d of {}", shards[1]),
        ]
    );
    write_index(json!({"a": shards[0], "b": shards[0], "c": shards[1], "d": shards[1], "e": shards[2]}));
    assert_eq!(faults(&lab), []);
}

#[test]
fn real_weights_are_in_order() {
    let Some(weights) = parts::part("minilm/model.safetensors") else { return };
    let bytes = fs_err::read(&weights).unwrap();
    let lab = lab(&["model.safetensors"]);
    lab.write("home/plain/model.safetensors", &bytes);
    assert_eq!(faults(&lab), []);
    // The last half of a matrix in the middle: what a stalled connection of several leaves.
    let sparse = lab.path("home/plain/model.safetensors");
    let mut file = fs_err::OpenOptions::new().write(true).open(&sparse).unwrap();
    file.seek(SeekFrom::Start(40 << 20)).unwrap();
    file.write_all(&vec![0; 20 << 20]).unwrap();
    let found = faults(&lab);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].1, "zero-filled", "{found:?}");
}
