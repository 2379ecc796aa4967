//! Secrets that tasks and sandboxes name: checked when one is created, and recorded in the audit log by their names. A start
//! looks for those whose key is lost.

use super::AppState;
use crate::{
    api::{
        UserId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        jobs::SandboxSpec,
    },
    errors,
    identity::Caller,
};

/// Warns of secrets whose key is lost, as after a restore of the database without `keys/`. Their tasks would be the first
/// to show it.
pub(super) async fn warn_of_lost_keys(state: &AppState) {
    match state.identity.secrets_without_key().await {
        Ok(0) => {}
        Ok(secrets) => tracing::warn!(
            secrets,
            "secrets can't be decrypted: keys/secrets.key lacks their key; add its lines in a backup of keys/ to that file \
             and start again, or set the secrets again (cynode secrets set)"
        ),
        Err(error) => {
            let error = errors::chain(&error);
            tracing::warn!(error, "keys of secrets not checked");
        }
    }
}

/// Fails where a new job of this user can't get the secrets that it names.
pub(super) async fn check(
    state: &AppState,
    user: UserId,
    sandbox: &SandboxSpec,
) -> Result<(), ApiError> {
    if sandbox.secrets.is_empty() {
        return Ok(());
    }
    // Their values are read again for each attempt.
    state
        .identity
        .secrets_of_user(user, &sandbox.secrets)
        .await?;
    Ok(())
}

/// Event of a new job that gets secrets, which is stored with it; `None` for one without.
pub(super) fn use_event(
    caller: &Caller,
    sandbox: &SandboxSpec,
    origin: &RequestOrigin,
) -> Option<AuditEvent> {
    let names = sandbox.secrets.iter().map(|secret| secret.name.as_str());
    let names = names.collect::<Vec<_>>().join(", ");
    let event = caller.audit_event(AuditAction::SecretUse, origin);
    (!names.is_empty()).then(|| event.with_details(names))
}
