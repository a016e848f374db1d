//! Ranges that were never written: holes, and pages of zeros where weights should be.
//!
//! A download that was given its full length before its content came has a perfect header and zeros behind it.
//! Nothing but holes and a few pages of the file are looked at, so what is found is wrong for certain, or nearly so,
//! and what is not found may still be wrong: only a digest proves contents.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use crate::weights::{Tensor, WeightsError};

/// Pages that are looked at in every file, evenly spread.
const SAMPLES: u64 = 64;
/// Pages that are looked at around one that is all zeros.
const PROBES: u64 = 16;
const PAGE: u64 = 4096;
/// A matrix of this many bytes is not all zeros in any model that was trained.
const MIN_TENSOR: u64 = 64 << 10;
/// No part of a tensor of this many bytes is; the unused rows of a vocabulary stay below it.
const MIN_RANGE: u64 = 16 << 20;
/// A hole of this many bytes with written bytes of the same matrix behind it is no row of padding.
const MIN_GAP: u64 = 256 << 10;
/// How many names are kept.
const MAX_NAMES: usize = 5;

/// What was found blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blank {
    /// The first range.
    pub first: Range<u64>,
    /// Whether the file system says that nothing was ever written there; else zeros were read in samples.
    pub hole: bool,
    /// Whether a copy that leaves out zeros could look the same: only reading it tells.
    pub suspected: bool,
    /// Tensors that are blank as a whole, by name: the first few.
    pub tensors: Vec<String>,
    /// How many there are.
    pub count: usize,
}

impl std::fmt::Display for Blank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Range { start, end } = self.first;
        if self.suspected {
            return write!(
                f,
                "bytes {start} to {end}, in the middle of numbers, take no room: they were never written, or left out as zeros"
            );
        }
        if self.hole {
            write!(f, "bytes {start} to {end} were never written")?;
        } else {
            write!(f, "bytes {start} to {end} are zeros, as far as they were looked at")?;
        }
        match (self.count, self.tensors.as_slice()) {
            (0, _) => Ok(()),
            (1, [name, ..]) => write!(f, ": tensor {name} is blank"),
            (count, names) if count <= names.len() => write!(f, ": tensors {} are blank", names.join(", ")),
            (count, names) => write!(f, ": {count} tensors are blank, among them {}", names.join(", ")),
        }
    }
}

/// Looks for blank ranges in a file of `len` bytes with these tensors and these holes.
///
/// Reads at most 8.5 MiB, 256 KiB where nothing is blank. Tensors of integers, vectors and small matrices may be zero.
pub fn find_blank(
    file: &mut (impl Read + Seek),
    len: u64,
    tensors: &[Tensor],
    holes: &[Range<u64>],
) -> Result<Option<Blank>, WeightsError> {
    let mut weights: Vec<&Tensor> = tensors.iter().filter(|tensor| is_telling(tensor)).collect();
    weights.sort_by_key(|tensor| (tensor.place.start, tensor.place.end));
    let known = in_holes(&weights, holes, has_no_table(tensors));
    if known.is_some() {
        return Ok(known);
    }
    if let Some(gap) = weights.iter().find_map(|tensor| gap(tensor, len, holes)) {
        return Ok(Some(Blank { first: gap, hole: true, suspected: true, tensors: Vec::new(), count: 0 }));
    }
    let region = match (weights.first(), weights.iter().map(|tensor| tensor.place.end).max()) {
        (Some(first), Some(end)) => first.place.start..end,
        _ if tensors.is_empty() => 0..len,
        _ => return Ok(None),
    };
    sample(file, &region, &weights)
}

fn has_no_table(tensors: &[Tensor]) -> bool {
    tensors.is_empty()
}

/// Whether a tensor says something by being zero.
fn is_telling(tensor: &Tensor) -> bool {
    let is_integer = ["I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"].contains(&tensor.dtype.as_str());
    let length = tensor.place.end.saturating_sub(tensor.place.start);
    !is_integer && length >= MIN_TENSOR && tensor.shape.iter().filter(|side| **side > 1).count() >= 2
}

/// The pages that a range has for itself.
fn inner(range: &Range<u64>) -> Range<u64> {
    range.start.next_multiple_of(PAGE)..range.end / PAGE * PAGE
}

fn in_holes(weights: &[&Tensor], holes: &[Range<u64>], no_table: bool) -> Option<Blank> {
    let mut first = None;
    let mut names: Vec<&str> = Vec::new();
    for tensor in weights {
        let pages = inner(&tensor.place);
        // Holes are sorted and apart: only one can cover all of a range.
        let at = holes.partition_point(|hole| hole.end <= pages.start);
        let Some(hole) = holes.get(at) else { continue };
        let common = hole.start.max(tensor.place.start)..hole.end.min(tensor.place.end);
        let is_whole = hole.start <= pages.start && hole.end >= pages.end;
        if is_whole {
            names.push(&tensor.name);
        }
        if is_whole || common.end.saturating_sub(common.start) >= MIN_RANGE {
            first.get_or_insert(common);
        }
    }
    if no_table {
        first = holes.iter().find(|hole| hole.end - hole.start >= MIN_RANGE).cloned();
    }
    let tensors = names.iter().take(MAX_NAMES).map(|name| (*name).to_owned()).collect();
    Some(Blank { first: first?, hole: true, suspected: false, tensors, count: names.len() })
}

/// A hole within a tensor, or at the very end of the file of `len` bytes.
///
/// One that ends where its tensor ends is excused: the rows of a vocabulary that nobody uses are there.
fn gap(tensor: &Tensor, len: u64, holes: &[Range<u64>]) -> Option<Range<u64>> {
    let pages = inner(&tensor.place);
    let first = holes.partition_point(|hole| hole.end <= pages.start);
    let own = holes[first..].iter().take_while(|hole| hole.start < pages.end);
    own.filter(|hole| hole.end < pages.end || hole.end > tensor.place.end.next_multiple_of(PAGE) || hole.end == len)
        .map(|hole| hole.start.max(tensor.place.start)..hole.end.min(tensor.place.end))
        .find(|common| common.end.saturating_sub(common.start) >= MIN_GAP)
}

fn sample(
    file: &mut (impl Read + Seek),
    region: &Range<u64>,
    weights: &[&Tensor],
) -> Result<Option<Blank>, WeightsError> {
    let length = region.end.saturating_sub(region.start);
    if length < SAMPLES * PAGE {
        return Ok(None);
    }
    let mut names: Vec<&str> = Vec::new();
    let mut first: Option<Range<u64>> = None;
    let mut looked_at = None;
    for index in 0..SAMPLES {
        // The middle of each part, and the very last page for the last.
        let at = if index == SAMPLES - 1 {
            region.end - PAGE
        } else {
            region.start + length / SAMPLES * index + length / SAMPLES / 2
        };
        if !is_zero(file, at)? {
            continue;
        }
        let after = weights.partition_point(|tensor| tensor.place.start <= at);
        let tensor = after.checked_sub(1).map(|before| weights[before]).filter(|tensor| tensor.place.contains(&at));
        let Some(tensor) = tensor else {
            if weights.is_empty()
                && let Some(range) = run_of_zeros(file, at, region)?
            {
                first.get_or_insert(range);
                break;
            }
            continue;
        };
        if looked_at.replace(&tensor.name) == Some(&tensor.name) {
            continue;
        }
        if is_zero_throughout(file, &inner(&tensor.place))? {
            names.push(&tensor.name);
            first.get_or_insert_with(|| tensor.place.clone());
        } else if let Some(range) = run_of_zeros(file, at, &tensor.place)? {
            first.get_or_insert(range);
        }
    }
    let tensors = names.iter().take(MAX_NAMES).map(|name| (*name).to_owned()).collect();
    Ok(first.map(|first| Blank { first, hole: false, suspected: false, tensors, count: names.len() }))
}

fn is_zero(file: &mut (impl Read + Seek), at: u64) -> Result<bool, WeightsError> {
    let mut page = [0; PAGE as usize];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut page)).map_err(WeightsError::Io)?;
    Ok(page.iter().all(|byte| *byte == 0))
}

fn is_zero_throughout(file: &mut (impl Read + Seek), range: &Range<u64>) -> Result<bool, WeightsError> {
    let length = range.end.saturating_sub(range.start);
    for index in 0..PROBES {
        let at = range.start + length.saturating_sub(PAGE) / (PROBES - 1) * index;
        if !is_zero(file, at)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The zeros around `at` within `limits`, looked at once a MiB, if there are enough of them.
fn run_of_zeros(
    file: &mut (impl Read + Seek),
    at: u64,
    limits: &Range<u64>,
) -> Result<Option<Range<u64>>, WeightsError> {
    let step = MIN_RANGE / PROBES;
    let mut range = at..at + PAGE;
    while range.end + step <= limits.end
        && range.end - range.start < MIN_RANGE
        && is_zero(file, range.end + step - PAGE)?
    {
        range.end += step;
    }
    while range.start >= limits.start + step
        && range.end - range.start < MIN_RANGE
        && is_zero(file, range.start - step)?
    {
        range.start -= step;
    }
    Ok((range.end - range.start >= MIN_RANGE).then_some(range))
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one hole is a list of one range")]
mod tests {
    use std::io::Cursor;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn tensor(name: &str, dtype: &str, shape: &[u64], place: Range<u64>) -> Tensor {
        Tensor { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), place }
    }

    fn four() -> Vec<Tensor> {
        (0..4).map(|i| tensor(&format!("t{i}"), "F32", &[512, 512], 100 + i * MIB..100 + (i + 1) * MIB)).collect()
    }

    fn bytes(len: u64) -> Vec<u8> {
        vec![1; len as usize]
    }

    fn find(bytes: &[u8], tensors: &[Tensor], holes: &[Range<u64>]) -> Option<Blank> {
        find_blank(&mut Cursor::new(bytes), bytes.len() as u64, tensors, holes).unwrap()
    }

    #[test]
    fn a_file_that_was_written_has_nothing_blank() {
        assert_eq!(find(&bytes(100 + 4 * MIB), &four(), &[]), None);
        assert_eq!(find(b"short", &[], &[]), None);
    }

    #[test]
    fn tensors_in_holes_are_named() {
        let data = bytes(100 + 4 * MIB);
        let found = find(&data, &four(), &[MIB..3 * MIB + 4096]).unwrap();
        assert_eq!((found.hole, found.count), (true, 2));
        assert_eq!(
            found.to_string(),
            format!("bytes {} to {} were never written: tensors t1, t2 are blank", MIB + 100, 2 * MIB + 100)
        );
    }

    #[test]
    fn zeros_are_found_by_samples() {
        let mut data = bytes(100 + 4 * MIB);
        data[100 + 2 * MIB as usize..100 + 3 * MIB as usize].fill(0);
        let found = find(&data, &four(), &[]).unwrap();
        assert_eq!((found.hole, found.tensors), (false, vec!["t2".to_owned()]));
    }

    #[test]
    fn what_may_be_zero_is_not_blamed() {
        let mut data = bytes(100 + 4 * MIB);
        data[100..100 + MIB as usize].fill(0);
        let mut tensors = four();
        tensors[0].dtype = "I32".to_owned();
        assert_eq!(find(&data, &tensors, &[4096..MIB]), None, "integers");
        tensors[0] = tensor("t0", "F32", &[512 * 512], 100..100 + MIB);
        assert_eq!(find(&data, &tensors, &[4096..MIB]), None, "a vector");
        let mut data = bytes(100 + 4 * MIB);
        data[100..100 + MIB as usize / 2].fill(0);
        assert_eq!(find(&data, &four(), &[]), None, "half a tensor of a MiB");
    }

    #[test]
    fn a_hole_in_the_middle_of_a_tensor_is_suspected() {
        let data = bytes(100 + 4 * MIB);
        let page = 4096;
        let found = find(&data, &four(), &[MIB + 16 * page..MIB + 80 * page]).unwrap();
        assert!(found.suspected && found.hole && found.count == 0, "{found:?}");
        assert_eq!(found.first, MIB + 16 * page..MIB + 80 * page);
        assert!(found.to_string().ends_with("were never written, or left out as zeros"), "{found}");
        let (end, crossing) = (100 + 4 * MIB, MIB / 2 + 4096..MIB + 8192);
        assert_eq!(find(&data, &four(), &[crossing]).unwrap().first, MIB / 2 + 4096..MIB + 100, "into the next one");
        assert_eq!(find(&data, &four(), &[end - 80 * page..end]).unwrap().first.end, end, "at the end of the file");
        let several = [MIB + 4 * page..MIB + 5 * page, MIB + 100 * page..MIB + 200 * page];
        assert_eq!(find(&data, &four(), &several).unwrap().first, several[1], "rows of padding are passed over");
        assert_eq!(find(&data, &four(), &several[..1]), None, "a row of padding");
        let unused = 2 * MIB - 80 * page..2 * MIB + 4096;
        assert_eq!(find(&data, &four(), &[unused]), None, "unused rows of a vocabulary");
    }

    #[test]
    fn a_long_range_within_one_tensor_is_found() {
        let all = [tensor("t", "BF16", &[4096, 8192], 100..100 + 64 * MIB)];
        let mut data = bytes(100 + 64 * MIB);
        data[20 * MIB as usize..].fill(0);
        let found = find(&data, &all, &[]).unwrap();
        assert!(found.tensors.is_empty() && found.first.start >= 20 * MIB, "{found:?}");
        assert!(find(&data, &[], &[]).is_some(), "also without a header");
        let found = find(&bytes(100 + 64 * MIB), &all, &[20 * MIB..64 * MIB]).unwrap();
        assert_eq!(found.to_string(), "bytes 20971520 to 67108864 were never written");
    }
}
