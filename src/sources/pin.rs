//! Servers that nobody vouches for, known by the fingerprint of their certificate.

use std::sync::Arc;

use reqwest::Client;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::digest::Sha256;
use crate::sources::set::builder;
use crate::sources::{SourceError, Timeouts};

/// A client that talks over TLS to whoever holds the key of `certificate`, and to nobody else.
pub(super) fn pinned(certificate: Sha256, timeouts: Timeouts) -> Result<Client, SourceError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let unusable = |reason: String| SourceError::Unreachable { what: "The network".to_owned(), reason };
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pin { certificate, provider }))
        .with_no_client_auth();
    let client = builder(timeouts).tls_backend_preconfigured(config).https_only(true).build();
    client.map_err(|error| unusable(error.to_string()))
}

/// Compares the certificate itself: its names and dates were never promised by anybody.
#[derive(Debug)]
struct Pin {
    certificate: Sha256,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Sha256::of(certificate);
        if shown == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(format!("its certificate is sha256:{shown}, which is not the one that was agreed on")))
    }

    // That the server holds the certificate's key is proven by these signatures.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
