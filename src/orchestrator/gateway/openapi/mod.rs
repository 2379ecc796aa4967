//! `GET /openapi.json`: the User API as an OpenAPI 3.1 document.
//!
//! Schemas come from the wire types themselves, the operations are listed in [`operations`], and parts
//! that many operations share (the problems that come with a login, a body or a path parameter) are
//! written once, in [`operation`]. A test compares the list with the router's: no route is undocumented,
//! and nothing is documented that is not routed.

mod api_keys;
mod artifacts;
mod join_tokens;
mod models;
mod node_models;
mod operation;
mod operations;
mod paths;
mod sandbox_calls;
mod sandboxes;
mod schemas;
mod secrets;
mod service;
mod snapshots;

use crate::api::problem::{ProblemBody, ProblemKind};
use http::StatusCode;
use schemas::{Schemas, schema_of};
use serde_json::{Map, Value, json};

/// Document as JSON; the same for each start of a release.
pub(super) fn document() -> Value {
    let mut schemas = Schemas::default();
    let mut paths = Map::new();
    for operation in operations::all() {
        let methods = paths
            // A parameter that holds slashes is written as any other.
            .entry(operation.path.replace("{*", "{"))
            .or_insert_with(|| Value::Object(Map::new()));
        methods[operation.method.as_str().to_ascii_lowercase()] = operation.document(&mut schemas);
    }
    let problem = schemas.answer(schema_of::<ProblemBody>);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "cynode User API",
            "description": env!("CARGO_PKG_DESCRIPTION"),
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.all(),
            "responses": problems(&problem),
            "headers": headers(),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The access_token returned by POST /v1/auth/login.",
                },
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key (POST /v1/keys), for the calls of its scopes.",
                },
                "xApiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "An API key, as clients of Anthropic's API send it.",
                },
            },
        },
    })
}

/// Name of a status in one word.
fn name(status: u16) -> String {
    reason(status).replace(' ', "")
}

/// Name of a status.
fn reason(status: u16) -> &'static str {
    let status = StatusCode::from_u16(status).ok();
    status
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default()
}

/// One response for each status of a problem.
fn problems(schema: &Value) -> Map<String, Value> {
    ProblemKind::ALL
        .iter()
        .map(|kind| (name(kind.status()), problem(kind.status(), schema)))
        .collect()
}

fn problem(status: u16, schema: &Value) -> Value {
    let kinds: Vec<String> = ProblemKind::ALL
        .iter()
        .filter(|kind| kind.status() == status)
        .map(|kind| format!("{}: `{}`", kind.title(), kind.slug()))
        .collect();
    let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}});
    for (header, with) in [
        ("WWW-Authenticate", 401),
        ("Allow", 405),
        ("Retry-After", 429),
    ] {
        if status == with {
            headers[header] = json!({"$ref": format!("#/components/headers/{header}")});
        }
    }
    json!({
        "description": kinds.join("; "),
        "headers": headers,
        "content": {"application/problem+json": {"schema": schema}},
    })
}

/// Headers of answers.
fn headers() -> Value {
    let header = |description: &str, schema: Value| json!({"description": description, "required": true, "schema": schema});
    json!({
        "Allow": header("Methods that this path supports.", json!({"type": "string"})),
        "Location": header("URL of the new resource.", json!({"type": "string", "format": "uri-reference"})),
        "Retry-After": header("Seconds to wait before the next attempt.", json!({"type": "integer", "minimum": 1})),
        "WWW-Authenticate": header("Scheme by which to authenticate.", json!({"type": "string", "const": "Bearer"})),
        "X-Request-Id": header("Id of the request; the instance of a problem.", json!({"type": "string", "format": "uuid"})),
    })
}

#[cfg(test)]
mod tests;
