//! Files of `torch.save`: the same numbers as in torch, and nothing is ever executed.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make fixtures and fail loudly")]

mod support;

use std::error::Error as _;
use std::path::{Path, PathBuf};

use larder_generators::weights::{Checkpoint, Fault, PickleError, TorchError, WeightSource, WeightsError};
use proptest::prelude::{any, prop, proptest};
use support::Golden;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch_files").join(name)
}

fn refusal(file: &Path) -> TorchError {
    match Checkpoint::open(file) {
        Err(WeightsError::Torch { source, .. }) => source,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{} was opened", file.display()),
    }
}

#[test]
fn numbers_are_those_of_torch_with_and_without_a_key_above() {
    let golden = Golden::open("torch_files");
    for (file, above) in [("plain.pth", ""), ("nested.pt", "generator.")] {
        let checkpoint = Checkpoint::open(path(file)).unwrap();
        let mut shapes = checkpoint.shapes();
        let counter = format!("{above}1.num_batches_tracked");
        let format = "I64".to_owned();
        assert_eq!(checkpoint.faults(), [Fault::UnknownFormat { name: counter.clone(), format }]);
        shapes.remove(&counter).unwrap();
        assert_eq!(shapes.len(), 12, "{file}");
        for (name, shape) in shapes {
            let expected = golden.tensor(name.strip_prefix(above).unwrap());
            assert_eq!(shape, expected.dims(), "{name}");
            let mut found = vec![0.0; shape.iter().product()];
            checkpoint.read_rows(&name, 0..shape.first().copied().unwrap_or(1), &mut found).unwrap();
            assert_eq!(found, expected.flatten_all().unwrap().to_vec1::<f32>().unwrap(), "{name}");
        }
    }
}

#[test]
fn what_is_not_a_state_dict_is_refused_by_name() {
    let TorchError::Pickle(PickleError::Global { name }) = refusal(&path("evil.pth")) else { panic!("not refused") };
    assert_eq!(name, "posix.system");
    assert!(matches!(refusal(&path("transposed.bin")), TorchError::Tensor { name } if name == "x"));
    // What torch wrote before 2020 begins with the pickle of a magic number.
    let legacy = tempfile::Builder::new().suffix(".pth").tempfile().unwrap();
    std::fs::write(legacy.path(), b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.").unwrap();
    assert!(matches!(refusal(legacy.path()), TorchError::NotZip(_)));
    let error = Checkpoint::open(path("evil.pth")).err().unwrap();
    assert!(error.to_string().ends_with("evil.pth is not a readable torch checkpoint"));
    assert!(error.source().unwrap().source().unwrap().to_string().contains("posix.system"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = std::fs::read(path("plain.pth")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.pth");
    for length in (0..whole.len()).step_by(37).chain([whole.len() - 1]) {
        std::fs::write(&cut, &whole[..length]).unwrap();
        assert!(Checkpoint::open(&cut).is_err(), "{length} of {} bytes were enough", whole.len());
    }
}

proptest! {
    #[test]
    fn no_change_makes_the_reader_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = std::fs::read(path("plain.pth")).unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let changed = folder.path().join("changed.pth");
        std::fs::write(&changed, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(&changed) {
            for (name, shape) in checkpoint.shapes() {
                let mut numbers = vec![0.0; shape.iter().product()];
                let _ = checkpoint.read_rows(&name, 0..shape.first().copied().unwrap_or(1), &mut numbers);
            }
        }
    }
}
