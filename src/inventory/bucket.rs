//! Object stores of the lab: `[[sources.buckets]]`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

use crate::text::FromText;

/// An S3-compatible object store that the lab's machines put their artifacts into and take them from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its own, as people write it")]
pub struct BucketConfig {
    /// What people call it.
    pub name: String,
    /// The bucket, and the folder in it that is larder's.
    pub url: BucketUrl,
    /// The server; by default what `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` says, else Amazon's of the region.
    #[serde(default)]
    pub endpoint: Option<Url>,
    /// The region that requests are signed for; by default what the environment or the profile says.
    #[serde(default)]
    pub region: Option<String>,
    /// Whether the bucket's name stands in the address's path, not in its host.
    #[serde(default = "default_path_style")]
    pub path_style: bool,
    /// Whether the server may be asked without encryption; servers of this machine always may.
    #[serde(default)]
    pub allow_http: bool,
    /// The profile in the credentials file, instead of the environment's keys.
    #[serde(default)]
    pub profile: Option<String>,
    /// Whether artifacts whose licence every user must accept himself are put there too.
    #[serde(default)]
    pub gated: bool,
    /// Whether what comes from there counts as downloaded, for `max-download`; yes unless said: most are paid by the byte.
    #[serde(default = "default_metered")]
    pub metered: bool,
}

fn default_metered() -> bool {
    true
}

fn default_path_style() -> bool {
    true
}

impl BucketConfig {
    /// Whether `endpoint` may be asked: it speaks https, is this machine, or plain http was allowed.
    pub fn may_ask(&self, endpoint: &Url) -> bool {
        let is_here = match endpoint.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        self.allow_http || is_here || endpoint.scheme() != "http"
    }
}

/// `s3://BUCKET` or `s3://BUCKET/FOLDER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl {
    /// The bucket's name.
    pub bucket: String,
    /// The folder in it; empty for the whole bucket.
    pub folder: String,
}

/// A text that names no bucket. It is not quoted: people put keys into addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a bucket: write s3://BUCKET or s3://BUCKET/FOLDER, with letters, digits and . _ -")]
pub struct ParseBucketUrlError;

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.folder.is_empty() { Ok(()) } else { write!(f, "/{}", self.folder) }
    }
}

impl FromStr for BucketUrl {
    type Err = ParseBucketUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("s3://").ok_or(ParseBucketUrlError)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let folder_is_good = rest == bucket || folder.split('/').all(is_plain);
        if bucket.len() < 3 || !is_plain(bucket) || !folder_is_good {
            return Err(ParseBucketUrlError);
        }
        Ok(Self { bucket: bucket.to_owned(), folder: folder.to_owned() })
    }
}

/// Whether a part of a key means the same in every address, on every server.
fn is_plain(part: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !part.is_empty() && part != "." && part != ".." && part.chars().all(is_good)
}

impl<'de> Deserialize<'de> for BucketUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_print_as_they_were_written() {
        for text in ["s3://fleet", "s3://fleet/lab/models"] {
            assert_eq!(text.parse::<BucketUrl>().unwrap().to_string(), text);
        }
        assert_eq!("s3://fleet/lab/".parse::<BucketUrl>().unwrap().folder, "lab");
    }

    #[test]
    fn what_is_no_bucket_is_refused() {
        for text in [
            "",
            "fleet",
            "s3://",
            "s3://ab",
            "s3://fleet//x",
            "s3://fleet/../x",
            "s3://key:secret@fleet",
            "https://x/y",
        ] {
            assert!(text.parse::<BucketUrl>().is_err(), "{text:?} was accepted");
        }
    }
}
