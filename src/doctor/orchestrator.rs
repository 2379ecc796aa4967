//! The orchestrator: whether it can be reached from here, by large requests, too, whether both clocks agree, and whether an
//! orchestrator here has its database.

use super::{Check, Status, certificate::add_certificate};
use crate::{
    api::nodes::check_url,
    cli::TrustFlags,
    http::{
        client::{CallError, Client, ProbeResponse},
        tls_only::is_tls_only,
    },
    orchestrator,
    tls::{self, Trust},
};
use http::{Method, StatusCode};
use jiff::{Timestamp, fmt::rfc2822};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::timeout;

const NAME: &str = "orchestrator";
const CLOCK: &str = "clock";
const DATABASE: &str = "database";
const NOT_CHECKED: &str = "not checked: the orchestrator did not answer";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Body of a request that fills many packets.
const LARGE_BODY_BYTES: usize = 64 * 1024;
/// Difference between two clocks that the check of a token's times permits.
const MAX_SKEW_SECONDS: u64 = 5;
/// Difference beyond which a token has expired, or is not valid yet, when it arrives.
const MAX_USABLE_SKEW_SECONDS: u64 = 300;

/// Sends a request to the orchestrator, and compares clocks by its answer.
pub(super) async fn checks(url: Option<&str>, flags: &TrustFlags) -> [Check; 2] {
    let Some(url) = url else {
        return [
            Check::ok(NAME, "not checked: name one with --orchestrator"),
            Check::ok(CLOCK, "not checked: needs --orchestrator"),
        ];
    };
    if let Err(problem) = check_url("", url) {
        let fix = "write it as https://192.168.1.5:12082";
        return [
            Check::fail(NAME, format!("{url:?} {}", problem.detail), fix),
            Check::warn(CLOCK, NOT_CHECKED, "first fix what orchestrator reports"),
        ];
    }
    if flags.pin.is_some() && !tls::is_encrypted(url) {
        let detail = "--pin needs an encrypted connection";
        return [
            Check::fail(
                NAME,
                detail,
                "write https:// in the URL, or leave --pin out",
            ),
            Check::warn(CLOCK, NOT_CHECKED, "first fix what orchestrator reports"),
        ];
    }
    let trust = Trust::new(flags.pin.clone(), flags.ca_file.clone());
    let client = Client::with_trust(trust.clone(), REQUEST_TIMEOUT);
    // Only the control plane has this path, for POST.
    let address = format!("{}/v1/nodes/register", url.trim_end_matches('/'));
    let began = Instant::now();
    let look = client
        .call(Method::GET, address.as_str())
        .probe(REQUEST_TIMEOUT)
        .await;
    let took = began.elapsed();
    match look {
        Ok(look) if !tls::is_encrypted(url) && is_tls_only(look.status, &look.body_start) => [
            tls_only(url),
            Check::warn(CLOCK, NOT_CHECKED, "first fix what orchestrator reports"),
        ],
        Ok(look) => {
            // The answer was sent about midway through the call.
            let middle = Timestamp::now() - took / 2;
            let mut reached = reached(url, &look, took);
            if reached.status == Status::Ok && tls::is_encrypted(url) {
                reached = add_certificate(reached, url, &trust).await;
            }
            if reached.status == Status::Ok
                && !takes_large_call(&client, &address, REQUEST_TIMEOUT).await
            {
                reached = large_calls_lost(url);
            }
            [reached, clock(&look, middle)]
        }
        Err(error) => [
            not_reached(url, &error),
            Check::warn(CLOCK, NOT_CHECKED, "first fix what orchestrator reports"),
        ],
    }
}

/// Whether a request with a large body ends in time. Head and body leave together, so that no answer comes where full
/// packets are lost. A server may hang up on a body that it did not ask for, which will do.
async fn takes_large_call(client: &Client, address: &str, limit: Duration) -> bool {
    let call = client.call(Method::GET, address);
    let call = call.raw(vec![0; LARGE_BODY_BYTES]);
    let ended = timeout(limit, call.probe(2 * limit));
    ended.await.is_ok()
}

fn large_calls_lost(url: &str) -> Check {
    let seconds = REQUEST_TIMEOUT.as_secs();
    Check::fail(
        NAME,
        format!(
            "{url} answers small requests, and none of 64 KiB within {seconds} s: full packets may be lost on the way"
        ),
        "check the MTU of this machine and of what is in between, such as a VPN: where ping -M do -s 1472 HOST gets no \
         answer and -s 1200 does, lower it here with ip link set dev INTERFACE mtu 1280",
    )
}

/// Result for an `http://` URL at a port that speaks TLS.
fn tls_only(url: &str) -> Check {
    Check::fail(
        NAME,
        format!("{url} speaks TLS only"),
        "write https:// in the URL, and give the pin that the orchestrator prints at its start (--pin), here and to the node",
    )
}

fn not_reached(url: &str, error: &CallError) -> Check {
    let fix = match error {
        CallError::Untrusted { .. } => {
            "compare the pin with the one that the orchestrator prints at its start; then use it with --pin, or correct the certificate or this machine's clock".to_owned()
        }
        _ => format!(
            "start the orchestrator, check that {url} is its control plane (--control-listen there), and that no firewall blocks the connection"
        ),
    };
    Check::fail(NAME, error.to_string(), fix)
}

/// Checks that the state of an orchestrator in the data directory is complete.
pub(super) fn database(data_dir: &Path) -> Check {
    // The orchestrator may be given its pre-shared key by a flag.
    match orchestrator::check_state(data_dir, true) {
        Ok(None) => Check::ok(DATABASE, "no file of an orchestrator is missing"),
        Ok(Some(incomplete)) => Check::fail(DATABASE, incomplete.to_string(), incomplete.fix()),
        Err(error) => Check::fail(
            DATABASE,
            format!("the orchestrator's state can't be read: {error}"),
            "run doctor as the orchestrator's user",
        ),
    }
}

fn reached(url: &str, look: &ProbeResponse, took: Duration) -> Check {
    if look.status == StatusCode::METHOD_NOT_ALLOWED && look.body_start.contains("POST") {
        let took = took.as_millis();
        return Check::ok(NAME, format!("{url} answered within {took} ms"));
    }
    Check::fail(
        NAME,
        format!(
            "{url} answers, but is not the control plane of an orchestrator ({})",
            look.status
        ),
        "name the control plane with --orchestrator, such as https://192.168.1.5:12082 (port 12080 is for users, 12090 for Worker APIs)",
    )
}

fn clock(look: &ProbeResponse, now: Timestamp) -> Check {
    let date = look.date.as_deref();
    let Some(theirs) = date.and_then(|date| rfc2822::parse(date).ok()) else {
        return Check::warn(
            CLOCK,
            "not checked: the answer has no date",
            "name the orchestrator itself with --orchestrator; a proxy in between may remove the date",
        );
    };
    skew_verdict(now.as_second() - theirs.timestamp().as_second())
}

/// Verdict on this machine's clock, which is `ahead` seconds ahead.
fn skew_verdict(ahead: i64) -> Check {
    let seconds = ahead.unsigned_abs();
    let difference = match ahead {
        0 => "equal to the orchestrator's, to the second".to_owned(),
        1.. => format!("{seconds} s ahead of the orchestrator's"),
        _ => format!("{seconds} s behind the orchestrator's"),
    };
    if seconds <= MAX_SKEW_SECONDS {
        return Check::ok(CLOCK, difference);
    }
    let (status, effect) = if seconds <= MAX_USABLE_SKEW_SECONDS {
        (Status::Warn, "tokens may be rejected")
    } else {
        (Status::Fail, "tokens are rejected")
    };
    Check::bad(
        CLOCK,
        status,
        format!("{difference}; {effect}"),
        "run timedatectl set-ntp true on the machine whose clock is wrong",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn look(status: StatusCode, date: Option<&str>, body: &str) -> ProbeResponse {
        ProbeResponse {
            status,
            date: date.map(str::to_owned),
            body_start: body.to_owned(),
        }
    }

    #[test]
    fn clock_skew_of_five_seconds_is_tolerated() {
        for (ahead, status) in [
            (0, Status::Ok),
            (5, Status::Ok),
            (-5, Status::Ok),
            (6, Status::Warn),
            (-300, Status::Warn),
            (301, Status::Fail),
            (-301, Status::Fail),
            (i64::MIN, Status::Fail),
        ] {
            assert_eq!(skew_verdict(ahead).status, status, "{ahead}");
        }
        let late = skew_verdict(-7).detail;
        assert_eq!(
            late,
            "7 s behind the orchestrator's; tokens may be rejected"
        );
    }

    #[tokio::test]
    async fn silence_after_large_call_is_noticed() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let client = Client::with_trust(Trust::default(), REQUEST_TIMEOUT);
        let limit = Duration::from_millis(100);
        assert!(!takes_large_call(&client, &url, limit).await);
        let check = large_calls_lost(&url);
        assert_eq!(check.status, Status::Fail);
        assert!(check.detail.contains(&url), "{}", check.detail);
    }

    #[test]
    fn other_clock_is_read_from_date() {
        let at = |date| {
            let answer = look(StatusCode::OK, date, "ok");
            clock(&answer, "1994-11-06T08:50:37.9Z".parse().unwrap())
        };
        let check = at(Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert!(check.detail.starts_with("60 s ahead of the orchestrator's"));
        assert_eq!(at(None).status, Status::Warn);
        assert_eq!(at(Some("yesterday")).status, Status::Warn);
    }

    #[test]
    fn only_control_plane_counts_as_reached() {
        let status = |answer: &ProbeResponse| reached("http://x", answer, Duration::ZERO).status;
        let not_allowed = StatusCode::METHOD_NOT_ALLOWED;
        assert_eq!(status(&look(not_allowed, None, "use POST")), Status::Ok);
        for (other, body) in [
            (StatusCode::OK, "use POST"),
            (not_allowed, "<html>"),
            (StatusCode::UNAUTHORIZED, "log in"),
        ] {
            assert_eq!(status(&look(other, None, body)), Status::Fail);
        }
    }
}
