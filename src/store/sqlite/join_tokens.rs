//! Join tokens. Only the SHA-256 of a secret is stored. A removed token stays for a while, so that whoever still has it
//! learns that it was removed.

use super::{
    Authority, JoinRefusal, JoinTokenState, NewJoinToken, Store, StoreError, audit,
    authority::authorize, rows::execute,
};
use crate::api::{
    JoinTokenId, UserId,
    audit::AuditEvent,
    nodes::{JoinTokenStatus, JoinTokenView, MAX_LISTED_NODES},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::time::Duration;

/// Maximum number of tokens that are not removed.
const MAX_TOKENS: u32 = 1000;
/// Time for which a token is known that was removed, or that expired and has no node.
pub(super) const RETENTION: Duration = Duration::from_hours(30 * 24);

const COUNT: &str = "SELECT count(*) FROM join_tokens WHERE removed_at IS NULL";
const INSERT: &str =
    "INSERT INTO join_tokens (id, secret_sha256, slug, max_uses, created_by, created_at, expires_at, url)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const LIST: &str = "SELECT t.*, u.handle, u.is_active AND u.is_admin AS is_by_admin,
        (SELECT count(*) FROM join_token_uses j WHERE j.token_id = t.id) AS used
     FROM join_tokens t JOIN users u ON u.id = t.created_by
     WHERE t.removed_at IS NULL ORDER BY t.id DESC";
const GET: &str = "SELECT t.*, u.handle, u.is_active AND u.is_admin AS is_by_admin,
        (SELECT count(*) FROM join_token_uses j WHERE j.token_id = t.id) AS used
     FROM join_tokens t JOIN users u ON u.id = t.created_by
     WHERE t.id = ?1 AND t.removed_at IS NULL";
const NODES: &str = "SELECT slug FROM join_token_uses WHERE token_id = ?1
     ORDER BY used_at DESC, slug LIMIT ?2";
const BY_SECRET: &str = "SELECT id FROM join_tokens WHERE secret_sha256 = ?1";
const STATE: &str = "SELECT t.slug, t.max_uses, t.expires_at, t.removed_at IS NOT NULL,
        (SELECT count(*) FROM join_token_uses j WHERE j.token_id = t.id),
        EXISTS (SELECT 1 FROM join_token_uses j
                WHERE j.token_id = t.id AND j.node_key_sha256 = ?2 AND j.slug = ?3),
        u.is_active AND u.is_admin
     FROM join_tokens t JOIN users u ON u.id = t.created_by WHERE t.id = ?1";
/// Deletes of tokens that were removed by a time, or have expired and let no known node in again, up to a number of
/// rows. Uses go before their token.
pub(super) const OLD_JOIN_TOKENS: [&str; 2] = [
    "DELETE FROM join_token_uses WHERE (token_id, node_key_sha256, slug) IN
     (SELECT u.token_id, u.node_key_sha256, u.slug
      FROM join_tokens t JOIN join_token_uses u ON u.token_id = t.id
      WHERE t.removed_at <= ?1 OR (t.expires_at <= ?1 AND NOT EXISTS
          (SELECT 1 FROM join_token_uses j
           JOIN nodes n ON n.slug = j.slug AND n.node_key_sha256 = j.node_key_sha256
           WHERE j.token_id = t.id)) LIMIT ?2)",
    "DELETE FROM join_tokens WHERE id IN
     (SELECT t.id FROM join_tokens t WHERE (t.removed_at <= ?1 OR t.expires_at <= ?1)
      AND NOT EXISTS (SELECT 1 FROM join_token_uses j WHERE j.token_id = t.id) LIMIT ?2)",
];

/// Token from a row of [`LIST`] or [`GET`], without the nodes.
fn token(row: &Row<'_>, now: Time) -> Result<JoinTokenView, StoreError> {
    let (used, uses) = (row.get("used")?, row.get("max_uses")?);
    let expires_at = row.get("expires_at")?;
    let status = match JoinTokenView::status_at(now, expires_at, (used, uses)) {
        JoinTokenStatus::Valid if !row.get::<_, bool>("is_by_admin")? => JoinTokenStatus::Disabled,
        status => status,
    };
    Ok(JoinTokenView {
        id: row.get("id")?,
        status,
        slug: row.get("slug")?,
        uses,
        used,
        nodes: Vec::new(),
        created_by: row.get("handle")?,
        created_at: row.get("created_at")?,
        expires_at,
        url: row.get("url")?,
    })
}

fn get(c: &Connection, id: JoinTokenId, now: Time) -> Result<Option<JoinTokenView>, StoreError> {
    let mut statement = c.prepare_cached(GET)?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(|row| token(row, now)).transpose()
}

/// Slugs of the nodes that joined by a token last.
fn nodes(c: &Connection, id: JoinTokenId) -> Result<Vec<String>, StoreError> {
    let mut statement = c.prepare_cached(NODES)?;
    let mut rows = statement.query(params![id, MAX_LISTED_NODES])?;
    let mut nodes = Vec::new();
    while let Some(row) = rows.next()? {
        nodes.push(row.get(0)?);
    }
    Ok(nodes)
}

/// Event about a token: by its id, never its secret.
fn about(event: &AuditEvent, token: &JoinTokenView) -> AuditEvent {
    let slug = token.slug.as_deref().unwrap_or("any");
    let details = format!(
        "uses: {}; slug: {slug}; until {}",
        token.uses, token.expires_at
    );
    event.clone().to(token.id.to_string()).with_details(details)
}

/// Whether a token lets in the node of this key and slug at the time `now`. To be called in the write that registers
/// the node, so that of two nodes at once only one gets the last use; elsewhere the answer may be outdated at once.
pub(super) fn admit(
    c: &Connection,
    id: JoinTokenId,
    (key_sha256, slug): (&str, &str),
    now: Time,
) -> Result<Result<(), JoinRefusal>, StoreError> {
    let mut statement = c.prepare_cached(STATE)?;
    let state = statement.query_row(params![id, key_sha256, slug], |row| {
        Ok(JoinTokenState {
            slug: row.get(0)?,
            uses: row.get(1)?,
            expires_at: row.get(2)?,
            is_removed: row.get(3)?,
            used: row.get(4)?,
            has_joined: row.get(5)?,
            is_by_admin: row.get(6)?,
        })
    });
    // It was there a moment ago, when the secret was looked up.
    let state = state.optional()?;
    Ok(state.map_or(Err(JoinRefusal::Removed), |state| state.admit(slug, now)))
}

/// Records that a node has joined by a token, once.
pub(super) fn record_use(
    c: &Connection,
    id: JoinTokenId,
    (key_sha256, slug): (&str, &str),
    now: Time,
) -> Result<(), StoreError> {
    execute(
        c,
        "INSERT OR IGNORE INTO join_token_uses (token_id, node_key_sha256, slug, used_at) VALUES (?1, ?2, ?3, ?4)",
        params![id, key_sha256, slug, now],
    )?;
    Ok(())
}

impl Store {
    /// Creates a token of an admin; `None` where there are too many.
    pub async fn join_token_create(
        &self,
        new: NewJoinToken,
        by: Authority,
        event: AuditEvent,
    ) -> Result<Option<JoinTokenView>, StoreError> {
        let id = JoinTokenId::new();
        self.write(move |c| {
            authorize(c, by, event.at)?;
            let count: u32 = c.prepare_cached(COUNT)?.query_row([], |row| row.get(0))?;
            if count >= MAX_TOKENS {
                audit::add(c, &event.clone().failed("conflict"))?;
                return Ok(None);
            }
            let (secret, slug, url) = (&new.secret_sha256, &new.slug, &new.url);
            let (uses, end) = (new.uses, new.expires_at);
            let values = params![id, secret, slug, uses, by.user, event.at, end, url];
            execute(c, INSERT, values)?;
            let token = get(c, id, event.at)?.ok_or(StoreError::Damaged("join token"))?;
            audit::add(c, &about(&event, &token))?;
            Ok(Some(token))
        })
        .await
    }

    /// Tokens that are not removed, newest first, as one of the lists of the user `by`.
    pub async fn join_token_list(
        &self,
        by: UserId,
        now: Time,
    ) -> Result<Vec<JoinTokenView>, StoreError> {
        self.list(by, move |c| {
            let mut statement = c.prepare_cached(LIST)?;
            let mut rows = statement.query([])?;
            let mut tokens = Vec::new();
            while let Some(row) = rows.next()? {
                let mut token = token(row, now)?;
                token.nodes = nodes(c, token.id)?;
                tokens.push(token);
            }
            Ok(tokens)
        })
        .await
    }

    /// Token of the secret with this SHA-256, a removed one too.
    pub async fn join_token_by_secret(
        &self,
        secret_sha256: String,
    ) -> Result<Option<JoinTokenId>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(BY_SECRET)?;
            let id = statement.query_row([&secret_sha256], |row| row.get(0));
            Ok(id.optional()?)
        })
        .await
    }

    /// Whether a token lets in the node of this key and slug at the time `now`, as [`admit`] will decide.
    pub async fn join_token_admits(
        &self,
        id: JoinTokenId,
        (key_sha256, slug): (String, String),
        now: Time,
    ) -> Result<bool, StoreError> {
        self.read(move |c| Ok(admit(c, id, (&key_sha256, &slug), now)?.is_ok()))
            .await
    }

    /// Removes a token; false where there is none. Its nodes stay, but can't register again by it.
    pub async fn join_token_remove(
        &self,
        id: JoinTokenId,
        by: Authority,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            authorize(c, by, event.at)?;
            let Some(token) = get(c, id, event.at)? else {
                return Ok(false);
            };
            let sql = "UPDATE join_tokens SET removed_at = ?2 WHERE id = ?1";
            execute(c, sql, params![id, event.at])?;
            audit::add(c, &about(&event, &token))?;
            Ok(true)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
