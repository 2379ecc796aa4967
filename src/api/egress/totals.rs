//! Sums of what a job did through the proxy of its node, as its result tells them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sums of a job's traffic through the proxy.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EgressTotals {
    /// Requests, those that were refused among them.
    pub requests: u64,
    /// Requests that were refused or cut by a rule.
    pub refused: u64,
    /// Bytes that the job sent.
    pub bytes_sent: u64,
    /// Bytes that the job received.
    pub bytes_received: u64,
    /// Why the last of the refused ones was refused; absent where none was, and for a job with secrets, which could be in
    /// what it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<String>,
}
