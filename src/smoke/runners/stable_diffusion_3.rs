//! Stable Diffusion 3.5 (Large, Large Turbo, single files): words, noise, a drawn picture; then pictures of words.

use candle_core::Tensor;
use larder_generators::pipelines::RunError;
use larder_generators::pipelines::stable_diffusion_3::{Conditions, Drawing, Files, Generator, Guidance};
use larder_generators::samplers::noise::Noise;
use larder_generators::weights::{Inspection, Placement};

use crate::smoke::runners::judging::{
    CHOSEN, Floor, apart, broken, cosine, fidelity, is_same, is_shaped, numbers, read_weights, sane, unopened,
};
use crate::smoke::runners::parts::{Family, Parts};
use crate::smoke::runners::placement;
use crate::smoke::runners::png::{self, Picture};
use crate::smoke::runners::shapes::shapes;
use crate::smoke::runners::watching::Watched;
use crate::smoke::{Check, Device, Job, Level, Need, Output, Run, Runner, Summary, Taken};

const FAMILY: Family = Family {
    settings: &[
        "transformer/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "text_encoder_3/config.json",
    ],
    single: "model.diffusion_model.",
};
/// Text encoders: their folders, and what files of their own are called.
const ENCODERS: [(&str, &[&str]); 3] =
    [("text_encoder", &["clip_l"]), ("text_encoder_2", &["clip_g"]), ("text_encoder_3", &["t5xxl"])];
/// What is drawn, the same in other words, and something else.
const WORDS: [&str; 3] =
    ["a red square on a white ground", "a red square upon white ground", "stock prices fell in autumn"];
/// Pixels along the side of a picture, at most.
const SIDE: usize = 256;
/// Numbers of a latent along the side of the picture that the autoencoder is shown.
const LATENT_SIDE: usize = 16;
const STEPS: usize = 4;
const SCALE: f64 = 4.5;

const WORDS_DIFFER: Floor = Floor {
    name: "words are told apart",
    unit: " of the text's length",
    above: 1e-2,
    basis: CHOSEN,
    wrong: "the text encoders answer different words alike",
};
const MEANING: Floor = Floor {
    name: "meaning of words",
    unit: " nearer in other words than another subject",
    above: 0.0,
    basis: "what CLIP is trained for",
    wrong: "other words for the same are no nearer than words for something else",
};
const LIKE_NOISE: Floor = Floor {
    name: "pure noise is seen",
    unit: " cosine between answer and noise",
    above: 0.4,
    basis: CHOSEN,
    wrong: "the denoiser does not see noise in pure noise",
};
const WORDS_COUNT: Floor = Floor {
    name: "words steer the denoiser",
    unit: " of the answer's length",
    above: 1e-3,
    basis: CHOSEN,
    wrong: "other words make no difference",
};
const ROUND_TRIP: Floor = Floor {
    name: "round trip of a drawing",
    unit: " dB",
    above: 18.0,
    basis: CHOSEN,
    wrong: "the autoencoder does not give the picture back",
};
const PICTURES_DIFFER: Floor = Floor {
    name: "other words, another picture",
    unit: " of the picture's length",
    above: 1e-3,
    basis: CHOSEN,
    wrong: "two prompts gave one picture",
};

/// Tries Stable Diffusion 3.5, of any size by its own settings.
pub(super) struct StableDiffusion3;

impl Runner for StableDiffusion3 {
    fn smokes(&self) -> &'static [&'static str] {
        &["stable-diffusion-3", "stable-diffusion-3-any-size"]
    }

    fn can(&self, level: Level) -> bool {
        level > Level::Structure
    }

    fn makes(&self, level: Level) -> Option<&'static str> {
        Some(if level == Level::Generate { "a picture" } else { "a drawing after the autoencoder" })
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
        let run = watched.run(|| if job.level == Level::Component { trial.parts() } else { trial.pictures() });
        match run {
            Err(RunError::Stopped) => Run::default(),
            Err(error) => only(broken(job, &error)),
            Ok(run) => Run { taken, ..run },
        }
    }
}

/// Where everything lies, and what of it is of other artifacts.
fn files(job: &Job<'_>, parts: Parts) -> (Files, Vec<Taken>) {
    let encoders = ENCODERS.map(|(part, names)| (part, parts.loose(job, part, names)));
    let taken = parts.taken(job, &encoders);
    let text_encoders = encoders.map(|(_, file)| file);
    (Files { folder: parts.folder, checkpoint: parts.checkpoint, text_encoders }, taken)
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
        let words = self.generator.encode(&WORDS)?;
        self.judge_words(&words, &mut run)?;
        self.watched.tell("looking at noise", 1, 3);
        self.judge_denoiser([&words[0], &words[2]], &mut run)?;
        self.watched.tell("copying a drawing", 2, 3);
        self.judge_autoencoder(&mut run)?;
        run.checks.extend(self.placement.inspection.as_ref().map(|inspection| read_weights(self.job, inspection)));
        Ok(run)
    }

    fn judge_words(&self, words: &[Conditions], run: &mut Run) -> Result<(), RunError> {
        let texts = words.iter().map(|one| numbers(&one.text)).collect::<candle_core::Result<Vec<_>>>()?;
        let wholes = words.iter().map(|one| numbers(&one.pooled)).collect::<candle_core::Result<Vec<_>>>()?;
        run.checks.extend(sane(self.job, "text", &texts[0]));
        run.checks.extend(sane(self.job, "pooled text", &wholes[0]));
        run.checks.push(WORDS_DIFFER.check(self.job, apart(&texts[0], &texts[2])));
        let nearer = cosine(&wholes[0], &wholes[1]) - cosine(&wholes[0], &wholes[2]);
        run.checks.push(MEANING.check(self.job, nearer));
        run.summaries.push(Summary::of("text", &texts[0]));
        run.summaries.push(Summary::of("pooled text", &wholes[0]));
        Ok(())
    }

    /// At the highest noise level there is nothing but noise: the velocity from it to the picture is nearly the noise.
    fn judge_denoiser(&self, words: [&Conditions; 2], run: &mut Run) -> Result<(), RunError> {
        let (_, shape) = self.size()?;
        let noise = Noise::new(self.job.seed).tensor(shape.as_slice(), &self.placement.device)?;
        let both = |of: fn(&Conditions) -> &Tensor| Tensor::cat(&words.map(of), 0);
        let times = Tensor::from_vec(vec![1000_f32; 2], 2, &self.placement.device)?;
        let shown = Tensor::cat(&[&noise, &noise], 0)?.to_dtype(self.placement.dtype)?;
        let transformer = self.generator.denoiser()?;
        let answer = transformer.forward(&shown, &times, &both(|one| &one.text)?, &both(|one| &one.pooled)?)?;
        run.checks.push(is_shaped(self.job, "denoiser's answer", answer.dims(), shown.dims()));
        let [one, other] = [numbers(&answer.narrow(0, 0, 1)?)?, numbers(&answer.narrow(0, 1, 1)?)?];
        run.checks.extend(sane(self.job, "denoiser's answer", &one));
        run.checks.push(LIKE_NOISE.check(self.job, cosine(&one, &numbers(&noise)?)));
        run.checks.push(WORDS_COUNT.check(self.job, apart(&one, &other)));
        run.summaries.push(Summary::of("answer to noise", &one));
        Ok(())
    }

    fn judge_autoencoder(&self, run: &mut Run) -> Result<(), RunError> {
        let (side, shape) = self.size()?;
        let side = LATENT_SIDE * (side / shape[3]);
        let drawn = shapes(side);
        let vae = self.generator.autoencoder()?;
        let shown = Tensor::from_vec(drawn.clone(), (1, 3, side, side), &self.placement.device)?;
        let (latent, _) = vae.encode(&shown.to_dtype(self.placement.dtype)?)?;
        run.checks.push(is_shaped(self.job, "latent", latent.dims(), &[1, shape[1], LATENT_SIDE, LATENT_SIDE]));
        run.checks.extend(sane(self.job, "latent", &numbers(&latent)?));
        let back = numbers(&vae.decode(&latent)?)?;
        run.checks.push(ROUND_TRIP.check(self.job, fidelity(&back, &drawn)));
        run.summaries.push(Summary::of("latent of the drawing", &numbers(&latent)?));
        run.summaries.push(Summary::of("copy of the drawing", &back));
        let colours: Vec<f32> = back.iter().map(|number| number / 2.0 + 0.5).collect();
        let picture = Picture { width: side, height: side, colours: &colours, rate: 1 };
        self.keep(["drawing.png", "a drawing after the autoencoder"], &picture, run)
    }

    /// The level generate.
    fn pictures(&self) -> Result<Run, RunError> {
        let mut run = Run::default();
        self.watched.tell("reading words", 0, 1);
        let words = self.generator.encode(&[WORDS[0], WORDS[2], ""])?;
        let (side, _) = self.size()?;
        let drawn = self.picture([&words[0], &words[2]], STEPS, "a picture")?;
        run.checks.push(is_shaped(self.job, "picture", drawn.dims(), &[1, 3, side, side]));
        let drawn = numbers(&drawn)?;
        run.checks.extend(sane(self.job, "picture", &drawn));
        let picture = Picture { width: side, height: side, colours: &drawn, rate: 1 };
        self.keep(["picture.png", WORDS[0]], &picture, &mut run)?;
        let one = numbers(&self.picture([&words[0], &words[2]], 1, "in one step")?)?;
        let again = numbers(&self.picture([&words[0], &words[2]], 1, "the same again")?)?;
        let other = numbers(&self.picture([&words[1], &words[2]], 1, "of other words")?)?;
        run.checks.push(is_same(self.job, "picture", [&one, &again]));
        run.checks.push(PICTURES_DIFFER.check(self.job, apart(&one, &other)));
        run.checks.extend(self.placement.inspection.as_ref().map(|inspection| read_weights(self.job, inspection)));
        run.summaries = [("picture", &drawn), ("picture in one step", &one)]
            .map(|(name, numbers)| Summary::of(name, numbers))
            .into();
        Ok(run)
    }

    fn picture(&self, [wanted, unwanted]: [&Conditions; 2], steps: usize, what: &str) -> Result<Tensor, RunError> {
        let (_, shape) = self.size()?;
        let noise = Noise::new(self.job.seed).tensor(shape.as_slice(), &self.placement.device)?;
        // Turbo models have learnt to do without guidance.
        let scale = if self.is_turbo() { 0.0 } else { SCALE };
        let guidance = Guidance { wanted, unwanted: Some(unwanted), scale };
        self.generator.draw(&Drawing { guidance, steps, noise: &noise }, &mut self.watched.progress(what))
    }

    fn is_turbo(&self) -> bool {
        let names = self.job.files.keys().map(String::as_str).chain([self.job.artifact]);
        names.into_iter().any(|name| name.to_lowercase().contains("turbo"))
    }

    /// The side of a picture in pixels, and the shape of its noise: the largest that the model makes and smoke wants.
    fn size(&self) -> Result<(usize, [usize; 4]), RunError> {
        let sizes = (1..=SIDE).rev().map(|side| (side, self.generator.noise_shape(side, side)));
        let found = sizes.into_iter().find_map(|(side, shape)| Some((side, shape.ok()?)));
        found.ok_or_else(|| RunError::Size { what: format!("any square of up to {SIDE} pixels") })
    }

    fn keep(&self, [name, title]: [&str; 2], picture: &Picture<'_>, run: &mut Run) -> Result<(), RunError> {
        let path = self.job.out.join(name);
        png::write(&path, picture).map_err(candle_core::Error::from)?;
        run.outputs.push(Output { title: title.to_owned(), path });
        Ok(())
    }
}
