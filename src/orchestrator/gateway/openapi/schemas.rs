//! The schemas of wire types, in the two directions that they travel.
//!
//! What we take may leave an optional field out or set it to null. What we give leaves it out.

use super::operation::Make;
use schemars::{
    Schema, SchemaGenerator,
    generate::{Contract, SchemaSettings},
    transform::{Transform, transform_subschemas},
};
use serde_json::{Map, Value, json};

/// Collects the schemas that a document names.
pub(super) struct Schemas {
    taken: SchemaGenerator,
    given: SchemaGenerator,
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
            taken: generator(Contract::Deserialize),
            given: generator(Contract::Serialize),
        }
    }
}

impl Schemas {
    /// The schema of a parameter or a body.
    pub(super) fn request(&mut self, make: Make) -> Value {
        make(&mut self.taken).to_value()
    }

    /// The schema of an answer.
    pub(super) fn answer(&mut self, make: Make) -> Value {
        make(&mut self.given).to_value()
    }

    /// All that were named, by name. One that travels both ways is the same in both.
    pub(super) fn all(mut self) -> Map<String, Value> {
        let mut all = Map::new();
        for (generator, nullable) in [(&mut self.taken, true), (&mut self.given, false)] {
            for (name, value) in generator.take_definitions(false) {
                let Ok(mut schema) = Schema::try_from(value) else {
                    continue;
                };
                Plain { nullable }.transform(&mut schema);
                all.insert(name, schema.to_value());
            }
        }
        all
    }
}

/// Writes schemas as generators of clients understand them best.
struct Plain {
    nullable: bool,
}

impl Transform for Plain {
    fn transform(&mut self, schema: &mut Schema) {
        // What an absent field means is in its description.
        schema.remove("default");
        enumerate(schema);
        if !self.nullable {
            forbid_null(schema);
        }
        transform_subschemas(self, schema);
    }
}

/// `enum` for a choice of names; what each means moves to the description.
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
    *schema = schemars::json_schema!({"type": "string", "enum": names, "description": description});
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
