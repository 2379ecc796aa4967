//! API keys. Only the SHA-256 of a key is stored; a revoked one is deleted.

use super::{
    API_KEY_USE_INTERVAL, ApiKeyFilter, Authority, NewApiKey, Store, StoreError, ValidApiKey,
    audit,
    authority::authorize,
    rows::{execute, parse_document, to_document},
};
use crate::api::{ApiKeyId, UserId, api_keys::ApiKey, audit::AuditEvent, auth::User, time::Time};
use rusqlite::{Connection, Row, named_params, params};
use std::time::Duration;

/// Maximum number of keys of a user.
const MAX_KEYS: u32 = 1000;
/// Time after its end for which an expired key is listed.
pub(super) const EXPIRED_RETENTION: Duration = Duration::from_hours(30 * 24);

const COUNT: &str = "SELECT count(*) FROM api_keys WHERE user_id = ?1";
const VALID: &str = "SELECT k.*, u.handle, u.email, u.is_active, u.is_admin
    FROM api_keys k JOIN users u ON u.id = k.user_id
    WHERE k.key_sha256 = ?1 AND (k.expires_at IS NULL OR k.expires_at > ?2) AND u.is_active";
const IS_VALID: &str = "SELECT 1 FROM api_keys k JOIN users u ON u.id = k.user_id
    WHERE k.id = ?1 AND (k.expires_at IS NULL OR k.expires_at > ?2) AND u.is_active";
const LIST_ALL: &str = "SELECT k.*, u.handle FROM api_keys k JOIN users u ON u.id = k.user_id
    WHERE k.id < :before ORDER BY k.id DESC LIMIT :limit";
const LIST_OWN: &str = "SELECT k.*, u.handle FROM api_keys k JOIN users u ON u.id = k.user_id
    WHERE k.user_id = :owner AND k.id < :before ORDER BY k.id DESC LIMIT :limit";
const GET: &str = "SELECT k.*, u.handle FROM api_keys k JOIN users u ON u.id = k.user_id
    WHERE k.id = ?1 AND (?2 IS NULL OR k.user_id = ?2)";
const TOUCH: &str = "UPDATE api_keys SET last_used_at = ?2
    WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at <= ?3)";
/// Keys that expired before a time.
pub(super) const OLD_API_KEYS: &str = "DELETE FROM api_keys WHERE id IN
    (SELECT id FROM api_keys WHERE expires_at <= ?1 LIMIT ?2)";
/// After every id.
const END: &str = "~";

fn api_key(row: &Row<'_>) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.get("id")?,
        name: row.get("name")?,
        prefix: row.get("prefix")?,
        user: row.get("handle")?,
        scopes: parse_document(&row.get::<_, String>("scopes")?)?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        last_used_at: row.get("last_used_at")?,
    })
}

fn get(c: &Connection, id: ApiKeyId, owner: Option<UserId>) -> Result<Option<ApiKey>, StoreError> {
    let mut statement = c.prepare_cached(GET)?;
    let mut rows = statement.query(params![id, owner])?;
    rows.next()?.map(api_key).transpose()
}

/// Event about a key.
fn about(event: &AuditEvent, key: &ApiKey) -> AuditEvent {
    let names = key.scopes.iter().map(|scope| scope.as_str());
    let scopes = names.collect::<Vec<_>>().join(", ");
    let details = format!("key {:?} of {}: {scopes}", key.name, key.user);
    event.clone().to(&key.prefix).with_details(details)
}

impl Store {
    /// Creates a key of the caller; `None` where they have too many.
    pub async fn api_key_create(
        &self,
        new: NewApiKey,
        by: Authority,
        event: AuditEvent,
    ) -> Result<Option<ApiKey>, StoreError> {
        let id = ApiKeyId::new();
        self.write(move |c| {
            authorize(c, by, event.at)?;
            let count: u32 = c
                .prepare_cached(COUNT)?
                .query_row([by.user], |row| row.get(0))?;
            if count >= MAX_KEYS {
                audit::add(c, &event.clone().failed("conflict"))?;
                return Ok(None);
            }
            execute(c, "INSERT INTO api_keys (id, user_id, name, prefix, key_sha256, scopes, created_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    by.user,
                    new.name,
                    new.prefix,
                    new.key_sha256,
                    to_document(&new.scopes)?,
                    event.at,
                    new.expires_at
                ],
            )?;
            let key = get(c, id, None)?.ok_or(StoreError::Damaged("API key"))?;
            audit::add(c, &about(&event, &key))?;
            Ok(Some(key))
        })
        .await
    }

    /// Keys, newest first, as one of the lists of the user `by`.
    pub async fn api_key_list(
        &self,
        by: UserId,
        filter: ApiKeyFilter,
    ) -> Result<Vec<ApiKey>, StoreError> {
        self.list(by, move |c| {
            let before = filter
                .before
                .map_or_else(|| END.to_owned(), |id| id.to_string());
            let (before, limit) = (&before, filter.limit);
            let mut statement;
            let mut rows = match filter.owner {
                Some(owner) => {
                    statement = c.prepare_cached(LIST_OWN)?;
                    let values =
                        named_params! {":owner": owner, ":before": before, ":limit": limit};
                    statement.query(values)?
                }
                None => {
                    statement = c.prepare_cached(LIST_ALL)?;
                    statement.query(named_params! {":before": before, ":limit": limit})?
                }
            };
            let mut keys = Vec::new();
            while let Some(row) = rows.next()? {
                keys.push(api_key(row)?);
            }
            Ok(keys)
        })
        .await
    }

    /// Key with this SHA-256 and its user, where both are valid.
    pub async fn api_key_by_secret(
        &self,
        key_sha256: String,
        now: Time,
    ) -> Result<Option<ValidApiKey>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(VALID)?;
            let mut rows = statement.query(params![key_sha256, now])?;
            let Some(row) = rows.next()? else {
                return Ok(None);
            };
            let user = User {
                id: row.get("user_id")?,
                handle: row.get("handle")?,
                email: row.get("email")?,
                is_active: row.get("is_active")?,
                is_admin: row.get("is_admin")?,
            };
            let key = api_key(row)?;
            Ok(Some(ValidApiKey { key, user }))
        })
        .await
    }

    /// Whether a key and its user are still valid.
    pub async fn api_key_is_valid(&self, id: ApiKeyId, now: Time) -> Result<bool, StoreError> {
        self.read(move |c| Ok(c.prepare_cached(IS_VALID)?.exists(params![id, now])?))
            .await
    }

    /// Notes that a key was used, unless another use was noted within [`API_KEY_USE_INTERVAL`].
    pub async fn api_key_used(&self, id: ApiKeyId, now: Time) -> Result<(), StoreError> {
        let limit = now.minus(API_KEY_USE_INTERVAL);
        self.write(move |c| {
            c.prepare_cached(TOUCH)?.execute(params![id, now, limit])?;
            Ok(())
        })
        .await
    }

    /// Deletes a key, where it belongs to `owner` or `owner` is `None`; false where there is none.
    pub async fn api_key_revoke(
        &self,
        id: ApiKeyId,
        owner: Option<UserId>,
        by: Authority,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            authorize(c, by, event.at)?;
            let Some(key) = get(c, id, owner)? else {
                return Ok(false);
            };
            execute(c, "DELETE FROM api_keys WHERE id = ?1", [id])?;
            audit::add(c, &about(&event, &key))?;
            Ok(true)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
