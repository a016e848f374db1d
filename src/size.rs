//! Byte counts, written for people and read from what people write.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes that prints in binary units (`25.7 GiB`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

const BINARY: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = 0;
        // 1023.95 would print as 1024.0, so the next unit begins a little earlier.
        while value >= 1023.95 && unit + 1 < BINARY.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = if unit == 0 { format!("{} B", self.0) } else { format!("{value:.1} {}", BINARY[unit]) };
        f.pad(&text)
    }
}

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: write bytes as a number, or a text such as \"25.7 GiB\" or \"26 GB\"")]
pub struct ParseSizeError(String);

/// Reads `706`, `25.7 GiB` (powers of 1024) and `26 GB` (powers of 1000); rounds to whole bytes.
impl FromStr for Bytes {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseSizeError(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor = unit_factor(unit.trim()).ok_or_else(refused)?;
        let number: f64 = number.trim().parse().map_err(|_| refused())?;
        let bytes = (number * factor).round();
        (bytes.is_finite() && (0.0..9.0e18).contains(&bytes)).then_some(Bytes(bytes as u64)).ok_or_else(refused)
    }
}

fn unit_factor(unit: &str) -> Option<f64> {
    let power = |base: f64, exponent: i32| Some(base.powi(exponent));
    match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Some(1.0),
        "kib" => power(1024.0, 1),
        "mib" => power(1024.0, 2),
        "gib" => power(1024.0, 3),
        "tib" => power(1024.0, 4),
        "kb" => power(1000.0, 1),
        "mb" => power(1000.0, 2),
        "gb" => power(1000.0, 3),
        "tb" => power(1000.0, 4),
        _ => None,
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as \"25.7 GiB\"")
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Bytes, E> {
                u64::try_from(value).map(Bytes).map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Bytes, E> {
                Ok(Bytes(value))
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Bytes, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        Bytes(iter.map(|bytes| bytes.0).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_in_binary_units() {
        let printed = |n| Bytes(n).to_string();
        assert_eq!(printed(0), "0 B");
        assert_eq!(printed(1023), "1023 B");
        assert_eq!(printed(1024), "1.0 KiB");
        assert_eq!(printed(16_460_379_262), "15.3 GiB");
        assert_eq!(printed(1024 * 1024 - 1), "1.0 MiB");
    }

    #[test]
    fn both_unit_families_are_read() {
        assert_eq!("26 GB".parse(), Ok(Bytes(26_000_000_000)));
        assert_eq!("1.5GiB".parse(), Ok(Bytes(1_610_612_736)));
        assert_eq!("706".parse(), Ok(Bytes(706)));
        for bad in ["", "GB", "12 parsecs", "-1", "1e400", "nan"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?} was accepted");
        }
    }
}
