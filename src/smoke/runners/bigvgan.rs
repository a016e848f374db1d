//! BigVGAN: two chords become spectrograms, these sounds, and each sound's spectrogram must be that of its chord.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;
use larder_generators::models::bigvgan::{Config, Vocoder};
use larder_generators::models::settings::Settings as _;
use larder_generators::weights::{Checkpoint, Inspection, Placement, Scoped, WeightSource, build, without_weight_norm};

use crate::smoke::runners::judging::{broke, causes, is_nearer, is_same, numbers, read_weights, sane, unfit};
use crate::smoke::runners::mel::{self, chord, distance};
use crate::smoke::runners::watching::stoppable;
use crate::smoke::runners::{placement, wav};
use crate::smoke::{Check, Job, Level, Need, Output, Run, Runner, Summary};

/// What is known to hold the weights, in the order of preference.
const WEIGHTS: [&str; 3] = ["bigvgan_generator.safetensors", "bigvgan_generator.pt", "model.safetensors"];
/// Two chords with no tone in common, in hertz.
const CHORDS: [[f32; 3]; 2] = [[220.0, 277.18, 329.63], [466.16, 587.33, 698.46]];
const SECONDS: f32 = 0.3;

/// Tries BigVGAN v2.
pub(super) struct BigVgan;

impl Runner for BigVgan {
    fn smokes(&self) -> &'static [&'static str] {
        &["bigvgan"]
    }

    fn can(&self, level: Level) -> bool {
        // A vocoder makes nothing by itself: this is all there is to try.
        level == Level::Component
    }

    fn makes(&self, level: Level) -> Option<&'static str> {
        (level == Level::Component).then_some("a chord")
    }

    fn need(&self, job: &Job<'_>) -> Need {
        let weights = weights(job).and_then(|path| fs_err::metadata(path).ok()).map_or(0, |found| found.len());
        // Weights as they are, folded, and the activations of a third of a second.
        let memory = 2 * weights + (1 << 30);
        Need { memory, device_memory: if job.device == crate::smoke::Device::Cuda { memory } else { 0 } }
    }

    fn run(&self, job: &Job<'_>) -> Run {
        let checks = |checks| Run { checks, ..Run::default() };
        let placement = match placement(job, &self.need(job)) {
            Ok(placement) => placement.inspected(Inspection::default()),
            Err(check) => return checks(vec![*check]),
        };
        (job.told)("reading headers", 0, 4);
        let (settings, vocoder) = match open(job, placement.clone()) {
            Ok(opened) => opened,
            Err(check) => return checks(vec![*check]),
        };
        if (job.stopped)() {
            return Run::default();
        }
        let run = stoppable(job, &placement.stop, || round_trip(job, &settings, &vocoder, &placement));
        run.unwrap_or_else(|error| match placement.stop.is_stopped() {
            true => Run::default(),
            false => checks(vec![broke(job, &error)]),
        })
    }
}

fn weights(job: &Job<'_>) -> Option<PathBuf> {
    WEIGHTS.iter().find_map(|name| job.files.get(*name)).cloned()
}

fn open(job: &Job<'_>, placement: Placement) -> Result<(mel::Settings, Vocoder), Box<Check>> {
    let lacking = |what: String| {
        let wanted = ["config.json with a spectrogram's settings, and weights", "NVIDIA's files"];
        Box::new(Check::of("files", "they cannot be read", wanted, vec![what]).at(job.level))
    };
    let path = job.files.get("config.json").ok_or_else(|| lacking("config.json is not here".to_owned()))?;
    let text = fs_err::read(path).map_err(|error| lacking(error.to_string()))?;
    let config: Config = serde_json::from_slice(&text).map_err(|error| lacking(format!("config.json: {error}")))?;
    let settings: mel::Settings =
        serde_json::from_slice(&text).map_err(|error| lacking(format!("config.json: {error}")))?;
    config.check().map_err(|error| lacking(format!("config.json: {error}")))?;
    if !settings.make_sense() || config.num_mels != settings.num_mels {
        return Err(lacking("config.json: its spectrogram makes no sense".to_owned()));
    }
    let path = weights(job).ok_or_else(|| lacking(format!("none of {} is here", WEIGHTS.join(", "))))?;
    let checkpoint: Arc<dyn WeightSource> = Arc::new(Checkpoint::open(path).map_err(|error| lacking(causes(&error)))?);
    let is_nested = checkpoint.shapes().keys().any(|name| name.starts_with("generator."));
    let checkpoint = if is_nested { Arc::new(Scoped::new(checkpoint, "generator.")) } else { checkpoint };
    let source = Arc::new(without_weight_norm(checkpoint));
    let vocoder = build("BigVGAN", source, placement, |weights| Vocoder::new(&config, &weights));
    Ok((settings, vocoder.map_err(|error| Box::new(unfit(job, &error)))?))
}

fn round_trip(
    job: &Job<'_>,
    settings: &mel::Settings,
    vocoder: &Vocoder,
    placement: &Placement,
) -> candle_core::Result<Run> {
    let right = CHORDS.map(|tones| settings.spectrogram(&chord(settings.sampling_rate, tones, SECONDS)));
    let frames = right[0].len() / settings.num_mels;
    let sound = |spectrogram: &Vec<f32>| {
        let shape = (1, settings.num_mels, frames);
        let shown = Tensor::from_vec(spectrogram.clone(), shape, &placement.device)?;
        numbers(&vocoder.forward(&shown)?)
    };
    (job.told)("making a sound", 1, 4);
    let wave = sound(&right[0])?;
    let again = if (job.stopped)() { wave.clone() } else { sound(&right[0])? };
    (job.told)("making another sound", 2, 4);
    let other = sound(&right[1])?;
    (job.told)("listening to them", 3, 4);
    let heard = [&wave, &other].map(|wave| settings.spectrogram(wave));
    let mut checks = sane(job, "sound", &wave);
    checks.push(is_as_long(job, wave.len(), frames * settings.hop_size));
    checks.push(is_same(job, "sound", [&wave, &again]));
    let far = |sound_of: usize, from: usize| distance(&heard[sound_of], &right[from]);
    checks.push(is_nearer(job, "round trip", [far(0, 0), far(0, 1)]));
    checks.push(is_nearer(job, "round trip of another chord", [far(1, 1), far(1, 0)]));
    checks.extend(placement.inspection.as_ref().map(|inspection| read_weights(job, inspection)));
    let path = job.out.join("chord.wav");
    wav::write(&path, settings.sampling_rate, &[&wave])?;
    let outputs = vec![Output { title: "a chord of three tones".to_owned(), path }];
    let summaries = [("sound of a chord", &wave), ("sound of another chord", &other)];
    let summaries = summaries.map(|(name, wave)| Summary::of(name, wave)).into();
    Ok(Run { checks, outputs, summaries, ..Run::default() })
}

fn is_as_long(job: &Job<'_>, found: usize, right: usize) -> Check {
    let wrong = if found == right { Vec::new() } else { vec!["another length".to_owned()] };
    let wanted = format!("{right}");
    Check::of("length", format!("{found} samples"), [&wanted, "frames times hop_size"], wrong).at(job.level)
}
