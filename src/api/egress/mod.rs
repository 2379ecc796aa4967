//! Network of a job by names of hosts (contract, section 8): the sandbox has no network device, and a proxy of its node
//! lets through what is on the list of the job and on that of the operator.
//!
//! A job lists [patterns](EgressPattern) and [profiles](Profile) as [`Egress`]. The orchestrator compares them with the
//! [list of its operator](AllowedHosts), and sends the node an [`EgressSpec`], in which profiles have become patterns. Where
//! the proxy has to see requests inside of TLS, the job names [single hosts](HostPort) whose TLS it opens.

mod allowed;
mod host;
mod host_port;
mod pattern;
mod profiles;
mod totals;

pub use allowed::{AllowedEntry, AllowedHosts, InvalidEntry};
pub use host::{HostName, InvalidHost};
pub use host_port::{HTTP_PORT, HTTPS_PORT, HostPort, InvalidHostPort};
pub use pattern::{EgressPattern, InvalidPattern};
pub use profiles::Profile;
pub use totals::EgressTotals;

use super::{
    jobs::{NetworkPolicy, SandboxSpec},
    problem::Problem,
    size::ByteSize,
};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, IgnoredAny, MapAccess},
};
use serde_json::{Value, json};
use std::fmt;

/// Port of the proxy inside of a sandbox, at its loopback addresses.
pub const PROXY_PORT: u16 = 3128;
/// Most entries of a job's lists together, and most hosts whose TLS is opened.
pub const MAX_ENTRIES: usize = 64;
/// Most patterns that a node takes: a job's entries with the hosts of all profiles.
const MAX_PATTERNS: usize = 256;
/// Most networks that a node takes.
const MAX_NETWORKS: usize = 256;

/// Hosts that a job may reach, as a user lists them.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Egress {
    /// Hosts: a name, or `*.example.com` for all names below a domain; at one port, as in `api.example.com:8443`, or
    /// without a port at 443 and 80.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub allow: Vec<EgressPattern>,
    /// Named lists of hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub profiles: Vec<Profile>,
    /// Hosts of these lists whose TLS the proxy opens, with a certificate that the sandbox trusts: a name, at port 443, or at
    /// another one as in `api.example.com:8443`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub terminate: Vec<HostPort>,
}

/// Hosts that a job may reach, as its node enforces them.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EgressSpec {
    /// Hosts of the job, with those of its profiles; sorted, each once.
    #[serde(default)]
    pub allow: Vec<EgressPattern>,
    /// Networks in which hosts may have private and other special addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_private: Vec<IpNet>,
    /// Most bytes of the job in both directions; no limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// Hosts whose TLS the proxy opens; sorted, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terminate: Vec<HostPort>,
}

impl Egress {
    /// Hosts of a request, checked: there are some exactly where the network policy is `allowlist`.
    pub(super) fn resolve(
        egress: Option<&Self>,
        policy: Option<NetworkPolicy>,
    ) -> Result<Option<EgressSpec>, Problem> {
        let egress = match (policy, egress) {
            (Some(NetworkPolicy::Allowlist), Some(egress)) => egress,
            (Some(NetworkPolicy::Allowlist), None) => {
                let detail = "is missing; with network_policy \"allowlist\", list hosts in egress.allow, such as \
                              [\"api.example.com\"], or name profiles in egress.profiles, such as [\"python\"]";
                return Err(Problem::field("/egress", detail));
            }
            (_, Some(_)) => {
                let detail = "needs network_policy \"allowlist\"; add that, or leave egress out";
                return Err(Problem::field("/egress", detail));
            }
            (_, None) => return Ok(None),
        };
        match egress.allow.len() + egress.profiles.len() {
            0 => {
                let detail = "must have an entry: list hosts in allow, such as [\"api.example.com\"], or name profiles, \
                              such as [\"python\"]; without any, leave network_policy and egress out";
                Err(Problem::field("/egress", detail))
            }
            1..=MAX_ENTRIES => {
                let spec = egress.spec();
                egress.check_terminate(&spec)?;
                Ok(Some(spec))
            }
            count => {
                let detail = format!(
                    "must have at most {MAX_ENTRIES} entries in allow and profiles together, got {count}; \
                     *.example.com stands for all names below a domain"
                );
                Err(Problem::field("/egress", detail))
            }
        }
    }

    /// Whether one of the lists has this host.
    pub fn has(&self, host: &HostPort) -> bool {
        self.spec().has(host)
    }

    /// Checks the hosts whose TLS is opened: not too many, and all of them in `spec`.
    fn check_terminate(&self, spec: &EgressSpec) -> Result<(), Problem> {
        let count = self.terminate.len();
        if count > MAX_ENTRIES {
            let detail = format!("must have at most {MAX_ENTRIES} entries, got {count}");
            return Err(Problem::field("/egress/terminate", detail));
        }
        let mut hosts = self.terminate.iter().enumerate();
        match hosts.find(|(_, host)| !spec.has(host)) {
            Some((n, host)) => {
                let pointer = format!("/egress/terminate/{n}");
                Err(Problem::field(&pointer, host.unlisted()))
            }
            None => Ok(()),
        }
    }

    /// Hosts without profiles, sorted, each once.
    fn spec(&self) -> EgressSpec {
        let profiles = self.profiles.iter().flat_map(|profile| profile.patterns());
        let mut allow: Vec<_> = self.allow.iter().cloned().chain(profiles).collect();
        allow.sort_unstable();
        allow.dedup();
        let mut terminate = self.terminate.clone();
        terminate.sort_unstable();
        terminate.dedup();
        EgressSpec {
            allow,
            terminate,
            ..EgressSpec::default()
        }
    }
}

impl EgressSpec {
    /// Whether the list of the job has this host.
    pub fn has(&self, HostPort { host, port }: &HostPort) -> bool {
        self.allow
            .iter()
            .any(|pattern| pattern.matches(host, *port))
    }
}

/// Hosts as a task or a sandbox shows them.
impl From<&EgressSpec> for Egress {
    fn from(spec: &EgressSpec) -> Self {
        Self {
            allow: spec.allow.clone(),
            profiles: Vec::new(),
            terminate: spec.terminate.clone(),
        }
    }
}

impl<'de> Deserialize<'de> for Egress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EgressVisitor)
    }
}

/// Visitor of an object alone: a derived one takes the fields from an array, too.
struct EgressVisitor;

impl<'de> de::Visitor<'de> for EgressVisitor {
    type Value = Egress;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Egress, A::Error> {
        let mut allow: Option<Vec<EgressPattern>> = None;
        let mut profiles: Option<Vec<Profile>> = None;
        let mut terminate: Option<Vec<HostPort>> = None;
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "allow" => set_once(&mut allow, "allow", &mut fields)?,
                "profiles" => set_once(&mut profiles, "profiles", &mut fields)?,
                "terminate" => set_once(&mut terminate, "terminate", &mut fields)?,
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Egress {
            allow: allow.unwrap_or_default(),
            profiles: profiles.unwrap_or_default(),
            terminate: terminate.unwrap_or_default(),
        })
    }
}

/// Reads the value of a field that may be there once.
fn set_once<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    field: &mut Option<T>,
    name: &'static str,
    fields: &mut A,
) -> Result<(), A::Error> {
    if field.is_some() {
        return Err(de::Error::duplicate_field(name));
    }
    *field = Some(fields.next_value()?);
    Ok(())
}

impl SandboxSpec {
    /// Checks the network of a job at its node; `base` is the pointer of the object that it is in.
    pub(super) fn check_network(&self, base: &str) -> Result<(), Problem> {
        let is_allowlist = self.network_policy == Some(NetworkPolicy::Allowlist);
        let pointer = format!("{base}/egress");
        let Some(egress) = &self.egress else {
            return match is_allowlist {
                true => Err(Problem::field(
                    &pointer,
                    "is missing; network_policy \"allowlist\" needs it",
                )),
                false => Ok(()),
            };
        };
        let detail = if !is_allowlist {
            "needs network_policy \"allowlist\"".to_owned()
        } else if egress.allow.len() > MAX_PATTERNS {
            format!("must have at most {MAX_PATTERNS} entries in allow")
        } else if egress.allow_private.len() > MAX_NETWORKS {
            format!("must have at most {MAX_NETWORKS} entries in allow_private")
        } else if egress.terminate.len() > MAX_ENTRIES {
            format!("must have at most {MAX_ENTRIES} entries in terminate")
        } else {
            return Ok(());
        };
        Err(Problem::field(&pointer, detail))
    }
}

/// Schema of the rule over two fields: `egress` has an entry where `network_policy` is `allowlist`, and is absent
/// elsewhere.
pub(super) fn policy_schema() -> Value {
    let some = |list: &str| json!({"required": [list], "properties": {list: {"minItems": 1}}});
    json!({
        "if": {"required": ["network_policy"], "properties": {"network_policy": {"const": "allowlist"}}},
        "then": {
            "required": ["egress"],
            "properties": {"egress": {"type": "object", "anyOf": [some("allow"), some("profiles")]}},
        },
        "else": {"properties": {"egress": {"type": "null"}}},
    })
}

#[cfg(test)]
mod tests;
