//! What a run computed, in few numbers, and how far that is from what another run computed.

use serde::{Deserialize, Serialize};

use crate::smoke::Run;

/// Numbers of one summary.
const MOST: usize = 256;

/// Something that a run computed, in at most 256 numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What it is, such as `latent after the last step`; the same in every run.
    pub name: String,
    /// Numbers of it, evenly spread, in their order; where they must be the same, the first ones.
    pub numbers: Vec<f32>,
    /// Whether another run must have the very same numbers: they are not measured but chosen, like the tokens of an
    /// answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
}

impl Summary {
    /// Sums up `numbers`, of which those beyond 256 are left out, evenly.
    pub fn of(name: impl Into<String>, numbers: &[f32]) -> Self {
        let count = numbers.len().min(MOST);
        let numbers = (0..count).map(|i| numbers[i * numbers.len() / count]).collect();
        Self { name: name.into(), numbers, exact: false }
    }

    /// The first 256 tokens of an answer.
    pub fn tokens(name: impl Into<String>, tokens: &[u32]) -> Self {
        // Vocabularies have fewer than 2^24 tokens, which single precision holds as they are.
        let numbers = tokens.iter().take(MOST).map(|token| *token as f32).collect();
        Self { name: name.into(), numbers, exact: true }
    }

    /// The one of the same name in `run`; where there is none, it is added to what is wrong.
    pub(super) fn counterpart<'a>(&self, run: &'a Run, wrong: &mut Vec<String>) -> Option<&'a Self> {
        let found = run.summaries.iter().find(|found| found.name == self.name);
        if found.is_none() {
            wrong.push(format!("{}: this run has none", self.name));
        }
        found
    }

    /// The first place where `other` has another number, or none any more.
    pub(super) fn parting(&self, other: &Self) -> Option<usize> {
        let (a, b) = (&self.numbers, &other.numbers);
        (a != b).then(|| a.iter().zip(b).take_while(|(a, b)| a == b).count())
    }

    /// The largest distance between one of `trusted` and the one of the same name in `found`: the length of the
    /// difference as a part of the trusted one's length; infinite where one is missing or cannot be compared.
    pub fn farthest(trusted: &[Self], found: &[Self]) -> f64 {
        let of = |trusted: &Self| {
            let found = found.iter().find(|found| found.name == trusted.name);
            found.map_or(f64::INFINITY, |found| trusted.distance(found))
        };
        trusted.iter().map(of).fold(0.0, f64::max)
    }

    /// The length of the difference to `other` as a part of the length of `self`; infinite where they cannot be
    /// compared.
    pub(super) fn distance(&self, other: &Self) -> f64 {
        if self.numbers.len() != other.numbers.len() {
            return f64::INFINITY;
        }
        let square = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
        let pairs = self.numbers.iter().zip(&other.numbers);
        let apart = square(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let length = square(&mut self.numbers.iter().map(|a| f64::from(*a)));
        let distance = (apart / length).sqrt();
        match (apart == 0.0, distance.is_nan()) {
            (true, _) => 0.0,
            (false, true) => f64::INFINITY,
            (false, false) => distance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_things_are_thinned_out_evenly() {
        let numbers: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let summary = Summary::of("it", &numbers);
        assert_eq!((summary.numbers.len(), summary.numbers[255]), (256, 996.0));
        assert_eq!(Summary::of("it", &[]).numbers.len(), 0);
    }
}
