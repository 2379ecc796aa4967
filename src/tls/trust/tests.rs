//! Handshakes in memory, with servers of every kind.

use super::*;
use crate::tls::{Cause, Untrusted};
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::{
    ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ServerSessionMemoryCache, StoresServerSessions},
    version::{TLS12, TLS13},
};
use std::io::Write as _;

/// Versions that servers speak.
static ALL: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static OLD: &[&SupportedProtocolVersion] = &[&TLS12];
static NEW: &[&SupportedProtocolVersion] = &[&TLS13];

/// Server with a certificate of its own for the name `box`.
struct Server {
    key: KeyPair,
    certificate: rcgen::Certificate,
    versions: &'static [&'static SupportedProtocolVersion],
    /// Sessions that clients may resume.
    sessions: Arc<dyn StoresServerSessions>,
}

impl Server {
    fn new() -> Self {
        Self::between(2020, 2040)
    }

    fn between(from: i32, to: i32) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["box".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            key,
            certificate,
            versions: ALL,
            sessions: ServerSessionMemoryCache::new(8),
        }
    }

    fn pin(&self) -> Pin {
        Pin::of_certificate(self.certificate.der()).unwrap()
    }

    fn connection(&self) -> ServerConnection {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![self.certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key),
            )
            .unwrap();
        config.session_storage = Arc::clone(&self.sessions);
        ServerConnection::new(Arc::new(config)).unwrap()
    }
}

/// Outcome of a handshake for this host.
fn handshake(trust: &Trust, server: &Server, host: &str) -> Result<(), rustls::Error> {
    let name = server_name(host).unwrap();
    let mut client = ClientConnection::new(trust.config().unwrap(), name).unwrap();
    let mut server = server.connection();
    while client.is_handshaking() || server.is_handshaking() {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).unwrap();
        }
        let mut rest = &sent[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut sent = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut sent).unwrap();
        }
        let mut rest = &sent[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(())
}

/// Cause for which a server is not trusted.
#[track_caller]
fn cause(trust: &Trust, server: &Server, host: &str) -> Cause {
    let error = handshake(trust, server, host).unwrap_err();
    let untrusted = Untrusted::find(&error).unwrap();
    assert_eq!(untrusted.found, server.pin());
    untrusted.cause.clone()
}

/// Trust in the certificate of a server as an authority.
fn by_file(server: &Server) -> (Trust, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(server.certificate.pem().as_bytes()).unwrap();
    let trust = Trust::new(None, Some(file.path().to_owned()));
    (trust, file)
}

#[test]
fn pin_counts_and_nothing_else() {
    let expired = Server::between(2001, 2002);
    for versions in [OLD, NEW] {
        let server = Server {
            versions,
            ..Server::between(2001, 2002)
        };
        let trust = Trust::new(Some(server.pin()), None);
        handshake(&trust, &server, "other.example").unwrap();
        handshake(&trust, &server, "[2001:db8::1]").unwrap();
        let wrong = Trust::new(Some(expired.pin()), None);
        let expected = Cause::OtherKey(expired.pin());
        assert_eq!(cause(&wrong, &server, "box"), expected);
    }
}

#[test]
fn swapped_key_is_refused_despite_known_session() {
    for versions in [OLD, NEW] {
        let first = Server {
            versions,
            ..Server::new()
        };
        let second = Server {
            versions,
            sessions: Arc::clone(&first.sessions),
            ..Server::new()
        };
        let trust = Trust::new(Some(first.pin()), None);
        handshake(&trust, &first, "box").unwrap();
        let expected = Cause::OtherKey(first.pin());
        assert_eq!(cause(&trust, &second, "box"), expected);
    }
}

#[test]
fn authorities_check_names_and_dates() {
    let server = Server::new();
    let (trust, _file) = by_file(&server);
    handshake(&trust, &server, "box").unwrap();
    assert_eq!(cause(&trust, &server, "other"), Cause::OtherName);
    assert_eq!(cause(&trust, &Server::new(), "box"), Cause::UnknownIssuer);
    for (from, to, expected) in [
        (2001, 2002, Cause::Expired),
        (2100, 2101, Cause::NotYetValid),
    ] {
        let server = Server::between(from, to);
        let (trust, _file) = by_file(&server);
        assert_eq!(cause(&trust, &server, "box"), expected);
    }
    let of_system = Trust::default();
    assert_eq!(cause(&of_system, &server, "box"), Cause::UnknownIssuer);
}

#[test]
fn unusable_files_are_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for path in [file.path(), Path::new("/no/such/file")] {
        let trust = Trust::new(None, Some(path.to_owned()));
        let text = trust.config().unwrap_err().to_string();
        assert!(text.contains("--ca-file"), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
}

proptest! {
    #[test]
    fn no_host_panics(host in ".{0,40}") {
        let _ = server_name(&host);
    }
}
