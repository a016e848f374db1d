//! Arrays of numpy: whether one holds objects, which are pickles, and whether those are harmless.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use crate::weights::WeightsError;
use crate::weights::pickle::{Input, follow};
use crate::weights::zip::shown;

/// The first bytes of every array.
pub(crate) const MAGIC: &[u8; 6] = b"\x93NUMPY";

const MAX_HEADER: u64 = 1 << 20;

/// Checks the array that is called `name` and lies at `place` of `file`; its numbers are not read.
pub(crate) fn check_array(file: &mut (impl Read + Seek), place: &Range<u64>, name: &str) -> Result<(), WeightsError> {
    let wrong = || WeightsError::malformed(format!("the array {:?} has no header", shown(name)));
    let mut input = Input::new(&mut *file, place.start, place.end)?;
    if input.text_of(6)? != *MAGIC {
        return Err(wrong());
    }
    let version = input.number(2)? & 0xff;
    let length = input.number(if version == 1 { 2 } else { 4 })?;
    if length > MAX_HEADER {
        return Err(wrong());
    }
    let header = String::from_utf8_lossy(&input.text_of(length)?).into_owned();
    let data = input.at();
    drop(input);
    if !has_objects(&header) {
        return Ok(());
    }
    file.seek(SeekFrom::Start(data)).map_err(WeightsError::Io)?;
    let followed = follow(&mut Input::new(file, data, place.end)?)?;
    if followed.findings.is_empty() {
        return Ok(());
    }
    Err(WeightsError::UnsafePickle { pickle: shown(name), findings: followed.findings.into_iter().collect() })
}

/// Whether the element type, as the header's `descr` writes it, has objects anywhere: `'|O'`, or a field of that.
fn has_objects(header: &str) -> bool {
    header.split(['\'', '"']).any(|part| matches!(part.trim_start_matches(['|', '<', '>', '=']), "O" | "O8" | "O4"))
}

#[cfg(test)]
mod tests {
    use super::has_objects;

    #[test]
    fn objects_are_seen_also_in_fields() {
        assert!(has_objects("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"));
        assert!(has_objects("{'descr': [('a', '<f4'), ('b', '|O8')], 'shape': (1,), }"));
        assert!(!has_objects("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"));
    }
}
