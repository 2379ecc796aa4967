//! Failures to reach the orchestrator, in plain sentences.

use std::io::ErrorKind;
use ureq::Error;

/// Reason why a request got no answer; it completes "can't reach the orchestrator at …".
pub(super) fn reason(error: &Error) -> String {
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
