//! What a reading means: right, trusted, or wrong, and in which way.

use std::ops::Range;

use super::agenda::Item;
use super::contents::{BadChunk, Read};
use super::{Fault, FaultKind};
use crate::digest::{CHUNK_LEN, ChunkDigests, Digests, Sha256, chunk_range};
use crate::facts::{Damage, Facts, Happening, Trust, Verified};
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
    let content = item.chunks.as_ref().map(|(content, _)| *content);
    content.is_some() && read.digests.is_some_and(|digests| digests.sha256 != content)
}

/// Judges a file that was read to its end.
pub(super) fn read(item: &Item<'_>, read: &Read, sightings: &[Sighting<'_>], facts: &Facts) -> Judgement {
    let digests = if is_right_by_chunks(item, read) { compared(item) } else { read.digests };
    let fault = fault_of(item, read, digests.as_ref(), sightings, facts).map(|fault| explained(item, fault));
    let is_right = fault.is_none();
    let judged = judged(&item.wanted);
    let sha256 = digests.and_then(|digests| digests.sha256);
    let (event, detail) = match &fault {
        Some((kind, detail, _)) => (kind.name(), detail.clone()),
        None if item.is_accepted && item.trusted.is_some_and(|trusted| Some(trusted.sha256) != sha256) => {
            ("accepted", "somebody said that this is what it must be from now on".to_owned())
        }
        None if judged == Judged::FirstUse => ("first-use", String::new()),
        None => ("proven", String::new()),
    };
    let trust = match (is_right, judged) {
        (false, _) => Trust::Unchanged,
        (true, Judged::FirstUse) if item.is_accepted => Trust::Accepted,
        (true, Judged::FirstUse) => Trust::Kept,
        (true, _) => Trust::Needless,
    };
    let happening = happening(item, read.begun, event, detail, sha256);
    let chunks = read.chunks.clone().filter(|_| is_right);
    let damage = damage(item, fault.as_ref(), read.begun);
    let result = Verified { found: item.found.clone(), digests, chunks, damage, trust, happening };
    Judgement { fault, digests, result }
}

/// A file that could not be read at all.
pub(super) fn failed(item: &Item<'_>, reason: &std::io::Error, now: i64) -> Judgement {
    let detail = format!("it cannot be read: {reason}");
    // What may not be read may be right all the same.
    let is_forbidden = reason.kind() == std::io::ErrorKind::PermissionDenied;
    let ranges = if is_forbidden { Vec::new() } else { std::iter::once(0..item.found.size).collect() };
    let fault = (FaultKind::Unreadable, detail.clone(), Vec::new());
    let damage = damage(item, Some(&(FaultKind::Unreadable, detail.clone(), ranges)), now);
    let happening = Happening { bytes: 0, ..happening(item, now, FaultKind::Unreadable.name(), detail.clone(), None) };
    let trust = Trust::Unchanged;
    let result = Verified { found: item.found.clone(), digests: None, chunks: None, damage, trust, happening };
    Judgement { fault: Some(fault), digests: None, result }
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
        detail: super::with_a_way_out(sighting, file, kind, detail),
        place: Some(item.found.path.clone()),
        ranges,
        remembered: None,
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
        // Where nobody knows what it should be, it should be what it was.
        Ok(()) => Digests::sha256(item.baseline()?).check(digests).err()?,
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

/// Says why a content is wrong, where its samples show that parts of it were never written.
fn explained(item: &Item<'_>, fault: (FaultKind, String, Vec<Range<u64>>)) -> (FaultKind, String, Vec<Range<u64>>) {
    match (&item.unwritten, fault) {
        (Some(why), (FaultKind::Corrupt, detail, ranges)) => {
            (FaultKind::ZeroFilled, format!("{why}; {detail}"), ranges)
        }
        (_, fault) => fault,
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
    let is_rot = item.is_unwritten_since() && item.was_right();
    if let Some(zeros) = bad.iter().flat_map(|bad| &bad.zeros).next() {
        let end = item.found.size.min(zeros.end) - 1;
        let since = if is_rot { ", though nobody has written it since it was right" } else { "" };
        return (FaultKind::ZeroFilled, format!("it holds zeros from byte {} to {end}{since}", zeros.start));
    }
    if is_rot {
        return (FaultKind::Rotted, ROTTED.to_owned());
    }
    let content = digests.and_then(|digests| digests.sha256).or_else(|| by_chunks(item, bad, facts));
    if let Some(whose) = content.and_then(|content| known_as(&content, sightings, facts)) {
        return (FaultKind::Upgraded, format!("it is another known content, {whose}"));
    }
    if item.was_right() {
        return replaced(item);
    }
    told_before(item).unwrap_or((FaultKind::Corrupt, "its content is wrong".to_owned()))
}

const ROTTED: &str = "it rotted: it was right before, and nobody has written it since";
const REPLACED: &str = "somebody replaced it: it was right before, and was written since";

/// What was right before and was written since; nobody but its owner knows whether that was meant.
fn replaced(item: &Item<'_>) -> (FaultKind, String) {
    let Some(trusted) = item.trusted.filter(|_| !item.wanted.proves_content()) else {
        return (FaultKind::Replaced, REPLACED.to_owned());
    };
    let (size, before) = (item.found.size, trusted.size);
    if size < before {
        let why = format!("it is truncated: it has {size} bytes, and had {before} when it was trusted as first seen");
        return (FaultKind::Truncated, why);
    }
    (FaultKind::Replaced, "somebody replaced it: it is not what was trusted as first seen".to_owned())
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

/// What an earlier reading called it, if nobody has written it since: what lay there before is not known any more.
fn told_before(item: &Item<'_>) -> Option<(FaultKind, String)> {
    let before = item.damage.as_ref().filter(|before| before.content == item.expected())?;
    match FaultKind::named(&before.kind)? {
        FaultKind::Rotted => Some((FaultKind::Rotted, ROTTED.to_owned())),
        FaultKind::Replaced => Some((FaultKind::Replaced, REPLACED.to_owned())),
        _ => None,
    }
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

/// What is remembered of a fault until the file is read again or changed: what it is, and where a repair begins.
fn damage(item: &Item<'_>, fault: Option<&(FaultKind, String, Vec<Range<u64>>)>, at: i64) -> Option<Damage> {
    let (kind, detail, ranges) = fault?;
    let content = item.chunks.as_ref().map(|(content, _)| *content).or_else(|| item.expected());
    let (kind, detail, ranges) = (kind.name().to_owned(), detail.clone(), ranges.clone());
    Some(Damage { kind, detail, content, ranges, at })
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
