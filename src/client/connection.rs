//! Connections to the orchestrator that fail or can be read, in plain sentences.

use super::print;
use crate::{
    exit::{Exit, Failure},
    tls::{self, Cause, Untrusted},
};
use std::io::ErrorKind;
use ureq::Error;

/// Part of the text of the error about an answer `100 Continue` with headers, which only a second one has.
const REPEATED_CONTINUE: &str = "headers with 100-continue";

/// Warns where others can read on the network what goes to the gateway at `url`; `what` names it.
pub(super) fn warn_if_exposed(url: &str, what: &str) {
    if tls::is_exposed(url) {
        print::note(&format!(
            "warning: {url} is not encrypted: {what} can be read on the network; start the orchestrator without --tls off \
             and write https:// in the URL"
        ));
    }
}

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
        // The crate of this error is not a dependency, and only its text tells it from others.
        Error::Protocol(fault) if fault.to_string().contains(REPEATED_CONTINUE) => {
            "a proxy in front of it answers Expect: 100-continue twice; have the proxy remove that header, as docs/network.md \
             shows for Caddy"
        }
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
    use std::{
        io::{self, Write as _},
        net::TcpListener,
        thread,
    };
    use ureq::SendBody;

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

    #[test]
    fn repeated_continue_names_proxy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answering = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let continues =
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\nServer: x\r\n\r\n";
            stream.write_all(continues.as_bytes()).unwrap();
            // To the end of the request, so that nothing is reset.
            io::copy(&mut stream, &mut io::sink())
        });
        let mut body: &[u8] = b"some";
        let answer = ureq::put(url)
            .header("expect", "100-continue")
            .send(SendBody::from_reader(&mut body));
        let reason = reason(&answer.unwrap_err());
        assert!(reason.contains("remove that header"), "{reason}");
        answering.join().unwrap().unwrap();
    }
}
