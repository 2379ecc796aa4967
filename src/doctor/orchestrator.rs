//! Whether the orchestrator can be reached from here, whether its clock and ours agree, and whether an
//! orchestrator here would find its database.

use super::{Check, Status};
use crate::{
    api::nodes::check_url,
    http::client::{Client, ProbeResponse},
    orchestrator,
};
use http::{Method, StatusCode};
use jiff::{Timestamp, fmt::rfc2822};
use std::{
    path::Path,
    time::{Duration, Instant},
};

const NAME: &str = "orchestrator";
const CLOCK: &str = "clock";
const DATABASE: &str = "database";
const NOT_COMPARED: &str = "not compared: the orchestrator could not be asked";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What is allowed between two clocks by those who check the times in our tokens.
const MAX_SKEW_SECONDS: u64 = 5;
/// From here on tokens are over before they come, or come before they begin.
const MAX_USABLE_SKEW_SECONDS: u64 = 300;

/// Asks the orchestrator, and compares clocks by its answer.
pub(super) async fn checks(url: Option<&str>) -> [Check; 2] {
    let Some(url) = url else {
        return [
            Check::ok(
                NAME,
                "not asked: name one with --orchestrator to have it checked",
            ),
            Check::ok(CLOCK, "not compared: that needs an orchestrator, too"),
        ];
    };
    if let Err(problem) = check_url("", url) {
        let mend = "write it like http://192.168.1.5:12082";
        return [
            Check::fail(NAME, format!("{url:?} {}", problem.detail), mend),
            Check::warn(CLOCK, NOT_COMPARED, "mend orchestrator first"),
        ];
    }
    let client = Client::default();
    // Only nodes call there, and only with POST.
    let address = format!("{}/v1/nodes/register", url.trim_end_matches('/'));
    let began = Instant::now();
    let look = client
        .call(Method::GET, address)
        .probe(REQUEST_TIMEOUT)
        .await;
    let took = began.elapsed();
    match look {
        Ok(look) => {
            // The answer was written about in the middle of the call.
            let middle = Timestamp::now() - took / 2;
            [reached(url, &look, took), clock(&look, middle)]
        }
        Err(error) => [
            Check::fail(
                NAME,
                error.to_string(),
                format!(
                    "see that the orchestrator runs, that {url} is its control plane (--control-listen there), and that no firewall is between"
                ),
            ),
            Check::warn(CLOCK, NOT_COMPARED, "mend orchestrator first"),
        ],
    }
}

/// Whether an orchestrator would start with what is in the data directory.
pub(super) fn database(data_dir: &Path) -> Check {
    // Whether the orchestrator is given its pre-shared key isn't known here.
    match orchestrator::check_state(data_dir, true) {
        Ok(None) => Check::ok(
            DATABASE,
            "neither the keys of an orchestrator nor its database are missing",
        ),
        Ok(Some(incomplete)) => Check::fail(DATABASE, incomplete.to_string(), incomplete.fix()),
        Err(error) => Check::fail(
            DATABASE,
            format!("can't be read: {error}"),
            "see that this user may read it: run the doctor as the orchestrator's user",
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
            "{url} answers, but not as an orchestrator's control plane does ({})",
            look.status
        ),
        "name the control plane (port 12082 by default; 12080 is for users, 12090 a node's own) with --orchestrator, such as http://192.168.1.5:12082",
    )
}

fn clock(look: &ProbeResponse, now: Timestamp) -> Check {
    let date = look.date.as_deref();
    let Some(theirs) = date.and_then(|date| rfc2822::parse(date).ok()) else {
        return Check::warn(
            CLOCK,
            "not compared: the answer bears no date",
            "name the orchestrator itself with --orchestrator; something between may take dates away",
        );
    };
    skew_verdict(now.as_second() - theirs.timestamp().as_second())
}

/// By how many seconds our clock is ahead.
fn skew_verdict(ahead: i64) -> Check {
    let seconds = ahead.unsigned_abs();
    let told = match ahead {
        0 => "no second apart from the orchestrator's".to_owned(),
        1.. => format!("{seconds} s ahead of the orchestrator's"),
        _ => format!("{seconds} s behind the orchestrator's"),
    };
    if seconds <= MAX_SKEW_SECONDS {
        return Check::ok(CLOCK, told);
    }
    let status = if seconds <= MAX_USABLE_SKEW_SECONDS {
        Status::Warn
    } else {
        Status::Fail
    };
    Check::bad(
        CLOCK,
        status,
        told,
        "timedatectl set-ntp true, on whichever of both machines is wrong",
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
        assert_eq!(skew_verdict(-7).detail, "7 s behind the orchestrator's");
    }

    #[test]
    fn the_other_clock_is_read_from_the_date() {
        let at = |date| {
            let answer = look(StatusCode::OK, date, "ok");
            clock(&answer, "1994-11-06T08:50:37.9Z".parse().unwrap())
        };
        let check = at(Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(check.detail, "60 s ahead of the orchestrator's");
        assert_eq!(at(None).status, Status::Warn);
        assert_eq!(at(Some("yesterday")).status, Status::Warn);
    }

    #[test]
    fn only_a_control_plane_counts_as_reached() {
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
