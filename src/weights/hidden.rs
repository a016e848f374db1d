//! Pickles in archives that are not what torch writes today: zip archives of numpy and others, and the tar archives of
//! the first torch. Members are known by their bytes; they are followed and never run.

use std::io::{Cursor, Read, Seek, SeekFrom};
use std::ops::Range;

use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::weights::WeightsError;
use crate::weights::numpy;
use crate::weights::pickle::{Followed, Input, follow};
use crate::weights::torch::{self, begins_like_pickle};
use crate::weights::zip::{Member, shown};

/// How much of a compressed member is unpacked to see what it is; the header of an array is shorter.
const START: usize = 64 << 10;
/// How much of a compressed pickle is followed.
const MOST: usize = 16 << 20;
/// Compressed bytes that are read for it: more of them unpack to more than [`MOST`].
const MOST_PACKED: u64 = MOST as u64 + (1 << 20);
/// Pickles that follow each other, and what lies between them.
const MAX_PICKLES: usize = 1 << 16;
/// Members of a tar archive.
const MAX_MEMBERS: usize = 1 << 16;
const TAR_BLOCK: u64 = 512;
const STORED: u64 = 0;
const DEFLATED: u64 = 8;

/// Looks into every member of a zip archive that torch did not write.
pub(crate) fn check_zip<F: Read + Seek>(
    file: &mut F,
    start: u64,
    members: &[Member],
    depth: u32,
) -> Result<(), WeightsError> {
    for member in members {
        match (member.encrypted, member.method) {
            (false, STORED) => {
                let place = member.place(file, start)?;
                check_member(file, &place, &member.name, depth)?;
            }
            (false, DEFLATED) => {
                let place = member.place(file, start)?;
                check_deflated(file, &place, &member.name, depth)?;
            }
            _ if is_called_pickle(&member.name) => return Err(sealed(&member.name)),
            _ => {}
        }
    }
    Ok(())
}

fn sealed(name: &str) -> WeightsError {
    unfollowed(name, "it is compressed or encrypted, so that its instructions cannot be read".to_owned())
}

/// What was not followed to its end is not harmless.
fn unfollowed(name: &str, why: String) -> WeightsError {
    WeightsError::UnsafePickle { pickle: shown(name), findings: vec![why] }
}

fn is_called_pickle(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".pkl", ".pickle", ".joblib"].iter().any(|ending| name.ends_with(ending))
}

/// Looks into what lies at `place` of `file` and is called `name`.
fn check_member<F: Read + Seek>(file: &mut F, place: &Range<u64>, name: &str, depth: u32) -> Result<(), WeightsError> {
    let mut first = Vec::new();
    file.seek(SeekFrom::Start(place.start))
        .and_then(|_| file.by_ref().take(6.min(place.end - place.start)).read_to_end(&mut first))
        .map_err(WeightsError::Io)?;
    if first.starts_with(b"PK\x03\x04") {
        return only_danger(torch::read_inner_archive(file, place, name, depth));
    }
    if first.starts_with(numpy::MAGIC) {
        return numpy::check_array(file, place, name);
    }
    if is_called_pickle(name) || begins_like_pickle(&first) {
        return only_danger(follow_all(file, place, name, |_, _| None));
    }
    Ok(())
}

/// Nobody said that the archive holds weights: what cannot be followed may be anything.
fn only_danger(checked: Result<(), WeightsError>) -> Result<(), WeightsError> {
    match checked {
        Err(error @ (WeightsError::UnsafePickle { .. } | WeightsError::Io(_))) => Err(error),
        _ => Ok(()),
    }
}

fn check_deflated<F: Read + Seek>(
    file: &mut F,
    place: &Range<u64>,
    name: &str,
    depth: u32,
) -> Result<(), WeightsError> {
    let (start, is_all) = inflated(file, place, START)?;
    let is_pickle = is_called_pickle(name) || begins_like_pickle(&start);
    let is_array = start.starts_with(numpy::MAGIC);
    let is_archive = start.starts_with(b"PK\x03\x04");
    if !(is_pickle || is_array || is_archive) {
        return Ok(());
    }
    let check = |content: Vec<u8>| {
        let whole = 0..content.len() as u64;
        check_member(&mut Cursor::new(content), &whole, name, depth)
    };
    let has_numbers = is_array && check(start.clone()).is_ok();
    if is_all || has_numbers {
        return check(start);
    }
    let (content, is_all) = inflated(file, place, MOST)?;
    check(content)?;
    // What goes on for longer was not followed to its end.
    if is_all { Ok(()) } else { Err(sealed(name)) }
}

/// The first `most` bytes of a compressed member, and whether that is all of it. What is no such thing is empty.
fn inflated<F: Read + Seek>(file: &mut F, place: &Range<u64>, most: usize) -> Result<(Vec<u8>, bool), WeightsError> {
    let packed = (place.end - place.start).min(MOST_PACKED).min(most as u64 + (1 << 16));
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(place.start))
        .and_then(|_| file.by_ref().take(packed).read_to_end(&mut bytes))
        .map_err(WeightsError::Io)?;
    let mut content = vec![0; most];
    let mut state = Box::<DecompressorOxide>::default();
    let (status, _, made) = decompress(&mut state, &bytes, &mut content, 0, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF);
    content.truncate(made);
    Ok((content, status == miniz_oxide::inflate::TINFLStatus::Done))
}

/// Follows all pickles at `place`. What lies between two of them, `between` knows: where the next one begins.
fn follow_all<F: Read + Seek>(
    file: &mut F,
    place: &Range<u64>,
    name: &str,
    between: impl Fn(&mut F, Range<u64>) -> Option<u64>,
) -> Result<(), WeightsError> {
    let mut at = place.start;
    for _ in 0..MAX_PICKLES {
        let mut input = Input::new(&mut *file, at, place.end)?;
        let Followed { findings, .. } = follow(&mut input)?;
        at = input.at();
        drop(input);
        if !findings.is_empty() {
            let findings = findings.into_iter().collect();
            return Err(WeightsError::UnsafePickle { pickle: shown(name), findings });
        }
        let mut next = [0; 2];
        if place.end - at < 2 {
            return Ok(());
        }
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut next)).map_err(WeightsError::Io)?;
        if begins_like_pickle(&next) {
            continue;
        }
        let Some(after) = between(file, at..place.end) else { return Ok(()) };
        at = after;
        if at == place.end {
            return Ok(());
        }
    }
    Err(unfollowed(name, format!("it has more than {MAX_PICKLES} pickles, and those behind were not followed")))
}

/// Looks into every member of a tar archive of `len` bytes: pickles, and what torch put there before 2017.
pub(crate) fn check_tar<F: Read + Seek>(file: &mut F, len: u64) -> Result<(), WeightsError> {
    let mut at = 0;
    for _ in 0..MAX_MEMBERS {
        if len.saturating_sub(at) < TAR_BLOCK {
            return Ok(());
        }
        let mut header = [0; TAR_BLOCK as usize];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut header)).map_err(WeightsError::Io)?;
        let Some((name, size)) = tar_member(&header) else { return Ok(()) };
        let place = at + TAR_BLOCK..at.saturating_add(TAR_BLOCK).saturating_add(size).min(len);
        match name.rsplit('/').next().unwrap_or_default() {
            "sys_info" | "pickle" => only_danger(follow_all(file, &place, &name, |_, _| None))?,
            "storages" => only_danger(follow_all(file, &place, &name, after_storage))?,
            "tensors" => only_danger(follow_all(file, &place, &name, after_tensor))?,
            _ => check_member(file, &place, &name, 0)?,
        }
        at = at.saturating_add(TAR_BLOCK).saturating_add(size.next_multiple_of(TAR_BLOCK));
    }
    Err(unfollowed(
        "the archive",
        format!("it has more than {MAX_MEMBERS} members, and those behind were not looked at"),
    ))
}

/// Name and size of a member; `None` behind the last one.
fn tar_member(header: &[u8; TAR_BLOCK as usize]) -> Option<(String, u64)> {
    let text = |range: Range<usize>| {
        let bytes = &header[range];
        String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    };
    let name = text(0..100);
    // Sizes beyond 8 GiB are written in another way, with the first bit set.
    let size = if header[124] & 0x80 != 0 {
        header[128..136].iter().fold(0, |size: u64, byte| size << 8 | u64::from(*byte))
    } else {
        u64::from_str_radix(text(124..136).trim(), 8).ok()?
    };
    (!name.is_empty() && size < u64::MAX / 2).then_some((name, size))
}

/// Behind the pickle of a storage: how many numbers it has, and these. Of what width they are is tried.
fn after_storage<F: Read + Seek>(file: &mut F, rest: Range<u64>) -> Option<u64> {
    let count = word(file, rest.start)?;
    let behind = |width: u64| rest.start.checked_add(8)?.checked_add(count.checked_mul(width)?);
    [1, 2, 4, 8].into_iter().filter_map(behind).find(|at| *at == rest.end || begins_at(file, *at, rest.end))
}

/// Behind the pickle of a tensor: its number of sides in eight bytes, each side and each stride, and where it begins.
fn after_tensor<F: Read + Seek>(file: &mut F, rest: Range<u64>) -> Option<u64> {
    let sides = word(file, rest.start)? & 0xffff_ffff;
    let at = rest.start.checked_add(16)?.checked_add(sides.checked_mul(16)?)?;
    (at == rest.end || begins_at(file, at, rest.end)).then_some(at)
}

fn word<F: Read + Seek>(file: &mut F, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn begins_at<F: Read + Seek>(file: &mut F, at: u64, end: u64) -> bool {
    let mut bytes = [0; 2];
    let is_within = at.checked_add(2).is_some_and(|after| after <= end);
    is_within
        && file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).is_ok()
        && begins_like_pickle(&bytes)
}
