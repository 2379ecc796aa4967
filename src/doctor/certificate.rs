//! The certificate of an orchestrator at an `https://` URL.

use super::Check;
use crate::{
    http::resolve::{port_of, resolve_host},
    tls::{ClientStream, Pin, Trust, expires_at},
};
use http::Uri;
use jiff::Timestamp;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Rest of a certificate's time that leaves room to renew it.
const MIN_DAYS: i64 = 14;
const DAY_SECONDS: i64 = 24 * 3600;

/// Facts about a server's certificate.
struct Certificate {
    pin: Option<Pin>,
    /// End of its time.
    end: Option<Timestamp>,
}

/// Result of a call that reached the orchestrator, with what its certificate adds.
pub(super) async fn add_certificate(reached: Check, url: &str, trust: &Trust) -> Check {
    let looked = timeout(HANDSHAKE_TIMEOUT, look(url, trust)).await;
    match looked {
        Ok(Ok(certificate)) => verdict(reached, &certificate, trust.pin(), Timestamp::now()),
        Ok(Err(error)) => Check::warn(
            reached.name,
            format!(
                "{}; its certificate was not checked: {error}",
                reached.detail
            ),
            "run doctor again",
        ),
        Err(_) => Check::warn(
            reached.name,
            format!(
                "{}; its certificate was not checked: timed out",
                reached.detail
            ),
            "run doctor again",
        ),
    }
}

async fn look(url: &str, trust: &Trust) -> io::Result<Certificate> {
    let uri: Uri = url.parse().map_err(io::Error::other)?;
    let host = uri.host().unwrap_or_default();
    let addresses = resolve_host(host).await?;
    let addresses: Vec<_> = addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port_of(&uri)))
        .collect();
    let stream = TcpStream::connect(&addresses[..]).await?;
    let stream: ClientStream = trust.connect(host, stream).await?;
    let certificate = stream.certificate();
    let end = certificate.and_then(expires_at);
    Ok(Certificate {
        pin: certificate.and_then(|certificate| Pin::of_certificate(certificate).ok()),
        end: end.and_then(|end| Timestamp::from_second(end.try_into().ok()?).ok()),
    })
}

fn verdict(
    reached: Check,
    certificate: &Certificate,
    pinned: Option<&Pin>,
    now: Timestamp,
) -> Check {
    let pin = certificate
        .pin
        .as_ref()
        .map_or_else(|| "unknown".to_owned(), Pin::to_string);
    let how = if pinned.is_some() {
        "as pinned"
    } else {
        "certified by an authority"
    };
    let mut detail = format!("{}; encrypted, its pin is {pin}, {how}", reached.detail);
    let Some(end) = certificate.end else {
        return Check::ok(reached.name, detail);
    };
    let days = (end.as_second() - now.as_second()) / DAY_SECONDS;
    detail = format!("{detail}; its certificate ends in {days} days");
    // By a pin, dates do not count.
    if pinned.is_some() || days >= MIN_DAYS {
        return Check::ok(reached.name, detail);
    }
    Check::warn(
        reached.name,
        detail,
        "renew the certificate of the orchestrator, or use --pin, for which dates do not count",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn end_of_certificate_counts_without_pin() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let pin: Pin = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        for (days, pinned, status) in [
            (13, None, Status::Warn),
            (14, None, Status::Ok),
            (1, Some(&pin), Status::Ok),
        ] {
            let certificate = Certificate {
                pin: Some(pin.clone()),
                end: Timestamp::from_second(now.as_second() + days * DAY_SECONDS).ok(),
            };
            let reached = Check::ok("orchestrator", "it answered");
            let check = verdict(reached, &certificate, pinned, now);
            assert_eq!(check.status, status, "{days}");
            assert!(check.detail.contains(&format!("{days} days")), "{check:?}");
            assert!(check.detail.contains(&pin.to_string()), "{check:?}");
        }
    }
}
