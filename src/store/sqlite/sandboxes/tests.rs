//! Query plans of sandboxes: a lookup costs the same however many have ended.

use super::*;
use crate::store::sqlite::query_plan::assert_seeks;

#[tokio::test]
async fn sandbox_queries_use_index() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("cynode.db")).unwrap();
    let looked = store.read_blocking(|c| {
        for (sql, used) in [
            (SELECT, "jobs_by_task"),
            (OWN_LIST, "sandboxes_by_user (user_id=? AND id<?)"),
            (OWN_LIVE_LIST, "sandboxes_live (user_id=? AND id<?)"),
            (OWN_NAMED, "sandboxes_by_name (<expr>=? AND user_id=?)"),
            (
                LIVE_NAMED,
                "sandboxes_by_name (<expr>=? AND user_id=? AND <expr>=?)",
            ),
            (
                OWN_PREFIX,
                "sandboxes_by_user (user_id=? AND id>? AND id<?)",
            ),
            (STARTING, "PRIMARY KEY"),
        ] {
            let plan = assert_seeks(c, sql);
            assert!(plan.contains(used), "{plan}");
        }
        Ok(())
    });
    looked.await.unwrap();
}
