//! Metrics of the proxy, over all jobs of a node.

use crate::http::metrics::MetricsRegistry;
use prometheus::{IntCounter, IntCounterVec, Opts};

/// Counters of the proxy; cheap to clone.
#[derive(Clone)]
pub(in crate::worker) struct EgressMetrics {
    pub(super) allowed: IntCounter,
    pub(super) refused: IntCounter,
    pub(super) sent: IntCounter,
    pub(super) received: IntCounter,
}

impl EgressMetrics {
    /// Counters that are registered, at zero.
    pub(in crate::worker) fn new(base: &MetricsRegistry) -> Self {
        let requests = Opts::new(
            "cynode_node_egress_requests_total",
            "Requests of jobs to the proxy since this process started, by the decision about them.",
        );
        let requests = base.register(IntCounterVec::new(requests, &["verdict"]));
        let bytes = Opts::new(
            "cynode_node_egress_bytes_total",
            "Bytes that jobs sent and received through the proxy since this process started.",
        );
        let bytes = base.register(IntCounterVec::new(bytes, &["direction"]));
        Self {
            allowed: requests.with_label_values(&["allowed"]),
            refused: requests.with_label_values(&["refused"]),
            sent: bytes.with_label_values(&["sent"]),
            received: bytes.with_label_values(&["received"]),
        }
    }
}
