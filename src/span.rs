//! Lengths of time, read from what people write.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A length of time, such as `500 ms`, `30 s`, `2m` or `1h 30m`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Span(pub Duration);

/// A text that is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a length of time: write a text such as \"30 s\", \"500 ms\" or \"2 min\"")]
pub struct ParseSpanError(String);

/// Reads a number and its unit, or several of them; the sum must not be negative.
impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseSpanError(text.to_owned());
        let span: jiff::SignedDuration = text.trim().parse().map_err(|_| refused())?;
        Duration::try_from(span).map(Span).map_err(|_| refused())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(1000) {
            f.pad(&format!("{} s", millis / 1000))
        } else {
            f.pad(&format!("{millis} ms"))
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_time_with_its_unit() {
        let millis = |text: &str| text.parse::<Span>().map(|span| span.0.as_millis()).ok();
        assert_eq!(millis("500 ms"), Some(500));
        assert_eq!(millis("30s"), Some(30_000));
        assert_eq!(millis(" 2 min "), Some(120_000));
        assert_eq!(millis("1h 30m"), Some(5_400_000));
        for wrong in ["", "30", "soon", "-1 s", "1 s ago", "99999999999999999999 h"] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_span_prints_what_it_reads() {
        for text in ["500 ms", "30 s", "0 s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }
}
