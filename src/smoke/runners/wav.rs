//! Sounds as WAV files.

use std::io;
use std::path::Path;

use crate::fsio::{WriteOptions, write_atomic};

/// Writes channels of numbers from -1 to 1 as 16-bit samples; as many of each as the shortest has.
pub(super) fn write(path: &Path, rate: u32, channels: &[&[f32]]) -> io::Result<()> {
    let too_large = |_| io::Error::other("the sound is too long for a WAV file");
    let count = u16::try_from(channels.len()).map_err(too_large)?;
    let frames = channels.iter().map(|channel| channel.len()).min().unwrap_or(0);
    let number = |sample: f32| ((sample.clamp(-1.0, 1.0) * 32767.0).round() as i16).to_le_bytes();
    let data: Vec<u8> =
        (0..frames).flat_map(|at| channels.iter().flat_map(move |channel| number(channel[at]))).collect();
    let length = u32::try_from(data.len()).ok().filter(|length| *length < u32::MAX - 36);
    let length = length.ok_or_else(|| io::Error::other("the sound is too long for a WAV file"))?;
    let header = [
        &b"RIFF"[..],
        &(36 + length).to_le_bytes(),
        b"WAVEfmt ",
        &16_u32.to_le_bytes(),
        // Plain samples.
        &1_u16.to_le_bytes(),
        &count.to_le_bytes(),
        &rate.to_le_bytes(),
        &(2 * u32::from(count) * rate).to_le_bytes(),
        &(2 * count).to_le_bytes(),
        &16_u16.to_le_bytes(),
        b"data",
        &length.to_le_bytes(),
    ];
    write_atomic(path, &[header.concat(), data].concat(), &WriteOptions::default())
}
