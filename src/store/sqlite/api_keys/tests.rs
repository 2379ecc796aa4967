//! Tests of API keys, on a real database.

use super::*;
use crate::{
    api::{SessionId, api_keys::Scope, audit::AuditAction},
    store::{CredentialId, NewUser, Retention, UserChange, sqlite::query_plan::assert_seeks},
};

const NOW: Time = Time::from_millis(1_790_000_000_000);

struct Fixture {
    store: Store,
    home: tempfile::TempDir,
}

fn event(action: AuditAction, at: Time) -> AuditEvent {
    AuditEvent::new(action, at, None)
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        Self { store, home }
    }

    /// Authority of a new user with a session.
    async fn user(&self, handle: &str) -> Authority {
        let new = NewUser {
            handle: handle.to_owned(),
            password_hash: String::new(),
            email: None,
            is_admin: handle == "admin",
        };
        let made = self
            .store
            .user_create(new, None, event(AuditAction::UserCreate, NOW));
        let user = made.await.unwrap().unwrap().id;
        let ends = NOW.plus(Duration::from_hours(1));
        let login = event(AuditAction::Login, NOW);
        let opened = self
            .store
            .session_open(user, handle.to_owned(), ends, None, login);
        let session: SessionId = opened.await.unwrap().unwrap();
        Authority {
            credential: CredentialId::Session(session),
            user,
            admin: false,
        }
    }

    async fn create(&self, by: Authority, name: &str, expires_at: Option<Time>) -> Option<ApiKey> {
        let new = NewApiKey {
            name: name.to_owned(),
            prefix: format!("cyk_{name}"),
            key_sha256: format!("sha256 of {name}"),
            scopes: vec![Scope::Inference, Scope::Tasks],
            expires_at,
        };
        let created = self
            .store
            .api_key_create(new, by, event(AuditAction::KeyCreate, NOW));
        created.await.unwrap()
    }

    async fn find(&self, name: &str, now: Time) -> Option<ValidApiKey> {
        let found = self
            .store
            .api_key_by_secret(format!("sha256 of {name}"), now);
        found.await.unwrap()
    }

    async fn names(
        &self,
        owner: Option<UserId>,
        before: Option<ApiKeyId>,
        limit: u32,
    ) -> Vec<String> {
        let filter = ApiKeyFilter {
            owner,
            before,
            limit,
        };
        let keys = self
            .store
            .api_key_list(UserId::new(), filter)
            .await
            .unwrap();
        keys.into_iter().map(|key| key.name).collect()
    }
}

#[tokio::test]
async fn key_queries_use_index() {
    let fixture = Fixture::new();
    let looked = fixture.store.read_blocking(|c| {
        for sql in [
            COUNT,
            VALID,
            IS_VALID,
            LIST_ALL,
            LIST_OWN,
            GET,
            TOUCH,
            OLD_API_KEYS,
        ] {
            assert_seeks(c, sql);
        }
        Ok(())
    });
    looked.await.unwrap();
}

#[tokio::test]
async fn key_is_valid_until_it_expires() {
    let fixture = Fixture::new();
    let ann = fixture.user("ann").await;
    let end = NOW.plus(Duration::from_mins(1));
    let short = fixture.create(ann, "short", Some(end)).await.unwrap();
    let long = fixture.create(ann, "long", None).await.unwrap();
    let found = fixture.find("short", NOW).await.unwrap();
    assert_eq!((found.key, found.user.id), (short.clone(), ann.user));
    assert!(fixture.find("short", end).await.is_none());
    assert_eq!(fixture.find("long", Time::MAX).await.unwrap().key, long);
    assert!(fixture.find("other", NOW).await.is_none());
    for (id, now, expected) in [
        (short.id, NOW, true),
        (short.id, end, false),
        (long.id, end, true),
    ] {
        let valid = fixture.store.api_key_is_valid(id, now).await.unwrap();
        assert_eq!(valid, expected);
    }
}

#[tokio::test]
async fn key_of_disabled_user_is_invalid() {
    let fixture = Fixture::new();
    fixture.user("admin").await;
    let ann = fixture.user("ann").await;
    let key = fixture.create(ann, "ci", None).await.unwrap();
    for (change, expected) in [(UserChange::Disable, false), (UserChange::Enable, true)] {
        let event = event(AuditAction::UserDisable, NOW);
        fixture
            .store
            .user_change(ann.user, change, None, event)
            .await
            .unwrap();
        assert_eq!(fixture.find("ci", NOW).await.is_some(), expected);
        assert_eq!(
            fixture.store.api_key_is_valid(key.id, NOW).await.unwrap(),
            expected
        );
    }
}

#[tokio::test]
async fn revoked_key_authorizes_no_write() {
    let fixture = Fixture::new();
    let (ann, bob) = (fixture.user("ann").await, fixture.user("bob").await);
    let key = fixture.create(ann, "ci", None).await.unwrap();
    let by_key = Authority {
        credential: CredentialId::Key(key.id),
        ..ann
    };
    assert!(fixture.create(by_key, "another", None).await.is_some());
    let revoke = async |owner, by| {
        let event = event(AuditAction::KeyRevoke, NOW);
        fixture.store.api_key_revoke(key.id, owner, by, event).await
    };
    assert!(
        !revoke(Some(bob.user), bob).await.unwrap(),
        "another user's key"
    );
    for by in [
        Authority {
            user: bob.user,
            ..by_key
        },
        Authority {
            admin: true,
            ..by_key
        },
    ] {
        assert!(matches!(
            revoke(None, by).await,
            Err(StoreError::NotAuthorized)
        ));
    }
    assert!(revoke(Some(ann.user), ann).await.unwrap());
    assert!(!revoke(Some(ann.user), ann).await.unwrap());
    assert!(matches!(
        revoke(None, by_key).await,
        Err(StoreError::NotAuthorized)
    ));
    assert!(fixture.find("ci", NOW).await.is_none());
    assert!(!fixture.store.api_key_is_valid(key.id, NOW).await.unwrap());
}

#[tokio::test]
async fn keys_are_listed_by_owner_newest_first() {
    let fixture = Fixture::new();
    let (ann, bob) = (fixture.user("ann").await, fixture.user("bob").await);
    fixture.create(ann, "a", None).await.unwrap();
    let b = fixture.create(bob, "b", None).await.unwrap();
    fixture.create(ann, "c", None).await.unwrap();
    assert_eq!(fixture.names(None, None, 9).await, ["c", "b", "a"]);
    assert_eq!(fixture.names(None, None, 2).await, ["c", "b"]);
    assert_eq!(fixture.names(Some(ann.user), None, 9).await, ["c", "a"]);
    assert_eq!(fixture.names(None, Some(b.id), 9).await, ["a"]);
    assert_eq!(fixture.names(Some(bob.user), Some(b.id), 9).await, [""; 0]);
}

#[tokio::test]
async fn use_is_written_once_a_minute() {
    let fixture = Fixture::new();
    let ann = fixture.user("ann").await;
    fixture.create(ann, "ci", None).await.unwrap();
    for (seconds, noted) in [(0, 0), (59, 0), (60, 60), (119, 60), (300, 300)] {
        let now = NOW.plus(Duration::from_secs(seconds));
        let found = fixture.find("ci", now).await.unwrap();
        assert_eq!(found.is_use_due(now), seconds == noted, "{seconds}");
        fixture.store.api_key_used(found.key.id, now).await.unwrap();
        let key = fixture.find("ci", now).await.unwrap().key;
        assert_eq!(key.last_used_at, Some(NOW.plus(Duration::from_secs(noted))));
    }
}

#[tokio::test]
async fn number_of_keys_is_limited() {
    let fixture = Fixture::new();
    let (ann, bob) = (fixture.user("ann").await, fixture.user("bob").await);
    let fill = fixture.store.write(move |c| {
        for n in 0..MAX_KEYS {
            let sql = "INSERT INTO api_keys VALUES (?1, ?2, '', '', ?1, '[]', 1, NULL, NULL)";
            c.execute(sql, params![n.to_string(), ann.user])?;
        }
        Ok(())
    });
    fill.await.unwrap();
    assert!(fixture.create(ann, "one more", None).await.is_none());
    assert!(fixture.create(bob, "first", None).await.is_some());
}

#[tokio::test]
async fn expired_keys_are_deleted_in_time() {
    let fixture = Fixture::new();
    let ann = fixture.user("ann").await;
    let end = NOW.plus(Duration::from_mins(1));
    fixture.create(ann, "short", Some(end)).await.unwrap();
    fixture.create(ann, "long", None).await.unwrap();
    let keep = Retention {
        age: None,
        max_tasks: None,
    };
    let until = end.plus(EXPIRED_RETENTION);
    for (now, left) in [(until.minus(Duration::from_millis(1)), 2), (until, 1)] {
        fixture.store.expired_delete(keep, now).await.unwrap();
        assert_eq!(fixture.names(None, None, 9).await.len(), left);
    }
}

#[tokio::test]
async fn database_and_audit_have_no_secret() {
    let fixture = Fixture::new();
    let ann = fixture.user("ann").await;
    let key = fixture.create(ann, "ci", None).await.unwrap();
    let revoked =
        fixture
            .store
            .api_key_revoke(key.id, None, ann, event(AuditAction::KeyRevoke, NOW));
    assert!(revoked.await.unwrap());
    let filter = crate::store::AuditFilter {
        action: None,
        who: Some("cyk_ci".to_owned()),
        before: None,
        limit: 9,
    };
    let events = fixture.store.audit_list(ann.user, filter).await.unwrap();
    let shown: Vec<_> = events
        .iter()
        .map(|entry| {
            (
                entry.event.action.as_str(),
                entry.event.reason.as_deref().unwrap_or_default(),
            )
        })
        .collect();
    let details = "key \"ci\" of ann: inference, tasks";
    assert_eq!(shown, [("key.revoke", details), ("key.create", details)]);
    drop(fixture.home);
}
