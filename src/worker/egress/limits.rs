//! Limits of a machine on the network of its jobs, as its operator gives them.

use crate::api::egress::EgressPattern;
use ipnet::IpNet;
use std::fmt;

/// Limits of a node beside those of the orchestrator; the stricter ones count.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EgressLimits {
    /// Hosts that jobs may reach, of those on their own list; all of those if `None`, none if empty.
    pub allow: Option<Vec<EgressPattern>>,
    /// Networks in which hosts may have private addresses, of those that the orchestrator allows; all of those if
    /// `None`, none if empty.
    pub allow_private: Option<Vec<IpNet>>,
    /// URL of the HTTP proxy through which hosts are reached; directly if `None`. It may have a password.
    pub upstream: Option<String>,
    /// Most bytes of downloads that are kept for later jobs; none are kept if `None`.
    pub cache: Option<u64>,
}

impl fmt::Debug for EgressLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressLimits")
            .field("allow", &self.allow)
            .field("allow_private", &self.allow_private)
            .field("has_upstream", &self.upstream.is_some())
            .field("cache", &self.cache)
            .finish()
    }
}
