//! Schema versions, and the way from one to the next.
//!
//! `schema.sql` makes an empty database of the present version at once; [`STEPS`] bring an older
//! one there. Both ways end at the same tables, columns and indexes, which a test holds them to.

use super::{StoreError, wal, wal_check};
use rusqlite::{Connection, TransactionBehavior};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    time::Instant,
};

/// An empty database of the present version.
const SCHEMA: &str = include_str!("../../schema.sql");

/// The first step brings a database of version 1 to 2, and so on.
const STEPS: &[&str] = &[
    // 2: whose slug a node has, and the slug of a node that is gone.
    "ALTER TABLE nodes ADD COLUMN node_key_sha256 TEXT;
     ALTER TABLE jobs ADD COLUMN node_slug TEXT;",
    // 3: who did what, and how long each user's queue is.
    "CREATE TABLE audit_log (
         seq        INTEGER PRIMARY KEY,
         at         INTEGER NOT NULL,
         action     TEXT NOT NULL,
         outcome    TEXT NOT NULL CHECK (outcome IN ('success', 'failure', 'denied')),
         actor_id   TEXT,
         actor      TEXT,
         target     TEXT,
         address    TEXT,
         request_id TEXT,
         reason     TEXT
     ) STRICT;
     CREATE TABLE queue_depths (
         user_id TEXT PRIMARY KEY REFERENCES users (id),
         queued  INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;
     CREATE TRIGGER queue_depths_enter AFTER INSERT ON tasks WHEN NEW.status = 'queued' BEGIN
         INSERT INTO queue_depths VALUES (NEW.user_id, 1)
         ON CONFLICT (user_id) DO UPDATE SET queued = queued + 1;
     END;
     CREATE TRIGGER queue_depths_move AFTER UPDATE OF status ON tasks
     WHEN (OLD.status = 'queued') <> (NEW.status = 'queued') BEGIN
         INSERT INTO queue_depths VALUES (NEW.user_id, iif(NEW.status = 'queued', 1, -1))
         ON CONFLICT (user_id) DO UPDATE SET queued = queued + excluded.queued;
     END;
     CREATE TRIGGER queue_depths_leave AFTER DELETE ON tasks WHEN OLD.status = 'queued' BEGIN
         UPDATE queue_depths SET queued = queued - 1 WHERE user_id = OLD.user_id;
     END;
     DROP INDEX refresh_tokens_by_session;
     CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id, expires_at);
     INSERT INTO queue_depths
     SELECT user_id, count(*) FROM tasks WHERE status = 'queued' GROUP BY user_id;",
    // 4: the way to what goes in time, and something to write; in which order jobs are read, so that
    // nobody's queue is in another's way.
    "CREATE INDEX tasks_finished ON tasks (ended_at) WHERE ended_at IS NOT NULL;
     CREATE INDEX sessions_by_expiry ON sessions (expires_at);
     CREATE INDEX refresh_tokens_by_expiry ON refresh_tokens (expires_at);
     CREATE INDEX idempotency_keys_by_task ON idempotency_keys (task_id);
     CREATE TABLE finished_tasks (finished INTEGER NOT NULL) STRICT;
     INSERT INTO finished_tasks SELECT count(*) FROM tasks WHERE ended_at IS NOT NULL;
     CREATE TRIGGER finished_tasks_enter AFTER UPDATE OF ended_at ON tasks
     WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL BEGIN
         UPDATE finished_tasks SET finished = finished + 1;
     END;
     CREATE TRIGGER finished_tasks_leave AFTER DELETE ON tasks WHEN OLD.ended_at IS NOT NULL BEGIN
         UPDATE finished_tasks SET finished = finished - 1;
     END;
     CREATE TABLE probes (filler BLOB NOT NULL) STRICT;
     ALTER TABLE jobs ADD COLUMN user_id TEXT;
     ALTER TABLE jobs ADD COLUMN placement TEXT NOT NULL DEFAULT '{}';
     ALTER TABLE jobs ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;
     UPDATE jobs SET user_id = (SELECT user_id FROM tasks WHERE id = task_id);
     UPDATE jobs SET placement = (
         SELECT iif(count(*) > 0, json_object('labels', json_group_array(value)), '{}')
         FROM (SELECT DISTINCT label.value FROM tasks t, json_each(t.spec, '$.node_labels') label
               WHERE t.id = jobs.task_id ORDER BY label.value)
     ) WHERE status IN ('queued', 'running');
     DROP INDEX jobs_queued;
     CREATE INDEX jobs_queued ON jobs (user_id, placement, rank, id, not_before) WHERE status = 'queued';
     DROP INDEX jobs_running;
     CREATE INDEX jobs_running ON jobs (node_id, user_id) WHERE status = 'running';",
    // 5: attempts that are offered to another node while the one that has the job is silent.
    "ALTER TABLE jobs ADD COLUMN last_attempt INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE jobs ADD COLUMN offered_node_id TEXT REFERENCES nodes (id);
     UPDATE jobs SET last_attempt = attempt;
     CREATE INDEX jobs_offered ON jobs (offered_node_id) WHERE offered_node_id IS NOT NULL;",
    // 6: the identity of this orchestrator, drains that outlive a forgotten node, refusals that outlive
    // an attempt, and tasks by name.
    "CREATE TABLE orchestrator (id TEXT NOT NULL) STRICT;
     CREATE TABLE drained_keys (node_key_sha256 TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
     ALTER TABLE jobs ADD COLUMN refusals TEXT;
     CREATE INDEX tasks_by_name ON tasks (user_id, name) WHERE name IS NOT NULL;",
    // 7: which registration of a node its tokens belong to; an index for every list; what nodes may
    // have of deleted tasks; the size of each user's queue in bytes.
    "ALTER TABLE nodes ADD COLUMN registration INTEGER NOT NULL DEFAULT 0;
     DROP INDEX tasks_by_user;
     CREATE INDEX tasks_by_user ON tasks (user_id, status, id);
     CREATE INDEX tasks_by_status ON tasks (status, id);
     DROP INDEX tasks_by_name;
     CREATE INDEX tasks_by_name ON tasks (name, user_id) WHERE name IS NOT NULL;
     CREATE INDEX tasks_by_stem ON tasks (rtrim(name, '0123456789'), status, id)
     WHERE rtrim(name, '0123456789') IS NOT NULL;
     CREATE INDEX tasks_by_user_stem ON tasks (user_id, rtrim(name, '0123456789'), status, id)
     WHERE rtrim(name, '0123456789') IS NOT NULL;
     CREATE TABLE deleted_jobs (
         id TEXT PRIMARY KEY, task_id TEXT NOT NULL, last_attempt INTEGER NOT NULL, ended_at INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX deleted_jobs_by_age ON deleted_jobs (ended_at);
     CREATE INDEX audit_by_action ON audit_log (action, seq);
     CREATE INDEX audit_by_actor ON audit_log (actor, action, seq) WHERE actor IS NOT NULL;
     CREATE INDEX audit_by_target ON audit_log (target, action, seq) WHERE target IS NOT NULL;
     ALTER TABLE queue_depths ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
     DROP TRIGGER queue_depths_enter;
     DROP TRIGGER queue_depths_move;
     DROP TRIGGER queue_depths_leave;
     CREATE TRIGGER queue_depths_enter AFTER INSERT ON tasks WHEN NEW.status = 'queued' BEGIN
         INSERT INTO queue_depths VALUES (NEW.user_id, 1, octet_length(NEW.spec))
         ON CONFLICT (user_id) DO UPDATE SET queued = queued + 1, bytes = bytes + excluded.bytes;
     END;
     CREATE TRIGGER queue_depths_move AFTER UPDATE OF status ON tasks
     WHEN (OLD.status = 'queued') <> (NEW.status = 'queued') BEGIN
         INSERT INTO queue_depths
         VALUES (NEW.user_id, iif(NEW.status = 'queued', 1, -1),
                 iif(NEW.status = 'queued', 1, -1) * octet_length(NEW.spec))
         ON CONFLICT (user_id) DO UPDATE SET queued = queued + excluded.queued, bytes = bytes + excluded.bytes;
     END;
     CREATE TRIGGER queue_depths_leave AFTER DELETE ON tasks WHEN OLD.status = 'queued' BEGIN
         UPDATE queue_depths SET queued = queued - 1, bytes = bytes - octet_length(OLD.spec)
         WHERE user_id = OLD.user_id;
     END;
     UPDATE queue_depths SET bytes = (
         SELECT coalesce(sum(octet_length(spec)), 0) FROM tasks
         WHERE user_id = queue_depths.user_id AND status = 'queued'
     );",
];

/// The version that this program writes.
pub(super) const VERSION: i64 = STEPS.len() as i64 + 1;

/// Brings the database to [`VERSION`], in one transaction that sets the version too.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let begun = Instant::now();
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    if found == VERSION {
        // Nothing to write: a start needs no room on the disk.
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
            "database of an earlier release is upgraded; that takes a while where it is large"
        );
        for step in todo {
            transaction.execute_batch(step)?;
        }
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    if found > 0 {
        let seconds = begun.elapsed().as_secs();
        tracing::info!(database = %path.display(), seconds, "database is upgraded");
    }
    Ok(())
}

/// Byte offset of `user_version` in a database file (SQLite file format, section 1.3).
const VERSION_OFFSET: u64 = 60;

/// Whether there is no database at `path`, or one that no migration has run on. The file is read as it
/// is: SQLite would make files beside it. What is still in a log counts as content.
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

/// The version of a database; 0 where it is empty.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::types::ValueRef;

    const VERSION_1: &str = include_str!("../../tests/fixtures/schema-v1.sql");

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

    /// Every row of a query, as text.
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

    /// Tables and indexes with all their columns and references.
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

    /// What triggers do and indexes are made of, however it is laid out.
    fn texts(connection: &Connection) -> Vec<String> {
        let sql = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND type IN ('trigger', 'index') ORDER BY name";
        let mut statement = connection.prepare(sql).unwrap();
        let texts = statement.query_map([], |row| row.get::<_, String>(0));
        let plain = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        texts.unwrap().map(|text| plain(text.unwrap())).collect()
    }

    #[test]
    fn an_upgraded_database_is_like_a_fresh_one() {
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
    fn earlier_queue_is_counted() {
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
    fn queued_bytes_of_before_are_known() {
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

    /// A database of many tasks is up to date within the time that a service has to start.
    #[test]
    fn the_last_step_rewrites_no_task() {
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
    fn requeued_job_keeps_its_place() {
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
        let told = expected.map(|(id, placement)| {
            let [id, placement, user] =
                [id, placement, "u"].map(|text| format!("{:?}", ValueRef::from(text)));
            format!("{id} {placement} {user} {:?}", ValueRef::Integer(0))
        });
        assert_eq!(placed, told);
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
