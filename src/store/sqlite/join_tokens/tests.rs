//! Tests of join tokens, on a real database.

use super::*;
use crate::{
    api::{
        SessionId,
        audit::AuditAction,
        nodes::{CapabilityReport, JoinTokenStatus},
    },
    store::{
        CredentialId, ForgetOutcome, NewUser, RegisterOutcome, Retention,
        sqlite::query_plan::assert_seeks,
    },
};

const NOW: Time = Time::from_millis(1_790_000_000_000);
const HOUR: Duration = Duration::from_hours(1);

fn event(action: AuditAction, at: Time) -> AuditEvent {
    AuditEvent::new(action, at, None)
}

fn report(slug: &str) -> CapabilityReport {
    let report = serde_json::json!({
        "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": slug},
        "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": 1, "ram_mb": 1},
    });
    serde_json::from_value(report).unwrap()
}

struct Fixture {
    store: Store,
    admin: Authority,
    _home: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let new = NewUser {
            handle: "admin".to_owned(),
            password_hash: String::new(),
            email: None,
            is_admin: true,
        };
        let made = store.user_create(new, None, event(AuditAction::UserCreate, NOW));
        let user = made.await.unwrap().unwrap().id;
        let (ends, login) = (NOW.plus(1000 * HOUR), event(AuditAction::Login, NOW));
        let opened = store.session_open(user, "admin".to_owned(), ends, None, login);
        let session: SessionId = opened.await.unwrap().unwrap();
        Self {
            store,
            admin: Authority {
                credential: CredentialId::Session(session),
                user,
                admin: true,
            },
            _home: home,
        }
    }

    async fn create(&self, secret: &str, uses: u32, at: Time) -> JoinTokenId {
        let new = NewJoinToken {
            secret_sha256: secret.to_owned(),
            slug: None,
            uses,
            expires_at: at.plus(HOUR),
            url: "http://192.168.1.5:12082".to_owned(),
        };
        let event = event(AuditAction::JoinTokenCreate, at);
        let created = self.store.join_token_create(new, self.admin, event);
        created.await.unwrap().unwrap().id
    }

    /// Registers a node by a token at a time.
    async fn join(&self, token: JoinTokenId, slug: &str, key: &str, at: Time) -> RegisterOutcome {
        let (event, key) = (event(AuditAction::NodeRegister, at), Some(key.to_owned()));
        let (store, hash) = (&self.store, String::new());
        let registered = store.node_register(report(slug), hash, key, Some(token), 100, event);
        registered.await.unwrap()
    }

    async fn remove(&self, token: JoinTokenId, at: Time) -> bool {
        let event = event(AuditAction::JoinTokenRemove, at);
        let removed = self.store.join_token_remove(token, self.admin, event);
        removed.await.unwrap()
    }
}

fn refusal(outcome: RegisterOutcome) -> &'static str {
    match outcome {
        RegisterOutcome::NotAdmitted(refusal) => refusal.as_str(),
        RegisterOutcome::Created(..) => "created",
        RegisterOutcome::Known(..) => "known",
        RegisterOutcome::Taken => "taken",
        RegisterOutcome::Full => "full",
    }
}

#[tokio::test]
async fn last_use_goes_to_one_node() {
    let fixture = Fixture::new().await;
    let token = fixture.create("secret", 2, NOW).await;
    let slugs = ["a", "b", "c", "d"];
    let joins = slugs.map(|slug| fixture.join(token, slug, slug, NOW));
    let outcomes = futures_util::future::join_all(joins).await;
    let mut outcomes: Vec<_> = outcomes.into_iter().map(refusal).collect();
    outcomes.sort_unstable();
    assert_eq!(
        outcomes,
        ["created", "created", "token-used-up", "token-used-up"]
    );
    assert_eq!(fixture.store.node_list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn joined_node_returns_until_token_is_removed() {
    let fixture = Fixture::new().await;
    let token = fixture.create("secret", 1, NOW).await;
    let join = async |slug: &str, key: &str, at| refusal(fixture.join(token, slug, key, at).await);
    assert_eq!(join("box", "key", NOW).await, "created");
    let later = NOW.plus(2 * HOUR);
    assert_eq!(join("box", "key", later).await, "known");
    assert_eq!(join("box", "another key", NOW).await, "token-used-up");
    assert_eq!(join("other", "key", NOW).await, "token-used-up");
    assert!(fixture.remove(token, later).await);
    assert!(!fixture.remove(token, later).await);
    assert_eq!(join("box", "key", later).await, "token-removed");
    assert_eq!(fixture.store.node_list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn refused_registration_costs_no_use() {
    let fixture = Fixture::new().await;
    let (first, second) = (
        fixture.create("first", 1, NOW).await,
        fixture.create("second", 1, NOW).await,
    );
    let join =
        async |token, slug: &str, key: &str| refusal(fixture.join(token, slug, key, NOW).await);
    assert_eq!(join(first, "box", "key").await, "created");
    assert_eq!(join(second, "box", "thief").await, "taken");
    assert_eq!(join(second, "other", "thief").await, "created");
}

#[tokio::test]
async fn list_shows_nodes_and_status() {
    let fixture = Fixture::new().await;
    let used = fixture.create("first", 1, NOW).await;
    let unused = fixture.create("second", 1, NOW).await;
    let removed = fixture.create("third", 1, NOW).await;
    fixture.join(used, "box", "key", NOW).await;
    assert!(fixture.remove(removed, NOW).await);
    let list = async |at| {
        let list = fixture.store.join_token_list(fixture.admin.user, at);
        let list = list.await.unwrap().into_iter();
        list.map(|token| (token.id, token.status, token.nodes))
            .collect::<Vec<_>>()
    };
    let used = (used, JoinTokenStatus::UsedUp, vec!["box".to_owned()]);
    let valid = (unused, JoinTokenStatus::Valid, Vec::new());
    assert_eq!(list(NOW).await, [valid, used.clone()]);
    let expired = (unused, JoinTokenStatus::Expired, Vec::new());
    assert_eq!(list(NOW.plus(HOUR)).await, [expired, used]);
}

#[tokio::test]
async fn old_tokens_are_deleted_unless_nodes_need_them() {
    let fixture = Fixture::new().await;
    let used = fixture.create("used", 1, NOW).await;
    fixture.create("unused", 1, NOW).await;
    let removed = fixture.create("removed", 1, NOW).await;
    for (token, slug) in [(used, "box"), (removed, "other")] {
        assert_eq!(
            refusal(fixture.join(token, slug, "key", NOW).await),
            "created"
        );
    }
    assert!(fixture.remove(removed, NOW).await);
    let known = async |secret: &str| {
        let found = fixture.store.join_token_by_secret(secret.to_owned());
        found.await.unwrap().is_some()
    };
    assert!(known("removed").await && known("unused").await);
    let keep = Retention {
        age: None,
        max_tasks: None,
    };
    let clean = async |at| drop(fixture.store.expired_delete(keep, at).await.unwrap());
    let later = NOW.plus(RETENTION + HOUR);
    fixture.create("new", 1, later).await;
    clean(later).await;
    assert!(!known("removed").await && !known("unused").await);
    assert!(known("used").await && known("new").await);
    let forget = event(AuditAction::NodeForget, later);
    let forgotten = fixture.store.node_forget("box".to_owned(), forget).await;
    assert!(matches!(forgotten.unwrap(), ForgetOutcome::Forgotten(_)));
    clean(later).await;
    assert!(!known("used").await && known("new").await);
}

#[tokio::test]
async fn token_takes_over_no_node_without_key() {
    let fixture = Fixture::new().await;
    let register = event(AuditAction::NodeRegister, NOW);
    let (store, hash) = (&fixture.store, String::new());
    let registered = store.node_register(report("box"), hash, None, None, 100, register);
    assert_eq!(refusal(registered.await.unwrap()), "created");
    let token = fixture.create("secret", 1, NOW).await;
    assert_eq!(
        refusal(fixture.join(token, "box", "key", NOW).await),
        "taken"
    );
    let owned = async |token| {
        let owned = store.node_owned("box".to_owned(), Some("key".to_owned()), token);
        owned.await.unwrap().is_some()
    };
    assert!(owned(None).await && !owned(Some(token)).await);
    assert_eq!(
        refusal(fixture.join(token, "other", "key", NOW).await),
        "created"
    );
}

#[tokio::test]
async fn token_of_former_admin_lets_no_new_node_in() {
    let fixture = Fixture::new().await;
    let token = fixture.create("secret", 2, NOW).await;
    let join = async |slug: &str| refusal(fixture.join(token, slug, "key", NOW).await);
    assert_eq!(join("box").await, "created");
    let demote = fixture.store.write(|c| {
        execute(c, "UPDATE users SET is_admin = 0", [])?;
        Ok(())
    });
    demote.await.unwrap();
    assert_eq!(join("other").await, "token-creator-not-admin");
    assert_eq!(join("box").await, "known");
    let list = fixture.store.join_token_list(fixture.admin.user, NOW).await;
    assert_eq!(list.unwrap()[0].status, JoinTokenStatus::Disabled);
}

#[tokio::test]
async fn token_is_found_by_index() {
    let fixture = Fixture::new().await;
    let looked = fixture.store.read_blocking(|c| {
        assert_seeks(c, BY_SECRET);
        assert_seeks(c, STATE);
        Ok(())
    });
    looked.await.unwrap();
}
