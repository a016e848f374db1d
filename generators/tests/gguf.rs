//! GGUF files: decoding exact to gguf's own, formats named one and all, and headers that lie.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make fixtures and fail loudly")]

mod support;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use larder_generators::weights::{Fault, Gguf, GgufError, Value, WeightSource, WeightsError};
use proptest::prelude::{any, proptest};
use support::Golden;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_kinds").join(name)
}

fn read(source: &dyn WeightSource, name: &str) -> Vec<f32> {
    let shape = source.shape(name).unwrap();
    let mut out = vec![0.0; shape.iter().product()];
    source.read_rows(name, 0..shape[0], &mut out).unwrap();
    out
}

/// Opens `bytes` as a file of their own.
fn opened(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sha256-0123");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(path).map_err(|error| match error {
        WeightsError::Gguf { source, .. } => source,
        other => panic!("{other}"),
    })
}

const KINDS: [&str; 14] =
    ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"];

#[test]
fn every_format_is_decoded_as_gguf_does() {
    let (golden, gguf) = (Golden::open("gguf_kinds"), Gguf::open(file("kinds.gguf")).unwrap());
    assert_eq!(gguf.shapes().len(), KINDS.len());
    assert_eq!(gguf.faults(), []);
    for name in KINDS {
        let expected = golden.tensor(name);
        assert_eq!(gguf.shape(name).unwrap(), expected.dims(), "{name}");
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let scale = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        // The order of the last addition is free, so a number may differ in its last bit.
        for (found, expected) in read(&gguf, name).iter().zip(&expected) {
            assert!((found - expected).abs() <= scale * f32::EPSILON, "{name}: {found} is not {expected}");
        }
        let row = expected.len() / gguf.shape(name).unwrap()[0];
        let mut second = vec![0.0; row];
        gguf.read_rows(name, 1..2, &mut second).unwrap();
        assert_eq!(second, read(&gguf, name)[row..2 * row], "{name}: a row by itself");
    }
}

#[test]
fn formats_that_are_not_decoded_are_named_one_and_all() {
    let gguf = Gguf::open(file("others.gguf")).unwrap();
    let unknown = |fault: &Fault| match fault {
        Fault::UnknownFormat { name, format } => (name.clone(), format.clone()),
        other => panic!("{other}"),
    };
    let named: Vec<(String, String)> = gguf.faults().iter().map(unknown).collect();
    assert_eq!(named.len(), 18);
    assert!(named.iter().all(|(name, format)| name == format), "{named:?}");
    assert_eq!(read(&gguf, "F32"), [1.0; 3], "the others are read all the same");
    assert!(gguf.read_rows("IQ4_NL", 0..1, &mut [0.0; 32]).is_err());
}

#[test]
fn metadata_of_all_types_are_read() {
    let gguf = Gguf::open(file("kinds.gguf")).unwrap();
    let value = |key: &str| gguf.metadata().get(key).unwrap().clone();
    assert_eq!(value("test.yes"), Value::Bool(true));
    assert_eq!(value("test.negative"), Value::Int(-5));
    assert_eq!(value("test.half"), Value::Float(0.5));
    let texts = ["a", "ü", ""].map(|text| Value::Text(text.to_owned()));
    assert_eq!(value("test.nested"), Value::Array(texts.to_vec()));
    assert_eq!(value("general.architecture").text(), Some("none"));
}

#[test]
fn blocks_are_passed_on_as_they_are() {
    let gguf = Gguf::open(file("kinds.gguf")).unwrap();
    let x = Tensor::new(&[[0.5_f32; 256]], &Device::Cpu).unwrap();
    for name in ["Q4_K", "Q6_K"] {
        let packed = gguf.packed(name, &Device::Cpu).unwrap().unwrap();
        let found = packed.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found, read(&gguf, name));
        assert_eq!(x.dim(1).unwrap(), packed.shape().dims()[1]);
    }
    assert!(gguf.packed("F16", &Device::Cpu).is_none());
}

#[test]
fn a_file_that_was_cut_off_names_the_tensors_beyond_its_end() {
    let whole = std::fs::read(file("kinds.gguf")).unwrap();
    let cut = opened(&whole[..whole.len() - 1200]).unwrap();
    let lost: Vec<Fault> = cut.faults();
    assert!(lost.len() > 1, "{lost:?}");
    assert!(lost.iter().all(|fault| matches!(fault, Fault::OutsideFile { .. })), "{lost:?}");
    let last = opened(&whole[..100]).err().unwrap();
    assert!(matches!(last, GgufError::Short { .. }), "{last}");
}

#[test]
fn headers_that_lie_are_refused() {
    let whole = std::fs::read(file("kinds.gguf")).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        opened(&changed)
    };
    assert_eq!(with(0, b"<htm").err(), Some(GgufError::Magic));
    assert_eq!(with(4, &1_u32.to_le_bytes()).err(), Some(GgufError::Version { version: 1 }));
    assert_eq!(with(4, &3_u32.to_be_bytes()).err(), Some(GgufError::Version { version: 3 << 24 }));
    for at in [8, 16, 24] {
        let refused = with(at, &u64::MAX.to_le_bytes()).err();
        assert!(refused.is_some(), "the count at {at}");
    }
    assert_eq!(opened(&[]).err(), Some(GgufError::Short { at: 0 }));
}

/// A header with one value and the given tensors (name, sizes, type, offset), and `data` behind it.
fn made(value: (&str, u32), tensors: &[(&str, &[u64], u32, u64)], data: usize) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    text(&mut bytes, value.0);
    bytes.extend([4_u32.to_le_bytes(), value.1.to_le_bytes()].concat());
    for (name, sizes, kind, offset) in tensors {
        text(&mut bytes, name);
        bytes.extend((sizes.len() as u32).to_le_bytes());
        bytes.extend(sizes.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + data, 7);
    bytes
}

#[test]
fn places_that_cannot_be_are_named() {
    let gguf = opened(&made(
        ("k", 0),
        &[
            ("fine", &[8], 0, 0),
            ("unaligned", &[8], 0, 40),
            ("overlapping", &[8], 0, 0),
            ("half a block", &[48], 8, 64),
            ("new format", &[32], 99, 96),
            ("endless", &[u64::MAX, u64::MAX], 0, 128),
            ("beyond", &[1000], 0, 160),
        ],
        192,
    ))
    .unwrap();
    let named: Vec<String> = gguf.faults().iter().map(ToString::to_string).collect();
    assert_eq!(
        named,
        [
            "beyond reaches beyond the end of the file",
            "endless is at a place where it cannot be",
            "half a block is at a place where it cannot be",
            "new format is stored as the ggml type 99, which is not supported",
            "overlapping is at a place where it cannot be",
            "unaligned is at a place where it cannot be",
        ]
    );
    assert_eq!(opened(&made(("general.alignment", 24), &[], 0)).err(), Some(GgufError::Alignment { alignment: 24 }));
    let twice = opened(&made(("k", 0), &[("a", &[8], 0, 0), ("a", &[8], 0, 32)], 64)).err();
    assert_eq!(twice, Some(GgufError::Twice { name: "a".to_owned() }));
    let five = opened(&made(("k", 0), &[("a", &[1, 1, 1, 1, 1], 0, 0)], 64)).err();
    assert!(matches!(five, Some(GgufError::Malformed { what: "tensor shape", .. })), "{five:?}");
}

proptest! {
    #[test]
    fn no_change_of_a_header_makes_it_panic(at in 0_usize..1200, byte in any::<u8>(), end in 0_usize..6272) {
        let mut bytes = std::fs::read(file("kinds.gguf")).unwrap();
        bytes[at] = byte;
        bytes.truncate(end.max(at));
        if let Ok(gguf) = opened(&bytes) {
            for (name, shape) in gguf.shapes() {
                if gguf.fault_of(&name).is_none() {
                    let mut out = vec![0.0; shape.iter().product()];
                    let rows = shape.first().copied().unwrap_or(1);
                    gguf.read_rows(&name, 0..rows, &mut out).unwrap();
                }
            }
        }
    }
}
