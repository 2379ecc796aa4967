//! Ends of certificates.

use super::provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};

/// A time after the end of every certificate: the year 9999 has ended.
const AFTER_ALL: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1 << 38));

/// End of a certificate, in seconds since 1970; `None` for one that can't be read.
///
/// The check of certificates names the end of one that has expired, and dates are what it checks first. So a check in
/// the far future finds it out, without another parser.
pub fn expires_at(certificate: &CertificateDer<'_>) -> Option<u64> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let checked = parsed.verify_for_usage(
        provider().signature_verification_algorithms.all,
        &[],
        &[],
        AFTER_ALL,
        KeyUsage::server_auth(),
        None,
        None,
    );
    match checked {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    #[test]
    fn end_of_certificate_is_read() {
        let mut params = CertificateParams::new(vec!["box".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let expected = 1_927_843_200;
        assert_eq!(expires_at(certificate.der()), Some(expected));
        assert_eq!(expires_at(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
