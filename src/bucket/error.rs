//! What a bucket's server refuses, without anything of what was sent to it.

use std::error::Error;

/// Why a bucket was of no use.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// No keys are known for it.
    #[error("{what} asks for credentials, and none are set")]
    NoCredentials {
        /// The bucket.
        what: String,
    },
    /// 401 or 403.
    #[error("{what} refuses: {code}")]
    Refused {
        /// The bucket.
        what: String,
        /// The server's word for it, such as `AccessDenied`.
        code: String,
    },
    /// There is no such bucket.
    #[error("{what} does not exist")]
    NoSuchBucket {
        /// The bucket.
        what: String,
    },
    /// There is no such object.
    #[error("{what} has no such object")]
    NotFound {
        /// The bucket.
        what: String,
    },
    /// An upload that was begun is not known any more.
    #[error("{what} does not know the upload that was begun")]
    NoSuchUpload {
        /// The bucket.
        what: String,
    },
    /// No connection, or one that broke, in spite of trying again.
    #[error("{what} cannot be reached: {reason}")]
    Unreachable {
        /// The bucket.
        what: String,
        /// The cause.
        reason: String,
    },
    /// Any other refusal, in spite of trying again.
    #[error("{what} answered {code}")]
    Answer {
        /// The bucket.
        what: String,
        /// The server's word for it, or the HTTP status.
        code: String,
    },
    /// An answer, or an address, that makes no sense.
    #[error("{what} makes no sense: {reason}")]
    Nonsense {
        /// The bucket.
        what: String,
        /// What is wrong.
        reason: String,
    },
}

impl BucketError {
    /// What a sysadmin can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            BucketError::NoCredentials { .. } => {
                Some("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write a profile into ~/.aws/credentials")
            }
            BucketError::Refused { code, .. } => Some(match code.as_str() {
                "RequestTimeTooSkewed" => "set this machine's clock: it differs from the server's",
                "InvalidAccessKeyId" | "NotSignedUp" | "SignatureDoesNotMatch" => {
                    "check the key and its secret, and the region"
                }
                _ => "check the key, its secret and what it may do in this bucket",
            }),
            BucketError::NoSuchBucket { .. } => Some("make the bucket first, or correct `url` in [sources] buckets"),
            BucketError::Answer { code, .. } if code.contains("Redirect") || code.starts_with('3') => {
                Some("name the bucket's region in [sources] buckets")
            }
            _ => None,
        }
    }
}

/// What servers say where a key is wrong, or not for this.
const REFUSALS: [&str; 9] = [
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NotSignedUp",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
];

/// What `error` means; of its text, which quotes requests and answers, only the server's code is taken.
pub(super) fn explain(error: &object_store::Error, what: String) -> BucketError {
    use object_store::Error as Cause;
    let text = error.to_string();
    let code = between(&text, "<Code>", "</Code>").filter(|code| is_word(code)).map(str::to_owned);
    let word = |otherwise: &str| code.clone().unwrap_or_else(|| otherwise.to_owned());
    match (error, code.as_deref()) {
        (_, Some("NoSuchBucket")) => BucketError::NoSuchBucket { what },
        (_, Some("NoSuchUpload")) => BucketError::NoSuchUpload { what },
        (Cause::NotFound { .. }, _) => BucketError::NotFound { what },
        // Some servers refuse a key with another status than 401 and 403.
        (_, Some(code)) if REFUSALS.contains(&code) => BucketError::Refused { what, code: code.to_owned() },
        (Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. }, _) => {
            BucketError::Refused { what, code: word("access is denied") }
        }
        (_, Some(code)) => BucketError::Answer { what, code: code.to_owned() },
        (_, None) => match (status(&text), deepest(error)) {
            (Some(status), _) => BucketError::Answer { what, code: status },
            (None, Some(reason)) => BucketError::Unreachable { what, reason },
            (None, None) => BucketError::Unreachable { what, reason: "the request failed".to_owned() },
        },
    }
}

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric())
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1;
    rest.split_once(after).map(|(inner, _)| inner)
}

/// The HTTP status that the text of an error tells.
fn status(text: &str) -> Option<String> {
    let digits: String = text.split_once("status code: ")?.1.chars().take_while(char::is_ascii_digit).collect();
    (digits.len() == 3).then_some(digits)
}

/// The innermost cause, where it is one of a connection: those quote no requests.
fn deepest(error: &object_store::Error) -> Option<String> {
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let text: String = cause.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    (!text.contains("http://") && !text.contains("https://")).then(|| text.trim_end_matches('.').to_owned())
}
