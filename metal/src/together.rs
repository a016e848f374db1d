//! Several SHA-256 streams at once on one processor, in the way that is the fastest there.

use crate::sha256::{BLOCK, Sha256};

/// A stream and what it takes next.
type Stream<'a, 'b> = (&'a mut Sha256, &'b [u8]);

/// Takes the next bytes of independent streams, as many at once as the processor can.
///
/// The same as a call of [`Sha256::update`] for each, whatever the lengths. The slices are used up: each is empty
/// afterwards.
pub fn update_together(streams: &mut [Stream<'_, '_>]) {
    for (stream, bytes) in streams.iter_mut() {
        *bytes = stream.fill_up(bytes);
        if stream.is_alone() {
            all_blocks(stream, bytes);
        }
    }
    loop {
        let mut whole: Vec<_> = streams.iter_mut().filter(|(_, bytes)| bytes.len() >= BLOCK).collect();
        if whole.is_empty() {
            break;
        }
        lockstep(&mut whole);
    }
    for (stream, bytes) in streams {
        stream.update(bytes);
        *bytes = &[];
    }
}

/// How many streams [`update_together`] takes at once at best: 16, 2 or 1.
pub fn streams_at_once() -> usize {
    best()
}

/// Takes blocks of some of the streams, which all have some, until one of them has none.
fn lockstep(streams: &mut [&mut Stream<'_, '_>]) {
    match streams {
        wide if wide.len() >= least_for_wide() => wide_blocks(wide),
        [first, second, ..] => pair(first, second),
        rest => rest.iter_mut().for_each(|(stream, bytes)| all_blocks(stream, bytes)),
    }
}

fn all_blocks(stream: &mut Sha256, bytes: &mut &[u8]) {
    let (now, later) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
    stream.update(now);
    *bytes = later;
}

fn pair(first: &mut Stream<'_, '_>, second: &mut Stream<'_, '_>) {
    let both = first.1.len().min(second.1.len()) / BLOCK;
    let (blocks, others) = (&first.1.as_chunks().0[..both], &second.1.as_chunks().0[..both]);
    if compress_pair(first.0.state(), blocks, second.0.state(), others) {
        took(first, both);
        took(second, both);
    } else {
        all_blocks(first.0, &mut first.1);
        all_blocks(second.0, &mut second.1);
    }
}

fn took((stream, bytes): &mut Stream<'_, '_>, blocks: usize) {
    stream.took(blocks);
    *bytes = &bytes[blocks * BLOCK..];
}

#[cfg(target_arch = "x86_64")]
use x86::{best, compress_pair, least_for_wide, wide_blocks};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::hint::black_box;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    use super::{Stream, took};
    use crate::sha_ni;
    use crate::sha_wide::{self, LANES};
    use crate::sha256::BLOCK;

    pub(super) use crate::sha_ni::compress_pair;

    /// Blocks of each stream that the two ways are timed with.
    const SAMPLE: usize = 64;
    /// The best of so many tries counts: the wide registers need some twenty microseconds to wake up, and others may take
    /// the processor away meanwhile.
    const TRIES: usize = 20;

    /// From how many streams on the wide registers are worth it; they cost the same however few they hold.
    pub(super) fn least_for_wide() -> usize {
        static LEAST: OnceLock<usize> = OnceLock::new();
        *LEAST.get_or_init(|| match (sha_wide::is_here(), sha_ni::is_here()) {
            (false, _) => usize::MAX,
            (true, false) => LANES / 4,
            (true, true) => measured(),
        })
    }

    pub(super) fn best() -> usize {
        match (least_for_wide(), sha_ni::is_here()) {
            (least, _) if least <= LANES => LANES,
            (_, true) => 2,
            (_, false) => 1,
        }
    }

    /// Processors differ: on some two streams of SHA instructions are as fast as sixteen in wide registers.
    ///
    /// Takes less than a millisecond, once.
    fn measured() -> usize {
        let blocks = [[0x5a; BLOCK]; SAMPLE];
        let fastest = |work: &dyn Fn()| {
            let times = (0..TRIES).map(|_| {
                let begin = Instant::now();
                work();
                begin.elapsed()
            });
            times.min().unwrap_or(Duration::ZERO).as_secs_f64()
        };
        let wide = fastest(&|| {
            let mut states = [[0; 8]; LANES];
            sha_wide::compress(&mut states.each_mut().map(|state| (state, &blocks[..])));
            black_box(states);
        });
        let two = fastest(&|| {
            let (mut first, mut second) = ([0; 8], [0; 8]);
            compress_pair(&mut first, &blocks, &mut second, &blocks);
            black_box((first, second));
        });
        let least = (2.0 * wide / two).ceil() as usize;
        if least <= LANES { least.max(3) } else { usize::MAX }
    }

    pub(super) fn wide_blocks(streams: &mut [&mut Stream<'_, '_>]) {
        let count = streams.len().min(LANES);
        let streams = &mut streams[..count];
        let blocks = streams.iter().map(|(_, bytes)| bytes.len() / BLOCK).min().unwrap_or(0);
        let mut lanes: Vec<_> =
            streams.iter_mut().map(|(stream, bytes)| (stream.state(), &bytes.as_chunks().0[..blocks])).collect();
        sha_wide::compress(&mut lanes);
        streams.iter_mut().for_each(|stream| took(stream, blocks));
    }
}

#[cfg(not(target_arch = "x86_64"))]
use elsewhere::{best, compress_pair, least_for_wide, wide_blocks};

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use super::Stream;
    use crate::sha256::BLOCK;

    pub(super) fn best() -> usize {
        1
    }

    pub(super) fn least_for_wide() -> usize {
        usize::MAX
    }

    pub(super) fn wide_blocks(_: &mut [&mut Stream<'_, '_>]) {
        unreachable!("no number of streams is enough for it")
    }

    pub(super) fn compress_pair(_: &mut [u32; 8], _: &[[u8; BLOCK]], _: &mut [u32; 8], _: &[[u8; BLOCK]]) -> bool {
        false
    }
}
