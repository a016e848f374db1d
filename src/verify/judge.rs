//! What a reading means: right, trusted, or wrong, and in which way.

use std::ops::Range;

use super::agenda::Item;
use super::contents::{BadChunk, Read};
use super::{Fault, FaultKind};
use crate::digest::{Blake3, CHUNK_LEN, ChunkDigests, Digests, Sha256, chunk_range};
use crate::facts::{Damage, Facts, Happening, Verified};
use crate::observe::Sighting;

/// What one user of a file is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    Proven,
    FirstUse,
    Wrong,
}

/// What is told of one file, and what is remembered of it.
pub(super) struct Judgement {
    pub(super) fault: Option<(FaultKind, String, Vec<Range<u64>>)>,
    pub(super) digests: Option<Digests>,
    pub(super) result: Verified,
}

/// Whether chunk digests can tell where a content that was hashed as a whole is wrong.
pub(super) fn can_be_located(item: &Item<'_>, read: &Read) -> bool {
    item.chunks.is_some() && read.digests.is_some_and(|digests| item.wanted.check(&digests).is_err())
}

/// Judges a file that was read to its end.
pub(super) fn read(item: &Item<'_>, read: &Read, sightings: &[Sighting<'_>], facts: &Facts) -> Judgement {
    let digests = if is_right_by_chunks(item, read) { compared(item) } else { read.digests };
    let fault = fault_of(item, read, digests.as_ref(), sightings, facts);
    let is_right = fault.is_none();
    let judged = judged(&item.wanted);
    let (event, detail) = match &fault {
        Some((kind, detail, _)) => (kind.name(), detail.clone()),
        None if judged == Judged::FirstUse => ("first-use", String::new()),
        None => ("proven", String::new()),
    };
    let happening = happening(item, read.begun, event, detail, digests.and_then(|digests| digests.sha256));
    let chunks = read.chunks.clone().filter(|_| is_right);
    let damage = damage(item, read);
    Judgement { fault, digests, result: Verified { found: item.found.clone(), digests, chunks, damage, happening } }
}

/// A file that could not be read at all.
pub(super) fn failed(item: &Item<'_>, reason: &str, now: i64) -> Judgement {
    let detail = format!("it cannot be read: {reason}");
    let happening = Happening { bytes: 0, ..happening(item, now, FaultKind::Unreadable.name(), detail.clone(), None) };
    let result = Verified { found: item.found.clone(), digests: None, chunks: None, damage: None, happening };
    Judgement { fault: Some((FaultKind::Unreadable, detail, Vec::new())), digests: None, result }
}

/// What one of the artifacts that want the file is told.
pub(super) fn for_user(
    item: &Item<'_>,
    judgement: &Judgement,
    (sighting, file): (usize, usize),
    sightings: &[Sighting<'_>],
) -> (Option<Fault>, Judged) {
    let sighting = &sightings[sighting];
    let wanted = sighting.wanted(file);
    let own = judgement.digests.map(|digests| wanted.check(&digests));
    let told = match (own, &judgement.fault) {
        // Another artifact wants other content; this one has its own.
        (Some(Ok(())), Some((kind, ..))) if wanted.proves_content() && *kind != FaultKind::Unreadable => None,
        (_, Some(told)) => Some(told.clone()),
        (Some(Err(mismatch)), None) => {
            Some((FaultKind::Corrupt, format!("its content is wrong: {mismatch}"), Vec::new()))
        }
        (_, None) => None,
    };
    let Some((kind, detail, ranges)) = told else { return (None, judged(&wanted)) };
    let fault = Fault {
        artifact: sighting.artifact.name.clone(),
        path: Some(sighting.path_of(file)),
        kind,
        detail,
        place: Some(item.found.path.clone()),
        ranges,
    };
    (Some(fault), Judged::Wrong)
}

fn judged(wanted: &Digests) -> Judged {
    if wanted.proves_content() { Judged::Proven } else { Judged::FirstUse }
}

fn is_right_by_chunks(item: &Item<'_>, read: &Read) -> bool {
    item.chunks.is_some() && read.digests.is_none() && read.bad.is_empty() && read.unreadable.ranges.is_empty()
}

/// The digests of the content that all chunks were compared with.
fn compared(item: &Item<'_>) -> Option<Digests> {
    let (content, _) = item.chunks.as_ref()?;
    let before = item.before.map(|before| before.digests).filter(|before| before.sha256 == Some(*content));
    Some(before.unwrap_or(Digests::sha256(*content)))
}

fn fault_of(
    item: &Item<'_>,
    read: &Read,
    digests: Option<&Digests>,
    sightings: &[Sighting<'_>],
    facts: &Facts,
) -> Option<(FaultKind, String, Vec<Range<u64>>)> {
    if !read.unreadable.ranges.is_empty() {
        return Some(unreadable(item, read));
    }
    if !read.bad.is_empty() {
        let (kind, why) = kind(item, digests, &read.bad, sightings, facts);
        let all = item.found.size.div_ceil(CHUNK_LEN);
        let ranges = ranges(item, &read.bad);
        let first = ranges.first().map_or(0, |range| range.start);
        let detail = format!("{why}: {} of {all} chunks of 4 MiB are wrong, the first at byte {first}", read.bad.len());
        return Some((kind, detail, ranges));
    }
    let digests = digests?;
    let mismatch = match item.wanted.check(digests) {
        Err(mismatch) => mismatch,
        Ok(()) if item.wanted.proves_content() || !item.is_unwritten => return None,
        // Nobody knows what it should be, but it should be what it was.
        Ok(()) => item.before?.digests.check(digests).err()?,
    };
    let (kind, why) = kind(item, Some(digests), &[], sightings, facts);
    match read.zeros.first() {
        Some(zeros) if kind == FaultKind::Corrupt => {
            let why = format!("{why}, and it holds zeros from byte {} to {}", zeros.start, zeros.end - 1);
            Some((FaultKind::ZeroFilled, format!("{why}: {mismatch}"), read.zeros.clone()))
        }
        _ => Some((kind, format!("{why}: {mismatch}"), Vec::new())),
    }
}

fn unreadable(item: &Item<'_>, read: &Read) -> (FaultKind, String, Vec<Range<u64>>) {
    let parts = &read.unreadable.ranges;
    let bytes: u64 = parts.iter().map(|range| range.end - range.start).sum();
    let first = parts.first().map_or(0, |range| range.start);
    let mut detail = format!("the disk cannot read {bytes} bytes of it, from byte {first} on");
    if parts.len() > 1 {
        detail.push_str(&format!(", in {} places", parts.len()));
    }
    detail.push_str(&format!(": {}", read.unreadable.reason));
    if !read.bad.is_empty() {
        detail.push_str(&format!("; {} other chunks are wrong", read.bad.len()));
    }
    let mut all = parts.clone();
    all.extend(ranges(item, &read.bad));
    all.sort_by_key(|range| range.start);
    (FaultKind::Unreadable, detail, all)
}

/// In which way wrong content is wrong.
fn kind(
    item: &Item<'_>,
    digests: Option<&Digests>,
    bad: &[BadChunk],
    sightings: &[Sighting<'_>],
    facts: &Facts,
) -> (FaultKind, String) {
    let is_rot = item.is_unwritten && item.was_right();
    if let Some(zeros) = bad.iter().flat_map(|bad| &bad.zeros).next() {
        let end = item.found.size.min(zeros.end) - 1;
        let since = if is_rot { ", though nobody has written it since it was right" } else { "" };
        return (FaultKind::ZeroFilled, format!("it holds zeros from byte {} to {end}{since}", zeros.start));
    }
    if is_rot {
        let why = "it rotted: it was right before, and nobody has written it since";
        return (FaultKind::Rotted, why.to_owned());
    }
    let content = digests.and_then(|digests| digests.sha256).or_else(|| by_chunks(item, bad, facts));
    if let Some(whose) = content.and_then(|content| known_as(&content, sightings, facts)) {
        return (FaultKind::Upgraded, format!("it is another known content, {whose}"));
    }
    if item.was_right() {
        return (FaultKind::Replaced, "somebody replaced it: it was right before, and was written since".to_owned());
    }
    told_before(item, content, facts).unwrap_or((FaultKind::Corrupt, "its content is wrong".to_owned()))
}

/// The content that a file with these wrong chunks is as a whole, where its chunks were seen before.
fn by_chunks(item: &Item<'_>, bad: &[BadChunk], facts: &Facts) -> Option<Sha256> {
    let (_, expected) = item.chunks.as_ref()?;
    let mut actual = expected.digests().to_vec();
    for chunk in bad {
        *actual.get_mut(usize::try_from(chunk.number).ok()?)? = chunk.actual;
    }
    let actual = ChunkDigests::new(expected.content_len(), actual)?;
    facts.content_with(&actual).ok()?
}

/// Under which name this content is, or once was, right.
fn known_as(content: &Sha256, sightings: &[Sighting<'_>], facts: &Facts) -> Option<String> {
    for sighting in sightings {
        let files = &sighting.artifact.files;
        if let Some(file) = files.iter().find(|file| file.digests.sha256.as_ref() == Some(content)) {
            return Some(format!("that of {}/{}", sighting.artifact.name, file.path));
        }
    }
    let seen = facts.last_seen(content).ok()??;
    Some(format!("which was right before as {}", seen.path.display()))
}

/// What an earlier reading called the same wrong content: by now it is not known any more what lay there before.
fn told_before(item: &Item<'_>, content: Option<Sha256>, facts: &Facts) -> Option<(FaultKind, String)> {
    let last = facts.history(&item.found.path).ok()?.into_iter().next()?;
    let is_same = item.is_unwritten && content.is_some() && last.sha256 == content;
    let kinds = [FaultKind::Rotted, FaultKind::Replaced];
    let kind = kinds.into_iter().find(|kind| is_same && kind.name() == last.event)?;
    let why = last.detail.rsplit_once(": sha256 is").map_or(last.detail.as_str(), |(why, _)| why);
    Some((kind, why.to_owned()))
}

/// The wrong chunks as ranges, neighbours joined.
fn ranges(item: &Item<'_>, bad: &[BadChunk]) -> Vec<Range<u64>> {
    joined(bad.iter().map(|bad| bad.number), item.found.size)
}

fn joined(chunks: impl Iterator<Item = u64>, size: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in chunks.map(|number| chunk_range(number, size)) {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What a repair needs to know, where chunks were compared.
fn damage(item: &Item<'_>, read: &Read) -> Option<Damage> {
    let (content, chunks) = item.chunks.as_ref()?;
    let unreadable =
        read.unreadable.ranges.iter().flat_map(|range| (range.start / CHUNK_LEN)..range.end.div_ceil(CHUNK_LEN));
    let mut wrong: Vec<u64> = read.bad.iter().map(|bad| bad.number).chain(unreadable).collect();
    wrong.sort_unstable();
    wrong.dedup();
    let first = *wrong.first()?;
    let actual = read.bad.iter().find(|bad| bad.number == first).map(|bad| bad.actual);
    Some(Damage {
        content: *content,
        ranges: joined(wrong.into_iter(), item.found.size),
        expected: *chunks.digests().get(usize::try_from(first).ok()?)?,
        // What could not be read has the digest of nothing.
        actual: actual.unwrap_or_else(|| Blake3::of(&[])),
        at: read.begun,
    })
}

fn happening(item: &Item<'_>, at: i64, event: &str, detail: String, sha256: Option<Sha256>) -> Happening {
    Happening {
        at,
        path: item.found.path.clone(),
        artifact: item.artifact.to_owned(),
        event: event.to_owned(),
        sha256,
        bytes: item.found.size,
        detail,
    }
}
