//! Paths of operations: the resource that they are about, and their parameters.

use crate::api::{
    nodes::{MAX_MODEL_NAME_BYTES, SLUG_PATTERN},
    secrets::SECRET_NAME_PATTERN,
};
use serde_json::{Value, json};

/// Resource, by which generated clients group their methods.
pub(super) fn tag(path: &str) -> &str {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        // A call about all of a resource, such as `models:pull`.
        ["", "v1", resource, ..] => resource.split(':').next().unwrap_or(resource),
        ["", "api", ..] => "ollama",
        _ => "service",
    }
}

/// Parameters in a path: a slug, a name or an id.
pub(super) fn path_parameters(path: &'static str) -> impl Iterator<Item = Value> {
    let names = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(move |name| {
        let name = name.trim_start_matches('*');
        let mut parameter = json!({"in": "path", "name": name, "required": true});
        parameter["schema"] = match name {
            "name" if tag(path) == "secrets" => {
                json!({"type": "string", "pattern": SECRET_NAME_PATTERN})
            }
            "name" | "slug" => json!({"type": "string", "pattern": SLUG_PATTERN}),
            "exec" => json!({"type": "string", "format": "uuid"}),
            _ if tag(path) == "sandboxes" => {
                parameter["description"] =
                    "Id of the sandbox, its name, or the first 8 or more characters of its id."
                        .into();
                json!({"type": "string", "minLength": 1})
            }
            _ if tag(path) == "tasks" => {
                parameter["description"] =
                    "Id of the task, its name, or the first 8 or more characters of its id.".into();
                json!({"type": "string", "minLength": 1})
            }
            "model" => json!({"type": "string", "minLength": 1, "maxLength": MAX_MODEL_NAME_BYTES}),
            _ if tag(path) == "models" => json!({"type": "string"}),
            _ => json!({"type": "string", "format": "uuid"}),
        };
        parameter
    })
}
