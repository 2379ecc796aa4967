//! Artifacts, and the references to contents.
//!
//! A content is needed while an artifact has it or a task that has not ended needs it. Triggers enter a content that
//! loses a reference into `released_contents`; [`contents_released`](Store::contents_released) reads that, and the
//! caller deletes from the disk what [`contents_unreferenced`](Store::contents_unreferenced) leaves.

mod eviction;

use super::{
    ArtifactFilter, Authority, NewArtifact, Store, StoreError, StoreUse, audit,
    authority::authorize, rows::execute,
};
use crate::api::{
    ArtifactId, TaskId, UserId,
    artifacts::Artifact,
    audit::AuditEvent,
    jobs::files::{Content, ContentHash},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params, params_from_iter};
use std::collections::BTreeSet;

const COLUMNS: &str = "id, name, sha256, size_bytes, is_executable, created_at, task_id";
/// Upload of a user with this name and content.
const SAME_UPLOAD: &str =
    "SELECT id FROM artifacts WHERE sha256 = ?1 AND user_id = ?2 AND name = ?3 AND task_id IS NULL";
const OF_CONTENT: &str =
    "SELECT size_bytes FROM artifacts WHERE sha256 = ?1 AND user_id = ?2 LIMIT 1";
const IS_REFERENCED: &str = "SELECT EXISTS (SELECT 1 FROM artifacts WHERE sha256 = ?1)
                                 OR EXISTS (SELECT 1 FROM task_contents WHERE sha256 = ?1)";
const OWN_BYTES: &str = "SELECT coalesce(sum(size_bytes), 0) FROM artifacts WHERE user_id = ?1";
const HOLDERS: &str = "SELECT count(*) FROM users AS u
    WHERE id = ?1 OR EXISTS (SELECT 1 FROM artifacts WHERE user_id = u.id)";
const USERS: &str = "SELECT count(*) FROM users WHERE id = ?1 OR is_active = 1";
/// Uploads that are older than a time.
pub(super) const OLD_UPLOADS: &str = "DELETE FROM artifacts WHERE id IN
    (SELECT id FROM artifacts WHERE task_id IS NULL AND created_at <= ?1 LIMIT ?2)";
/// Some artifacts of a task; it may have thousands.
pub(super) const SOME_OF_TASK: &str = "DELETE FROM artifacts WHERE id IN
    (SELECT id FROM artifacts WHERE task_id = ?1 LIMIT ?2)";

fn artifact(row: &Row<'_>) -> rusqlite::Result<Artifact> {
    Ok(Artifact {
        artifact_id: row.get("id")?,
        name: row.get("name")?,
        size_bytes: u64::try_from(row.get::<_, i64>("size_bytes")?).unwrap_or(0),
        sha256: row.get("sha256")?,
        executable: row.get("is_executable")?,
        created_at: row.get("created_at")?,
        task_id: row.get("task_id")?,
    })
}

fn get(
    c: &Connection,
    id: ArtifactId,
    owner: Option<UserId>,
) -> Result<Option<Artifact>, StoreError> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM artifacts WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2)"
    ))?;
    Ok(statement
        .query_row(params![id, owner], artifact)
        .optional()?)
}

/// Size as the database stores it; no file is larger.
fn size(content: &Content) -> i64 {
    i64::try_from(content.size_bytes).unwrap_or(i64::MAX)
}

fn insert(
    c: &Connection,
    owner: UserId,
    task: Option<TaskId>,
    new: &NewArtifact,
    now: Time,
) -> Result<ArtifactId, StoreError> {
    let id = ArtifactId::new();
    let mut statement = c.prepare_cached(
        "INSERT INTO artifacts (id, user_id, task_id, name, sha256, size_bytes, is_executable, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let NewArtifact {
        name,
        content,
        is_executable,
    } = new;
    statement.execute(params![
        id,
        owner,
        task,
        name,
        content.sha256,
        size(content),
        is_executable,
        now
    ])?;
    Ok(id)
}

/// Stores the files that were collected when a task ended.
pub(super) fn add_collected(
    c: &Connection,
    task: TaskId,
    artifacts: &[NewArtifact],
    now: Time,
) -> Result<(), StoreError> {
    if artifacts.is_empty() {
        return Ok(());
    }
    let sql = "SELECT user_id FROM tasks WHERE id = ?1";
    let owner: UserId = c.query_row(sql, [task], |row| row.get(0))?;
    for new in artifacts {
        insert(c, owner, Some(task), new, now)?;
    }
    Ok(())
}

/// Stores the references of a new task.
pub(super) fn add_references(
    c: &Connection,
    task: TaskId,
    contents: &[ContentHash],
) -> Result<(), StoreError> {
    for sha256 in contents {
        let sql = "INSERT OR IGNORE INTO task_contents VALUES (?1, ?2)";
        execute(c, sql, params![task, sha256])?;
    }
    Ok(())
}

impl ArtifactFilter {
    /// Statement whose conditions are a prefix of an index, with their values.
    fn query(&self) -> (String, Vec<Box<dyn ToSql>>) {
        let mut conditions = Vec::new();
        let mut values: Vec<Box<dyn ToSql>> = Vec::new();
        let mut add = |condition: &'static str, value: Box<dyn ToSql>| {
            conditions.push(condition);
            values.push(value);
        };
        if let Some(task) = self.task {
            add("task_id = ?", Box::new(task));
        } else if let Some(owner) = self.owner {
            add("user_id = ?", Box::new(owner));
        }
        if let Some(name) = &self.name {
            add("name = ?", Box::new(name.clone()));
        }
        if let Some(before) = self.before {
            add("id < ?", Box::new(before));
        }
        let conditions = if conditions.is_empty() {
            String::new()
        } else {
            format!("WHERE {}", conditions.join(" AND "))
        };
        // One more than the limit, to see whether there are more.
        values.push(Box::new(i64::from(self.limit) + 1));
        let sql = format!("SELECT {COLUMNS} FROM artifacts {conditions} ORDER BY id DESC LIMIT ?");
        (sql, values)
    }
}

impl Store {
    /// Stores an upload. The same content with the same name is the same artifact, whose age begins again.
    pub async fn artifact_add(
        &self,
        by: Authority,
        new: NewArtifact,
        now: Time,
    ) -> Result<Artifact, StoreError> {
        self.ensure_writable()?;
        self.write(move |c| {
            authorize(c, by, now)?;
            let same = params![new.content.sha256, by.user, new.name];
            let same: Option<ArtifactId> = c
                .prepare_cached(SAME_UPLOAD)?
                .query_row(same, |row| row.get(0))
                .optional()?;
            let id = match same {
                Some(id) => {
                    let sql = "UPDATE artifacts SET created_at = ?2 WHERE id = ?1";
                    c.prepare_cached(sql)?.execute(params![id, now])?;
                    id
                }
                None => insert(c, by.user, None, &new, now)?,
            };
            get(c, id, None)?.ok_or(StoreError::Damaged("artifact"))
        })
        .await
    }

    /// Artifact of this id, where it belongs to `owner` or `owner` is `None`.
    pub async fn artifact_get(
        &self,
        id: ArtifactId,
        owner: Option<UserId>,
    ) -> Result<Option<Artifact>, StoreError> {
        self.read(move |c| get(c, id, owner)).await
    }

    /// Size of a content that this user has as an artifact; `None` where they have it not.
    pub async fn artifact_content(
        &self,
        hash: ContentHash,
        owner: UserId,
    ) -> Result<Option<u64>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(OF_CONTENT)?;
            let size = statement.query_row(params![hash, owner], |row| row.get::<_, i64>(0));
            Ok(size.optional()?.and_then(|size| u64::try_from(size).ok()))
        })
        .await
    }

    /// User to whom the files of a task belong; `None` where there is no such task.
    pub async fn artifact_owner(&self, task: TaskId) -> Result<Option<UserId>, StoreError> {
        self.read(move |c| {
            let sql = "SELECT user_id FROM tasks WHERE id = ?1";
            let mut statement = c.prepare_cached(sql)?;
            Ok(statement.query_row([task], |row| row.get(0)).optional()?)
        })
        .await
    }

    /// Use of the room by this user and by others.
    pub async fn artifact_use(&self, owner: UserId) -> Result<StoreUse, StoreError> {
        self.read_long(move |c| {
            let count = |sql: &str| -> Result<u64, StoreError> {
                let number: i64 = c
                    .prepare_cached(sql)?
                    .query_row([owner], |row| row.get(0))?;
                Ok(u64::try_from(number).unwrap_or(0))
            };
            Ok(StoreUse {
                own: count(OWN_BYTES)?,
                holders: count(HOLDERS)?,
                users: count(USERS)?,
            })
        })
        .await
    }

    /// Artifacts, newest first, one more than the limit where there are more.
    pub async fn artifact_list(
        &self,
        by: UserId,
        filter: ArtifactFilter,
    ) -> Result<Vec<Artifact>, StoreError> {
        self.list(by, move |c| {
            let (sql, values) = filter.query();
            let mut statement = c.prepare_cached(&sql)?;
            let values = params_from_iter(values.iter().map(|value| value.as_ref()));
            let rows = statement.query_map(values, artifact)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Deletes an artifact, where it belongs to `owner` or `owner` is `None`; false where there is none. A task that
    /// needs its content keeps that.
    pub async fn artifact_delete(
        &self,
        id: ArtifactId,
        owner: Option<UserId>,
        by: Authority,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            authorize(c, by, event.at)?;
            if get(c, id, owner)?.is_none() {
                return Ok(false);
            }
            c.execute("DELETE FROM artifacts WHERE id = ?1", [id])?;
            audit::add(c, &event.clone().to(id.to_string()))?;
            Ok(true)
        })
        .await
    }

    /// Contents that lost a reference, at most `limit`.
    pub async fn contents_released(&self, limit: u32) -> Result<Vec<ContentHash>, StoreError> {
        self.read(move |c| {
            let sql = "SELECT sha256 FROM released_contents ORDER BY sha256 LIMIT ?1";
            let mut statement = c.prepare_cached(sql)?;
            let rows = statement.query_map([limit], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Those of some contents that nothing refers to.
    pub async fn contents_unreferenced(
        &self,
        contents: Vec<ContentHash>,
    ) -> Result<BTreeSet<ContentHash>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(IS_REFERENCED)?;
            let mut unreferenced = BTreeSet::new();
            for hash in &contents {
                if !statement.query_row([hash], |row| row.get::<_, bool>(0))? {
                    unreferenced.insert(hash.clone());
                }
            }
            Ok(unreferenced)
        })
        .await
    }

    /// Forgets that contents lost a reference: those that are `removed`, and those of `referenced` that still have
    /// another one, which may have been lost since the look for it.
    pub async fn contents_settled(
        &self,
        removed: BTreeSet<ContentHash>,
        referenced: Vec<ContentHash>,
    ) -> Result<(), StoreError> {
        self.write(move |c| {
            let mut is_referenced = c.prepare_cached(IS_REFERENCED)?;
            let mut forget = c.prepare_cached("DELETE FROM released_contents WHERE sha256 = ?1")?;
            for hash in &removed {
                forget.execute([hash])?;
            }
            for hash in &referenced {
                if is_referenced.query_row([hash], |row| row.get::<_, bool>(0))? {
                    forget.execute([hash])?;
                }
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests;
