//! Operations of the models of a node.

use super::operation::{Operation, operation};
use crate::api::models::{NodeModels, PullModel};
use http::Method;
use schemars::{Schema, SchemaGenerator, json_schema};

const EVENTS: &str = "\
Server-sent events. The data of `progress` is `{\"status\", \"digest\"?, \"total_bytes\"?, \"completed_bytes\"?}`, of one part of \
the model at a time, and of `end`, the last event, `{\"status\", \"error\"?}` with the status `completed` or `failed`. The \
same progress is sent again at least every 5 seconds.";

fn pull_event(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": {"type": "string", "enum": ["progress", "end"]},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
    })
}

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            Method::GET,
            "/v1/nodes/{slug}/models",
            "list_node_models",
            "List the models of a node: those there, those loaded, their size and memory",
        )
        .admin_only()
        .returns::<NodeModels>()
        .fails_with(503),
        operation(
            Method::POST,
            "/v1/nodes/{slug}/models:pull",
            "pull_node_model",
            "Pull a model at a node; ends when the caller leaves, and continues where an earlier pull ended",
        )
        .admin_only()
        .body::<PullModel>()
        .returns_media("text/event-stream", EVENTS, pull_event)
        .fails_with(409)
        .fails_with(503),
        operation(
            Method::DELETE,
            "/v1/nodes/{slug}/models/{*model}",
            "delete_node_model",
            "Delete a model of a node",
        )
        .admin_only()
        .fails_with(409)
        .fails_with(503),
    ]
}
