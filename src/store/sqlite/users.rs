//! Users. Each change is committed together with its event in the audit log.

use super::{
    Authority, BUSY_TIMEOUT, NewUser, Store, StoreError, UserChange, UserChangeOutcome, UserRecord,
    audit, authority::authorize, sessions,
};
use crate::api::{UserId, audit::AuditEvent, auth::User, time::Time};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};
use std::{collections::HashMap, path::Path};

/// Whether the database at `path` has users. An orchestrator may run on it.
pub fn has_users(path: &Path) -> Result<bool, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    any(&connection)
}

fn any(c: &Connection) -> Result<bool, StoreError> {
    Ok(c.query_row("SELECT EXISTS (SELECT 1 FROM users)", [], |row| row.get(0))?)
}

const COLUMNS: &str = "id, handle, email, is_active, is_admin, password_hash";

const LIST: &str = "SELECT id, handle, email, is_active, is_admin FROM users
    WHERE handle > ?1 ORDER BY handle LIMIT ?2";

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<UserRecord> {
    Ok(UserRecord {
        user: user(row)?,
        password_hash: row.get("password_hash")?,
    })
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: row.get("id")?,
        handle: row.get("handle")?,
        email: row.get("email")?,
        is_active: row.get("is_active")?,
        is_admin: row.get("is_admin")?,
    })
}

fn get(c: &Connection, id: UserId) -> Result<Option<User>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM users WHERE id = ?1");
    Ok(c.query_row(&sql, [id], user).optional()?)
}

/// Applies a change to the row of a user; false where it would disable the last active admin, or where the proven
/// password has changed.
fn apply(c: &Connection, id: UserId, change: &UserChange, now: Time) -> Result<bool, StoreError> {
    let changed = match change {
        UserChange::Enable => c.execute(
            "UPDATE users SET is_active = 1, updated_at = ?2 WHERE id = ?1",
            params![id, now],
        ),
        UserChange::Disable => c.execute(
            "UPDATE users SET is_active = 0, updated_at = ?2 WHERE id = ?1
             AND (NOT (is_admin AND is_active)
                  OR EXISTS (SELECT 1 FROM users WHERE is_admin AND is_active AND id <> ?1))",
            params![id, now],
        ),
        UserChange::Password(hash) => c.execute(
            "UPDATE users SET password_hash = ?2, updated_at = ?3 WHERE id = ?1",
            params![id, hash, now],
        ),
        UserChange::OwnPassword { current, new, .. } => c.execute(
            "UPDATE users SET password_hash = ?3, updated_at = ?4 WHERE id = ?1 AND password_hash = ?2",
            params![id, current, new, now],
        ),
        UserChange::RevokeSessions => Ok(1),
    };
    Ok(changed? > 0)
}

impl Store {
    /// Whether any user exists; none does before the first start has finished.
    pub async fn user_any(&self) -> Result<bool, StoreError> {
        self.read(any).await
    }

    /// Creates a user; `None` when the handle is taken. `by` is missing at the first start only.
    pub async fn user_create(
        &self,
        new: NewUser,
        by: Option<Authority>,
        event: AuditEvent,
    ) -> Result<Option<User>, StoreError> {
        let id = UserId::new();
        self.write(move |c| {
            by.map(|by| authorize(c, by, event.at)).transpose()?;
            let created = c.execute(
                "INSERT INTO users (id, handle, password_hash, email, is_admin, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) ON CONFLICT (handle) DO NOTHING",
                params![id, new.handle, new.password_hash, new.email, new.is_admin, event.at],
            )?;
            let event = event.clone().to(&new.handle);
            if created == 0 {
                audit::add(c, &event.failed("conflict"))?;
                return Ok(None);
            }
            audit::add(c, &event)?;
            get(c, id)
        })
        .await
    }

    /// Changes a user; `by` is missing for a process that has the data directory.
    pub async fn user_change(
        &self,
        id: UserId,
        change: UserChange,
        by: Option<Authority>,
        event: AuditEvent,
    ) -> Result<UserChangeOutcome, StoreError> {
        self.write(move |c| {
            by.map(|by| authorize(c, by, event.at)).transpose()?;
            let Some(user) = get(c, id)? else {
                audit::add(c, &event.clone().failed("not-found"))?;
                return Ok(UserChangeOutcome::Unknown);
            };
            let (now, event) = (event.at, event.clone().to(user.handle));
            if !apply(c, id, &change, now)? {
                let (reason, outcome) = match change {
                    UserChange::OwnPassword { .. } => {
                        ("password-changed", UserChangeOutcome::PasswordChanged)
                    }
                    _ => ("last-admin", UserChangeOutcome::LastAdmin),
                };
                audit::add(c, &event.failed(reason))?;
                return Ok(outcome);
            }
            match change {
                UserChange::Enable => {}
                UserChange::OwnPassword { keep, .. } => {
                    sessions::revoke_all(c, id, Some(keep), now)?;
                }
                _ => sessions::revoke_all(c, id, None, now)?,
            }
            audit::add(c, &event)?;
            Ok(UserChangeOutcome::Done)
        })
        .await
    }

    /// User of this handle.
    pub async fn user_by_handle(&self, handle: String) -> Result<Option<UserRecord>, StoreError> {
        self.read(move |c| {
            let sql = format!("SELECT {COLUMNS} FROM users WHERE handle = ?1");
            Ok(c.query_row(&sql, [&handle], record).optional()?)
        })
        .await
    }

    /// Handles of all users by id, as one of the lists of the user `by`.
    pub async fn user_handles(&self, by: UserId) -> Result<HashMap<UserId, String>, StoreError> {
        self.list(by, |c| {
            let mut statement = c.prepare_cached("SELECT id, handle FROM users")?;
            let handles = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(handles.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Users by handle, from the one after `after` on, as one of the lists of the user `by`.
    pub async fn user_list(
        &self,
        by: UserId,
        after: Option<String>,
        limit: u32,
    ) -> Result<Vec<User>, StoreError> {
        self.list(by, move |c| {
            let mut statement = c.prepare_cached(LIST)?;
            // No handle is empty.
            let after = after.as_deref().unwrap_or_default();
            let users = statement.query_map(params![after, limit], user)?;
            Ok(users.collect::<Result<_, _>>()?)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::query_plan::assert_seeks;

    #[tokio::test]
    async fn user_list_uses_index() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let looked = store.read_blocking(|c| {
            assert_seeks(c, LIST);
            Ok(())
        });
        looked.await.unwrap();
    }
}
