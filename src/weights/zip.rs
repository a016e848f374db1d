//! Zip archives, such as PyTorch's `.pth`: what the directory at the end lists, and whether all of it is there.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::weights::WeightsError;

/// The end record has this length, and a comment of at most 65,535 bytes after it.
const END_LEN: usize = 22;
const MAX_TAIL: u64 = END_LEN as u64 + 0xffff;
/// Length of the record that says where the larger end record of zip64 is.
const LOCATOR_LEN: usize = 20;
/// The longest directory that is read; that of the largest wheel has some MiB.
const MAX_DIRECTORY: u64 = 64 << 20;
const ENTRY_LEN: usize = 46;
const LOCAL_LEN: u64 = 30;
/// What the old fields hold when the number is in the zip64 field.
const LARGE: u64 = 0xffff_ffff;

/// One entry of an archive's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its name, with folders.
    pub(crate) name: String,
    /// How it is compressed: 0 is not at all.
    pub(crate) method: u64,
    /// Whether it is encrypted.
    pub(crate) encrypted: bool,
    /// Checksum of its content.
    pub(crate) crc: u64,
    /// Bytes in the archive.
    pub(crate) stored: u64,
    /// Bytes of its content.
    pub(crate) size: u64,
    /// Where its local header begins.
    header: u64,
    /// Where the directory begins, before which it must end.
    limit: u64,
}

/// Reads the directory of an archive of `len` bytes that begins at byte `start` of `file`.
///
/// Promises on success: the directory is complete and where the end says, no name occurs twice, and every
/// member lies before the directory. A directory that is missing means that the file was cut short,
/// because it is written last. Contents are not read.
pub(crate) fn read_zip(file: &mut (impl Read + Seek), start: u64, len: u64) -> Result<Vec<Member>, WeightsError> {
    let tail_start = start + len.saturating_sub(MAX_TAIL);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(tail_start))
        .and_then(|_| file.by_ref().take(MAX_TAIL.min(len)).read_to_end(&mut tail))
        .map_err(WeightsError::Io)?;
    let end =
        find_end(&tail).ok_or_else(|| WeightsError::malformed("the archive is cut short: it has no directory"))?;
    // A second end in the first one's comment is what other programs may take for the end.
    if tail[end + 4..].windows(4).any(|bytes| bytes == b"PK\x05\x06") {
        return Err(WeightsError::malformed("the archive has two ends"));
    }
    let (count, size, offset) = read_end(file, start, &tail, end)?;
    let end = tail_start - start + end as u64;
    let directory_end = offset.saturating_add(size);
    if directory_end > end {
        let what = "the archive's directory".to_owned();
        return Err(WeightsError::Truncated { what, needed: directory_end, len: end });
    }
    if size > MAX_DIRECTORY {
        return Err(WeightsError::malformed(format!("the archive's directory has {size} bytes, which is too many")));
    }
    let mut directory = vec![0; size as usize];
    let at = start.saturating_add(offset);
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut directory)).map_err(unreadable)?;
    let mut members = read_members(&directory, count)?;
    check_members(&members, offset)?;
    members.iter_mut().for_each(|member| member.limit = offset);
    Ok(members)
}

/// Number of entries, size and offset of the directory.
fn read_end(
    file: &mut (impl Read + Seek),
    start: u64,
    tail: &[u8],
    end: usize,
) -> Result<(u64, u64, u64), WeightsError> {
    let field = |at, len| number(tail, end + at, len).unwrap_or_default();
    let small = (field(10, 2), field(12, 4), field(16, 4));
    let has_locator = end.checked_sub(LOCATOR_LEN).is_some_and(|at| tail[at..].starts_with(b"PK\x06\x07"));
    if !has_locator && small.0 < 0xffff && small.1.max(small.2) < LARGE {
        return Ok(small);
    }
    let large = read_zip64(file, start, tail, end).map_err(unreadable)?;
    // Some programs go by the one record and some by the other: they must see the same archive.
    let agrees = |small: u64, large: u64, most: u64| small == large || small == most;
    if agrees(small.0, large.0, 0xffff) && agrees(small.1, large.1, LARGE) && agrees(small.2, large.2, LARGE) {
        return Ok(large);
    }
    Err(WeightsError::malformed("the archive has two ends that say different things"))
}

fn read_members(directory: &[u8], count: u64) -> Result<Vec<Member>, WeightsError> {
    let mut members = Vec::new();
    let mut rest = directory;
    while members.len() as u64 != count {
        if !rest.starts_with(b"PK\x01\x02") {
            return Err(WeightsError::malformed("the archive's directory is not where it should be"));
        }
        let (member, length) = read_member(rest)
            .ok_or_else(|| WeightsError::malformed("an entry of the archive's directory is broken"))?;
        members.push(member);
        rest = &rest[length..];
    }
    // A signature may follow the entries, but nothing that another program would take for more of them.
    if rest.starts_with(b"PK\x01\x02") {
        return Err(WeightsError::malformed("the archive's directory has more entries than its end says"));
    }
    Ok(members)
}

fn read_member(entry: &[u8]) -> Option<(Member, usize)> {
    let field = |at, len| number(entry, at, len);
    let [name_len, extra_len, comment_len] = [field(28, 2)?, field(30, 2)?, field(32, 2)?].map(|len| len as usize);
    let extra_at = ENTRY_LEN + name_len;
    let name = entry.get(ENTRY_LEN..extra_at)?;
    let extra = entry.get(extra_at..extra_at + extra_len)?;
    let length = extra_at + extra_len + comment_len;
    entry.get(..length)?;
    let mut larger = zip64_field(extra).unwrap_or_default();
    // The numbers that are too large stand in the field, in this order.
    let mut take = |small: u64| {
        if small < LARGE {
            return Some(small);
        }
        let (number, rest) = larger.split_first_chunk::<8>()?;
        larger = rest;
        Some(u64::from_le_bytes(*number))
    };
    let (size, stored, header) = (take(field(24, 4)?)?, take(field(20, 4)?)?, take(field(42, 4)?)?);
    let member = Member {
        name: String::from_utf8_lossy(name).into_owned(),
        method: field(10, 2)?,
        encrypted: field(8, 2)? & 1 != 0,
        crc: field(16, 4)?,
        stored,
        size,
        header,
        limit: u64::MAX,
    };
    Some((member, length))
}

fn zip64_field(mut extra: &[u8]) -> Option<&[u8]> {
    while !extra.is_empty() {
        let (id, len) = (number(extra, 0, 2)?, number(extra, 2, 2)? as usize);
        let field = extra.get(4..4 + len)?;
        if id == 1 {
            return Some(field);
        }
        extra = &extra[4 + len..];
    }
    None
}

fn check_members(members: &[Member], directory: u64) -> Result<(), WeightsError> {
    let mut names = BTreeSet::new();
    if let Some(twice) = members.iter().find(|member| !names.insert(&member.name)) {
        return Err(WeightsError::malformed(format!("the archive has two members {:?}", shown(&twice.name))));
    }
    let end = |member: &Member| member.header.saturating_add(LOCAL_LEN).saturating_add(member.stored);
    match members.iter().find(|member| end(member) > directory) {
        Some(beyond) => Err(WeightsError::Truncated {
            what: format!("member {:?} of the archive", shown(&beyond.name)),
            needed: end(beyond),
            len: directory,
        }),
        None => Ok(()),
    }
}

/// A name as it can be printed.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(200).collect()
}

impl Member {
    /// Where the bytes of the member are in `file`, whose archive begins at byte `start`.
    ///
    /// Fails where the member's own header says something else than the directory: programs that go by the
    /// one would then see another member than those that go by the other.
    pub(crate) fn place(&self, file: &mut (impl Read + Seek), start: u64) -> Result<Range<u64>, WeightsError> {
        let wrong =
            || WeightsError::malformed(format!("member {:?} is not where the directory says", shown(&self.name)));
        let at = start.saturating_add(self.header);
        let mut local = [0; LOCAL_LEN as usize];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut local)).map_err(unreadable)?;
        let field = |at, len| number(&local, at, len).unwrap_or_default();
        let (name_len, extra_len) = (field(26, 2), field(28, 2));
        let mut name = vec![0; name_len as usize];
        file.read_exact(&mut name).map_err(unreadable)?;
        let begin = at + LOCAL_LEN + name_len + extra_len;
        let end = begin.saturating_add(self.stored);
        let is_it = local.starts_with(b"PK\x03\x04") && String::from_utf8_lossy(&name) == self.name;
        if is_it && field(8, 2) == self.method && end <= start.saturating_add(self.limit) {
            Ok(begin..end)
        } else {
            Err(wrong())
        }
    }
}

/// Where the end record begins in `tail`: the last one whose comment reaches exactly to the end.
fn find_end(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(END_LEN)?;
    (0..=last)
        .rev()
        .find(|at| tail[*at..].starts_with(b"PK\x05\x06") && number(tail, at + 20, 2) == Some((last - at) as u64))
}

/// Number of entries, size and offset of the directory of an archive that is too large for the old end record.
fn read_zip64(file: &mut (impl Read + Seek), start: u64, tail: &[u8], end: usize) -> io::Result<(u64, u64, u64)> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the archive's zip64 end record is missing");
    let locator = end.checked_sub(LOCATOR_LEN).filter(|at| tail[*at..].starts_with(b"PK\x06\x07")).ok_or_else(wrong)?;
    let mut record = [0; 56];
    let at = number(tail, locator + 8, 8).and_then(|at| at.checked_add(start)).ok_or_else(wrong)?;
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut record)?;
    let numbers = (number(&record, 32, 8), number(&record, 40, 8), number(&record, 48, 8));
    match (record.starts_with(b"PK\x06\x06"), numbers) {
        (true, (Some(count), Some(size), Some(offset))) => Ok((count, size, offset)),
        _ => Err(wrong()),
    }
}

/// Places that the file does not have are the archive's fault, everything else is the system's.
fn unreadable(error: io::Error) -> WeightsError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            WeightsError::malformed("the archive's directory is not where its end says")
        }
        _ => WeightsError::Io(error),
    }
}

pub(crate) fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::{any, prop, proptest};

    use super::*;

    /// `printf hello > a; zip -0 -X x.zip a`, written out.
    fn archive(zip64: bool) -> Vec<u8> {
        let fields: [&[u8]; 4] =
            [&[10, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0x86, 0xa6, 0x10, 0x36], &[5, 0, 0, 0, 5, 0, 0, 0], &[1, 0, 0, 0]];
        let local = [&b"PK\x03\x04"[..], &fields.concat(), b"a", b"hello"].concat();
        let directory = [&b"PK\x01\x02\x1e\x03"[..], &fields.concat(), &[0; 14], b"a"].concat();
        let (offset, size) = (local.len() as u64, directory.len() as u64);
        let mut file = [local, directory].concat();
        let record = file.len() as u64;
        if zip64 {
            let totals = [1, 1, size, offset].map(u64::to_le_bytes).concat();
            file.extend([&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[45, 0, 45, 0], &[0; 8], &totals].concat());
            file.extend([&b"PK\x06\x07\0\0\0\0"[..], &record.to_le_bytes(), &[1, 0, 0, 0]].concat());
        }
        let (size, offset) = if zip64 { (u32::MAX, u32::MAX) } else { (size as u32, offset as u32) };
        file.extend(
            [&b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..], &size.to_le_bytes(), &offset.to_le_bytes(), &[0, 0]].concat(),
        );
        file
    }

    fn check(bytes: &[u8]) -> Result<Vec<Member>, WeightsError> {
        let mut file = Cursor::new(bytes);
        let members = read_zip(&mut file, 0, bytes.len() as u64)?;
        members.iter().try_for_each(|member| member.place(&mut file, 0).map(drop))?;
        Ok(members)
    }

    #[test]
    fn whole_archives_of_both_kinds_are_accepted() {
        for zip64 in [false, true] {
            let members = check(&archive(zip64)).unwrap();
            assert_eq!((members[0].name.as_str(), members[0].size, members[0].crc), ("a", 5, 0x3610_a686));
        }
        let mut commented = archive(false);
        let len = commented.len();
        commented[len - 2] = 3;
        commented.extend(b"abc");
        check(&commented).unwrap();
    }

    #[test]
    fn a_directory_in_another_place_is_found() {
        let shifted = [&b"PK\x03\x04"[..], &archive(false)].concat();
        assert!(check(&shifted).unwrap_err().to_string().contains("not where it should be"));
    }

    proptest! {
        #[test]
        fn every_truncation_is_found(zip64 in any::<bool>(), cut in any::<prop::sample::Index>()) {
            let archive = archive(zip64);
            assert!(check(&archive[..cut.index(archive.len())]).is_err());
        }

        #[test]
        fn no_change_of_bytes_panics(
            zip64 in any::<bool>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut archive = archive(zip64);
            let len = archive.len();
            changes.iter().for_each(|(at, byte)| archive[at.index(len)] = *byte);
            let _ = check(&archive);
        }
    }
}
