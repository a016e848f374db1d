//! Stable Audio Open (diffusers' folders, single files): words, a chord, noise; then sounds of words.

use std::f64::consts::PI;

use candle_core::Tensor;
use larder_generators::models::stable_audio::Conditions;
use larder_generators::pipelines::RunError;
use larder_generators::pipelines::stable_audio::{Files, Generator, Request};
use larder_generators::samplers::noise::Noise;
use larder_generators::weights::{Inspection, Placement};

use crate::smoke::runners::judging::{
    CHOSEN, Floor, apart, broken, cosine, is_same, is_shaped, numbers, read_weights, sane, unopened, wave_fidelity,
};
use crate::smoke::runners::mel::{self, chord};
use crate::smoke::runners::parts::{Family, Parts};
use crate::smoke::runners::watching::Watched;
use crate::smoke::runners::{placement, wav};
use crate::smoke::{Check, Device, Job, Level, Need, Output, Run, Runner, Summary, Taken};

const FAMILY: Family = Family {
    settings: &[
        "transformer/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "projection_model/config.json",
    ],
    single: "model.model.",
};
const WORDS: [&str; 2] = ["rain on a tin roof", "a dog barks twice"];
/// Two low chords with no tone in common, in hertz.
const CHORDS: [[f32; 3]; 2] = [[110.0, 138.59, 164.81], [233.08, 293.66, 349.23]];
const CHORD_SECONDS: f32 = 0.5;
/// Seconds of a sound, at most.
const SECONDS: f64 = 1.0;
const STEPS: usize = 4;
/// Steps of the sounds that are only compared.
const FEW: usize = 2;
const SCALE: f64 = 7.0;

const WORDS_DIFFER: Floor = Floor {
    name: "words are told apart",
    unit: " of the text's length",
    above: 1e-2,
    basis: CHOSEN,
    wrong: "the text encoder answers different words alike",
};
const LIKE_NOISE: Floor = Floor {
    name: "noise on a chord is seen",
    unit: " cosine between answer and noise",
    above: 0.3,
    basis: CHOSEN,
    wrong: "the denoiser does not see the noise that lies on a chord",
};
const ROUND_TRIP: Floor = Floor {
    name: "round trip of a chord",
    unit: " more like its own chord than like another (cosines of loudness)",
    above: 0.7,
    basis: CHOSEN,
    wrong: "the autoencoder does not give the chord back",
};
const SAME_WAVE: Floor = Floor {
    name: "wave of a chord",
    unit: " dB (SI-SDR)",
    above: 0.0,
    basis: CHOSEN,
    wrong: "the tones are there, the wave is another",
};
const WORDS_COUNT: Floor = Floor {
    name: "words steer the denoiser",
    unit: " of the answer's length",
    above: 1e-4,
    basis: CHOSEN,
    wrong: "other words make no difference",
};
const SOUNDS_DIFFER: Floor = Floor {
    name: "other words, another sound",
    unit: " of the sound's length",
    above: 1e-4,
    basis: CHOSEN,
    wrong: "two prompts gave one sound",
};

/// Tries Stable Audio Open, of any size by its own settings.
pub(super) struct StableAudio;

impl Runner for StableAudio {
    fn smokes(&self) -> &'static [&'static str] {
        &["stable-audio", "stable-audio-any-size"]
    }

    fn can(&self, level: Level) -> bool {
        level > Level::Structure
    }

    fn makes(&self, level: Level) -> Option<&'static str> {
        Some(if level == Level::Generate { "a sound" } else { "a chord after the autoencoder" })
    }

    fn need(&self, job: &Job<'_>) -> Need {
        // Weights are streamed: what remains are activations, and the largest tensors on their way.
        let device_memory = if job.device == Device::Cuda { 4 << 30 } else { 0 };
        Need { memory: 2 << 30, device_memory }
    }

    fn run(&self, job: &Job<'_>) -> Run {
        let only = |check: Check| Run { checks: vec![check], ..Run::default() };
        let placement = match placement(job, &self.need(job)) {
            Ok(placement) => placement.streamed().inspected(Inspection::default()),
            Err(check) => return only(*check),
        };
        let parts = match FAMILY.find(job) {
            Ok(parts) => parts,
            Err(check) => return only(*check),
        };
        let watched = Watched::new(job, &placement);
        watched.tell("reading headers", 0, 1);
        let (files, taken) = files(job, parts);
        let only = |check: Check| Run { taken: taken.clone(), ..only(check) };
        let generator = match Generator::open(files, placement.clone()) {
            Ok(generator) => generator,
            Err(error) => return only(unopened(job, &error)),
        };
        let trial = Trial { job, generator: &generator, placement: &placement, watched: &watched };
        let run = watched.run(|| if job.level == Level::Component { trial.parts() } else { trial.sounds() });
        match run {
            Err(RunError::Stopped) => Run::default(),
            Err(error) => only(broken(job, &error)),
            Ok(run) => Run { taken, ..run },
        }
    }
}

/// Where everything lies, and what of it is of other artifacts.
fn files(job: &Job<'_>, parts: Parts) -> (Files, Vec<Taken>) {
    let text_encoder = parts.loose(job, "text_encoder", &["t5-base", "t5_base"]);
    let taken = parts.taken(job, &[("text_encoder", text_encoder.clone())]);
    (Files { folder: parts.folder, checkpoint: parts.checkpoint, text_encoder }, taken)
}

/// One generator being tried.
struct Trial<'a> {
    job: &'a Job<'a>,
    generator: &'a Generator,
    placement: &'a Placement,
    watched: &'a Watched<'a>,
}

impl Trial<'_> {
    /// The level component.
    fn parts(&self) -> Result<Run, RunError> {
        let mut run = Run::default();
        self.watched.tell("reading words", 0, 3);
        let words = self.generator.encode(&WORDS, self.seconds())?;
        let texts = words.iter().map(|one| numbers(&one.text)).collect::<candle_core::Result<Vec<_>>>()?;
        run.checks.extend(sane(self.job, "text", &texts[0]));
        run.checks.push(WORDS_DIFFER.check(self.job, apart(&texts[0], &texts[1])));
        run.summaries.push(Summary::of("text", &texts[0]));
        self.watched.tell("copying a chord", 1, 3);
        let latent = self.judge_autoencoder(&mut run)?;
        self.watched.tell("looking at noise", 2, 3);
        self.judge_denoiser([&words[0], &words[1]], &latent, &mut run)?;
        run.checks.extend(self.placement.inspection.as_ref().map(|inspection| read_weights(self.job, inspection)));
        Ok(run)
    }

    /// Gives a chord to the autoencoder and back; returns its latent.
    fn judge_autoencoder(&self, run: &mut Run) -> Result<Tensor, RunError> {
        let rate = self.generator.sampling_rate() as u32;
        let [mut own, mut other] = CHORDS.map(|tones| chord(rate, tones, CHORD_SECONDS));
        let length = own.len() / self.generator.hop() * self.generator.hop();
        if length == 0 {
            return Err(RunError::Size { what: format!("{CHORD_SECONDS} s at {rate} samples a second") });
        }
        own.truncate(length);
        other.truncate(length);
        let channels = self.generator.channels();
        let shown = Tensor::from_vec(own.repeat(channels), (1, channels, length), &self.placement.device)?;
        let vae = self.generator.autoencoder()?;
        let (latent, _) = vae.encode(&shown.to_dtype(self.placement.dtype)?)?;
        run.checks.extend(sane(self.job, "latent", &numbers(&latent)?));
        let back = vae.decode(&latent)?;
        run.checks.push(is_shaped(self.job, "chord", back.dims(), shown.dims()));
        let back = numbers(&back)?;
        let heard = loudness(rate, &back[..length.min(back.len())]);
        let like = |right: &[f32]| cosine(&heard, &loudness(rate, right));
        run.checks.push(ROUND_TRIP.check(self.job, like(&own) - like(&other)));
        run.checks.push(SAME_WAVE.check(self.job, wave_fidelity(&back[..length.min(back.len())], &own)));
        run.summaries.push(Summary::of("latent of a chord", &numbers(&latent)?));
        run.summaries.push(Summary::of("copy of a chord", &back));
        self.keep("chord.wav", "a chord of three tones after the autoencoder", &back, run)?;
        Ok(latent)
    }

    /// Near the end of the schedule, what the denoiser predicts (the velocity) is nearly the noise.
    fn judge_denoiser(&self, words: [&Conditions; 2], latent: &Tensor, run: &mut Run) -> Result<(), RunError> {
        let shape = self.generator.latent_shape();
        let (level, data) = (self.generator.schedule().sigma_min, self.generator.schedule().sigma_data);
        let noise = Noise::new(self.job.seed).tensor(shape.as_slice(), &self.placement.device)?;
        // The chord, again and again, for as long as the model always computes.
        let copies = shape[2].div_ceil(latent.dim(2)?.max(1));
        let clean = latent.repeat((1, 1, copies))?.narrow(2, 0, shape[2])?;
        let noised = ((clean + (noise.to_dtype(self.placement.dtype)? * level)?)? / level.hypot(data))?;
        let shown = Tensor::cat(&[&noised, &noised], 0)?;
        let times = Tensor::from_vec(vec![(level.atan() / PI * 2.0) as f32; 2], 2, &self.placement.device)?;
        let both = |of: fn(&Conditions) -> &Tensor| Tensor::cat(&words.map(of), 0);
        let transformer = self.generator.denoiser()?;
        let answer = transformer.forward(&shown, &times, &both(|one| &one.text)?, &both(|one| &one.durations)?)?;
        run.checks.push(is_shaped(self.job, "denoiser's answer", answer.dims(), shown.dims()));
        let [one, other] = [numbers(&answer.narrow(0, 0, 1)?)?, numbers(&answer.narrow(0, 1, 1)?)?];
        run.checks.extend(sane(self.job, "denoiser's answer", &one));
        run.checks.push(LIKE_NOISE.check(self.job, cosine(&one, &numbers(&noise)?)));
        run.checks.push(WORDS_COUNT.check(self.job, apart(&one, &other)));
        run.summaries.push(Summary::of("answer to noise", &one));
        Ok(())
    }

    /// The level generate.
    fn sounds(&self) -> Result<Run, RunError> {
        let mut run = Run::default();
        self.watched.tell("reading words", 0, 1);
        let words = self.generator.encode(&WORDS, self.seconds())?;
        let made = self.sound(&words[0], STEPS, "a sound")?;
        let samples = (self.seconds() * self.generator.sampling_rate() as f64) as usize;
        run.checks.push(is_shaped(self.job, "sound", made.dims(), &[1, self.generator.channels(), samples]));
        let made = numbers(&made)?;
        run.checks.extend(sane(self.job, "sound", &made));
        self.keep("sound.wav", WORDS[0], &made, &mut run)?;
        let one = numbers(&self.sound(&words[0], FEW, "in few steps")?)?;
        let again = numbers(&self.sound(&words[0], FEW, "the same again")?)?;
        let other = numbers(&self.sound(&words[1], FEW, "of other words")?)?;
        run.checks.push(is_same(self.job, "sound", [&one, &again]));
        run.checks.push(SOUNDS_DIFFER.check(self.job, apart(&one, &other)));
        run.checks.extend(self.placement.inspection.as_ref().map(|inspection| read_weights(self.job, inspection)));
        run.summaries =
            [("sound", &made), ("sound in few steps", &one)].map(|(name, numbers)| Summary::of(name, numbers)).into();
        Ok(run)
    }

    fn sound(&self, words: &Conditions, steps: usize, what: &str) -> Result<Tensor, RunError> {
        let noise = Noise::new(self.job.seed);
        let request = Request { prompt: WORDS[0], seconds: self.seconds(), steps, scale: SCALE, noise };
        self.generator.play(words, &request, &mut self.watched.progress(what))
    }

    fn seconds(&self) -> f64 {
        let longest = self.generator.latent_shape()[2] * self.generator.hop();
        SECONDS.min(longest as f64 / self.generator.sampling_rate().max(1) as f64)
    }

    /// Writes channel after channel.
    fn keep(&self, name: &str, title: &str, sound: &[f32], run: &mut Run) -> Result<(), RunError> {
        let path = self.job.out.join(name);
        let length = (sound.len() / self.generator.channels().max(1)).max(1);
        let channels: Vec<&[f32]> = sound.chunks_exact(length).collect();
        let rate = self.generator.sampling_rate() as u32;
        wav::write(&path, rate, &channels).map_err(candle_core::Error::from)?;
        run.outputs.push(Output { title: title.to_owned(), path });
        Ok(())
    }
}

/// How loud low tones are, moment by moment: fine in frequency, up to 800 Hz.
///
/// Not its logarithm: what an autoencoder adds very softly where silence was would count as much as the chord.
fn loudness(rate: u32, sound: &[f32]) -> Vec<f32> {
    let n_fft = (rate as usize / 16).next_power_of_two().max(16);
    let settings = mel::Settings {
        sampling_rate: rate,
        num_mels: 24,
        n_fft,
        hop_size: n_fft / 4,
        win_size: n_fft,
        fmin: 50.0,
        fmax: Some(800.0),
    };
    settings.spectrogram(sound).into_iter().map(f32::exp).collect()
}
