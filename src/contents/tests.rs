//! Tests of the store, on a real directory.

use super::*;
use crate::{api::jobs::files::Content, digest::sha256_hex};
use proptest::prelude::*;
use std::time::Duration;
use tempfile::TempDir;

fn open(home: &TempDir, limits: StoreLimits) -> ContentStore {
    ContentStore::open(home.path(), limits).unwrap()
}

fn store() -> (TempDir, ContentStore) {
    let home = tempfile::tempdir().unwrap();
    let store = open(&home, StoreLimits::default());
    (home, store)
}

fn content(bytes: &[u8]) -> Content {
    Content {
        sha256: sha256_hex(bytes).parse().unwrap(),
        size_bytes: bytes.len() as u64,
    }
}

fn expected(bytes: &[u8]) -> Expected {
    Expected {
        sha256: Some(content(bytes).sha256),
        size: Some(bytes.len() as u64),
    }
}

/// Bytes of which no two stretches are equal.
fn bytes(length: usize) -> Vec<u8> {
    let block = |n: usize| sha256_hex(n.to_le_bytes()).into_bytes();
    (0..=length / 64).flat_map(block).take(length).collect()
}

/// Names of all files below the directory.
fn files(home: &TempDir) -> Vec<String> {
    let mut found = Vec::new();
    for part in ["objects", "temporary", "partial"] {
        for entry in fs::read_dir(home.path().join(part)).unwrap() {
            let name = entry.unwrap().file_name();
            found.push(format!("{part}/{}", name.to_str().unwrap()));
        }
    }
    found
}

fn read(store: &ContentStore, hash: &ContentHash) -> Vec<u8> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut store.open_content(hash).unwrap(), &mut bytes).unwrap();
    bytes
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn chunks_of_any_size_give_content(sizes in proptest::collection::vec(0..1_500_000usize, 0..6)) {
        let (home, store) = store();
        let all = bytes(sizes.iter().sum());
        let stored = block_on(async {
            let mut writer = store.writer(expected(&all)).await.unwrap();
            let mut rest = &all[..];
            for size in sizes {
                let (chunk, later) = rest.split_at(size);
                writer.write(chunk).await.unwrap();
                rest = later;
            }
            writer.finish().await.unwrap()
        });
        prop_assert_eq!(&stored.content, &content(&all));
        prop_assert!(read(&store, stored.pin.hash()) == all);
        prop_assert_eq!(store.used_bytes(), all.len() as u64);
        prop_assert_eq!(files(&home).len(), 1);
        prop_assert_eq!(open(&home, StoreLimits::default()).used_bytes(), all.len() as u64);
    }

    #[test]
    fn cut_uploads_go_on_anywhere(cuts in proptest::collection::vec(0..3_000_000usize, 0..5), restart: bool) {
        let (home, mut store) = store();
        let all = bytes(3_000_000);
        let mut cuts = cuts;
        cuts.sort_unstable();
        let stored = block_on(async {
            for cut in cuts {
                let at = store.partial_size("key").unwrap();
                let mut upload = store.resume("key", at, expected(&all)).await.unwrap();
                let from = usize::try_from(at).unwrap();
                upload.write(&all[from..cut.max(from)]).await.unwrap();
                upload.pause().await.unwrap();
                if restart {
                    store = open(&home, StoreLimits::default());
                }
            }
            let at = store.partial_size("key").unwrap();
            let mut upload = store.resume("key", at, expected(&all)).await.unwrap();
            upload.write(&all[usize::try_from(at).unwrap()..]).await.unwrap();
            upload.finish().await.unwrap()
        });
        prop_assert!(read(&store, stored.pin.hash()) == all);
        prop_assert_eq!(store.used_bytes(), all.len() as u64);
        prop_assert_eq!(files(&home).len(), 1);
    }
}

#[tokio::test]
async fn wrong_bytes_leave_nothing() {
    let (home, store) = store();
    let mut writer = store.writer(expected(b"right")).await.unwrap();
    writer.write(b"wrong").await.unwrap();
    let refused = writer.finish().await.unwrap_err();
    assert!(matches!(refused, ContentError::WrongHash { .. }));
    let mut writer = store.writer(expected(b"right")).await.unwrap();
    let refused = writer.write(b"too long").await.unwrap_err();
    assert!(matches!(
        refused,
        ContentError::WrongSize {
            expected: 5,
            found: 8
        }
    ));
    drop(writer);
    let mut writer = store.writer(expected(b"right")).await.unwrap();
    writer.write(b"rig").await.unwrap();
    let refused = writer.finish().await.unwrap_err();
    assert!(matches!(refused, ContentError::WrongSize { .. }));
    assert_eq!((files(&home), store.used_bytes()), (vec![], 0));
}

#[tokio::test]
async fn dropped_writer_leaves_nothing() {
    let (home, store) = store();
    let mut writer = store.writer(Expected::default()).await.unwrap();
    writer.write(&bytes(5_000_000)).await.unwrap();
    drop(writer);
    // A block may still be on its way on a blocking thread.
    while !files(&home).is_empty() || store.used_bytes() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn same_content_at_once_is_stored_once() {
    let (home, store) = store();
    let all = bytes(2_500_000);
    let put = || async {
        let mut writer = store.writer(expected(&all)).await.unwrap();
        for chunk in all.chunks(100_000) {
            writer.write(chunk).await.unwrap();
        }
        writer.finish().await.unwrap()
    };
    let stored = futures_util::future::join_all((0..8).map(|_| put())).await;
    assert!(stored.iter().all(|one| one.content == content(&all)));
    assert_eq!(files(&home).len(), 1);
    assert_eq!(store.used_bytes(), 2_500_000);
    assert!(read(&store, stored[0].pin.hash()) == all);
}

#[tokio::test]
async fn leftovers_go_when_store_is_opened() {
    let (home, store) = store();
    let stored = store.put_bytes(b"kept".to_vec()).await.unwrap();
    fs::write(home.path().join("temporary/.tmpAbC"), "half").unwrap();
    fs::write(home.path().join("objects/not-a-hash"), "foreign").unwrap();
    let store = open(&home, StoreLimits::default());
    assert_eq!(read(&store, stored.pin.hash()), b"kept");
    assert!(!home.path().join("temporary/.tmpAbC").exists());
    let listed = store.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0].sha256, listed[0].size_bytes),
        (stored.pin.hash(), 4)
    );
}

#[tokio::test]
async fn pinned_content_is_not_removed() {
    let (_home, store) = store();
    let stored = store.put_bytes(b"x".to_vec()).await.unwrap();
    let hash = stored.content.sha256.clone();
    let second = store.pin(&hash).unwrap().unwrap();
    drop(stored);
    assert!(!store.remove(&hash).unwrap());
    drop(second);
    assert!(store.remove(&hash).unwrap());
    assert!(store.pin(&hash).unwrap().is_none() && !store.contains(&hash).unwrap());
    assert_eq!(store.used_bytes(), 0);
    assert!(store.remove(&hash).unwrap(), "one that is gone is gone");
}

#[tokio::test]
async fn upload_has_one_sender() {
    let (_home, store) = store();
    let mut upload = store.resume("k", 0, expected(b"abc")).await.unwrap();
    let second = store.resume("k", 0, expected(b"abc")).await;
    assert!(matches!(second.err(), Some(ContentError::Busy)));
    upload.write(b"ab").await.unwrap();
    upload.pause().await.unwrap();
    let wrong = store.resume("k", 0, expected(b"abc")).await;
    assert!(matches!(
        wrong.err(),
        Some(ContentError::WrongOffset {
            offset: 0,
            found: 2
        })
    ));
    let mut upload = store.resume("k", 2, expected(b"abc")).await.unwrap();
    upload.write(b"c").await.unwrap();
    upload.finish().await.unwrap();
    assert_eq!(store.partial_size("k").unwrap(), 0);
}

#[tokio::test]
async fn upload_with_wrong_hash_starts_over() {
    let (home, store) = store();
    let mut upload = store.resume("k", 0, expected(b"abc")).await.unwrap();
    upload.write(b"abd").await.unwrap();
    let refused = upload.finish().await.unwrap_err();
    assert!(matches!(refused, ContentError::WrongHash { .. }));
    assert_eq!((files(&home), store.used_bytes()), (vec![], 0));
    store.resume("k", 0, expected(b"abc")).await.unwrap();
}

#[tokio::test]
async fn stale_uploads_are_removed() {
    let (home, store) = store();
    let mut upload = store.resume("old", 0, expected(b"abc")).await.unwrap();
    upload.write(b"ab").await.unwrap();
    let day = Duration::from_hours(24);
    assert_eq!(
        store.remove_stale_uploads(Duration::ZERO).unwrap(),
        0,
        "in use"
    );
    upload.pause().await.unwrap();
    assert_eq!(store.remove_stale_uploads(day).unwrap(), 0);
    assert_eq!(store.remove_stale_uploads(Duration::ZERO).unwrap(), 1);
    assert_eq!((files(&home), store.used_bytes()), (vec![], 0));
}

#[tokio::test]
async fn full_store_refuses_more() {
    let home = tempfile::tempdir().unwrap();
    let quota = Some(3_000_000);
    let store = open(&home, StoreLimits { quota, min_free: 0 });
    let refused = store.writer(expected(&bytes(3_000_001))).await.err();
    assert!(matches!(refused, Some(ContentError::QuotaExceeded { .. })));
    let mut writer = store.writer(Expected::default()).await.unwrap();
    let written = async {
        writer.write(&bytes(5_000_000)).await?;
        writer.finish().await
    };
    let refused = written.await.unwrap_err();
    assert!(matches!(refused, ContentError::QuotaExceeded { .. }));
    assert_eq!((files(&home), store.used_bytes()), (vec![], 0));
    store.put_bytes(bytes(3_000_000)).await.unwrap();
    let min_free = u64::MAX / 2;
    let store = open(
        &home,
        StoreLimits {
            quota: None,
            min_free,
        },
    );
    let refused = store.put_bytes(b"x".to_vec()).await.unwrap_err();
    assert!(matches!(refused, ContentError::DiskFull { .. }));
}

#[tokio::test]
async fn sweep_spares_what_came_into_use() {
    let (_home, store) = store();
    let put = async |text: &str| store.put_bytes(text.as_bytes().to_vec()).await.unwrap();
    let old = put("old").await.content.sha256;
    let held = put("held").await;
    let sweep = store.sweep();
    let used = put("old").await;
    let new = put("new").await;
    let hashes = [&old, held.pin.hash(), new.pin.hash()].map(Clone::clone);
    drop((used, held, new));
    for hash in &hashes {
        assert!(!sweep.remove(hash).unwrap());
    }
    drop(sweep);
    let sweep = store.sweep();
    for hash in &hashes {
        assert!(sweep.remove(hash).unwrap());
    }
    assert!(sweep.list().unwrap().is_empty());
}

mod uploads;
