//! `GET /openapi.json`: the User API as an OpenAPI 3.1 document.
//!
//! The schemas are those of the wire types themselves, the operations stand in [`operations`],
//! and everything that is the same for many of them (which problems a login, a body or a path
//! parameter brings along) is told once, in [`operation`]. A test holds the list against the
//! router's: a call can't be added without being documented, nor the other way round.

mod operation;
mod operations;
mod schemas;

use crate::api::problem::{ProblemBody, ProblemKind};
use http::StatusCode;
use operation::of;
use schemas::Schemas;
use serde_json::{Map, Value, json};

/// The document as JSON. The same release always writes the same one.
pub(super) fn document() -> Value {
    let mut schemas = Schemas::default();
    let mut paths = Map::new();
    for operation in operations::all() {
        let methods = paths
            .entry(operation.path)
            .or_insert_with(|| Value::Object(Map::new()));
        methods[operation.method.as_str().to_ascii_lowercase()] = operation.document(&mut schemas);
    }
    let problem = schemas.answer(of::<ProblemBody>);
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
                    "description": "The access_token of POST /v1/auth/login.",
                },
            },
        },
    })
}

/// The name of a status, as one word.
fn name(status: u16) -> String {
    reason(status).replace(' ', "")
}

/// The name of a status.
fn reason(status: u16) -> &'static str {
    let status = StatusCode::from_u16(status).ok();
    status
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default()
}

/// One answer for each status that a problem can have.
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

/// The headers of answers.
fn headers() -> Value {
    let header = |description: &str, schema: Value| json!({"description": description, "required": true, "schema": schema});
    json!({
        "Allow": header("The methods that there are.", json!({"type": "string"})),
        "Location": header("Where the new thing is.", json!({"type": "string", "format": "uri-reference"})),
        "Retry-After": header("Seconds to wait before another try.", json!({"type": "integer", "minimum": 1})),
        "WWW-Authenticate": header("What to show.", json!({"type": "string", "const": "Bearer"})),
        "X-Request-Id": header("The request's id; a problem's instance.", json!({"type": "string", "format": "uuid"})),
    })
}

#[cfg(test)]
mod tests;
