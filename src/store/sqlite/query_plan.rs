//! Query plans, for tests: the indexes that a query uses.

use rusqlite::Connection;

/// Plan of a query. Panics where the query scans rows or sorts.
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
