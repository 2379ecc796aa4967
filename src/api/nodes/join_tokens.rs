//! Join tokens in the User API: create, list, remove.

use super::{SLUG_PATTERN, check_slug, check_url};
use crate::api::{
    JoinTokenId,
    integer::{check_range, optional_integer},
    problem::Problem,
    string_form::named_enum,
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::time::Duration;

/// Most nodes that one token lets in.
pub const MAX_JOIN_TOKEN_USES: u32 = 1000;
/// Lifetime of a token where none is given.
pub const JOIN_TOKEN_LIFETIME: Duration = Duration::from_hours(1);
/// Longest lifetime of a token.
pub const MAX_JOIN_TOKEN_LIFETIME: Duration = Duration::from_hours(24 * 366);
/// Most nodes of a token that a list names.
pub const MAX_LISTED_NODES: u32 = 20;

named_enum! {
    /// Whether new nodes can join by a token.
    pub enum JoinTokenStatus {
        /// They can.
        Valid,
        /// It has let in as many nodes as it may.
        UsedUp,
        /// It has expired.
        Expired,
        /// The user who created it is disabled or no admin any more.
        Disabled,
        /// Its URL is `http://`, and the control plane is encrypted.
        PlainUrl,
    }
}

/// Body of `POST /v1/join-tokens`; every field may be left out.
#[derive(Default, Deserialize, Serialize, JsonSchema)]
pub struct CreateJoinToken {
    /// Time from which on no new node can join by the token; an hour from now if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Number of new nodes that can join by the token; 1 if absent.
    #[serde(
        default,
        deserialize_with = "uses",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = MAX_JOIN_TOKEN_USES))]
    pub uses: Option<u32>,
    /// Slug of the only node that can join by the token; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = SLUG_PATTERN))]
    pub slug: Option<String>,
    /// URL at which the node reaches the control plane; the one that the orchestrator prints at its start if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Whether the token holds the pin of the control plane's key, by which the node recognizes the orchestrator. True
    /// if absent and the certificate is the orchestrator's own; false for the operator's, whose key may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<bool>,
}

fn uses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    optional_integer(deserializer, 1..=MAX_JOIN_TOKEN_USES)
}

impl CreateJoinToken {
    /// Checks every field at the time `now`.
    pub fn check(&self, now: Time) -> Result<(), Problem> {
        check_range("/uses", self.max_uses(), 1..=MAX_JOIN_TOKEN_USES)?;
        let end = self.end(now);
        if end <= now || end > now.plus(MAX_JOIN_TOKEN_LIFETIME) {
            let days = MAX_JOIN_TOKEN_LIFETIME.as_secs() / (24 * 3600);
            let detail = format!("must be in the future, within {days} days");
            return Err(Problem::field("/expires_at", detail));
        }
        if let Some(slug) = &self.slug {
            check_slug("/slug", slug)?;
        }
        self.url
            .as_ref()
            .map_or(Ok(()), |url| check_url("/url", url))
    }

    /// Time from which on no new node can join.
    pub fn end(&self, now: Time) -> Time {
        self.expires_at
            .unwrap_or_else(|| now.plus(JOIN_TOKEN_LIFETIME))
    }

    /// Number of nodes that can join.
    pub fn max_uses(&self) -> u32 {
        self.uses.unwrap_or(1)
    }
}

/// Join token without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
pub struct JoinTokenView {
    /// Id of the token.
    pub id: JoinTokenId,
    /// Whether new nodes can join by it.
    pub status: JoinTokenStatus,
    /// Slug of the only node that can join by it; absent for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// Number of nodes that can join by it.
    pub uses: u32,
    /// Number of nodes that have joined by it.
    pub used: u32,
    /// Slugs of the nodes that joined by it last.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Handle of the admin who created it.
    pub created_by: String,
    /// Time of its creation.
    pub created_at: Time,
    /// Time from which on no new node can join by it.
    pub expires_at: Time,
    /// URL of the control plane that the token holds; absent for tokens of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl JoinTokenView {
    /// Status at the time `now`.
    pub fn status_at(now: Time, expires_at: Time, (used, uses): (u32, u32)) -> JoinTokenStatus {
        if used >= uses {
            JoinTokenStatus::UsedUp
        } else if expires_at <= now {
            JoinTokenStatus::Expired
        } else {
            JoinTokenStatus::Valid
        }
    }
}

/// Answer of `POST /v1/join-tokens`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct CreatedJoinToken {
    /// The token itself, for `cynode node --join-file`: returned only here.
    pub token: String,
    /// The rest.
    #[serde(flatten)]
    pub details: JoinTokenView,
}

/// Answer of `GET /v1/join-tokens`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct JoinTokenList {
    /// Tokens, newest first.
    pub tokens: Vec<JoinTokenView>,
    /// Empty: the list has one page.
    #[serde(default)]
    pub next_cursor: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Time = Time::from_millis(1_790_000_000_000);

    fn check(body: Value) -> Result<CreateJoinToken, Problem> {
        let create: CreateJoinToken = serde_json::from_value(body).unwrap();
        create.check(NOW).map(|()| create)
    }

    #[test]
    fn token_is_for_one_node_and_hour() {
        let create = check(json!({})).unwrap();
        assert_eq!(create.max_uses(), 1);
        assert_eq!(create.end(NOW), NOW.plus(Duration::from_hours(1)));
    }

    #[test]
    fn invalid_field_of_token_is_named() {
        for (field, value) in [
            ("expires_at", json!(NOW)),
            ("expires_at", json!("2199-12-31T23:59:59Z")),
            ("slug", json!("Box")),
            ("url", json!("ftp://box")),
        ] {
            let problem = check(json!({ field: value })).err().unwrap();
            assert_eq!(problem.errors[0].pointer, format!("#/{field}"));
        }
        for uses in [json!(0), json!(1001), json!("1")] {
            let body = json!({"uses": uses});
            assert!(serde_json::from_value::<CreateJoinToken>(body).is_err());
        }
    }

    #[test]
    fn status_names_what_ended_token() {
        let status = |end, counts| JoinTokenView::status_at(NOW, end, counts);
        let later = NOW.plus(Duration::from_millis(1));
        assert_eq!(status(later, (1, 2)), JoinTokenStatus::Valid);
        assert_eq!(status(NOW, (1, 2)), JoinTokenStatus::Expired);
        assert_eq!(status(NOW, (2, 2)), JoinTokenStatus::UsedUp);
    }
}
