//! Secrets for jobs: set, list, remove, and a new key for all of them. No answer holds a value.

use super::{AppState, authenticate, authenticate_admin};
use crate::{
    api::{
        api_keys::Scope,
        audit::AuditAction,
        error::ApiError,
        problem::{Problem, ProblemKind},
        secrets::{InvalidSecretName, MAX_SECRET_BYTES, SecretName, SecretOwner, check_value},
    },
    http::{
        request::Request,
        response::{self, Reply},
        router::RouterBuilder,
    },
    identity::{Access, Caller},
};
use http::Method;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Keys that may make these calls. One for tasks can't change what other programs get.
const ACCESS: Access = Access::Scope(Scope::All);
const PATH: &str = "/v1/secrets/{name}";

pub(super) fn routes(builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    builder
        .route(Method::GET, "/v1/secrets", list)
        .route(Method::PUT, PATH, set)
        .route(Method::DELETE, PATH, remove)
        .route(Method::POST, "/v1/secrets:rotate-key", rotate_key)
}

async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    response::ok(&state.identity.secret_list(&caller).await?)
}

async fn set(state: Arc<AppState>, mut request: Request) -> Reply {
    let (caller, owner) = caller_for(&state, &request, AuditAction::SecretSet).await?;
    let name: String = request.param("name", "secret")?;
    let name: SecretName = name.parse().map_err(|error: InvalidSecretName| {
        Problem::new(ProblemKind::InvalidRequest, error.to_string())
    })?;
    request.limit_body(MAX_SECRET_BYTES);
    let bytes = Zeroizing::new(request.bytes().await?);
    let value = check_value(&bytes)?;
    let origin = request.origin();
    let set = state
        .identity
        .secret_set(&caller, (owner, name), value, &origin);
    response::ok(&set.await?)
}

async fn remove(state: Arc<AppState>, request: Request) -> Reply {
    let (caller, owner) = caller_for(&state, &request, AuditAction::SecretDelete).await?;
    let name = request.param("name", "secret")?;
    let origin = request.origin();
    let removed = state
        .identity
        .secret_remove(&caller, (owner, name), &origin);
    removed.await?;
    response::no_content()
}

async fn rotate_key(state: Arc<AppState>, request: Request) -> Reply {
    let action = AuditAction::SecretRotateKey;
    let admin = authenticate_admin(&state, &request, ACCESS, action).await?;
    let origin = request.origin();
    let rotated = state.identity.secret_rotate_key(&admin, &origin);
    response::ok(&rotated.await?)
}

/// Caller, and the owner that the query parameter `for` names. For everyone only an admin changes a secret.
async fn caller_for(
    state: &AppState,
    request: &Request,
    action: AuditAction,
) -> Result<(Caller, SecretOwner), ApiError> {
    let everyone = SecretOwner::Everyone.as_str();
    let is_for_all = request.query("for").is_some_and(|owner| owner == everyone);
    let caller = match is_for_all {
        true => authenticate_admin(state, request, ACCESS, action).await?,
        false => authenticate(state, request, ACCESS).await?,
    };
    let owner = request.query_as("for", "me or everyone")?;
    Ok((caller, owner.unwrap_or_default()))
}
