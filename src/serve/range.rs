//! The `Range` header of a request.

use std::ops::Range;

/// What part of a file to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// These bytes; never none.
    Bytes(Range<u64>),
    /// Bytes that the file does not have.
    Unsatisfiable,
}

/// Reads a `Range` header for a file of `len` bytes.
///
/// Several ranges at once, other units and what cannot be understood are answered with the whole file,
/// as the standard allows. Numbers too large for 64 bits lie beyond the end of every file.
pub(crate) fn part(header: Option<&str>, len: u64) -> Part {
    header.and_then(|header| parse(header, len)).unwrap_or(Part::Whole)
}

fn parse(header: &str, len: u64) -> Option<Part> {
    let (unit, range) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || range.contains(',') {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let range = match (first, last) {
        ("", "") => return None,
        ("", count) => len.saturating_sub(number(count)?)..len,
        (first, "") => number(first)?..len,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(len)
        }
    };
    Some(if range.is_empty() { Part::Unsatisfiable } else { Part::Bytes(range) })
}

fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let cases = [
            ("bytes=0-0", Part::Bytes(0..1)),
            ("bytes=2-", Part::Bytes(2..10)),
            ("Bytes=-3", Part::Bytes(7..10)),
            ("bytes=-99", Part::Bytes(0..10)),
            ("bytes=8-99999999999999999999999999", Part::Bytes(8..10)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=99999999999999999999999999-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=0-1,4-5", Part::Whole),
            ("bytes=5-2", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=1", Part::Whole),
            ("items=0-1", Part::Whole),
            ("bytes=-", Part::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(part(Some(header), 10), expected, "{header}");
        }
        assert_eq!(part(None, 10), Part::Whole);
        assert_eq!(part(Some("bytes=0-"), 0), Part::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_file(header in "bytes=[0-9]{0,22}-[0-9]{0,22}", len in any::<u64>()) {
            if let Part::Bytes(range) = part(Some(&header), len) {
                assert!(range.start < range.end && range.end <= len);
            }
        }
    }
}
