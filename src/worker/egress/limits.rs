//! Limits of a machine on the network of its jobs, as its operator gives them.

use crate::api::egress::EgressPattern;
use ipnet::IpNet;

/// Limits of a node beside those of the orchestrator; the stricter ones count.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EgressLimits {
    /// Hosts that jobs may reach, of those on their own list; all of those if `None`, none if empty.
    pub allow: Option<Vec<EgressPattern>>,
    /// Networks in which hosts may have private addresses, of those that the orchestrator allows; all of those if
    /// `None`, none if empty.
    pub allow_private: Option<Vec<IpNet>>,
    /// URL of the HTTP proxy through which hosts are reached; directly if `None`.
    pub upstream: Option<String>,
}
