//! Secrets that a job names, and the variables that get their values.

use super::SecretName;
use crate::api::{
    jobs::{ENV_NAME_PATTERN, Env, check_env},
    problem::Problem,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{borrow::Cow, fmt};

/// Most secrets that a job can name.
pub const MAX_JOB_SECRETS: usize = 32;

/// Secret as a request names it: by its name alone, or with another variable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum SecretInput {
    /// The variable has the name of the secret.
    Name(SecretName),
    /// The variable has a name of its own.
    Renamed(RenamedSecret),
}

/// Secret with the variable that gets its value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RenamedSecret {
    /// Name of the secret.
    pub name: SecretName,
    /// Environment variable; one with the name of the secret if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
}

impl<'de> Deserialize<'de> for SecretInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InputVisitor;
        impl<'de> Visitor<'de> for InputVisitor {
            type Value = SecretInput;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a secret, or an object with name and env")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretInput, E> {
                text.parse().map(SecretInput::Name).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SecretInput, A::Error> {
                RenamedSecret::deserialize(MapAccessDeserializer::new(map))
                    .map(SecretInput::Renamed)
            }
        }
        deserializer.deserialize_any(InputVisitor)
    }
}

impl JsonSchema for SecretInput {
    fn schema_name() -> Cow<'static, str> {
        "SecretInput".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = generator.subschema_for::<SecretName>();
        json_schema!({
            "oneOf": [
                name.clone(),
                {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": name,
                        "env": {
                            "description": "Environment variable; one with the name of the secret if absent.",
                            "type": ["string", "null"],
                            "pattern": ENV_NAME_PATTERN,
                        },
                    },
                },
            ],
        })
    }
}

/// Secret of a job, as it is stored and sent: the name, never the value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// Name of the secret.
    pub name: SecretName,
    /// Environment variable that gets its value.
    pub env: String,
}

/// As `--secret` names it: `NAME`, or `NAME:ENV`.
impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_str())?;
        if self.env == self.name.as_str() {
            return Ok(());
        }
        write!(f, ":{}", self.env)
    }
}

impl From<SecretInput> for SecretRef {
    fn from(input: SecretInput) -> Self {
        let (name, env) = match input {
            SecretInput::Name(name) => (name, None),
            SecretInput::Renamed(renamed) => (renamed.name, renamed.env),
        };
        Self {
            env: env.unwrap_or_else(|| name.to_string()),
            name,
        }
    }
}

/// Checks the secrets of a request, and names the variable of each. `env` are the variables that the request sets
/// itself; `pointer` names the field in the problem.
pub fn resolve(
    pointer: &str,
    inputs: Option<Vec<SecretInput>>,
    env: Option<&Env>,
) -> Result<Vec<SecretRef>, Problem> {
    let refs = inputs.unwrap_or_default();
    if refs.len() > MAX_JOB_SECRETS {
        let detail = format!(
            "must have at most {MAX_JOB_SECRETS} secrets, got {}",
            refs.len()
        );
        return Err(Problem::field(pointer, detail));
    }
    let refs = refs.into_iter().map(SecretRef::from).collect::<Vec<_>>();
    check(pointer, &refs, env)?;
    Ok(refs)
}

/// Checks the variables of secrets: valid names, each once, and none that `env` sets, too.
pub(in crate::api) fn check(
    pointer: &str,
    refs: &[SecretRef],
    env: Option<&Env>,
) -> Result<(), Problem> {
    for (n, secret) in refs.iter().enumerate() {
        let at = format!("{pointer}/{n}");
        let variable = Env::from([(secret.env.clone(), String::new())]);
        check_env(&at, Some(&variable)).map_err(|problem| {
            let what = problem
                .errors
                .first()
                .map_or("", |error| error.detail.as_str());
            Problem::field(
                &at,
                format!("has the variable {:?}, which {what}", secret.env),
            )
        })?;
        if refs[..n].iter().any(|other| other.env == secret.env) {
            let detail = format!(
                "sets the variable {} a second time; give one of the secrets another env",
                secret.env
            );
            return Err(Problem::field(&at, detail));
        }
        if env.is_some_and(|env| env.contains_key(&secret.env)) {
            let detail = format!(
                "sets the variable {}, which env sets, too; leave it out of one of them",
                secret.env
            );
            return Err(Problem::field(&at, detail));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolved(secrets: Value) -> Result<Vec<(String, String)>, String> {
        let inputs: Vec<SecretInput> =
            serde_json::from_value(secrets).map_err(|error| error.to_string())?;
        let env = Env::from([("TAKEN".to_owned(), "x".to_owned())]);
        let refs = resolve("/secrets", Some(inputs), Some(&env)).map_err(|problem| {
            let error = problem.errors.first().unwrap();
            format!("{} {}", error.pointer, error.detail)
        })?;
        Ok(refs
            .into_iter()
            .map(|secret| (secret.name.to_string(), secret.env))
            .collect())
    }

    #[test]
    fn secret_is_named_by_text_or_object() {
        let found = resolved(json!(["A", {"name": "B", "env": "b"}, {"name": "C"}]));
        let expected = [("A", "A"), ("B", "b"), ("C", "C")];
        let expected = expected.map(|(name, env)| (name.to_owned(), env.to_owned()));
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn same_secret_may_set_two_variables() {
        assert!(resolved(json!(["A", {"name": "A", "env": "B"}])).is_ok());
    }

    #[test]
    fn invalid_secret_of_job_is_named() {
        for secrets in [
            json!(["A", "A"]),
            json!(["A", "TAKEN"]),
            json!(["A", {"name": "B", "env": "A"}]),
            json!(["A", {"name": "B", "env": "1"}]),
            json!(["A", {"name": "B", "env": ""}]),
            json!(["A", {"name": "B", "env": "CYNODE_JOB_ID"}]),
        ] {
            let error = resolved(secrets.clone()).unwrap_err();
            assert!(error.starts_with("#/secrets/1 "), "{secrets}: {error}");
        }
        let names = (0..=MAX_JOB_SECRETS).map(|n| format!("A{n}"));
        assert!(resolved(names.collect::<Vec<_>>().into()).is_err());
        for secrets in [json!(["a"]), json!([7]), json!([{"env": "A"}])] {
            assert!(resolved(secrets).is_err());
        }
    }
}
