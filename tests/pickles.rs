//! Pickles of real torch, numpy and Python, followed and never run: what they hold, and what the bad ones would do.
//!
//! The files are made by `tests/pickles/make.py`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use larder::weights::{Kind, Tensor, WeightsError, check, check_file, unsafe_text_pickle};

/// What each bad file must be told to be.
const BAD: &[(&str, &str)] = &[
    ("after-harmless.pkl", "imports system from posix"),
    ("behind-many.zip", "many.pkl: it has more than 65536 pickles, and those behind were not followed"),
    ("broken-after.pkl", "imports system from os"),
    ("bytes-as-name.pkl", "imports something whose name is computed"),
    ("call-of-a-result.pkl", "calls something that is no import"),
    ("changed-class.pkl", "changes OrderedDict of collections"),
    ("compressed.pth", "compressed or encrypted, so that its instructions cannot be read"),
    ("computed-name.pkl", "imports something whose name is computed"),
    ("deep.zip", "archives are nested too deeply to be followed"),
    ("deflated-0.zip", "weights/object.pkl: it imports system from posix"),
    ("deflated-4.zip", "weights/object.pkl: it imports system from posix"),
    ("dotted.pkl", "imports _utils.sys.modules from torch"),
    ("dup-and-pop.pkl", "imports system from os"),
    ("escaped.pkl", "imports system from os"),
    ("extension.pkl", "extension code 7"),
    ("framed.pkl", "imports system from os"),
    ("getattr.pkl", "imports getattr from builtins"),
    ("hidden-pickle.pth", "archive/notes.txt: it imports system from posix"),
    ("inner.zip", "object.pkl: it imports system from posix"),
    ("inst.pkl", "imports system from os"),
    ("instance.pkl", "imports Inside from __main__"),
    ("legacy.pth", "imports eval from __builtin__"),
    ("load-from-bytes.pkl", "imports _load_from_bytes from torch.storage"),
    ("loads.pkl", "imports loads from _pickle"),
    ("memo.pkl", "imports system from os"),
    ("namespace.pt", "imports Namespace from argparse"),
    ("nested.pth", "data.pkl: it imports system from posix"),
    ("newobj-ex.pkl", "imports Popen from subprocess"),
    ("obj.pkl", "imports system from os"),
    ("object.tar", "pickle: it imports system from posix"),
    ("objects-compressed.npz", "b.npy: it imports system from posix"),
    ("objects.npy", "imports system from posix"),
    ("objects.npz", "a.npy: it imports system from posix"),
    ("protocol-9.pkl", "protocol 9"),
    ("second-pickle.pth", "constants.pkl: it imports system from posix"),
    ("storages.tar", "storages: it imports system from posix"),
    ("stored-0.zip", "weights/object.pkl: it imports system from posix"),
    ("stored-4.zip", "weights/object.pkl: it imports system from posix"),
    ("string-escape.pkl", "imports something whose name is computed"),
    ("string.pkl", "imports system from os"),
    ("system-protocol-0.bin", "imports system from posix"),
    ("system-protocol-1.bin", "imports system from posix"),
    ("system-protocol-2.bin", "imports system from posix"),
    ("system-protocol-3.bin", "imports system from posix"),
    ("system-protocol-4.bin", "imports system from posix"),
    ("system-protocol-5.bin", "imports system from posix"),
    ("tensors.tar", "tensors: it imports system from posix"),
    ("twice.pth", "two members"),
    ("two-ends.pth", "two ends"),
    ("unknown-instruction.pkl", "instruction 0xfe"),
    ("unnamed.zip", "weights: it imports system from posix"),
    ("whole-module.pt", "imports Linear from torch.nn.modules.linear"),
    ("zip.pth", "data.pkl: it imports system from posix"),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickles").join(name)
}

fn names(name: &str) -> Vec<String> {
    let entries = fs_err::read_dir(folder(name)).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// As a program does that was given a file by name: text pickles have no magic number.
fn judge(path: &Path) -> Result<Kind, WeightsError> {
    let kind = check_file(path)?;
    if kind != Kind::Unknown {
        return Ok(kind);
    }
    let mut file = fs_err::File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    unsafe_text_pickle(&mut file, len).map_or(Ok(kind), Err)
}

fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    let kind = check_file(&folder("good").join(name)).unwrap();
    kind.tensors().into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
}

fn bytes_of(name: &str, tensor: &Tensor) -> Vec<u8> {
    let bytes = fs_err::read(folder("good").join(name)).unwrap();
    bytes[tensor.place.start as usize..tensor.place.end as usize].to_vec()
}

#[test]
fn every_bad_pickle_is_told_by_what_it_would_do() {
    assert_eq!(names("bad"), BAD.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, expected) in BAD {
        let error = judge(&folder("bad").join(name)).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn every_good_pickle_is_harmless() {
    for name in names("good") {
        let kind = judge(&folder("good").join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = match Path::new(&name).extension().unwrap().to_str().unwrap() {
            "pkl" if ["0", "1"].iter().any(|old| name.contains(&format!("protocol-{old}"))) => Kind::Unknown,
            "pkl" => Kind::Pickle,
            "npz" | "zip" => Kind::Zip,
            "tar" => Kind::Tar,
            "npy" => Kind::Numpy,
            _ => {
                assert!(matches!(kind, Kind::Torch(_)), "{name}: {kind:?}");
                continue;
            }
        };
        assert_eq!(kind, expected, "{name}");
    }
}

#[test]
fn tensors_of_torch_have_their_names_shapes_and_bytes_in_every_format() {
    let formats = names("good").into_iter().filter(|name| name.starts_with("zip") || name.starts_with("legacy"));
    let mut count = 0;
    for name in formats {
        count += 1;
        let found = tensors(&name);
        assert_eq!(found.len(), 15, "{name}: {:?}", found.keys());
        let shape = |tensor: &str| (found[tensor].dtype.clone(), found[tensor].shape.clone());
        assert_eq!(shape("model.0.weight"), ("F32".to_owned(), vec![3, 5]), "{name}");
        assert_eq!(shape("model.1.num_batches_tracked"), ("I64".to_owned(), vec![]), "{name}");
        assert_eq!(shape("half"), ("F16".to_owned(), vec![2, 3]), "{name}");
        assert_eq!(shape("bf16"), ("BF16".to_owned(), vec![7]), "{name}");
        assert_eq!(shape("transposed"), ("F32".to_owned(), vec![6, 4]), "{name}");
        assert_eq!(shape("parameter"), ("F32".to_owned(), vec![2, 2]), "{name}");
        assert_eq!(shape("empty"), ("F32".to_owned(), vec![0, 4]), "{name}");
        let ints: Vec<u8> = (0..6_i32).flat_map(i32::to_le_bytes).collect();
        assert_eq!(bytes_of(&name, &found["ints"]), ints, "{name}");
        // Rows 1 and 2, columns 2 to 4, of six columns: from element 8 to element 16.
        let part: Vec<u8> = (8..17).flat_map(|number: u8| f32::from(number).to_le_bytes()).collect();
        assert_eq!(bytes_of(&name, &found["part"]), part, "{name}");
    }
    assert_eq!(count, 7);
    let float8 = tensors("float8.pt");
    assert_eq!((float8["w"].dtype.as_str(), float8["w"].shape.as_slice()), ("F8_E4M3", &[3, 4][..]));
    assert_eq!(bytes_of("float8.pt", &float8["w"]), [0x38; 12]);
    assert!(tensors("optimizer.ckpt").contains_key("model.weight"));
}

#[test]
fn every_truncation_of_a_file_of_torch_is_found() {
    for name in ["zip.pth", "legacy.pth", "float8.pt"] {
        let bytes = fs_err::read(folder("good").join(name)).unwrap();
        for len in (1..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
            let cut = &bytes[..len];
            let found = check(&mut std::io::Cursor::new(cut), len as u64);
            assert!(!matches!(found, Ok(Kind::Torch(_))), "{name} cut at {len}: {found:?}");
        }
        let longer = [&bytes[..], b"more"].concat();
        let found = check(&mut std::io::Cursor::new(&longer), longer.len() as u64);
        assert!(found.is_err(), "{name} with more behind it: {found:?}");
    }
}

#[test]
fn a_damaged_pickle_in_an_archive_is_found_by_its_checksum() {
    let mut bytes = fs_err::read(folder("good").join("zip.pth")).unwrap();
    let at = bytes.windows(4).position(|window| window == b"bf16").unwrap();
    bytes[at] = b'c';
    let error = check(&mut std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap_err();
    assert!(error.to_string().contains("its checksum is wrong"), "{error}");
}
