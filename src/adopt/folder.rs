//! Plain folders: names say little, so content does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use walkdir::{DirEntry, WalkDir};

use super::propose::{Proposal, ProposedFile};
use super::{Known, Seen, StoreSurvey, Surveyor};
use crate::artifact::{Found, Reference};
use crate::digest::{ContentHasher, Sha256};
use crate::fsio;
use crate::monitor::Event;
use crate::relpath::RelPath;
use crate::stores::Store;
use crate::weights::{Kind, check_file};

/// Endings of downloads that are not finished.
const UNFINISHED: [&str; 7] = [".aria2", ".part", ".partial", ".incomplete", ".tmp", ".crdownload", ".download"];
/// Names by which a folder is one model, with everything below it.
const HEADS: [&str; 4] = ["config.json", "model_index.json", "gen_config.json", "tokenizer.json"];
/// No model is this small; pointers and error pages are.
const PEEK_BELOW: u64 = 4096;

/// A file whose content is to be recognised.
struct Candidate {
    path: RelPath,
    found: Found,
}

/// Looks through a folder; gives the proposals, and how many bytes were read for them.
pub(super) fn look(
    store: &dyn Store,
    (known, roots): (&mut Known, &[PathBuf]),
    survey: &mut StoreSurvey,
    how: &Surveyor<'_>,
) -> (Vec<Proposal>, u64) {
    let candidates = candidates(store, known, roots, survey);
    if !how.read {
        return (Vec::new(), 0);
    }
    let (digests, read) = measure(&candidates, store.root(), survey, how);
    let mut unknown = BTreeMap::new();
    for candidate in candidates {
        let Some(sha256) = digests.get(&candidate.path) else { continue };
        let seen = |what: String| Seen { path: candidate.path.to_string(), size: candidate.found.size, what };
        if let Some(name) = known.by_digest.get(sha256) {
            survey.elsewhere.push(seen(format!("the content of {name}")));
            continue;
        }
        survey.unknown.push(seen(sha256.to_string()));
        let file = ProposedFile {
            path: candidate.path.clone(),
            size: candidate.found.size,
            sha256: Some(*sha256),
            git_sha1: None,
        };
        unknown.insert(candidate.path.to_string(), file);
    }
    (propose(unknown, known, &survey.store), read)
}

/// Every file that is neither where it is declared, nor a link, nor a leftover.
fn candidates(store: &dyn Store, known: &Known, roots: &[PathBuf], survey: &mut StoreSurvey) -> Vec<Candidate> {
    let (root, staging) = (store.root(), store.staging());
    // `.cache/huggingface` beside downloaded files holds notes of the downloader.
    let is_ours = |entry: &DirEntry| entry.depth() > 0 && (entry.path() == staging || entry.file_name() == ".cache");
    let matched = known.matched(store);
    let mut candidates = Vec::new();
    for entry in WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(|entry| !is_ours(entry)) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let path = error.path().unwrap_or(root).display().to_string();
                survey.unreadable.push(Seen { path, size: 0, what: "it may not be looked into".to_owned() });
                continue;
            }
        };
        if entry.file_type().is_symlink() {
            survey.links.push(link(&entry, root, roots));
        } else if entry.file_type().is_file() {
            candidates.extend(file(&entry, root, (known, &matched), survey));
        }
    }
    candidates
}

fn link(entry: &DirEntry, root: &Path, roots: &[PathBuf]) -> Seen {
    let path = entry.path().strip_prefix(root).unwrap_or(entry.path()).display().to_string();
    let (size, what) = match fs_err::canonicalize(entry.path()) {
        Err(_) => (0, "a link to nothing".to_owned()),
        Ok(target) => {
            let size = fs_err::metadata(&target).ok().filter(std::fs::Metadata::is_file).map_or(0, |found| found.len());
            let is_inside = roots.iter().any(|root| target.starts_with(root));
            let whither = if is_inside { "a link within the stores" } else { "a link out of all stores" };
            (size, format!("{whither}: {}", target.display()))
        }
    };
    Seen { path, size, what }
}

fn file(
    entry: &DirEntry,
    root: &Path,
    (known, matched): (&Known, &HashMap<PathBuf, &str>),
    survey: &mut StoreSurvey,
) -> Option<Candidate> {
    let within = entry.path().strip_prefix(root).unwrap_or(entry.path());
    let shown = within.display().to_string();
    let seen = |size: u64, what: &str| Seen { path: shown.clone(), size, what: what.to_owned() };
    let found = match fsio::find(entry.path()) {
        Ok(found) => found?,
        Err(error) => {
            survey.unreadable.push(seen(0, &error.to_string()));
            return None;
        }
    };
    if let Some(what) = leftover(entry.path(), &found) {
        survey.leftovers.push(seen(found.size, what));
        return None;
    }
    let Some(path) = within.to_str().and_then(|path| path.parse::<RelPath>().ok()) else {
        survey.unreadable.push(seen(found.size, "its name cannot be written into a manifest"));
        return None;
    };
    if let Some(artifact) = matched.get(entry.path()) {
        survey.known.push(seen(found.size, artifact));
        return None;
    }
    match known.places.get(&(survey.store.clone(), path.to_string())) {
        Some((name, size)) if size.is_none_or(|size| size == found.size) => {
            survey.known.push(seen(found.size, name));
            None
        }
        _ => Some(Candidate { path, found }),
    }
}

/// What a download left, or what a server sent instead of content.
fn leftover(path: &Path, found: &Found) -> Option<&'static str> {
    let name = path.to_string_lossy().to_lowercase();
    if UNFINISHED.iter().any(|end| name.ends_with(end)) {
        return Some("an unfinished download");
    }
    if found.size == 0 {
        return Some("empty");
    }
    if path.with_file_name(format!("{}.aria2", path.file_name()?.to_string_lossy())).exists() {
        return Some("aria2 has not finished it");
    }
    match (found.size < PEEK_BELOW).then(|| check_file(path)) {
        Some(Ok(Kind::LfsPointer)) => Some("a git-lfs pointer"),
        Some(Ok(Kind::Html)) if !name.ends_with(".html") => Some("a web page"),
        _ => None,
    }
}

/// The digest of every candidate: as it was measured before, or read now, several at a time.
fn measure(
    candidates: &[Candidate],
    root: &Path,
    survey: &mut StoreSurvey,
    how: &Surveyor<'_>,
) -> (HashMap<RelPath, Sha256>, u64) {
    let before = how.facts.below(root).unwrap_or_default();
    let known = |one: &Candidate| before.of(&one.found).and_then(|measured| measured.digests.sha256);
    let mut digests: HashMap<RelPath, Sha256> =
        candidates.iter().filter_map(|one| Some((one.path.clone(), known(one)?))).collect();
    let mut unread: Vec<&Candidate> = candidates.iter().filter(|one| !digests.contains_key(&one.path)).collect();
    unread.sort_by_key(|one| std::cmp::Reverse(one.found.size));
    let (next, read) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(one) = unread.get(next.fetch_add(1, Ordering::Relaxed)) {
            let item = one.path.as_str();
            how.monitor.event(Event::Started { item, total: Some(one.found.size), resumed: 0, from: "disk" });
            let measured = fsio::hash_file(&one.found.path, ContentHasher::new());
            match &measured {
                Ok((digests, _)) => {
                    how.monitor.event(Event::Finished { item });
                    if let Err(error) = how.facts.record(&one.found, digests, how.at) {
                        tracing::warn!(%error, "a measurement is not remembered");
                    }
                }
                Err(error) => how.monitor.event(Event::Failed { item, reason: &error.to_string() }),
            }
            read.lock().unwrap_or_else(PoisonError::into_inner).push((*one, measured));
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut bytes = 0;
    for (one, measured) in read.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match measured {
            Ok((measured, length)) => {
                bytes += length;
                digests.extend(measured.sha256.map(|sha256| (one.path.clone(), sha256)));
            }
            Err(error) => {
                survey.unreadable.push(Seen {
                    path: one.path.to_string(),
                    size: one.found.size,
                    what: error.to_string(),
                });
            }
        }
    }
    (digests, bytes)
}

/// Files of one model become one artifact: those of a folder with a head, and those that differ in their ending.
fn propose(unknown: BTreeMap<String, ProposedFile>, known: &mut Known, store: &str) -> Vec<Proposal> {
    let is_head =
        |path: &str| path.rsplit('/').next().is_some_and(|name| HEADS.contains(&name) || name.ends_with(".index.json"));
    let folders: BTreeSet<&str> = unknown
        .keys()
        .filter(|path| is_head(path))
        .filter_map(|path| path.rsplit_once('/').map(|(folder, _)| folder))
        .collect();
    // A model may have parts with heads of their own: the topmost folder counts.
    let is_within = |path: &str, folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    let tops: Vec<&str> =
        folders.iter().copied().filter(|folder| !folders.iter().any(|above| is_within(folder, above))).collect();
    let mut groups: BTreeMap<String, Vec<ProposedFile>> = BTreeMap::new();
    for (path, file) in &unknown {
        let top = tops.iter().find(|top| is_within(path, top));
        let key = top.map_or_else(|| stem(path), |top| (*top).to_owned());
        groups.entry(key).or_default().push(file.clone());
    }
    let note = "nobody knows where it is from; name its `source` if there is one";
    groups
        .into_iter()
        .map(|(key, files)| Proposal {
            name: known.new_name(key.rsplit('/').next().unwrap_or(&key)),
            store: store.to_owned(),
            source: Reference::Local,
            files,
            manifest: None,
            note: note.to_owned(),
        })
        .collect()
}

/// A path without the ending of its name.
fn stem(path: &str) -> String {
    let name = path.rfind('/').map_or(0, |at| at + 1);
    path[name..].rfind('.').filter(|at| *at > 0).map_or(path, |at| &path[..name + at]).to_owned()
}
