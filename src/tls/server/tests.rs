//! Tests of certificates from files.

use super::*;
use crate::tls::Trust;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConnection,
    client::Resumption, pki_types::ServerName,
};
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

/// Passes on all that one end of a connection has to send.
fn pass(from: &mut Connection, to: &mut Connection) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().unwrap();
    }
}

/// Kind of the handshake of a client with these settings.
fn handshake(tls: &ServerTls, settings: &Arc<ClientConfig>) -> Option<HandshakeKind> {
    let name = ServerName::try_from("box.example").unwrap();
    let client = ClientConnection::new(Arc::clone(settings), name).unwrap();
    let server = ServerConnection::new(Arc::clone(&tls.config)).unwrap();
    let (mut client, mut server) = (Connection::from(client), Connection::from(server));
    // Once more after the handshake: a server of TLS 1.3 would send its tickets then.
    for _ in 0..3 {
        pass(&mut client, &mut server);
        pass(&mut server, &mut client);
    }
    client.handshake_kind()
}

#[test]
fn sessions_are_not_resumed() {
    let home = TempDir::new().unwrap();
    let tls = ServerTls::from_files(made(&home, "one")).unwrap();
    let trust = Trust::new(Some(tls.pin()), None);
    // A client of ours would not resume a session either.
    let mut settings = ClientConfig::clone(&trust.config().unwrap());
    settings.resumption = Resumption::in_memory_sessions(8);
    let settings = Arc::new(settings);
    for _ in 0..2 {
        assert_eq!(handshake(&tls, &settings), Some(HandshakeKind::Full));
    }
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
