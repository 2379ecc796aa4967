//! TLS of a listener: its certificate, which may change while it runs, and its pin.

use super::{
    Pin,
    certificate::{OwnCertificate, expiry_of, is_current},
    provider,
};
use crate::data_dir::DataDir;
use jiff::Timestamp;
use parking_lot::RwLock;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

/// Protocols that are offered inside, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Files of a certificate that the operator has.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// Certificate, followed by those of the authorities in between, in PEM.
    pub certificate: PathBuf,
    /// Key of the certificate, in PEM.
    pub key: PathBuf,
}

/// TLS of listeners; clones share the certificate. Offers HTTP/1.1 inside.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    inner: Arc<Inner>,
}

struct Inner {
    current: Arc<Current>,
    source: Source,
}

/// Where certificates come from.
enum Source {
    Own(Box<OwnCertificate>),
    Files(CertificateFiles),
}

/// Certificate in use.
#[derive(Debug)]
struct Current(RwLock<Loaded>);

#[derive(Clone, Debug)]
struct Loaded {
    certified: Arc<CertifiedKey>,
    pin: Pin,
    expiry: Timestamp,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().certified))
    }
}

impl ServerTls {
    /// TLS with a certificate that this server makes of itself, for these names, in `keys/` of the data directory.
    pub fn own(data_dir: &DataDir, names: Vec<String>) -> io::Result<Self> {
        let own = OwnCertificate::open(data_dir, names)?;
        Self::open(Source::Own(Box::new(own)))
    }

    /// TLS with a certificate of the operator's.
    pub fn from_files(files: CertificateFiles) -> io::Result<Self> {
        Self::open(Source::Files(files))
    }

    fn open(source: Source) -> io::Result<Self> {
        let loaded = source.load()?;
        warn_if_expired(&loaded);
        let current = Arc::new(Current(RwLock::new(loaded)));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Current>::clone(&current));
        config.alpn_protocols = vec![PROTOCOLS[1].to_vec()];
        // No resumption: a client that resumes a session does not see a new certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            inner: Arc::new(Inner { current, source }),
        })
    }

    /// Same TLS, which offers HTTP/2 besides HTTP/1.1.
    pub fn with_http2(&self) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Self {
            config: Arc::new(config),
            inner: Arc::clone(&self.inner),
        }
    }

    /// Reads the operator's files again, or renews the own certificate where it is due. After an error the one in use
    /// stays. Reads and writes the disk. Returns whether there is another certificate now.
    pub fn reload(&self) -> io::Result<bool> {
        if !self.has_files() && is_current(self.expiry(), Timestamp::now()) {
            return Ok(false);
        }
        let loaded = self.inner.source.load()?;
        let mut current = self.inner.current.0.write();
        let is_new = loaded.certified.cert != current.certified.cert;
        if is_new {
            warn_if_expired(&loaded);
            *current = loaded;
        }
        Ok(is_new)
    }

    /// Whether the certificate is the operator's.
    pub fn has_files(&self) -> bool {
        matches!(self.inner.source, Source::Files(_))
    }

    /// Pin of the key in use.
    pub fn pin(&self) -> Pin {
        self.inner.current.0.read().pin.clone()
    }

    /// End of the validity of the certificate in use.
    pub fn expiry(&self) -> Timestamp {
        self.inner.current.0.read().expiry
    }

    /// Server side of handshakes.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl Source {
    fn load(&self) -> io::Result<Loaded> {
        let certified = match self {
            Self::Own(own) => own.at(Timestamp::now())?,
            Self::Files(files) => files.load()?,
        };
        let unusable = || {
            let text = match self {
                Self::Own(_) => "the TLS certificate made by this process can't be read".to_owned(),
                Self::Files(files) => files.unusable(),
            };
            invalid(text)
        };
        let certificate = certified.end_entity_cert().map_err(|_| unusable())?;
        let pin = Pin::of_certificate(certificate).map_err(|_| unusable())?;
        let expiry = expiry_of(certificate).ok_or_else(unusable)?;
        Ok(Loaded {
            certified: Arc::new(certified),
            pin,
            expiry,
        })
    }
}

impl CertificateFiles {
    fn load(&self) -> io::Result<CertifiedKey> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        let text = read("--tls-cert", &self.certificate)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let chain = chain.map_err(|error| {
            invalid(format!(
                "--tls-cert {certificate} is damaged: {error}; copy it again"
            ))
        })?;
        if chain.is_empty() {
            return Err(invalid(format!(
                "--tls-cert {certificate} holds no certificate in PEM (-----BEGIN CERTIFICATE-----); pass the server's, followed by those of the authorities in between"
            )));
        }
        let text = read("--tls-key", &self.key)?;
        let key_der = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
            invalid(format!(
                "--tls-key {key} holds no private key in PEM (-----BEGIN PRIVATE KEY-----); decrypt an encrypted one first, for example with openssl pkey"
            ))
        })?;
        CertifiedKey::from_der(chain, key_der, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => invalid(format!(
                "--tls-key {key} is not the key of the certificate in --tls-cert {certificate}; pass the key for which that certificate was requested, and put the server's certificate first in its file"
            )),
            rustls::Error::InvalidCertificate(_) => invalid(self.unusable()),
            error => invalid(format!(
                "--tls-key {key} can't be used ({error}); pass an ECDSA key (P-256 or P-384), an Ed25519 key, or an RSA key of 2048 bits or more"
            )),
        })
    }

    fn unusable(&self) -> String {
        format!(
            "the certificate in --tls-cert {} can't be read; pass an X.509 certificate of version 3 with the names of this server",
            self.certificate.display()
        )
    }
}

/// Logs a certificate that clients which know its authority do not accept.
fn warn_if_expired(loaded: &Loaded) {
    if Timestamp::now() > loaded.expiry {
        tracing::warn!(expired = %loaded.expiry, "TLS certificate has expired; clients without --pin refuse it, so renew it");
    }
}

/// Content of a file that a flag names.
fn read(flag: &str, path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    fs::read(path).map(Zeroizing::new).map_err(|error| {
        let text = format!(
            "{flag} {} can't be read: {error}; check the path, and that this process's user may read it",
            path.display()
        );
        io::Error::new(error.kind(), text)
    })
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests;
