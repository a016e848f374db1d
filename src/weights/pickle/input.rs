//! Reading a pickle forward, never beyond its end.

use std::io::{BufReader, Read, Seek, SeekFrom};

use crate::weights::WeightsError;
use crate::weights::pickle::MAX_PICKLE;

/// Texts up to this length are kept; no name of a tensor is longer.
const MAX_TEXT: u64 = 1 << 16;

/// The bytes from one place of a file to another.
pub(crate) struct Input<R> {
    file: BufReader<R>,
    at: u64,
    end: u64,
    /// Instructions may not be read further than this; data may be passed over.
    budget: u64,
}

impl<R: Read + Seek> Input<R> {
    /// Stands at byte `start` of `file` and ends before byte `end`.
    pub(crate) fn new(mut file: R, start: u64, end: u64) -> Result<Self, WeightsError> {
        file.seek(SeekFrom::Start(start)).map_err(WeightsError::Io)?;
        Ok(Self { file: BufReader::with_capacity(1 << 16, file), at: start, end, budget: MAX_PICKLE })
    }

    /// Where it stands in the file.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> u64 {
        self.end - self.at
    }

    fn advance(&mut self, by: u64) -> Result<(), WeightsError> {
        let needed = self.at.saturating_add(by);
        if needed > self.end {
            return Err(WeightsError::Truncated { what: "the pickle".to_owned(), needed, len: self.end });
        }
        self.at = needed;
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), WeightsError> {
        let length = buffer.len() as u64;
        self.advance(length)?;
        self.budget = self.budget.checked_sub(length).ok_or_else(|| {
            WeightsError::malformed(format!("the pickle has more than {MAX_PICKLE} bytes of instructions"))
        })?;
        self.file.read_exact(buffer).map_err(WeightsError::Io)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, WeightsError> {
        let mut byte = [0];
        self.read(&mut byte)?;
        Ok(byte[0])
    }

    /// The next `length` bytes, of which there are not many.
    pub(crate) fn text_of(&mut self, length: u64) -> Result<Vec<u8>, WeightsError> {
        if length > self.left() {
            return self.advance(length).map(|()| Vec::new());
        }
        let mut bytes = vec![0; length as usize];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Stands one byte before where it stood.
    pub(crate) fn back(&mut self) -> Result<(), WeightsError> {
        self.at -= 1;
        self.file.seek_relative(-1).map_err(WeightsError::Io)
    }

    /// A little-endian number of up to eight bytes, without a sign.
    pub(crate) fn number(&mut self, width: u32) -> Result<u64, WeightsError> {
        let mut bytes = [0; 8];
        self.read(&mut bytes[..width as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn skip(&mut self, length: u64) -> Result<(), WeightsError> {
        self.advance(length)?;
        let length = i64::try_from(length).map_err(|_| WeightsError::malformed("the pickle is too long"))?;
        self.file.seek_relative(length).map_err(WeightsError::Io)
    }

    /// A text in UTF-8; `None` for one that is too long for a name, or is none.
    pub(crate) fn text(&mut self, length: u64) -> Result<Option<String>, WeightsError> {
        if length > MAX_TEXT {
            return self.skip(length).map(|()| None);
        }
        let mut bytes = vec![0; length as usize];
        self.read(&mut bytes)?;
        Ok(String::from_utf8(bytes).ok())
    }

    /// The rest of the line, without its end.
    pub(crate) fn line(&mut self) -> Result<String, WeightsError> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                _ if line.len() as u64 >= MAX_TEXT => {
                    return Err(WeightsError::malformed("the pickle has a line without an end"));
                }
                byte => line.push(byte),
            }
        }
    }
}
