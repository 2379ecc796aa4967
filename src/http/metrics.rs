//! Metrics of a role, in the Prometheus text format 0.0.4.
//!
//! A [`MetricsRegistry`] belongs to one role: it has the version and the histogram of all requests, and takes
//! the metrics that the role adds. Nothing here is global, since `dev` runs several roles in one process.
//! Clients can't add label values: a route is labelled by its template, and all unknown methods and paths
//! share one label each.

use super::response::{self, Reply};
use crate::api::error::ApiError;
use http::{Method, StatusCode};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TEXT_FORMAT, TextEncoder,
    core::Collector,
};
use std::time::Duration;

/// Route label of paths without a route.
pub(super) const UNMATCHED_ROUTE: &str = "unmatched";

/// Bounds of the histogram of request durations, in seconds: from a read of the store to a job that is waited
/// for.
const DURATION_BUCKETS_SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

/// Metrics that every role has, and the registry for its own.
pub struct MetricsRegistry {
    registry: Registry,
    requests: HistogramVec,
}

impl Default for MetricsRegistry {
    fn default() -> Self {
        let registry = Registry::new();
        let version = Opts::new(
            "cynode_build_info",
            "Always 1; the label says which version of cynode runs.",
        )
        .const_label("version", env!("CARGO_PKG_VERSION"));
        register(&registry, IntGauge::with_opts(version)).set(1);
        let seconds = HistogramOpts::new(
            "cynode_http_request_duration_seconds",
            "Seconds from the head of a request to the head of its answer.",
        )
        .buckets(DURATION_BUCKETS_SECONDS.to_vec());
        let labels = ["listener", "method", "route", "status"];
        let requests = register(&registry, HistogramVec::new(seconds, &labels));
        Self { registry, requests }
    }
}

impl MetricsRegistry {
    /// Registers a metric of the role.
    ///
    /// # Panics
    /// As [`register`] does.
    pub fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        register(&self.registry, made)
    }

    /// Registers a counter with a label `status`, at zero for each of `statuses`.
    ///
    /// # Panics
    /// As [`register`] does.
    pub fn status_counter(
        &self,
        name: &str,
        help: &str,
        statuses: impl IntoIterator<Item = &'static str>,
    ) -> IntCounterVec {
        let counter = IntCounterVec::new(Opts::new(name, help), &["status"]);
        let counter = self.register(counter);
        for status in statuses {
            counter.with_label_values(&[status]);
        }
        counter
    }

    /// Request metrics of the listener of this name.
    pub fn requests(&self, listener: &'static str) -> RequestMetrics {
        RequestMetrics {
            seconds: self.requests.clone(),
            listener,
        }
    }

    /// Response with all metrics, and those of `momentary`, which were gathered for this response alone.
    pub fn render(&self, momentary: &Registry) -> Reply {
        let mut families = self.registry.gather();
        families.extend(momentary.gather());
        let text = TextEncoder::new()
            .encode_to_string(&families)
            .map_err(ApiError::internal)?;
        Ok(response::with(StatusCode::OK, TEXT_FORMAT, text))
    }
}

/// Registers a metric.
///
/// # Panics
/// If the name is invalid or taken, which every start of the role, or every answer, would show.
pub fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> C {
    let added = made.and_then(|metric| {
        registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    });
    added.unwrap_or_else(|error| panic!("a metric: {error}"))
}

/// Request metrics of one listener.
#[derive(Clone)]
pub struct RequestMetrics {
    seconds: HistogramVec,
    listener: &'static str,
}

impl RequestMetrics {
    pub(super) fn observe(
        &self,
        method: &Method,
        route: &'static str,
        status: StatusCode,
        took: Duration,
    ) {
        let labels = [self.listener, method_name(method), route, status.as_str()];
        self.seconds
            .with_label_values(&labels)
            .observe(took.as_secs_f64());
    }
}

/// Label of a method; clients may invent methods, so those that HTTP does not define share one.
fn method_name(method: &Method) -> &str {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PUT
        | Method::DELETE
        | Method::CONNECT
        | Method::OPTIONS
        | Method::TRACE
        | Method::PATCH => method.as_str(),
        _ => "other",
    }
}
