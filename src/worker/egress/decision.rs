//! Decision whether a job may reach a host: by its own list, and by that of the node. Pure.
//!
//! The job's list was checked against the orchestrator's when its task was created, so the stricter of both operators
//! counts.

use crate::api::egress::{EgressPattern, HostName};

/// List that lacks a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MissingFrom {
    /// The job's.
    Job,
    /// The one that the operator gave to the node.
    Node,
}

/// Decision about a host and a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Both lists have it.
    Allowed,
    /// A list lacks it, the first that was asked.
    Refused(MissingFrom),
}

/// Lists that decide for one job.
pub(super) struct Lists {
    job: Vec<EgressPattern>,
    /// `None` where the node has no list of its own.
    node: Option<Vec<EgressPattern>>,
}

impl Lists {
    /// The job's list, and the node's where it has one.
    pub(super) fn new(job: Vec<EgressPattern>, node: Option<Vec<EgressPattern>>) -> Self {
        Self { job, node }
    }

    /// Decides on a host and a port.
    pub(super) fn decide(&self, host: &HostName, port: u16) -> Verdict {
        let has = |list: &[EgressPattern]| list.iter().any(|pattern| pattern.matches(host, port));
        if !has(&self.job) {
            return Verdict::Refused(MissingFrom::Job);
        }
        match &self.node {
            Some(node) if !has(node) => Verdict::Refused(MissingFrom::Node),
            _ => Verdict::Allowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<EgressPattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn both_lists_must_have_a_host() {
        let job = patterns(&["api.example.com", "*.files.example.com:8080"]);
        let alone = Lists::new(job.clone(), None);
        let decide = |lists: &Lists, host: &str, port| lists.decide(&host.parse().unwrap(), port);
        assert_eq!(decide(&alone, "api.example.com", 443), Verdict::Allowed);
        assert_eq!(decide(&alone, "API.example.com", 80), Verdict::Allowed);
        assert_eq!(
            decide(&alone, "a.files.example.com", 8080),
            Verdict::Allowed
        );
        let lacks = Verdict::Refused(MissingFrom::Job);
        for (host, port) in [
            ("api.example.com", 22),
            ("example.com", 443),
            ("files.example.com", 8080),
            ("api.example.com.evil.example", 443),
        ] {
            assert_eq!(decide(&alone, host, port), lacks, "{host}:{port}");
        }
        let narrow = Lists::new(job.clone(), Some(patterns(&["*.files.example.com:8080"])));
        let lacks_node = Verdict::Refused(MissingFrom::Node);
        assert_eq!(decide(&narrow, "api.example.com", 443), lacks_node);
        assert_eq!(
            decide(&narrow, "a.files.example.com", 8080),
            Verdict::Allowed
        );
        assert_eq!(decide(&narrow, "other.example.com", 443), lacks);
        let nothing = Lists::new(job, Some(Vec::new()));
        assert_eq!(decide(&nothing, "api.example.com", 443), lacks_node);
    }
}
