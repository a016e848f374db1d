//! The weight source: decoding exact to the reference, layouts, and faults named one and all.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make fixtures and fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use larder_generators::weights::decode::{Encoding, f8_e4m3};
use larder_generators::weights::{
    Checkpoint, Fault, Param, Placement, Renamed, Scoped, View, WeightSource, WeightsError, build,
};
use proptest::prelude::{Just, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};
use safetensors::Dtype;
use support::{Golden, Stored, f32_tensor, filled, source, source_with, write};

fn read(source: &dyn WeightSource, name: &str) -> Vec<f32> {
    let shape = source.shape(name).unwrap();
    let mut out = vec![0.0; shape.iter().product()];
    source.read_rows(name, 0..shape.first().copied().unwrap_or(1), &mut out).unwrap();
    out
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

fn all_codes(shape: &[usize]) -> Stored {
    (Dtype::F8_E4M3, shape.to_vec(), (0..=255).collect())
}

fn scalar(number: f32) -> Stored {
    f32_tensor(&[], &[number])
}

fn text(text: &str) -> Stored {
    (Dtype::U8, vec![text.len()], text.as_bytes().to_vec())
}

fn named<const N: usize>(tensors: [(&str, Stored); N]) -> BTreeMap<String, Stored> {
    tensors.into_iter().map(|(name, stored)| (name.to_owned(), stored)).collect()
}

#[test]
fn all_fp8_codes_decode_as_in_the_reference() {
    let golden = Golden::open("fp8");
    let plain = golden.tensor("plain").to_vec1::<f32>().unwrap();
    let decoded: Vec<f32> = (0..=255).map(f8_e4m3).collect();
    assert_eq!(bits(&decoded), bits(&plain));

    let scale = golden.tensor("scale").to_scalar::<f32>().unwrap();
    let mut scaled = vec![0.0; 256];
    Encoding::F8E4m3 { scale }.decode(&(0..=255).collect::<Vec<u8>>(), &mut scaled);
    assert_eq!(bits(&scaled), bits(&golden.tensor("scaled").to_vec1::<f32>().unwrap()));
}

#[test]
fn all_half_precision_codes_decode_exactly() {
    let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut decoded = vec![0.0; 1 << 16];
    Encoding::F16.decode(&codes, &mut decoded);
    assert_eq!(bits(&decoded), bits(&(0..=u16::MAX).map(|code| f16::from_bits(code).to_f32()).collect::<Vec<_>>()));
    Encoding::Bf16.decode(&codes, &mut decoded);
    assert_eq!(bits(&decoded), bits(&(0..=u16::MAX).map(|code| bf16::from_bits(code).to_f32()).collect::<Vec<_>>()));
}

#[test]
fn the_three_scale_conventions_give_the_reference_numbers() {
    let golden = Golden::open("fp8");
    let scale = golden.tensor("scale").to_scalar::<f32>().unwrap();
    let (plain, scaled) = (golden.tensor("plain"), golden.tensor("scaled"));
    let cases = [
        ("plain", named([("x.weight", all_codes(&[16, 16]))]), None, plain.clone()),
        (
            "scaled",
            named([
                ("x.weight", all_codes(&[16, 16])),
                ("x.scale_weight", scalar(scale)),
                ("x.scale_input", scalar(9.0)),
                ("scaled_fp8", (Dtype::F8_E4M3, vec![0], Vec::new())),
            ]),
            None,
            scaled.clone(),
        ),
        (
            "mixed, format in a tensor",
            named([
                ("x.weight", all_codes(&[16, 16])),
                ("x.weight_scale", f32_tensor(&[1], &[scale])),
                ("x.input_scale", scalar(9.0)),
                ("x.comfy_quant", text(r#"{"format":"float8_e4m3fn"}"#)),
            ]),
            None,
            scaled.clone(),
        ),
        (
            "mixed, format in the header",
            named([("x.weight", all_codes(&[16, 16])), ("x.weight_scale", scalar(scale))]),
            Some(r#"{"format_version":"1.0","layers":{"x":{"format":"float8_e4m3fn"}}}"#),
            scaled,
        ),
    ];
    for (case, tensors, metadata, expected) in cases {
        let metadata: Vec<_> = metadata.iter().map(|text| ("_quantization_metadata", *text)).collect();
        let source = source_with(&tensors, &metadata);
        assert_eq!(source.faults(), [], "{case}");
        assert_eq!(source.shapes().into_keys().collect::<Vec<_>>(), ["x.weight"], "{case}");
        assert_eq!(bits(&read(&*source, "x.weight")), bits(&expected.to_vec1().unwrap()), "{case}");
    }
}

#[test]
fn every_fault_of_the_numbers_is_named() {
    let source = source_with(
        &named([
            ("bad.weight", all_codes(&[16, 16])),
            ("bad.scale_weight", scalar(f32::NAN)),
            ("bf16.weight", (Dtype::BF16, vec![2], vec![0; 4])),
            ("four.weight", (Dtype::U8, vec![4], vec![0; 4])),
            ("four.comfy_quant", text(r#"{"format":"nvfp4"}"#)),
            ("int.weight", (Dtype::I8, vec![4], vec![0; 4])),
            ("lost.bias", (Dtype::F8_E4M3, vec![2], vec![0; 2])),
            ("lost.weight", all_codes(&[16, 16])),
            ("mx.weight", (Dtype::U8, vec![4], vec![0; 4])),
        ]),
        &[("_quantization_metadata", r#"{"layers":{"mx":{"format":"mxfp8"}}}"#)],
    );
    let name = |name: &str| name.to_owned();
    assert_eq!(
        source.faults(),
        [
            Fault::BadScale { name: name("bad.weight"), scale: name("bad.scale_weight") },
            Fault::UnknownQuantisation { name: name("four.weight"), format: name("nvfp4") },
            Fault::UnknownFormat { name: name("int.weight"), format: name("I8") },
            Fault::MissingScale { name: name("lost.weight"), scale: name("lost.scale_weight") },
            Fault::UnknownQuantisation { name: name("mx.weight"), format: name("mxfp8") },
        ]
    );
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let source = source(&named([
        ("layer.bias", f32_tensor(&[3], &[0.0; 3])),
        ("layer.weight", f32_tensor(&[2, 3], &[0.0; 6])),
        ("stray", scalar(1.0)),
        ("packed", (Dtype::U8, vec![1], vec![0])),
        ("table", (Dtype::I64, vec![1], vec![0; 8])),
    ]));
    let model = build("Example", source, Placement::cpu(), |weights| {
        weights.ignore("table");
        let layer = weights.at("layer");
        let (packed, gone) = (weights.param("packed", &[2]), weights.param("gone", &[1]));
        [layer.param("weight", &[3, 2]), layer.param("bias", &[3]), packed, gone, layer.param("g", &[])]
    });
    let Err(WeightsError::Unfit { model, faults }) = model else { panic!("the model was built") };
    assert_eq!(model, "Example");
    assert_eq!(
        faults,
        [
            Fault::Missing { name: "gone".into(), shape: vec![1] },
            Fault::Missing { name: "layer.g".into(), shape: vec![] },
            Fault::Extra { name: "stray".into(), shape: vec![] },
            Fault::Misshaped { name: "layer.weight".into(), found: vec![2, 3], needed: vec![3, 2] },
            Fault::UnknownFormat { name: "packed".into(), format: "U8".into() },
        ]
    );
    let text = WeightsError::Unfit { model, faults }.to_string();
    assert!(text.contains("gone is missing") && text.contains("layer.weight has the shape [2, 3]"), "{text}");
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (f32_tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), f32_tensor(&[1], &[5.0]));
    write(&folder.path().join("a.safetensors"), &named([("one", a), ("unlisted", scalar(0.0))]), &[]);
    write(&folder.path().join("b.safetensors"), &named([("two", b)]), &[]);
    let index = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(
        &index,
        r#"{"metadata":{"total_size":20},"weight_map":{"one":"a.safetensors","two":"b.safetensors",
        "lost":"b.safetensors","three":"c.safetensors"}}"#,
    )
    .unwrap();
    let source = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(read(&source, "one"), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read(&source, "two"), [5.0]);
    assert_eq!(
        source.faults(),
        [
            Fault::MissingShard { shard: folder.path().join("c.safetensors") },
            Fault::NotInShard { name: "lost".into(), shard: folder.path().join("b.safetensors") },
        ]
    );
    std::fs::write(&index, r#"{"weight_map":{"one":"../a.safetensors"}}"#).unwrap();
    assert!(matches!(Checkpoint::open(&index), Err(WeightsError::ShardName { .. })));
    std::fs::write(&index, "{").unwrap();
    assert!(matches!(Checkpoint::open(&index), Err(WeightsError::Index { .. })));
}

#[test]
fn a_folder_is_searched_for_the_usual_names() {
    let folder = tempfile::tempdir().unwrap();
    let Err(WeightsError::NoWeights { looked_for, .. }) = Checkpoint::open(folder.path()) else {
        panic!("an empty folder was opened")
    };
    assert!(looked_for.contains(&"diffusion_pytorch_model.safetensors.index.json".to_owned()));
    write(&folder.path().join("model.fp16.safetensors"), &named([("half", scalar(0.0))]), &[]);
    assert!(Checkpoint::open(folder.path()).unwrap().shape("half").is_some());
    write(&folder.path().join("model.safetensors"), &named([("full", scalar(0.0))]), &[]);
    assert!(Checkpoint::open(folder.path()).unwrap().shape("full").is_some());
}

#[test]
fn a_file_cut_short_or_with_a_tail_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &named([("x", f32_tensor(&[5], &[1.0; 5]))]), &[]);
    let whole = std::fs::read(&path).unwrap();
    for damaged in [&whole[..whole.len() - 1], &whole[..5], &[], &[&whole[..], &[0]].concat()] {
        std::fs::write(&path, damaged).unwrap();
        assert!(matches!(Checkpoint::open(&path), Err(WeightsError::Header { .. })), "{} bytes", damaged.len());
    }
    assert!(matches!(Checkpoint::open(folder.path().join("gone.safetensors")), Err(WeightsError::Open { .. })));
}

#[test]
fn a_prefix_hides_the_rest_of_a_single_file() {
    let inner = source(&named([
        ("model.diffusion_model.x.weight", (Dtype::I8, vec![1], vec![0])),
        ("model.diffusion_model.y", scalar(7.0)),
        ("vae.z", (Dtype::I8, vec![1], vec![0])),
    ]));
    let scoped = Scoped::new(inner, "model.diffusion_model.");
    assert_eq!(scoped.shapes().into_keys().collect::<Vec<_>>(), ["x.weight", "y"]);
    assert_eq!(read(&scoped, "y"), [7.0]);
    assert_eq!(scoped.faults().len(), 1);
}

fn renamed(stored: &str) -> Vec<(String, View)> {
    let out = |name: &str, view| (name.to_owned(), view);
    match stored {
        "qkv" => vec![
            out("q", View::parts(stored, &[(0, 3)])),
            out("k", View::parts(stored, &[(1, 3)])),
            out("v", View::parts(stored, &[(2, 3)])),
            out("vk", View::parts(stored, &[(2, 3), (1, 3)])),
        ],
        "pointwise" => vec![out("linear", View::squeezed(stored, 2))],
        "channels" => vec![out("row", View::Channels { stored: stored.into() })],
        "turned" => vec![out("straight", View::Transposed { stored: stored.into() })],
        "g" | "v" => vec![out("normed", View::WeightNorm { length: "g".into(), direction: "v".into() })],
        _ => Vec::new(),
    }
}

#[test]
fn views_split_swap_squeeze_and_normalise() {
    let qkv: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let source = Renamed::new(
        source(&named([
            ("qkv", f32_tensor(&[6, 2], &qkv)),
            ("pointwise", f32_tensor(&[2, 2, 1, 1], &[1.0, 2.0, 3.0, 4.0])),
            ("g", f32_tensor(&[2, 1, 1], &[10.0, 1.0])),
            ("v", f32_tensor(&[2, 1, 2], &[3.0, 4.0, 0.0, -2.0])),
            ("other", scalar(1.0)),
            ("channels", f32_tensor(&[3], &[7.0, 8.0, 9.0])),
            ("turned", f32_tensor(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ])),
        renamed,
    );
    assert_eq!(read(&source, "k"), qkv[4..8]);
    assert_eq!(read(&source, "vk"), [&qkv[8..12], &qkv[4..8]].concat());
    let mut middle = [0.0; 4];
    source.read_rows("vk", 1..3, &mut middle).unwrap();
    assert_eq!(middle, [10.0, 11.0, 4.0, 5.0]);
    assert_eq!(source.shape("linear").unwrap(), [2, 2]);
    assert_eq!(read(&source, "normed"), [6.0, 8.0, 0.0, -1.0]);
    assert_eq!(source.shape("straight").unwrap(), [3, 2]);
    assert_eq!(read(&source, "straight"), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    source.read_rows("straight", 1..3, &mut middle).unwrap();
    assert_eq!(middle, [2.0, 5.0, 3.0, 6.0]);
    assert_eq!((source.shape("row").unwrap(), read(&source, "row")), (vec![1, 3, 1], vec![7.0, 8.0, 9.0]));
    let names: Vec<String> = source.shapes().into_keys().collect();
    assert_eq!(names, ["k", "linear", "normed", "other", "q", "row", "straight", "v", "vk"]);
}

fn one_param(source: Arc<dyn WeightSource>, placement: Placement, shape: &[usize]) -> Param {
    build("one tensor", source, placement, |weights| weights.param("x", shape)).unwrap()
}

#[test]
fn streaming_reads_the_same_numbers_in_bounded_pieces() {
    let (rows, columns) = (3, 3 << 19);
    let bytes: Vec<u8> = (0..rows * columns).map(|i| (i % 113) as u8).collect();
    let source = source(&named([("x", (Dtype::F8_E4M3, vec![rows, columns], bytes))]));
    let kept = one_param(Arc::clone(&source), Placement::cpu(), &[rows, columns]);
    let streamed = one_param(source, Placement::cpu().streamed(), &[rows, columns]);
    assert_eq!(kept.pieces(), [Range { start: 0, end: rows }]);
    assert_eq!(streamed.pieces(), [0..2, 2..3]);
    let numbers = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for rows in streamed.pieces() {
        assert!(numbers(streamed.rows(rows.clone()).unwrap()) == numbers(kept.rows(rows).unwrap()));
    }
    assert!(numbers(streamed.gather(&[2, 0]).unwrap()) == numbers(kept.gather(&[2, 0]).unwrap()));
    assert!(streamed.gather(&[3]).is_err() && kept.gather(&[3]).is_err());
}

#[test]
fn the_reference_fill_is_the_same_in_both_languages() {
    let golden = Golden::open("fp8");
    assert_eq!(
        bits(&filled("a.weight", &[3, 5])),
        bits(&golden.tensor("fill").flatten_all().unwrap().to_vec1().unwrap())
    );
}

fn stored() -> impl Strategy<Value = (Dtype, Vec<usize>)> {
    let dtype = prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16), Just(Dtype::F8_E4M3)];
    (dtype, prop::collection::vec(1_usize..9, 0..4))
}

fn by_candle(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Vec<f32> {
    let dtype = match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => DType::F8E4M3,
    };
    let tensor = Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

proptest! {
    #[test]
    fn any_rows_of_any_tensor_decode_as_candle_decodes_them(
        (dtype, shape) in stored(), seed in any::<u64>(), from in 0.0..1.0, to in 0.0..1.0
    ) {
        let bytes = dtype.bitsize() / 8 * shape.iter().product::<usize>();
        let bytes: Vec<u8> = (1..=bytes as u64).map(|i| (i.wrapping_mul(seed | 1) >> 7) as u8).collect();
        let source = source(&named([("x", (dtype, shape.clone(), bytes.clone()))]));
        let (rows, row): (usize, usize) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let (a, b) = ((from * rows as f64) as usize, (to * rows as f64) as usize);
        let range = a.min(b)..a.max(b) + 1;
        let mut out = vec![0.0; range.len() * row];
        source.read_rows("x", range.clone(), &mut out).unwrap();
        let expected = by_candle(dtype, &shape, &bytes);
        prop_assert_eq!(bits(&out), bits(&expected[range.start * row..range.end * row]));
    }

    #[test]
    fn no_bytes_make_the_header_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let _ = Checkpoint::open(file.path());
    }
}
