//! One operation of the document, and the parts that follow from its kind: problems, security, path
//! parameters.

use super::{
    name,
    paths::{path_parameters, tag},
    reason,
    schemas::{SchemaFn, Schemas, octets, schema_of},
};
use crate::api::{api_keys::Scope, warning::Warning};
use http::Method;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

#[derive(PartialEq)]
enum Access {
    Public,
    User,
    Admin,
}

struct Parameter {
    place: &'static str,
    name: &'static str,
    description: &'static str,
    schema: SchemaFn,
    is_required: bool,
}

struct Media {
    kind: &'static str,
    description: &'static str,
    schema: SchemaFn,
}

/// One method of one path. It needs a login unless it is [`public`](Self::public).
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    id: &'static str,
    summary: &'static str,
    description: Option<&'static str>,
    access: Access,
    parameters: Vec<Parameter>,
    /// Schema of the body, and whether a body is required.
    body: Option<(SchemaFn, bool)>,
    /// Whether the body is bytes of any kind.
    has_octets: bool,
    /// Further statuses that are no problem.
    others: Vec<(u16, &'static str, Option<SchemaFn>)>,
    status: u16,
    answers: Vec<Media>,
    has_location: bool,
    /// Description of errors in the shape of another API; `None` for problems.
    foreign_errors: Option<&'static str>,
    problems: Vec<u16>,
}

/// Operation of this id, by which generated clients name their method.
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
        description: None,
        access: Access::User,
        parameters: Vec::new(),
        body: None,
        has_octets: false,
        others: Vec::new(),
        status: 204,
        answers: Vec::new(),
        has_location: false,
        foreign_errors: None,
        problems: vec![500],
    }
}

impl Operation {
    /// Needs no login.
    pub(super) fn public(mut self) -> Self {
        self.access = Access::Public;
        self
    }

    /// Needs the login of an admin.
    pub(super) fn admin_only(mut self) -> Self {
        self.access = Access::Admin;
        self
    }

    /// Has a description that is longer than its summary.
    pub(super) fn described(mut self, description: &'static str) -> Self {
        self.description = Some(description);
        self
    }

    /// Accepts an optional query parameter.
    pub(super) fn query(
        self,
        name: &'static str,
        description: &'static str,
        schema: SchemaFn,
    ) -> Self {
        self.parameter("query", name, description, schema)
    }

    /// Requires a query parameter.
    pub(super) fn required_query(
        self,
        name: &'static str,
        description: &'static str,
        schema: SchemaFn,
    ) -> Self {
        let mut operation = self.query(name, description, schema);
        if let Some(parameter) = operation.parameters.last_mut() {
            parameter.is_required = true;
        }
        operation
    }

    /// Accepts an optional header.
    pub(super) fn header(
        self,
        name: &'static str,
        description: &'static str,
        schema: SchemaFn,
    ) -> Self {
        self.parameter("header", name, description, schema)
    }

    fn parameter(
        mut self,
        place: &'static str,
        name: &'static str,
        description: &'static str,
        schema: SchemaFn,
    ) -> Self {
        self.parameters.push(Parameter {
            place,
            name,
            description,
            schema,
            is_required: false,
        });
        self
    }

    /// Requires a body.
    pub(super) fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some((schema_of::<T>, true));
        self
    }

    /// Accepts a body.
    pub(super) fn optional_body<T: JsonSchema>(mut self) -> Self {
        self.body = Some((schema_of::<T>, false));
        self
    }

    /// Requires a body of this schema.
    pub(super) fn body_like(mut self, schema: SchemaFn) -> Self {
        self.body = Some((schema, true));
        self
    }

    /// Has errors in the shape of another API.
    pub(super) fn errors_in(mut self, description: &'static str) -> Self {
        self.foreign_errors = Some(description);
        self
    }

    /// Requires a body of bytes of any kind.
    pub(super) fn octets(mut self) -> Self {
        self.has_octets = true;
        self
    }

    /// May also answer with this status, which is no problem.
    pub(super) fn also(mut self, status: u16, description: &'static str) -> Self {
        self.others.push((status, description, None));
        self
    }

    /// May also answer with this status and JSON.
    pub(super) fn also_returns<T: JsonSchema>(
        mut self,
        status: u16,
        description: &'static str,
    ) -> Self {
        self.others
            .push((status, description, Some(schema_of::<T>)));
        self
    }

    /// Changes the protocol of the connection.
    pub(super) fn switches_protocol(mut self) -> Self {
        self.status = 101;
        self
    }

    /// Answers 200 with JSON.
    pub(super) fn returns<T: JsonSchema>(self) -> Self {
        self.returns_media("application/json", "", schema_of::<T>)
    }

    /// Answers 201 with JSON, and with the location of the new resource.
    pub(super) fn creates_at_location<T: JsonSchema>(mut self) -> Self {
        self = self.creates::<T>();
        self.has_location = true;
        self
    }

    /// Answers 201 with JSON.
    pub(super) fn creates<T: JsonSchema>(mut self) -> Self {
        self = self.returns::<T>();
        self.status = 201;
        self
    }

    /// Answers 200 in this media type. An operation may have several.
    pub(super) fn returns_media(
        mut self,
        kind: &'static str,
        description: &'static str,
        schema: SchemaFn,
    ) -> Self {
        self.status = 200;
        self.answers.push(Media {
            kind,
            description,
            schema,
        });
        self
    }

    /// May fail with a status that does not follow from the rest.
    pub(super) fn fails_with(mut self, status: u16) -> Self {
        self.problems.push(status);
        self
    }

    /// Operation Object (OpenAPI 3.1, section 4.8.10).
    pub(super) fn document(&self, schemas: &mut Schemas) -> Value {
        let mut parameters: Vec<Value> = path_parameters(self.path).collect();
        parameters.extend(self.parameters.iter().map(|parameter| {
            let mut document = json!({
                "in": parameter.place,
                "name": parameter.name,
                "description": parameter.description,
                "schema": schemas.request(parameter.schema),
            });
            if parameter.is_required {
                document["required"] = true.into();
            }
            document
        }));
        let mut document = json!({
            "operationId": self.id,
            "summary": self.summary,
            "tags": [tag(self.path)],
            "security": self.security(),
            "responses": self.responses(schemas),
        });
        if let Some(description) = self.description {
            document["description"] = description.into();
        }
        if !parameters.is_empty() {
            document["parameters"] = parameters.into();
        }
        if let Some((schema, required)) = self.body {
            let schema = schemas.request(schema);
            document["requestBody"] =
                json!({"required": required, "content": {"application/json": {"schema": schema}}});
        }
        if self.has_octets {
            let schema = schemas.request(octets);
            document["requestBody"] =
                json!({"content": {"application/octet-stream": {"schema": schema}}});
        }
        document
    }

    /// Credentials that the call accepts: an access token, or a key with one of these scopes.
    fn security(&self) -> Value {
        if self.access == Access::Public {
            return json!([]);
        }
        match self.key_scopes() {
            None => json!([{"bearer": []}]),
            Some(scopes) => json!([{"bearer": []}, {"apiKey": scopes}, {"xApiKey": scopes}]),
        }
    }

    /// Scopes of the keys that may make the call, empty for all keys; `None` where no key may.
    fn key_scopes(&self) -> Option<&'static [Scope]> {
        match tag(self.path) {
            "auth" | "users" | "keys" => None,
            _ if self.access == Access::Admin => Some(&[Scope::All]),
            "usage" | "secrets" => Some(&[Scope::All]),
            "nodes" => Some(&[]),
            "sandboxes" | "snapshots" => Some(&[Scope::Sandboxes, Scope::All]),
            "tasks" | "artifacts" => Some(&[Scope::Tasks, Scope::All]),
            _ => Some(&[Scope::Inference, Scope::All]),
        }
    }

    fn responses(&self, schemas: &mut Schemas) -> Map<String, Value> {
        let problems = self.problem_statuses().into_iter().map(|status| {
            let response = match self.foreign_errors {
                Some(description) => json!({
                    "description": description,
                    "content": {"application/json": {"schema": {"type": "object"}}},
                }),
                None => json!({"$ref": format!("#/components/responses/{}", name(status))}),
            };
            (status.to_string(), response)
        });
        let mut responses: Map<String, Value> = problems.collect();
        let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}});
        if self.has_location {
            headers["Location"] = json!({"$ref": "#/components/headers/Location"});
        }
        let mut success = json!({"description": reason(self.status), "headers": headers});
        for answer in &self.answers {
            let mut schema = schemas.answer(answer.schema);
            if !answer.description.is_empty() {
                schema["description"] = answer.description.into();
            }
            let has_warnings = self.path.starts_with("/v1/") && self.foreign_errors.is_none();
            if answer.kind == "application/json" && has_warnings {
                schema["properties"]["warnings"] = json!({
                    "description": "Parts of the request that were ignored or changed; absent if there are none.",
                    "type": "array",
                    "items": schemas.answer(schema_of::<Warning>),
                });
            }
            success["content"][answer.kind] = json!({"schema": schema});
        }
        responses.insert(self.status.to_string(), success);
        for (status, description, schema) in &self.others {
            let mut other = json!({"description": description});
            if let Some(schema) = schema {
                let schema = schemas.answer(*schema);
                other["content"]["application/json"] = json!({"schema": schema});
            }
            responses.insert(status.to_string(), other);
        }
        responses
    }

    fn problem_statuses(&self) -> Vec<u16> {
        let mut statuses = self.problems.clone();
        // Every path below a version reads the store.
        if self.path.starts_with("/v1/") {
            statuses.push(503);
        }
        if self.access != Access::Public {
            statuses.extend([401, 403, 429]);
        }
        if self.path.contains('{') {
            statuses.push(404);
        }
        // A name, or the beginning of an id, may match several.
        if ["/v1/tasks/{id}", "/v1/sandboxes/{id}"]
            .iter()
            .any(|start| self.path.starts_with(start))
        {
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
