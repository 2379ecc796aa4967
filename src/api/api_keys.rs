//! API keys: tokens for programs, with scopes and an optional end (contract, section 6).

use super::{ApiKeyId, problem::Problem, string_form::named_enum, time::Time};
use crate::text::clean;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Beginning of every key, by which people and scanners of secrets recognize one.
pub const KEY_PREFIX: &str = "cyk_";
/// Longest name of a key, in characters.
pub const MAX_NAME_CHARS: usize = 100;

named_enum! {
    /// Calls that a key may make.
    pub enum Scope {
        /// Ask models, and list them.
        Inference,
        /// Create and follow tasks, upload and download their files, and list nodes.
        Tasks,
        /// Create and use sandboxes, and list nodes.
        Sandboxes,
        /// Everything that the user may do, except for users, keys and logins.
        All,
    }
}

impl Scope {
    /// Whether a key with these scopes may make a call of this scope.
    pub fn is_within(self, scopes: &[Self]) -> bool {
        scopes.contains(&self) || scopes.contains(&Self::All)
    }
}

/// Body of `POST /v1/keys`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct CreateApiKey {
    /// Name of the key, for people: printable, not necessarily unique.
    #[schemars(length(min = 1, max = MAX_NAME_CHARS))]
    pub name: String,
    /// Time from which on the key is invalid; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Calls that the key may make; `all` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub scopes: Option<Vec<Scope>>,
}

impl CreateApiKey {
    /// Checks every field at the time `now`.
    pub fn check(&self, now: Time) -> Result<(), Problem> {
        let length = self.name.chars().count();
        if !(1..=MAX_NAME_CHARS).contains(&length)
            || self.name.trim() != self.name
            || clean(&self.name) != self.name
        {
            let expected = format!(
                "must be 1 to {MAX_NAME_CHARS} printable characters, without spaces at its ends"
            );
            return Err(Problem::field("/name", expected));
        }
        if self.expires_at.is_some_and(|end| end <= now) {
            return Err(Problem::field(
                "/expires_at",
                "must be in the future; leave it out for a key that does not expire",
            ));
        }
        if self.scopes.as_ref().is_some_and(Vec::is_empty) {
            let names = Scope::ALL.iter().map(|scope| scope.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            return Err(Problem::field(
                "/scopes",
                format!("must name at least one of {names}; leave it out for all"),
            ));
        }
        Ok(())
    }

    /// Scopes of the key, each once and in the order of their definition.
    pub fn scopes(&self) -> Vec<Scope> {
        let given = self.scopes.as_deref().unwrap_or(&[Scope::All]);
        let all = Scope::ALL.iter().copied();
        all.filter(|scope| given.contains(scope)).collect()
    }
}

/// API key without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
pub struct ApiKey {
    /// Id of the key.
    pub id: ApiKeyId,
    /// Name of the key.
    pub name: String,
    /// Beginning of the key, by which to recognize it.
    pub prefix: String,
    /// Handle of the user to whom the key belongs.
    pub user: String,
    /// Calls that the key may make.
    pub scopes: Vec<Scope>,
    /// Time of its creation.
    pub created_at: Time,
    /// Time from which on the key is invalid; absent if it does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Time of its last use, to the minute; absent if it was never used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
}

/// Answer of `POST /v1/keys`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct CreatedApiKey {
    /// The key itself, a bearer token: returned only here.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub details: ApiKey,
}

/// Answer of `GET /v1/keys`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct ApiKeyList {
    /// Keys, newest first.
    pub keys: Vec<ApiKey>,
    /// Value of `cursor` for the next page; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Time = Time::from_millis(1_790_000_000_000);

    fn create(body: Value) -> CreateApiKey {
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn invalid_field_of_key_is_named() {
        for (field, value) in [
            ("name", json!("")),
            ("name", json!(" ci")),
            ("name", json!("ci\n")),
            ("name", json!("a\u{1b}[2Jb")),
            ("name", json!("é".repeat(101))),
            ("expires_at", json!(NOW)),
            ("expires_at", json!("1999-12-31T23:59:59Z")),
            ("scopes", json!([])),
        ] {
            let mut body = json!({"name": "ci"});
            body[field] = value;
            let problem = create(body).check(NOW).unwrap_err();
            assert_eq!(problem.errors[0].pointer, format!("#/{field}"));
        }
    }

    #[test]
    fn scopes_are_sorted_and_unique() {
        let scopes = |body| {
            let body = create(body);
            body.check(NOW).unwrap();
            body.scopes()
        };
        assert_eq!(scopes(json!({"name": "é".repeat(100)})), [Scope::All]);
        let null = json!({"name": "a b", "scopes": null, "expires_at": null});
        assert_eq!(scopes(null), [Scope::All]);
        let doubled = json!({"name": "ci", "scopes": ["tasks", "inference", "tasks"]});
        assert_eq!(scopes(doubled), [Scope::Inference, Scope::Tasks]);
    }

    #[test]
    fn scope_all_includes_every_scope() {
        for scope in Scope::ALL {
            assert!(scope.is_within(&[Scope::All]) && scope.is_within(&[*scope]));
            assert!(!scope.is_within(&[]));
        }
        assert!(!Scope::All.is_within(&[Scope::Inference, Scope::Tasks, Scope::Sandboxes]));
        assert!(!Scope::Tasks.is_within(&[Scope::Inference, Scope::Sandboxes]));
    }
}
