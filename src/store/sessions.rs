//! Logins and their refresh tokens.

use super::{Store, StoreError, audit, users};
use crate::api::{SessionId, UserId, audit::AuditEvent, auth::User, time::Time};
use rusqlite::{Connection, OptionalExtension as _, params};

/// Who asks for a write, looked at again in the write itself: between the look at the start of a request
/// and its end, in which a body comes and a password is hashed, the session may have ended.
#[derive(Clone, Copy, Debug)]
pub struct Authority {
    /// By which login.
    pub session: SessionId,
    /// Who.
    pub user: UserId,
    /// Whether only an admin may ask for it.
    pub admin: bool,
}

/// Fails where who asked may not any more.
pub(super) fn authorize(c: &Connection, by: Authority, now: Time) -> Result<(), StoreError> {
    let lives: bool = c
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM sessions s JOIN users u ON u.id = s.user_id
             WHERE s.id = ?1 AND u.id = ?2 AND s.revoked_at IS NULL AND s.expires_at > ?3
               AND u.is_active AND (u.is_admin OR NOT ?4))",
        )?
        .query_row(params![by.session, by.user, now, by.admin], |row| {
            row.get(0)
        })?;
    if lives {
        Ok(())
    } else {
        Err(StoreError::NotAuthorized)
    }
}

/// The password hash that a login was checked against. It opens a session only while it is still the
/// user's, so that no login with an old password outlives the change of it.
pub struct PasswordProof {
    /// What was checked.
    pub password_hash: String,
    /// The same password hashed anew, to be stored in its place.
    pub anew: Option<String>,
}

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

/// Most sessions of a user.
const MAX_SESSIONS: u32 = 1000;

impl Store {
    /// Opens a session with its first refresh token; `None` when the user may not log in (any more).
    /// Without a proof for whoever has the database anyway.
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
            let now = event.at;
            if !may_open(c, user, proof.as_ref())? {
                audit::add(c, &event.failed("disabled-or-changed"))?;
                return Ok(None);
            }
            delete_expired(c, user, now)?;
            c.execute(
                "INSERT INTO sessions (id, user_id, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)",
                params![id, user, now, expires_at],
            )?;
            add_token(c, id, &token_sha256, expires_at)?;
            audit::add(c, &event)?;
            Ok(Some(id))
        })
        .await
    }

    /// Whose refresh token this is or was.
    pub async fn session_owner(&self, token_sha256: String) -> Result<Option<UserId>, StoreError> {
        let shown = self.read(move |c| shown(c, &token_sha256)).await?;
        Ok(shown.map(|shown| shown.user.id))
    }

    /// Trades one refresh token for another, once.
    pub async fn session_refresh(
        &self,
        old_sha256: String,
        new_sha256: String,
        expires_at: Time,
        event: AuditEvent,
    ) -> Result<RefreshOutcome, StoreError> {
        self.write(move |c| {
            let Some(shown) = shown(c, &old_sha256)? else {
                return Ok(RefreshOutcome::Dead);
            };
            let (now, user, session) = (event.at, shown.user, shown.session);
            let event = event.by(user.id, user.handle.clone());
            let dead = shown.revoked || shown.expires_at <= now || !user.is_active;
            if dead && shown.used {
                // It was written down the first time; a client that insists fills no log.
                return Ok(RefreshOutcome::Dead);
            }
            c.execute(
                "UPDATE refresh_tokens SET used_at = coalesce(used_at, ?2) WHERE token_sha256 = ?1",
                params![old_sha256, now],
            )?;
            if dead {
                audit::add(c, &event.failed("expired-or-revoked"))?;
                return Ok(RefreshOutcome::Dead);
            }
            if shown.used {
                revoke(c, session, now)?;
                audit::add(c, &event.failed("reused"))?;
                return Ok(RefreshOutcome::Reused);
            }
            c.execute(
                "DELETE FROM refresh_tokens WHERE session_id = ?1 AND expires_at <= ?2",
                params![session, now],
            )?;
            c.execute(
                "UPDATE sessions SET expires_at = ?2 WHERE id = ?1",
                params![session, expires_at],
            )?;
            add_token(c, session, &new_sha256, expires_at)?;
            audit::add(c, &event)?;
            Ok(RefreshOutcome::Rotated { user, session })
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
        event: AuditEvent,
    ) -> Result<(), StoreError> {
        self.write(move |c| {
            let now = event.at;
            revoke(c, session, now)?;
            audit::add(c, &event)?;
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

/// A refresh token that was shown.
struct Shown {
    session: SessionId,
    user: User,
    expires_at: Time,
    used: bool,
    revoked: bool,
}

fn shown(c: &Connection, token_sha256: &str) -> Result<Option<Shown>, StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT t.session_id, t.expires_at AS ends, t.used_at IS NOT NULL AS used,
                s.revoked_at IS NOT NULL AS revoked, u.*
         FROM refresh_tokens t
         JOIN sessions s ON s.id = t.session_id
         JOIN users u ON u.id = s.user_id
         WHERE t.token_sha256 = ?1",
    )?;
    let found = statement.query_row([token_sha256], |row| {
        Ok(Shown {
            session: row.get("session_id")?,
            user: users::record(row)?.user,
            expires_at: row.get("ends")?,
            used: row.get("used")?,
            revoked: row.get("revoked")?,
        })
    });
    Ok(found.optional()?)
}

/// Whether a user may log in with this proof; stores the hash made anew, if there is one.
fn may_open(
    c: &Connection,
    user: UserId,
    proof: Option<&PasswordProof>,
) -> Result<bool, StoreError> {
    let checked = proof.map(|proof| &proof.password_hash);
    let may: bool = c.query_row(
        "SELECT EXISTS (SELECT 1 FROM users WHERE id = ?1 AND is_active
         AND (?2 IS NULL OR password_hash = ?2))",
        params![user, checked],
        |row| row.get(0),
    )?;
    if let (true, Some(anew)) = (may, proof.and_then(|proof| proof.anew.as_ref())) {
        c.execute(
            "UPDATE users SET password_hash = ?2 WHERE id = ?1",
            params![user, anew],
        )?;
    }
    Ok(may)
}

/// Clears away what a user's past logins have left.
fn delete_expired(c: &Connection, user: UserId, now: Time) -> Result<(), StoreError> {
    c.execute(
        "DELETE FROM refresh_tokens WHERE session_id IN
         (SELECT id FROM sessions WHERE user_id = ?1 AND expires_at <= ?2)",
        params![user, now],
    )?;
    c.execute(
        "DELETE FROM sessions WHERE user_id = ?1 AND expires_at <= ?2",
        params![user, now],
    )?;
    // Ids sort by time. Who logs in without end loses the oldest logins, not the disk.
    c.execute(
        "UPDATE sessions SET revoked_at = coalesce(revoked_at, ?2), expires_at = ?2 WHERE id IN
         (SELECT id FROM sessions WHERE user_id = ?1 ORDER BY id DESC LIMIT -1 OFFSET ?3)",
        params![user, now, MAX_SESSIONS],
    )?;
    Ok(())
}

/// Ends all sessions of a user.
pub(super) fn revoke_all(c: &Connection, user: UserId, now: Time) -> Result<(), StoreError> {
    c.execute(
        "UPDATE sessions SET revoked_at = ?2 WHERE user_id = ?1 AND revoked_at IS NULL",
        params![user, now],
    )?;
    Ok(())
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
