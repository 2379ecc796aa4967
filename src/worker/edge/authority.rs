//! Authority that is made for one sandbox, and the certificates that it issues.
//!
//! Its key is in the memory of the sandbox's shim and of this process, and on no disk. Only programs in that sandbox
//! trust it, and its certificate allows it no names but those of the hosts whose TLS the job asked the proxy to open.

use crate::{
    api::{egress::HostName, secrets::SecretValue},
    tls::provider,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
    date_time_ymd,
};
use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Name of every authority: programs find the right one by its key.
const AUTHORITY_NAME: &str = "cynode sandbox";
/// Name in the certificates that it issues, beside that of the host.
const ISSUED_NAME: &str = "cynode proxy";
/// Protocol inside of TLS.
const ALPN: &[u8] = b"http/1.1";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Validity that lies ahead: no sandbox lives longer.
const LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);

/// Authority of one sandbox.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(super) struct Authority {
    /// Certificate in PEM.
    certificate: String,
    /// Key in PEM.
    key: SecretValue,
}

impl Authority {
    /// Makes one for these hosts.
    pub(super) fn new<'a>(hosts: impl Iterator<Item = &'a HostName>) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = params(AUTHORITY_NAME, Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: hosts
                .map(|host| GeneralSubtree::DnsName(host.to_string()))
                .collect(),
            excluded_subtrees: Vec::new(),
        });
        let certificate = params.self_signed(&key).map_err(io::Error::other)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: Zeroizing::new(key.serialize_pem()).into(),
        })
    }

    /// Certificate in PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Bytes of certificate and key.
    pub(super) fn bytes(&self) -> usize {
        self.certificate.len() + self.key.expose().len()
    }

    /// TLS of a server that has a new certificate for this host.
    pub(super) fn certify(&self, host: &HostName) -> io::Result<Arc<ServerConfig>> {
        let own_key = KeyPair::from_pem(self.key.expose()).map_err(io::Error::other)?;
        let issuer = Issuer::new(params(AUTHORITY_NAME, Vec::new())?, own_key);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = params(ISSUED_NAME, vec![host.to_string()])?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).map_err(io::Error::other)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

/// What all certificates have: a name, hosts, a number, and a time that began yesterday, for clocks that are slow.
fn params(name: &str, hosts: Vec<String>) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts).map_err(io::Error::other)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(Uuid::new_v4().as_bytes()));
    let epoch = date_time_ymd(1970, 1, 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_err(io::Error::other)?;
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + LIFETIME;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    };
    use tokio::io::duplex;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    /// Whether a client that trusts the authority alone accepts the certificate that it issues for this host.
    async fn is_trusted(authority: &Authority, name: &str) -> bool {
        let mut roots = RootCertStore::empty();
        let pem = authority.certificate().as_bytes();
        roots
            .add(CertificateDer::from_pem_slice(pem).unwrap())
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = authority.certify(&host(name)).unwrap();
        let (near, far) = duplex(64 * 1024);
        let connector = TlsConnector::from(Arc::new(client));
        let named = ServerName::try_from(name.to_owned()).unwrap();
        let acceptor = TlsAcceptor::from(server);
        let (connected, _) = tokio::join!(connector.connect(named, near), acceptor.accept(far));
        connected.is_ok()
    }

    #[tokio::test]
    async fn authority_certifies_its_hosts_alone() {
        let hosts = ["api.example.com", "localhost", "_a.example"].map(host);
        let authority = Authority::new(hosts.iter()).unwrap();
        for name in ["api.example.com", "localhost"] {
            assert!(is_trusted(&authority, name).await, "{name}");
        }
        for name in ["other.example.com", "example.com", "api.example.org"] {
            assert!(!is_trusted(&authority, name).await, "{name}");
        }
    }

    #[tokio::test]
    async fn next_process_issues_for_the_same_authority() {
        let authority = Authority::new([host("a.example")].iter()).unwrap();
        let text = serde_json::to_string(&authority).unwrap();
        let kept: Authority = serde_json::from_str(&text).unwrap();
        assert_eq!(kept.certificate(), authority.certificate());
        assert!(is_trusted(&kept, "a.example").await);
        assert!(!format!("{kept:?}").contains("PRIVATE KEY"));
    }
}
