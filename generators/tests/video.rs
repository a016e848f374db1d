//! Convolution over videos against Wan's.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use candle_core::Tensor;
use larder_generators::layers::Steps;
use larder_generators::video::{CausalConv3d, Time};
use larder_generators::weights::{Placement, build};
use support::{Golden, assert_parity, source};

/// The recorded layers: name, movement over frames, kernel and movement over pictures.
fn layers() -> Vec<(&'static str, Time, (usize, Steps))> {
    let space = |padding, stride| Steps { padding, stride, dilation: 1 };
    vec![
        ("cube", Time::causal(3), (3, space(1, 1))),
        ("frames", Time::causal(3), (1, space(0, 1))),
        ("halved", Time { kernel: 3, stride: 2, before: 0 }, (1, space(0, 1))),
        ("point", Time::causal(1), (1, space(0, 1))),
        ("strided", Time { kernel: 3, stride: 2, before: 2 }, (3, space(1, 2))),
        ("long", Time::causal(5), (3, space(1, 1))),
    ]
}

/// One layer of the record: its tensors lie below its name, beside those of the others.
fn layer(golden: &Golden, name: &str, time: Time, space: (usize, Steps)) -> CausalConv3d {
    let own = golden.checkpoint().into_iter().filter(|(tensor, _)| tensor.starts_with(&format!("{name}.")));
    let new = |weights: larder_generators::weights::Weights| CausalConv3d::new(3, 5, time, space, &weights.at(name));
    build(name, source(&own.collect()), Placement::cpu(), new).unwrap()
}

#[test]
fn it_is_wans_with_frames_before_the_first_and_without() {
    let golden = Golden::open("causal_conv3d");
    for (name, time, space) in layers() {
        let layer = layer(&golden, name, time, space);
        for case in ["a", "b"] {
            let at = |what: &str| golden.tensor(&format!("{what}.{name}.{case}"));
            assert_parity(name, &layer.forward(&at("video"), None).unwrap(), &at("out"));
            // Where nothing can be before the first, the record has nothing.
            for past in (1..3).filter(|_| time.before > 0) {
                let found = layer.forward(&at("video"), Some(&at(&format!("past{past}")))).unwrap();
                assert_parity(name, &found, &at(&format!("out{past}")));
            }
        }
    }
}

#[test]
fn a_video_in_parts_is_the_video_as_a_whole() {
    let golden = Golden::open("causal_conv3d");
    for (name, time, space) in layers().into_iter().filter(|(_, time, _)| time.stride == 1) {
        let layer = layer(&golden, name, time, space);
        let video = golden.tensor(&format!("video.{name}.a"));
        let (mut past, mut parts) = (None, Vec::new());
        for (start, frames) in [(0, 1), (1, 1), (2, 2), (4, 1)] {
            let part = video.narrow(2, start, frames).unwrap();
            parts.push(layer.forward(&part, past.as_ref()).unwrap());
            past = layer.remembered(&part, past.as_ref()).unwrap();
        }
        assert_parity(name, &Tensor::cat(&parts, 2).unwrap(), &golden.tensor(&format!("out.{name}.a")));
        assert_eq!(past.map(|past| past.dim(2).unwrap()), (time.before > 0).then_some(time.before));
    }
}

#[test]
fn no_output_knows_a_later_frame() {
    let golden = Golden::open("causal_conv3d");
    let (name, time, space) = layers().remove(0);
    let layer = layer(&golden, name, time, space);
    let video = golden.tensor("video.cube.a");
    let changed = Tensor::cat(&[&video.narrow(2, 0, 3).unwrap(), &(video.narrow(2, 3, 2).unwrap() * 2.0).unwrap()], 2);
    let numbers = |video: &Tensor, start, frames| {
        let made = layer.forward(video, None).unwrap().narrow(2, start, frames).unwrap();
        made.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let changed = changed.unwrap();
    assert_eq!(numbers(&video, 0, 3), numbers(&changed, 0, 3));
    assert_ne!(numbers(&video, 3, 1), numbers(&changed, 3, 1));
}

#[test]
fn too_few_frames_and_too_long_a_past_are_errors() {
    let golden = Golden::open("causal_conv3d");
    let at = |name: &str| {
        let (_, time, space) = layers().into_iter().find(|(known, ..)| *known == name).unwrap();
        layer(&golden, name, time, space)
    };
    let video = golden.tensor("video.cube.a");
    let text = |found: candle_core::Result<Tensor>| found.unwrap_err().to_string();
    let few = text(at("halved").forward(&video.narrow(2, 0, 2).unwrap(), None));
    assert!(few.contains("a convolution over 2 frames has a kernel of 3"), "{few}");
    let long = text(at("cube").forward(&video, Some(&video.narrow(2, 0, 3).unwrap())));
    assert!(long.contains("3 frames are before the first, where 2 can be"), "{long}");
}
