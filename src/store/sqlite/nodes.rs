//! Nodes: registration, reports, drain and removal.

use super::{
    ForgetOutcome, Node, RegisterOutcome, Store, StoreError, StoredConfig, audit, join_tokens,
    node_config::revoke_older_tokens,
    reports::ReportCache,
    rows::{parse_document, parse_name, to_document},
};
use crate::{
    api::{
        JoinTokenId, NodeId,
        audit::{AuditAction, AuditEvent},
        nodes::{CapabilityReport, ModelDetails},
    },
    digest::sha256_hex,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use subtle::ConstantTimeEq as _;

pub(super) const SELECT: &str =
    "SELECT n.id, n.slug, n.capability_sha256, n.capability, n.last_seen_at, n.draining,
        n.worker_url, n.config, n.config_version, n.ack_version, n.ack_status, n.ack_error,
        (SELECT count(*) FROM jobs j WHERE j.node_id = n.id AND j.status = 'running')
            + (SELECT count(*) FROM jobs j WHERE j.offered_node_id = n.id), n.registration
     FROM nodes n";

/// Node from a row of [`SELECT`]; by position, since the scheduler reads thousands at every turn.
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
        config: StoredConfig::new(row.get(7)?),
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
    /// Node of this slug, where a machine with this key may use the slug; with a join token or the pre-shared key.
    pub async fn node_owned(
        &self,
        slug: String,
        key_sha256: Option<String>,
        token: Option<JoinTokenId>,
    ) -> Result<Option<NodeId>, StoreError> {
        self.read(move |c| {
            let sql = "SELECT id, node_key_sha256 FROM nodes WHERE slug = ?1";
            let known: Option<(NodeId, Option<String>)> = c
                .query_row(sql, [&slug], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let owned = known.filter(|(_, owner)| {
                may_claim_slug(owner.as_deref(), key_sha256.as_deref(), token)
            });
            Ok(owned.map(|(id, _)| id))
        })
        .await
    }

    /// Registers a node: creates it while there are fewer than `max_nodes`, or registers it again where the slug
    /// belongs to this machine. With a join token, that has to let it in.
    pub async fn node_register(
        &self,
        report: CapabilityReport,
        report_sha256: String,
        key_sha256: Option<String>,
        token: Option<JoinTokenId>,
        max_nodes: u32,
        event: AuditEvent,
    ) -> Result<RegisterOutcome, StoreError> {
        self.write(move |c| {
            let (mut event, slug) = (event.clone(), report.node.node_slug.as_str());
            let machine = (key_sha256.as_deref().unwrap_or_default(), slug);
            if let Some(token) = token
                && let Err(refusal) = join_tokens::admit(c, token, machine, event.at)?
            {
                let reason = format!("{} (join token {token})", refusal.as_str());
                audit::add_rate_limited(c, &event.to(slug).failed(&reason))?;
                return Ok(RegisterOutcome::NotAdmitted(refusal));
            }
            let sql = "SELECT id, node_key_sha256 FROM nodes WHERE slug = ?1";
            let known = c.query_row(sql, [slug], |row| Ok((row.get(0)?, row.get(1)?)));
            let known: Option<(NodeId, Option<String>)> = known.optional()?;
            let (id, is_new) = match known {
                Some((_, owner))
                    if !may_claim_slug(owner.as_deref(), key_sha256.as_deref(), token) =>
                {
                    audit::add_rate_limited(c, &event.to(slug).failed("slug-taken"))?;
                    return Ok(RegisterOutcome::Taken);
                }
                Some((id, _)) => (id, false),
                None => (NodeId::new(), true),
            };
            // The limit is part of the statement, so that two registrations can't both be the last one.
            let has_room = !is_new
                || c.execute(
                    "INSERT INTO nodes (id, slug, registered_at, last_seen_at, capability, capability_sha256, node_key_sha256)
                     SELECT ?1, ?2, ?3, ?3, '{}', '', ?4 WHERE (SELECT count(*) FROM nodes) < ?5",
                    params![id, slug, event.at, key_sha256, max_nodes],
                )? > 0;
            if !has_room {
                audit::add_rate_limited(c, &event.to(slug).failed("too-many-nodes"))?;
                return Ok(RegisterOutcome::Full);
            }
            let registration = new_registration(c, id)?;
            store_report(c, id, &report, &report_sha256, &event)?;
            carry_over_drain(c, id, key_sha256.as_deref())?;
            if let Some(token) = token {
                join_tokens::record_use(c, token, machine, event.at)?;
                event = event.with_details(format!("join token {token}"));
            }
            audit::add_rate_limited(c, &event.by(id, slug))?;
            Ok(if is_new {
                RegisterOutcome::Created(id, registration)
            } else {
                RegisterOutcome::Known(id, registration)
            })
        })
        .await
    }

    /// Stores a report of a node; false when no node has this registration. `event` holds the time and the address.
    pub async fn node_report(
        &self,
        id: NodeId,
        registration: i64,
        report: CapabilityReport,
        report_sha256: String,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let sql = "SELECT 1 FROM nodes WHERE id = ?1 AND registration = ?2";
            let is_current = c.prepare_cached(sql)?.exists(params![id, registration])?;
            if is_current {
                store_report(c, id, &report, &report_sha256, &event)?;
            }
            Ok(is_current)
        })
        .await
    }

    /// Replaces the models in the last report of a node, where it has a model server. Its next report replaces them again.
    pub async fn node_set_models(
        &self,
        id: NodeId,
        models: Vec<ModelDetails>,
    ) -> Result<(), StoreError> {
        self.change_report(id, move |report| {
            let inference = report.inference.as_mut();
            inference.is_some_and(|inference| {
                inference.set_models(Some(models.clone()));
                true
            })
        })
        .await
    }

    /// Adds an image to those of `localhost/` in the last report of a node, or removes it, where the report names such
    /// images at all. Its next report replaces them.
    pub async fn node_set_local_image(
        &self,
        id: NodeId,
        image: String,
        is_there: bool,
    ) -> Result<(), StoreError> {
        self.change_report(id, move |report| {
            let sandbox = report.sandbox.as_mut();
            let images = sandbox.and_then(|sandbox| sandbox.local_images.as_mut());
            images.is_some_and(|images| {
                let was_there = images.contains(&image);
                if is_there && !was_there {
                    images.push(image.clone());
                }
                images.retain(|known| is_there || *known != image);
                is_there != was_there
            })
        })
        .await
    }

    /// Changes the last report of a node, where `change` says that it did.
    async fn change_report(
        &self,
        id: NodeId,
        change: impl Fn(&mut CapabilityReport) -> bool + Send + 'static,
    ) -> Result<(), StoreError> {
        self.write(move |c| {
            let sql = "SELECT capability FROM nodes WHERE id = ?1";
            let known: Option<String> = c.query_row(sql, [id], |row| row.get(0)).optional()?;
            let report = known.map(|known| parse_document::<CapabilityReport>(&known));
            let Some(mut report) = report.transpose()? else {
                return Ok(());
            };
            if !change(&mut report) {
                return Ok(());
            }
            let document = to_document(&report)?;
            let hash = format!("sha256:{}", sha256_hex(&document));
            let sql = "UPDATE nodes SET capability = ?2, capability_sha256 = ?3 WHERE id = ?1";
            c.execute(sql, params![id, document, hash])?;
            Ok(())
        })
        .await
    }

    /// Drains or resumes a node; false when no node has this slug.
    pub async fn node_drain(
        &self,
        slug: String,
        draining: bool,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let sql = "UPDATE nodes SET draining = ?2 WHERE slug = ?1";
            let is_known = c.execute(sql, params![slug, draining])? > 0;
            let event = event.clone().to(&slug);
            let failed = |event: AuditEvent| event.failed("not-found");
            let event = if is_known { event } else { failed(event) };
            audit::add(c, &event)?;
            Ok(is_known)
        })
        .await
    }

    /// Deletes the node of this slug, unless it has jobs. Its past jobs stay, with its slug. The drain of a
    /// machine with a key outlives the node: see [`carry_over_drain`].
    pub async fn node_forget(
        &self,
        slug: String,
        event: AuditEvent,
    ) -> Result<ForgetOutcome, StoreError> {
        self.write(move |c| {
            let event = event.clone().to(&slug);
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
                audit::add(c, &event.failed("not-found"))?;
                return Ok(ForgetOutcome::Unknown);
            };
            if running > 0 {
                audit::add(c, &event.failed("conflict"))?;
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
            audit::add(c, &event)?;
            Ok(ForgetOutcome::Forgotten(id))
        })
        .await
    }

    /// Node of this id.
    pub async fn node_get(&self, id: NodeId) -> Result<Option<Node>, StoreError> {
        self.node_where("n.id = ?1", id.to_string()).await
    }

    /// Node of this slug.
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
            reports.retain(&nodes);
            Ok(nodes)
        })
        .await
    }
}

/// Whether a machine with this key may use a slug that was first registered with the key of `owner`. A slug that was
/// registered without a key is open to every machine with the pre-shared key; a join token lets in new nodes, and takes
/// over none.
fn may_claim_slug(owner: Option<&str>, key: Option<&str>, token: Option<JoinTokenId>) -> bool {
    match (owner, key) {
        (None, _) => token.is_none(),
        (Some(owner), Some(key)) => key.as_bytes().ct_eq(owner.as_bytes()).into(),
        (Some(_), None) => false,
    }
}

/// Drains a node whose machine was drained when its last node was deleted: a machine that registers again by
/// itself must not take the jobs that an admin kept from it.
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

/// Sets a new random number for the registration of a node. A counter would repeat after a restore from a backup,
/// and with it the tokens of an earlier registration.
fn new_registration(c: &Connection, id: NodeId) -> Result<i64, StoreError> {
    let sql = "UPDATE nodes SET registration = 1 + (random() & 0x3fffffffffffffff) WHERE id = ?1 RETURNING registration";
    Ok(c.query_row(sql, [id], |row| row.get(0))?)
}

/// Stores a report that came with `event`; a change of the Worker API's URL goes to the audit log.
fn store_report(
    c: &Connection,
    id: NodeId,
    report: &CapabilityReport,
    report_sha256: &str,
    event: &AuditEvent,
) -> Result<(), StoreError> {
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
    c.execute(
        "UPDATE nodes SET capability = ?2, capability_sha256 = ?3, worker_url = ?4, last_seen_at = ?5 WHERE id = ?1",
        params![id, to_document(report)?, report_sha256, url, now],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
