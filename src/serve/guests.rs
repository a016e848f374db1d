//! Who may ask: everybody, some networks, or who knows the token.

use std::net::IpAddr;

use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use axum::response::Response;
use ipnet::IpNet;

use crate::digest::Sha256;
use crate::serve::answer::error;

/// A secret that clients send as `Authorization: Bearer …`. Only its digest is kept, so nothing can print it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(Sha256);

impl Token {
    /// Takes the token's text; `None` where there is none, or not one that a header could carry.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(Sha256::of(text.as_bytes())))
    }

    pub(crate) fn digest(&self) -> &Sha256 {
        &self.0
    }
}

/// Who is admitted: whoever comes from one of the networks, or shows the token. Without either, everybody.
#[derive(Debug, Clone, Default)]
pub struct Guests {
    /// Addresses that need no token. Ollama's own client cannot send one.
    pub networks: Vec<IpNet>,
    /// What everybody else must show.
    pub token: Option<Token>,
}

impl Guests {
    /// Whether nobody is turned away.
    pub fn are_everybody(&self) -> bool {
        self.networks.is_empty() && self.token.is_none()
    }

    /// Lets the request pass, or answers it. `is_vouched_for`: it brings something as good as the token.
    pub(crate) fn admit(
        &self,
        peer: Option<IpAddr>,
        headers: &HeaderMap,
        is_vouched_for: bool,
    ) -> Result<(), Box<Response>> {
        if self.are_everybody() || peer.is_some_and(|peer| self.knows(peer)) {
            return Ok(());
        }
        match self.token {
            Some(token) if is_vouched_for || shown(headers) == Some(token) => Ok(()),
            Some(_) => Err(Box::new(ask_for_token())),
            None => Err(Box::new(error(StatusCode::FORBIDDEN, None, "This address may not read from this mirror"))),
        }
    }

    fn knows(&self, peer: IpAddr) -> bool {
        // A socket that takes both families writes IPv4 addresses as IPv6 ones.
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(&peer))
    }
}

/// Two digests are compared: how long that takes tells nothing about the token.
fn shown(headers: &HeaderMap) -> Option<Token> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Token::new(token)).flatten()
}

fn ask_for_token() -> Response {
    let mut response = error(StatusCode::UNAUTHORIZED, None, "This mirror asks for its token");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(guests: &Guests, peer: &str, authorization: Option<&str>) -> StatusCode {
        let headers = authorization.map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
        let admitted = guests.admit(Some(peer.parse().unwrap()), &headers.into_iter().collect(), false);
        admitted.map_or_else(|response| response.status(), |()| StatusCode::OK)
    }

    #[test]
    fn a_network_or_the_token_is_enough() {
        let guests = Guests { networks: vec!["10.1.0.0/16".parse().unwrap()], token: Token::new(" s3cret\n") };
        assert_eq!(asks(&guests, "10.1.2.3", None), 200);
        assert_eq!(asks(&guests, "::ffff:10.1.2.3", None), 200);
        assert_eq!(asks(&guests, "10.2.0.1", None), 401);
        assert_eq!(asks(&guests, "10.2.0.1", Some("Bearer s3cret")), 200);
        for wrong in ["Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer ", "bearer s3 cret"] {
            assert_eq!(asks(&guests, "10.2.0.1", Some(wrong)), 401, "{wrong}");
        }
    }

    #[test]
    fn without_a_token_strangers_are_refused_for_good() {
        let guests = Guests { networks: vec!["fd00::/8".parse().unwrap()], token: None };
        assert_eq!(asks(&guests, "fd12::1", None), 200);
        assert_eq!(asks(&guests, "192.0.2.1", Some("Bearer x")), 403);
        assert_eq!(asks(&Guests::default(), "192.0.2.1", None), 200);
    }

    #[test]
    fn what_stands_for_the_token_does_not_stand_for_the_network() {
        let admits = |guests: &Guests, vouched| {
            guests.admit(Some("192.0.2.1".parse().unwrap()), &HeaderMap::new(), vouched).is_ok()
        };
        let networks = vec!["10.1.0.0/16".parse().unwrap()];
        let both = Guests { networks: networks.clone(), token: Token::new("s3cret") };
        assert!(admits(&both, true) && !admits(&both, false));
        assert!(!admits(&Guests { networks, token: None }, true));
    }

    #[test]
    fn a_token_is_never_printed_and_never_empty() {
        assert!(!format!("{:?}", Token::new("hunter2")).contains("hunter2"));
        assert_eq!(Token::new(" \n"), None);
        assert_eq!(Token::new("two words"), None);
    }
}
