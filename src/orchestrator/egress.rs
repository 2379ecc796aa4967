//! Network of jobs as the operator allows it.
//!
//! The list of a job is compared with the operator's when the job is created, so that its user learns at once which entry
//! is not allowed, and once more when it is sent to a node: the operator may have shortened the list since. Networks and
//! the limit of bytes are the operator's alone; a job takes those of the time at which it is sent.

use crate::api::{
    egress::{AllowedEntry, AllowedHosts, Egress, EgressPattern, Profile},
    jobs::SandboxSpec,
    problem::{Problem, ProblemKind},
    size::ByteSize,
};
use ipnet::IpNet;

/// Hosts and networks that an operator lets jobs reach, and how many bytes a job may transfer.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    /// Hosts.
    pub allow: AllowedHosts,
    /// Networks in which hosts may have private and other special addresses.
    pub allow_private: Vec<IpNet>,
    /// Most bytes of one job in both directions; no limit if `None`.
    pub max_bytes: Option<ByteSize>,
}

impl EgressPolicy {
    /// Refuses the first entry of a job that is not allowed.
    pub(super) fn check(&self, egress: &Egress) -> Result<(), Problem> {
        for (n, pattern) in egress.allow.iter().enumerate() {
            if !self.allow.covers(pattern) {
                return Err(self.pattern_refusal(&format!("/egress/allow/{n}"), pattern));
            }
        }
        for (n, profile) in egress.profiles.iter().enumerate() {
            if !self.covers_profile(*profile) {
                let entry = AllowedEntry::Profile(*profile);
                let pointer = format!("/egress/profiles/{n}");
                return Err(self.refusal(&pointer, profile.as_str(), &entry));
            }
        }
        Ok(())
    }

    fn covers_profile(&self, profile: Profile) -> bool {
        let patterns = profile.patterns();
        patterns.iter().all(|pattern| self.allow.covers(pattern))
    }

    /// Refusal of a pattern. One without a port means two, of which the operator may allow one, as profiles do.
    fn pattern_refusal(&self, pointer: &str, pattern: &EgressPattern) -> Problem {
        let at_one_port = ["443", "80"].into_iter().find(|port| {
            // A pattern with a port has no second one.
            let narrowed = format!("{pattern}:{port}").parse::<EgressPattern>();
            narrowed.is_ok_and(|narrowed| self.allow.covers(&narrowed))
        });
        let Some(port) = at_one_port else {
            let entry = AllowedEntry::Pattern(pattern.clone());
            return self.refusal(pointer, &pattern.to_string(), &entry);
        };
        let detail = format!(
            "names {pattern}, which the operator lets jobs reach at port {port} alone; write {pattern}:{port}, or ask the \
             operator to start the orchestrator with --egress-allow {pattern}"
        );
        Problem::new(ProblemKind::Forbidden, detail).at(pointer)
    }

    fn refusal(&self, pointer: &str, name: &str, entry: &AllowedEntry) -> Problem {
        let reason = if self.allow.is_empty() {
            "but the operator lets jobs reach no host at all"
        } else {
            "which the operator does not let jobs reach"
        };
        let detail = format!(
            "names {name}, {reason}; ask the operator to start the orchestrator with --egress-allow {entry}"
        );
        Problem::new(ProblemKind::Forbidden, detail).at(pointer)
    }

    /// Narrows the network of a job to what is allowed now, before the job is sent to a node.
    pub(super) fn apply(&self, sandbox: &mut SandboxSpec) {
        if let Some(egress) = &mut sandbox.egress {
            egress.allow.retain(|pattern| self.allow.covers(pattern));
            egress.allow_private.clone_from(&self.allow_private);
            egress.max_bytes = self.max_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{egress::EgressSpec, tasks::CreateTask};
    use serde_json::{Value, json};

    fn policy(entries: &[&str]) -> EgressPolicy {
        let entries = entries
            .iter()
            .map(|entry| entry.parse::<AllowedEntry>().unwrap());
        EgressPolicy {
            allow: entries.collect(),
            allow_private: vec!["10.0.0.0/8".parse().unwrap()],
            max_bytes: Some(ByteSize(1 << 30)),
        }
    }

    fn egress(json: Value) -> Egress {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn first_entry_beyond_list_is_named() {
        let cases: [(&[&str], Value, &str, &str); 5] = [
            (
                &["profile:python"],
                json!({"allow": ["pypi.org"]}),
                "#/egress/allow/0",
                "`egress.allow.0` names pypi.org, which the operator lets jobs reach at port 443 alone; write pypi.org:443, \
                 or ask the operator to start the orchestrator with --egress-allow pypi.org",
            ),
            (
                &["*.example.com"],
                json!({"allow": ["a.example.com", "example.com"]}),
                "#/egress/allow/1",
                "`egress.allow.1` names example.com, which the operator does not let jobs reach; ask the operator to start \
                 the orchestrator with --egress-allow example.com",
            ),
            (
                &["a.b"],
                json!({"allow": ["a.b:8443"]}),
                "#/egress/allow/0",
                "`egress.allow.0` names a.b:8443, which the operator does not let jobs reach; ask the operator to start \
                 the orchestrator with --egress-allow a.b:8443",
            ),
            (
                &["profile:git", "pypi.org"],
                json!({"allow": ["github.com:443"], "profiles": ["git", "python"]}),
                "#/egress/profiles/1",
                "`egress.profiles.1` names python, which the operator does not let jobs reach; ask the operator to start \
                 the orchestrator with --egress-allow profile:python",
            ),
            (
                &[],
                json!({"profiles": ["rust"]}),
                "#/egress/profiles/0",
                "`egress.profiles.0` names rust, but the operator lets jobs reach no host at all; ask the operator to start \
                 the orchestrator with --egress-allow profile:rust",
            ),
        ];
        for (allowed, wanted, pointer, text) in cases {
            let problem = policy(allowed).check(&egress(wanted)).unwrap_err();
            assert_eq!(problem.kind.status(), 403);
            assert_eq!(
                (problem.errors[0].pointer.as_str(), problem.detail.as_str()),
                (pointer, text)
            );
        }
    }

    #[test]
    fn allowed_lists_pass() {
        let cases: [(&[&str], Value); 4] = [
            (
                &["*"],
                json!({"allow": ["*.com:22"], "profiles": ["git", "debian"]}),
            ),
            (&["profile:python"], json!({"profiles": ["python"]})),
            (&["profile:python"], json!({"allow": ["pypi.org:443"]})),
            (
                &["pypi.org", "*.pythonhosted.org"],
                json!({"profiles": ["python"]}),
            ),
        ];
        for (allowed, wanted) in cases {
            assert_eq!(
                policy(allowed).check(&egress(wanted.clone())),
                Ok(()),
                "{wanted}"
            );
        }
    }

    #[test]
    fn shortened_list_counts_when_job_is_sent() {
        let body = json!({
            "script": "x", "network_policy": "allowlist",
            "egress": {"allow": ["a.example", "b.example"]},
        });
        let create: CreateTask = serde_json::from_value(body).unwrap();
        let mut sandbox = create.resolve("alpine").unwrap().sandbox;
        policy(&["b.example"]).apply(&mut sandbox);
        let expected = EgressSpec {
            allow: vec!["b.example".parse().unwrap()],
            allow_private: vec!["10.0.0.0/8".parse().unwrap()],
            max_bytes: Some(ByteSize(1 << 30)),
            ..EgressSpec::default()
        };
        assert_eq!(sandbox.egress, Some(expected));
        policy(&[]).apply(&mut sandbox);
        assert!(sandbox.egress.unwrap().allow.is_empty());
        let mut plain = SandboxSpec::default();
        policy(&["*"]).apply(&mut plain);
        assert_eq!(plain, SandboxSpec::default());
    }
}
