//! Tests of the choice of uploads that make room, and of the shares of users.

use super::*;
use crate::store::{AuditFilter, Evicted, RoomRequest, UnfinishedBytes};
use std::collections::BTreeMap;

impl Fixture {
    /// Number of uploads that go for one of 2 bytes, where `missing` bytes are missing.
    async fn evict(&self, name: &str, missing: u64) -> usize {
        let request = RoomRequest {
            owner: self.by.user,
            name: name.to_owned(),
            size: 2,
            missing,
            quota: 16,
            keep_since: NOW,
            unfinished: BTreeMap::new(),
        };
        self.store.artifacts_evict(request).await.unwrap().uploads
    }

    /// Has all uploads so far belong to another user.
    async fn give_away(&self) {
        let given = self.store.write(|c| {
            let user = UserId::new();
            let sql = "INSERT INTO users VALUES (?1, 'bob', NULL, '', 1, 0, 1, 1)";
            c.execute(sql, [user])?;
            c.execute("UPDATE artifacts SET user_id = ?1", [user])?;
            Ok(())
        });
        given.await.unwrap();
    }
}

#[tokio::test]
async fn oldest_uploads_of_name_go_first() {
    let fixture = Fixture::new().await;
    let at = |n| Time::from_millis(n);
    fixture.add("other", "ab", at(1)).await;
    fixture.add("same", "cd", at(3)).await;
    fixture.add("same", "ef", at(2)).await;
    fixture.add("same", "needed", at(1)).await;
    fixture.add("same", "new", LATER).await;
    fixture.task("needed").await;
    assert_eq!(fixture.evict("same", 7).await, 0, "all would not suffice");
    assert_eq!(fixture.evict("same", 1).await, 1);
    assert_eq!(fixture.released().await, [content("ef").sha256]);
    assert_eq!(fixture.evict("same", 3).await, 2);
    assert_eq!(fixture.list(fixture.filter()).await, ["same", "same"]);
}

#[tokio::test]
async fn users_beyond_share_make_room() {
    let fixture = Fixture::new().await;
    for text in ["12345", "abcde", "ABCDE"] {
        fixture.add("x", text, NOW).await;
    }
    fixture.give_away().await;
    let stored = fixture.store.artifact_use(fixture.by.user).await.unwrap();
    let expected = StoreUse {
        own: 0,
        holders: 2,
        users: 2,
    };
    assert_eq!(stored, expected);
    assert_eq!(fixture.evict("x", 3).await, 1, "8 is the share of each");
    let deleted = AuditFilter {
        action: Some(AuditAction::ArtifactDelete),
        who: None,
        before: None,
        limit: 9,
    };
    let events = fixture.store.audit_list(fixture.by.user, deleted);
    let events = events.await.unwrap();
    assert_eq!(events.len(), 1, "an eviction is in the audit log");
    let mine = fixture.add("mine", "7 bytes", LATER).await;
    assert_eq!(fixture.evict("x", 2).await, 0, "beyond the own share");
    let deleted = fixture
        .store
        .artifact_delete(mine.artifact_id, None, fixture.by, event());
    assert!(deleted.await.unwrap());
    assert_eq!(fixture.evict("x", 3).await, 1, "10 are beyond it, too");
    assert_eq!(fixture.evict("x", 3).await, 0, "5 are not");
}

#[tokio::test]
async fn unfinished_uploads_make_room_first() {
    let fixture = Fixture::new().await;
    fixture.add("x", "12345", NOW).await;
    let [own, other] = [fixture.by.user, UserId::new()];
    let bytes = |all, idle| UnfinishedBytes { all, idle };
    for (missing, unfinished, uploads, expected) in [
        (3, vec![(own, bytes(4, 4))], 0, vec![(own, 3)]),
        (
            10,
            vec![(own, bytes(4, 4)), (other, bytes(7, 7))],
            0,
            vec![],
        ),
        (3, vec![(other, bytes(10, 10))], 1, vec![]),
        (2, vec![(other, bytes(10, 10))], 0, vec![(other, 2)]),
        (2, vec![(other, bytes(10, 1))], 0, vec![]),
    ] {
        let request = RoomRequest {
            owner: own,
            name: "y".to_owned(),
            size: 2,
            missing,
            quota: 16,
            keep_since: NOW,
            unfinished: unfinished.into_iter().collect(),
        };
        let evicted = fixture.store.artifacts_evict(request).await.unwrap();
        let expected = expected.into_iter().collect();
        let expected = Evicted {
            uploads,
            unfinished: expected,
        };
        assert_eq!(evicted, expected, "{missing}");
    }
}
