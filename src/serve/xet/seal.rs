//! Seals: what only this server can have written, and what is worth nothing once its time is over.

use std::path::Path;
use std::{fmt, io};

use rustls::crypto::aws_lc_rs;

use crate::digest::Sha256;
use crate::fsio::{self, WriteOptions};

/// What passes and links to large files are sealed with: a secret that is never told.
#[derive(Clone)]
pub struct Seal([u8; 32]);

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(secret)")
    }
}

impl Default for Seal {
    /// A new one: what it was put on is worth nothing when the process ends.
    fn default() -> Self {
        let mut secret = [0; 32];
        let filled = aws_lc_rs::default_provider().secure_random.fill(&mut secret);
        filled.expect("the system has random bytes: without them no key of TLS could be made either");
        Self(secret)
    }
}

impl Seal {
    /// The one in `folder`, which is made there the first time: clients go on where the server was started anew.
    ///
    /// Fails where the file `serve-seal` can be neither read nor written.
    pub fn kept_in(folder: &Path) -> io::Result<Self> {
        let place = folder.join("serve-seal");
        match fs_err::read(&place) {
            Ok(kept) => {
                if let Ok(secret) = kept.try_into() {
                    return Ok(Self(secret));
                }
            }
            Err(error) if fsio::is_absent(&error) => {}
            Err(error) => return Err(error),
        }
        let made = Self::default();
        fsio::write_atomic(&place, &made.0, &WriteOptions { mode: Some(0o600), ..WriteOptions::default() })?;
        Ok(made)
    }

    /// The one for those who know a secret of this digest: with another one, nobody's passes are good any more.
    pub(crate) fn bound_to(&self, secret: &Sha256) -> Self {
        Self(*blake3::keyed_hash(&self.0, secret.as_bytes()).as_bytes())
    }

    /// The seal on `what`, good until `expires` (seconds since 1970).
    pub(crate) fn on(&self, what: &str, expires: u64) -> String {
        self.code(what, expires).to_hex().to_string()
    }

    /// Whether `seal` is the one on `what`, and `expires` still to come at `now`.
    pub(crate) fn is_on(&self, what: &str, expires: &str, seal: &str, now: u64) -> bool {
        let Ok(expires) = expires.parse::<u64>() else { return false };
        // Hashes are compared in a time that tells nothing.
        let is_ours = blake3::Hash::from_hex(seal).is_ok_and(|seal| seal == self.code(what, expires));
        is_ours && now < expires
    }

    /// BLAKE3 with a key is a message authentication code: it needs no construction around it.
    fn code(&self, what: &str, expires: u64) -> blake3::Hash {
        blake3::keyed_hash(&self.0, format!("{expires} {what}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_good_for_one_thing_until_its_time_is_over() {
        let seal = Seal::default();
        let made = seal.on("xorb a", 1000);
        assert!(seal.is_on("xorb a", "1000", &made, 999));
        assert!(!seal.is_on("xorb a", "1000", &made, 1000), "its time is over");
        assert!(!seal.is_on("xorb a", "2000", &made, 999), "another time was not sealed");
        assert!(!seal.is_on("xorb b", "1000", &made, 999));
        for nonsense in ["", "00", &made[1..], &made.replace(&made[..1], "g")] {
            assert!(!seal.is_on("xorb a", "1000", nonsense, 999), "{nonsense}");
        }
        for nonsense in ["", "-1", "99999999999999999999999", "1000 "] {
            assert!(!seal.is_on("xorb a", nonsense, &made, 999), "{nonsense}");
        }
    }

    #[test]
    fn every_process_has_its_own_and_none_is_printed() {
        let (one, other) = (Seal::default(), Seal::default());
        assert!(!other.is_on("pass", "1000", &one.on("pass", 1000), 1));
        assert_eq!(format!("{one:?}"), "Seal(secret)");
    }

    #[test]
    fn one_that_is_kept_is_the_same_again_until_the_token_changes() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let made = Seal::kept_in(&state).unwrap();
        let (sealed, again) = (made.on("pass", 1000), Seal::kept_in(&state).unwrap());
        assert!(again.is_on("pass", "1000", &sealed, 1));
        let token = |text: &str| Sha256::of(text.as_bytes());
        let sealed = made.bound_to(&token("old")).on("pass", 1000);
        assert!(again.bound_to(&token("old")).is_on("pass", "1000", &sealed, 1));
        assert!(!again.bound_to(&token("new")).is_on("pass", "1000", &sealed, 1));
        assert!(!again.is_on("pass", "1000", &sealed, 1));
        let place = state.join("serve-seal");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs_err::metadata(&place).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        fsio::write_atomic(&place, b"short", &WriteOptions::default()).unwrap();
        assert!(!Seal::kept_in(&state).unwrap().is_on("pass", "1000", &sealed, 1), "nonsense is replaced");
        assert_eq!(fs_err::read(&place).unwrap().len(), 32);
        assert!(Seal::kept_in(&place).is_err(), "not a folder");
    }
}
