//! Which bytes of a file are on the disk, as joined ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint ranges; neighbours are joined.
#[derive(Debug, Clone, Default)]
pub(in crate::apply) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// Adds a range.
    pub(in crate::apply) fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.0.range(..=start).next_back().filter(|(_, end)| **end >= start) {
            start = before;
            end = end.max(before_end);
        }
        let swallowed: Vec<u64> = self.0.range(start..=end).map(|(start, _)| *start).collect();
        for begin in swallowed {
            end = end.max(self.0.remove(&begin).unwrap_or(end));
        }
        self.0.insert(start, end);
    }

    /// Takes a range out.
    pub(in crate::apply) fn remove(&mut self, range: &Range<u64>) {
        let touched: Vec<(u64, u64)> = self
            .0
            .range(..range.end)
            .filter(|(_, end)| **end > range.start)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in touched {
            self.0.remove(&start);
            self.insert(start..range.start);
            self.insert(range.end..end);
        }
    }

    /// First byte at or after `at` that is not in here.
    pub(in crate::apply) fn reach(&self, at: u64) -> u64 {
        self.0.range(..=at).next_back().map_or(at, |(_, end)| at.max(*end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_tell_what_a_list_of_bytes_tells(
            changes in prop::collection::vec((any::<bool>(), 0_u64..40, 0_u64..12), 0..40),
        ) {
            let (mut spans, mut bytes) = (Spans::default(), [false; 64]);
            for (add, start, len) in changes {
                let range = start..start + len;
                bytes[start as usize..(start + len) as usize].fill(add);
                if add { spans.insert(range) } else { spans.remove(&range) }
                for at in 0..64 {
                    let reach = (at..64).find(|at| !bytes[*at]).unwrap_or(64);
                    prop_assert_eq!(spans.reach(at as u64), reach as u64, "{:?} at {}", spans, at);
                }
                prop_assert!(spans.0.iter().zip(spans.0.iter().skip(1)).all(|(a, b)| a.1 < b.0), "{:?}", spans);
            }
        }
    }
}
