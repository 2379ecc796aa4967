//! Check of a server's certificate in the handshake.

use super::{
    Pin, provider,
    untrusted::{Cause, Untrusted},
};
use rustls::{
    CertificateError, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::sync::Arc;

/// Rule by which a server is trusted.
#[derive(Debug)]
pub(super) enum Rule {
    /// The server has the key of this pin. Names and dates of its certificate do not count: the key is the identity,
    /// and the handshake proves that the server has it.
    Pinned(Pin),
    /// An authority has issued the certificate for the name in the URL. `None`: no authority is known here.
    Authorities(Option<Arc<WebPkiServerVerifier>>),
}

/// Verifier for rustls by one rule.
#[derive(Debug)]
pub(super) struct Verifier(pub(super) Rule);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Pin::of_certificate(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let cause = match &self.0 {
            Rule::Pinned(pin) if *pin == found => return Ok(ServerCertVerified::assertion()),
            Rule::Pinned(pin) => Cause::OtherKey(pin.clone()),
            Rule::Authorities(None) => Cause::UnknownIssuer,
            Rule::Authorities(Some(verifier)) => {
                let verified = verifier.verify_server_cert(
                    end_entity,
                    intermediates,
                    server_name,
                    ocsp_response,
                    now,
                );
                match verified {
                    Ok(verified) => return Ok(verified),
                    Err(error) => Cause::of(&error),
                }
            }
        };
        Err(Untrusted { found, cause }.into_error())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
