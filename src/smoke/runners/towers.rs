//! CLIP: drawn pictures, each of which must be found by its own caption, and captions by their pictures.

use std::path::PathBuf;

use candle_core::Tensor;
use larder_generators::pipelines::RunError;
use larder_generators::pipelines::matching::{Files, Matcher};
use larder_generators::text::Padded;
use larder_generators::weights::{Inspection, Placement};

use crate::smoke::runners::judging::{causes, folder_of, lacking, not_run, numbers, read_weights, sane, unopened};
use crate::smoke::runners::placement;
use crate::smoke::runners::watching::stoppable;
use crate::smoke::{Check, Device, Job, Level, Need, Run, Runner, Summary};

/// A drawn picture: its caption, the caption's words as CLIP's byte pairs number them, its colour, and whether a place
/// from -1 to 1 in width and height is inside of what is drawn.
struct Drawing {
    caption: &'static str,
    words: [u32; 3],
    colour: [f32; 3],
    inside: fn(f32, f32) -> bool,
}

/// Every CLIP of OpenAI and of open_clip has this vocabulary; open_clip's files come without it.
const START: u32 = 49406;
const END: u32 = 49407;

const DRAWINGS: [Drawing; 4] = [
    Drawing {
        caption: "a red square",
        words: [320, 736, 3999],
        colour: [0.9, 0.05, 0.05],
        inside: |x, y| x.abs() < 0.55 && y.abs() < 0.55,
    },
    Drawing {
        caption: "a blue circle",
        words: [320, 1746, 7117],
        colour: [0.05, 0.1, 0.9],
        inside: |x, y| x.hypot(y) < 0.6,
    },
    Drawing {
        caption: "a green triangle",
        words: [320, 1901, 14615],
        colour: [0.05, 0.65, 0.1],
        inside: |x, y| y < 0.6 && y > 2.0 * x.abs() - 0.6,
    },
    Drawing {
        caption: "a black cross",
        words: [320, 1449, 3417],
        colour: [0.02, 0.02, 0.02],
        inside: |x, y| x.abs().min(y.abs()) < 0.17 && x.abs().max(y.abs()) < 0.65,
    },
];

/// Tries CLIP ViT-L/14 and DFN5B ViT-H-14, and everything of their form.
pub(super) struct Towers;

impl Runner for Towers {
    fn smokes(&self) -> &'static [&'static str] {
        &["clip", "dfn5b-clip"]
    }

    fn can(&self, level: Level) -> bool {
        // An encoder makes nothing by itself.
        level == Level::Component
    }

    fn makes(&self, _: Level) -> Option<&'static str> {
        None
    }

    fn need(&self, job: &Job<'_>) -> Need {
        // Weights are streamed; on a GPU too, where the largest piece and the activations take this much.
        let device_memory = if job.device == Device::Cuda { 2 << 30 } else { 0 };
        Need { memory: 3 << 29, device_memory }
    }

    fn run(&self, job: &Job<'_>) -> Run {
        let one = |check: Check| Run { checks: vec![check], ..Run::default() };
        let placement = match placement(job, &self.need(job)) {
            Ok(placement) => placement.streamed().inspected(Inspection::default()),
            Err(check) => return one(*check),
        };
        (job.told)("reading headers", 0, 3);
        let opened = files(job).and_then(|files| {
            let matcher = Matcher::open(&files, placement.clone()).map_err(|error| Box::new(unopened(job, &error)))?;
            let ids = captions(job, &matcher, &placement)?;
            Ok((matcher, ids))
        });
        let (matcher, ids) = match opened {
            Ok(opened) => opened,
            Err(check) => return one(*check),
        };
        let work = || compared(job, &matcher, &ids, &placement);
        stoppable(job, &placement.stop, work).unwrap_or_else(|error| not_run(job, &error))
    }
}

fn files(job: &Job<'_>) -> Result<Files, Box<Check>> {
    let here = |name: &str| job.files.get(name).cloned();
    let any = |names: &[&str]| names.iter().find_map(|name| here(name));
    let wanted = |path: Option<PathBuf>, what: &str| path.ok_or_else(|| Box::new(lacking(job, what)));
    if let Some(config) = here("open_clip_config.json") {
        let names =
            ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"];
        return Ok(Files::OpenClip { config, weights: wanted(any(&names), "open_clip_pytorch_model.bin")? });
    }
    Ok(Files::Transformers {
        config: wanted(here("config.json"), "config.json")?,
        weights: wanted(any(&["model.safetensors", "pytorch_model.bin"]), "model.safetensors")?,
        preprocessor: here("preprocessor_config.json"),
    })
}

/// The captions' tokens (4, longest), read by the model's own tokenizer where it has one.
fn captions(job: &Job<'_>, matcher: &Matcher, placement: &Placement) -> Result<Tensor, Box<Check>> {
    let failed = |error: &dyn std::error::Error| {
        let wanted = ["the tokens of CLIP's vocabulary", "the vocabulary of the first CLIP, which all have"];
        let text = causes(error);
        Box::new(Check::of("captions", "they cannot be tokenized", wanted, vec![text]).at(job.level))
    };
    let known = |drawing: &Drawing| {
        let mut row = vec![START];
        row.extend(drawing.words);
        row.push(END);
        row.resize(matcher.longest(), 0);
        row
    };
    let has_own = ["tokenizer.json", "vocab.json"].iter().any(|name| job.files.contains_key(*name));
    if !has_own {
        let ids: Vec<u32> = DRAWINGS.iter().flat_map(known).collect();
        let ids = Tensor::from_vec(ids, (DRAWINGS.len(), matcher.longest()), &placement.device);
        return ids.map_err(|error| failed(&error));
    }
    let padded = Padded::clip(folder_of(job, "config.json")?).map_err(|error| failed(&error))?;
    let padded = Padded { length: matcher.longest(), ..padded };
    let texts = DRAWINGS.map(|drawing| drawing.caption);
    padded.tensors(&texts, &placement.device).map(|(ids, _)| ids).map_err(|error| failed(&error))
}

fn compared(job: &Job<'_>, matcher: &Matcher, ids: &Tensor, placement: &Placement) -> Result<Run, RunError> {
    let drawn: Vec<f32> = DRAWINGS.iter().flat_map(|drawing| picture(drawing, matcher.side())).collect();
    let drawn = Tensor::from_vec(drawn, (DRAWINGS.len(), 3, matcher.side(), matcher.side()), &placement.device)?;
    (job.told)("looking at four pictures", 1, 3);
    let pictures = matcher.pictures(&drawn)?;
    (job.told)("reading four captions", 2, 3);
    let texts = matcher.texts(ids)?;
    let fit: Vec<Vec<f32>> = pictures.matmul(&texts.t()?)?.to_dtype(candle_core::DType::F32)?.to_vec2()?;
    let [pictures, texts] = [numbers(&pictures)?, numbers(&texts)?];
    let mut checks = sane(job, "direction of pictures", &pictures);
    checks.extend(sane(job, "direction of captions", &texts));
    checks.extend(placement.inspection.as_ref().map(|inspection| read_weights(job, inspection)));
    checks.push(ranked(job, &fit));
    let summaries = vec![Summary::of("four pictures", &pictures), Summary::of("four captions", &texts)];
    Ok(Run { checks, summaries, ..Run::default() })
}

/// Colours of a picture on white, (3, side, side), from 0 to 1.
fn picture(drawing: &Drawing, side: usize) -> Vec<f32> {
    let place = |i: usize| (i as f32 + 0.5) / side as f32 * 2.0 - 1.0;
    let of = |colour: f32| {
        let pixel = move |i: usize| if (drawing.inside)(place(i % side), place(i / side)) { colour } else { 1.0 };
        (0..side * side).map(pixel)
    };
    drawing.colour.into_iter().flat_map(of).collect()
}

/// Whether each picture's nearest caption is its own, and each caption's nearest picture.
fn ranked(job: &Job<'_>, fit: &[Vec<f32>]) -> Check {
    let best = |row: &mut dyn Iterator<Item = f32>| {
        let largest = row.enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        largest.map_or(0, |(place, _)| place)
    };
    let mut wrong = Vec::new();
    for (i, drawing) in DRAWINGS.iter().enumerate() {
        let caption = best(&mut fit[i].iter().copied());
        if caption != i {
            let other = DRAWINGS[caption].caption;
            wrong.push(format!("the picture of {} is called {other}", drawing.caption));
        }
        let picture = best(&mut fit.iter().map(|row| row[i]));
        if picture != i {
            wrong.push(format!("{} is looked for in the picture of {}", drawing.caption, DRAWINGS[picture].caption));
        }
    }
    let measured = format!("{} of {} right", 2 * DRAWINGS.len() - wrong.len(), 2 * DRAWINGS.len());
    let basis = "what the pictures show; random weights have a chance of one in four at each";
    Check::of("captions of drawn shapes", measured, ["all", basis], wrong).at(job.level)
}
