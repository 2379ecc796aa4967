//! People. What changes one is written together with who changed it.

use super::{
    BUSY_TIMEOUT, Store, StoreError, audit,
    sessions::{self, Authority, authorize},
};
use crate::api::{UserId, audit::AuditEvent, auth::User};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};
use std::path::Path;

/// Whether the database at `path` has users. Reads it beside an orchestrator that may run.
pub fn has_users(path: &Path) -> Result<bool, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    any(&connection)
}

fn any(c: &Connection) -> Result<bool, StoreError> {
    Ok(c.query_row("SELECT EXISTS (SELECT 1 FROM users)", [], |row| row.get(0))?)
}

/// A user with what only identity may see.
#[derive(Clone)]
pub struct UserRecord {
    /// What anybody may see.
    pub user: User,
    /// PHC string, argon2id.
    pub password_hash: String,
}

/// A user to be made.
pub struct NewUser {
    /// The name used to log in.
    pub handle: String,
    /// PHC string, argon2id.
    pub password_hash: String,
    /// Mail address, where one was given.
    pub email: Option<String>,
    /// Whether the user is an admin.
    pub is_admin: bool,
}

/// What to do to a user.
pub enum UserChange {
    /// Lets them in again.
    Enable,
    /// Keeps them out; ends their sessions.
    Disable,
    /// Ends their sessions.
    RevokeSessions,
    /// Gives them another password, as a PHC string; ends their sessions.
    Password(String),
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserChangeOutcome {
    /// It is done.
    Done,
    /// There is no such user.
    Unknown,
    /// Nobody would be left to administrate.
    LastAdmin,
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

/// Whether another active admin than this one remains.
fn another_admin(c: &Connection, id: UserId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM users WHERE is_admin AND is_active AND id <> ?1)";
    Ok(c.query_row(sql, [id], |row| row.get(0))?)
}

impl Store {
    /// Whether there is any user at all; there is none only before the first start is through.
    pub async fn user_any(&self) -> Result<bool, StoreError> {
        self.read(any).await
    }

    /// Makes a user; `None` when the handle is taken. `by` nobody only at the first start.
    pub async fn user_create(
        &self,
        new: NewUser,
        by: Option<Authority>,
        event: AuditEvent,
    ) -> Result<Option<User>, StoreError> {
        let id = UserId::new();
        self.write(move |c| {
            by.map_or(Ok(()), |by| authorize(c, by, event.at))?;
            let made = c.execute(
                "INSERT INTO users (id, handle, password_hash, email, is_admin, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) ON CONFLICT (handle) DO NOTHING",
                params![id, new.handle, new.password_hash, new.email, new.is_admin, event.at],
            )?;
            let event = event.to(new.handle);
            if made == 0 {
                audit::add(c, &event.failed("conflict"))?;
                return Ok(None);
            }
            audit::add(c, &event)?;
            get(c, id)
        })
        .await
    }

    /// Changes a user; `by` nobody for a process that has the data directory in its hands.
    pub async fn user_change(
        &self,
        id: UserId,
        change: UserChange,
        by: Option<Authority>,
        event: AuditEvent,
    ) -> Result<UserChangeOutcome, StoreError> {
        self.write(move |c| {
            by.map_or(Ok(()), |by| authorize(c, by, event.at))?;
            let Some(user) = get(c, id)? else {
                audit::add(c, &event.failed("not-found"))?;
                return Ok(UserChangeOutcome::Unknown);
            };
            let (now, event) = (event.at, event.to(user.handle));
            let was_admin = user.is_admin && user.is_active;
            if matches!(change, UserChange::Disable) && was_admin && !another_admin(c, id)? {
                audit::add(c, &event.failed("last-admin"))?;
                return Ok(UserChangeOutcome::LastAdmin);
            }
            match &change {
                UserChange::Enable | UserChange::Disable => c.execute(
                    "UPDATE users SET is_active = ?2, updated_at = ?3 WHERE id = ?1",
                    params![id, matches!(change, UserChange::Enable), now],
                )?,
                UserChange::Password(hash) => c.execute(
                    "UPDATE users SET password_hash = ?2, updated_at = ?3 WHERE id = ?1",
                    params![id, hash, now],
                )?,
                UserChange::RevokeSessions => 0,
            };
            if !matches!(change, UserChange::Enable) {
                sessions::revoke_all(c, id, now)?;
            }
            audit::add(c, &event)?;
            Ok(UserChangeOutcome::Done)
        })
        .await
    }

    /// The user of this handle.
    pub async fn user_by_handle(&self, handle: String) -> Result<Option<UserRecord>, StoreError> {
        self.read(move |c| {
            let sql = format!("SELECT {COLUMNS} FROM users WHERE handle = ?1");
            Ok(c.query_row(&sql, [&handle], record).optional()?)
        })
        .await
    }

    /// Users by handle, from the one after `after` on, in a turn of the user `by`.
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
    use crate::store::query_plan::assert_seeks;

    #[tokio::test]
    async fn users_are_listed_by_an_index() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let looked = store.read_blocking(|c| {
            assert_seeks(c, LIST);
            Ok(())
        });
        looked.await.unwrap();
    }
}
