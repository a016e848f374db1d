//! Whose word counts: signatures over the lock and the manifests, made with the keys that people log in with.
//!
//! The signature of `FILE` lies beside it in `FILE.sig`, in OpenSSH's own format (`ssh-keygen -Y sign -n larder`).

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use ssh_key::{HashAlg, PublicKey, SshSig};

/// What our signatures are for: one that was made for something else counts for nothing.
pub const NAMESPACE: &str = "larder";
/// Longer texts are no signatures.
const LONGEST_SIGNATURE: u64 = 64 << 10;

/// Whose signatures count, and whether nothing else does.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrustConfig {
    /// Whether a lock or manifest that nobody of these signed is carried out by no command.
    #[serde(default)]
    pub require_signature: bool,
    /// Public keys as in `authorized_keys`: kind, key, comment.
    #[serde(default)]
    pub keys: Vec<Key>,
}

/// A public key whose owner's word counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(PublicKey);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = PublicKey::from_openssh(text.trim());
        let key = key.map_err(|error| format!("this is no public key of ssh: {error}"))?;
        match key.algorithm() {
            ssh_key::Algorithm::Ed25519 | ssh_key::Algorithm::SkEd25519 => Ok(Self(key)),
            other => Err(format!("keys of the kind {other} are not read; make one with: ssh-keygen -t ed25519")),
        }
    }
}

impl Key {
    /// The comment, as a rule whose it is; else its fingerprint.
    pub fn owner(&self) -> String {
        let comment = self.0.comment().trim();
        if comment.is_empty() { self.0.fingerprint(HashAlg::Sha256).to_string() } else { comment.to_owned() }
    }
}

/// Why a file's content has nobody's word.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// There is no signature.
    #[error("{file} is not signed")]
    Unsigned {
        /// The file.
        file: PathBuf,
    },
    /// The file or its signature cannot be read.
    #[error("{file} cannot be read")]
    Io {
        /// Which of the two.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The signature's file holds something else.
    #[error("{signature} is no signature of ssh")]
    Malformed {
        /// The signature's file.
        signature: PathBuf,
        /// The parser's reason.
        #[source]
        source: ssh_key::Error,
    },
    /// Somebody signed it whose key the inventory does not name.
    #[error("{file} is signed with the key {fingerprint}, which [trust] keys does not have")]
    Stranger {
        /// The file.
        file: PathBuf,
        /// The key.
        fingerprint: String,
    },
    /// The content is not what was signed.
    #[error("{file} is not what {owner} signed")]
    Changed {
        /// The file.
        file: PathBuf,
        /// Who.
        owner: String,
    },
}

/// Where the signature of `file` lies.
pub fn signature_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

/// Compares the content of `file` with its signature; answers who made it.
pub fn check(file: &Path, keys: &[Key]) -> Result<String, TrustError> {
    let content = fs_err::read(file).map_err(|source| TrustError::Io { file: file.to_owned(), source })?;
    check_content(file, &content, keys)
}

/// Compares `content`, which was read from `file` before, with the signature that lies there now.
///
/// Whoever goes by what was read must ask for that: the file may be another one by now.
pub fn check_content(file: &Path, content: &[u8], keys: &[Key]) -> Result<String, TrustError> {
    let unreadable = |file: &Path| {
        let file = file.to_owned();
        move |source| TrustError::Io { file, source }
    };
    let path = signature_of(file);
    let size = match fs_err::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(TrustError::Unsigned { file: file.to_owned() });
        }
        found => found.map_err(unreadable(&path))?.len(),
    };
    let text = if size > LONGEST_SIGNATURE { Vec::new() } else { fs_err::read(&path).map_err(unreadable(&path))? };
    let signature =
        SshSig::from_pem(&text).map_err(|source| TrustError::Malformed { signature: path.clone(), source })?;
    verify(file, content, &signature, keys)
}

fn verify(file: &Path, content: &[u8], signature: &SshSig, keys: &[Key]) -> Result<String, TrustError> {
    let Some(key) = keys.iter().find(|key| key.0.key_data() == signature.public_key()) else {
        let fingerprint = signature.public_key().fingerprint(HashAlg::Sha256).to_string();
        return Err(TrustError::Stranger { file: file.to_owned(), fingerprint });
    };
    match key.0.verify(NAMESPACE, content, signature) {
        Ok(()) => Ok(key.owner()),
        Err(_) => Err(TrustError::Changed { file: file.to_owned(), owner: key.owner() }),
    }
}

impl TrustError {
    /// What a sysadmin can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            TrustError::Unsigned { .. } | TrustError::Malformed { .. } => {
                "whoever answers for it signs it with: larder sign --key FILE"
            }
            TrustError::Stranger { .. } => "if that person may sign, add the public key to [trust] keys",
            TrustError::Changed { .. } => {
                "look at what changed since (git diff); if it is meant, sign it anew with: larder sign"
            }
            TrustError::Io { .. } => "check the rights of the file",
        }
    }
}
