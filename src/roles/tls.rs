//! Settings of encryption, checked.

use crate::{
    cli::{Switch, TlsFlags},
    exit::Failure,
    orchestrator::TlsSettings,
    tls::{CertificateFiles, is_encrypted},
};

/// Encryption that the flags ask for.
pub(super) fn tls_settings(flags: TlsFlags) -> Result<TlsSettings, Failure> {
    match (flags.tls, flags.tls_cert, flags.tls_key) {
        (Some(Switch::Off), Some(_), _) | (Some(Switch::Off), _, Some(_)) => Err(Failure::usage(
            "--tls off contradicts --tls-cert and --tls-key; leave one of them out",
        )),
        (_, Some(certificate), Some(key)) => {
            Ok(TlsSettings::Files(CertificateFiles { certificate, key }))
        }
        (_, Some(_), None) => Err(Failure::usage(
            "--tls-cert needs the private key of the certificate; give it with --tls-key FILE",
        )),
        (_, None, Some(_)) => Err(Failure::usage(
            "--tls-key needs its certificate; give it with --tls-cert FILE",
        )),
        (Some(Switch::On), None, None) => Ok(TlsSettings::Own),
        (Some(Switch::Off), None, None) => Ok(TlsSettings::Off),
        (None, None, None) => Ok(TlsSettings::Default),
    }
}

/// Checks that the public URL has the scheme that the control plane speaks. A reverse proxy may encrypt for it, but
/// nothing takes encryption away again.
pub(super) fn check_public_url(url: Option<&str>, tls: &TlsSettings) -> Result<(), Failure> {
    let is_plain = url.is_some_and(|url| !is_encrypted(url));
    if !is_plain || matches!(tls, TlsSettings::Off) {
        return Ok(());
    }
    Err(Failure::usage(
        "--public-url leads nodes to plain HTTP, but the control plane speaks TLS; write https:// in the URL, or keep plain HTTP for all nodes and users with --tls off",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(tls: Option<Switch>, files: [bool; 2]) -> Result<TlsSettings, Failure> {
        let [tls_cert, tls_key] = files.map(|given| given.then(|| "file".into()));
        tls_settings(TlsFlags {
            tls,
            tls_cert,
            tls_key,
        })
    }

    #[test]
    fn half_given_certificate_is_refused() {
        for tls in [None, Some(Switch::On), Some(Switch::Off)] {
            assert!(settings(tls, [true, false]).is_err());
            assert!(settings(tls, [false, true]).is_err());
        }
        assert!(settings(Some(Switch::Off), [true, true]).is_err());
    }

    #[test]
    fn certificate_turns_tls_on() {
        for tls in [None, Some(Switch::On)] {
            let found = settings(tls, [true, true]).ok().unwrap();
            assert!(found.is_reloadable());
        }
        let own = settings(Some(Switch::On), [false, false]).ok().unwrap();
        assert!(matches!(own, TlsSettings::Own));
        let off = settings(Some(Switch::Off), [false, false]).ok().unwrap();
        assert!(matches!(off, TlsSettings::Off));
        let default = settings(None, [false, false]).ok().unwrap();
        assert!(matches!(default, TlsSettings::Default));
    }

    #[test]
    fn encrypted_listener_needs_encrypted_url() {
        let (plain, secure) = (Some("http://box:1"), Some("https://box:1"));
        assert!(check_public_url(plain, &TlsSettings::Own).is_err());
        assert!(check_public_url(plain, &TlsSettings::Default).is_err());
        assert!(check_public_url(Some("HTTP://box:1"), &TlsSettings::Own).is_err());
        assert!(check_public_url(secure, &TlsSettings::Own).is_ok());
        assert!(check_public_url(Some("HTTPS://box:1"), &TlsSettings::Own).is_ok());
        assert!(check_public_url(secure, &TlsSettings::Off).is_ok());
        assert!(check_public_url(plain, &TlsSettings::Off).is_ok());
        assert!(check_public_url(None, &TlsSettings::Own).is_ok());
    }
}
