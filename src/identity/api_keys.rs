//! API keys: bearer tokens for programs. The secret is returned once, and stored as its SHA-256.

use super::{Access, Caller, Credential, Identity, page};
use crate::{
    api::{
        ApiKeyId,
        api_keys::{ApiKeyList, CreateApiKey, CreatedApiKey, KEY_PREFIX},
        audit::{AuditAction, RequestOrigin},
        error::ApiError,
        problem::{Problem, ProblemKind},
        time::Time,
    },
    background::spawn,
    digest::sha256_hex,
    errors,
    secrets::{check_random_secret, random_secret},
    store::{ApiKeyFilter, NewApiKey, ValidApiKey},
};
use std::time::Duration;
use zeroize::Zeroizing;

/// Characters of the secret that the prefix shows: enough to tell keys apart, with 208 bits left to guess.
const SHOWN_CHARS: usize = 8;
/// Longest wait of a call for the note of its key's use. A disk that hangs then delays no further call by more.
const NOTE_TIMEOUT: Duration = Duration::from_millis(200);

fn invalid() -> Problem {
    Problem::unauthorized(
        "the API key is invalid, has expired or was revoked; create another one (POST /v1/keys, cynode keys create)",
    )
}

impl Identity {
    /// Caller with a valid API key.
    pub(super) async fn key_caller(&self, token: &str) -> Result<Caller, ApiError> {
        // Guesses that can't be keys cost no read.
        let secret = token.strip_prefix(KEY_PREFIX).unwrap_or_default();
        check_random_secret(secret).map_err(|_| invalid())?;
        let now = Time::now();
        let found = self.store.api_key_by_secret(sha256_hex(token), now).await?;
        let found = found.ok_or_else(invalid)?;
        self.requests.admit(found.user.id)?;
        self.note_use(&found, now).await;
        let ValidApiKey { key, user } = found;
        let credential = Credential::Key(Box::new(key));
        Ok(Caller { user, credential })
    }

    /// Notes that a key was used, for the list of keys. A failure, such as a full disk, must not fail the call.
    async fn note_use(&self, found: &ValidApiKey, now: Time) {
        if !found.is_use_due(now) {
            return;
        }
        let (store, id) = (self.store.clone(), found.key.id);
        let note = spawn("api_key_use", async move {
            if let Err(error) = store.api_key_used(id, now).await {
                let error = errors::chain(&error);
                tracing::debug!(error, key = %id, "use of an API key was not noted");
            }
        });
        if tokio::time::timeout(NOTE_TIMEOUT, note).await.is_err() {
            tracing::debug!(key = %id, "note of an API key's use is slow");
        }
    }

    /// Creates a key of the caller.
    pub async fn api_key_create(
        &self,
        caller: &Caller,
        create: CreateApiKey,
        origin: &RequestOrigin,
    ) -> Result<CreatedApiKey, ApiError> {
        create.check(Time::now())?;
        let key = Zeroizing::new(format!("{KEY_PREFIX}{}", *random_secret()));
        let new = NewApiKey {
            prefix: key[..KEY_PREFIX.len() + SHOWN_CHARS].to_owned(),
            key_sha256: sha256_hex(key.as_bytes()),
            scopes: create.scopes(),
            name: create.name,
            expires_at: create.expires_at,
        };
        let event = caller.audit_event(AuditAction::KeyCreate, origin);
        let created = self.store.api_key_create(new, caller.authority(), event);
        let details = created.await?.ok_or_else(|| {
            let detail = "you have as many API keys as a user may have; revoke some (DELETE /v1/keys/{id}, cynode keys revoke)";
            Problem::new(ProblemKind::Conflict, detail)
        })?;
        Ok(CreatedApiKey {
            key: key.to_string(),
            details,
        })
    }

    /// Lists the keys of the caller, those of all users for an admin, newest first.
    pub async fn api_key_list(
        &self,
        caller: &Caller,
        before: Option<ApiKeyId>,
        limit: u32,
    ) -> Result<ApiKeyList, ApiError> {
        let filter = ApiKeyFilter {
            owner: caller.visible_owner(),
            before,
            limit: limit + 1,
        };
        let keys = self.store.api_key_list(caller.user.id, filter).await?;
        let (keys, has_more) = page(keys, limit);
        let last = keys.last().filter(|_| has_more);
        Ok(ApiKeyList {
            next_cursor: last.map_or_else(String::new, |key| key.id.to_string()),
            keys,
        })
    }

    /// Revokes a key of the caller, of any user for an admin. Calls and streams under way with it end.
    pub async fn api_key_revoke(
        &self,
        caller: &Caller,
        id: ApiKeyId,
        origin: &RequestOrigin,
    ) -> Result<(), ApiError> {
        let event = caller.audit_event(AuditAction::KeyRevoke, origin);
        let (owner, by, store) = (
            caller.visible_owner(),
            caller.authority(),
            self.store.clone(),
        );
        let write = async move { store.api_key_revoke(id, owner, by, event).await };
        if self.write_and_notify(write, |revoked| *revoked).await? {
            Ok(())
        } else {
            Err(Problem::not_found("API key").into())
        }
    }

    /// Fails with 403, and with an audit event, where the key of a caller is not for the call.
    pub(super) async fn check_access(
        &self,
        caller: &Caller,
        access: Access,
        origin: &RequestOrigin,
    ) -> Result<(), ApiError> {
        match access.check(&caller.credential) {
            Ok(()) => Ok(()),
            Err(problem) => {
                self.deny(caller, AuditAction::KeyUse, problem, origin)
                    .await
            }
        }
    }
}
