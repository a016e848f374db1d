//! Sentence embedding: sentences of like meaning must be nearer to each other than to another one.

use std::ops::ControlFlow;

use larder_generators::pipelines::Progress;
use larder_generators::pipelines::sentence_embedding::Embedder;
use larder_generators::weights::Inspection;

use crate::fsio::{self, WriteOptions};
use crate::smoke::runners::judging::{
    folder_of, not_run, read_weights, repeatable, sane, unopened, unwritten, weight_bytes,
};
use crate::smoke::runners::placement;
use crate::smoke::runners::watching::stoppable;
use crate::smoke::{Check, Job, Level, Need, Output, Run, Runner, Summary};

/// The first two mean nearly the same.
const SENTENCES: [&str; 3] = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."];
/// The pair that is alike must be this much nearer than the other ones.
const NEARER: f32 = 0.2;

/// Tries models of sentence-transformers.
pub(super) struct Sentences;

impl Runner for Sentences {
    fn smokes(&self) -> &'static [&'static str] {
        &["sentence-embedding"]
    }

    fn can(&self, level: Level) -> bool {
        // Directions are all that it makes.
        level == Level::Component
    }

    fn makes(&self, level: Level) -> Option<&'static str> {
        (level == Level::Component).then_some("similarities")
    }

    fn need(&self, job: &Job<'_>) -> Need {
        let weights = weight_bytes(job);
        let memory = 2 * weights + (256 << 20);
        Need { memory, device_memory: if job.device == crate::smoke::Device::Cuda { memory } else { 0 } }
    }

    fn run(&self, job: &Job<'_>) -> Run {
        let one = |check: Check| Run { checks: vec![check], ..Run::default() };
        let placement = match placement(job, &self.need(job)) {
            Ok(placement) => placement.inspected(Inspection::default()),
            Err(check) => return one(*check),
        };
        let folder = match folder_of(job, "config.json") {
            Ok(folder) => folder,
            Err(check) => return one(*check),
        };
        (job.told)("reading headers", 0, 1);
        let embedder = match Embedder::open(folder, placement.clone()) {
            Ok(embedder) => embedder,
            Err(error) => return one(unopened(job, &error)),
        };
        let mut watch = |progress: Progress| {
            (job.told)("embedding sentences", progress.done as u64, progress.of as u64);
            if (job.stopped)() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let work = || Ok((embedder.embed(&SENTENCES, &mut watch)?, embedder.embed(&SENTENCES[..1], &mut watch)?));
        match stoppable(job, &placement.stop, work) {
            Ok((found, again)) => {
                let read = placement.inspection.as_ref().map(|inspection| read_weights(job, inspection));
                judged(job, &found, found[0] == again[0], read)
            }
            Err(error) => not_run(job, &error),
        }
    }
}

fn judged(job: &Job<'_>, found: &[Vec<f32>], same: bool, read: Option<Check>) -> Run {
    let mut checks = sane(job, "embedding", &found.concat());
    checks.push(repeatable(job, same));
    checks.extend(read);
    let [alike, first, second] = [(0, 1), (0, 2), (1, 2)].map(|(a, b)| cosine(&found[a], &found[b]));
    checks.push(is_nearer(job, alike, first.max(second), [first, second]));
    let summaries = vec![Summary::of("embeddings of three sentences", &found.concat())];
    let similarities = [(0, 1, alike), (0, 2, first), (1, 2, second)];
    let kept = serde_json::json!({ "sentences": SENTENCES, "similarities": similarities, "embeddings": found });
    let told = similarities.map(|(a, b, how)| format!("{how:.4}  {} – {}\n", SENTENCES[a], SENTENCES[b])).concat();
    let mut run = Run { checks, summaries, ..Run::default() };
    for (name, title, text) in [
        ("sentences.txt", "three sentences and how alike they are", told),
        ("sentences.json", "the same with the embeddings", kept.to_string()),
    ] {
        let path = job.out.join(name);
        match fsio::write_atomic(&path, text.as_bytes(), &WriteOptions::default()) {
            Ok(()) => run.outputs.push(Output { title: title.to_owned(), path }),
            Err(error) => run.checks.push(unwritten(job, &error)),
        }
    }
    run
}

fn is_nearer(job: &Job<'_>, alike: f32, other: f32, both: [f32; 2]) -> Check {
    let measured = format!("{alike:.4} for the like pair, {:.4} and {:.4} for the others", both[0], both[1]);
    let fine = alike > other + NEARER;
    let wrong = if fine { Vec::new() } else { vec!["what means the same is not nearer".to_owned()] };
    let wanted = format!("nearer by {NEARER}");
    let basis = "larder's choice: the genuine all-MiniLM-L6-v2 has 0.666, 0.105 and 0.141";
    Check::of("meaning", measured, [&wanted, basis], wrong).at(job.level)
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32
}
