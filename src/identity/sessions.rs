//! Sessions: opened with a password, kept with refresh tokens, ended immediately.

use super::{
    ACCESS_TOKEN_LIFETIME, Caller, Identity, password::PasswordCheck, throttle::ThrottleKey, tokens,
};
use crate::{
    api::{
        SessionId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        auth::{Tokens, User},
        error::ApiError,
        problem::Problem,
        time::Time,
        users::{MAX_HANDLE_BYTES, MAX_PASSWORD_CHARS},
    },
    digest::sha256_hex,
    secrets::random_secret,
    store::{PasswordProof, RefreshOutcome, UserChange},
};
use std::time::Duration;
use zeroize::Zeroizing;

/// Lifetime of a session without a refresh.
const SESSION_LIFETIME: Duration = Duration::from_hours(24 * 30);

/// Longest part of a handle that the log shows, in bytes.
const MAX_LOGGED_HANDLE_BYTES: usize = 64;

/// Same answer for an unknown handle, a wrong password and a disabled user.
fn wrong_credentials() -> Problem {
    Problem::unauthorized("the handle or the password is wrong")
}

/// Handle as the log shows it: truncated, since strangers choose it. The log quotes and escapes it.
fn for_log(handle: &str) -> String {
    let end = handle.floor_char_boundary(MAX_LOGGED_HANDLE_BYTES);
    let more = if end < handle.len() { "…" } else { "" };
    format!("{}{more}", &handle[..end])
}

fn refresh_token_expired() -> Problem {
    Problem::unauthorized("the refresh token is no longer valid; log in again")
}

impl Identity {
    /// Opens a session for a user with the right password.
    pub async fn login(
        &self,
        handle: String,
        password: Zeroizing<String>,
        origin: &RequestOrigin,
    ) -> Result<Tokens, ApiError> {
        let shown = for_log(&handle);
        let failed = || {
            tracing::warn!(handle = shown, address = %origin.address, "login failed");
            wrong_credentials()
        };
        // Nothing that long was ever accepted, and it would only fill memory and log.
        if handle.len() > MAX_HANDLE_BYTES || password.chars().count() > MAX_PASSWORD_CHARS {
            return Err(wrong_credentials().into());
        }
        let attempt = self.logins.admit(vec![
            ThrottleKey::address(origin.address),
            ThrottleKey::handle_from(origin.address, &handle),
            ThrottleKey::handle(&handle),
        ])?;
        tokio::time::sleep(attempt.delay).await;
        match self.check_login(handle, password, origin).await {
            Ok(Some(tokens)) => {
                attempt.succeed();
                Ok(tokens)
            }
            Ok(None) => Err(failed().into()),
            // An internal error or an overload says nothing about the password.
            Err(problem) => {
                attempt.discard();
                Err(problem)
            }
        }
    }

    /// Tokens of a new session; `None` for a wrong password or a user who may not log in.
    async fn check_login(
        &self,
        handle: String,
        password: Zeroizing<String>,
        origin: &RequestOrigin,
    ) -> Result<Option<Tokens>, ApiError> {
        let found = self.store.user_by_handle(handle).await;
        let found = found?;
        let checked = self.hasher.check(found.clone(), password).await?;
        let event = AuditEvent::new(AuditAction::Login, Time::now(), Some(origin));
        let Some(record) = found else {
            self.record_audit(event.failed("unknown-handle")).await?;
            return Ok(None);
        };
        let event = event.by(record.user.id, &record.user.handle);
        let PasswordCheck::Right { rehashed } = checked else {
            self.record_audit(event.failed("wrong-password")).await?;
            return Ok(None);
        };
        let proof = PasswordProof {
            password_hash: record.password_hash,
            rehashed,
        };
        self.open(record.user, Some(proof), event).await
    }

    /// Opens a session without a password, for the process that owns the data directory. A disabled user is
    /// enabled.
    pub async fn open_session(&self, user: User) -> Result<Tokens, ApiError> {
        let event = |action| AuditEvent::new(action, Time::now(), None);
        if !user.is_active {
            let (id, enable) = (user.id, UserChange::Enable);
            let enabled = self
                .store
                .user_change(id, enable, None, event(AuditAction::UserEnable));
            enabled.await?;
        }
        let event = event(AuditAction::Login).by(user.id, &user.handle);
        let opened = self.open(user, None, event).await?;
        opened.ok_or_else(|| {
            Problem::unauthorized("this user is disabled; ask another admin to enable it").into()
        })
    }

    async fn open(
        &self,
        user: User,
        proof: Option<PasswordProof>,
        event: AuditEvent,
    ) -> Result<Option<Tokens>, ApiError> {
        let refresh = random_secret();
        let ends = event.at.plus(SESSION_LIFETIME);
        let session = self
            .store
            .session_open(user.id, sha256_hex(&refresh), ends, proof, event)
            .await?;
        session
            .map(|session| self.tokens(&user, session, &refresh))
            .transpose()
    }

    /// Exchanges a refresh token for new tokens. Each works once; a second use ends the session.
    pub async fn refresh(&self, token: &str, origin: &RequestOrigin) -> Result<Tokens, ApiError> {
        let refresh = random_secret();
        let event = AuditEvent::new(AuditAction::Refresh, Time::now(), Some(origin));
        let ends = event.at.plus(SESSION_LIFETIME);
        let (old, new, store) = (sha256_hex(token), sha256_hex(&refresh), self.store.clone());
        let owner = self.store.session_owner(old.clone()).await;
        // An unknown token costs no write.
        let owner = owner?.ok_or_else(refresh_token_expired)?;
        self.refreshes.admit(owner)?;
        let write = async move { store.session_refresh(old, new, ends, event).await };
        let is_reused = |outcome: &RefreshOutcome| matches!(outcome, RefreshOutcome::Reused);
        match self.write_and_notify(write, is_reused).await? {
            RefreshOutcome::Rotated { user, session } => self.tokens(&user, session, &refresh),
            RefreshOutcome::Reused => {
                tracing::warn!("refresh token used twice; session revoked");
                Err(Problem::unauthorized(
                    "this refresh token was used before, so its session was ended; log in again",
                )
                .into())
            }
            RefreshOutcome::Dead => Err(refresh_token_expired().into()),
        }
    }

    /// Ends the caller's session, and the caller's other session that `refresh_token` belongs to, if any.
    pub async fn logout(
        &self,
        caller: &Caller,
        refresh_token: Option<String>,
        origin: &RequestOrigin,
    ) -> Result<(), ApiError> {
        let other = refresh_token.as_deref().map(sha256_hex);
        let event = caller.audit_event(AuditAction::Logout, origin);
        let (session, user, store) = (caller.session()?, caller.user.id, self.store.clone());
        let write = async move { store.session_revoke(session, user, other, event).await };
        self.write_and_notify(write, |()| true).await
    }

    fn tokens(&self, user: &User, session: SessionId, refresh: &str) -> Result<Tokens, ApiError> {
        Ok(Tokens {
            access_token: tokens::issue_access(&self.keys, user.id, session)?,
            refresh_token: refresh.to_owned(),
            token_type: "Bearer".to_owned(),
            expires_in: ACCESS_TOKEN_LIFETIME.as_secs(),
        })
    }
}
