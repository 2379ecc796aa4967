//! Metrics of the proxy, over all jobs of a node.

use crate::http::metrics::MetricsRegistry;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

/// Counters of the proxy and of its cache; cheap to clone.
#[derive(Clone)]
pub(in crate::worker) struct EgressMetrics {
    pub(super) allowed: IntCounter,
    pub(super) refused: IntCounter,
    pub(super) sent: IntCounter,
    pub(super) received: IntCounter,
    pub(super) cache_hits: IntCounter,
    pub(super) cache_misses: IntCounter,
    pub(super) cache_bypasses: IntCounter,
    pub(super) cache_bytes: IntGauge,
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
        let cached = Opts::new(
            "cynode_node_egress_cache_requests_total",
            "Requests that met the cache of downloads since this process started, by what came of it.",
        );
        let cached = base.register(IntCounterVec::new(cached, &["result"]));
        let cache_bytes = IntGauge::new(
            "cynode_node_egress_cache_bytes",
            "Bytes for which downloads in the cache count.",
        );
        Self {
            allowed: requests.with_label_values(&["allowed"]),
            refused: requests.with_label_values(&["refused"]),
            sent: bytes.with_label_values(&["sent"]),
            received: bytes.with_label_values(&["received"]),
            cache_hits: cached.with_label_values(&["hit"]),
            cache_misses: cached.with_label_values(&["miss"]),
            cache_bypasses: cached.with_label_values(&["bypass"]),
            cache_bytes: base.register(cache_bytes),
        }
    }
}
