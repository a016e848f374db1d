//! Redirects, followed by hand: every hop is looked at before anything is sent to it.

use reqwest::Response;
use reqwest::header::LOCATION;
use url::Url;

use super::SourceError;

/// More hops than any honest server needs.
const MOST_HOPS: usize = 10;

/// The addresses that one request has been sent to.
pub(super) struct Trail {
    hops: Vec<Url>,
    what: String,
}

impl Trail {
    /// Begins at `start`; `what` names the thing asked for in messages.
    pub(super) fn from(start: Url, what: &str) -> Self {
        Self { hops: vec![start], what: what.to_owned() }
    }

    /// The address to ask now.
    pub(super) fn here(&self) -> &Url {
        // `from` puts the first one in and nothing takes it out.
        &self.hops[self.hops.len() - 1]
    }

    /// Whether [`Trail::here`] is of the same scheme, host and port as the first address.
    pub(super) fn is_at_home(&self) -> bool {
        self.here().origin() == self.hops[0].origin()
    }

    /// Goes where `response` points; `false` where it points nowhere, which makes it the answer.
    pub(super) fn follow(&mut self, response: &Response) -> Result<bool, SourceError> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(false);
        }
        let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let target = target.ok_or_else(|| self.nonsense("it redirects without saying where to"))?;
        // The reason must not quote the address: it can carry a signature.
        let next =
            self.here().join(target).map_err(|_| self.nonsense("it redirects to something that is no address"))?;
        self.step(next)?;
        Ok(true)
    }

    /// Goes to `next`, which an earlier answer has pointed to.
    pub(super) fn go(&mut self, next: Url) -> Result<(), SourceError> {
        self.step(next)
    }

    fn step(&mut self, mut next: Url) -> Result<(), SourceError> {
        next.set_fragment(None);
        if !matches!(next.scheme(), "http" | "https") || next.host_str().is_none() {
            return Err(self.nonsense("it redirects to something that is neither http nor https"));
        }
        if self.here().scheme() == "https" && next.scheme() == "http" {
            return Err(self.nonsense(&format!("it redirects from https to plain http at {}", origin(&next))));
        }
        if !next.username().is_empty() || next.password().is_some() {
            return Err(self.nonsense("it redirects to an address with a name or password in it"));
        }
        if self.hops.contains(&next) {
            return Err(self.nonsense("its redirects lead in a circle"));
        }
        if self.hops.len() > MOST_HOPS {
            return Err(self.nonsense(&format!("it redirects more than {MOST_HOPS} times")));
        }
        self.hops.push(next);
        Ok(())
    }

    fn nonsense(&self, reason: &str) -> SourceError {
        SourceError::Protocol { what: self.what.clone(), reason: reason.to_owned() }
    }
}

/// Scheme, host and port: what may be said of an address in messages.
pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// An address without query and fragment, for messages.
pub(super) fn plain(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(urls: &[&str]) -> Result<(), String> {
        let mut trail = Trail::from(urls[0].parse().unwrap(), "it");
        urls[1..].iter().try_for_each(|url| trail.step(url.parse().unwrap())).map_err(|error| error.to_string())
    }

    #[test]
    fn unsafe_hops_are_refused() {
        assert_eq!(steps(&["http://a/", "https://b/", "https://a/"]), Ok(()));
        assert!(steps(&["https://a/", "http://a/x?signature=1"]).unwrap_err().ends_with("plain http at http://a"));
        assert!(steps(&["http://a/", "ftp://a/"]).unwrap_err().contains("neither http nor https"));
        assert!(steps(&["http://a/", "http://user@a/"]).unwrap_err().contains("name or password"));
        assert!(steps(&["http://a/1", "http://a/2", "http://a/1#x"]).unwrap_err().contains("circle"));
    }

    #[test]
    fn ten_hops_are_enough() {
        let urls: Vec<String> = (0..12).map(|n| format!("http://a/{n}")).collect();
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        assert_eq!(steps(&urls[..11]), Ok(()));
        assert!(steps(&urls).unwrap_err().contains("more than 10 times"));
    }

    #[test]
    fn home_is_scheme_host_and_port() {
        let mut trail = Trail::from("http://a:1/".parse().unwrap(), "it");
        trail.step("http://a:1/other".parse().unwrap()).unwrap();
        assert!(trail.is_at_home());
        trail.step("http://a:2/".parse().unwrap()).unwrap();
        assert!(!trail.is_at_home());
    }
}
