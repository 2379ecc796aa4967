//! Machines: what they reported, what they were served, what they acknowledged.

use super::{
    Store, StoreError, audit,
    node_config::revoke_older_tokens,
    reports::ReportCache,
    rows::{parse_document, parse_name, to_document},
};
use crate::api::{
    NodeId,
    audit::{AuditAction, AuditEvent},
    nodes::{AckStatus, CapabilityReport},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

/// A registered machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id; outlives a change of everything else.
    pub id: NodeId,
    /// Its name in commands.
    pub slug: String,
    /// Its last report.
    pub capability: Arc<CapabilityReport>,
    /// When it was last heard.
    pub last_seen_at: Time,
    /// Whether it takes no more jobs.
    pub draining: bool,
    /// Where it says that it is reached.
    pub worker_url: Option<String>,
    /// What it was last served, as JSON; see [`Node::served_config`].
    pub config: Option<String>,
    /// Counts what it was served; 0 before the first time.
    pub config_version: i64,
    /// Which of them it acknowledged last.
    pub ack_version: Option<i64>,
    /// How that went.
    pub ack_status: Option<AckStatus>,
    /// Why it failed.
    pub ack_error: Option<String>,
    /// Jobs it has now, or is offered.
    pub running_jobs: u32,
    /// Its last registration, a random number; tokens of earlier ones are over.
    pub registration: i64,
}

/// How a registration ended.
pub enum RegisterOutcome {
    /// The slug is new; the node's id, and the number of this registration.
    Created(NodeId, i64),
    /// The slug was known, and is this machine's.
    Known(NodeId, i64),
    /// The slug is another machine's; nothing was stored.
    Taken,
    /// The slug is new, and there are as many nodes as there may be; nothing was stored.
    Full,
}

/// How it went to forget a node.
#[derive(Debug, PartialEq, Eq)]
pub enum ForgetOutcome {
    /// It is gone.
    Forgotten(NodeId),
    /// It stays, since it has so many jobs now.
    Busy(u32),
    /// There is no such node.
    Unknown,
}

pub(super) const SELECT: &str =
    "SELECT n.id, n.slug, n.capability_sha256, n.capability, n.last_seen_at, n.draining,
        n.worker_url, n.config, n.config_version, n.ack_version, n.ack_status, n.ack_error,
        (SELECT count(*) FROM jobs j WHERE j.node_id = n.id AND j.status = 'running')
            + (SELECT count(*) FROM jobs j WHERE j.offered_node_id = n.id), n.registration
     FROM nodes n";

/// A row of [`SELECT`]; by position, since there may be thousands at every turn of the scheduler.
pub(super) fn node(row: &Row<'_>, reports: &ReportCache) -> Result<Node, StoreError> {
    let text = |n| Ok::<_, rusqlite::Error>(row.get_ref(n)?.as_str()?);
    let id = row.get(0)?;
    let capability = reports.get_or_parse(id, text(2)?, || parse_document(text(3)?))?;
    let ack_status: Option<String> = row.get(10)?;
    Ok(Node {
        id,
        slug: row.get(1)?,
        capability,
        last_seen_at: row.get(4)?,
        draining: row.get(5)?,
        worker_url: row.get(6)?,
        config: row.get(7)?,
        config_version: row.get(8)?,
        ack_version: row.get(9)?,
        ack_status: ack_status
            .map(|name| parse_name(name, "ack_status"))
            .transpose()?,
        ack_error: row.get(11)?,
        running_jobs: row.get(12)?,
        registration: row.get(13)?,
    })
}

impl Store {
    /// The node of this slug, where a machine that shows this key may use it.
    pub async fn node_owned(
        &self,
        slug: String,
        key_sha256: Option<String>,
    ) -> Result<Option<NodeId>, StoreError> {
        self.read(move |c| {
            let sql = "SELECT id, node_key_sha256 FROM nodes WHERE slug = ?1";
            let known: Option<(NodeId, Option<String>)> = c
                .query_row(sql, [&slug], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let owned =
                known.filter(|(_, owner)| may_claim_slug(owner.as_deref(), key_sha256.as_deref()));
            Ok(owned.map(|(id, _)| id))
        })
        .await
    }

    /// Makes the node of this slug where there are fewer than `most`, or takes it up again where it is this
    /// machine's.
    pub async fn node_register(
        &self,
        report: CapabilityReport,
        report_sha256: String,
        key_sha256: Option<String>,
        most: u32,
        event: AuditEvent,
    ) -> Result<RegisterOutcome, StoreError> {
        self.write(move |c| {
            let (now, slug) = (event.at, report.node.node_slug.clone());
            let sql = "SELECT id, node_key_sha256 FROM nodes WHERE slug = ?1";
            let known: Option<(NodeId, Option<String>)> =
                c.query_row(sql, [&slug], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            if let Some((id, owner)) = known {
                if !may_claim_slug(owner.as_deref(), key_sha256.as_deref()) {
                    audit::add_rate_limited(c, &event.to(slug).failed("slug-taken"))?;
                    return Ok(RegisterOutcome::Taken);
                }
                let registration = new_registration(c, id)?;
                store_report(c, id, &report, &report_sha256, &event)?;
                carry_over_drain(c, id, key_sha256.as_deref())?;
                audit::add_rate_limited(c, &event.by(id, slug))?;
                return Ok(RegisterOutcome::Known(id, registration));
            }
            let nodes: u32 = c.query_row("SELECT count(*) FROM nodes", [], |row| row.get(0))?;
            if nodes >= most {
                audit::add_rate_limited(c, &event.to(slug).failed("too-many-nodes"))?;
                return Ok(RegisterOutcome::Full);
            }
            let id = NodeId::new();
            c.execute(
                "INSERT INTO nodes (id, slug, registered_at, last_seen_at, capability, capability_sha256, node_key_sha256)
                 VALUES (?1, ?2, ?3, ?3, '{}', '', ?4)",
                params![id, slug, now, key_sha256],
            )?;
            let registration = new_registration(c, id)?;
            store_report(c, id, &report, &report_sha256, &event)?;
            carry_over_drain(c, id, key_sha256.as_deref())?;
            audit::add_rate_limited(c, &event.by(id, slug))?;
            Ok(RegisterOutcome::Created(id, registration))
        })
        .await
    }

    /// Stores a report of a node of this registration; false when there is none. `event` says when and from where it came.
    pub async fn node_report(
        &self,
        id: NodeId,
        registration: i64,
        report: CapabilityReport,
        report_sha256: String,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let sql = "SELECT registration FROM nodes WHERE id = ?1";
            let present: Option<i64> = c.query_row(sql, [id], |row| row.get(0)).optional()?;
            if present != Some(registration) {
                return Ok(false);
            }
            store_report(c, id, &report, &report_sha256, &event)
        })
        .await
    }

    /// Stops or resumes giving jobs to a node; false when there is no such node.
    pub async fn node_drain(
        &self,
        slug: String,
        draining: bool,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let sql = "UPDATE nodes SET draining = ?2 WHERE slug = ?1";
            let is_known = c.execute(sql, params![slug, draining])? > 0;
            let event = event.to(slug);
            let event = if is_known {
                event
            } else {
                event.failed("not-found")
            };
            audit::add(c, &event)?;
            Ok(is_known)
        })
        .await
    }

    /// Forgets the node of this slug, unless it has jobs now. Its past jobs stay, with its slug. A drain
    /// outlives the node where its machine showed a key: see [`carry_over_drain`].
    pub async fn node_forget(
        &self,
        slug: String,
        event: AuditEvent,
    ) -> Result<ForgetOutcome, StoreError> {
        let reports = self.reports.clone();
        self.write(move |c| {
            let known: Option<(NodeId, u32)> = c
                .query_row(
                    "SELECT id, (SELECT count(*) FROM jobs j WHERE j.node_id = n.id AND j.status = 'running')
                            + (SELECT count(*) FROM jobs j WHERE j.offered_node_id = n.id)
                     FROM nodes n WHERE slug = ?1",
                    [&slug],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()?;
            let Some((id, running)) = known else {
                audit::add(c, &event.to(slug).failed("not-found"))?;
                return Ok(ForgetOutcome::Unknown);
            };
            if running > 0 {
                audit::add(c, &event.to(slug).failed("conflict"))?;
                return Ok(ForgetOutcome::Busy(running));
            }
            c.execute(
                "UPDATE jobs SET node_id = NULL, node_slug = ?2 WHERE node_id = ?1",
                params![id, slug],
            )?;
            c.execute(
                "INSERT OR IGNORE INTO drained_keys
                 SELECT node_key_sha256 FROM nodes WHERE id = ?1 AND draining AND node_key_sha256 IS NOT NULL",
                [id],
            )?;
            c.execute("DELETE FROM nodes WHERE id = ?1", [id])?;
            reports.remove(id);
            audit::add(c, &event.to(slug))?;
            Ok(ForgetOutcome::Forgotten(id))
        })
        .await
    }

    /// One node.
    pub async fn node_get(&self, id: NodeId) -> Result<Option<Node>, StoreError> {
        self.node_where("n.id = ?1", id.to_string()).await
    }

    /// The node of this slug.
    pub async fn node_by_slug(&self, slug: String) -> Result<Option<Node>, StoreError> {
        self.node_where("n.slug = ?1", slug).await
    }

    async fn node_where(
        &self,
        condition: &'static str,
        value: String,
    ) -> Result<Option<Node>, StoreError> {
        let reports = self.reports.clone();
        self.read(move |c| {
            let mut statement = c.prepare_cached(&format!("{SELECT} WHERE {condition}"))?;
            let mut rows = statement.query([&value])?;
            rows.next()?.map(|row| node(row, &reports)).transpose()
        })
        .await
    }

    /// All nodes, by slug.
    pub async fn node_list(&self) -> Result<Vec<Node>, StoreError> {
        let reports = self.reports.clone();
        self.read(move |c| {
            let mut statement = c.prepare_cached(&format!("{SELECT} ORDER BY n.slug"))?;
            let mut rows = statement.query([])?;
            let mut nodes = Vec::new();
            while let Some(row) = rows.next()? {
                nodes.push(node(row, &reports)?);
            }
            Ok(nodes)
        })
        .await
    }
}

/// Whether a machine that shows this key may use a slug that was first registered with that one. A
/// slug that came without a key belongs to nobody, as long as it is known.
fn may_claim_slug(owner: Option<&str>, shown: Option<&str>) -> bool {
    owner.is_none_or(|owner| {
        shown.is_some_and(|shown| bool::from(shown.as_bytes().ct_eq(owner.as_bytes())))
    })
}

/// Drains a node whose machine was draining when it was last forgotten: a machine that registers again
/// by itself must not take jobs that an admin had kept away from it.
fn carry_over_drain(
    c: &Connection,
    id: NodeId,
    key_sha256: Option<&str>,
) -> Result<(), StoreError> {
    let sql = "DELETE FROM drained_keys WHERE node_key_sha256 = ?1";
    if c.execute(sql, [key_sha256])? > 0 {
        c.execute("UPDATE nodes SET draining = 1 WHERE id = ?1", [id])?;
    }
    Ok(())
}

/// Makes the number of a registration of this node. It is random, since one that counts would come again, and
/// with it the tokens of a registration that is over, once a database is restored from a backup.
fn new_registration(c: &Connection, id: NodeId) -> Result<i64, StoreError> {
    let sql = "UPDATE nodes SET registration = 1 + (random() & 0x3fffffffffffffff) WHERE id = ?1 RETURNING registration";
    Ok(c.query_row(sql, [id], |row| row.get(0))?)
}

/// Stores a report that came with `event`, and writes down where the Worker API was and is where that has
/// changed.
fn store_report(
    c: &Connection,
    id: NodeId,
    report: &CapabilityReport,
    report_sha256: &str,
    event: &AuditEvent,
) -> Result<bool, StoreError> {
    let (now, url) = (event.at, report.worker_url());
    let sql = "SELECT worker_url FROM nodes WHERE id = ?1";
    let before: Option<String> = c
        .query_row(sql, [id], |row| row.get(0))
        .optional()?
        .flatten();
    if before.as_deref() != url {
        revoke_older_tokens(c, id)?;
    }
    if let Some(before) = before.filter(|before| Some(before.as_str()) != url) {
        let event = AuditEvent {
            action: AuditAction::NodeWorkerUrl,
            ..event.clone()
        };
        let event = event.by(id, report.node.node_slug.as_str());
        audit::add_rate_limited(c, &event.changed(&before, url.unwrap_or("none")))?;
    }
    let changed = c.execute(
        "UPDATE nodes SET capability = ?2, capability_sha256 = ?3, worker_url = ?4, last_seen_at = ?5 WHERE id = ?1",
        params![id, to_document(report)?, report_sha256, url, now],
    )?;
    Ok(changed > 0)
}

#[cfg(test)]
mod tests;
