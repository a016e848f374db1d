//! Pictures as PNG files: 8 bits a colour, not compressed, which every program reads.

use std::io;
use std::path::Path;

use crate::fsio::{WriteOptions, write_atomic};

/// Bytes of a block that is stored as it is.
const BLOCK: usize = 0xffff;

/// A picture: colour after colour (red, green, blue), each row by row, from 0 to 1.
pub(super) struct Picture<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) colours: &'a [f32],
}

/// Writes a picture.
///
/// Fails where the picture has not three numbers for each pixel, or cannot be written.
pub(super) fn write(path: &Path, picture: &Picture<'_>) -> io::Result<()> {
    write_atomic(path, &bytes(picture)?, &WriteOptions::default())
}

fn bytes(picture: &Picture<'_>) -> io::Result<Vec<u8>> {
    let pixels = picture.width * picture.height;
    let sides = [picture.width, picture.height].map(u32::try_from);
    let ([Ok(width), Ok(height)], true) = (sides, picture.colours.len() == 3 * pixels) else {
        return Err(io::Error::other("the picture has not three numbers for each pixel"));
    };
    let colour = |number: f32| (number.clamp(0.0, 1.0) * 255.0).round() as u8;
    let mut rows = Vec::with_capacity(3 * pixels + picture.height);
    for row in 0..picture.height {
        // Each row is stored without a filter.
        rows.push(0);
        let pixel = |at: usize| [0, 1, 2].map(|plane| colour(picture.colours[plane * pixels + at]));
        rows.extend((row * picture.width..(row + 1) * picture.width).flat_map(pixel));
    }
    // 8 bits, true colour, the only ways to compress and filter, not interlaced.
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let parts = [chunk(b"IHDR", &header), chunk(b"IDAT", &stored(&rows)), chunk(b"IEND", &[])];
    Ok([&b"\x89PNG\r\n\x1a\n"[..], &parts.concat()].concat())
}

fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let named = [&name[..], data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &named, &crc32(&named).to_be_bytes()].concat()
}

/// A zlib stream of blocks as they are.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let blocks = data.len().div_ceil(BLOCK).max(1);
    for index in 0..blocks {
        let block = &data[index * BLOCK..data.len().min((index + 1) * BLOCK)];
        let length = block.len() as u16;
        out.push(u8::from(index + 1 == blocks));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(block);
    }
    out.extend(adler32(data).to_be_bytes());
    out
}

fn adler32(data: &[u8]) -> u32 {
    let (a, b) = data.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

fn crc32(data: &[u8]) -> u32 {
    let bit = |sum: u32, _| if sum & 1 == 1 { 0xedb8_8320 ^ sum >> 1 } else { sum >> 1 };
    !data.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_the_usual_ones() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn a_picture_must_have_all_its_pixels() {
        assert!(bytes(&Picture { width: 2, height: 2, colours: &[0.0; 11] }).is_err());
        let png = bytes(&Picture { width: 200, height: 150, colours: &[0.5; 90_000] }).unwrap();
        // Signature, three chunks, two blocks, 150 rows.
        assert_eq!(png.len(), 8 + (12 + 13) + (12 + 2 + 2 * 5 + 4 + 150 * 601) + 12);
    }
}
