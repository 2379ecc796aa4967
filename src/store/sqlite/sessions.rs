//! Sessions and their refresh tokens.

use super::{PasswordProof, RefreshOutcome, Store, StoreError, audit, rows::execute, users};
use crate::api::{SessionId, UserId, audit::AuditEvent, auth::User, time::Time};
use rusqlite::{Connection, OptionalExtension as _, params};

/// Maximum number of sessions of a user.
const MAX_SESSIONS: u32 = 1000;

impl Store {
    /// Opens a session with its first refresh token; `None` when the user may not log in (any more). The
    /// proof is missing where no password was checked, for a process that has the data directory.
    pub async fn session_open(
        &self,
        user: UserId,
        token_sha256: String,
        expires_at: Time,
        proof: Option<PasswordProof>,
        event: AuditEvent,
    ) -> Result<Option<SessionId>, StoreError> {
        let id = SessionId::new();
        self.write(move |c| {
            let (now, event) = (event.at, event.clone());
            delete_expired(c, user, now)?;
            if !insert(c, id, user, expires_at, proof.as_ref(), now)? {
                audit::add(c, &event.failed("disabled-or-changed"))?;
                return Ok(None);
            }
            if let Some(proof) = &proof {
                rehash(c, user, proof)?;
            }
            add_token(c, id, &token_sha256, expires_at)?;
            audit::add(c, &event)?;
            Ok(Some(id))
        })
        .await
    }

    /// User of a refresh token, valid or not.
    pub async fn session_owner(&self, token_sha256: String) -> Result<Option<UserId>, StoreError> {
        let token = self.read(move |c| token(c, &token_sha256)).await?;
        Ok(token.map(|token| token.user.id))
    }

    /// Exchanges one refresh token for another, once.
    pub async fn session_refresh(
        &self,
        old_sha256: String,
        new_sha256: String,
        expires_at: Time,
        event: AuditEvent,
    ) -> Result<RefreshOutcome, StoreError> {
        self.write(move |c| {
            let now = event.at;
            // The claim is one statement, so that of two concurrent uses one is the second.
            let claim = "UPDATE refresh_tokens SET used_at = ?2 WHERE token_sha256 = ?1 AND used_at IS NULL";
            let is_first = execute(c, claim, params![old_sha256, now])? > 0;
            let Some(token) = token(c, &old_sha256)? else {
                return Ok(RefreshOutcome::Dead);
            };
            let (user, session) = (token.user, token.session);
            let event = event.clone().by(user.id, user.handle.clone());
            if token.is_revoked || token.expires_at <= now || !user.is_active {
                // Logged at the first use only; a client that repeats it fills no log.
                if is_first {
                    audit::add(c, &event.failed("expired-or-revoked"))?;
                }
                return Ok(RefreshOutcome::Dead);
            }
            if !is_first {
                revoke(c, session, now)?;
                audit::add(c, &event.failed("reused"))?;
                return Ok(RefreshOutcome::Reused);
            }
            execute(c, "DELETE FROM refresh_tokens WHERE session_id = ?1 AND expires_at <= ?2",
                params![session, now],
            )?;
            execute(c, "UPDATE sessions SET expires_at = ?2 WHERE id = ?1",
                params![session, expires_at],
            )?;
            add_token(c, session, &new_sha256, expires_at)?;
            audit::add(c, &event)?;
            Ok(RefreshOutcome::Rotated { user, session })
        })
        .await
    }

    /// User of a session that is valid.
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

    /// Revokes a session and, where a refresh token of the same user is given, the session of that token.
    pub async fn session_revoke(
        &self,
        session: SessionId,
        user: UserId,
        token_sha256: Option<String>,
        event: AuditEvent,
    ) -> Result<(), StoreError> {
        self.write(move |c| {
            let now = event.at;
            revoke(c, session, now)?;
            audit::add(c, &event)?;
            let other = token_sha256
                .as_ref()
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

/// Refresh token with its session and user.
struct Token {
    session: SessionId,
    user: User,
    expires_at: Time,
    is_revoked: bool,
}

fn token(c: &Connection, token_sha256: &str) -> Result<Option<Token>, StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT t.session_id, t.expires_at AS ends, s.revoked_at IS NOT NULL AS revoked, u.*
         FROM refresh_tokens t
         JOIN sessions s ON s.id = t.session_id
         JOIN users u ON u.id = s.user_id
         WHERE t.token_sha256 = ?1",
    )?;
    let found = statement.query_row([token_sha256], |row| {
        Ok(Token {
            session: row.get("session_id")?,
            user: users::record(row)?.user,
            expires_at: row.get("ends")?,
            is_revoked: row.get("revoked")?,
        })
    });
    Ok(found.optional()?)
}

/// Inserts a session in one statement, which fails where the user is disabled or the proof is no longer the
/// password of the user.
fn insert(
    c: &Connection,
    id: SessionId,
    user: UserId,
    expires_at: Time,
    proof: Option<&PasswordProof>,
    now: Time,
) -> Result<bool, StoreError> {
    let proven = proof.map(|proof| &proof.password_hash);
    let inserted = execute(
        c,
        "INSERT INTO sessions (id, user_id, created_at, expires_at)
         SELECT ?1, id, ?3, ?4 FROM users
         WHERE id = ?2 AND is_active AND (?5 IS NULL OR password_hash = ?5)",
        params![id, user, now, expires_at, proven],
    )?;
    Ok(inserted > 0)
}

/// Stores the new hash of the password that was proven, if there is one.
fn rehash(c: &Connection, user: UserId, proof: &PasswordProof) -> Result<(), StoreError> {
    execute(
        c,
        "UPDATE users SET password_hash = ?3 WHERE id = ?1 AND password_hash = ?2 AND ?3 IS NOT NULL",
        params![user, proof.password_hash, proof.rehashed],
    )?;
    Ok(())
}

/// Deletes the expired sessions of a user, and ends the oldest where a new one would exceed [`MAX_SESSIONS`].
fn delete_expired(c: &Connection, user: UserId, now: Time) -> Result<(), StoreError> {
    execute(
        c,
        "DELETE FROM refresh_tokens WHERE session_id IN
         (SELECT id FROM sessions WHERE user_id = ?1 AND expires_at <= ?2)",
        params![user, now],
    )?;
    execute(
        c,
        "DELETE FROM sessions WHERE user_id = ?1 AND expires_at <= ?2",
        params![user, now],
    )?;
    // Ids sort by time. A client that logs in endlessly ends its oldest sessions instead of filling the disk.
    execute(
        c,
        "UPDATE sessions SET revoked_at = coalesce(revoked_at, ?2), expires_at = ?2 WHERE id IN
         (SELECT id FROM sessions WHERE user_id = ?1 ORDER BY id DESC LIMIT -1 OFFSET ?3)",
        params![user, now, MAX_SESSIONS],
    )?;
    Ok(())
}

/// Revokes all sessions of a user, except `keep`.
pub(super) fn revoke_all(
    c: &Connection,
    user: UserId,
    keep: Option<SessionId>,
    now: Time,
) -> Result<(), StoreError> {
    execute(
        c,
        "UPDATE sessions SET revoked_at = ?2
         WHERE user_id = ?1 AND revoked_at IS NULL AND (?3 IS NULL OR id <> ?3)",
        params![user, now, keep],
    )?;
    Ok(())
}

fn add_token(
    c: &Connection,
    session: SessionId,
    token_sha256: &str,
    expires_at: Time,
) -> Result<(), StoreError> {
    execute(
        c,
        "INSERT INTO refresh_tokens (token_sha256, session_id, expires_at) VALUES (?1, ?2, ?3)",
        params![token_sha256, session, expires_at],
    )?;
    Ok(())
}

fn revoke(c: &Connection, session: SessionId, now: Time) -> Result<(), StoreError> {
    execute(
        c,
        "UPDATE sessions SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1",
        params![session, now],
    )?;
    Ok(())
}
