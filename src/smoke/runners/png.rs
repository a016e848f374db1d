//! Pictures as PNG files, videos as animated ones: 8 bits a colour, not compressed, which every browser shows. A program
//! that knows no animation shows the first frame.

use std::io;
use std::path::Path;

use crate::fsio::{WriteOptions, write_atomic};

/// Bytes of a block that is stored as it is.
const BLOCK: usize = 0xffff;

/// A picture: colour after colour (red, green, blue), each row by row, from 0 to 1. Of a video, frame after frame.
pub(super) struct Picture<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) colours: &'a [f32],
    /// Frames a second, where there are several.
    pub(super) rate: u16,
}

/// Writes a picture.
///
/// Fails where the picture has not three numbers for each pixel of each frame, or cannot be written.
pub(super) fn write(path: &Path, picture: &Picture<'_>) -> io::Result<()> {
    write_atomic(path, &bytes(picture)?, &WriteOptions::default())
}

fn bytes(picture: &Picture<'_>) -> io::Result<Vec<u8>> {
    let frame = 3 * picture.width * picture.height;
    let sides = [picture.width, picture.height].map(u32::try_from);
    let ([Ok(width), Ok(height)], true) = (sides, frame > 0 && picture.colours.len().is_multiple_of(frame)) else {
        return Err(io::Error::other("the picture has not three numbers for each pixel"));
    };
    let frames: Vec<Vec<u8>> = picture.colours.chunks(frame).map(|colours| stored(&rows(picture, colours))).collect();
    let Some((first, others)) = frames.split_first() else {
        return Err(io::Error::other("the picture has no frame"));
    };
    // 8 bits, true colour, the only ways to compress and filter, not interlaced.
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let mut out = [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header)].concat();
    // Numbers all control chunks and all data but the first, in one row.
    let mut number = 0_u32..;
    let mut next = || number.next().unwrap_or_default().to_be_bytes();
    let control = |number: [u8; 4]| {
        let sides = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[0; 8]].concat();
        let delay = [1_u16.to_be_bytes(), picture.rate.to_be_bytes()].concat();
        // Whole frames: neither disposed of nor blended.
        chunk(b"fcTL", &[&number[..], &sides, &delay, &[0, 0]].concat())
    };
    if !others.is_empty() {
        // So many frames, for ever.
        out.extend(chunk(b"acTL", &[(frames.len() as u32).to_be_bytes(), [0; 4]].concat()));
        out.extend(control(next()));
    }
    out.extend(chunk(b"IDAT", first));
    for frame in others {
        out.extend(control(next()));
        out.extend(chunk(b"fdAT", &[&next()[..], frame].concat()));
    }
    out.extend(chunk(b"IEND", &[]));
    Ok(out)
}

/// The rows of a frame, each stored without a filter.
fn rows(picture: &Picture<'_>, colours: &[f32]) -> Vec<u8> {
    let pixels = picture.width * picture.height;
    let colour = |number: f32| (number.clamp(0.0, 1.0) * 255.0).round() as u8;
    let mut rows = Vec::with_capacity(3 * pixels + picture.height);
    for row in 0..picture.height {
        rows.push(0);
        let pixel = |at: usize| [0, 1, 2].map(|plane| colour(colours[plane * pixels + at]));
        rows.extend((row * picture.width..(row + 1) * picture.width).flat_map(pixel));
    }
    rows
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
        let of = |width, height, colours| Picture { width, height, colours, rate: 1 };
        assert!(bytes(&of(2, 2, &[0.0; 11])).is_err());
        assert!(bytes(&of(2, 2, &[])).is_err());
        assert!(bytes(&of(0, 2, &[])).is_err());
        let png = bytes(&of(200, 150, &[0.5; 90_000])).unwrap();
        // Signature, three chunks, two blocks, 150 rows.
        assert_eq!(png.len(), 8 + (12 + 13) + (12 + 2 + 2 * 5 + 4 + 150 * 601) + 12);
    }

    /// Names and contents of a file's chunks, whose sums are right.
    fn chunks(file: &[u8]) -> Vec<(&str, &[u8])> {
        let (mut rest, mut found) = (&file[8..], Vec::new());
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            let sum = u32::from_be_bytes(rest[8 + length..12 + length].try_into().unwrap());
            assert_eq!(crc32(&rest[4..8 + length]), sum);
            found.push((std::str::from_utf8(&rest[4..8]).unwrap(), &rest[8..8 + length]));
            rest = &rest[12 + length..];
        }
        found
    }

    #[test]
    fn a_video_is_a_picture_with_frames_behind_it() {
        let colours: Vec<f32> = (0..3 * 6 * 3).map(|i| (i * 37 % 256) as f32 / 255.0).collect();
        let of = |colours| Picture { width: 3, height: 2, colours, rate: 16 };
        let (video, still) = (bytes(&of(&colours)).unwrap(), bytes(&of(&colours[..18])).unwrap());
        let (video, still) = (chunks(&video), chunks(&still));
        let names: Vec<&str> = video.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["IHDR", "acTL", "fcTL", "IDAT", "fcTL", "fdAT", "fcTL", "fdAT", "IEND"]);
        assert_eq!(still, [video[0], video[3], video[8]], "what knows no animation sees the first frame");
        assert_eq!(video[1].1, [0, 0, 0, 3, 0, 0, 0, 0], "three frames, for ever");
        let numbered = video.iter().filter(|(name, _)| ["fcTL", "fdAT"].contains(name));
        assert!(numbered.enumerate().all(|(i, (_, data))| data[..4] == (i as u32).to_be_bytes()));
        assert_eq!(video[4].1[4..], [0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 16, 0, 0]);
        for (frame, place) in [(1, 5), (2, 7)] {
            let alone = bytes(&of(&colours[18 * frame..18 * (frame + 1)])).unwrap();
            assert_eq!(video[place].1[4..], *chunks(&alone)[1].1);
        }
    }
}
