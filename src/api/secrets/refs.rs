//! Secrets that a job names, and the variables that get their values or placeholders.

use super::{
    SecretName,
    edge::{DEFAULT_HEADER, HEADER_PATTERN, MAX_HEADER_BYTES, header_name},
};
use crate::api::{
    egress::HostPort,
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

/// Secret as a request names it: by its name alone, or with more about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum SecretInput {
    /// The variable has the name of the secret.
    Name(SecretName),
    /// The variable has a name of its own, or only a host gets the value.
    Detailed(DetailedSecret),
}

/// Secret with its variable, and with the host that alone gets its value. An unknown field is refused, unlike elsewhere:
/// where it is a misspelt `host`, or one that restricts the use in a later release, the job would get the value itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetailedSecret {
    /// Name of the secret.
    pub name: SecretName,
    /// Environment variable; one with the name of the secret if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Host whose requests get the value; the variable then has a placeholder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostPort>,
    /// Header of these requests; `authorization` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

impl SecretInput {
    /// Host that alone gets the value.
    pub fn host(&self) -> Option<&HostPort> {
        match self {
            Self::Name(_) => None,
            Self::Detailed(secret) => secret.host.as_ref(),
        }
    }

    /// Checked form of the secret that is named at `pointer`.
    fn resolve(self, pointer: &str) -> Result<SecretRef, Problem> {
        let DetailedSecret {
            name,
            env,
            host,
            header,
        } = match self {
            Self::Name(name) => DetailedSecret {
                name,
                env: None,
                host: None,
                header: None,
            },
            Self::Detailed(secret) => secret,
        };
        let refuse = |detail: String| Problem::field(&format!("{pointer}/header"), detail);
        let header = match header {
            Some(_) if host.is_none() => {
                let detail = "needs host, the one whose requests get the secret; without a host, leave header out";
                return Err(refuse(detail.to_owned()));
            }
            Some(text) => Some(header_name(&text).map_err(|error| refuse(error.to_string()))?),
            None => host.as_ref().map(|_| DEFAULT_HEADER.to_owned()),
        };
        Ok(SecretRef {
            env: env.unwrap_or_else(|| name.to_string()),
            name,
            host,
            header,
        })
    }
}

impl<'de> Deserialize<'de> for SecretInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InputVisitor;
        impl<'de> Visitor<'de> for InputVisitor {
            type Value = SecretInput;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a secret, or an object with its name")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretInput, E> {
                text.parse().map(SecretInput::Name).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SecretInput, A::Error> {
                DetailedSecret::deserialize(MapAccessDeserializer::new(map))
                    .map(SecretInput::Detailed)
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
        let host = generator.subschema_for::<HostPort>();
        json_schema!({
            "oneOf": [
                name.clone(),
                {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": false,
                    "properties": {
                        "name": name,
                        "env": {
                            "description": "Environment variable; one with the name of the secret if absent.",
                            "type": ["string", "null"],
                            "pattern": ENV_NAME_PATTERN,
                        },
                        "host": {
                            "description": "Host that alone gets the value, through the proxy: the variable has a placeholder. \
                                            One that the job may reach, and at port 443 one in egress.terminate.",
                            "anyOf": [host, {"type": "null"}],
                        },
                        "header": {
                            "description": "Header of requests to the host in which the placeholder is replaced; \
                                            authorization if absent. Only with host.",
                            "type": ["string", "null"],
                            "maxLength": MAX_HEADER_BYTES,
                            "pattern": HEADER_PATTERN,
                        },
                    },
                    "if": {"required": ["header"], "properties": {"header": {"type": "string"}}},
                    "then": {"required": ["host"], "properties": {"host": {"type": "string"}}},
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
    /// Environment variable that gets its value, or a placeholder where there is a `host`.
    pub env: String,
    /// Host that alone gets the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostPort>,
    /// Header of requests to the host in which the placeholder is replaced, in lower case; there exactly where `host` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

impl SecretRef {
    /// Whether the job never sees its value: the proxy puts it into requests to one host.
    pub fn is_at_edge(&self) -> bool {
        self.host.is_some()
    }
}

/// As `--secret` names it: `NAME[:ENV][@HOST[:PORT][/HEADER]]`.
impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_str())?;
        if self.env != self.name.as_str() {
            write!(f, ":{}", self.env)?;
        }
        let Some(host) = &self.host else {
            return Ok(());
        };
        write!(f, "@{host}")?;
        match self.header.as_deref() {
            None | Some(DEFAULT_HEADER) => Ok(()),
            Some(header) => write!(f, "/{header}"),
        }
    }
}

/// Checks the secrets of a request, and names the variable of each, and its header. Whether the job reaches their hosts is
/// checked apart from that. `env` are the variables that the request sets itself; `pointer` names the field in the problem.
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
    let refs = refs.into_iter().enumerate();
    let refs = refs.map(|(n, input)| input.resolve(&format!("{pointer}/{n}")));
    let refs = refs.collect::<Result<Vec<_>, Problem>>()?;
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
            json!(["A", {"name": "A", "host": "a.b"}]),
        ] {
            let error = resolved(secrets.clone()).unwrap_err();
            assert!(error.starts_with("#/secrets/1 "), "{secrets}: {error}");
        }
        let names = (0..=MAX_JOB_SECRETS).map(|n| format!("A{n}"));
        assert!(resolved(names.collect::<Vec<_>>().into()).is_err());
        for secrets in [
            json!(["a"]),
            json!([7]),
            json!([{"env": "A"}]),
            json!([{"name": "A", "host": "*.a.b"}]),
        ] {
            assert!(resolved(secrets).is_err());
        }
    }
}
