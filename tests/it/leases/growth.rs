//! Leases that grow with the job: what has run for long is not started over after a short silence.

use super::*;
use rusqlite::{Connection, params};

/// Starts the orchestrator again, after a job of this task has run for an hour.
fn let_run_for_hour(scene: &mut Scene, task: &str) {
    scene.orchestrator.process.kill();
    let database = Connection::open(scene.orchestrator.data_dir.join("cynode.db")).unwrap();
    let changed = database.execute(
        "UPDATE jobs SET started_at = started_at - ?2 WHERE task_id = ?1",
        params![task, 3_600_000],
    );
    assert_eq!(changed.unwrap(), 1);
    drop(database);
    scene.orchestrator = Scene::start(&scene.home, &scene.addresses);
}

#[test]
fn job_that_ran_long_has_longer_lease() {
    let mut scene = Scene::set();
    let (away, back, young) = scene.silent_with_job(json!({"node_labels": ["stand-in"]}));
    let old = scene.create(json!({"node_labels": ["stand-in"]}));
    let runs = |node: &StandIn, task: &str| {
        let calls = node.calls();
        let mut runs = calls.iter().filter(|call| call.is_run());
        runs.any(|call| call.body["task_id"] == task)
    };
    eventually("the node has both jobs", || runs(&away, &old).then_some(()));
    let_run_for_hour(&mut scene, &old);
    let other = scene.join("other", willing());
    let (attempt, node, _) = scene.finish(&young);
    assert_eq!(
        (attempt, node.as_str()),
        (2, "other"),
        "its lease is the shortest"
    );
    assert!(!runs(&other, &old), "its lease is half an hour");
    back.turn_on();
    let (attempt, node, _) = scene.finish(&old);
    assert_eq!((attempt, node.as_str()), (1, "away"));
}
