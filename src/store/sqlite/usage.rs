//! Use of models, summed up by day.

use super::{InferenceUser, Store, StoreError, UsageFilter, UsageRecord, audit};
use crate::api::{
    JobId, NodeId, TaskId, UserId,
    audit::{AuditAction, AuditEvent},
    jobs::JobInference,
    time::Time,
    usage::{Day, UsageField, UsageSum},
};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};
use std::time::Duration;

/// Time for which sums are kept: for reports that compare a month with that of the year before.
pub(super) const USAGE_RETENTION: Duration = Duration::from_hours(400 * 24);
/// Largest number of tokens of one request; a model server that claims more doesn't spoil the sums.
const MAX_TOKENS: u64 = 1_000_000_000;

const ADD: &str = "INSERT INTO inference_usage
    (user_id, day, key_id, task_id, model, key_name, requests, prompt_tokens, completion_tokens)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7, ?8)
    ON CONFLICT (user_id, day, key_id, task_id, model) DO UPDATE SET
        requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        completion_tokens = completion_tokens + excluded.completion_tokens";
/// Adds the rows of a task to those without one.
pub(super) const DETACH_TASK: &str = "INSERT INTO inference_usage
    (user_id, day, key_id, model, key_name, requests, prompt_tokens, completion_tokens)
    SELECT user_id, day, key_id, model, key_name, requests, prompt_tokens, completion_tokens
    FROM inference_usage WHERE task_id = ?1 AND task_id <> ''
    ON CONFLICT (user_id, day, key_id, task_id, model) DO UPDATE SET
        requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        completion_tokens = completion_tokens + excluded.completion_tokens";
/// Deletes the rows of a task.
pub(super) const DELETE_OF_TASK: &str =
    "DELETE FROM inference_usage WHERE task_id = ?1 AND task_id <> ''";
/// Owner of a job that runs at a node and may use models. Both nodes of a job that is being moved count.
const INFERENCE_USER: &str = "SELECT tasks.id, users.id, users.handle
    FROM jobs JOIN tasks ON tasks.id = jobs.task_id JOIN users ON users.id = tasks.user_id
    WHERE jobs.id = ?1 AND jobs.status = 'running' AND (jobs.node_id = ?2 OR jobs.offered_node_id = ?2)
        AND json_extract(tasks.spec, '$.sandbox.use_inference') = 1";
/// Sums of days before a time.
pub(super) const OLD_USAGE: &str =
    "DELETE FROM inference_usage WHERE (user_id, day, key_id, task_id, model) IN
    (SELECT user_id, day, key_id, task_id, model FROM inference_usage WHERE day <= ?1 LIMIT ?2)";

/// Tokens as the database stores them.
fn tokens(count: u64) -> i64 {
    i64::try_from(count.min(MAX_TOKENS)).unwrap_or(0)
}

fn add(c: &Connection, record: &UsageRecord) -> Result<(), StoreError> {
    let key = record.key.as_ref();
    let text = |id: Option<String>| id.unwrap_or_default();
    c.prepare_cached(ADD)?.execute(params![
        record.user,
        Day::of(record.event.at).start(),
        text(key.map(|(id, _)| id.to_string())),
        text(record.task.map(|id| id.to_string())),
        record.model,
        text(key.map(|(_, name)| name.clone())),
        tokens(record.prompt_tokens),
        tokens(record.completion_tokens),
    ])?;
    audit::add(c, &record.event)
}

/// Records what a model did for a task that is a prompt, and for how long, in the transaction that ends its job. A node
/// is not trusted to say this of another task, nor to rename the model that the prompt names.
pub(super) fn add_prompt(
    c: &Connection,
    job: JobId,
    (inference, took): (&JobInference, Duration),
    now: Time,
) -> Result<(), StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT tasks.id, users.id, users.handle, nodes.slug, tasks.spec ->> '$.sandbox.prompt.model'
         FROM jobs JOIN tasks ON tasks.id = jobs.task_id JOIN users ON users.id = tasks.user_id
         LEFT JOIN nodes ON nodes.id = jobs.node_id
         WHERE jobs.id = ?1 AND json_type(tasks.spec, '$.sandbox.prompt') = 'object'",
    )?;
    let mut rows = statement.query([job])?;
    let Some(row) = rows.next()? else {
        return Ok(());
    };
    let (task, user): (TaskId, UserId) = (row.get(0)?, row.get(1)?);
    let (handle, node): (String, Option<String>) = (row.get(2)?, row.get(3)?);
    let named: Option<String> = row.get(4)?;
    let model = named.unwrap_or_else(|| inference.model.clone());
    let (read, written) = (inference.prompt_tokens, inference.completion_tokens);
    let of_node = node.map(|node| format!("node {node}, "));
    let of_node = of_node.unwrap_or_default();
    let took = took.as_millis();
    let details = format!("task {task}, {of_node}{read} tokens in, {written} out, {took} ms");
    let event = AuditEvent::new(AuditAction::InferenceRequest, now, None)
        .by(user, handle)
        .to(&model)
        .with_details(details);
    let record = UsageRecord {
        user,
        key: None,
        task: Some(task),
        model,
        prompt_tokens: read,
        completion_tokens: written,
        event,
    };
    add(c, &record)
}

impl Store {
    /// Task and user of a job that runs at this node and may use models; `None` for any other.
    pub async fn inference_user(
        &self,
        job: JobId,
        node: NodeId,
    ) -> Result<Option<InferenceUser>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(INFERENCE_USER)?;
            let user = statement.query_row(params![job, node], |row| {
                Ok(InferenceUser {
                    task: row.get(0)?,
                    user: row.get(1)?,
                    handle: row.get(2)?,
                })
            });
            Ok(user.optional()?)
        })
        .await
    }
}

/// Columns by which a field groups and sorts, and those that it shows.
fn columns(field: UsageField) -> (&'static str, &'static str) {
    match field {
        UsageField::Day => ("day DESC", "day"),
        UsageField::User => ("handle, user_id", "handle"),
        UsageField::Key => ("key_name, key_id", "key_id, key_name"),
        UsageField::Task => ("task_id DESC", "task_id"),
        UsageField::Model => ("model", "model"),
    }
}

impl UsageFilter {
    /// Statement for the sums. A user's rows are read by the primary key, those of all users by the index of days.
    fn query(&self) -> String {
        let shown = self.by.iter().map(|field| columns(*field).1);
        let sorted: Vec<_> = self.by.iter().map(|field| columns(*field).0).collect();
        let sorted = sorted.join(", ");
        let grouped = sorted.replace(" DESC", "");
        let owner = self.owner.map_or("", |_| "AND user_id = :owner");
        let handle = self
            .handle
            .as_ref()
            .map_or("", |_| "AND u.handle = :handle");
        // The sum of integers fails where it is too large; a total does not.
        format!(
            "SELECT {}, CAST(total(requests) AS INTEGER) AS requests,
                CAST(total(prompt_tokens) AS INTEGER) AS prompt_tokens,
                CAST(total(completion_tokens) AS INTEGER) AS completion_tokens
             FROM inference_usage JOIN users u ON u.id = user_id
             WHERE day >= :since AND day <= :until {owner} {handle}
             GROUP BY {grouped} ORDER BY {sorted} LIMIT :limit OFFSET :offset",
            shown.collect::<Vec<_>>().join(", ")
        )
    }

    fn sum(&self, row: &Row<'_>) -> Result<UsageSum, StoreError> {
        let count = |name| -> Result<u64, StoreError> {
            Ok(u64::try_from(row.get::<_, i64>(name)?).unwrap_or(0))
        };
        let mut sum = UsageSum {
            requests: count("requests")?,
            prompt_tokens: count("prompt_tokens")?,
            completion_tokens: count("completion_tokens")?,
            ..UsageSum::default()
        };
        for field in &self.by {
            match field {
                UsageField::Day => sum.day = Some(Day::of(row.get::<_, Time>("day")?)),
                UsageField::User => sum.user = Some(row.get("handle")?),
                UsageField::Key => {
                    sum.key_id = row.get::<_, String>("key_id")?.parse().ok();
                    let name: String = row.get("key_name")?;
                    sum.key_name = sum.key_id.map(|_| name);
                }
                UsageField::Task => sum.task_id = row.get::<_, String>("task_id")?.parse().ok(),
                UsageField::Model => sum.model = Some(row.get("model")?),
            }
        }
        Ok(sum)
    }
}

impl Store {
    /// Adds requests that have ended to the sums and to the audit log, all in one commit.
    pub async fn usage_add(&self, records: Vec<UsageRecord>) -> Result<(), StoreError> {
        self.write(move |c| records.iter().try_for_each(|record| add(c, record)))
            .await
    }

    /// Sums of use, as one of the lists of the user `by`.
    pub async fn usage_list(
        &self,
        by: UserId,
        filter: UsageFilter,
    ) -> Result<Vec<UsageSum>, StoreError> {
        self.list(by, move |c| {
            let sql = filter.query();
            // Each order of the fields is another statement.
            let mut statement = c.prepare(&sql)?;
            let named = named_params! {
                ":since": filter.since.start(),
                ":until": filter.until.start(),
                ":owner": filter.owner,
                ":handle": filter.handle,
                ":limit": filter.limit,
                ":offset": filter.offset,
            };
            let known = named.iter().filter(|(name, _)| sql.contains(name));
            let known: Vec<_> = known.copied().collect();
            let mut rows = statement.query(&known[..])?;
            let mut sums = Vec::new();
            while let Some(row) = rows.next()? {
                sums.push(filter.sum(row)?);
            }
            Ok(sums)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
