//! Flags about the network of jobs: of the operator, of nodes, and of new tasks and sandboxes.

use super::{SecretFlags, files::parse_byte_size, parse_network, parse_size};
use crate::api::{
    egress::{AllowedEntry, Egress, EgressPattern, HostPort, InvalidEntry, Profile},
    jobs::NetworkPolicy,
    size::ByteSize,
};
use clap::Args;
use ipnet::IpNet;
use strum::VariantNames as _;

/// Hosts that an operator lets jobs reach.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sandbox network")]
pub struct OperatorEgressFlags {
    /// Let jobs that ask for it reach this host, such as api.example.com, *.example.com:8443, profile:python, or * for all;
    /// repeatable [default: none]
    #[arg(
        long,
        env = "CYNODE_EGRESS_ALLOW",
        value_name = "PATTERN",
        value_delimiter = ',',
        value_parser = parse_entry
    )]
    pub egress_allow: Vec<AllowedEntry>,
    /// Let hosts of jobs have addresses in this private network, such as 10.0.0.0/8; repeatable [default: public addresses
    /// only]
    #[arg(
        long,
        env = "CYNODE_EGRESS_ALLOW_PRIVATE",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = parse_network
    )]
    pub egress_allow_private: Vec<IpNet>,
    /// Most that one job may send and receive together; 0: no limit
    #[arg(
        long,
        env = "CYNODE_EGRESS_BYTES",
        default_value = "10GiB",
        value_parser = parse_byte_size,
        value_name = "SIZE"
    )]
    pub egress_bytes: ByteSize,
}

/// Hosts that a node lets jobs reach, of those that the orchestrator allows.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Sandbox network")]
pub struct NodeEgressFlags {
    /// Let jobs reach only this host, of those that the orchestrator allows: api.example.com, *.example.com:8443,
    /// profile:python; repeatable [default: all of them]
    #[arg(
        long,
        env = "CYNODE_EGRESS_ALLOW",
        value_name = "PATTERN",
        value_delimiter = ',',
        value_parser = parse_entry
    )]
    pub egress_allow: Option<Vec<AllowedEntry>>,
    /// Let hosts of jobs have private addresses only in this network, of those that the orchestrator allows; repeatable
    /// [default: all of them]
    #[arg(
        long,
        env = "CYNODE_EGRESS_ALLOW_PRIVATE",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = parse_network
    )]
    pub egress_allow_private: Option<Vec<IpNet>>,
}

/// Way of a machine to the hosts of its jobs.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Sandbox network")]
pub struct UpstreamFlags {
    /// Reach the hosts of jobs through this HTTP proxy, such as http://proxy.lan:3128; it resolves the names. Other users
    /// can read a password in the list of processes, so give one in the variable
    // Checked with the other settings: clap would show the value, which may have a password.
    #[arg(
        long,
        env = "CYNODE_EGRESS_UPSTREAM",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub egress_upstream: Option<String>,
    /// Keep this much of what jobs download for later jobs, such as 5GiB: of plain HTTP, and of HTTPS that a job lets the
    /// proxy read; the host confirms each use; 16MiB or more [default: off]
    #[arg(long, env = "CYNODE_EGRESS_CACHE", value_name = "SIZE", value_parser = parse_size)]
    pub egress_cache: Option<u64>,
}

/// Hosts that a new task or sandbox may reach.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sandbox network")]
pub struct EgressFlags {
    /// Let the command reach this host, through a proxy: api.example.com, or *.example.com:8443 for all names below a
    /// domain at one port; repeatable
    ///
    /// Without a port, 443 and 80 are meant. The sandbox still has no network device: HTTP_PROXY and its like lead programs
    /// to the proxy. The operator has to allow the host, too.
    #[arg(long, value_name = "HOST[:PORT]", value_parser = parse_pattern)]
    pub allow: Vec<EgressPattern>,
    /// Let the command reach the hosts that these tools need: python, node, rust, debian, alpine, models, git; repeatable
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = parse_profile)]
    pub egress_profile: Vec<Profile>,
    /// Let the command reach this host, and let the proxy open its TLS, so that it sees the requests: api.example.com, or
    /// api.example.com:8443; repeatable
    ///
    /// The command gets certificates of an authority that is made for its sandbox alone; SSL_CERT_FILE and its like name that
    /// authority. The node checks the certificate of the host. --secret NAME@HOST implies it.
    #[arg(long, value_name = "HOST[:PORT]", value_parser = parse_host)]
    pub egress_terminate: Vec<HostPort>,
}

impl EgressFlags {
    /// Network policy and hosts that the flags ask for, those that get `secrets` among them.
    pub fn into_fields(self, secrets: &SecretFlags) -> (Option<NetworkPolicy>, Option<Egress>) {
        let mut egress = Egress {
            allow: self.allow,
            profiles: self.egress_profile,
            terminate: self.egress_terminate,
        };
        for host in secrets.hosts_with_tls() {
            if !egress.terminate.contains(host) {
                egress.terminate.push(host.clone());
            }
        }
        let named = egress.terminate.iter().chain(secrets.hosts());
        for host in named.cloned().collect::<Vec<_>>() {
            // An entry of the user that has the host says it already.
            if !egress.has(&host) {
                egress.allow.push(EgressPattern::from(&host));
            }
        }
        if egress == Egress::default() {
            return (None, None);
        }
        (Some(NetworkPolicy::Allowlist), Some(egress))
    }
}

/// Parses an entry of an operator's list.
pub(crate) fn parse_entry(text: &str) -> Result<AllowedEntry, String> {
    text.parse()
        .map_err(|error: InvalidEntry| match confusion(text) {
            Some(confusion) => format!("this entry {confusion}"),
            None => format!("this entry {error}"),
        })
}

/// What an entry that is none seems to be meant as.
fn confusion(text: &str) -> Option<&'static str> {
    if text.starts_with(['"', '\'']) {
        Some("has quotation marks; leave them out")
    } else if text.starts_with("*:") {
        Some("has * with a port; * alone stands for all hosts, at all ports")
    } else if text.contains('/') && text.parse::<IpNet>().is_ok() {
        Some("is a network; write names of hosts here, and networks in --egress-allow-private")
    } else {
        None
    }
}

fn parse_pattern(text: &str) -> Result<EgressPattern, String> {
    text.parse().map_err(|error| format!("this host {error}"))
}

fn parse_host(text: &str) -> Result<HostPort, String> {
    text.parse().map_err(|error| format!("this host {error}"))
}

fn parse_profile(name: &str) -> Result<Profile, String> {
    let unknown = |_| format!("expected one of {}", Profile::VARIANTS.join(", "));
    name.parse().map_err(unknown)
}

/// Parses the URL of a proxy: `http://`, perhaps a user and a password, a host and a port, and nothing after that. The
/// error does not repeat it.
pub(crate) fn parse_upstream(text: &str) -> Result<String, String> {
    let parsed = text.parse::<http::Uri>().ok();
    let is_proxy = |url: &http::Uri| {
        url.scheme_str() == Some("http")
            && url.port_u16().is_some_and(|port| port > 0)
            && url.path_and_query().is_none_or(|path| path.as_str() == "/")
    };
    match parsed.filter(is_proxy) {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err("expected http://HOST:PORT, such as http://proxy.lan:3128".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::secrets::parse_secret;
    use serde_json::json;

    #[test]
    fn flags_imply_allowlist() {
        let secrets = SecretFlags::default();
        let none = EgressFlags::default().into_fields(&secrets);
        assert_eq!(none, (None, None));
        let flags = EgressFlags {
            allow: vec!["a.b".parse().unwrap()],
            egress_profile: vec![Profile::Git],
            egress_terminate: Vec::new(),
        };
        let (policy, egress) = flags.into_fields(&secrets);
        assert_eq!(policy, Some(NetworkPolicy::Allowlist));
        let egress = egress.unwrap();
        assert_eq!((egress.allow.len(), egress.profiles.len()), (1, 1));
    }

    #[test]
    fn named_hosts_are_allowed() {
        let hosts = [
            "a.b",
            "c.d:80",
            "e.f:8443",
            "x.g.h",
            "a.b",
            "http://k.l:8080",
        ];
        let secret = |host| parse_secret(&format!("A@{host}")).unwrap();
        let secrets = SecretFlags {
            secret: hosts.map(secret).into(),
            no_mask: false,
        };
        let flags = EgressFlags {
            allow: vec!["*.g.h".parse().unwrap()],
            egress_profile: vec![Profile::Python],
            egress_terminate: vec!["pypi.org".parse().unwrap(), "i.j".parse().unwrap()],
        };
        let (policy, egress) = flags.into_fields(&secrets);
        assert_eq!(policy, Some(NetworkPolicy::Allowlist));
        let expected = json!({
            "allow": ["*.g.h", "i.j:443", "a.b:443", "e.f:8443", "c.d:80", "k.l:8080"],
            "profiles": ["python"],
            "terminate": ["pypi.org", "i.j", "a.b", "e.f:8443", "x.g.h"],
        });
        assert_eq!(serde_json::to_value(egress).unwrap(), expected);
    }

    #[test]
    fn upstream_is_plain_proxy() {
        for (text, url) in [
            ("http://proxy.lan:3128", "http://proxy.lan:3128"),
            ("http://10.0.0.1:8080/", "http://10.0.0.1:8080"),
            ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
            (
                "http://user:password@proxy:1",
                "http://user:password@proxy:1",
            ),
        ] {
            assert_eq!(parse_upstream(text).as_deref(), Ok(url));
        }
        for text in [
            "",
            "proxy.lan:3128",
            "http://proxy.lan",
            "http://proxy.lan:0",
            "https://proxy.lan:3128",
            "socks5://proxy.lan:1080",
            "http://user:password@proxy.lan",
            "http://proxy.lan:3128/path",
            "http://proxy.lan:3128/?q",
        ] {
            let error = parse_upstream(text).unwrap_err();
            assert!(
                error.contains("http://HOST:PORT") && !error.contains("password@"),
                "{text}"
            );
        }
    }

    #[test]
    fn errors_name_expected_form() {
        let error = parse_entry("10.0.0.1").unwrap_err();
        assert!(error.starts_with("this entry is an IP address"), "{error}");
        for (text, part) in [
            ("10.0.0.0/8", "this entry is a network; "),
            ("fd00::/8", "this entry is a network; "),
            ("*:443", "this entry has * with a port; "),
            ("'*'", "this entry has quotation marks; "),
            ("\"a.b\"", "this entry has quotation marks; "),
            ("a.b/8", "this entry is not a valid name"),
        ] {
            let error = parse_entry(text).unwrap_err();
            assert!(error.starts_with(part), "{error}");
        }
        let error = parse_pattern("https://a.b").unwrap_err();
        assert!(
            error.starts_with("this host is not a valid name"),
            "{error}"
        );
        let error = parse_profile("perl").unwrap_err();
        assert_eq!(
            error,
            "expected one of python, node, rust, debian, alpine, models, git"
        );
    }
}
