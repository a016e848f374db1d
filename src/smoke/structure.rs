//! The level *structure*: everything that can be known without reading weights.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::observe::Sighting;
use crate::smoke::compare::{ByName, compare, overlap};
use crate::smoke::expected::{List, Wanted, candidates};
use crate::smoke::quantised::{Formats, named, scales};
use crate::smoke::units::{Unit, units};
use crate::smoke::{Check, Level, Outcome, Verdict, folder, gguf_model, lora, tokenizer};
use crate::stores::FileState;
use crate::verify::{self, Fault, FaultKind, Headers};
use crate::weights::{Kind, Tensor, check_file};

const SOURCE: &str = "names and shapes of the reference class; no real file has confirmed them yet";

/// Judges several artifacts at once, each with the manifest's key `smoke`; the order stays.
///
/// `stopped` is asked between artifacts; those that were not reached have no verdict.
pub fn structure_of_all(
    sightings: &[Sighting<'_>],
    smoke: &(dyn Fn(&str) -> Option<String> + Sync),
    stopped: &(dyn Fn() -> bool + Sync),
) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || {
        while !stopped() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(sighting) = sightings.get(index) else { return };
            let verdict = structure(sighting, smoke(&sighting.artifact.name).as_deref());
            done.lock().unwrap_or_else(PoisonError::into_inner).push((index, verdict));
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(sightings.len());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, verdict)| verdict).collect()
}

/// Judges one artifact by names, lengths, headers, settings and tokenizers; no weights are read but a few pages.
pub fn structure(sighting: &Sighting<'_>, smoke: Option<&str>) -> Verdict {
    let began = Instant::now();
    let checks = checks(sighting, smoke);
    let mut verdict = Verdict::of(&sighting.artifact.name, smoke, Level::Structure, checks);
    verdict.seconds = began.elapsed().as_secs_f64();
    verdict
}

fn checks(sighting: &Sighting<'_>, smoke: Option<&str>) -> Vec<Check> {
    let files = files(sighting);
    if files.outcome == Outcome::NotPossible {
        return vec![files];
    }
    let headers = Headers::of(sighting);
    let mut checks = vec![files];
    checks.extend(by_headers(sighting, &headers));
    checks.extend(folder::checks(&headers));
    checks.extend(tokenizer::checks(&headers));
    let lists = candidates(smoke);
    let lists: Vec<(List, Vec<Wanted>)> = lists.into_iter().map(|list| (list, list.tensors())).collect();
    let is_pipeline = headers.at("model_index.json").is_some();
    for unit in units(&headers).into_iter().chain(matched(sighting)) {
        let must_be_known = is_pipeline && is_main_part(&unit.path);
        checks.extend(of_unit(&unit, &lists, must_be_known));
    }
    for entry in headers.iter() {
        if let (true, Some(Kind::Gguf(header))) = (is_gguf(entry.file), entry.sound()) {
            checks.extend(gguf_model::checks(entry.file.path.as_str(), header, smoke));
        }
    }
    checks
}

/// The parts of a pipeline that larder has lists of, where it knows the pipeline.
fn is_main_part(path: &str) -> bool {
    let folder = path.split_once('/').map_or("", |(folder, _)| folder);
    ["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"].contains(&folder)
}

fn is_gguf(file: &crate::artifact::File) -> bool {
    file.path.file_name().ends_with(".gguf") || file.role.as_deref() == Some("model")
}

/// Whether everything is here that the lock names.
fn files(sighting: &Sighting<'_>) -> Check {
    let verdict = verify::glance(std::slice::from_ref(sighting));
    let all = sighting.observed.files.len() + sighting.matches.len();
    let here = sighting.observed.files.iter().filter(|state| matches!(state, FileState::Present(_))).count();
    let here = here + sighting.matches.len();
    let measured = format!("{here} of {all} are here");
    let wrong: Vec<String> = verdict.faults.iter().map(told).collect();
    let check = Check::of("files", measured, ["all, each of its length", "the lock"], wrong);
    // What is not here at all cannot be judged; `plan` and `status` say that it is missing.
    if here == 0 { check.ending(Outcome::NotPossible) } else { check }
}

fn told(fault: &Fault) -> String {
    match &fault.path {
        Some(path) => format!("{path}: {}", fault.detail),
        None => fault.detail.clone(),
    }
}

/// What headers, pickles and samples say; what was proven by its digest is not looked at again.
fn by_headers(sighting: &Sighting<'_>, headers: &Headers<'_>) -> Vec<Check> {
    let faults = verify::faults_by_headers(sighting, headers);
    let of =
        |is: &dyn Fn(FaultKind) -> bool| faults.iter().filter(|fault| is(fault.kind)).map(told).collect::<Vec<_>>();
    let is_blank = |kind| kind == FaultKind::ZeroFilled;
    let is_unsafe = |kind| kind == FaultKind::UnsafePickle;
    let count = |wrong: &[String]| format!("{} faults", wrong.len());
    let [broken, blank, bad] = [of(&|kind| !is_blank(kind) && !is_unsafe(kind)), of(&is_blank), of(&is_unsafe)];
    vec![
        Check::of(
            "headers",
            count(&broken),
            ["they cover their files; shards agree with their index", "the formats"],
            broken,
        ),
        Check::of(
            "written",
            count(&blank),
            ["no hole and no page of zeros where weights should be", "64 pages of each file"],
            blank,
        ),
        Check::of("pickles", count(&bad), ["only imports that build tensors", "larder's own list of them"], bad),
    ]
}

/// Files that only a pattern knows.
fn matched(sighting: &Sighting<'_>) -> Vec<Unit> {
    let unit = |found: &crate::artifact::Found| {
        let tensors = check_file(&found.path).ok()?.tensors();
        let path = found.path.file_name()?.to_string_lossy().into_owned();
        (!tensors.is_empty()).then_some(Unit { path, tensors, formats: Formats::default() })
    };
    sighting.matches.iter().filter_map(unit).collect()
}

fn of_unit(unit: &Unit, lists: &[(List, Vec<Wanted>)], must_be_known: bool) -> Vec<Check> {
    if lora::is_lora(&unit.tensors) {
        let bases: Vec<List> = lists.iter().map(|(list, _)| *list).collect();
        return vec![lora::check(&unit.path, &unit.tensors, &bases)];
    }
    let whole = by_name(&unit.tensors);
    let mut checks = Vec::new();
    checks.extend(scales(&unit.path, &whole, &unit.formats));
    checks.extend(named(&unit.path, &whole));
    if let Some((list, wanted)) = best(lists, &whole) {
        checks.push(of_tensors(&unit.path, list, wanted, &whole));
        return checks;
    }
    let mut known = 0;
    for (part, tensors) in unit.parts() {
        let here = by_name(&tensors);
        if let Some((list, wanted)) = best(lists, &here) {
            known += 1;
            checks.push(of_tensors(&format!("{} {part}", unit.path), list, wanted, &here));
        }
    }
    if known == 0 {
        checks.push(unknown(unit, lists, must_be_known));
    }
    checks
}

fn by_name(tensors: &[Tensor]) -> ByName<'_> {
    tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect()
}

/// The list that most names agree with, if at least half of them do.
fn best<'a>(lists: &'a [(List, Vec<Wanted>)], here: &ByName<'_>) -> Option<(&'a List, &'a [Wanted])> {
    let share = |(list, wanted): &'a (List, Vec<Wanted>)| {
        let hits = overlap(wanted, here);
        (hits * 2 >= wanted.len()).then_some((hits * 1000 / wanted.len().max(1), list, wanted.as_slice()))
    };
    let found = lists.iter().filter_map(share).max_by_key(|(share, list, wanted)| (*share, fit(list, wanted, here)));
    found.map(|(_, list, wanted)| (list, wanted))
}

/// How many shapes agree: of two models of one family, it is the one with more.
fn fit(list: &List, wanted: &[Wanted], here: &ByName<'_>) -> usize {
    wanted.len() - compare(list, wanted, here).misshaped.len().min(wanted.len())
}

fn of_tensors(name: &str, list: &List, wanted: &[Wanted], here: &ByName<'_>) -> Check {
    let difference = compare(list, wanted, here);
    let extra = match difference.extra.as_slice() {
        [] => String::new(),
        extra => format!(", {} more that programs ignore, such as {}", extra.len(), extra[0]),
    };
    let right = wanted.len() - difference.faults().len().min(wanted.len());
    let measured = format!("{right} of {} as in {}{extra}", wanted.len(), list.title);
    Check::of(
        format!("tensors of {}", name.trim_end()),
        measured,
        ["all, in names, shapes and dtypes", SOURCE],
        difference.faults(),
    )
}

/// Nothing is known of the architecture: the header alone counts, which was checked before.
fn unknown(unit: &Unit, lists: &[(List, Vec<Wanted>)], must_be_known: bool) -> Check {
    let mut dtypes: Vec<&str> = unit.tensors.iter().map(|tensor| tensor.dtype.as_str()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    let measured = format!("{} tensors of {}", unit.tensors.len(), dtypes.join(", "));
    let name = format!("tensors of {}", unit.path);
    if unit.tensors.is_empty() {
        return Check::of(name, measured, ["at least one", "the header alone"], vec!["it has no tensors".to_owned()]);
    }
    if lists.is_empty() {
        let basis = "the header alone: larder has no list of this architecture";
        return Check::of(name, measured, ["at least one", basis], Vec::new());
    }
    let titles: Vec<&str> = lists.iter().map(|(list, _)| list.title).collect();
    let strange = format!("its names are of none of {}", titles.join(", "));
    if must_be_known {
        return Check::of(name, measured, ["a part of the pipeline that is known", SOURCE], vec![strange]);
    }
    Check::of(name, measured, ["at least one", &format!("the header alone: {strange}")], Vec::new())
}
