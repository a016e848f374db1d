//! Which buckets there are, and as whom they are asked: the inventory, the environment, the profiles' files.

use std::collections::BTreeMap;
use std::path::Path;

use url::Url;

use super::env;
use super::error::CliError;
use crate::bucket::{Credentials, Place};
use crate::inventory::{BucketConfig, expand_home};
use crate::retry::RetryPolicy;

/// The profile that is meant where none is named.
const DEFAULT_PROFILE: &str = "default";
/// Where nothing says otherwise.
const DEFAULT_REGION: &str = "us-east-1";

/// What one profile says, by key.
type Profile = BTreeMap<String, String>;

/// Where `bucket` is and as whom it is asked.
///
/// A profile that is not there is none: the inventory is the same on machines that ask no bucket. Fails where the
/// server would be asked without encryption.
pub(super) fn place(bucket: &BucketConfig, home: &Path, retry: RetryPolicy) -> Result<Place, CliError> {
    let profile = Profiles::of(bucket, home)?;
    let endpoint = match (&bucket.endpoint, env::aws_endpoint()) {
        (Some(url), _) => Some(url.clone()),
        (None, Some(text)) => Some(address(bucket, &text)?),
        (None, None) => profile.word("endpoint_url").map(|text| address(bucket, text)).transpose()?,
    };
    let region = bucket.region.clone().or_else(env::aws_region);
    let region = region.or_else(|| profile.word("region").map(str::to_owned));
    Ok(Place {
        name: bucket.name.clone(),
        url: bucket.url.clone(),
        endpoint,
        region: region.unwrap_or_else(|| DEFAULT_REGION.to_owned()),
        path_style: bucket.path_style,
        credentials: credentials(bucket, &profile),
        retry,
    })
}

fn address(bucket: &BucketConfig, text: &str) -> Result<Url, CliError> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| {
        CliError::usage("AWS_ENDPOINT_URL is no address of a server").hint("begin it with http:// or https://")
    })?;
    if bucket.may_ask(&url) {
        return Ok(url);
    }
    Err(CliError::usage(format!("Bucket {} would be asked without encryption", bucket.name))
        .hint("use an https:// endpoint, or say allow-http = true in [sources] buckets"))
}

/// The profile that the inventory names comes before the environment's keys, these before any other profile.
fn credentials(bucket: &BucketConfig, profile: &Profiles) -> Option<Credentials> {
    let of_environment = if bucket.profile.is_none() { env::aws_keys() } else { None };
    of_environment.or_else(|| {
        Some(Credentials {
            key: profile.word("aws_access_key_id")?.to_owned(),
            secret: profile.word("aws_secret_access_key")?.to_owned(),
            session: profile.word("aws_session_token").map(str::to_owned),
        })
    })
}

/// One profile of the credentials file, and the same one of the configuration file.
struct Profiles {
    credentials: Profile,
    config: Profile,
}

impl Profiles {
    fn of(bucket: &BucketConfig, home: &Path) -> Result<Self, CliError> {
        let name = bucket.profile.clone().or_else(env::aws_profile).unwrap_or_else(|| DEFAULT_PROFILE.to_owned());
        let [credentials_file, config_file] = env::aws_files().map(|path| expand_home(&path, home));
        let in_config = if name == DEFAULT_PROFILE { name.clone() } else { format!("profile {name}") };
        Ok(Self {
            credentials: section(&read(&credentials_file)?, &name),
            config: section(&read(&config_file)?, &in_config),
        })
    }

    fn word(&self, key: &str) -> Option<&str> {
        self.credentials.get(key).or_else(|| self.config.get(key)).map(String::as_str)
    }
}

/// The file's text; nothing where it is not there.
fn read(path: &Path) -> Result<String, CliError> {
    match fs_err::read_to_string(path) {
        Err(error) if crate::fsio::is_absent(&error) => Ok(String::new()),
        text => Ok(text?),
    }
}

/// The keys of `[name]`; a section that comes twice is one.
fn section(text: &str, name: &str) -> Profile {
    let mut within = false;
    let mut found = Profile::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(title) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            within = title.split_whitespace().eq(name.split_whitespace());
        } else if let Some((key, value)) = trimmed.split_once('=').filter(|_| within && !line.starts_with(['#', ';'])) {
            found.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found.retain(|_, value| !value.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::section;

    #[test]
    fn a_profile_is_read_as_other_tools_read_it() {
        let text = "# keys\n[default]\naws_access_key_id = A\n# aws_secret_access_key = old\naws_secret_access_key=S=1\n\n\
                    [ profile  lab ]\nregion = garage\nempty =\n[default]\nregion=eu\n";
        let default = section(text, "default");
        let word = |key: &str| default.get(key).map(String::as_str);
        assert_eq!(word("aws_access_key_id"), Some("A"));
        assert_eq!(word("aws_secret_access_key"), Some("S=1"));
        assert_eq!(word("region"), Some("eu"));
        assert_eq!(section(text, "profile lab").into_iter().collect::<Vec<_>>(), [("region".into(), "garage".into())]);
        assert!(section(text, "other").is_empty());
    }
}
