//! Tests of the sums of use, on a real database.

use super::*;
use crate::{
    api::{
        ApiKeyId, TaskId,
        audit::{AuditAction, AuditEvent},
    },
    store::{
        Retention,
        sqlite::{query_plan::assert_seeks, retention},
    },
};
use proptest::prelude::*;

const NOON: Time = Time::from_millis(1_790_000_000_000);
const A_DAY: Duration = Duration::from_hours(24);

async fn open(users: &[(UserId, &'static str)]) -> (Store, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("cynode.db")).unwrap();
    let users = users.to_vec();
    let insert = store.write(move |c| {
        for (id, handle) in &users {
            c.execute(
                "INSERT INTO users VALUES (?1, ?2, NULL, '', 1, 0, 1, 1)",
                params![id, handle],
            )?;
        }
        Ok(())
    });
    insert.await.unwrap();
    (store, home)
}

fn record(user: UserId, model: &str, at: Time) -> UsageRecord {
    UsageRecord {
        user,
        key: None,
        task: None,
        model: model.to_owned(),
        prompt_tokens: 10,
        completion_tokens: 1,
        event: AuditEvent::new(AuditAction::InferenceRequest, at, None),
    }
}

fn filter(by: &[UsageField]) -> UsageFilter {
    UsageFilter {
        owner: None,
        handle: None,
        since: Day::of(NOON),
        until: Day::of(NOON),
        by: by.to_vec(),
        offset: 0,
        limit: 100,
    }
}

async fn list(store: &Store, filter: UsageFilter) -> Vec<UsageSum> {
    store.usage_list(UserId::new(), filter).await.unwrap()
}

/// Sums without the fields by which they were formed.
fn counts(sums: &[UsageSum]) -> Vec<(u64, u64, u64)> {
    let counts = |sum: &UsageSum| (sum.requests, sum.prompt_tokens, sum.completion_tokens);
    sums.iter().map(counts).collect()
}

#[tokio::test]
async fn usage_queries_use_index() {
    let (store, _home) = open(&[]).await;
    let looked = store.read_blocking(|c| {
        for sql in [ADD, DETACH_TASK, DELETE_OF_TASK, OLD_USAGE] {
            let plan = c.prepare(sql).map(|_| ());
            plan.unwrap();
        }
        for sql in [DETACH_TASK, DELETE_OF_TASK, OLD_USAGE] {
            assert_seeks(c, sql);
        }
        Ok(())
    });
    looked.await.unwrap();
}

/// Store in which ann asked models by a key, from a task and with a login, and bob on two days.
async fn populated() -> (Store, tempfile::TempDir, [UserId; 2], ApiKeyId, TaskId) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let (store, home) = open(&[(ann, "ann"), (bob, "bob")]).await;
    let (key, task) = (ApiKeyId::new(), TaskId::new());
    let by_key = UsageRecord {
        key: Some((key, "ci".to_owned())),
        ..record(ann, "tiny", NOON)
    };
    let by_task = UsageRecord {
        task: Some(task),
        ..record(ann, "tiny", NOON)
    };
    let records = vec![
        by_key.clone(),
        by_key,
        by_task,
        record(ann, "big", NOON),
        record(bob, "tiny", NOON),
        record(bob, "tiny", NOON.plus(A_DAY)),
    ];
    store.usage_add(records).await.unwrap();
    (store, home, [ann, bob], key, task)
}

#[tokio::test]
async fn use_is_summed_by_chosen_fields() {
    let (store, _home, _, key, task) = populated().await;
    let sums = list(&store, filter(&[UsageField::Model])).await;
    assert_eq!(counts(&sums), [(1, 10, 1), (4, 40, 4)]);
    assert_eq!(sums[1].model.as_deref(), Some("tiny"));
    let sums = list(&store, filter(&[UsageField::User, UsageField::Key])).await;
    assert_eq!(counts(&sums), [(2, 20, 2), (2, 20, 2), (1, 10, 1)]);
    let names = |sum: &UsageSum| (sum.user.clone().unwrap(), sum.key_id, sum.key_name.clone());
    let [ann, bob] = ["ann", "bob"].map(str::to_owned);
    assert_eq!(
        sums.iter().map(names).collect::<Vec<_>>(),
        [
            (ann.clone(), None, None),
            (ann, Some(key), Some("ci".to_owned())),
            (bob, None, None),
        ]
    );
    let sums = list(&store, filter(&[UsageField::Task])).await;
    let tasks: Vec<_> = sums.iter().map(|sum| sum.task_id).collect();
    assert_eq!(tasks, [Some(task), None]);
    let two_days = UsageFilter {
        until: Day::of(NOON.plus(A_DAY)),
        ..filter(&[UsageField::Day])
    };
    let sums = list(&store, two_days).await;
    assert_eq!(counts(&sums), [(1, 10, 1), (5, 50, 5)], "newest day first");
}

#[tokio::test]
async fn use_is_filtered_by_user_and_page() {
    let (store, _home, [_, bob], key, _) = populated().await;
    let of = async |owner, handle: Option<&str>| {
        let filter = UsageFilter {
            owner,
            handle: handle.map(str::to_owned),
            ..filter(&[UsageField::User])
        };
        counts(&list(&store, filter).await)
    };
    assert_eq!(of(Some(bob), None).await, [(1, 10, 1)]);
    assert_eq!(of(None, Some("ann")).await, [(4, 40, 4)]);
    assert!(of(Some(bob), Some("ann")).await.is_empty());
    let page = UsageFilter {
        offset: 1,
        limit: 1,
        ..filter(&[UsageField::User, UsageField::Key])
    };
    assert_eq!(list(&store, page).await[0].key_id, Some(key));
}

#[tokio::test]
async fn absurd_counts_do_not_break_sums() {
    let ann = UserId::new();
    let (store, _home) = open(&[(ann, "ann")]).await;
    let absurd = UsageRecord {
        prompt_tokens: u64::MAX,
        completion_tokens: u64::MAX,
        ..record(ann, "tiny", NOON)
    };
    store.usage_add(vec![absurd; 3]).await.unwrap();
    let most = 3 * MAX_TOKENS;
    assert_eq!(
        counts(&list(&store, filter(&[UsageField::Model])).await),
        [(3, most, most)]
    );
    let fill = store
        .write(|c| Ok(c.execute("UPDATE inference_usage SET prompt_tokens = ?1", [i64::MAX])?));
    fill.await.unwrap();
    store
        .usage_add(vec![record(ann, "big", NOON)])
        .await
        .unwrap();
    let sums = list(&store, filter(&[UsageField::User])).await;
    assert_eq!(sums[0].prompt_tokens, i64::MAX as u64);
}

#[tokio::test]
async fn use_outlives_its_task() {
    let ann = UserId::new();
    let (store, _home) = open(&[(ann, "ann")]).await;
    let task = TaskId::new();
    let by_task = UsageRecord {
        task: Some(task),
        ..record(ann, "tiny", NOON)
    };
    store
        .usage_add(vec![by_task.clone(), record(ann, "tiny", NOON), by_task])
        .await
        .unwrap();
    let delete = store.write(move |c| retention::delete_task(c, task));
    delete.await.unwrap();
    let sums = list(&store, filter(&[UsageField::Task])).await;
    assert_eq!((counts(&sums), sums[0].task_id), (vec![(3, 30, 3)], None));
}

#[tokio::test]
async fn old_use_is_deleted() {
    let ann = UserId::new();
    let (store, _home) = open(&[(ann, "ann")]).await;
    store
        .usage_add(vec![
            record(ann, "tiny", NOON),
            record(ann, "tiny", NOON.plus(A_DAY)),
        ])
        .await
        .unwrap();
    let keep = Retention {
        age: None,
        max_tasks: None,
    };
    let now = Day::of(NOON).start().plus(USAGE_RETENTION);
    store.expired_delete(keep, now).await.unwrap();
    let until = Day::of(NOON.plus(A_DAY));
    let sums = list(
        &store,
        UsageFilter {
            until,
            ..filter(&[UsageField::Day])
        },
    )
    .await;
    assert_eq!(
        sums.iter().map(|sum| sum.day).collect::<Vec<_>>(),
        [Some(until)]
    );
}

#[tokio::test]
async fn each_request_is_audited() {
    let ann = UserId::new();
    let (store, _home) = open(&[(ann, "ann")]).await;
    store
        .usage_add(vec![record(ann, "tiny", NOON); 2])
        .await
        .unwrap();
    let filter = crate::store::AuditFilter {
        action: Some(AuditAction::InferenceRequest),
        who: None,
        before: None,
        limit: 9,
    };
    assert_eq!(store.audit_list(ann, filter).await.unwrap().len(), 2);
}

#[tokio::test]
async fn results_count_for_prompts_only() {
    for (sandbox, expected) in [
        (
            r#"{"prompt":{"text":"why?","model":"asked"}}"#,
            Some("asked"),
        ),
        (r#"{"prompt":{"text":"why?"}}"#, Some("reported")),
        (r#"{"image":"i","use_inference":true}"#, None),
        (r#"{"image":"i","prompt":null}"#, None),
    ] {
        let ann = UserId::new();
        let (store, _home) = open(&[(ann, "ann")]).await;
        let spec = format!(r#"{{"sandbox":{sandbox}}}"#);
        let end = store.write(move |c| {
            let (task, job) = (TaskId::new(), JobId::new());
            c.execute(
                "INSERT INTO tasks (id, user_id, status, spec, created_at, updated_at)
                 VALUES (?1, ?2, 'completed', ?3, 1, 1)",
                params![task, ann, spec],
            )?;
            c.execute(
                "INSERT INTO jobs (id, task_id, status, max_attempts, not_before, created_at)
                 VALUES (?1, ?2, 'completed', 1, 1, 1)",
                params![job, task],
            )?;
            let inference = JobInference {
                model: "reported".to_owned(),
                prompt_tokens: 3,
                completion_tokens: 5,
            };
            add_prompt(c, job, (&inference, Duration::ZERO), NOON)
        });
        end.await.unwrap();
        let sums = list(&store, filter(&[UsageField::Model])).await;
        let models: Vec<_> = sums.iter().map(|sum| sum.model.as_deref()).collect();
        let expected: Vec<_> = expected.into_iter().map(Some).collect();
        assert_eq!(models, expected, "{sandbox}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// However requests are batched, the sums are those of all of them.
    #[test]
    fn batches_lose_no_request(batches in prop::collection::vec(
        prop::collection::vec((0_usize..2, 0_usize..3, 0_u64..1000, 0_u64..1000), 0..8), 1..5,
    )) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let sums = runtime.block_on(async {
            let users = [(UserId::new(), "ann"), (UserId::new(), "bob")];
            let (store, _home) = open(&users).await;
            for batch in &batches {
                let records = batch.iter().map(|(user, model, prompt, completion)| UsageRecord {
                    prompt_tokens: *prompt,
                    completion_tokens: *completion,
                    ..record(users[*user].0, ["a", "b", "c"][*model], NOON)
                });
                store.usage_add(records.collect()).await.unwrap();
            }
            list(&store, filter(&[UsageField::User, UsageField::Model])).await
        });
        let mut expected = std::collections::BTreeMap::new();
        for (user, model, prompt, completion) in batches.into_iter().flatten() {
            let sum = expected.entry((user, model)).or_insert((0, 0, 0));
            *sum = (sum.0 + 1, sum.1 + prompt, sum.2 + completion);
        }
        prop_assert_eq!(counts(&sums), expected.into_values().collect::<Vec<_>>());
    }
}
