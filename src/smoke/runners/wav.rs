//! Sounds as WAV files.

use std::io;
use std::path::Path;

use crate::fsio::{WriteOptions, write_atomic};

/// Writes one channel of numbers from -1 to 1 as 16-bit samples.
pub(super) fn write(path: &Path, rate: u32, samples: &[f32]) -> io::Result<()> {
    let data: Vec<u8> =
        samples.iter().flat_map(|sample| ((sample.clamp(-1.0, 1.0) * 32767.0).round() as i16).to_le_bytes()).collect();
    let length = u32::try_from(data.len()).map_err(|_| io::Error::other("the sound is too long for a WAV file"))?;
    let header = [
        &b"RIFF"[..],
        &(36 + length).to_le_bytes(),
        b"WAVEfmt ",
        &16_u32.to_le_bytes(),
        // Plain samples of one channel.
        &[1, 0, 1, 0],
        &rate.to_le_bytes(),
        &(2 * rate).to_le_bytes(),
        &[2, 0, 16, 0],
        b"data",
        &length.to_le_bytes(),
    ];
    write_atomic(path, &[header.concat(), data].concat(), &WriteOptions::default())
}
