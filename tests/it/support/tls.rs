//! A TLS client that trusts any server and says which one it met, and certificates to serve.

use super::{DEADLINE, Reply};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
};
use webpki::EndEntityCert;

/// An encrypted connection after its handshake.
pub(crate) struct Encrypted {
    stream: StreamOwned<ClientConnection, TcpStream>,
    address: String,
}

impl Encrypted {
    /// Connects to `host:port`; an error where no handshake succeeds.
    pub(crate) fn open(address: &str) -> io::Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let name = ServerName::try_from("any.example").unwrap();
        let config = config_offering(&["http/1.1"]);
        let mut connection = ClientConnection::new(config, name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self {
            stream: StreamOwned::new(connection, socket),
            address: address.to_owned(),
        })
    }

    /// Certificate that the server has shown.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        let shown = self.stream.conn.peer_certificates().unwrap();
        shown[0].clone()
    }

    /// Protocol that was agreed on.
    pub(crate) fn protocol(&self) -> Option<String> {
        let name = self.stream.conn.alpn_protocol();
        name.map(|name| String::from_utf8(name.to_vec()).unwrap())
    }

    /// Pin of the server.
    pub(crate) fn pin(&self) -> String {
        pin_of(&self.certificate())
    }

    /// Sends a request, and reads the answer to the end of the connection.
    pub(crate) fn call(mut self, method: &str, path: &str, body: &str) -> Reply {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        self.stream.read_to_end(&mut answer).unwrap();
        Reply::parse(&answer)
    }
}

/// GET from `host:port`, encrypted.
pub(crate) fn get(address: &str, path: &str) -> Reply {
    let connection = Encrypted::open(address).unwrap();
    connection.call("GET", path, "")
}

/// Pin of the server at `host:port`.
pub(crate) fn pin_at(address: &str) -> String {
    Encrypted::open(address).unwrap().pin()
}

/// Pin of the key in a certificate, as anybody may compute it.
pub(crate) fn pin_of(certificate: &CertificateDer<'_>) -> String {
    let parsed = EndEntityCert::try_from(certificate).unwrap();
    let digest = Sha256::digest(parsed.subject_public_key_info());
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// Files of a new certificate and its key.
pub(crate) struct CertificateFiles {
    /// Certificate in PEM.
    pub(crate) certificate: PathBuf,
    /// Key in PEM.
    pub(crate) key: PathBuf,
    /// Pin of the key.
    pub(crate) pin: String,
}

impl CertificateFiles {
    /// Makes both, for the names of loopback, below `home`.
    pub(crate) fn make(home: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned)).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let files = Self {
            certificate: home.join(format!("{name}.crt")),
            key: home.join(format!("{name}.key")),
            pin: pin_of(certificate.der()),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// Puts both in the place of others.
    pub(crate) fn replace(&self, other: &Self) {
        fs::copy(&self.certificate, &other.certificate).unwrap();
        fs::copy(&self.key, &other.key).unwrap();
    }

    /// Flags that have an orchestrator use both.
    pub(crate) fn flags(&self) -> [&str; 4] {
        [
            "--tls-cert",
            self.certificate.to_str().unwrap(),
            "--tls-key",
            self.key.to_str().unwrap(),
        ]
    }
}

/// Protocol on which the server at `host:port` agrees with a client that offers these.
pub(crate) fn protocol_at(address: &str, offered: &[&str]) -> Option<String> {
    let mut socket = TcpStream::connect(address).unwrap();
    let name = ServerName::try_from("any.example").unwrap();
    let mut connection = ClientConnection::new(config_offering(offered), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).unwrap();
    }
    let name = connection.alpn_protocol();
    name.map(|name| String::from_utf8(name.to_vec()).unwrap())
}

/// Configuration of a client that trusts anybody, and offers these protocols.
pub(crate) fn config_offering(protocols: &[&str]) -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
    config.alpn_protocols = protocols.collect();
    Arc::new(config)
}

/// Trust in any server that has the key of its certificate.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
