//! Join tokens: secrets with which an admin lets new nodes in. The secret is returned once, and stored as its SHA-256.

use super::{Caller, Identity};
use crate::{
    api::{
        JoinTokenId,
        audit::{AuditAction, RequestOrigin},
        error::ApiError,
        nodes::{CreateJoinToken, CreatedJoinToken, JoinToken, JoinTokenList},
        problem::{Problem, ProblemKind},
        time::Time,
    },
    digest::sha256_hex,
    secrets::random_secret,
    store::NewJoinToken,
    tls::Pin,
};

impl Identity {
    /// Creates a token of an admin, for nodes that reach the control plane at `url`. The request was checked.
    pub async fn join_token_create(
        &self,
        admin: &Caller,
        create: CreateJoinToken,
        (url, pin): (String, Option<Pin>),
        origin: &RequestOrigin,
    ) -> Result<CreatedJoinToken, ApiError> {
        let secret = random_secret();
        let new = NewJoinToken {
            secret_sha256: sha256_hex(secret.as_bytes()),
            uses: create.max_uses(),
            expires_at: create.end(Time::now()),
            slug: create.slug,
            url: url.clone(),
        };
        let event = admin.audit_event(AuditAction::JoinTokenCreate, origin);
        let created = self
            .store
            .join_token_create(new, admin.admin_authority(), event);
        let details = created.await?.ok_or_else(|| {
            let detail = "there are as many join tokens as an orchestrator may have; remove some (DELETE \
                          /v1/join-tokens/{id}, cynode nodes token rm)";
            Problem::new(ProblemKind::Conflict, detail)
        })?;
        let token = JoinToken { url, pin, secret };
        Ok(CreatedJoinToken {
            token: token.to_string(),
            details,
        })
    }

    /// Lists the tokens that are not removed, newest first.
    pub async fn join_token_list(&self, admin: &Caller) -> Result<JoinTokenList, ApiError> {
        let tokens = self.store.join_token_list(admin.user.id, Time::now());
        Ok(JoinTokenList {
            tokens: tokens.await?,
            next_cursor: String::new(),
        })
    }

    /// Removes a token. Nodes that joined by it stay, but can't register again by it.
    pub async fn join_token_remove(
        &self,
        admin: &Caller,
        id: JoinTokenId,
        origin: &RequestOrigin,
    ) -> Result<(), ApiError> {
        let event = admin.audit_event(AuditAction::JoinTokenRemove, origin);
        let removed = self
            .store
            .join_token_remove(id, admin.admin_authority(), event);
        if removed.await? {
            Ok(())
        } else {
            Err(Problem::not_found("join token").into())
        }
    }
}
