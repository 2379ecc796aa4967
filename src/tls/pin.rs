//! Pins: digests of public keys.

use crate::digest::sha256_hex;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use webpki::EndEntityCert;

/// Name of the digest, before its value.
const ALGORITHM: &str = "sha256:";
/// Hex digits of a digest.
const DIGITS: usize = 64;
/// Hex digits of the short form, in groups.
const SHORT_DIGITS: usize = 16;
const GROUP_DIGITS: usize = 4;

/// SHA-256 of the public key of a server (its `SubjectPublicKeyInfo` in DER, as in RFC 7469), written `sha256:<hex>`.
/// It is no secret.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin(String);

/// Text that is no pin.
#[derive(Debug, thiserror::Error)]
#[error(
    "a pin is sha256: and 64 hex digits, as the orchestrator prints it at its start; copy it whole"
)]
pub struct PinError;

impl Pin {
    /// Pin of the key in this certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, webpki::Error> {
        let parsed = EndEntityCert::try_from(certificate)?;
        Ok(Self(sha256_hex(parsed.subject_public_key_info())))
    }

    /// First digits in groups, for a person who compares them.
    pub fn short(&self) -> String {
        let digits = &self.0.as_bytes()[..SHORT_DIGITS];
        let groups: Vec<_> = digits
            .chunks(GROUP_DIGITS)
            .map(String::from_utf8_lossy)
            .collect();
        groups.join(" ")
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", self.0)
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

impl TryFrom<String> for Pin {
    type Error = PinError;

    fn try_from(text: String) -> Result<Self, PinError> {
        text.parse()
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let digits = text.trim().strip_prefix(ALGORITHM).ok_or(PinError)?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if digits.len() != DIGITS || !is_hex {
            return Err(PinError);
        }
        Ok(Self(digits.to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_is_read_as_written() {
        let text = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let pin: Pin = text
            .to_ascii_uppercase()
            .replace("SHA", "sha")
            .parse()
            .unwrap();
        assert_eq!(pin.to_string(), text);
        assert_eq!(pin.short(), "0123 4567 89ab cdef");
        for wrong in ["", "sha256:", &text[7..], &text[..70], &format!("{text}0")] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }
}
