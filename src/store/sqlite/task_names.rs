//! Names of tasks: the task that a word stands for, and the next free name.
//!
//! A name belongs to one task of a user. Each lookup uses an index, and takes few of them however many tasks
//! have similar names. Sandboxes are no tasks here: none has a name in this column.

use super::{Store, StoreError, TaskMatch};
use crate::api::{
    TaskId, UserId,
    tasks::{TaskStatus, normalize_name, numbered_name},
};
use rusqlite::{Connection, params};
use std::ops::Range;

/// Shortest prefix of an id that stands for the id, in characters.
const MIN_PREFIX: usize = 8;
/// Characters of an id.
const ID_CHARS: usize = 36;

const OWN_NAMED: &str = "SELECT id FROM tasks WHERE user_id = ?1 AND name = ?2 LIMIT 2";
const OWN_PREFIX: &str = "SELECT id FROM tasks WHERE user_id = ?1 AND status = ?2 AND id >= ?3 AND id < ?4 AND sandbox IS NULL LIMIT 2";

/// First free name of `base`, `base-2`, `base-3` … among the tasks of a user. Deleted tasks may leave gaps; then
/// it is any free one.
pub(super) fn free_name(c: &Connection, owner: UserId, base: &str) -> Result<String, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM tasks WHERE user_id = ?1 AND name = ?2)";
    let mut statement = c.prepare_cached(sql)?;
    let n = first_free(|n| {
        let taken = statement.query_row(params![owner, numbered_name(base, n)], |row| row.get(0));
        Ok(taken?)
    })?;
    Ok(numbered_name(base, n))
}

/// Number from 1 that is free while the one before it is taken, found by doubling and then by bisection.
fn first_free(
    mut is_taken: impl FnMut(u64) -> Result<bool, StoreError>,
) -> Result<u64, StoreError> {
    if !is_taken(1)? {
        return Ok(1);
    }
    let Range { mut start, mut end } = 1..2;
    while is_taken(end)? {
        (start, end) = (end, end.saturating_mul(2));
    }
    while end - start > 1 {
        let middle = start + (end - start) / 2;
        if is_taken(middle)? {
            start = middle;
        } else {
            end = middle;
        }
    }
    Ok(end)
}

impl Store {
    /// Task that `word` stands for: the task of this id, else of this name, else with this prefix of its id. Admins
    /// find the tasks of all users after their own. A name of another user is matched last, so that it can't
    /// imitate the prefix of an id.
    pub async fn task_find(
        &self,
        word: String,
        user: UserId,
        is_admin: bool,
    ) -> Result<TaskMatch, StoreError> {
        self.read(move |c| {
            let owner = (!is_admin).then_some(user);
            if let Ok(id) = word.parse::<TaskId>() {
                let sql = "SELECT id FROM tasks WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2) AND sandbox IS NULL";
                let found = matches(c, sql, params![id, owner], TaskMatch::SeveralIds)?;
                if found != TaskMatch::None {
                    return Ok(found);
                }
            }
            let plain = normalize_name(&word).filter(|plain| *plain != word);
            let names = || [Some(&word), plain.as_ref()].into_iter().flatten();
            for name in names() {
                let found = own_named(c, name, user)?;
                if found != TaskMatch::None {
                    return Ok(found);
                }
            }
            let found = by_id_prefix(c, &word.to_ascii_lowercase(), owner)?;
            if found != TaskMatch::None || !is_admin {
                return Ok(found);
            }
            for name in names() {
                let found = any_named(c, name)?;
                if found != TaskMatch::None {
                    return Ok(found);
                }
            }
            Ok(TaskMatch::None)
        })
        .await
    }
}

fn own_named(c: &Connection, name: &str, user: UserId) -> Result<TaskMatch, StoreError> {
    matches(c, OWN_NAMED, params![user, name], TaskMatch::SeveralNames)
}

fn any_named(c: &Connection, name: &str) -> Result<TaskMatch, StoreError> {
    let all = "SELECT id FROM tasks WHERE name = ?1 LIMIT 2";
    matches(c, all, params![name], TaskMatch::SeveralNames)
}

fn by_id_prefix(
    c: &Connection,
    prefix: &str,
    owner: Option<UserId>,
) -> Result<TaskMatch, StoreError> {
    let Some((prefix, end)) = id_prefix_range(prefix) else {
        return Ok(TaskMatch::None);
    };
    let Some(owner) = owner else {
        let sql = "SELECT id FROM tasks WHERE id >= ?1 AND id < ?2 AND sandbox IS NULL LIMIT 2";
        return matches(c, sql, params![prefix, end], TaskMatch::SeveralIds);
    };
    // By status, like the index: tasks of other users from the same minute are not read.
    let mut found = TaskMatch::None;
    for status in TaskStatus::ALL {
        let parameters = params![owner, status.as_str(), prefix, end];
        let more = matches(c, OWN_PREFIX, parameters, TaskMatch::SeveralIds)?;
        match (&found, more) {
            (_, TaskMatch::None) => {}
            (TaskMatch::None, more) => found = more,
            _ => return Ok(TaskMatch::SeveralIds),
        }
    }
    Ok(found)
}

/// Bounds of the ids that begin like this; `None` for a text that can't stand for an id.
pub(super) fn id_prefix_range(prefix: &str) -> Option<(&str, String)> {
    let is_of_ids = |b: u8| b.is_ascii_hexdigit() || b == b'-';
    let is_prefix = (MIN_PREFIX..ID_CHARS).contains(&prefix.len()) && prefix.bytes().all(is_of_ids);
    // No character of an id sorts after `f`.
    is_prefix.then(|| (prefix, format!("{prefix}g")))
}

/// Match of a query for at most two ids.
pub(super) fn matches(
    c: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    several: TaskMatch,
) -> Result<TaskMatch, StoreError> {
    let mut statement = c.prepare_cached(sql)?;
    let ids = statement.query_map(params, |row| row.get(0))?;
    let ids: Vec<TaskId> = ids.collect::<Result<_, _>>()?;
    Ok(match ids[..] {
        [] => TaskMatch::None,
        [id] => TaskMatch::One(id),
        _ => several,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::query_plan::assert_seeks;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn name_lookups_use_index() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let looked = store.read_blocking(|c| {
            let plan = assert_seeks(c, OWN_NAMED);
            assert!(plan.contains("name=? AND user_id=?"), "{plan}");
            let plan = assert_seeks(c, OWN_PREFIX);
            assert!(plan.contains("status=? AND id>? AND id<?"), "{plan}");
            Ok(())
        });
        looked.await.unwrap();
    }

    #[test]
    fn free_number_takes_few_lookups() {
        let mut lookups = 0;
        let found = first_free(|n| {
            lookups += 1;
            Ok(n <= 100_000)
        });
        assert_eq!((found.unwrap(), lookups < 40), (100_001, true), "{lookups}");
    }

    proptest! {
        #[test]
        fn free_number_is_never_taken(taken: BTreeSet<u8>) {
            let is_taken = |n: u64| taken.iter().any(|one| u64::from(*one) == n);
            let free = first_free(|n| Ok(is_taken(n))).unwrap();
            prop_assert!(!is_taken(free) && (free == 1 || is_taken(free - 1)));
        }
    }
}
