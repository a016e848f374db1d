//! Limits as people type them: `2h`, `200GB`, `7d`.

use std::str::FromStr;
use std::time::Duration;

use crate::size::Bytes;
use crate::verify::Budget;

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

/// Reads `90s`, `30min`, `2h`, `7d` and `4w`.
impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
        let seconds = match unit {
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return Err(format!("{text:?} is not a length of time: write 30min, 2h or 7d")),
        };
        let number: Option<f64> = number.trim().parse().ok();
        let number = number.filter(|number| number.is_finite() && (0.0..1e6).contains(number));
        let number = number.ok_or_else(|| format!("{text:?} is not a length of time: write 30min, 2h or 7d"))?;
        Ok(Self(Duration::from_secs_f64(number * seconds)))
    }
}

/// Reads a length of time or a number of bytes with its unit.
pub(super) fn budget(text: &str) -> Result<Budget, String> {
    if let Ok(Span(time)) = text.parse() {
        return Ok(Budget { time: Some(time), bytes: None });
    }
    let has_unit = text.contains(|c: char| c.is_ascii_alphabetic());
    let bytes = text.parse::<Bytes>().ok().filter(|_| has_unit);
    let bytes = bytes.ok_or_else(|| format!("{text:?} is neither a time nor a size: write 2h or 200GB"))?;
    Ok(Budget { bytes: Some(bytes.0), time: None })
}

/// Reads bytes per second: `80 MB/s`, or without the `/s`.
pub(super) fn rate(text: &str) -> Result<Bytes, String> {
    let per_second = text.trim().trim_end_matches("/s");
    let rate = per_second.parse::<Bytes>().ok().filter(|rate| rate.0 > 0);
    rate.ok_or_else(|| format!("{text:?} is not a rate: write 80MB/s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_told_apart() {
        assert_eq!(budget("2h"), Ok(Budget { time: Some(Duration::from_secs(7200)), bytes: None }));
        assert_eq!(budget("0.5 d"), Ok(Budget { time: Some(Duration::from_secs(43_200)), bytes: None }));
        assert_eq!(budget("200GB"), Ok(Budget { bytes: Some(200_000_000_000), time: None }));
        assert_eq!("30min".parse(), Ok(Span(Duration::from_secs(1800))));
        for bad in ["", "7", "h", "-2h", "2 fortnights", "1e9h", "nand"] {
            assert!(budget(bad).is_err() && bad.parse::<Span>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(rate("80 MB/s"), Ok(Bytes(80_000_000)));
        assert!(rate("0").is_err() && rate("fast").is_err());
    }
}
