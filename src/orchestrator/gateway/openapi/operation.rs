//! One operation of the document, and what follows from what it is.

use super::{name, reason, schemas::Schemas};
use crate::api::warning::Warning;
use http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

/// Makes a schema; what it names goes to the generator.
pub(super) type Make = fn(&mut SchemaGenerator) -> Schema;

/// The schema of a wire type.
pub(super) fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Any text.
pub(super) fn text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string"})
}

#[derive(PartialEq)]
enum Access {
    Anybody,
    User,
    Admin,
}

struct Parameter {
    place: &'static str,
    name: &'static str,
    description: &'static str,
    schema: Make,
}

struct Media {
    kind: &'static str,
    description: &'static str,
    schema: Make,
}

/// One method of one path. Users call it, logged in, unless it says otherwise.
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    id: &'static str,
    summary: &'static str,
    access: Access,
    parameters: Vec<Parameter>,
    /// And whether there must be one.
    body: Option<(Make, bool)>,
    status: u16,
    answers: Vec<Media>,
    located: bool,
    problems: Vec<u16>,
}

/// Starts an operation: its id is what generated clients call it.
pub(super) fn operation(
    method: Method,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
) -> Operation {
    Operation {
        method,
        path,
        id,
        summary,
        access: Access::User,
        parameters: Vec::new(),
        body: None,
        status: 204,
        answers: Vec::new(),
        located: false,
        problems: vec![500],
    }
}

impl Operation {
    /// Needs no login.
    pub(super) fn open(mut self) -> Self {
        self.access = Access::Anybody;
        self
    }

    /// For admins alone.
    pub(super) fn admin(mut self) -> Self {
        self.access = Access::Admin;
        self
    }

    /// Takes an optional query parameter.
    pub(super) fn query(self, name: &'static str, description: &'static str, schema: Make) -> Self {
        self.parameter("query", name, description, schema)
    }

    /// Takes an optional header.
    pub(super) fn header(
        self,
        name: &'static str,
        description: &'static str,
        schema: Make,
    ) -> Self {
        self.parameter("header", name, description, schema)
    }

    fn parameter(
        mut self,
        place: &'static str,
        name: &'static str,
        description: &'static str,
        schema: Make,
    ) -> Self {
        self.parameters.push(Parameter {
            place,
            name,
            description,
            schema,
        });
        self
    }

    /// Takes a body.
    pub(super) fn takes<T: JsonSchema>(mut self) -> Self {
        self.body = Some((of::<T>, true));
        self
    }

    /// Takes a body or none.
    pub(super) fn may_take<T: JsonSchema>(mut self) -> Self {
        self.body = Some((of::<T>, false));
        self
    }

    /// Answers 200 with JSON.
    pub(super) fn gives<T: JsonSchema>(self) -> Self {
        self.or_gives("application/json", "", of::<T>)
    }

    /// Answers 201 with JSON and says where the new thing is.
    pub(super) fn creates<T: JsonSchema>(mut self) -> Self {
        self = self.makes::<T>();
        self.located = true;
        self
    }

    /// Answers 201 with JSON, of what has no place of its own.
    pub(super) fn makes<T: JsonSchema>(mut self) -> Self {
        self = self.gives::<T>();
        self.status = 201;
        self
    }

    /// Answers 200 in this media type; beside others, should there be some.
    pub(super) fn or_gives(
        mut self,
        kind: &'static str,
        description: &'static str,
        schema: Make,
    ) -> Self {
        self.status = 200;
        self.answers.push(Media {
            kind,
            description,
            schema,
        });
        self
    }

    /// May end in a problem that doesn't follow from the rest.
    pub(super) fn or_problem(mut self, status: u16) -> Self {
        self.problems.push(status);
        self
    }

    /// The Operation Object (OpenAPI 3.1, 4.8.10).
    pub(super) fn document(&self, schemas: &mut Schemas) -> Value {
        let mut parameters: Vec<Value> = path_parameters(self.path).collect();
        parameters.extend(self.parameters.iter().map(|parameter| {
            json!({
                "in": parameter.place,
                "name": parameter.name,
                "description": parameter.description,
                "schema": schemas.request(parameter.schema),
            })
        }));
        let mut document = json!({
            "operationId": self.id,
            "summary": self.summary,
            "tags": [tag(self.path)],
            "security": if self.access == Access::Anybody { json!([]) } else { json!([{"bearer": []}]) },
            "responses": self.responses(schemas),
        });
        if !parameters.is_empty() {
            document["parameters"] = parameters.into();
        }
        if let Some((schema, required)) = self.body {
            let schema = schemas.request(schema);
            document["requestBody"] =
                json!({"required": required, "content": {"application/json": {"schema": schema}}});
        }
        document
    }

    fn responses(&self, schemas: &mut Schemas) -> Map<String, Value> {
        let problems = self.problem_statuses().into_iter().map(|status| {
            let response = format!("#/components/responses/{}", name(status));
            (status.to_string(), json!({"$ref": response}))
        });
        let mut responses: Map<String, Value> = problems.collect();
        let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}});
        if self.located {
            headers["Location"] = json!({"$ref": "#/components/headers/Location"});
        }
        let mut success = json!({"description": reason(self.status), "headers": headers});
        for answer in &self.answers {
            let mut schema = schemas.answer(answer.schema);
            if !answer.description.is_empty() {
                schema["description"] = answer.description.into();
            }
            if answer.kind == "application/json" && self.path.starts_with("/v1/") {
                schema["properties"]["warnings"] = json!({
                    "description": "What of the request was ignored or changed; absent where nothing was.",
                    "type": "array",
                    "items": schemas.answer(of::<Warning>),
                });
            }
            success["content"][answer.kind] = json!({"schema": schema});
        }
        responses.insert(self.status.to_string(), success);
        responses
    }

    fn problem_statuses(&self) -> Vec<u16> {
        let mut statuses = self.problems.clone();
        // Whatever is behind a path of a version looks into the store.
        if self.path.starts_with("/v1/") {
            statuses.push(503);
        }
        if self.access != Access::Anybody {
            statuses.extend([401, 429]);
        }
        if self.access == Access::Admin {
            statuses.push(403);
        }
        if self.path.contains('{') {
            statuses.push(404);
        }
        // A name or the beginning of an id may mean several.
        if self.path.starts_with("/v1/tasks/{id}") {
            statuses.push(409);
        }
        if !self.parameters.is_empty() {
            statuses.push(400);
        }
        if self.body.is_some() {
            statuses.extend([400, 413, 415]);
        }
        statuses
    }
}

/// The resource, by which generated clients sort their calls.
fn tag(path: &str) -> &str {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["", "v1", resource, ..] => resource,
        _ => "service",
    }
}

/// The parameters in a path: a slug, or else an id.
fn path_parameters(path: &'static str) -> impl Iterator<Item = Value> {
    let names = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(move |name| {
        let mut parameter = json!({"in": "path", "name": name, "required": true});
        parameter["schema"] = match name {
            "slug" => json!({"type": "string", "pattern": crate::api::nodes::SLUG_PATTERN}),
            _ if tag(path) == "tasks" => {
                parameter["description"] =
                    "The task's id, its name, or the beginning of its id from 8 characters on."
                        .into();
                json!({"type": "string", "minLength": 1})
            }
            _ => json!({"type": "string", "format": "uuid"}),
        };
        parameter
    })
}
