//! Writes about a node that was deleted, and the numbers of registrations.

use super::*;
use crate::{
    api::{JobId, audit::AuditAction, tasks::CreateTask, time::Time},
    store::{Authority, CreateOutcome, CredentialId, LaneCursor, LaneRead, NewUser, QueueLimits},
};
use std::time::Duration;

fn report() -> CapabilityReport {
    let report = serde_json::json!({
        "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": "box"},
        "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": 2, "ram_mb": 1},
    });
    serde_json::from_value(report).unwrap()
}

/// A task of a new user, queued.
async fn add_task(store: &Store, now: Time) {
    let event = |action| AuditEvent::new(action, now, None);
    let user = NewUser {
        handle: "u".to_owned(),
        password_hash: String::new(),
        email: None,
        is_admin: false,
    };
    let user = store
        .user_create(user, None, event(AuditAction::UserCreate))
        .await;
    let user = user.unwrap().unwrap().id;
    let task = CreateTask {
        command: Some(vec!["true".to_owned()]),
        ..CreateTask::default()
    };
    let opened = store.session_open(
        user,
        String::new(),
        now.plus(Duration::from_secs(1)),
        None,
        event(AuditAction::Login),
    );
    let by = Authority {
        credential: CredentialId::Session(opened.await.unwrap().unwrap()),
        user,
        admin: false,
    };
    let limits = QueueLimits {
        bytes: u64::MAX,
        bytes_per_user: u64::MAX,
        all: 1,
        per_user: 1,
    };
    let spec = task.resolve("docker.io/library/alpine:latest").unwrap();
    let created = store
        .task_create(by, spec, None, limits, None, now)
        .await
        .unwrap();
    assert!(matches!(created, CreateOutcome::Created(_)));
}

/// Store with a node and a queued task; the node and the job.
async fn store_with_job() -> (tempfile::TempDir, Store, NodeId, JobId) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("cynode.db")).unwrap();
    let event = AuditEvent::new(AuditAction::NodeRegister, Time::from_millis(1), None);
    let registered = store.node_register(report(), String::new(), None, None, 1, event);
    let RegisterOutcome::Created(node, _) = registered.await.unwrap() else {
        panic!("the slug is new");
    };
    add_task(&store, Time::from_millis(1)).await;
    let job = store.read(|c| Ok(c.query_row("SELECT id FROM jobs", [], |row| row.get(0))?));
    let job = job.await.unwrap();
    (home, store, node, job)
}

#[tokio::test]
async fn claims_of_one_commit_are_independent() {
    let (_home, store, node, job) = store_with_job().await;
    let claims = [(JobId::new(), node), (job, node), (job, node)];
    let claimed = store.job_claim(&claims, Time::now()).await;
    let claimed = claimed
        .into_iter()
        .map(|job| job.unwrap().map(|job| job.id));
    assert_eq!(claimed.collect::<Vec<_>>(), [None, Some(job), None]);
    store.assert_cache_is_current().await;
}

#[tokio::test]
async fn failed_write_leaves_cache_unchanged() {
    let (_home, store, node, job) = store_with_job().await;
    store.assert_cache_is_current().await;
    let failing = store.write(move |c| {
        let claim = "UPDATE jobs SET status = 'running', node_id = ?2 WHERE id = ?1";
        c.execute(claim, params![job, node])?;
        c.execute("UPDATE nodes SET draining = 1", [])?;
        Err::<(), _>(StoreError::Damaged("row"))
    });
    failing.await.unwrap_err();
    store.assert_cache_is_current().await;
}

/// The scheduler may have chosen a node just before it was deleted.
#[tokio::test]
async fn job_is_not_assigned_to_a_deleted_node() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("cynode.db")).unwrap();
    let now = Time::from_millis(1);
    let event = |action| AuditEvent::new(action, now, None);
    let report = report();
    let registered = store
        .node_register(
            report.clone(),
            String::new(),
            None,
            None,
            1,
            event(AuditAction::NodeRegister),
        )
        .await
        .unwrap();
    let RegisterOutcome::Created(node, registration) = registered else {
        panic!("the slug is new");
    };
    add_task(&store, now).await;

    let known = store.node_list().await.unwrap();
    assert_eq!((known.len(), store.reports.len()), (1, 1));
    store.assert_cache_is_current().await;
    let forgotten = store
        .node_forget("box".to_owned(), event(AuditAction::NodeForget))
        .await
        .unwrap();
    assert_eq!(forgotten, ForgetOutcome::Forgotten(node));
    store.assert_cache_is_current().await;
    let known = store.node_list().await.unwrap();
    assert_eq!((known.len(), store.reports.len()), (0, 0));
    let first = async || {
        let mut changes = store.lane_changes(&mut LaneCursor::default());
        let read = LaneRead {
            lane: changes.entered.remove(0),
            after: None,
            limit: 1,
        };
        store.lane_jobs(vec![read], now).await.unwrap()[0][0]
    };
    let queued = first().await;
    let claimed = store.job_claim(&[(queued.id, node)], now).await;
    assert!(matches!(claimed[..], [Ok(None)]));
    assert_eq!(first().await, queued);
    let event = event(AuditAction::NodeWorkerUrl);
    let late = store
        .node_report(node, registration, report, String::new(), event)
        .await;
    assert!(!late.unwrap());
    let content = serde_json::from_value(serde_json::json!({"version": 1, "config_version": ""}));
    let served = store
        .node_config_serve(node, registration, content.unwrap())
        .await;
    assert_eq!(served.unwrap(), None);
}

#[tokio::test]
async fn models_are_replaced_within_report() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("cynode.db")).unwrap();
    let mut report = report();
    let register = async |report: &CapabilityReport| {
        let event = AuditEvent::new(AuditAction::NodeRegister, Time::now(), None);
        let registered = store.node_register(report.clone(), String::new(), None, None, 1, event);
        match registered.await.unwrap() {
            RegisterOutcome::Created(id, _) | RegisterOutcome::Known(id, _) => id,
            _ => panic!("the slug is free"),
        }
    };
    let stored = async || store.node_list().await.unwrap().remove(0).capability;
    let tiny = ModelDetails {
        name: "tiny:1b".to_owned(),
        ..ModelDetails::default()
    };
    let node = register(&report).await;
    store
        .node_set_models(node, vec![tiny.clone()])
        .await
        .unwrap();
    assert!(stored().await.inference.is_none(), "it has no model server");
    store.assert_cache_is_current().await;

    report.inference = serde_json::from_value(serde_json::json!({"models": []})).unwrap();
    register(&report).await;
    store
        .node_set_models(node, vec![tiny.clone()])
        .await
        .unwrap();
    store.assert_cache_is_current().await;
    let found = stored().await;
    assert_eq!(found.inference.as_ref().unwrap().known_models(), [tiny]);
    assert_eq!(found.compute.cpu_cores, report.compute.cpu_cores);
    store.node_set_models(node, Vec::new()).await.unwrap();
    assert!(
        !stored()
            .await
            .inference
            .as_ref()
            .unwrap()
            .has_model("tiny:1b")
    );
}

#[tokio::test]
async fn local_image_is_set_in_report() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("cynode.db")).unwrap();
    let register = async |local: Option<Vec<String>>| {
        let mut report = report();
        let sandbox = serde_json::json!({"supported": true, "local_images": local});
        report.sandbox = serde_json::from_value(sandbox).unwrap();
        let event = AuditEvent::new(AuditAction::NodeRegister, Time::now(), None);
        let registered = store.node_register(report, String::new(), None, None, 1, event);
        match registered.await.unwrap() {
            RegisterOutcome::Created(id, _) | RegisterOutcome::Known(id, _) => id,
            _ => panic!("the slug is free"),
        }
    };
    let set = async |node, is_there| {
        let image = "localhost/x:1".to_owned();
        store
            .node_set_local_image(node, image, is_there)
            .await
            .unwrap();
        store.assert_cache_is_current().await;
        let report = store.node_list().await.unwrap().remove(0).capability;
        report.local_images().map(<[String]>::to_vec)
    };
    let node = register(None).await;
    assert_eq!(set(node, true).await, None, "it can't tell its images");
    let other = "localhost/y:1".to_owned();
    register(Some(vec![other.clone()])).await;
    let both = Some(vec![other.clone(), "localhost/x:1".to_owned()]);
    assert_eq!(set(node, true).await, both);
    assert_eq!(set(node, true).await, both);
    assert_eq!(set(node, false).await, Some(vec![other.clone()]));
    assert_eq!(set(node, false).await, Some(vec![other]));
}

/// Also after a restore from a backup, where the same registrations are repeated.
#[tokio::test]
async fn registration_numbers_are_unique() {
    let mut numbers = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        for _ in 0..3 {
            let event = AuditEvent::new(AuditAction::NodeRegister, Time::now(), None);
            let registered = store.node_register(report(), String::new(), None, None, 1, event);
            let (RegisterOutcome::Created(_, number) | RegisterOutcome::Known(_, number)) =
                registered.await.unwrap()
            else {
                panic!("the slug is this machine's");
            };
            assert!(number > 0);
            numbers.insert(number);
        }
    }
    assert_eq!(numbers.len(), 6);
}
