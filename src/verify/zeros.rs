//! Parts of a content that hold nothing but zeros.

use std::ops::Range;

/// What counts as such a part, aligned.
pub(super) const PAGE: usize = 4096;

/// Collects parts that hold nothing but zeros, in the order of the content.
pub(super) struct Zeros {
    least: u64,
    ranges: Vec<Range<u64>>,
}

impl Zeros {
    /// Shorter parts than `least` bytes are left out.
    pub(super) fn of_at_least(least: u64) -> Self {
        Self { least, ranges: Vec::new() }
    }

    /// Looks at the `bytes` that begin at `offset`, a multiple of the page.
    pub(super) fn look(&mut self, offset: u64, bytes: &[u8]) {
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            let start = offset + (number * PAGE) as u64;
            let end = start + page.len() as u64;
            if page.len() < PAGE || page.iter().any(|byte| *byte != 0) {
                continue;
            }
            match self.ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                // What turned out to be too short makes room: files may have millions of such parts.
                Some(last) if last.end - last.start < self.least => *last = start..end,
                _ => self.ranges.push(start..end),
            }
        }
    }

    /// What was found.
    pub(super) fn ranges(mut self) -> Vec<Range<u64>> {
        let least = self.least;
        self.ranges.retain(|range| range.end - range.start >= least);
        self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_over_pieces_and_short_ones_left_out() {
        let mut content = vec![1; 16 * PAGE];
        content[2 * PAGE..3 * PAGE].fill(0);
        content[5 * PAGE..9 * PAGE].fill(0);
        content[12 * PAGE + 1..15 * PAGE].fill(0);
        let found = |least| {
            let mut zeros = Zeros::of_at_least(least);
            zeros.look(0, &content[..7 * PAGE]);
            zeros.look(7 * PAGE as u64, &content[7 * PAGE..]);
            zeros.ranges().iter().map(|range| range.start / PAGE as u64..range.end / PAGE as u64).collect::<Vec<_>>()
        };
        assert_eq!(found(1), [2..3, 5..9, 13..15]);
        assert_eq!(found(2 * PAGE as u64), [5..9, 13..15]);
        assert_eq!(found(3 * PAGE as u64), std::iter::once(5..9).collect::<Vec<_>>());
    }
}
