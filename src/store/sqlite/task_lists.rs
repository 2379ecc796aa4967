//! Lists of tasks, newest first.
//!
//! The cost of a page depends neither on its depth in the list nor on the number of tasks, nor on how few of
//! them match: the columns that a list filters by are a prefix of an index whose last column is the id.
//!
//! ```text
//! user, status, before      index tasks_by_user      (user_id, status, id)
//! status, before            index tasks_by_status    (status, id)
//! user, name, status, before      tasks_by_user_stem (user_id, STEM, status, id)
//! name, status, before            tasks_by_stem      (STEM, status, id)
//! ```
//!
//! A list without a status seeks in each of the five statuses and merges what it finds by id. Sandboxes, which are rows of
//! the same table, are in none of these indexes.

use super::{
    Store, StoreError, TaskFilter, TaskPage,
    tasks::{COLUMNS, task},
};
use crate::api::{
    TaskId, UserId,
    tasks::{Task, TaskStatus, normalize_name},
};
use rusqlite::{Connection, OptionalExtension as _, ToSql, params_from_iter};
use std::collections::BTreeSet;

/// Longest command, and longest prompt, in a list.
const MAX_LISTED_BYTES: usize = 4096;
/// Name without the digits at its end, such as `build-` of `build-2`; as in the indexes.
const STEM: &str = "rtrim(name, '0123456789')";
/// Text that sorts after all ids.
const AFTER_IDS: &str = "g";

/// Columns and their values, in the order of an index.
type Conditions<'a> = Vec<(&'static str, &'a dyn ToSql)>;

impl TaskFilter {
    /// Ids of the page and of the next task, newest first.
    fn ids(&self, c: &Connection) -> Result<Vec<TaskId>, StoreError> {
        // One more than the limit, to see whether there are more.
        let limit = self.limit as usize + 1;
        let mut ids = BTreeSet::new();
        match &self.name {
            None => self.seek(c, None, &mut ids)?,
            Some(name) => {
                let plain = normalize_name(name);
                if let Some(plain) = &plain {
                    self.seek(c, Some(&format!("{plain}-")), &mut ids)?;
                }
                // A name of an earlier release may be of any form.
                for name in BTreeSet::from_iter([Some(name), plain.as_ref()].into_iter().flatten())
                {
                    self.exact(c, name, &mut ids)?;
                }
            }
        }
        let page = ids.into_iter().rev().skip(self.offset as usize);
        Ok(page.take(limit).collect())
    }

    /// Adds the newest tasks of each status, of this stem if any.
    fn seek(
        &self,
        c: &Connection,
        stem: Option<&String>,
        ids: &mut BTreeSet<TaskId>,
    ) -> Result<(), StoreError> {
        let statuses = match &self.status {
            Some(status) => std::slice::from_ref(status),
            None => TaskStatus::ALL,
        };
        let last = self.before.map(|id| id.to_string());
        let last = last.as_deref().unwrap_or(AFTER_IDS);
        let limit = i64::from(self.offset) + i64::from(self.limit) + 1;
        for status in statuses.iter().map(|status| status.as_str()) {
            let mut conditions = self.owned();
            conditions.extend(stem.map(|stem| (STEM, stem as &dyn ToSql)));
            conditions.push(("status", &status));
            let mut statement = c.prepare_cached(&seek_sql(&conditions))?;
            let values = conditions.iter().map(|(_, value)| *value);
            let values = values.chain([&last as &dyn ToSql, &limit]);
            let found = statement.query_map(params_from_iter(values), |row| row.get(0))?;
            for id in found {
                ids.insert(id?);
            }
        }
        Ok(())
    }

    /// Adds the tasks of exactly this name: one for each user, or a few of a release before names were unique.
    fn exact(
        &self,
        c: &Connection,
        name: &str,
        ids: &mut BTreeSet<TaskId>,
    ) -> Result<(), StoreError> {
        let status = self.status.map(TaskStatus::as_str);
        let mut conditions: Conditions<'_> = vec![("name", &name)];
        conditions.extend(self.owned());
        conditions.extend(
            status
                .as_ref()
                .map(|status| ("status", status as &dyn ToSql)),
        );
        let mut statement = c.prepare_cached(&exact_sql(&conditions))?;
        let values = params_from_iter(conditions.iter().map(|(_, value)| *value));
        for id in statement.query_map(values, |row| row.get(0))? {
            let id = id?;
            if self.before.is_none_or(|before| id < before) {
                ids.insert(id);
            }
        }
        Ok(())
    }

    fn owned(&self) -> Conditions<'_> {
        let owner = self.owner.as_ref();
        owner
            .map(|owner| ("user_id", owner as &dyn ToSql))
            .into_iter()
            .collect()
    }
}

fn equal(conditions: &Conditions<'_>) -> String {
    let terms = conditions.iter().map(|(column, _)| format!("{column} = ?"));
    terms.collect::<Vec<_>>().join(" AND ")
}

fn seek_sql(conditions: &Conditions<'_>) -> String {
    // Sandboxes that stay have no name of a task, and the indexes of names have no other column.
    let is_by_name = conditions.iter().any(|(column, _)| *column == STEM);
    let kind = if is_by_name {
        ""
    } else {
        "AND sandbox IS NULL "
    };
    let equal = equal(conditions);
    format!("SELECT id FROM tasks WHERE {equal} AND id < ? {kind}ORDER BY id DESC LIMIT ?")
}

fn exact_sql(conditions: &Conditions<'_>) -> String {
    let equal = equal(conditions);
    format!("SELECT id FROM tasks INDEXED BY tasks_by_name WHERE {equal}")
}

/// Task without its details that may be long, nor a long prompt or command, which would make a list of tasks too large.
fn shortened(task: Task) -> Task {
    let length = task
        .command
        .iter()
        .flatten()
        .map(String::len)
        .sum::<usize>();
    let prompt = task
        .prompt
        .filter(|prompt| prompt.len() <= MAX_LISTED_BYTES);
    let command = task.command.filter(|_| length <= MAX_LISTED_BYTES);
    Task {
        prompt,
        command,
        details: task.details.shortened(),
        ..task
    }
}

impl Store {
    /// Tasks, newest first, as one of the lists of the user `by`.
    pub async fn task_list(&self, by: UserId, filter: TaskFilter) -> Result<TaskPage, StoreError> {
        self.list(by, move |c| {
            // One snapshot, so that no task is deleted between its id and its row.
            let c = &c.unchecked_transaction()?;
            let ids = filter.ids(c)?;
            let more = ids.len() > filter.limit as usize;
            let mut statement =
                c.prepare_cached(&format!("SELECT {COLUMNS} FROM tasks WHERE id = ?1"))?;
            let mut tasks = Vec::new();
            for id in ids.iter().take(filter.limit as usize) {
                let row = statement.query_row([id], |row| Ok(task(row)));
                tasks.extend(row.optional()?.transpose()?.map(shortened));
            }
            Ok(TaskPage { tasks, more })
        })
        .await
    }
}

#[cfg(test)]
mod tests;
