//! Lists of tasks against a scan of all tasks, and their query plans.

use super::*;
use crate::store::sqlite::query_plan::assert_seeks;
use proptest::prelude::*;
use rusqlite::params;

fn open() -> (tempfile::TempDir, Connection) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("cynode.db");
    Store::open(&path).unwrap();
    (home, Connection::open(path).unwrap())
}

/// A task that is in the database already.
#[derive(Clone, Debug)]
struct Row {
    id: TaskId,
    user: UserId,
    status: TaskStatus,
    name: Option<String>,
}

fn insert(c: &Connection, row: &Row) {
    let sql = "INSERT OR IGNORE INTO users VALUES (?1, ?1, NULL, '', 1, 0, 0, 0)";
    c.execute(sql, [row.user]).unwrap();
    let sql = "INSERT INTO tasks (id, user_id, status, name, spec, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, '{}', 0, 0)";
    c.execute(
        sql,
        params![row.id, row.user, row.status.as_str(), row.name],
    )
    .unwrap();
}

/// Expected ids, found by a scan.
fn expected(rows: &[Row], filter: &TaskFilter) -> Vec<TaskId> {
    let is_named = |name: &str, asked: &str| {
        let plain = normalize_name(asked);
        let is_numbered = |plain: &String| {
            let rest = name.strip_prefix(plain.as_str());
            let number = rest.and_then(|rest| rest.strip_prefix('-'));
            number.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        };
        name == asked
            || plain
                .as_ref()
                .is_some_and(|plain| name == plain || is_numbered(plain))
    };
    let mut ids: Vec<TaskId> = rows
        .iter()
        .filter(|row| filter.owner.is_none_or(|owner| row.user == owner))
        .filter(|row| filter.status.is_none_or(|status| row.status == status))
        .filter(|row| filter.before.is_none_or(|before| row.id < before))
        .filter(|row| {
            let asked = filter.name.as_deref();
            asked.is_none_or(|asked| {
                row.name
                    .as_deref()
                    .is_some_and(|name| is_named(name, asked))
            })
        })
        .map(|row| row.id)
        .collect();
    ids.sort_by(|a, b| b.cmp(a));
    let page = ids.into_iter().skip(filter.offset as usize);
    page.take(filter.limit as usize + 1).collect()
}

#[test]
fn task_lists_use_index() {
    let (_home, c) = open();
    let value: &dyn ToSql = &"x";
    for columns in [
        vec!["status"],
        vec!["user_id", "status"],
        vec![STEM, "status"],
        vec!["user_id", STEM, "status"],
    ] {
        let conditions = columns.into_iter().map(|column| (column, value)).collect();
        let plan = assert_seeks(&c, &seek_sql(&conditions));
        for (column, _) in conditions {
            let column = if column == STEM { "<expr>" } else { column };
            assert!(plan.contains(&format!("{column}=?")), "{plan}");
        }
        assert!(
            plan.contains("COVERING INDEX") && plan.contains("id<?"),
            "{plan}"
        );
    }
    for columns in [
        vec!["name"],
        vec!["name", "status"],
        vec!["name", "user_id"],
        vec!["name", "user_id", "status"],
    ] {
        let conditions = columns.into_iter().map(|column| (column, value)).collect();
        assert_seeks(&c, &exact_sql(&conditions));
    }
}

fn names() -> impl Strategy<Value = String> {
    let plain = prop::sample::select(vec!["a", "b", "a-1", "a-b", "a-1-2", "1", "7-1"]);
    let odd = prop::sample::select(vec!["A B", "a-", "-1", "a-1x", "a--1", "é-2", "a_1"]);
    prop_oneof![4 => plain, 1 => odd].prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn lists_match_scan(
        tasks in prop::collection::vec(
            (0_usize..2, prop::sample::select(TaskStatus::ALL.to_vec()), prop::option::of(names())),
            0..40,
        ),
        filters in prop::collection::vec(
            (
                prop::option::of(0_usize..2),
                prop::option::of(prop::sample::select(TaskStatus::ALL.to_vec())),
                prop::option::of(names()),
                prop::option::of(0_usize..40),
                0_u32..5,
                1_u32..6,
            ),
            20,
        ),
    ) {
        let (_home, c) = open();
        let users = [UserId::new(), UserId::new()];
        let rows: Vec<Row> = tasks
            .into_iter()
            .map(|(user, status, name)| Row { id: TaskId::new(), user: users[user], status, name })
            .collect();
        for row in &rows {
            insert(&c, row);
        }
        for (owner, status, name, before, offset, limit) in filters {
            let before = before.and_then(|n| rows.get(n)).map(|row| row.id);
            let filter = TaskFilter {
                owner: owner.map(|n| users[n]), status, name, before, offset, limit,
            };
            prop_assert_eq!(filter.ids(&c).unwrap(), expected(&rows, &filter));
        }
    }
}
