//! Tests of artifacts and of the references to contents, on a real database.

use super::*;
use crate::{
    api::{
        JobId, NodeId,
        audit::AuditAction,
        tasks::{CreateTask, JobStatus},
    },
    digest::sha256_hex,
    store::{
        CreateOutcome, CredentialId, FinishedJob, QueueLimits, Retention,
        sqlite::query_plan::assert_seeks,
    },
};
use std::time::Duration;

mod eviction;

const NOW: Time = Time::from_millis(1_000_000);
const LATER: Time = Time::from_millis(2_000_000);

fn content(text: &str) -> Content {
    Content {
        sha256: sha256_hex(text).parse().unwrap(),
        size_bytes: text.len() as u64,
    }
}

fn new(name: &str, text: &str) -> NewArtifact {
    NewArtifact {
        name: name.to_owned(),
        content: content(text),
        is_executable: false,
    }
}

struct Fixture {
    store: Store,
    by: Authority,
    _home: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let session = crate::api::SessionId::new();
        let by = Authority {
            credential: CredentialId::Session(session),
            user: UserId::new(),
            admin: false,
        };
        let insert = store.write(move |c| {
            c.execute(
                "INSERT INTO users VALUES (?1, 'ann', NULL, '', 1, 0, 1, 1)",
                [by.user],
            )?;
            let sql = "INSERT INTO sessions VALUES (?1, ?2, 1, 9000000, NULL)";
            c.execute(sql, params![session, by.user])?;
            Ok(())
        });
        insert.await.unwrap();
        Self {
            store,
            by,
            _home: home,
        }
    }

    async fn add(&self, name: &str, text: &str, now: Time) -> Artifact {
        let added = self.store.artifact_add(self.by, new(name, text), now);
        added.await.unwrap()
    }

    async fn list(&self, filter: ArtifactFilter) -> Vec<String> {
        let listed = self.store.artifact_list(self.by.user, filter).await;
        listed.unwrap().into_iter().map(|one| one.name).collect()
    }

    fn filter(&self) -> ArtifactFilter {
        ArtifactFilter {
            owner: Some(self.by.user),
            name: None,
            task: None,
            before: None,
            limit: 10,
        }
    }

    /// Task that needs a content.
    async fn task(&self, text: &str) -> TaskId {
        let request = CreateTask {
            command: Some(vec!["true".to_owned()]),
            ..CreateTask::default()
        };
        let mut spec = request.resolve("localhost/x:y").unwrap();
        spec.sandbox.stdin = Some(content(text));
        let limits = QueueLimits {
            all: 9,
            per_user: 9,
            bytes: 99_999,
            bytes_per_user: 99_999,
        };
        let created = self
            .store
            .task_create(self.by, spec, None, limits, None, NOW);
        match created.await.unwrap() {
            CreateOutcome::Created(task) => task.id,
            _ => panic!("not created"),
        }
    }

    async fn released(&self) -> Vec<ContentHash> {
        self.store.contents_released(10).await.unwrap()
    }

    async fn is_referenced(&self, text: &str) -> bool {
        let one = vec![content(text).sha256];
        let unreferenced = self.store.contents_unreferenced(one).await;
        unreferenced.unwrap().is_empty()
    }
}

fn event() -> AuditEvent {
    AuditEvent::new(AuditAction::ArtifactDelete, LATER, None)
}

#[tokio::test]
async fn same_upload_is_one_artifact() {
    let fixture = Fixture::new().await;
    let first = fixture.add("a", "x", NOW).await;
    let again = fixture.add("a", "x", LATER).await;
    assert_eq!(first.artifact_id, again.artifact_id);
    assert_eq!(again.created_at, LATER);
    let others = [
        fixture.add("a", "y", NOW).await,
        fixture.add("b", "x", NOW).await,
    ];
    assert!(
        others
            .iter()
            .all(|other| other.artifact_id != first.artifact_id)
    );
    assert_eq!(fixture.list(fixture.filter()).await, ["b", "a", "a"]);
    let mut named = fixture.filter();
    named.name = Some("b".to_owned());
    assert_eq!(fixture.list(named).await, ["b"]);
    let mut older = fixture.filter();
    older.before = Some(others[1].artifact_id);
    assert_eq!(fixture.list(older).await, ["a", "a"]);
    let mut foreign = fixture.filter();
    foreign.owner = Some(UserId::new());
    assert!(fixture.list(foreign).await.is_empty());
}

#[tokio::test]
async fn content_is_referenced_until_last_use() {
    let fixture = Fixture::new().await;
    let artifact = fixture.add("a", "x", NOW).await;
    let task = fixture.task("x").await;
    let delete = |owner| {
        let id = artifact.artifact_id;
        fixture
            .store
            .artifact_delete(id, owner, fixture.by, event())
    };
    assert!(!delete(Some(UserId::new())).await.unwrap());
    assert!(delete(Some(fixture.by.user)).await.unwrap());
    assert!(!delete(None).await.unwrap());
    assert!(fixture.is_referenced("x").await, "the task needs it");
    assert_eq!(fixture.released().await, [content("x").sha256]);
    fixture.store.task_cancel(task, event()).await.unwrap();
    assert!(!fixture.is_referenced("x").await);
    let hash = content("x").sha256;
    let lost = vec![hash.clone()];
    let settled = fixture.store.contents_settled(BTreeSet::new(), lost);
    settled.await.unwrap();
    assert_eq!(
        fixture.released().await,
        std::slice::from_ref(&hash),
        "lost meanwhile"
    );
    let removed = BTreeSet::from([hash]);
    let settled = fixture.store.contents_settled(removed, Vec::new());
    settled.await.unwrap();
    assert!(fixture.released().await.is_empty());
}

#[tokio::test]
async fn collected_files_live_as_long_as_task() {
    let fixture = Fixture::new().await;
    let task = fixture.task("in").await;
    let run = fixture.store.write(move |c| {
        let node = NodeId::new();
        let sql = "INSERT INTO nodes (id, slug, registered_at, last_seen_at, capability, capability_sha256)
                   VALUES (?1, 'n', 1, 1, '{}', '')";
        c.execute(sql, [node])?;
        let sql = "UPDATE jobs SET status = 'running', node_id = ?1, attempt = 1 RETURNING id";
        Ok(c.query_row(sql, [node], |row| row.get::<_, JobId>(0))?)
    });
    let id = run.await.unwrap();
    let end = |attempt| FinishedJob {
        id,
        attempt,
        status: JobStatus::Completed,
        result: None,
        artifacts: vec![new("out/a", "x"), new("out/b", "y")],
        outline: None,
        exit_code: Some(0),
        summary: String::new(),
    };
    assert!(!fixture.store.job_finish(end(2), LATER).await.unwrap());
    assert!(fixture.list(fixture.filter()).await.is_empty());
    assert!(fixture.store.job_finish(end(1), LATER).await.unwrap());
    let mut of_task = fixture.filter();
    of_task.task = Some(task);
    assert_eq!(fixture.list(of_task).await, ["out/b", "out/a"]);
    let has = fixture
        .store
        .artifact_content(content("x").sha256, fixture.by.user);
    assert_eq!(has.await.unwrap(), Some(1));
    assert!(!fixture.is_referenced("in").await, "the task has ended");
    fixture.add("upload", "z", NOW).await;
    let keep = Retention {
        age: Some(Duration::from_secs(1)),
        max_tasks: None,
    };
    let much_later = Time::from_millis(5_000_000);
    fixture
        .store
        .expired_delete(keep, much_later)
        .await
        .unwrap();
    assert!(fixture.list(fixture.filter()).await.is_empty());
    assert_eq!(fixture.released().await.len(), 4);
}

#[tokio::test]
async fn queries_use_index() {
    let fixture = Fixture::new().await;
    let mut queries = vec![SAME_UPLOAD.to_owned(), OF_CONTENT.to_owned()];
    for owner in [None, Some(fixture.by.user)] {
        for name in [None, Some("a".to_owned())] {
            for task in [None, Some(TaskId::new())] {
                for before in [None, Some(ArtifactId::new())] {
                    let filter = ArtifactFilter {
                        owner,
                        name: name.clone(),
                        task,
                        before,
                        limit: 3,
                    };
                    // The newest of all are read in the order of the primary key.
                    if (&filter.owner, &filter.name, filter.task, filter.before)
                        != (&None, &None, None, None)
                    {
                        queries.push(filter.query().0);
                    }
                }
            }
        }
    }
    let looked = fixture.store.read_blocking(move |c| {
        for sql in &queries {
            assert_seeks(c, sql);
        }
        Ok(())
    });
    looked.await.unwrap();
}

#[tokio::test]
async fn many_artifacts_go_in_several_commits() {
    let fixture = Fixture::new().await;
    let task = fixture.task("x").await;
    let filled = fixture.store.write(move |c| {
        c.execute(
            "UPDATE tasks SET ended_at = ?2, status = 'completed' WHERE id = ?1",
            params![task, NOW],
        )?;
        let owner: UserId = c.query_row("SELECT user_id FROM tasks", [], |row| row.get(0))?;
        for _ in 0..1500 {
            insert(c, owner, Some(task), &new("a", "y"), NOW)?;
        }
        Ok(())
    });
    filled.await.unwrap();
    let keep = Retention {
        age: Some(Duration::from_secs(1)),
        max_tasks: None,
    };
    for (tasks, more) in [(0, true), (1, false)] {
        let deleted = fixture
            .store
            .expired_delete(keep, Time::from_millis(5_000_000));
        let deleted = deleted.await.unwrap();
        assert_eq!((deleted.tasks, deleted.more), (tasks, more));
    }
    assert!(fixture.list(fixture.filter()).await.is_empty());
}
