//! Tests of uploads in parts: their room, their end, and who sends them.

use super::*;

fn sized(size: u64) -> Expected {
    let sha256 = None;
    let size = Some(size);
    Expected { sha256, size }
}

#[tokio::test]
async fn announced_bytes_are_reserved() {
    let home = tempfile::tempdir().unwrap();
    let quota = Some(100);
    let store = open(&home, StoreLimits { quota, min_free: 0 });
    let mut upload = store.resume("a", 0, sized(60)).await.unwrap();
    let refused = store.resume("b", 0, sized(60)).await.err();
    assert!(matches!(refused, Some(ContentError::QuotaExceeded { .. })));
    let part = store.with_limits(Some(80), 10);
    let limited = part.resume("c", 0, sized(20)).await.unwrap();
    assert_eq!(store.used_bytes(), 70, "at most its limit is reserved");
    drop(limited);
    let refused = part.ensure_room(30).await.unwrap_err();
    assert!(matches!(refused, ContentError::QuotaExceeded { .. }));
    store.ensure_room(30).await.unwrap();
    upload.write(&[1; 20]).await.unwrap();
    upload.pause().await.unwrap();
    assert_eq!(store.used_bytes(), 20, "what has not arrived is free again");
    let mut upload = store.resume("a", 20, sized(60)).await.unwrap();
    assert_eq!(store.used_bytes(), 60);
    upload.write(&[1; 40]).await.unwrap();
    let stored = upload.finish().await.unwrap();
    assert_eq!(store.used_bytes(), 60);
    drop(stored);
    let writer = store.writer(sized(40)).await.unwrap();
    assert_eq!(store.used_bytes(), 100);
    drop(writer);
    assert_eq!(store.used_bytes(), 60);
}

#[tokio::test]
async fn failed_finish_keeps_hash() {
    let (home, store) = store();
    let all = bytes(3000);
    let mut upload = store.resume("k", 0, sized(3000)).await.unwrap();
    upload.write(&all).await.unwrap();
    upload.pause().await.unwrap();
    let upload = store.resume("k", 3000, sized(3000)).await.unwrap();
    let objects = home.path().join("objects");
    fs::remove_dir(&objects).unwrap();
    upload.finish().await.unwrap_err();
    fs::create_dir(&objects).unwrap();
    assert_eq!(store.partial_size("k").unwrap(), 3000);
    let upload = store.resume("k", 3000, sized(3000)).await.unwrap();
    let stored = upload.finish().await.unwrap();
    assert_eq!(stored.content, content(&all));
    assert_eq!(store.used_bytes(), 3000);
}

#[tokio::test]
async fn discarded_uploads_free_their_room() {
    let (home, store) = store();
    for key in ["job-1-1-0", "job-1-1-1", "job-10-1-0", "other"] {
        let mut upload = store.resume(key, 0, sized(3)).await.unwrap();
        upload.write(b"ab").await.unwrap();
        upload.pause().await.unwrap();
    }
    let sent = store.resume("job-1-1-2", 0, sized(3)).await.unwrap();
    assert_eq!(store.discard_all("job-1-").unwrap(), 2);
    assert!(store.discard("job-10-1-0").unwrap() && !store.discard("job-10-1-0").unwrap());
    drop(sent);
    assert_eq!(store.discard_oldest("", 3).unwrap(), 0);
    assert_eq!(store.discard_bytes("o", "other", 9).unwrap(), 0, "kept");
    assert_eq!(store.discard_oldest("job-", 0).unwrap(), 1);
    assert_eq!(
        (files(&home), store.used_bytes()),
        (vec!["partial/other".to_owned()], 2)
    );
}

#[tokio::test(start_paused = true)]
async fn silent_sender_is_taken_over() {
    let (_home, store) = store();
    let mut upload = store.resume("k", 0, sized(4)).await.unwrap();
    upload.write(b"ab").await.unwrap();
    let refused = store.resume("k", 0, sized(4)).await.err();
    assert!(
        matches!(refused, Some(ContentError::Busy)),
        "it has just sent"
    );
    tokio::time::advance(Duration::from_secs(6)).await;
    let old = async {
        upload.taken_over().await;
        upload.pause().await.unwrap();
    };
    let new = async {
        store.take_over("k").await;
        assert_eq!(store.partial_size("k").unwrap(), 2);
        let mut upload = store.resume("k", 2, sized(4)).await.unwrap();
        upload.write(b"cd").await.unwrap();
        upload.finish().await.unwrap()
    };
    let ((), stored) = tokio::join!(old, new);
    assert_eq!(stored.content, content(b"abcd"));
}

#[tokio::test]
async fn removal_and_pin_exclude_each_other() {
    let (_home, store) = store();
    let hash = store.put_bytes(b"x".to_vec()).await.unwrap().content.sha256;
    for _ in 0..50 {
        store.put_bytes(b"x".to_vec()).await.unwrap();
        let (removing, pinning) = (store.clone(), store.clone());
        let (removed, pinned) = (hash.clone(), hash.clone());
        let removal = spawn_blocking(move || removing.remove(&removed).unwrap());
        let pin = spawn_blocking(move || pinning.pin(&pinned).unwrap());
        let (gone, pin) = (removal.await.unwrap(), pin.await.unwrap());
        assert_eq!(store.contains(&hash).unwrap(), !gone);
        assert!(!(gone && pin.is_some()), "a pinned content is here");
    }
}

#[test]
fn parts_that_may_have_holes_are_cut() {
    let home = tempfile::tempdir().unwrap();
    drop(open(&home, StoreLimits::default()));
    let mib = 1 << 20;
    for (key, size) in [
        ("job-a", 200 * mib),
        ("job-b", 100 * mib),
        ("user-c", 5 * mib),
    ] {
        let path = home.path().join("partial").join(key);
        fs::File::create(path).unwrap().set_len(size).unwrap();
    }
    let store = open(&home, StoreLimits::default());
    assert_eq!(store.used_bytes(), 305 * mib);
    store.cut_unsynced("job-").unwrap();
    let sizes = ["job-a", "job-b", "user-c"].map(|key| store.partial_size(key).unwrap());
    assert_eq!(sizes, [128 * mib, 0, 5 * mib]);
    assert_eq!(store.used_bytes(), 133 * mib);
}
