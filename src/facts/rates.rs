//! How fast content moves: measured by every run, asked by every plan.

use std::collections::{BTreeMap, HashMap};

use rusqlite::params;

use super::{Facts, FactsError};

/// What one run moved from or to one place.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moved {
    /// Bytes.
    pub bytes: u64,
    /// How long the place was at work.
    pub seconds: f64,
}

/// Bytes per second of the places that were measured.
#[derive(Debug, Clone, Default)]
pub struct Rates(HashMap<String, f64>);

impl Rates {
    /// How many seconds so many bytes take, each place at its own rate and all at the same time.
    ///
    /// `None` where nothing is to be moved, or where one of the places was never measured.
    pub fn seconds(&self, by_place: &BTreeMap<String, u64>) -> Option<f64> {
        let busy = by_place.iter().filter(|(_, bytes)| **bytes > 0);
        let each = busy.map(|(place, bytes)| Some(*bytes as f64 / self.0.get(place)?));
        each.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::max)
    }
}

/// Less says nothing about a rate: making connections takes longer.
const WORTH_NOTING: u64 = 1 << 20;

impl Facts {
    /// Remembers what a run moved; a short one changes little of what longer ones have told.
    pub fn record_moved(&self, place: &str, moved: Moved) -> Result<(), FactsError> {
        if moved.bytes < WORTH_NOTING || moved.seconds <= 0.0 {
            return Ok(());
        }
        let add = "INSERT INTO rate VALUES (?1, ?2, ?3) ON CONFLICT (place) \
                   DO UPDATE SET bytes = bytes / 2 + ?2, seconds = seconds / 2 + ?3";
        self.database(|connection| {
            connection.prepare_cached(add)?.execute(params![place, moved.bytes as f64, moved.seconds]).map(|_| ())
        })
    }

    /// The rates of all places that were measured.
    pub fn rates(&self) -> Result<Rates, FactsError> {
        self.database(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT place, bytes / seconds FROM rate WHERE seconds > 0")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(Rates(rows.collect::<Result<_, _>>()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_slowest_place_says_how_long_it_takes_and_an_unknown_one_that_nobody_knows() {
        let facts = Facts::in_memory().unwrap();
        let to_move =
            |places: &[(&str, u64)]| places.iter().map(|(place, bytes)| ((*place).to_owned(), *bytes)).collect();
        facts.record_moved("pc1", Moved { bytes: 100 * MIB, seconds: 1.0 }).unwrap();
        facts.record_moved("the hub", Moved { bytes: 10 * MIB, seconds: 1.0 }).unwrap();
        facts.record_moved("tiny", Moved { bytes: 10, seconds: 1.0 }).unwrap();
        let rates = facts.rates().unwrap();
        assert_eq!(rates.seconds(&to_move(&[("pc1", 1000 * MIB), ("the hub", 50 * MIB)])), Some(10.0));
        assert_eq!(rates.seconds(&to_move(&[("pc1", 1), ("tiny", 5)])), None, "too little was moved to know");
        assert_eq!(rates.seconds(&to_move(&[("pc1", MIB), ("tiny", 0)])), Some(0.01), "nothing comes from there");
        assert_eq!(rates.seconds(&to_move(&[])), None);
    }

    #[test]
    fn a_short_run_changes_little() {
        let facts = Facts::in_memory().unwrap();
        facts.record_moved("pc1", Moved { bytes: 20_000 * MIB, seconds: 200.0 }).unwrap();
        facts.record_moved("pc1", Moved { bytes: 2 * MIB, seconds: 2.0 }).unwrap();
        let seconds = facts.rates().unwrap().seconds(&BTreeMap::from([("pc1".to_owned(), 100 * MIB)])).unwrap();
        assert!((1.0..1.1).contains(&seconds), "{seconds}");
    }
}
