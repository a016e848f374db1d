//! Layers against plain loops.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use candle_core::{Device, Tensor};
use larder_generators::layers::{Conv1d, Conv2d, ConvTranspose1d, Lengthening, Linear, Steps, attention};
use larder_generators::weights::{Placement, build};
use proptest::prelude::proptest;
use safetensors::Dtype;
use support::{assert_parity, f32_tensor, filled, source};

/// What a transposed convolution is, by definition: x[i] · w[k] is added to y[i · stride + k - padding].
fn by_definition(x: &[Vec<f32>], weight: &[f32], outputs: usize, by: Lengthening) -> Vec<f32> {
    let length = x[0].len();
    let whole = (length - 1) * by.stride + by.kernel;
    let mut y = vec![0.0; outputs * whole];
    for (input, row) in x.iter().enumerate() {
        for (i, number) in row.iter().enumerate() {
            for output in 0..outputs {
                for k in 0..by.kernel {
                    y[output * whole + i * by.stride + k] +=
                        number * weight[(input * outputs + output) * by.kernel + k];
                }
            }
        }
    }
    y.chunks(whole).flat_map(|row| row[by.padding..whole - by.padding].to_vec()).collect()
}

proptest! {
    #[test]
    fn transposed_convolution_is_what_its_definition_says(
        inputs in 1_usize..4, outputs in 1_usize..4, length in 1_usize..6, kernel in 1_usize..9, stride in 1_usize..6,
        cut in 0.0..0.5
    ) {
        let by = Lengthening { kernel, stride, padding: (cut * kernel as f64) as usize };
        let weight = filled("w.weight", &[inputs, outputs, kernel]);
        let checkpoint = [
            ("weight".to_owned(), f32_tensor(&[inputs, outputs, kernel], &weight)),
            ("bias".to_owned(), f32_tensor(&[outputs], &vec![0.0; outputs])),
        ];
        let new = |weights| ConvTranspose1d::new(inputs, outputs, by, &weights);
        let layer = build("layer", source(&checkpoint.into()), Placement::cpu(), new).unwrap();
        let x = filled("x.weight", &[inputs, length]);
        let found = layer.forward(&Tensor::from_slice(&x, (1, inputs, length), &Device::Cpu).unwrap()).unwrap();
        let rows: Vec<Vec<f32>> = x.chunks(length).map(<[f32]>::to_vec).collect();
        let expected = by_definition(&rows, &weight, outputs, by);
        let shape = (1, outputs, expected.len() / outputs);
        if shape.2 > 0 && expected.iter().any(|y| y.abs() > 1e-2) {
            assert_parity("transposed", &found, &Tensor::from_vec(expected, shape, &Device::Cpu).unwrap());
        }
    }
}

#[test]
fn a_streamed_matrix_in_several_pieces_multiplies_like_a_kept_one() {
    let (inputs, outputs) = (1 << 13, 2100);
    let codes: Vec<u8> = (0..inputs * outputs).map(|i| (i * 31 % 113) as u8).collect();
    let checkpoint = [
        ("weight".to_owned(), (Dtype::F8_E4M3, vec![outputs, inputs], codes)),
        ("bias".to_owned(), f32_tensor(&[outputs], &filled("m.bias", &[outputs]))),
    ];
    let source = source(&checkpoint.into());
    let x = Tensor::from_vec(filled("x.weight", &[2, 3, inputs]), (2, 3, inputs), &Device::Cpu).unwrap();
    let run = |placement| {
        let layer =
            build("layer", source.clone(), placement, |weights| Linear::new(inputs, outputs, &weights)).unwrap();
        layer.forward(&x).unwrap()
    };
    assert_parity("streamed linear", &run(Placement::cpu().streamed()), &run(Placement::cpu()));
}

#[test]
fn attention_in_pieces_is_attention() {
    // More scores than are held at a time: the queries are cut.
    let (length, keys, width) = (1300, 13_000, 3);
    let tensor = |name: &str, rows: usize, columns: usize| {
        let numbers = filled(name, &[rows * columns]).into_iter().map(|x| x * 15.0).collect::<Vec<f32>>();
        Tensor::from_vec(numbers, (1, 1, rows, columns), &Device::Cpu).unwrap()
    };
    let (q, k, v) = (tensor("q", length, width), tensor("k", keys, width), tensor("v", keys, width));
    let numbers: Vec<f32> = (0..length * keys).map(|i| (i * 7919 % 1013) as f32 / 200.0).collect();
    let mask = Tensor::from_vec(numbers, (1, 1, length, keys), &Device::Cpu).unwrap();
    let whole = attention(&q, &k, &v, Some(&mask)).unwrap();
    for row in [0, 1289, 1290, 1299] {
        let (q, mask) = (q.narrow(2, row, 1).unwrap(), mask.narrow(2, row, 1).unwrap());
        assert_parity("row", &whole.narrow(2, row, 1).unwrap(), &attention(&q, &k, &v, Some(&mask)).unwrap());
    }
}

#[test]
fn large_pictures_are_convolved_band_by_band() {
    let weight = filled("w.weight", &[3, 64, 3, 3]);
    let checkpoint = [("weight".to_owned(), f32_tensor(&[3, 64, 3, 3], &weight))].into();
    let weight = Tensor::from_vec(weight, (3, 64, 3, 3), &Device::Cpu).unwrap();
    for (padding, stride, dilation) in [(1, 1, 1), (0, 2, 1), (2, 1, 2), (3, 3, 1)] {
        let steps = Steps { padding, stride, dilation };
        let new = |weights| Conv2d::without_bias(64, 3, 3, steps, &weights);
        let layer = build("convolution", source(&checkpoint), Placement::cpu(), new).unwrap();
        for side in [9, 190 * stride + 1] {
            let shape = [1, 64, side, side + 2];
            let x = (Tensor::from_vec(filled("x", &shape), &shape, &Device::Cpu).unwrap() * 1e3).unwrap();
            let whole = x.conv2d(&weight, padding, stride, dilation, 1).unwrap();
            assert_parity("bands", &layer.forward(&x).unwrap(), &whole);
        }
    }
}

proptest! {
    #[test]
    fn convolution_over_sequences_is_candles(
        batch in 1_usize..3, inputs in 1_usize..5, outputs in 1_usize..5, length in 1_usize..20, kernel in 1_usize..8,
        padding in 0_usize..4, stride in 1_usize..3, dilation in 1_usize..4
    ) {
        proptest::prop_assume!(length + 2 * padding > dilation * (kernel - 1));
        let weight = filled("w.weight", &[outputs, inputs, kernel]);
        let checkpoint = [("weight".to_owned(), f32_tensor(&[outputs, inputs, kernel], &weight))].into();
        let steps = Steps { padding, stride, dilation };
        let new = |weights| Conv1d::without_bias(inputs, outputs, kernel, steps, &weights);
        let layer = build("convolution", source(&checkpoint), Placement::cpu(), new).unwrap();
        let x = Tensor::from_vec(filled("x", &[batch, inputs, length]), (batch, inputs, length), &Device::Cpu).unwrap();
        let weight = Tensor::from_vec(weight, (outputs, inputs, kernel), &Device::Cpu).unwrap();
        let right = x.conv1d(&weight, padding, stride, dilation, 1).unwrap();
        let found = layer.forward(&x).unwrap();
        assert_eq!(found.dims(), right.dims());
        let apart = (found - right).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 1e-5, "{apart}");
    }
}

#[test]
fn a_sequence_shorter_than_a_kernel_is_an_error() {
    let checkpoint = [("weight".to_owned(), f32_tensor(&[1, 1, 5], &[1.0; 5]))].into();
    let steps = Steps { padding: 1, stride: 1, dilation: 1 };
    let new = |weights| Conv1d::without_bias(1, 1, 5, steps, &weights);
    let layer = build("convolution", source(&checkpoint), Placement::cpu(), new).unwrap();
    assert!(layer.forward(&Tensor::ones((1, 1, 2), candle_core::DType::F32, &Device::Cpu).unwrap()).is_err());
}
