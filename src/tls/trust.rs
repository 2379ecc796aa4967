//! Trust of a client in servers: by a pin, or by authorities.

use super::{
    Pin, provider,
    verifier::{Rule, Verifier},
};
use crate::errors;
use rustls::{
    ClientConfig, RootCertStore,
    client::{Resumption, WebPkiServerVerifier},
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// The one protocol above TLS (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// Rule by which a client trusts servers; cheap to clone. The default is the authorities of the system.
#[derive(Clone, Debug, Default)]
pub struct Trust(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    anchor: Anchor,
    config: OnceLock<Arc<ClientConfig>>,
}

/// Origin of trust.
#[derive(Debug)]
enum Anchor {
    /// Key of the server.
    Pinned(Pin),
    /// Authorities of the system, and those of a file.
    Authorities { ca_file: Option<PathBuf> },
}

impl Default for Anchor {
    fn default() -> Self {
        Self::Authorities { ca_file: None }
    }
}

impl Trust {
    /// Trust in the key of this pin, where there is one; else in the authorities of the system and of this file.
    pub fn new(pin: Option<Pin>, ca_file: Option<PathBuf>) -> Self {
        let anchor = match pin {
            Some(pin) => Anchor::Pinned(pin),
            None => Anchor::Authorities { ca_file },
        };
        Self(Arc::new(Inner {
            anchor,
            config: OnceLock::new(),
        }))
    }

    /// The pin, where trust is in one.
    pub fn pin(&self) -> Option<&Pin> {
        match &self.0.anchor {
            Anchor::Pinned(pin) => Some(pin),
            Anchor::Authorities { .. } => None,
        }
    }

    /// File of further authorities.
    pub fn ca_file(&self) -> Option<&Path> {
        match &self.0.anchor {
            Anchor::Pinned(_) => None,
            Anchor::Authorities { ca_file } => ca_file.as_deref(),
        }
    }

    /// Settings of connections. The first call reads the authorities from the disk; an error says what to do.
    pub fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.0.config.get() {
            return Ok(Arc::clone(config));
        }
        let built = self.build()?;
        Ok(Arc::clone(self.0.config.get_or_init(|| built)))
    }

    /// Settings of connections, as long as that needs no disk.
    pub(super) fn config_in_memory(&self) -> Option<io::Result<Arc<ClientConfig>>> {
        match &self.0.anchor {
            Anchor::Pinned(_) => Some(self.config()),
            Anchor::Authorities { .. } => self.0.config.get().cloned().map(Ok),
        }
    }

    fn build(&self) -> io::Result<Arc<ClientConfig>> {
        let rule = match &self.0.anchor {
            Anchor::Pinned(pin) => Rule::Pinned(pin.clone()),
            Anchor::Authorities { ca_file } => Rule::Authorities(authorities(ca_file.as_deref())?),
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier(rule)))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would not check the server's key again, though it may have been replaced meanwhile.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// Verifier by the authorities of the system and of a file; `None` where there are none.
fn authorities(ca_file: Option<&Path>) -> io::Result<Option<Arc<WebPkiServerVerifier>>> {
    let system = rustls_native_certs::load_native_certs();
    // Mostly SSL_CERT_FILE or SSL_CERT_DIR, which lead to nothing.
    for error in &system.errors {
        let error = errors::chain(error);
        tracing::warn!(
            error,
            "authorities for TLS can't be read, and those in them are not trusted"
        );
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_file {
        add_file(&mut roots, path).map_err(|reason| {
            io::Error::other(format!("--ca-file {}: {reason}", path.display()))
        })?;
    }
    if roots.is_empty() {
        return Ok(None);
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map(Some)
        .map_err(io::Error::other)
}

/// Adds the certificates of a PEM file; the error completes the name of the file.
fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| format!("is not valid PEM: {error:?}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("has a certificate that is not usable: {error}"))?;
        count += 1;
    }
    if count == 0 {
        return Err(
            "has no certificate; it must hold those of the authority, each as -----BEGIN CERTIFICATE-----"
                .to_owned(),
        );
    }
    Ok(())
}

/// Name of a server for the handshake, of the host in a URL.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    let bare = host.strip_prefix('[').unwrap_or(host);
    let bare = bare.strip_suffix(']').unwrap_or(bare);
    ServerName::try_from(bare.to_owned()).map_err(|_| {
        let text = format!("{host:.255} is not a host name that TLS can use; use its IP address");
        io::Error::other(text)
    })
}

#[cfg(test)]
mod tests;
