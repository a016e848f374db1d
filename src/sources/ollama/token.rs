//! Anonymous tokens: some registries hand one out to everybody, and want to see it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use reqwest::Method;
use reqwest::header::{HeaderMap, USER_AGENT, WWW_AUTHENTICATE};
use serde::Deserialize;
use url::Url;

use super::{Ask, read_limited};
use crate::sources::SourceError;
use crate::sources::body::refusal;
use crate::sources::gate::Budget;
use crate::sources::network::Network;
use crate::sources::trail::plain;

/// Longer answers are no tokens.
const TOKEN_LIMIT: u64 = 64 << 10;

/// The tokens of this run, by repository.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<String, String>>);

/// Never prints a token.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(secret)")
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(alias = "access_token")]
    token: String,
}

impl Tokens {
    /// The token that was handed out for the repository of `address`.
    pub(super) fn known(&self, address: &Url) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&repository(address)).cloned()
    }

    /// Asks for a token as the challenge in `headers` says.
    pub(super) async fn fetch(
        &self,
        network: &Network,
        user_agent: &str,
        ask: &Ask<'_>,
        headers: &HeaderMap,
    ) -> Result<String, SourceError> {
        let missing = || SourceError::TokenMissing { what: ask.what() };
        let challenge = headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
        let address = token_address(challenge, &ask.address).ok_or_else(missing)?;
        let request = network.request(Method::GET, address.clone()).header(USER_AGENT, user_agent);
        let answer = network.send(request, Budget::Other, &plain(&address)).await?;
        match answer.status().as_u16() {
            200 => {}
            // The registry gives tokens only to users that it knows.
            400 | 401 | 403 | 404 => return Err(missing()),
            _ => return Err(refusal(answer.status(), answer.headers(), &plain(&address))),
        }
        let bytes = read_limited(&address, answer, TOKEN_LIMIT).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|error| SourceError::Protocol {
            what: plain(&address),
            reason: format!("this is no token: {error}"),
        })?;
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(repository(&ask.address), answer.token.clone());
        Ok(answer.token)
    }
}

/// Registry and repository: what one token is good for.
fn repository(address: &Url) -> String {
    let path: Vec<&str> = address.path().rsplitn(3, '/').collect();
    format!("{}{}", address.origin().ascii_serialization(), path.last().unwrap_or(&""))
}

/// Where the challenge sends for a token, unless that is a place the registry should not speak for.
fn token_address(challenge: &str, registry: &Url) -> Option<Url> {
    let (scheme, parameters) = challenge.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameters = parameters_of(parameters);
    let of =
        |name: &'static str| parameters.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str());
    let mut address = Url::parse(of("realm").next()?).ok()?;
    let encrypted = address.scheme() == "https" || (address.scheme() == "http" && registry.scheme() == "http");
    if !encrypted || !speaks_for(registry.host_str()?, address.host_str()?) {
        return None;
    }
    let scopes = of("scope").flat_map(str::split_whitespace).map(|scope| ("scope", scope));
    for (key, value) in of("service").map(|service| ("service", service)).chain(scopes) {
        address.query_pairs_mut().append_pair(key, value);
    }
    Some(address)
}

/// The realm must be the registry's own host, its parent domain, or a sister below that.
fn speaks_for(registry: &str, realm: &str) -> bool {
    const SERVICES: [(&str, &str); 1] = [("registry.ollama.ai", "ollama.com")];
    if registry == realm || SERVICES.contains(&(registry, realm)) {
        return true;
    }
    let is_address = registry.parse::<std::net::IpAddr>().is_ok() || registry.starts_with('[');
    match registry.split_once('.') {
        Some((_, parent)) if !is_address && parent.contains('.') => {
            realm == parent || realm.strip_suffix(parent).is_some_and(|sister| sister.ends_with('.'))
        }
        _ => false,
    }
}

/// `key="value"` pairs, separated by commas; a quoted value may contain commas.
fn parameters_of(mut text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        parameters.push((key.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned()));
        text = rest.trim_start_matches([' ', ',']);
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(challenge: &str, registry: &str) -> Option<String> {
        token_address(challenge, &Url::parse(registry).unwrap()).map(|url| url.to_string())
    }

    #[test]
    fn a_challenge_becomes_the_address_of_a_token() {
        assert_eq!(
            address(
                r#"Bearer realm="https://auth.example.org/token",service="r",scope="repository:a/b:pull,push""#,
                "https://registry.example.org/v2/a/b/manifests/latest"
            ),
            Some("https://auth.example.org/token?service=r&scope=repository%3Aa%2Fb%3Apull%2Cpush".to_owned())
        );
        assert_eq!(
            address(r#"bearer realm="https://ollama.com/token""#, "https://registry.ollama.ai/v2/"),
            Some("https://ollama.com/token".to_owned())
        );
    }

    #[test]
    fn a_realm_elsewhere_or_unencrypted_or_of_another_kind_is_not_asked() {
        for (challenge, registry) in [
            (r#"Bearer realm="https://evil.example/token""#, "https://registry.example.org/"),
            (r#"Bearer realm="https://badexample.org/token""#, "https://registry.example.org/"),
            (r#"Bearer realm="https://evil.org/token""#, "https://example.org/"),
            (r#"Bearer realm="http://registry.example.org/token""#, "https://registry.example.org/"),
            (r#"Bearer realm="http://127.0.0.2/token""#, "http://127.0.0.1/"),
            (r#"Basic realm="registry""#, "https://registry.example.org/"),
            (r#"Bearer service="x""#, "https://registry.example.org/"),
        ] {
            assert_eq!(address(challenge, registry), None, "{challenge} from {registry}");
        }
    }

    #[test]
    fn a_token_belongs_to_its_repository() {
        let of = |text: &str| repository(&Url::parse(text).unwrap());
        assert_eq!(of("https://r.io/v2/a/b/manifests/latest"), of("https://r.io/v2/a/b/blobs/sha256:00"));
        assert_ne!(of("https://r.io/v2/a/b/manifests/latest"), of("https://r.io/v2/a/c/manifests/latest"));
        assert_ne!(of("https://r.io/v2/a/b/manifests/latest"), of("http://r.io/v2/a/b/manifests/latest"));
    }
}
