//! The caller of a write, checked within the write.

use super::{Authority, CredentialId, StoreError};
use crate::api::time::Time;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

const BY_SESSION: &str = "SELECT u.handle FROM sessions s JOIN users u ON u.id = s.user_id
    WHERE s.id = ?1 AND u.id = ?2 AND s.revoked_at IS NULL AND s.expires_at > ?3
      AND u.is_active AND (u.is_admin OR NOT ?4)";
const BY_KEY: &str = "SELECT u.handle FROM api_keys k JOIN users u ON u.id = k.user_id
    WHERE k.id = ?1 AND u.id = ?2 AND (k.expires_at IS NULL OR k.expires_at > ?3)
      AND u.is_active AND (u.is_admin OR NOT ?4)";

/// Handle of the caller. Fails where their session or key has ended, or their user may not make this write.
pub(super) fn authorize(c: &Connection, by: Authority, now: Time) -> Result<String, StoreError> {
    let Authority { user, admin, .. } = by;
    let handle = |row: &Row<'_>| row.get(0);
    let found = match by.credential {
        CredentialId::Session(id) => c
            .prepare_cached(BY_SESSION)?
            .query_row(params![id, user, now, admin], handle),
        CredentialId::Key(id) => c
            .prepare_cached(BY_KEY)?
            .query_row(params![id, user, now, admin], handle),
    };
    found.optional()?.ok_or(StoreError::NotAuthorized)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, sqlite::query_plan::assert_seeks};

    #[tokio::test]
    async fn authority_is_checked_by_index() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let looked = store.read_blocking(|c| {
            assert_seeks(c, BY_SESSION);
            assert_seeks(c, BY_KEY);
            Ok(())
        });
        looked.await.unwrap();
    }
}
