//! Tests of secrets, on a real database.

use super::*;
use crate::{
    api::{SessionId, audit::AuditAction, time::Time},
    store::{CredentialId, NewUser, sqlite::query_plan::assert_seeks},
};
use std::time::Duration;

const NOW: Time = Time::from_millis(1_790_000_000_000);

struct Fixture {
    store: Store,
    _home: tempfile::TempDir,
}

fn event(action: AuditAction) -> AuditEvent {
    AuditEvent::new(action, NOW, None)
}

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        Self { store, _home: home }
    }

    /// Authority of a new user with a session.
    async fn user(&self, handle: &str) -> Authority {
        let new = NewUser {
            handle: handle.to_owned(),
            password_hash: String::new(),
            email: None,
            is_admin: false,
        };
        let made = self
            .store
            .user_create(new, None, event(AuditAction::UserCreate));
        let user = made.await.unwrap().unwrap().id;
        let (ends, login) = (NOW.plus(Duration::from_hours(1)), event(AuditAction::Login));
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

    async fn set(&self, owner: Option<UserId>, text: &str, by: Authority) -> Option<SecretView> {
        let secret = SealedSecret {
            owner,
            name: name(text),
            sealing: SecretSealing {
                key_id: "1".to_owned(),
                bytes: format!("{owner:?} {text}").into_bytes(),
            },
        };
        let set = self
            .store
            .secret_set(secret, by, event(AuditAction::SecretSet));
        set.await.unwrap()
    }

    /// Owner of the secret that a user's job gets.
    async fn found(&self, user: UserId, text: &str) -> Option<Option<UserId>> {
        let found = self.store.secrets_of_user(user, vec![name(text)]);
        let found = found.await.unwrap().pop().unwrap();
        found.map(|secret| secret.owner)
    }
}

#[tokio::test]
async fn own_secret_counts_more_than_shared() {
    let world = Fixture::new();
    let (ann, bob) = (world.user("ann").await, world.user("bob").await);
    assert!(world.set(None, "A", ann).await.unwrap().shared);
    assert!(!world.set(Some(ann.user), "A", ann).await.unwrap().shared);
    world.set(Some(ann.user), "B", ann).await.unwrap();
    assert_eq!(world.found(ann.user, "A").await, Some(Some(ann.user)));
    assert_eq!(world.found(bob.user, "A").await, Some(None));
    assert_eq!(world.found(bob.user, "B").await, None);
    let list = world.store.secret_list(ann.user).await.unwrap();
    let list: Vec<_> = list
        .iter()
        .map(|secret| (secret.name.as_str(), secret.shared))
        .collect();
    assert_eq!(list, [("A", false), ("A", true), ("B", false)]);
    let remove = |owner| {
        let event = event(AuditAction::SecretDelete);
        world.store.secret_remove(owner, name("A"), ann, event)
    };
    assert!(remove(Some(ann.user)).await.unwrap());
    assert!(!remove(Some(ann.user)).await.unwrap());
    assert_eq!(world.found(ann.user, "A").await, Some(None));
}

#[tokio::test]
async fn number_of_secrets_is_limited() {
    let world = Fixture::new();
    let ann = world.user("ann").await;
    for n in 0..MAX_SECRETS {
        let set = world.set(Some(ann.user), &format!("A{n}"), ann).await;
        assert!(set.is_some());
    }
    assert!(world.set(Some(ann.user), "B", ann).await.is_none());
    assert!(world.set(Some(ann.user), "A1", ann).await.is_some());
    assert!(world.set(None, "B", ann).await.is_some());
}

#[tokio::test]
async fn all_secrets_are_resealed_in_one_commit() {
    let world = Fixture::new();
    let ann = world.user("ann").await;
    world.set(Some(ann.user), "A", ann).await.unwrap();
    world.set(None, "A", ann).await.unwrap();
    world.set(None, "LOST", ann).await.unwrap();
    let reseal = |secret: &SealedSecret| match secret.name.as_str() {
        "LOST" => Resealed::Unreadable,
        _ if secret.owner.is_none() => Resealed::Unchanged,
        _ => Resealed::New(SecretSealing {
            key_id: "2".to_owned(),
            bytes: b"new".to_vec(),
        }),
    };
    let rotated = world
        .store
        .secret_reseal(reseal, ann, event(AuditAction::SecretRotateKey));
    let rotated = rotated.await.unwrap();
    assert_eq!((rotated.secrets, rotated.unreadable), (2, 1));
    let names = ["A", "LOST"].map(name).to_vec();
    let found = world.store.secrets_of_user(ann.user, names).await.unwrap();
    let keys = found.into_iter().map(|secret| secret.unwrap().sealing);
    let keys: Vec<_> = keys.map(|sealing| sealing.key_id).collect();
    assert_eq!(keys, ["2", "1"]);
    let mut used = world.store.secret_keys_in_use().await.unwrap();
    used.sort();
    assert_eq!(used, [("1".to_owned(), 2), ("2".to_owned(), 1)]);
}

#[tokio::test]
async fn secrets_are_found_by_index() {
    let world = Fixture::new();
    let looked = world.store.read_blocking(|c| {
        assert_seeks(c, GET);
        assert_seeks(c, COUNT);
        Ok(())
    });
    looked.await.unwrap();
}
