//! Logins and their refresh tokens.

use super::{Store, StoreError, users};
use crate::api::{SessionId, UserId, auth::User, time::Time};
use rusqlite::{Connection, OptionalExtension as _, params};

/// What became of a refresh token that was shown.
pub enum RefreshOutcome {
    /// It was good; the session goes on with the new one.
    Rotated {
        /// Whose session.
        user: User,
        /// Which session.
        session: SessionId,
    },
    /// It had been used before: the session is revoked.
    Reused,
    /// Unknown, expired, revoked, or of a user who may not log in.
    Dead,
}

impl Store {
    /// Opens a session with its first refresh token.
    pub async fn session_open(
        &self,
        user: UserId,
        token_sha256: String,
        now: Time,
        expires_at: Time,
    ) -> Result<SessionId, StoreError> {
        let id = SessionId::new();
        self.write(move |c| {
            c.execute(
                "INSERT INTO sessions (id, user_id, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)",
                params![id, user, now, expires_at],
            )?;
            add_token(c, id, &token_sha256, expires_at)?;
            Ok(id)
        })
        .await
    }

    /// Trades one refresh token for another, once.
    pub async fn session_refresh(
        &self,
        old_sha256: String,
        new_sha256: String,
        now: Time,
        expires_at: Time,
    ) -> Result<RefreshOutcome, StoreError> {
        self.write(move |c| {
            let found = c
                .query_row(
                    "SELECT t.session_id, t.used_at IS NOT NULL AS used, u.*
                     FROM refresh_tokens t
                     JOIN sessions s ON s.id = t.session_id
                     JOIN users u ON u.id = s.user_id
                     WHERE t.token_sha256 = ?1 AND t.expires_at > ?2 AND s.revoked_at IS NULL AND u.is_active",
                    params![old_sha256, now],
                    |row| Ok((row.get("session_id")?, row.get("used")?, users::record(row)?)),
                )
                .optional()?;
            let Some((session, used, record)): Option<(SessionId, bool, users::UserRecord)> = found else {
                return Ok(RefreshOutcome::Dead);
            };
            if used {
                revoke(c, session, now)?;
                return Ok(RefreshOutcome::Reused);
            }
            c.execute("UPDATE refresh_tokens SET used_at = ?2 WHERE token_sha256 = ?1", params![old_sha256, now])?;
            c.execute("UPDATE sessions SET expires_at = ?2 WHERE id = ?1", params![session, expires_at])?;
            add_token(c, session, &new_sha256, expires_at)?;
            Ok(RefreshOutcome::Rotated { user: record.user, session })
        })
        .await
    }

    /// The user of a session that still lives.
    pub async fn session_user(
        &self,
        session: SessionId,
        user: UserId,
        now: Time,
    ) -> Result<Option<User>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT u.* FROM sessions s JOIN users u ON u.id = s.user_id
                 WHERE s.id = ?1 AND u.id = ?2 AND s.revoked_at IS NULL AND s.expires_at > ?3 AND u.is_active",
            )?;
            let found = statement.query_row(params![session, user, now], users::record).optional()?;
            Ok(found.map(|record| record.user))
        })
        .await
    }

    /// Ends a session and, where one is named, the session of a refresh token of the same user.
    pub async fn session_revoke(
        &self,
        session: SessionId,
        user: UserId,
        token_sha256: Option<String>,
        now: Time,
    ) -> Result<(), StoreError> {
        self.write(move |c| {
            revoke(c, session, now)?;
            let other = token_sha256
                .map(|token| {
                    c.query_row(
                        "SELECT s.id FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id
                         WHERE t.token_sha256 = ?1 AND s.user_id = ?2",
                        params![token, user],
                        |row| row.get(0),
                    )
                    .optional()
                })
                .transpose()?
                .flatten();
            other.map_or(Ok(()), |other| revoke(c, other, now))
        })
        .await
    }
}

fn add_token(
    c: &Connection,
    session: SessionId,
    token_sha256: &str,
    expires_at: Time,
) -> Result<(), StoreError> {
    c.execute(
        "INSERT INTO refresh_tokens (token_sha256, session_id, expires_at) VALUES (?1, ?2, ?3)",
        params![token_sha256, session, expires_at],
    )?;
    Ok(())
}

fn revoke(c: &Connection, session: SessionId, now: Time) -> Result<(), StoreError> {
    c.execute(
        "UPDATE sessions SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1",
        params![session, now],
    )?;
    Ok(())
}
