//! Settings of the network of jobs, checked.

use crate::{
    api::egress::AllowedHosts,
    cli::{self, NodeEgressFlags, OperatorEgressFlags, UpstreamFlags},
    exit::Failure,
    orchestrator::EgressPolicy,
    worker::EgressLimits,
};

/// Smallest cache of downloads: of one download it keeps at most a quarter of its own size.
const MIN_CACHE_BYTES: u64 = 16 << 20;

/// Network that jobs may ask for.
pub(super) fn policy(flags: OperatorEgressFlags) -> EgressPolicy {
    EgressPolicy {
        allow: flags.egress_allow.into_iter().collect(),
        allow_private: flags.egress_allow_private,
        max_bytes: Some(flags.egress_bytes).filter(|bytes| bytes.0 > 0),
    }
}

/// Limits of a machine without lists of its own.
pub(super) fn machine_limits(upstream: &UpstreamFlags) -> Result<EgressLimits, Failure> {
    let url = upstream.egress_upstream.as_deref();
    let url = url.map(cli::parse_upstream).transpose();
    // 0 turns off what node.yaml turns on.
    let cache = upstream.egress_cache.filter(|bytes| *bytes > 0);
    if cache.is_some_and(|bytes| bytes < MIN_CACHE_BYTES) {
        return Err(Failure::usage(
            "--egress-cache must be at least 16MiB; leave it out for no cache",
        ));
    }
    Ok(EgressLimits {
        cache,
        upstream: url.map_err(|form| Failure::usage(format!("--egress-upstream: {form}")))?,
        ..EgressLimits::default()
    })
}

/// Limits of a node. `*` among its hosts is no limit.
pub(super) fn node_limits(
    flags: &NodeEgressFlags,
    upstream: &UpstreamFlags,
) -> Result<EgressLimits, Failure> {
    let entries = flags.egress_allow.clone();
    let hosts = entries.map(|entries| entries.into_iter().collect::<AllowedHosts>());
    Ok(EgressLimits {
        allow: hosts.and_then(AllowedHosts::into_patterns),
        allow_private: flags.egress_allow_private.clone(),
        ..machine_limits(upstream)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{egress::AllowedEntry, size::ByteSize};

    fn limits(entries: Option<&[&str]>) -> EgressLimits {
        let parse = |text: &&str| text.parse::<AllowedEntry>().unwrap();
        let flags = NodeEgressFlags {
            egress_allow: entries.map(|entries| entries.iter().map(parse).collect()),
            egress_allow_private: None,
        };
        node_limits(&flags, &UpstreamFlags::default()).unwrap()
    }

    #[test]
    fn missing_list_and_empty_one_differ() {
        assert_eq!(limits(None).allow, None);
        assert_eq!(limits(Some(&[])).allow, Some(Vec::new()));
        assert_eq!(limits(Some(&["a.b", "*"])).allow, None);
        let hosts = limits(Some(&["profile:python"])).allow.unwrap();
        assert_eq!(hosts.len(), 2);
    }

    #[test]
    fn zero_bytes_are_no_limit() {
        let policy = |bytes: u64| {
            policy(OperatorEgressFlags {
                egress_allow: Vec::new(),
                egress_allow_private: Vec::new(),
                egress_bytes: ByteSize(bytes),
            })
        };
        assert_eq!(policy(0).max_bytes, None);
        assert!(policy(7).max_bytes.is_some() && policy(7).allow.is_empty());
    }

    #[test]
    fn wrong_upstream_is_not_repeated() {
        let flags = UpstreamFlags {
            egress_upstream: Some("https://user:secret@proxy:1".to_owned()),
            ..UpstreamFlags::default()
        };
        let failure = machine_limits(&flags).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("--egress-upstream: expected http://HOST:PORT")
        );
        assert!(!failure.message.contains("secret"));
    }

    #[test]
    fn cache_is_off_or_of_some_size() {
        let cache = |bytes: Option<u64>| {
            let flags = UpstreamFlags {
                egress_cache: bytes,
                ..UpstreamFlags::default()
            };
            machine_limits(&flags).map(|limits| limits.cache)
        };
        assert_eq!(cache(None).unwrap(), None);
        assert_eq!(cache(Some(0)).unwrap(), None);
        assert_eq!(cache(Some(16 << 20)).unwrap(), Some(16 << 20));
        let failure = cache(Some((16 << 20) - 1)).unwrap_err();
        assert!(failure.message.starts_with("--egress-cache must be"));
    }
}
