//! Answers to requests that the proxy does not pass on: one sentence that says why, and what to do.

use super::{client_hello::HelloFault, decision::MissingFrom, request::Target};
use crate::{
    api::{
        problem::{Problem, ProblemKind},
        size::ByteSize,
    },
    http::response::{self, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::net::IpAddr;
use uuid::Uuid;

/// Media types of a client that reads problems.
const PROBLEM_TYPES: [&str; 2] = ["application/problem+json", "application/json"];

/// Request that is not passed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Sentence for the user of the job.
    pub(super) detail: String,
    /// Whether a rule refuses it; else the host could not be reached.
    pub(super) is_by_rule: bool,
}

impl Refusal {
    fn forbidden(detail: String) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            detail,
            is_by_rule: true,
        }
    }

    /// Request that a proxy does not understand, or must not pass on.
    pub(super) fn malformed(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            is_by_rule: true,
        }
    }

    /// Host that was allowed and can't be reached.
    pub(super) fn unreachable(status: StatusCode, detail: String) -> Self {
        Self {
            status,
            detail,
            is_by_rule: false,
        }
    }

    /// Host that a list lacks.
    pub(super) fn not_listed(target: &Target, missing_from: MissingFrom) -> Self {
        let entry = target.entry();
        Self::forbidden(match missing_from {
            MissingFrom::Job => format!(
                "{target} is not on this job's list of hosts; start the job with --allow {entry} (egress.allow), and where \
                 that is refused, ask the operator to start the orchestrator with --egress-allow {entry}"
            ),
            MissingFrom::Node => format!(
                "{target} is not on the list of hosts of this job's node; ask its operator to start the node with \
                 --egress-allow {entry}, or run the job on another node"
            ),
        })
    }

    /// Address in place of a name.
    pub(super) fn literal(address: IpAddr) -> Self {
        Self::forbidden(format!(
            "{address} is an address, and only hosts that are named can be allowed; use the host's name"
        ))
    }

    /// Name that leads to a special address.
    pub(super) fn special_address(
        target: &Target,
        address: IpAddr,
        kind: &str,
        missing_from: MissingFrom,
    ) -> Self {
        let where_to = match missing_from {
            MissingFrom::Job => "orchestrator",
            MissingFrom::Node => "node, whose own list lacks it,",
        };
        Self::forbidden(format!(
            "{} leads to {address}, {kind}; if the job should reach it, ask the operator to start the {where_to} with \
             --egress-allow-private {address}",
            target.host
        ))
    }

    /// Job that has used all its bytes.
    pub(super) fn used_up(limit: ByteSize) -> Self {
        Self::forbidden(format!(
            "this job has sent and received {limit} through the proxy, which is its limit; move less, or ask the operator to \
             start the orchestrator with a larger --egress-bytes"
        ))
    }

    /// Answer for a client with these headers.
    pub(super) fn answer(&self, accept: Option<&HeaderValue>) -> Response {
        let accept = accept.and_then(|accept| accept.to_str().ok());
        let reads_problems =
            accept.is_some_and(|accept| PROBLEM_TYPES.iter().any(|wanted| accept.contains(wanted)));
        if reads_problems && self.status == StatusCode::FORBIDDEN {
            let problem = Problem::new(ProblemKind::Forbidden, self.detail.clone());
            return response::problem(&problem, &Uuid::now_v7().to_string());
        }
        response::text(self.status, format!("cynode: {}\n", self.detail))
    }
}

/// Value of `Accept` in a request.
pub(super) fn accept_of(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(header::ACCEPT).cloned()
}

/// Reason for which a tunnel is cut after its begin, for the node's log.
pub(super) fn hello_text(fault: HelloFault) -> &'static str {
    match fault {
        HelloFault::NotTls => "the tunnel carries no TLS",
        HelloFault::Malformed => "the TLS client hello is malformed",
        HelloFault::TooLong => "the TLS client hello is too long",
        HelloFault::NoName => "the TLS client hello names no server",
        HelloFault::OtherName => "the TLS client hello names another server",
        HelloFault::Missing => "no TLS client hello came in time",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_says_which_list_to_change() {
        let target = |port| Target {
            host: "api.example.com".parse().unwrap(),
            port,
        };
        let job = Refusal::not_listed(&target(443), MissingFrom::Job);
        assert_eq!(
            job.detail,
            "api.example.com:443 is not on this job's list of hosts; start the job with --allow api.example.com \
             (egress.allow), and where that is refused, ask the operator to start the orchestrator with --egress-allow \
             api.example.com"
        );
        let node = Refusal::not_listed(&target(22), MissingFrom::Node);
        assert!(
            node.detail.contains("--egress-allow api.example.com:22"),
            "{node:?}"
        );
        let text = job.answer(None);
        assert_eq!(text.status(), StatusCode::FORBIDDEN);
        let content_type = |answer: &Response| answer.headers()[header::CONTENT_TYPE].clone();
        assert_eq!(content_type(&text), "text/plain; charset=utf-8");
        let accept = HeaderValue::from_static("application/problem+json, */*");
        assert_eq!(
            content_type(&job.answer(Some(&accept))),
            "application/problem+json"
        );
    }
}
