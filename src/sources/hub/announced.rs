//! What the hub says about content that it keeps in Xet: the content's name there, and a pass to read it.

use serde::Deserialize;
use url::Url;

use super::{HubSource, protocol, read};
use crate::artifact::Remote;
use crate::sources::body::{empty_body, is_empty};
use crate::sources::{Body, ByteRange, Source as _, SourceError};

/// Content that lies in Xet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sources) struct Announced {
    /// Its name there: 64 hexadecimal digits.
    pub(in crate::sources) hash: String,
    /// Its length in bytes.
    pub(in crate::sources) size: u64,
    /// Its sha256, as the hub gives it.
    pub(in crate::sources) etag: Option<String>,
}

/// What the hub made of a request for a file.
pub(in crate::sources) enum Opened {
    /// The file's bytes.
    Plain(Body),
    /// Where they can be had instead.
    Xet(Announced),
}

/// The right to read one repository's content, for some minutes.
pub(in crate::sources) struct Pass {
    /// Never printed.
    pub(in crate::sources) token: String,
    /// Seconds since 1970.
    pub(in crate::sources) expires: u64,
    /// The store's address, without a slash at its end.
    pub(in crate::sources) address: String,
}

/// The hub's answer to the question for a pass.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    access_token: String,
    exp: u64,
    cas_url: String,
}

impl HubSource {
    /// Opens a file, unless the hub says that Xet has it: one request either way.
    pub(in crate::sources) async fn open_or_announce(
        &self,
        remote: &Remote,
        range: ByteRange,
    ) -> Result<Opened, SourceError> {
        let asked = self.asked_file(remote)?;
        if is_empty(range) {
            return Ok(Opened::Plain(empty_body(range.start, remote.size)));
        }
        let allowed = self.network.allowed(range, remote.size, &asked.name())?;
        let landed = self.resolve_afresh(asked, allowed.range, true).await?;
        let Some(hash) = landed.xet.clone() else {
            return self.body_of(asked, landed, remote, allowed).map(Opened::Plain);
        };
        let (etag, size) = landed.linked;
        match size.or(remote.size) {
            Some(size) => Ok(Opened::Xet(Announced { hash, size, etag })),
            // Without a length there is nothing to cut ranges from.
            None => self.open(remote, range).await.map(Opened::Plain),
        }
    }

    /// A fresh pass for the repository and revision of `remote`.
    pub(in crate::sources) async fn pass(&self, remote: &Remote) -> Result<Pass, SourceError> {
        let asked = self.asked(&remote.reference)?;
        let name = asked.name();
        let response = self.api(asked, asked.api(&self.endpoint, "xet-read-token"), None).await?;
        let unusable = |reason: &str| protocol(&name, &format!("its pass for Xet {reason}"));
        let json = read(response, &name).await?;
        let told: Told = serde_json::from_slice(&json).map_err(|_| unusable("is not what the API promises"))?;
        let address = told.cas_url.trim_end_matches('/');
        if !may_be_asked(address, &self.endpoint) {
            return Err(unusable("names an address that must not be used"));
        }
        Ok(Pass { token: told.access_token, expires: told.exp, address: address.to_owned() })
    }

    /// What one pass is good for: passes are asked for once per repository and revision.
    pub(in crate::sources) fn realm(&self, remote: &Remote) -> Result<String, SourceError> {
        let asked = self.asked(&remote.reference)?;
        Ok(format!("{}@{}", asked.repo, asked.revision))
    }
}

/// The transfer library also takes paths of this machine for addresses, and must not fall back to plain http.
fn may_be_asked(address: &str, hub: &Url) -> bool {
    let Ok(url) = Url::parse(address) else { return false };
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && hub.scheme() == "http");
    is_safe && url.host_str().is_some() && url.username().is_empty() && url.password().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_leads_neither_into_this_machine_nor_out_of_https() {
        let asked = |address: &str, hub: &str| may_be_asked(address, &hub.parse().unwrap());
        assert!(asked("https://cas.hub.co", "https://hub.co"));
        assert!(asked("http://127.0.0.1:8014", "http://127.0.0.1:8013"));
        assert!(asked("https://cas.hub.co", "http://mirror.lab"));
        assert!(!asked("http://cas.hub.co", "https://hub.co"));
        for address in ["local:///etc", "memory://", "file:///etc", "/etc", "", "https://a:b@cas.hub.co", "ftp://x"] {
            assert!(!asked(address, "http://mirror.lab"), "{address}");
        }
    }
}
