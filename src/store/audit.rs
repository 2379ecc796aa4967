//! Who did what. Written in the commit of what it is about, so that neither is there without the other.
//!
//! What users and nodes bring about by themselves goes in time. What admins did stays, so that nobody
//! can have it forgotten by making much of the former.

use super::{Store, StoreError, rows::named};
use crate::api::audit::{AuditAction, AuditEntry, AuditEvent};
use rusqlite::{Connection, Row, params};

/// Among the newest so many, all are kept: at a thousand a day, for years.
const KEPT: i64 = 1_000_000;
/// What goes after that. Each event is looked at once, when it is so many from the newest.
const FORGET: &str = "DELETE FROM audit_log WHERE seq = ?1 AND (outcome = 'denied'
    OR action IN ('auth.login', 'auth.refresh', 'auth.logout', 'node.register',
        'node.change_worker_url', 'node.duplicate'))";

/// Which events to list.
pub struct AuditFilter {
    /// Only of this action.
    pub action: Option<AuditAction>,
    /// Only by this handle or slug, or done to it.
    pub who: Option<String>,
    /// Only those before this one.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// Writes an event; part of the caller's commit.
pub(super) fn add(c: &Connection, event: &AuditEvent) -> Result<(), StoreError> {
    c.prepare_cached(
        "INSERT INTO audit_log (at, action, outcome, actor_id, actor, target, address, request_id, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        event.at,
        event.action.as_str(),
        event.outcome.as_str(),
        event.actor_id,
        event.actor,
        event.target,
        event.address,
        event.request_id,
        event.reason
    ])?;
    c.prepare_cached(FORGET)?
        .execute([c.last_insert_rowid() - KEPT])?;
    Ok(())
}

fn entry(row: &Row<'_>) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        seq: row.get("seq")?,
        event: AuditEvent {
            at: row.get("at")?,
            action: named(row.get("action")?, "audit action")?,
            outcome: named(row.get("outcome")?, "audit outcome")?,
            actor_id: row.get("actor_id")?,
            actor: row.get("actor")?,
            target: row.get("target")?,
            address: row.get("address")?,
            request_id: row.get("request_id")?,
            reason: row.get("reason")?,
        },
    })
}

impl Store {
    /// Writes an event about what changed nothing else.
    pub async fn audit_add(&self, event: AuditEvent) -> Result<(), StoreError> {
        self.write(move |c| add(c, &event)).await
    }

    /// Events, newest first.
    pub async fn audit_list(&self, filter: AuditFilter) -> Result<Vec<AuditEntry>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT * FROM audit_log
                 WHERE (?1 IS NULL OR seq < ?1) AND (?2 IS NULL OR action = ?2)
                   AND (?3 IS NULL OR actor = ?3 OR target = ?3)
                 ORDER BY seq DESC LIMIT ?4",
            )?;
            let action = filter.action.map(AuditAction::as_str);
            let mut rows =
                statement.query(params![filter.before, action, filter.who, filter.limit])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                entries.push(entry(row)?);
            }
            Ok(entries)
        })
        .await
    }
}
