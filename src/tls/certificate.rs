//! Certificate that a server makes of itself, for a key that stays.
//!
//! The key is what clients recognize ([`Pin`](super::Pin)), so it is made once. The certificate around it is
//! replaced where it expires soon, or where the server has another name than before.

use super::{expires_at, provider};
use crate::data_dir::{DataDir, SecretFile};
use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::{
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _},
    sign::CertifiedKey,
};
use std::{io, time::Duration};
use uuid::Uuid;
use webpki::EndEntityCert;
use zeroize::Zeroizing;

/// File of the key.
const KEY_FILE: &str = "keys/tls.key";
/// File of the certificate, for tools that want it, such as `curl --cacert`. It is no secret.
const CERTIFICATE_FILE: &str = "keys/tls.crt";
/// Next step for a key that can't be used.
const KEY_ADVICE: &str = "restore it from a backup, or move it away: the next start makes another key, and nodes and users then need its pin, which that start prints";

const DAY_SECONDS: i64 = 24 * 3600;
/// Validity that lies in the past, for clients whose clock is slow.
const BACKDATED_SECONDS: i64 = DAY_SECONDS;
/// Validity that lies ahead: clients of some systems accept no certificate that is valid for longer.
const LIFETIME_SECONDS: i64 = 397 * DAY_SECONDS;
/// Rest of the validity at which the certificate is renewed.
const RENEWAL_SECONDS: i64 = 30 * DAY_SECONDS;

/// Key of this server, and what is needed to certify it.
pub(super) struct OwnCertificate {
    data_dir: DataDir,
    key: KeyPair,
    names: Vec<String>,
}

impl OwnCertificate {
    /// Opens the key, or makes it the first time. Certificates are for these names and addresses; a name that is
    /// not valid is left out.
    pub(super) fn open(data_dir: &DataDir, mut names: Vec<String>) -> io::Result<Self> {
        data_dir.subdir("keys")?;
        let file = SecretFile {
            name: KEY_FILE,
            validate: |text| {
                let key = KeyPair::from_pem(text);
                key.map(drop)
                    .map_err(|_| "is not a private key in PEM (PKCS #8)")
            },
            advice: KEY_ADVICE,
        };
        let spare = KeyPair::generate().map_err(io::Error::other)?;
        let (text, is_new) = data_dir.secret(file, || Zeroizing::new(spare.serialize_pem()))?;
        if is_new && data_dir.join(CERTIFICATE_FILE).exists() {
            tracing::warn!(
                "made another TLS key, since keys/tls.key is missing; all nodes and users need its pin"
            );
        } else if is_new {
            tracing::info!(
                "made a TLS key; nodes and users recognize this orchestrator by its pin"
            );
        }
        names.retain(|name| ServerName::try_from(name.as_str()).is_ok());
        Ok(Self {
            data_dir: data_dir.clone(),
            key: KeyPair::from_pem(&text).map_err(io::Error::other)?,
            names,
        })
    }

    /// Certificate with its key: the stored one where it is fit for `now`, or else a new one.
    pub(super) fn at(&self, now: Timestamp) -> io::Result<CertifiedKey> {
        match self.stored(now) {
            Some(certified) => Ok(certified),
            None => self.issue(now),
        }
    }

    /// Stored certificate, if there is one for this key and these names that does not expire soon.
    fn stored(&self, now: Timestamp) -> Option<CertifiedKey> {
        let text = self.data_dir.read(CERTIFICATE_FILE).ok()??;
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
        let is_current = expiry_of(&certificate).is_some_and(|expiry| is_current(expiry, now));
        let is_fit = is_current && self.has_names(&certificate);
        is_fit.then(|| self.certified(certificate).ok()).flatten()
    }

    fn has_names(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(parsed) = EndEntityCert::try_from(certificate) else {
            return false;
        };
        self.names.iter().all(|name| {
            ServerName::try_from(name.as_str())
                .is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
        })
    }

    /// Makes and stores a certificate.
    fn issue(&self, now: Timestamp) -> io::Result<CertifiedKey> {
        let mut params = CertificateParams::new(self.names.clone()).map_err(io::Error::other)?;
        let since_epoch = |offset: i64| {
            let seconds = now.as_second().saturating_add(offset);
            let seconds = seconds.clamp(0, Timestamp::MAX.as_second());
            Duration::from_secs(seconds.unsigned_abs())
        };
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + since_epoch(-BACKDATED_SECONDS);
        params.not_after = epoch + since_epoch(LIFETIME_SECONDS);
        // Browsers refuse a second certificate of the same number.
        params.serial_number = Some(SerialNumber::from_slice(Uuid::new_v4().as_bytes()));
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "cynode orchestrator");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.self_signed(&self.key).map_err(io::Error::other)?;
        let stored = self
            .data_dir
            .write(CERTIFICATE_FILE, certificate.pem().as_bytes());
        if let Err(error) = stored {
            tracing::warn!(%error, "new TLS certificate not stored; it is used until the next start, which makes another");
        }
        tracing::info!("made a TLS certificate");
        self.certified(certificate.der().clone())
            .map_err(io::Error::other)
    }

    /// Certificate with the key; an error where it is for another one.
    fn certified(
        &self,
        certificate: CertificateDer<'static>,
    ) -> Result<CertifiedKey, rustls::Error> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        CertifiedKey::from_der(vec![certificate], key.into(), &provider())
    }
}

/// End of the validity of a certificate; `None` for one that can't be read.
pub(super) fn expiry_of(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let seconds = i64::try_from(expires_at(certificate)?).ok()?;
    Timestamp::from_second(seconds).ok()
}

/// Whether an own certificate that ends at `expiry` is valid, and not about to expire. One that ends too late was made
/// while this machine's clock was ahead.
pub(super) fn is_current(expiry: Timestamp, now: Timestamp) -> bool {
    let rest = expiry.as_second() - now.as_second();
    rest > RENEWAL_SECONDS && rest <= LIFETIME_SECONDS + BACKDATED_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Pin;
    use std::fs;
    use tempfile::TempDir;

    fn open(home: &TempDir, names: &[&str]) -> OwnCertificate {
        let data_dir = DataDir::open(&home.path().join("data")).unwrap();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        OwnCertificate::open(&data_dir, names).unwrap()
    }

    fn certificate(own: &OwnCertificate, now: Timestamp) -> CertificateDer<'static> {
        own.at(now).unwrap().cert[0].clone()
    }

    fn later(now: Timestamp, days: i64) -> Timestamp {
        Timestamp::from_second(now.as_second() + days * DAY_SECONDS).unwrap()
    }

    #[test]
    fn certificate_stays_until_it_expires_soon() {
        let (home, now) = (TempDir::new().unwrap(), Timestamp::now());
        let names = ["localhost", "127.0.0.1", "::1", "box.example", "no name"];
        let own = open(&home, &names);
        let first = certificate(&own, now);
        assert!(own.has_names(&first));
        let again = open(&home, &names);
        for (days, is_same) in [
            (0, true),
            (366, true),
            (368, false),
            (800, false),
            (-2, false),
        ] {
            let found = certificate(&again, later(now, days));
            assert_eq!(found == first, is_same, "{days}");
            let pins = [&found, &first].map(|found| Pin::of_certificate(found).unwrap());
            assert_eq!(pins[0], pins[1]);
            fs::write(home.path().join("data/keys/tls.crt"), pem(&first)).unwrap();
        }
    }

    fn pem(certificate: &CertificateDer<'_>) -> String {
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, certificate);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn damaged_or_foreign_certificate_is_replaced() {
        let (home, now) = (TempDir::new().unwrap(), Timestamp::now());
        let own = open(&home, &["localhost"]);
        let first = certificate(&own, now);
        let other = certificate(&open(&TempDir::new().unwrap(), &["localhost"]), now);
        for text in [String::new(), "?".to_owned(), pem(&other)] {
            fs::write(home.path().join("data/keys/tls.crt"), text).unwrap();
            let found = certificate(&own, now);
            let pins = [&found, &first].map(|found| Pin::of_certificate(found).unwrap());
            assert_eq!(pins[0], pins[1]);
        }
        let renamed = open(&home, &["localhost", "new.example"]);
        assert!(renamed.has_names(&certificate(&renamed, now)));
    }

    #[test]
    fn damaged_key_is_kept_and_explained() {
        let home = TempDir::new().unwrap();
        open(&home, &["localhost"]);
        let path = home.path().join("data/keys/tls.key");
        fs::write(&path, "damaged").unwrap();
        let data_dir = DataDir::open(&home.path().join("data")).unwrap();
        let error = OwnCertificate::open(&data_dir, Vec::new()).err().unwrap();
        assert!(
            error.to_string().contains("restore it from a backup"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "damaged");
    }
}
