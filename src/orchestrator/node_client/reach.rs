//! Probe of the way to a node: one call with its token, and what keeps such calls from arriving.

use super::NodeClient;
use crate::{
    api::problem::ProblemBody,
    http::{
        client::CallError,
        tunnel::{NOT_CONNECTED, TUNNEL_URL},
    },
    orchestrator::reason::{Reason, sanitize},
};
use http::{Method, StatusCode};
use serde::{Deserialize, de::IgnoredAny};
use std::time::Duration;
use tokio::time::timeout;

/// Time limit of a probe: longer than a connection may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(8);
/// Reason of a node at which no call arrives, and of one that answers calls wrongly.
const NOT_REACHED: &str = "the orchestrator can't reach it";
const NOT_CALLED: &str = "the orchestrator can't call it";
/// Advice for a port that does not answer.
const PORT_ADVICE: &str = "open that port to the orchestrator, or start the node with --advertise-url and an address \
    under which the orchestrator reaches it";

/// Proof that a probe demands of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::orchestrator) enum Proof {
    /// List of jobs, which every node of cynode answers: another HTTP service at the address does not pass.
    JobList,
    /// Any answer that does not refuse the call: nodes of other implementations may lack the list.
    AnyAnswer,
}

/// List of jobs as far as a probe reads it: what it lists does not count.
#[derive(Deserialize)]
struct JobListShape {
    #[serde(rename = "jobs")]
    _jobs: Vec<IgnoredAny>,
}

impl NodeClient<'_> {
    /// Whether calls go over the tunnel of the node, connected or not.
    pub(in crate::orchestrator) fn uses_tunnel(&self) -> bool {
        self.base_url == TUNNEL_URL
    }

    /// Lists the jobs of the node, to find out whether calls arrive there. Fails with the reason for which they don't.
    ///
    /// Other implementations may lack the call. So with [`Proof::AnyAnswer`] 501 and any answer below 500 show that the
    /// node can be reached, except one that refuses the token or the name; another HTTP service at that address passes,
    /// too, since its 404 is the same. With [`Proof::JobList`] only the list and a worker's own refusal for now do.
    pub(in crate::orchestrator) async fn check_reach(&self, proof: Proof) -> Result<(), Reason> {
        let newest = self.probe(&self.tokens.newest, proof).await;
        let answer = match (newest, &self.tokens.applied) {
            (Err(error), Some(applied)) if error.status() == Some(StatusCode::UNAUTHORIZED) => {
                self.probe(applied, proof).await
            }
            (answer, _) => answer,
        };
        let obstacle = answer
            .err()
            .and_then(|error| obstacle(&self.base_url, &error, proof));
        obstacle.map_or(Ok(()), Err)
    }

    async fn probe(&self, token: &str, proof: Proof) -> Result<(), CallError> {
        let call = self.authorized_call(Method::GET, "", token);
        let answer = async {
            let response = call.open("application/json").await?;
            match proof {
                Proof::JobList => response.document::<JobListShape>().await.map(drop),
                Proof::AnyAnswer => Ok(()),
            }
        };
        match timeout(PROBE_TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::timed_out(&self.base_url, PROBE_TIMEOUT)),
        }
    }
}

/// Reason for which calls don't arrive at the node at `url`, by the error of one; `None` where they do. Its detail is for
/// admins: the address, and what was found there.
fn obstacle(url: &str, error: &CallError, proof: Proof) -> Option<Reason> {
    let (summary, detail) = match error {
        CallError::Untrusted { .. } => (NOT_REACHED, error.to_string()),
        CallError::Transport { reason, .. } if reason == NOT_CONNECTED => {
            return Some(Reason::from(NOT_CONNECTED));
        }
        CallError::Transport { reason, .. } if url == TUNNEL_URL => {
            (NOT_REACHED, format!("{} on its tunnel", cause(reason)))
        }
        CallError::Transport { reason, .. } => {
            let cause = cause(reason);
            // The refusal of an address has its own advice.
            let detail = if cause.contains("--advertise-url") {
                format!("{url}: {cause}")
            } else {
                format!("{cause} at {url}; {PORT_ADVICE}")
            };
            (NOT_REACHED, detail)
        }
        CallError::Refused {
            status, problem, ..
        } => (NOT_CALLED, refusal(url, *status, problem, proof)?),
        CallError::Malformed { reason, .. } => {
            let detail =
                format!("the answer at {url} is not valid ({reason}); check --advertise-url");
            (NOT_CALLED, detail)
        }
    };
    Some(Reason::with_detail(summary, Some(&detail)))
}

/// Detail of an answer with this status that shows no way to the node; `None` where it shows one.
fn refusal(url: &str, status: StatusCode, problem: &ProblemBody, proof: Proof) -> Option<String> {
    match status.as_u16() {
        401 | 403 => Some(format!(
            "its Worker API at {url} does not accept the token of this orchestrator ({status}); check that \
             --advertise-url leads to this node and to no other, and restart the node"
        )),
        421 => Some(format!(
            "its Worker API at {url} does not accept that name ({status}); start the node with this name in \
             --advertise-url"
        )),
        // The node is there, by its own words.
        429 | 503 | 507 if !problem.slug().is_empty() => None,
        // 501 comes from a server without the call.
        500 | 502.. => Some(format!(
            "the answer at {url} is {status}; check the log of the node, and the proxy in between if there is one"
        )),
        _ if proof == Proof::JobList => Some(format!(
            "the answer at {url} is {status}, which no worker of cynode gives; another service listens there: start the \
             node with the URL of its own Worker API in --advertise-url"
        )),
        _ => None,
    }
}

/// Cause of a call without an answer, in few words where it is one of the usual.
fn cause(reason: &str) -> String {
    let known = [
        ("connection refused", "connection refused"),
        ("deadline has elapsed", "timed out"),
        ("timed out", "timed out"),
        ("no data for", "timed out"),
        ("no route to host", "no route to host"),
        ("network is unreachable", "network is unreachable"),
    ];
    let text = reason.to_lowercase();
    let found = known.iter().find(|(part, _)| text.contains(part));
    found.map_or_else(|| sanitize(reason), |(_, words)| (*words).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::TYPE_BASE;

    const URL: &str = "http://box:1";

    fn transport(reason: &str) -> CallError {
        CallError::Transport {
            url: URL.to_owned(),
            reason: reason.to_owned(),
            connected: false,
        }
    }

    fn refused(status: u16, kind: &str) -> Option<Reason> {
        refused_to(Proof::AnyAnswer, status, kind)
    }

    fn refused_to(proof: Proof, status: u16, kind: &str) -> Option<Reason> {
        let error = CallError::Refused {
            url: URL.to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            problem: Box::new(ProblemBody {
                kind: kind.to_owned(),
                title: String::new(),
                status,
                detail: "hostile words".to_owned(),
                instance: String::new(),
                errors: Vec::new(),
                missing: Vec::new(),
            }),
        };
        obstacle(URL, &error, proof)
    }

    #[test]
    fn closed_port_is_named_with_advice() {
        for (reason, words) in [
            (
                "client error: Connection refused (os error 111)",
                "connection refused",
            ),
            ("tcp connect error: deadline has elapsed", "timed out"),
            ("no data for 8 s", "timed out"),
        ] {
            let reason = obstacle(URL, &transport(reason), Proof::JobList).unwrap();
            let text = reason.for_admins();
            let expected = format!("{NOT_REACHED}: {words} at {URL}; open that port");
            assert!(text.contains(&expected), "{text}");
            assert!(text.contains("--advertise-url"), "{text}");
            assert_eq!(reason.to_string(), NOT_REACHED, "others see no address");
        }
        let special = transport("a loopback address; start the node with --advertise-url");
        let text = obstacle(URL, &special, Proof::JobList)
            .unwrap()
            .for_admins();
        assert_eq!(text.matches("--advertise-url").count(), 1, "{text}");
    }

    #[test]
    fn tunnel_needs_no_port() {
        let reason = |text: &str| {
            let found = obstacle(TUNNEL_URL, &transport(text), Proof::JobList);
            found.unwrap().for_admins()
        };
        assert_eq!(reason(NOT_CONNECTED), NOT_CONNECTED);
        assert_eq!(
            reason("no data for 8 s"),
            format!("{NOT_REACHED}: timed out on its tunnel")
        );
    }

    #[test]
    fn server_without_the_call_is_reached() {
        let own = format!("{TYPE_BASE}x");
        for status in [400, 404, 405, 409, 429, 501] {
            assert_eq!(refused(status, ""), None, "{status}");
        }
        assert_eq!(refused(503, &own), None);
        for (status, kind) in [(503, ""), (502, ""), (500, &*own)] {
            let text = refused(status, kind).unwrap().for_admins();
            assert!(text.contains(&status.to_string()), "{text}");
            assert!(!text.contains("hostile"), "{text}");
        }
        for status in [401, 403] {
            let text = refused(status, &own).unwrap().for_admins();
            assert!(text.contains("does not accept the token"), "{text}");
        }
    }

    #[test]
    fn cynode_node_proves_itself() {
        let own = format!("{TYPE_BASE}x");
        for status in [429, 503, 507] {
            assert_eq!(refused_to(Proof::JobList, status, &own), None, "{status}");
        }
        // An orchestrator answers 404 in the same words.
        for (status, kind) in [(404, ""), (404, &*own), (405, ""), (429, ""), (501, "")] {
            let text = refused_to(Proof::JobList, status, kind)
                .unwrap()
                .for_admins();
            assert!(text.contains("another service listens there"), "{text}");
            assert!(text.contains("--advertise-url"), "{text}");
        }
        let page = CallError::Malformed {
            url: URL.to_owned(),
            reason: "expected value".to_owned(),
        };
        let text = obstacle(URL, &page, Proof::JobList).unwrap().for_admins();
        assert!(text.contains("check --advertise-url"), "{text}");
    }
}
