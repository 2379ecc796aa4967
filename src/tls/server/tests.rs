//! Tests of certificates from files.

use super::*;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

/// Files with a new certificate and its key.
fn made(home: &TempDir, name: &str) -> CertificateFiles {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["box.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let files = CertificateFiles {
        certificate: home.path().join(format!("{name}.crt")),
        key: home.path().join(format!("{name}.key")),
    };
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// Error of these files.
fn refusal(files: &CertificateFiles) -> String {
    let opened = ServerTls::from_files(files.clone());
    opened.err().unwrap().to_string()
}

#[test]
fn reload_takes_good_files_only() {
    let home = TempDir::new().unwrap();
    let (files, next) = (made(&home, "first"), made(&home, "next"));
    let tls = ServerTls::from_files(files.clone()).unwrap();
    let pin = tls.pin();
    assert!(!tls.reload().unwrap());
    fs::copy(&next.certificate, &files.certificate).unwrap();
    assert!(tls.reload().is_err());
    assert_eq!(tls.pin(), pin);
    fs::copy(&next.key, &files.key).unwrap();
    assert!(tls.reload().unwrap());
    assert_ne!(tls.pin(), pin);
}

#[test]
fn unusable_files_are_explained() {
    let home = TempDir::new().unwrap();
    let (files, other) = (made(&home, "one"), made(&home, "other"));
    let mixed = CertificateFiles {
        key: other.key.clone(),
        ..files.clone()
    };
    assert!(
        refusal(&mixed).contains("is not the key"),
        "{}",
        refusal(&mixed)
    );
    let absent = CertificateFiles {
        key: home.path().join("none"),
        ..files.clone()
    };
    assert!(refusal(&absent).starts_with("--tls-key"));
    let swapped = CertificateFiles {
        certificate: files.key.clone(),
        key: files.certificate.clone(),
    };
    assert!(refusal(&swapped).contains("holds no certificate"));
    fs::write(
        &other.key,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    let encrypted = CertificateFiles {
        key: other.key,
        ..files
    };
    assert!(refusal(&encrypted).contains("decrypt an encrypted one"));
}
