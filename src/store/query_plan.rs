//! Plans of queries, for tests: which indexes a query goes by.

use rusqlite::Connection;

/// The plan of a query. Fails where it reads rows that it doesn't seek, or sorts.
pub(super) fn assert_seeks(c: &Connection, sql: &str) -> String {
    let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let steps = statement
        .raw_query()
        .mapped(|row| row.get::<_, String>("detail"));
    let plan = steps.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
    assert!(
        plan.contains("INDEX") || plan.contains("PRIMARY KEY"),
        "{sql}: {plan}"
    );
    assert!(
        !plan.contains("SCAN") && !plan.contains("TEMP B-TREE"),
        "{sql}: {plan}"
    );
    plan
}
