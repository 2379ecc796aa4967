//! Sandboxes that stay. A sandbox is a row of `tasks` whose column `sandbox` is not NULL, with one job; queue, claims,
//! cancels and ends are those of [`jobs`](super::jobs), and retention deletes it as it deletes a task.
//!
//! ```text
//! user, before     index sandboxes_by_user (user_id, id)
//! before                 sandboxes_by_id   (id)
//! name                   sandboxes_by_name (name, user_id, ended or not, id): the one that has not ended, else the newest
//! number, user, before   sandboxes_live    (user_id, id): those that have not ended
//! ```

use super::{
    Authority, CreateSandboxOutcome, Lane, QueueLimits, SandboxEnd, SandboxFilter, SandboxLimits,
    SandboxPage, SandboxRecord, Store, StoreError, StoredSandbox, TaskMatch, audit,
    authority::authorize,
    rows::{execute, parse_document, parse_name, to_document},
    task_names::{id_prefix_range, matches},
    tasks::{NewTask, exceeded_limit},
};
use crate::api::{
    JobId, TaskId, UserId,
    audit::AuditEvent,
    jobs::{JobError, SandboxSpec},
    tasks::{TaskSpec, TaskStatus},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::time::Duration;

const SELECT: &str =
    "SELECT t.id, t.user_id, t.spec, t.sandbox, t.summary, t.created_at, t.ended_at,
        (SELECT handle FROM users WHERE users.id = t.user_id) AS owner,
        j.id AS job, j.status AS job_status, j.node_id, coalesce(n.slug, j.node_slug) AS slug,
        j.result ->> '$.reason' AS reason, j.result -> '$.error' AS error,
        coalesce(j.result ->> '$.oom_killed', 0) AS oom_killed
    FROM tasks t JOIN jobs j ON j.task_id = t.id LEFT JOIN nodes n ON n.id = j.node_id
    WHERE t.id = ?1 AND t.sandbox IS NOT NULL";
const LIST: &str =
    "SELECT id FROM tasks WHERE sandbox IS NOT NULL AND id < ?1 ORDER BY id DESC LIMIT ?2";
const OWN_LIST: &str = "SELECT id FROM tasks WHERE sandbox IS NOT NULL AND user_id = ?3 AND id < ?1
    ORDER BY id DESC LIMIT ?2";
/// Those that have not ended, of all users: no more than may live at a time, so that they can be sorted.
const LIVE_LIST: &str = "SELECT id FROM tasks INDEXED BY sandboxes_live
    WHERE sandbox IS NOT NULL AND ended_at IS NULL AND id < ?1 ORDER BY id DESC LIMIT ?2";
const OWN_LIVE_LIST: &str = "SELECT id FROM tasks INDEXED BY sandboxes_live
    WHERE sandbox IS NOT NULL AND ended_at IS NULL AND user_id = ?3 AND id < ?1 ORDER BY id DESC LIMIT ?2";
const OWN_NAMED: &str =
    "SELECT id FROM tasks WHERE sandbox IS NOT NULL AND sandbox ->> '$.name' = ?1 AND user_id = ?2
    ORDER BY ended_at IS NULL DESC, id DESC LIMIT 1";
const ANY_NAMED: &str = "SELECT id FROM tasks WHERE sandbox IS NOT NULL AND sandbox ->> '$.name' = ?1 AND ended_at IS NULL LIMIT 2";
const LIVE_NAMED: &str =
    "SELECT id FROM tasks WHERE sandbox IS NOT NULL AND sandbox ->> '$.name' = ?1 AND user_id = ?2
    AND (ended_at IS NULL) = 1 LIMIT 1";
const LIVE: &str =
    "SELECT count(*), count(*) FILTER (WHERE user_id = ?1) FROM tasks INDEXED BY sandboxes_live
    WHERE sandbox IS NOT NULL AND ended_at IS NULL";
const OWN_PREFIX: &str = "SELECT id FROM tasks WHERE sandbox IS NOT NULL AND user_id = ?3 AND id >= ?1 AND id < ?2 LIMIT 2";
const ANY_PREFIX: &str =
    "SELECT id FROM tasks WHERE sandbox IS NOT NULL AND id >= ?1 AND id < ?2 LIMIT 2";
const STARTING: &str = "SELECT t.id, t.spec ->> '$.sandbox.session.lifetime_seconds'
    FROM jobs j JOIN tasks t ON t.id = j.task_id
    WHERE j.id = ?1 AND j.attempt = ?2 AND j.status = 'running' AND t.sandbox IS NOT NULL
      AND t.sandbox ->> '$.started_at' IS NULL";
/// Text that sorts after all ids.
const AFTER_IDS: &str = "g";

fn sandbox(row: &Row<'_>) -> Result<StoredSandbox, StoreError> {
    let [spec, record]: [String; 2] = [row.get("spec")?, row.get("sandbox")?];
    let error: Option<String> = row.get("error")?;
    let spec: TaskSpec = parse_document(&spec)?;
    Ok(StoredSandbox {
        id: row.get("id")?,
        user: row.get("user_id")?,
        owner: row.get("owner")?,
        record: parse_document(&record)?,
        // A list must not keep the environments, of up to 2 MiB each.
        spec: SandboxSpec {
            env: None,
            ..spec.sandbox
        },
        job: row.get("job")?,
        status: parse_name(row.get("job_status")?, "job status")?,
        node: row.get("node_id")?,
        node_slug: row.get("slug")?,
        created_at: row.get("created_at")?,
        ended_at: row.get("ended_at")?,
        end: SandboxEnd {
            reason: row.get("reason")?,
            error: error
                .map(|error| parse_document::<JobError>(&error))
                .transpose()?,
            oom_killed: row.get("oom_killed")?,
            summary: row.get("summary")?,
        },
    })
}

fn get(c: &Connection, id: TaskId) -> Result<Option<StoredSandbox>, StoreError> {
    let mut statement = c.prepare_cached(SELECT)?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(sandbox).transpose()
}

/// Reason why the user can't have another sandbox of this name.
fn refusal(
    c: &Connection,
    owner: UserId,
    name: Option<&str>,
    limits: SandboxLimits,
) -> Result<Option<CreateSandboxOutcome>, StoreError> {
    if let Some(name) = name {
        let mut statement = c.prepare_cached(LIVE_NAMED)?;
        let taken = statement.query_row(params![name, owner], |row| row.get(0));
        if let Some(id) = taken.optional()? {
            return Ok(Some(CreateSandboxOutcome::NameTaken(id)));
        }
    }
    let mut statement = c.prepare_cached(LIVE)?;
    let (all, own): (u32, u32) =
        statement.query_row([owner], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(if own >= limits.per_user {
        Some(CreateSandboxOutcome::TooManyOfUser)
    } else if all >= limits.all {
        Some(CreateSandboxOutcome::TooMany)
    } else {
        None
    })
}

impl Store {
    /// Stores a sandbox and its job, in one commit. `event` is of its creation, `secrets_used` that it gets secrets, if it
    /// does.
    pub async fn sandbox_create(
        &self,
        by: Authority,
        (spec, record): (TaskSpec, SandboxRecord),
        (queue, limits): (QueueLimits, SandboxLimits),
        event: AuditEvent,
        secrets_used: Option<AuditEvent>,
    ) -> Result<CreateSandboxOutcome, StoreError> {
        self.ensure_writable()?;
        let (reserve, lanes) = (self.reserve.clone(), self.lanes.clone());
        let now = event.at;
        let new = NewTask::new(by.user, &spec, secrets_used, now)?;
        let document = to_document(&record)?;
        self.write(move |c| {
            authorize(c, by, now)?;
            reserve.check_create()?;
            if let Some(refusal) = refusal(c, by.user, record.name.as_deref(), limits)? {
                return Ok(refusal);
            }
            if let Some(limit) = exceeded_limit(c, by.user, new.document.len(), queue)? {
                return Ok(CreateSandboxOutcome::QueueFull(limit));
            }
            if !lanes.has_room(by.user, &new.placement) {
                return Ok(CreateSandboxOutcome::TooManyLanes);
            }
            lanes.enter(Lane {
                user: by.user,
                placement: new.placement.clone(),
            });
            new.insert_rows(c, None, Some(&document))?;
            audit::add(c, &event.clone().to(new.id.to_string()))?;
            Ok(CreateSandboxOutcome::Created(new.id))
        })
        .await
    }

    /// Sandbox of this id, where it belongs to `owner` or `owner` is `None`.
    pub async fn sandbox_get(
        &self,
        id: TaskId,
        owner: Option<UserId>,
    ) -> Result<Option<StoredSandbox>, StoreError> {
        self.read(move |c| {
            let found = get(c, id)?;
            Ok(found.filter(|sandbox| owner.is_none_or(|owner| owner == sandbox.user)))
        })
        .await
    }

    /// Sandboxes, newest first, as one of the lists of the user `by`.
    pub async fn sandbox_list(
        &self,
        by: UserId,
        filter: SandboxFilter,
    ) -> Result<SandboxPage, StoreError> {
        self.list(by, move |c| {
            // One snapshot, so that no sandbox is deleted between its id and its row.
            let c = &c.unchecked_transaction()?;
            let before = filter.before.map(|id| id.to_string());
            let before = before.as_deref().unwrap_or(AFTER_IDS);
            // One more than the limit, to see whether there are more.
            let limit = filter.limit + 1;
            let sql = match (filter.owner, filter.with_ended) {
                (Some(_), true) => OWN_LIST,
                (Some(_), false) => OWN_LIVE_LIST,
                (None, true) => LIST,
                (None, false) => LIVE_LIST,
            };
            let mut statement = c.prepare_cached(sql)?;
            let id = |row: &Row<'_>| row.get(0);
            let ids = match filter.owner {
                Some(owner) => statement.query_map(params![before, limit, owner], id)?,
                None => statement.query_map(params![before, limit], id)?,
            };
            let ids: Vec<TaskId> = ids.collect::<Result<_, _>>()?;
            let mut sandboxes = Vec::new();
            for id in ids.iter().take(filter.limit as usize) {
                sandboxes.extend(get(c, *id)?);
            }
            Ok(SandboxPage {
                sandboxes,
                more: ids.len() > filter.limit as usize,
            })
        })
        .await
    }

    /// Sandbox that `word` stands for: that of this id, else the user's of this name, one that has not ended first, else
    /// with this prefix of its id. Admins find the sandboxes of all users after their own, by name those that have not
    /// ended.
    pub async fn sandbox_find(
        &self,
        word: String,
        user: UserId,
        is_admin: bool,
    ) -> Result<TaskMatch, StoreError> {
        self.read(move |c| {
            let owner = (!is_admin).then_some(user);
            if let Ok(id) = word.parse::<TaskId>() {
                let sql = "SELECT id FROM tasks WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2) AND sandbox IS NOT NULL";
                let found = matches(c, sql, params![id, owner], TaskMatch::SeveralIds)?;
                if found != TaskMatch::None {
                    return Ok(found);
                }
            }
            let found = matches(c, OWN_NAMED, params![word, user], TaskMatch::SeveralNames)?;
            if found != TaskMatch::None {
                return Ok(found);
            }
            if let Some((start, end)) = id_prefix_range(&word.to_ascii_lowercase()) {
                let several = TaskMatch::SeveralIds;
                let found = match owner {
                    Some(owner) => matches(c, OWN_PREFIX, params![start, end, owner], several)?,
                    None => matches(c, ANY_PREFIX, params![start, end], several)?,
                };
                if found != TaskMatch::None {
                    return Ok(found);
                }
            }
            match is_admin {
                true => matches(c, ANY_NAMED, params![word], TaskMatch::SeveralNames),
                false => Ok(TaskMatch::None),
            }
        })
        .await
    }

    /// Stores that a sandbox has begun to run, where that is not known yet, and the end of its lifetime.
    pub async fn sandbox_start(
        &self,
        job: JobId,
        attempt: u32,
        started_at: Time,
    ) -> Result<(), StoreError> {
        self.write(move |c| {
            let mut statement = c.prepare_cached(STARTING)?;
            let found = statement.query_row(params![job, attempt], |row| {
                Ok((row.get(0)?, row.get(1)?))
            });
            let found: Option<(TaskId, Option<u32>)> = found.optional()?;
            let Some((id, lifetime)) = found else {
                return Ok(());
            };
            let lifetime = Duration::from_secs(lifetime.unwrap_or(0).into());
            let expires_at = started_at.plus(lifetime);
            execute(
                c,
                "UPDATE tasks SET sandbox = json_set(sandbox, '$.started_at', ?2, '$.expires_at', ?3), updated_at = ?4
                 WHERE id = ?1",
                params![
                    id,
                    started_at.to_string(),
                    expires_at.to_string(),
                    started_at
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Stores that a sandbox was renewed; false where it has ended. `event` is of the renewal. It has begun to run, too,
    /// so that a record of that which comes later does not undo the renewal.
    pub async fn sandbox_renew(
        &self,
        id: TaskId,
        expires_at: Time,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let renewed = execute(
                c,
                "UPDATE tasks SET sandbox = json_set(sandbox, '$.expires_at', ?2,
                     '$.started_at', coalesce(sandbox ->> '$.started_at', ?5)), updated_at = ?3
                 WHERE id = ?1 AND sandbox IS NOT NULL AND status = ?4",
                params![
                    id,
                    expires_at.to_string(),
                    event.at,
                    TaskStatus::Running.as_str(),
                    event.at.to_string()
                ],
            )?;
            if renewed > 0 {
                audit::add(c, &event.clone().to(id.to_string()))?;
            }
            Ok(renewed > 0)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
