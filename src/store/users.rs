//! People.

use super::{Store, StoreError};
use crate::api::{UserId, auth::User, time::Time};
use rusqlite::{OptionalExtension as _, Row, params};

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
    /// Whether the user is an admin.
    pub is_admin: bool,
}

const COLUMNS: &str = "id, handle, email, is_active, is_admin, password_hash";

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<UserRecord> {
    let user = User {
        id: row.get("id")?,
        handle: row.get("handle")?,
        email: row.get("email")?,
        is_active: row.get("is_active")?,
        is_admin: row.get("is_admin")?,
    };
    Ok(UserRecord {
        user,
        password_hash: row.get("password_hash")?,
    })
}

impl Store {
    /// Whether there is any user at all; there is none only before the first start is through.
    pub async fn user_any(&self) -> Result<bool, StoreError> {
        self.read(|c| Ok(c.query_row("SELECT EXISTS (SELECT 1 FROM users)", [], |row| row.get(0))?))
            .await
    }

    /// Makes a user.
    pub async fn user_create(&self, new: NewUser, now: Time) -> Result<UserId, StoreError> {
        let id = UserId::new();
        self.write(move |c| {
            c.execute(
                "INSERT INTO users (id, handle, password_hash, is_admin, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
                params![id, new.handle, new.password_hash, new.is_admin, now],
            )?;
            Ok(id)
        })
        .await
    }

    /// The user of this handle.
    pub async fn user_by_handle(&self, handle: String) -> Result<Option<UserRecord>, StoreError> {
        self.read(move |c| {
            let sql = format!("SELECT {COLUMNS} FROM users WHERE handle = ?1");
            Ok(c.query_row(&sql, [handle], record).optional()?)
        })
        .await
    }
}
