//! What went wrong with Xet, in words that may be shown.

use std::fmt;

use xet::XetError;

use crate::sources::SourceError;
use crate::sources::body::printable;

/// Why something does not come by Xet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    reason: String,
    /// The store did not accept the pass, or may not have accepted it: a fresh one may help.
    pub(super) refused: bool,
}

impl Trouble {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), refused: false }
    }

    /// The library ended a stream early. Its own error can come after that, so it may be any trouble.
    pub(super) fn silent() -> Self {
        Self { reason: "it ended early".to_owned(), refused: true }
    }
}

impl From<XetError> for Trouble {
    fn from(error: XetError) -> Self {
        let text = error.to_string();
        // The status survives in the library's text only.
        let refused = matches!(error, XetError::Authentication(_)) || text.contains("401 Unauthorized");
        Self { reason: printable(&without_queries(&text)), refused }
    }
}

impl From<SourceError> for Trouble {
    fn from(error: SourceError) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Addresses in the library's messages can carry signatures in their query.
fn without_queries(text: &str) -> String {
    let word = |word: &str| match word.split_once('?') {
        Some((address, _)) if address.contains("://") => address.to_owned(),
        _ => word.to_owned(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_never_shown() {
        let trouble = Trouble::from(XetError::Network("error for url (https://s3/x?X-Sig=abc&b=1) what?".to_owned()));
        assert_eq!(trouble.to_string(), "Network error: error for url (https://s3/x what?");
        assert!(!trouble.refused);
    }

    #[test]
    fn a_refused_pass_is_told_from_other_trouble() {
        let refused = |text: &str| Trouble::from(XetError::Network(text.to_owned())).refused;
        assert!(refused("Request error: HTTP status client error (401 Unauthorized)"));
        assert!(!refused("Request error: HTTP status client error (404 Not Found)"));
        assert!(Trouble::from(XetError::Authentication("no".to_owned())).refused);
    }
}
