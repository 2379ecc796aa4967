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

/// Cause of a check by authorities that has failed with this error. Dates are checked before the issuer and the names, but
/// pass by waiting: so a certificate with wrong dates is checked once more, at a time that it covers.
fn gravest_cause(
    error: &rustls::Error,
    verify_at: impl Fn(UnixTime) -> Result<ServerCertVerified, rustls::Error>,
) -> Cause {
    let cause = Cause::of(error);
    let again = covered_time(error).and_then(|time| verify_at(time).err());
    match again.as_ref().map(Cause::of) {
        None | Some(Cause::Expired | Cause::NotYetValid) => cause,
        Some(graver) => graver,
    }
}

/// Time that a certificate with wrong dates covers; `None` where the error is not about dates.
fn covered_time(error: &rustls::Error) -> Option<UnixTime> {
    let rustls::Error::InvalidCertificate(fault) = error else {
        return None;
    };
    match fault {
        CertificateError::ExpiredContext { not_after, .. } => Some(*not_after),
        CertificateError::NotValidYetContext { not_before, .. } => Some(*not_before),
        _ => None,
    }
}

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
                let verify_at = |time| {
                    verifier.verify_server_cert(
                        end_entity,
                        intermediates,
                        server_name,
                        ocsp_response,
                        time,
                    )
                };
                match verify_at(now) {
                    Ok(verified) => return Ok(verified),
                    Err(error) => gravest_cause(&error, verify_at),
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

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use rustls::RootCertStore;
    use std::time::Duration;

    /// November 2023.
    const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));

    /// Certificate of a new key for the time between the starts of these years.
    fn certificate(from: i32, to: i32) -> CertificateDer<'static> {
        let names = ["box.example"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    /// Cause for which a server is not trusted where one certificate is known.
    fn cause(
        shown: &CertificateDer<'static>,
        known: &CertificateDer<'static>,
        name: &str,
    ) -> Cause {
        let mut roots = RootCertStore::empty();
        roots.add(known.clone()).unwrap();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = Verifier(Rule::Authorities(Some(verifier.build().unwrap())));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let verified = verifier.verify_server_cert(shown, &[], &name, &[], NOW);
        let error = verified.unwrap_err();
        Untrusted::find(&error).unwrap().cause.clone()
    }

    #[test]
    fn dates_count_after_issuer_and_name() {
        let other = certificate(2020, 2040);
        for (from, to, dates) in [
            (2001, 2002, Cause::Expired),
            (2100, 2101, Cause::NotYetValid),
        ] {
            let shown = certificate(from, to);
            assert_eq!(cause(&shown, &shown, "box.example"), dates);
            assert_eq!(cause(&shown, &shown, "x.example"), Cause::OtherName);
            assert_eq!(cause(&shown, &other, "box.example"), Cause::UnknownIssuer);
        }
    }
}
