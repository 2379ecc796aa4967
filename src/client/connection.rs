//! Failures to reach the orchestrator, in plain sentences.

use crate::{
    exit::{Exit, Failure},
    tls::{self, Cause, Untrusted},
};
use std::io::ErrorKind;
use ureq::Error;

/// Failure of a call that got no answer from the gateway at `url`.
pub(super) fn failure(url: &str, error: &Error) -> Failure {
    match untrusted(error) {
        Some(found) => not_trusted(url, found),
        None => unreachable(url, &reason(error)),
    }
}

/// Failure to reach the gateway at `url`.
pub(super) fn unreachable(url: &str, reason: &dyn std::fmt::Display) -> Failure {
    let text = format!(
        "can't reach the orchestrator at {url}: {reason}\nIs it running there? Name another with --gateway-url."
    );
    Failure::new(Exit::Unreachable, text)
}

/// Failure of a call to a gateway that is not trusted. Its exit code is not that of an unreachable one: another attempt
/// fails as well, until a person has decided.
pub(super) fn not_trusted(url: &str, untrusted: &Untrusted) -> Failure {
    let advice = match &untrusted.cause {
        Cause::OtherKey(_) => format!(
            "\nOnly if they are equal: cynode login --gateway-url {url} --pin {}",
            untrusted.found
        ),
        _ => String::new(),
    };
    Failure::new(
        Exit::NotAllowed,
        format!("{url} is not trusted: {untrusted}{advice}"),
    )
}

/// The untrusted server among the causes of an error.
pub(super) fn untrusted(error: &Error) -> Option<&Untrusted> {
    match error {
        Error::Io(error) => Untrusted::find(error),
        _ => None,
    }
}

/// Reason why a request got no answer; it completes "can't reach the orchestrator at …".
fn reason(error: &Error) -> String {
    if let Error::Io(error) = error
        && let Some(reason) = tls::reason(error)
    {
        return reason;
    }
    let plain = match error {
        Error::HostNotFound => "there is no host of this name",
        Error::Timeout(_) => "it did not answer in time",
        Error::Protocol(_) => "the answer is not HTTP; check the port",
        Error::ConnectionFailed => "no connection could be made",
        Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused => "nothing listens there",
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => "the connection was closed before the answer came",
            ErrorKind::TimedOut | ErrorKind::WouldBlock => "it did not answer in time",
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                "there is no route to that host"
            }
            _ => return error.to_string(),
        },
        _ => return error.to_string(),
    };
    plain.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn common_failures_have_no_error_numbers() {
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(reason(&Error::Io(refused)), "nothing listens there");
        let reset = io::Error::from_raw_os_error(104);
        assert!(reason(&Error::Io(reset)).contains("was closed"));
        assert_eq!(
            reason(&Error::HostNotFound),
            "there is no host of this name"
        );
    }
}
