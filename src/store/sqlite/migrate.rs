//! Migrations of the schema.
//!
//! `schema.sql` creates an empty database of the current version; [`STEPS`] bring an older one there. Both lead
//! to the same tables, columns and indexes, which a test checks.

use super::{StoreError, wal, wal_check};
use rusqlite::{Connection, TransactionBehavior};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    time::Instant,
};

/// Schema of an empty database of the current version.
const SCHEMA: &str = include_str!("../../../schema.sql");

/// Steps from each version to the next, beginning with version 1.
const STEPS: &[&str] = &[
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
    include_str!("migrations/0004.sql"),
    include_str!("migrations/0005.sql"),
    include_str!("migrations/0006.sql"),
    include_str!("migrations/0007.sql"),
    include_str!("migrations/0008.sql"),
    include_str!("migrations/0009.sql"),
    include_str!("migrations/0010.sql"),
    include_str!("migrations/0011.sql"),
    include_str!("migrations/0012.sql"),
    include_str!("migrations/0013.sql"),
];

/// Version of the schema that this program writes.
pub(super) const VERSION: i64 = STEPS.len() as i64 + 1;

/// Migrates the database to [`VERSION`], in one transaction that also sets the version.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let begun = Instant::now();
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    if found == VERSION {
        // Nothing is written, so that a start needs no space on the disk.
        return Ok(());
    }
    if found == 0 {
        transaction.execute_batch(SCHEMA)?;
    } else {
        let todo = usize::try_from(found - 1)
            .ok()
            .and_then(|done| STEPS.get(done..));
        let todo = todo.ok_or_else(|| StoreError::TooNew {
            path: path.to_owned(),
            found,
            known: VERSION,
        })?;
        tracing::info!(
            database = %path.display(), found, wanted = VERSION,
            "migrating the database of an earlier release; a large one takes a while"
        );
        for step in todo {
            transaction.execute_batch(step)?;
        }
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    if found > 0 {
        let seconds = begun.elapsed().as_secs();
        tracing::info!(database = %path.display(), seconds, "database migrated");
    }
    Ok(())
}

/// Byte offset of `user_version` in a database file (SQLite file format, section 1.3).
const VERSION_OFFSET: u64 = 60;

/// Whether there is no database at `path`, or one without a schema. The file is read directly, since SQLite would
/// create files beside it. An intact log counts as content.
pub fn is_empty(path: &Path) -> io::Result<bool> {
    let mut version = [0; 4];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut version, VERSION_OFFSET));
    match read {
        Ok(()) if version != [0; 4] => return Ok(false),
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error),
    }
    let log = wal::path_of(path);
    let is_empty = fs::metadata(&log).map_or(true, |log| log.len() == 0);
    Ok(is_empty || wal_check::is_damaged(&log)?)
}

/// Schema version of a database; 0 where it is empty.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::types::ValueRef;

    const VERSION_1: &str = include_str!("../../../tests/fixtures/schema-v1.sql");

    fn database(schema: &str, version: i64) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(schema).unwrap();
        connection
            .pragma_update(None, "user_version", version)
            .unwrap();
        connection
    }

    fn upgrade(connection: &mut Connection) -> Result<(), StoreError> {
        migrate(connection, Path::new("cynode.db"))
    }

    /// Rows of a query, as text.
    fn rows(connection: &Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            (0..columns)
                .map(|n| Ok(format!("{:?}", row.get_ref(n)?)))
                .collect::<Result<Vec<_>, _>>()
        });
        rows.unwrap().map(|row| row.unwrap().join(" ")).collect()
    }

    /// Tables and indexes with their columns and references.
    fn shape(connection: &Connection) -> Vec<String> {
        [
            "SELECT type, name, tbl_name FROM sqlite_schema ORDER BY name",
            "SELECT s.name, x.* FROM sqlite_schema s, pragma_table_xinfo(s.name) x ORDER BY s.name, x.cid",
            "SELECT s.name, x.* FROM sqlite_schema s, pragma_index_xinfo(s.name) x ORDER BY s.name, x.seqno",
            "SELECT s.name, x.* FROM sqlite_schema s, pragma_foreign_key_list(s.name) x ORDER BY s.name, x.id",
        ]
        .iter()
        .flat_map(|sql| rows(connection, sql))
        .chain(texts(connection))
        .collect()
    }

    /// Statements of triggers and indexes, without their layout.
    fn texts(connection: &Connection) -> Vec<String> {
        let sql = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND type IN ('trigger', 'index') ORDER BY name";
        let mut statement = connection.prepare(sql).unwrap();
        let texts = statement.query_map([], |row| row.get::<_, String>(0));
        let plain = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        texts.unwrap().map(|text| plain(text.unwrap())).collect()
    }

    #[test]
    fn migrated_database_equals_new_one() {
        let mut fresh = Connection::open_in_memory().unwrap();
        upgrade(&mut fresh).unwrap();
        let mut old = database(VERSION_1, 1);
        assert_ne!(shape(&old), shape(&fresh));
        for _ in 0..2 {
            upgrade(&mut old).unwrap();
            assert_eq!(shape(&old), shape(&fresh));
            assert_eq!(version(&old).unwrap(), VERSION);
        }
        assert!(shape(&fresh).len() > 60, "{:?}", shape(&fresh));
    }

    #[test]
    fn migration_counts_queued_tasks() {
        let mut old = database(VERSION_1, 1);
        old.execute_batch(
            "INSERT INTO users VALUES ('u', 'ann', NULL, '', 1, 0, 1, 1);
             INSERT INTO tasks VALUES ('a', 'u', 'queued', NULL, '{}', NULL, NULL, 1, 1, NULL, NULL),
                                      ('b', 'u', 'running', NULL, '{}', NULL, NULL, 1, 1, 1, NULL);",
        )
        .unwrap();
        upgrade(&mut old).unwrap();
        let depth = |old: &Connection| -> i64 {
            let sql = "SELECT queued FROM queue_depths WHERE user_id = 'u'";
            old.query_row(sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(depth(&old), 1);
        for (sql, expected) in [
            ("UPDATE tasks SET status = 'running' WHERE id = 'a'", 0),
            ("UPDATE tasks SET status = 'completed' WHERE id = 'b'", 0),
            ("UPDATE tasks SET status = 'queued' WHERE id = 'a'", 1),
            ("UPDATE tasks SET status = 'queued' WHERE id = 'a'", 1),
            ("DELETE FROM tasks WHERE id = 'a'", 0),
        ] {
            old.execute_batch(sql).unwrap();
            assert_eq!(depth(&old), expected, "{sql}");
        }
    }

    #[test]
    fn migration_counts_queued_bytes() {
        let mut old = database(VERSION_1, 1);
        old.execute_batch(
            "INSERT INTO users VALUES ('u', 'ann', NULL, '', 1, 0, 1, 1), ('v', 'bob', NULL, '', 1, 0, 1, 1);
             INSERT INTO tasks VALUES ('a', 'u', 'queued', 'build', '{\"é\":1}', NULL, NULL, 1, 1, NULL, NULL),
                                      ('b', 'u', 'queued', 'build-12', '{}', NULL, NULL, 1, 1, NULL, NULL),
                                      ('c', 'u', 'running', 'Odd-', '{\"a\":1}', NULL, NULL, 1, 1, 1, NULL),
                                      ('d', 'v', 'queued', NULL, '{}', NULL, NULL, 1, 1, NULL, NULL);",
        )
        .unwrap();
        upgrade(&mut old).unwrap();
        let bytes = |old: &Connection| {
            let sql = "SELECT coalesce(max(bytes) FILTER (WHERE user_id = 'u'), 0), coalesce(max(bytes) FILTER (WHERE user_id = 'v'), 0) FROM queue_depths";
            let pair = old.query_row(sql, [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            });
            pair.unwrap()
        };
        assert_eq!(bytes(&old), (10, 2));
        for (sql, expected) in [
            ("UPDATE tasks SET status = 'running' WHERE id = 'a'", (2, 2)),
            ("UPDATE tasks SET status = 'queued' WHERE id = 'c'", (9, 2)),
            ("DELETE FROM tasks WHERE id = 'b'", (7, 2)),
            ("DELETE FROM tasks WHERE id = 'a'", (7, 2)),
            (
                "INSERT INTO tasks (id, user_id, status, spec, created_at, updated_at) VALUES ('e', 'v', 'queued', '{}', 1, 1)",
                (7, 4),
            ),
        ] {
            old.execute_batch(sql).unwrap();
            assert_eq!(bytes(&old), expected, "{sql}");
        }
    }

    /// A database of many tasks is migrated within the time that a service has to start.
    #[test]
    fn last_migration_rewrites_no_task() {
        let mut old = database(VERSION_1, 6);
        for step in &STEPS[..5] {
            old.execute_batch(step).unwrap();
        }
        old.execute_batch(
            "INSERT INTO users VALUES ('u', 'ann', NULL, '', 1, 0, 1, 1);
             INSERT INTO tasks VALUES ('a', 'u', 'completed', 'build-2', '{}', NULL, NULL, 1, 1, NULL, 2);",
        )
        .unwrap();
        let before = old.total_changes();
        upgrade(&mut old).unwrap();
        assert_eq!(old.total_changes(), before);
    }

    #[test]
    fn migration_places_queued_jobs() {
        let mut old = database(VERSION_1, 1);
        let none = r#"{"node_labels":[]}"#;
        let two = r#"{"node_labels":["zone=b","a/1","zone=b"]}"#;
        old.execute_batch(&format!(
            "INSERT INTO users VALUES ('u', 'ann', NULL, '', 1, 0, 1, 1);
             INSERT INTO tasks VALUES ('a', 'u', 'queued', NULL, '{none}', NULL, NULL, 1, 1, NULL, NULL),
                                      ('b', 'u', 'queued', NULL, '{two}', NULL, NULL, 1, 1, 1, NULL);
             INSERT INTO jobs (id, task_id, status, max_attempts, not_before, created_at)
                 VALUES ('1', 'a', 'queued', 3, 1, 1), ('2', 'b', 'queued', 3, 1, 1);",
        ))
        .unwrap();
        upgrade(&mut old).unwrap();
        let placed = rows(
            &old,
            "SELECT id, placement, user_id, rank FROM jobs ORDER BY id",
        );
        let labels = r#"{"labels":["a/1","zone=b"]}"#;
        let expected = [("1", "{}"), ("2", labels)];
        let expected = expected.map(|(id, placement)| {
            let [id, placement, user] =
                [id, placement, "u"].map(|text| format!("{:?}", ValueRef::from(text)));
            format!("{id} {placement} {user} {:?}", ValueRef::Integer(0))
        });
        assert_eq!(placed, expected);
    }

    #[test]
    fn failed_migration_changes_nothing() {
        let mut broken = database(VERSION_1, 1);
        broken.execute_batch("DROP TABLE jobs").unwrap();
        let before = shape(&broken);
        upgrade(&mut broken).unwrap_err();
        assert_eq!((version(&broken).unwrap(), shape(&broken)), (1, before));
    }

    #[test]
    fn unknown_version_is_left_alone() {
        for unknown in [VERSION + 1, -1] {
            let error = upgrade(&mut database("", unknown)).unwrap_err();
            assert!(
                matches!(error, StoreError::TooNew { found, known: VERSION, .. } if found == unknown),
                "{error}"
            );
        }
    }
}
