//! The caller of a write, checked within the write.

use super::{Authority, StoreError};
use crate::api::time::Time;
use rusqlite::{Connection, params};

/// Fails where the session of the caller has ended, or its user may not make this write.
pub(super) fn authorize(c: &Connection, by: Authority, now: Time) -> Result<(), StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT 1 FROM sessions s JOIN users u ON u.id = s.user_id
         WHERE s.id = ?1 AND u.id = ?2 AND s.revoked_at IS NULL AND s.expires_at > ?3
           AND u.is_active AND (u.is_admin OR NOT ?4)",
    )?;
    if statement.exists(params![by.session, by.user, now, by.admin])? {
        Ok(())
    } else {
        Err(StoreError::NotAuthorized)
    }
}
