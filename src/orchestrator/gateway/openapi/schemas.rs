//! Schemas of wire types, in both directions.
//!
//! A request may leave an optional field out or set it to null; an answer leaves it out.

use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    generate::{Contract, SchemaSettings},
    json_schema,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Map, Value, json};

/// Pattern of the id of an event.
const EVENT_ID: &str = "[0-9]{1,9}-[0-9]{1,18}";

/// Function that makes a schema; the types that it names go to the generator.
pub(super) type SchemaFn = fn(&mut SchemaGenerator) -> Schema;

/// Schema of a wire type.
pub(super) fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Schema of any text.
pub(super) fn any_text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string"})
}

/// Schema of bytes of any kind. Generators of clients know them by `format`, from OpenAPI 3.0; 3.1 names the media type.
pub(super) fn octets(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"})
}

/// Schema of a server-sent event with one of these names.
pub(super) fn event(names: &[&str]) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["id", "event", "data"],
        "properties": {
            "id": {"type": "string", "pattern": format!("^{EVENT_ID}$")},
            "event": {"type": "string", "enum": names},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
    })
}

/// Schema of the id of an event, or of nothing.
pub(super) fn last_event_id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": format!("^({EVENT_ID})?$")})
}

/// Collection of the schemas that a document names.
pub(super) struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Default for Schemas {
    fn default() -> Self {
        let generator = |contract| {
            SchemaSettings::draft2020_12()
                .with(|settings| {
                    settings.definitions_path = "/components/schemas".into();
                    settings.contract = contract;
                })
                .into_generator()
        };
        Self {
            requests: generator(Contract::Deserialize),
            answers: generator(Contract::Serialize),
        }
    }
}

impl Schemas {
    /// Schema of a parameter or a body.
    pub(super) fn request(&mut self, make: SchemaFn) -> Value {
        make(&mut self.requests).to_value()
    }

    /// Schema of an answer.
    pub(super) fn answer(&mut self, make: SchemaFn) -> Value {
        make(&mut self.answers).to_value()
    }

    /// All named schemas. A type that travels in both directions has the same schema in both.
    pub(super) fn all(mut self) -> Map<String, Value> {
        let mut all = Map::new();
        for (generator, nullable) in [(&mut self.requests, true), (&mut self.answers, false)] {
            for (name, value) in generator.take_definitions(false) {
                let Ok(mut schema) = Schema::try_from(value) else {
                    continue;
                };
                ForGenerators { nullable }.transform(&mut schema);
                all.insert(name, schema.to_value());
            }
        }
        all
    }
}

/// Transformation of schemas into the form that client generators understand best.
struct ForGenerators {
    nullable: bool,
}

impl Transform for ForGenerators {
    fn transform(&mut self, schema: &mut Schema) {
        // The description says what an absent field means.
        schema.remove("default");
        enumerate(schema);
        if !self.nullable {
            forbid_null(schema);
        }
        transform_subschemas(self, schema);
    }
}

/// Writes a choice of names as `enum`, and their meanings into the description.
fn enumerate(schema: &mut Schema) {
    let Some(choices) = schema.get("oneOf").and_then(Value::as_array) else {
        return;
    };
    let mut names = Vec::new();
    let mut meanings = String::new();
    for choice in choices {
        let Some(name) = choice.get("const").and_then(Value::as_str) else {
            return;
        };
        let meaning = choice.get("description").and_then(Value::as_str);
        meanings += &format!("\n- `{name}`: {}", meaning.unwrap_or_default());
        names.push(name.to_owned());
    }
    let description = schema.get("description").and_then(Value::as_str);
    let description = format!("{}\n{meanings}", description.unwrap_or_default());
    *schema = json_schema!({"type": "string", "enum": names, "description": description});
}

fn forbid_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| *choice != json!({"type": "null"}));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            for (key, value) in only {
                schema.insert(key, value);
            }
        }
    }
}
