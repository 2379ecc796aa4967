//! Servers that are not trusted, and what to do about each cause.

use super::Pin;
use rustls::{CertificateError, OtherError};
use std::{error::Error, fmt, io, sync::Arc};

/// Reason for which a server is not trusted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The server has another key than this one, which is pinned.
    OtherKey(Pin),
    /// No authority that this machine knows has issued the certificate.
    UnknownIssuer,
    /// The certificate has expired, by the clock of this machine.
    Expired,
    /// The certificate is not valid yet, by the clock of this machine.
    NotYetValid,
    /// The certificate is for other names.
    OtherName,
    /// Any other fault of the certificate.
    Invalid(String),
}

impl Cause {
    /// Cause of an error of the check by authorities.
    pub(super) fn of(error: &rustls::Error) -> Self {
        let rustls::Error::InvalidCertificate(fault) = error else {
            return Self::Invalid(error.to_string());
        };
        match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            // A bad signature: an authority of the same name has another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            // The certificate is its own authority, as some tools make them.
            CertificateError::Other(other) if is_own_authority(other) => Self::UnknownIssuer,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::OtherName
            }
            fault => Self::Invalid(fault.to_string()),
        }
    }
}

fn is_own_authority(error: &OtherError) -> bool {
    let error = error.0.downcast_ref::<webpki::Error>();
    error == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// Server that is not trusted. The handshake ends, so that no byte of a request reaches it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Untrusted {
    /// Pin of the key that the server has.
    pub found: Pin,
    /// Reason.
    pub cause: Cause,
}

impl Untrusted {
    /// The untrusted server among the causes of a failed connection.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        causes(error).find_map(|error| error.downcast_ref::<Self>())
    }

    pub(super) fn into_error(self) -> rustls::Error {
        let error = OtherError(Arc::new(self));
        rustls::Error::InvalidCertificate(CertificateError::Other(error))
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = &self.found;
        match &self.cause {
            Cause::OtherKey(pinned) => write!(
                f,
                "the server has another key than the pinned one: expected {pinned}, got {found}; someone may stand in \
                 between, or the orchestrator has a new key: compare the second pin with the one that the orchestrator \
                 prints at its start, and only if they are equal, give it with --pin, once to a node or a login, which \
                 remember it"
            ),
            Cause::UnknownIssuer => write!(
                f,
                "no authority that this machine knows has issued the server's certificate; if the orchestrator printed \
                 this pin at its start, use --pin {found}; for a private authority use --ca-file FILE"
            ),
            Cause::Expired => write!(
                f,
                "the server's certificate has expired, by this machine's clock; check the clock with: date; else renew \
                 the certificate on the server, or use --pin, for which dates do not count"
            ),
            Cause::NotYetValid => write!(
                f,
                "the server's certificate is not valid yet, by this machine's clock; check the clock with: date, or use \
                 --pin, for which dates do not count"
            ),
            Cause::OtherName => write!(
                f,
                "the server's certificate is for other names than the one in the URL; use a name that it covers, or \
                 --pin, for which names do not count"
            ),
            Cause::Invalid(reason) => write!(
                f,
                "the server's certificate is not usable: {reason}; make a new one on the server, or use --pin with the \
                 pin that the orchestrator prints at its start"
            ),
        }
    }
}

impl Error for Untrusted {}

/// Reason of a failed handshake, in words; `None` for faults of the connection.
pub fn reason(error: &(dyn Error + 'static)) -> Option<String> {
    let fault = causes(error).find_map(|error| error.downcast_ref::<rustls::Error>())?;
    Some(match (Untrusted::find(error), fault) {
        (Some(untrusted), _) => untrusted.to_string(),
        (None, rustls::Error::InvalidMessage(_)) => {
            "the server does not speak TLS there, or somebody in between has it seem so; check the port, and whether the \
             orchestrator runs with --tls off (with http:// in the URL, everybody in between can read what is sent)"
                .to_owned()
        }
        (None, fault) => format!("the TLS handshake failed: {fault}"),
    })
}

/// An error and its causes, also those inside of errors that hide them.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| cause(*error))
}

fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        let inner = error.get_ref()?;
        return Some(inner);
    }
    if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) =
        error.downcast_ref::<rustls::Error>()
    {
        let inner: &(dyn Error + 'static) = other.0.as_ref();
        return Some(inner);
    }
    error.source()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untrusted(cause: Cause) -> Untrusted {
        let found = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        Untrusted { found, cause }
    }

    #[test]
    fn untrusted_server_is_found_in_causes() {
        let pinned: Pin = format!("sha256:{}", "01".repeat(32)).parse().unwrap();
        let meant = untrusted(Cause::OtherKey(pinned.clone()));
        let error = io::Error::new(io::ErrorKind::InvalidData, meant.clone().into_error());
        assert_eq!(Untrusted::find(&error), Some(&meant));
        let outer = io::Error::other(error);
        let text = reason(&outer).unwrap();
        assert!(text.contains(&pinned.to_string()), "{text}");
        assert!(text.contains(&meant.found.to_string()), "{text}");
        assert!(reason(&io::Error::from_raw_os_error(111)).is_none());
    }

    #[test]
    fn every_cause_names_a_way_out() {
        for (cause, words) in [
            (Cause::UnknownIssuer, ["--pin sha256:", "--ca-file"]),
            (Cause::Expired, ["expired", "clock"]),
            (Cause::NotYetValid, ["not valid yet", "clock"]),
            (Cause::OtherName, ["names", "--pin"]),
            (Cause::Invalid("x".to_owned()), ["x", "--pin"]),
        ] {
            let text = untrusted(cause).to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }
}
