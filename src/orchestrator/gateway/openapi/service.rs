//! Operations of the service itself.

use super::{
    operation::{Operation, operation},
    schemas::any_text,
};
use http::Method;
use schemars::json_schema;

fn get(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    operation(Method::GET, path, id, summary)
}

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        get("/openapi.json", "openapi", "Show this document")
            .public()
            .returns_media(
                "application/json",
                "An OpenAPI 3.1 document.",
                |_| json_schema!({"type": "object"}),
            ),
        get(
            "/metrics",
            "metrics",
            "Show metrics in the Prometheus text format",
        )
        .public()
        .returns_media("text/plain", "Prometheus text format 0.0.4.", any_text)
        .fails_with(503),
        get("/healthz", "healthz", "Check that the process answers")
            .public()
            .returns_media("text/plain", "`ok`", any_text),
        get(
            "/readyz",
            "readyz",
            "Check that tasks can run; a problem says why not",
        )
        .public()
        .returns_media("text/plain", "`ready`", any_text)
        .fails_with(503),
    ]
}
