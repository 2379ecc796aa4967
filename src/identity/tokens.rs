//! Tokens: signed ones for users and nodes, and derived ones for Worker APIs.

use super::{ACCESS_TOKEN_LIFETIME, keys::Keys};
use crate::api::{NodeId, SessionId, UserId, error::ApiError, time::Time};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use jwt_simple::prelude::{
    Claims, HS256Key, HashSet, JWTClaims, MACLike as _, VerificationOptions,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::Sha256;
use std::time::Duration;

const USER_AUDIENCE: &str = "cynode-user";
const NODE_AUDIENCE: &str = "cynode-node";
const NODE_TOKEN_LIFETIME: Duration = Duration::from_hours(24 * 90);
/// Tolerated difference between two clocks. The library's default is 15 minutes.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct SessionClaim {
    sid: SessionId,
}

/// Registration of a node's token. Releases before registrations were numbered left it out.
#[derive(Serialize, Deserialize)]
struct RegistrationClaim {
    #[serde(rename = "reg", default)]
    registration: i64,
}

fn options(audience: &str) -> VerificationOptions {
    VerificationOptions {
        allowed_audiences: Some(HashSet::from([audience.to_owned()])),
        time_tolerance: Some(CLOCK_TOLERANCE.into()),
        max_token_length: Some(4096),
        ..VerificationOptions::default()
    }
}

fn issue<C: Serialize + DeserializeOwned>(
    key: &str,
    claims: JWTClaims<C>,
) -> Result<String, ApiError> {
    HS256Key::from_bytes(key.as_bytes())
        .authenticate(claims)
        .map_err(ApiError::internal)
}

fn check<C: Serialize + DeserializeOwned>(
    key: &str,
    audience: &str,
    token: &str,
) -> Option<JWTClaims<C>> {
    HS256Key::from_bytes(key.as_bytes())
        .verify_token(token, Some(options(audience)))
        .ok()
}

pub(super) fn issue_access(
    keys: &Keys,
    user: UserId,
    session: SessionId,
) -> Result<String, ApiError> {
    let claims =
        Claims::with_custom_claims(SessionClaim { sid: session }, ACCESS_TOKEN_LIFETIME.into())
            .with_audience(USER_AUDIENCE)
            .with_subject(user);
    issue(&keys.user_token, claims)
}

pub(super) fn check_access(keys: &Keys, token: &str) -> Option<(UserId, SessionId)> {
    let claims: JWTClaims<SessionClaim> = check(&keys.user_token, USER_AUDIENCE, token)?;
    Some((claims.subject?.parse().ok()?, claims.custom.sid))
}

pub(super) fn issue_node(
    keys: &Keys,
    node: NodeId,
    registration: i64,
) -> Result<(String, Time), ApiError> {
    let claims = Claims::with_custom_claims(
        RegistrationClaim { registration },
        NODE_TOKEN_LIFETIME.into(),
    )
    .with_audience(NODE_AUDIENCE)
    .with_subject(node);
    Ok((
        issue(&keys.node_token, claims)?,
        Time::now().plus(NODE_TOKEN_LIFETIME),
    ))
}

/// Node and registration of a valid token.
pub(super) fn check_node(keys: &Keys, token: &str) -> Option<(NodeId, i64)> {
    let claims: JWTClaims<RegistrationClaim> = check(&keys.node_token, NODE_AUDIENCE, token)?;
    Some((claims.subject?.parse().ok()?, claims.custom.registration))
}

/// Token for a node's Worker API. It is derived, not stored: a stolen database holds no valid token. Each
/// registration has its own; 0 stands for the tokens of releases before registrations were numbered.
pub(super) fn worker_bearer(keys: &Keys, node: NodeId, registration: i64) -> String {
    let mut mac = match Hmac::<Sha256>::new_from_slice(keys.worker_token.as_bytes()) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length"),
    };
    mac.update(b"cynode worker api bearer\0");
    mac.update(node.to_string().as_bytes());
    if registration > 0 {
        mac.update(format!("\0{registration}").as_bytes());
    }
    URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data_dir::DataDir, identity::Keys};

    fn keys() -> (tempfile::TempDir, Keys) {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(&DataDir::open(dir.path()).unwrap(), None).unwrap();
        (dir, keys)
    }

    #[test]
    fn token_kinds_are_not_interchangeable() {
        let (_dir, keys) = keys();
        let (user, session, node) = (UserId::new(), SessionId::new(), NodeId::new());
        let access = issue_access(&keys, user, session).unwrap();
        let (node_token, _) = issue_node(&keys, node, 7).unwrap();
        assert_eq!(check_access(&keys, &access), Some((user, session)));
        assert_eq!(check_node(&keys, &node_token), Some((node, 7)));
        assert_eq!(check_access(&keys, &node_token), None);
        assert_eq!(check_node(&keys, &access), None);
    }

    #[test]
    fn node_tokens_differ_by_registration() {
        let (_dir, keys) = keys();
        let node = NodeId::new();
        let claims = Claims::create(NODE_TOKEN_LIFETIME.into())
            .with_audience(NODE_AUDIENCE)
            .with_subject(node);
        let older = issue(&keys.node_token, claims).unwrap();
        assert_eq!(check_node(&keys, &older), Some((node, 0)));
        let bearers: HashSet<_> = [0, 1, 2, 12].map(|n| worker_bearer(&keys, node, n)).into();
        assert_eq!(bearers.len(), 4);
    }

    #[test]
    fn invalid_tokens_are_refused() {
        let (_dir, keys) = keys();
        let (user, session) = (UserId::new(), SessionId::new());
        let make = |key: &str, audience: &str, life: Duration, age: Duration| {
            let mut claims = Claims::with_custom_claims(SessionClaim { sid: session }, life.into())
                .with_audience(audience)
                .with_subject(user);
            let back =
                |time: Option<jwt_simple::prelude::UnixTimeStamp>| time.map(|t| t - age.into());
            claims.issued_at = back(claims.issued_at);
            claims.invalid_before = back(claims.invalid_before);
            claims.expires_at = back(claims.expires_at);
            issue(key, claims).unwrap()
        };
        let (minute, zero) = (Duration::from_mins(1), Duration::ZERO);
        let good = make(&keys.user_token, USER_AUDIENCE, minute, zero);
        assert!(check_access(&keys, &good).is_some());
        assert!(
            check_access(
                &keys,
                &make(
                    &keys.user_token,
                    USER_AUDIENCE,
                    minute,
                    minute + CLOCK_TOLERANCE * 2
                )
            )
            .is_none()
        );
        assert!(
            check_access(
                &keys,
                &make(
                    &keys.user_token,
                    USER_AUDIENCE,
                    minute,
                    minute + Duration::from_secs(1)
                )
            )
            .is_some()
        );
        assert!(
            check_access(&keys, &make(&keys.user_token, NODE_AUDIENCE, minute, zero)).is_none()
        );
        assert!(
            check_access(
                &keys,
                &make(&"another key ".repeat(4), USER_AUDIENCE, minute, zero)
            )
            .is_none()
        );
        let (payload, signature) = good.rsplit_once('.').unwrap();
        let first = if signature.starts_with('A') { 'B' } else { 'A' };
        assert!(check_access(&keys, &format!("{payload}.{first}{}", &signature[1..])).is_none());
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        let body = payload.split_once('.').unwrap().1;
        assert!(check_access(&keys, &format!("{none}.{body}.")).is_none());
        assert!(check_access(&keys, &format!("{none}.{body}")).is_none());
    }
}
