//! Zip archives, such as PyTorch's `.pth`: whether the directory at the end is there and in its place.

use std::io::{self, Read, Seek, SeekFrom};

use crate::weights::WeightsError;

/// The end record has this length, and a comment of at most 65,535 bytes after it.
const END_LEN: usize = 22;
const MAX_TAIL: u64 = END_LEN as u64 + 0xffff;
/// Length of the record that says where the larger end record of zip64 is.
const LOCATOR_LEN: usize = 20;

/// Checks that an archive of `len` bytes ends with its directory; entries are not read.
///
/// A directory that is missing means that the file was cut short, because it is written last.
pub(crate) fn check_zip(file: &mut (impl Read + Seek), len: u64) -> Result<(), WeightsError> {
    let tail_start = len.saturating_sub(MAX_TAIL);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(tail_start))
        .and_then(|_| file.by_ref().take(MAX_TAIL).read_to_end(&mut tail))
        .map_err(WeightsError::Io)?;
    let end =
        find_end(&tail).ok_or_else(|| WeightsError::malformed("the archive is cut short: it has no directory"))?;
    let (size, offset) = match (number(&tail, end + 12, 4), number(&tail, end + 16, 4)) {
        (Some(size), Some(offset)) if size.max(offset) < 0xffff_ffff => (size, offset),
        _ => read_zip64(file, &tail, end).map_err(unreadable)?,
    };
    let directory_end = offset.saturating_add(size);
    let end = tail_start + end as u64;
    if directory_end > end {
        return Err(WeightsError::Truncated {
            what: "the archive's directory".to_owned(),
            needed: directory_end,
            len: end,
        });
    }
    let mut first = [0; 4];
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut first)).map_err(unreadable)?;
    if size > 0 && first != *b"PK\x01\x02" {
        return Err(WeightsError::malformed("the archive's directory is not where it should be"));
    }
    Ok(())
}

/// Where the end record begins in `tail`: the last one whose comment reaches exactly to the end.
fn find_end(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(END_LEN)?;
    (0..=last)
        .rev()
        .find(|at| tail[*at..].starts_with(b"PK\x05\x06") && number(tail, at + 20, 2) == Some((last - at) as u64))
}

/// Size and offset of the directory of an archive that is too large for the old end record.
fn read_zip64(file: &mut (impl Read + Seek), tail: &[u8], end: usize) -> io::Result<(u64, u64)> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the archive's zip64 end record is missing");
    let locator = end.checked_sub(LOCATOR_LEN).filter(|at| tail[*at..].starts_with(b"PK\x06\x07")).ok_or_else(wrong)?;
    let mut record = [0; 56];
    file.seek(SeekFrom::Start(number(tail, locator + 8, 8).ok_or_else(wrong)?))?;
    file.read_exact(&mut record)?;
    match (record.starts_with(b"PK\x06\x06"), number(&record, 40, 8), number(&record, 48, 8)) {
        (true, Some(size), Some(offset)) => Ok((size, offset)),
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

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
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

    fn check(bytes: &[u8]) -> Result<(), WeightsError> {
        check_zip(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn whole_archives_of_both_kinds_are_accepted() {
        check(&archive(false)).unwrap();
        check(&archive(true)).unwrap();
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
