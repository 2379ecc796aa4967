//! The audit log. An event is written in the commit of the change that it is about, so that neither exists
//! without the other.
//!
//! Events that users and nodes cause by themselves are deleted in time. Events of admins stay, so that a
//! flood of the others can't push them out.

use super::{
    AuditFilter, Store, StoreError,
    rows::{execute, parse_name},
};
use crate::api::{
    UserId,
    audit::{AuditAction, AuditEntry, AuditEvent},
};
use rusqlite::{Connection, Row, named_params, params};
use std::{collections::BTreeMap, time::Duration};

/// Number of the newest events that are all kept, [frequent ones](FREQUENT) apart: at a thousand a day, for years.
const KEPT_EVENTS: i64 = 1_000_000;
/// Actions that a program repeats any number of times.
const FREQUENT: [AuditAction; 3] = [
    AuditAction::InferenceRequest,
    AuditAction::SandboxExec,
    AuditAction::SandboxAccess,
];
/// Number of the newest events of each of them that are kept.
const KEPT_FREQUENT: i64 = 200_000;
/// Number of events after which old ones are deleted.
const PRUNE_INTERVAL: i64 = 10_000;
/// Counts the events that are not of a frequent action, in an index alone.
const COUNT_EVENTS: &str = "SELECT count(*) FROM audit_log WHERE action NOT IN ('inference.request', 'sandbox.exec', 'sandbox.access')";
/// Deletes the events of users and nodes before the newest ?1 events.
const DELETE_OLD: &str = "DELETE FROM audit_log WHERE seq <= (
        SELECT seq FROM audit_log WHERE action NOT IN ('inference.request', 'sandbox.exec', 'sandbox.access')
        ORDER BY seq DESC LIMIT 1 OFFSET ?1)
    AND action NOT IN ('inference.request', 'sandbox.exec', 'sandbox.access') AND (outcome = 'denied'
    OR action IN ('auth.login', 'auth.refresh', 'auth.logout', 'node.register',
        'node.change_worker_url', 'node.duplicate', 'task.delete', 'artifact.delete', 'key.create', 'key.revoke',
        'sandbox.create', 'sandbox.delete', 'sandbox.renew', 'sandbox.snapshot', 'snapshot.delete',
        'secret.set', 'secret.delete', 'secret.use'))";
/// Deletes the events of the action ?2 before the newest ?1 of them.
const DELETE_OLD_FREQUENT: &str = "DELETE FROM audit_log WHERE action = ?2 AND seq <= (
        SELECT seq FROM audit_log WHERE action = ?2 ORDER BY seq DESC LIMIT 1 OFFSET ?1)";

/// Writes an event as a part of the caller's commit.
pub(super) fn add(c: &Connection, event: &AuditEvent) -> Result<(), StoreError> {
    c.prepare_cached(
        "INSERT INTO audit_log (at, action, outcome, actor_id, actor, target, address, request_id, reason, api_key)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
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
        event.reason,
        event.api_key
    ])?;
    if c.last_insert_rowid() % PRUNE_INTERVAL == 0 {
        prune(c, KEPT_EVENTS, KEPT_FREQUENT)?;
    }
    Ok(())
}

/// Deletes old events. Those of a frequent action make room for each other only, so that they push nothing else out.
fn prune(c: &Connection, kept_events: i64, kept_frequent: i64) -> Result<(), StoreError> {
    for action in FREQUENT {
        execute(
            c,
            DELETE_OLD_FREQUENT,
            params![kept_frequent, action.as_str()],
        )?;
    }
    let events: i64 = c.query_row(COUNT_EVENTS, [], |row| row.get(0))?;
    if events > kept_events {
        execute(c, DELETE_OLD, [kept_events])?;
    }
    Ok(())
}

/// Maximum number of events of one action, by or about one node, within [`BURST_WINDOW`].
const BURST_LIMIT: u32 = 10;
const BURST_WINDOW: Duration = Duration::from_mins(1);

/// Writes an event that a node can cause any number of times, unless [`BURST_LIMIT`] of its kind came just before:
/// the log must not fill the disk.
pub(super) fn add_rate_limited(c: &Connection, event: &AuditEvent) -> Result<(), StoreError> {
    let (sql, who) = match &event.actor {
        Some(actor) => (recent("actor"), Some(actor)),
        None => (recent("target"), event.target.as_ref()),
    };
    let values = params![
        who,
        event.action.as_str(),
        event.at.minus(BURST_WINDOW),
        event.at,
        BURST_LIMIT
    ];
    let before: u32 = c
        .prepare_cached(&sql)?
        .query_row(values, |row| row.get(0))?;
    if before < BURST_LIMIT {
        add(c, event)?;
    }
    Ok(())
}

/// Query for how many of the newest events of a kind are recent; it reads no more rows than the limit.
fn recent(column: &str) -> String {
    format!(
        "SELECT count(*) FROM (SELECT at FROM audit_log WHERE {column} = ?1 AND action = ?2
                               ORDER BY seq DESC LIMIT ?5)
         WHERE at > ?3 AND at <= ?4"
    )
}

fn entry(row: &Row<'_>) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        seq: row.get("seq")?,
        event: AuditEvent {
            at: row.get("at")?,
            action: parse_name(row.get("action")?, "audit action")?,
            outcome: parse_name(row.get("outcome")?, "audit outcome")?,
            actor_id: row.get("actor_id")?,
            actor: row.get("actor")?,
            target: row.get("target")?,
            address: row.get("address")?,
            request_id: row.get("request_id")?,
            reason: row.get("reason")?,
            api_key: row.get("api_key")?,
        },
    })
}

impl Store {
    /// Writes an event on its own, where nothing else changed.
    pub async fn audit_add(&self, event: AuditEvent) -> Result<(), StoreError> {
        self.write(move |c| add(c, &event)).await
    }

    /// Events, newest first, as one of the lists of the user `by`.
    pub async fn audit_list(
        &self,
        by: UserId,
        filter: AuditFilter,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        self.list(by, move |c| {
            let mut found = BTreeMap::new();
            for sql in seeks(&filter) {
                let mut statement = c.prepare_cached(sql)?;
                for action in actions(&filter) {
                    let named = named_params! {
                        ":before": filter.before.unwrap_or(i64::MAX),
                        ":action": action,
                        ":who": filter.who,
                        ":limit": filter.limit,
                    };
                    // A seek has only the parameters that it filters by.
                    let known = named.iter().filter(|(name, _)| sql.contains(name));
                    let known: Vec<_> = known.copied().collect();
                    let mut rows = statement.query(&known[..])?;
                    while let Some(row) = rows.next()? {
                        let entry = entry(row)?;
                        found.insert(entry.seq, entry);
                    }
                }
            }
            let newest = found.into_values().rev();
            Ok(newest.take(filter.limit as usize).collect())
        })
        .await
    }
}

/// Queries for the newest events by an index; together they find every event that a list may have.
const SEEK_ALL: &str = "SELECT * FROM audit_log WHERE seq < :before ORDER BY seq DESC LIMIT :limit";
const SEEK_ACTION: &str = "SELECT * FROM audit_log WHERE action = :action AND seq < :before
    ORDER BY seq DESC LIMIT :limit";
const SEEK_ACTOR: &str =
    "SELECT * FROM audit_log WHERE actor = :who AND action = :action AND seq < :before
    ORDER BY seq DESC LIMIT :limit";
const SEEK_TARGET: &str =
    "SELECT * FROM audit_log WHERE target = :who AND action = :action AND seq < :before
    ORDER BY seq DESC LIMIT :limit";

fn seeks(filter: &AuditFilter) -> &'static [&'static str] {
    match (&filter.who, filter.action) {
        (Some(_), _) => &[SEEK_ACTOR, SEEK_TARGET],
        (None, Some(_)) => &[SEEK_ACTION],
        (None, None) => &[SEEK_ALL],
    }
}

/// Actions to seek in; a single empty one where the index has no action.
fn actions(filter: &AuditFilter) -> Vec<&'static str> {
    match (&filter.who, filter.action) {
        (_, Some(action)) => vec![action.as_str()],
        (Some(_), None) => AuditAction::ALL
            .iter()
            .map(|action| action.as_str())
            .collect(),
        (None, None) => vec![""],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::time::Time, store::sqlite::query_plan::assert_seeks};

    #[tokio::test]
    async fn event_lists_use_index() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let looked = store.read_blocking(|c| {
            for sql in [
                SEEK_ALL,
                SEEK_ACTION,
                SEEK_ACTOR,
                SEEK_TARGET,
                DELETE_OLD_FREQUENT,
            ] {
                assert_seeks(c, sql);
            }
            for column in ["actor", "target"] {
                let sql = recent(column);
                let inner = sql.split(['(', ')']).nth(3).unwrap();
                let plan = assert_seeks(c, inner);
                assert!(plan.contains(&format!("{column}=? AND action=?")), "{plan}");
            }
            Ok(())
        });
        looked.await.unwrap();
    }

    #[tokio::test]
    async fn frequent_events_push_out_only_each_other() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let pruned = store.write(|c| {
            let event = |action| AuditEvent::new(action, Time::now(), None);
            let count = |action: &str| -> Result<u32, StoreError> {
                let sql = "SELECT count(*) FROM audit_log WHERE action = ?1";
                Ok(c.query_row(sql, [action], |row| row.get(0))?)
            };
            for _ in 0..5 {
                add(c, &event(AuditAction::Login))?;
                add(c, &event(AuditAction::UserDisable))?;
            }
            for _ in 0..20 {
                add(c, &event(AuditAction::InferenceRequest))?;
                add(c, &event(AuditAction::SandboxExec))?;
            }
            prune(c, 10, 3)?;
            assert_eq!(
                (count("inference.request")?, count("sandbox.exec")?),
                (3, 3)
            );
            assert_eq!((count("auth.login")?, count("user.disable")?), (5, 5));
            prune(c, 4, 3)?;
            assert_eq!(count("inference.request")?, 3);
            assert_eq!((count("auth.login")?, count("user.disable")?), (2, 5));
            Ok(())
        });
        pruned.await.unwrap();
    }

    #[tokio::test]
    async fn node_events_are_rate_limited() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let looked = store.write(|c| {
            let logged = |c: &Connection| -> Result<u32, StoreError> {
                Ok(c.query_row("SELECT count(*) FROM audit_log", [], |row| row.get(0))?)
            };
            let event = AuditEvent::new(AuditAction::NodeRegister, Time::now(), None);
            let by = |slug: &str| event.clone().by(UserId::new(), slug);
            for _ in 0..3 * BURST_LIMIT {
                add_rate_limited(c, &by("box"))?;
                add_rate_limited(c, &event.clone().to("box").failed("slug-taken"))?;
            }
            assert_eq!(logged(c)?, 2 * BURST_LIMIT);
            add_rate_limited(c, &by("other"))?;
            assert_eq!(
                logged(c)?,
                2 * BURST_LIMIT + 1,
                "each node has its own limit"
            );
            let later = AuditEvent {
                at: event.at.plus(BURST_WINDOW),
                ..by("box")
            };
            add_rate_limited(c, &later)?;
            assert_eq!(
                logged(c)?,
                2 * BURST_LIMIT + 2,
                "the limit is per time window"
            );
            Ok(())
        });
        looked.await.unwrap();
    }

    #[tokio::test]
    async fn event_lists_merge_actors_and_targets() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let by = UserId::new();
        for (action, actor, target) in [
            (AuditAction::Login, "ann", None),
            (AuditAction::UserDisable, "root", Some("ann")),
            (AuditAction::Login, "bob", None),
            (AuditAction::UserEnable, "root", Some("bob")),
            (AuditAction::Logout, "ann", Some("ann")),
        ] {
            let event = AuditEvent::new(action, Time::now(), None).by(by, actor);
            let event = match target {
                Some(target) => event.to(target),
                None => event,
            };
            store.audit_add(event).await.unwrap();
        }
        let list = async |who: Option<&str>, action, before, limit| {
            let filter = AuditFilter {
                action,
                who: who.map(str::to_owned),
                before,
                limit,
            };
            let events = store.audit_list(by, filter).await.unwrap();
            events.iter().map(|entry| entry.seq).collect::<Vec<_>>()
        };
        assert_eq!(list(None, None, None, 9).await, [5, 4, 3, 2, 1]);
        assert_eq!(list(None, None, Some(4), 2).await, [3, 2]);
        assert_eq!(list(Some("ann"), None, None, 9).await, [5, 2, 1]);
        assert_eq!(list(Some("ann"), None, Some(5), 1).await, [2]);
        let login = Some(AuditAction::Login);
        assert_eq!(list(None, login, None, 9).await, [3, 1]);
        assert_eq!(list(Some("ann"), login, None, 9).await, [1]);
        assert!(list(Some("nobody"), None, None, 9).await.is_empty());
    }
}
