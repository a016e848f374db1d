//! Encryption: a certificate that was given, or one that larder makes and that clients know by its fingerprint.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::digest::Sha256;
use crate::fsio;

/// A certificate with its key, ready to be used.
#[derive(Clone)]
pub struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    fingerprint: Sha256,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read or written.
    #[error("{path} cannot be used for TLS")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} has no usable {what}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
        /// The parser's reason.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error("{certificate} and {key} cannot be used together")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The library's reason.
        #[source]
        source: rustls::Error,
    },
    /// No certificate could be made.
    #[error("A certificate cannot be made")]
    Make(#[source] rcgen::Error),
}

impl Tls {
    /// Reads a certificate chain and its key, both PEM files.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let pem = |path: &Path, what, source| TlsError::Pem { path: path.to_owned(), what, source };
        let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .and_then(
                |chain| if chain.is_empty() { Err(rustls::pki_types::pem::Error::NoItemsFound) } else { Ok(chain) },
            )
            .map_err(|source| pem(certificate, "certificate", source))?;
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|source| pem(key, "private key", source))?;
        let fingerprint = Sha256::of(&chain[0]);
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
            .map_err(|source| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source })?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint })
    }

    /// Reads the certificate that was made in `folder` before, or makes one for `names` and keeps it there.
    ///
    /// It is kept so that the fingerprint stays what clients were told. Nobody vouches for it: the
    /// fingerprint is what makes it trustworthy.
    pub fn of_own(folder: &Path, names: Vec<String>) -> Result<Self, TlsError> {
        let (certificate, key) = (folder.join("serve-certificate.pem"), folder.join("serve-key.pem"));
        if !certificate.exists() || !key.exists() {
            let made = rcgen::generate_simple_self_signed(names).map_err(TlsError::Make)?;
            write(&key, &made.signing_key.serialize_pem(), 0o600)?;
            write(&certificate, &made.cert.pem(), 0o644)?;
        }
        Self::read(&certificate, &key)
    }

    /// The SHA-256 of the certificate: what clients pin.
    pub fn fingerprint(&self) -> Sha256 {
        self.fingerprint
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs_err::read(path).map_err(|source| TlsError::Io { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let options = fsio::WriteOptions { mode: Some(mode), ..fsio::WriteOptions::default() };
    fsio::write_atomic(path, text.as_bytes(), &options)
        .map(drop)
        .map_err(|source| TlsError::Io { path: path.to_owned(), source })
}
