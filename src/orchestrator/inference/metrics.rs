//! Metrics of calls of models: how they end, how long they take at which node, and how many tokens pass.
//!
//! A [`Meter`] belongs to a call and counts it exactly once, when it is dropped: a client that leaves at any point drops
//! the call with it.

use crate::{
    api::problem::Problem,
    http::metrics::MetricsRegistry,
    inference::{Endpoint, Family, usage::Usage},
    orchestrator::AppState,
};
use http::StatusCode;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use strum::{EnumIter, IntoEnumIterator as _};

/// Bounds of the histograms, in seconds: from an embedding to a long answer of a model that had to be loaded first.
const BUCKETS_SECONDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 240.0, 600.0,
];
/// Labels of the tokens of requests and of answers.
const TOKEN_KINDS: [&str; 2] = ["prompt", "completion"];

/// End of a call, as its label `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, EnumIter, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
enum CallStatus {
    /// The answer came to its end.
    Completed,
    /// The request was wrong, or there was no room for it: 4xx.
    Rejected,
    /// No node could answer, or an answer broke off: 5xx.
    Failed,
    /// The client left before the end.
    Canceled,
}

impl CallStatus {
    fn of(status: u16) -> Self {
        match status {
            ..400 => Self::Completed,
            400..500 => Self::Rejected,
            500.. => Self::Failed,
        }
    }
}

/// Metrics of all calls of models.
pub(in crate::orchestrator) struct ModelMetrics {
    requests: IntCounterVec,
    first_byte: HistogramVec,
    duration: HistogramVec,
    tokens: IntCounterVec,
}

impl ModelMetrics {
    /// Registers the metrics.
    pub(in crate::orchestrator) fn new(base: &MetricsRegistry) -> Self {
        let requests = Opts::new(
            "cynode_inference_requests_total",
            "Requests for models that ended, by API and by how they ended.",
        );
        let requests = base.register(IntCounterVec::new(requests, &["api", "status"]));
        for family in [Family::OpenAi, Family::Anthropic, Family::Ollama] {
            for status in CallStatus::iter() {
                requests.with_label_values(&[family.as_str(), status.into()]);
            }
        }
        let histogram = |name, help| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS_SECONDS.to_vec());
            base.register(HistogramVec::new(options, &["node"]))
        };
        let tokens = Opts::new(
            "cynode_inference_tokens_total",
            "Tokens of requests and answers, as the model server counts them.",
        );
        Self {
            requests,
            first_byte: histogram(
                "cynode_inference_first_byte_seconds",
                "Seconds from the head of a request to the first byte of a successful answer.",
            ),
            duration: histogram(
                "cynode_inference_duration_seconds",
                "Seconds from the head of a request to the end of a successful answer.",
            ),
            tokens: base.register(IntCounterVec::new(tokens, &["node", "kind"])),
        }
    }

    /// Removes the series of a node, which is forgotten. There are none where no call has reached it.
    pub(in crate::orchestrator) fn forget_node(&self, slug: &str) {
        for histogram in [&self.first_byte, &self.duration] {
            let _ = histogram.remove_label_values(&[slug]);
        }
        for kind in TOKEN_KINDS {
            let _ = self.tokens.remove_label_values(&[slug, kind]);
        }
    }

    fn count_tokens(&self, node: &str, usage: Usage) {
        let counts = [usage.prompt_tokens, usage.completion_tokens];
        for (kind, count) in TOKEN_KINDS.into_iter().zip(counts) {
            self.tokens.with_label_values(&[node, kind]).inc_by(count);
        }
    }
}

/// Measurement of one call; counts it when dropped, as canceled unless an end was recorded.
pub(super) struct Meter {
    state: Arc<AppState>,
    endpoint: Endpoint,
    since: Instant,
    status: Option<CallStatus>,
}

impl Meter {
    pub(super) fn start(state: &Arc<AppState>, endpoint: Endpoint) -> Self {
        Self {
            state: Arc::clone(state),
            endpoint,
            since: Instant::now(),
            status: None,
        }
    }

    /// Time since the request arrived.
    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Records that the call ends with a problem of our own.
    pub(super) fn record_problem(&mut self, problem: &Problem) {
        self.end(CallStatus::of(problem.kind.status()));
    }

    /// Records that the answer broke off, or was none.
    pub(super) fn record_failure(&mut self) {
        self.end(CallStatus::Failed);
    }

    /// Records that the answer of a node begins.
    pub(super) fn record_first_byte(&self, node: &str, status: StatusCode) {
        if self.endpoint.computes() && status.is_success() {
            observe(&self.metrics().first_byte, node, self.elapsed());
        }
    }

    /// Records what has passed of the answer of a node, and its end, if it came.
    pub(super) fn record_answer(
        &mut self,
        node: &str,
        status: StatusCode,
        usage: Usage,
        is_complete: bool,
    ) {
        self.metrics().count_tokens(node, usage);
        if !is_complete {
            return;
        }
        if self.endpoint.computes() && status.is_success() {
            observe(&self.metrics().duration, node, self.elapsed());
        }
        self.end(CallStatus::of(status.as_u16()));
    }

    /// Keeps the first end: a node may answer to the end what is a failure for the client.
    fn end(&mut self, status: CallStatus) {
        self.status.get_or_insert(status);
    }

    fn metrics(&self) -> &ModelMetrics {
        &self.state.metrics.models
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let status = self.status.unwrap_or(CallStatus::Canceled);
        let labels = [self.endpoint.family().as_str(), status.into()];
        self.metrics().requests.with_label_values(&labels).inc();
    }
}

fn observe(histogram: &HistogramVec, node: &str, took: Duration) {
    let histogram = histogram.with_label_values(&[node]);
    histogram.observe(took.as_secs_f64());
}
