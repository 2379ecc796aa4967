//! Secrets that tasks and sandboxes name: checked when one is created, and recorded in the audit log by their names.

use super::AppState;
use crate::{
    api::{
        TaskId, UserId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        jobs::SandboxSpec,
    },
    errors,
    identity::Caller,
};

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

/// Event of a new job that gets secrets; `None` for one without.
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

/// Records that a job which is stored gets secrets.
pub(super) async fn record_use(state: &AppState, event: Option<AuditEvent>, task: TaskId) {
    let Some(event) = event else { return };
    let recorded = state.store.audit_add(event.to(task.to_string())).await;
    if let Err(error) = recorded {
        let error = errors::chain(&error);
        tracing::warn!(%task, error, "use of secrets not recorded in the audit log");
    }
}
