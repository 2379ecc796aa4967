//! What is stored is found again, whole or not at all, and never more than there may be.

use super::*;
use crate::worker::egress::{
    cache::policy::{Origin, key_of},
    request::Target,
};
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: u64 = 64 * 1024;

fn key(path: &str) -> Key {
    let target = Target {
        host: "a.example".parse().unwrap(),
        port: 80,
    };
    let origin = Origin {
        scheme: "http",
        target: &target,
        is_private: false,
    };
    let request = http::Request::get(path).body(()).unwrap();
    key_of(&request.into_parts().0, false, &origin).unwrap()
}

fn store_in(dir: &TempDir, limit: u64, min_free: u64) -> Arc<Store> {
    let gauge = IntGauge::new("bytes", "Bytes.").unwrap();
    let store = Store::new(dir.path().join("cache"), limit, min_free, gauge);
    store.open().unwrap();
    Arc::new(store)
}

fn entry(length: usize) -> Entry {
    let headers = vec![("content-type".to_owned(), "a/b".to_owned())];
    Entry::new("\"v1\"".to_owned(), headers, length as u64)
}

fn put(store: &Arc<Store>, key: &Key, body: &[u8]) {
    let mut writer = store.begin(key, &entry(body.len())).unwrap().unwrap();
    writer.write(body).unwrap();
    writer.finish().unwrap();
}

fn get(store: &Arc<Store>, key: &Key) -> Option<io::Result<Vec<u8>>> {
    let (body, end) = get_part(store, key)?;
    Some(end.map(|()| body))
}

/// Bytes that are released, and whether they are all.
fn get_part(store: &Arc<Store>, key: &Key) -> Option<(Vec<u8>, io::Result<()>)> {
    let mut found = store.find(key).unwrap()?;
    let mut body = Vec::new();
    loop {
        match found.reader.read() {
            Ok(chunk) if chunk.is_empty() => return Some((body, Ok(()))),
            Ok(chunk) => body.extend_from_slice(&chunk),
            Err(error) => return Some((body, Err(error))),
        }
    }
}

fn age(store: &Store, key: &Key, hours: u64) {
    let file = File::options()
        .append(true)
        .open(store.path_of(key))
        .unwrap();
    let time = SystemTime::now() - Duration::from_hours(hours);
    file.set_modified(time).unwrap();
}

fn files(store: &Store) -> usize {
    fs::read_dir(&store.path).unwrap().count()
}

#[test]
fn stored_bytes_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(&dir, 4 << 20, 0);
    let body: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    assert!(get(&store, &key("/a")).is_none());
    put(&store, &key("/a"), &body);
    assert_eq!(get(&store, &key("/a")).unwrap().unwrap(), body);
    assert!(get(&store, &key("/b")).is_none());
    assert_eq!(
        store.find(&key("/a")).unwrap().unwrap().entry,
        entry(body.len())
    );
    let used = store.used_bytes.get();
    put(&store, &key("/a"), &body);
    assert_eq!(store.used_bytes.get(), used, "a file is counted once");

    let next = store_in(&dir, 4 << 20, 0);
    assert_eq!(next.used_bytes.get(), used);
    assert_eq!(get(&next, &key("/a")).unwrap().unwrap(), body);
    next.remove(&key("/a")).unwrap();
    assert_eq!((next.used_bytes.get(), files(&next)), (0, 0));
}

#[test]
fn unfinished_download_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(&dir, LIMIT, 0);
    let mut writer = store.begin(&key("/a"), &entry(9)).unwrap().unwrap();
    writer.write(b"four").unwrap();
    assert_eq!(files(&store), 1);
    drop(writer);
    assert_eq!((files(&store), store.state.lock().arriving), (0, 0));
    // As a process leaves it that is killed.
    let left = store.path.join(".cynode-new-x");
    fs::write(&left, "four").unwrap();
    let others = store.path.join("notes");
    fs::write(&others, "").unwrap();
    let next = store_in(&dir, LIMIT, 0);
    assert!(!left.exists() && others.exists());
    assert!(get(&next, &key("/a")).is_none());
}

#[test]
fn damaged_file_is_not_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(&dir, 4 << 20, 0);
    let (key, body) = (key("/a"), vec![7_u8; 150_000]);
    let path = store.path_of(&key);
    put(&store, &key, &body);
    let whole = fs::read(&path).unwrap();
    let line = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for place in [line, line + 149_999, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[place] ^= 1;
        fs::write(&path, damaged).unwrap();
        let error = get(&store, &key).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(!path.exists(), "it is fetched again");
    }
    for content in [&whole[..whole.len() - 1], &whole[..line], &whole[..3], b""] {
        fs::write(&path, content).unwrap();
        assert!(get(&store, &key).is_none() && !path.exists());
    }
    assert_eq!(store.used_bytes.get(), 0);
}

#[test]
fn damaged_bytes_are_not_released() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(&dir, 4 << 20, 0);
    let key = key("/a");
    let path = store.path_of(&key);
    for length in [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1] {
        let mut writer = store.begin(&key, &entry(length)).unwrap().unwrap();
        for part in vec![7_u8; length].chunks(1000) {
            writer.write(part).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(get(&store, &key).unwrap().unwrap(), vec![7; length]);
    }
    put(&store, &key, &vec![7; 2 * CHUNK_BYTES]);
    let mut content = fs::read(&path).unwrap();
    let line = content.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // In the second chunk.
    content[line + CHUNK_BYTES + 40] ^= 1;
    fs::write(&path, content).unwrap();
    let (released, end) = get_part(&store, &key).unwrap();
    assert_eq!(released, vec![7; CHUNK_BYTES]);
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn least_recently_used_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(&dir, LIMIT, 0);
    let keys = ["/1", "/2", "/3", "/4"].map(key);
    for (hours, key) in (1..).zip(&keys) {
        put(&store, key, &[1; 12 * 1024]);
        age(&store, key, 10 - hours);
    }
    assert_eq!(store.used_bytes.get(), 64 * 1024);
    // A use of the oldest.
    get(&store, &keys[0]).unwrap().unwrap();
    put(&store, &key("/5"), &[1; 1024]);
    let has = |key: &Key| store.path_of(key).exists();
    assert_eq!(keys.each_ref().map(has), [true, false, true, true]);
    assert!(has(&key("/5")) && store.used_bytes.get() <= 64 * 1024);
    let smaller = store_in(&dir, 16 * 1024, 0);
    assert!(smaller.used_bytes.get() <= 16 * 1024);
}

#[test]
fn file_that_stays_keeps_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(&dir, LIMIT, 0);
    // A directory can't be removed as a file.
    fs::create_dir_all(store.path_of(&key("/stays")).join("inside")).unwrap();
    for path in ["/1", "/2", "/3"] {
        put(&store, &key(path), &[1; 12 * 1024]);
    }
    let smaller = store_in(&dir, 16 * 1024, 0);
    assert!(smaller.used_bytes.get() <= 16 * 1024);
    assert!(smaller.path_of(&key("/stays")).exists());
    let gauge = IntGauge::new("bytes", "Bytes.").unwrap();
    let tiny = Arc::new(Store::new(dir.path().join("cache"), 1024, 0, gauge));
    tiny.open().unwrap_err();
    assert!(tiny.begin(&key("/4"), &entry(1)).unwrap().is_none());
    assert_eq!(files(&tiny), 1);
}

#[test]
fn number_of_files_has_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let least = 64 * 1024;
    let store = store_in(&dir, MAX_FILES * least, 0);
    for path in ["/1", "/2"] {
        put(&store, &key(path), b"a");
    }
    assert_eq!(store.used_bytes.get().cast_unsigned(), 2 * least);
    let next = store_in(&dir, MAX_FILES * least, 0);
    assert_eq!(next.used_bytes.get(), store.used_bytes.get());
    next.remove(&key("/1")).unwrap();
    assert_eq!(next.used_bytes.get().cast_unsigned(), least);
}

#[test]
fn nothing_is_stored_without_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(&dir, LIMIT, 0);
    let first = store.begin(&key("/a"), &entry(14 * 1024)).unwrap().unwrap();
    let second = store.begin(&key("/b"), &entry(14 * 1024)).unwrap().unwrap();
    let third = store.begin(&key("/c"), &entry(1)).unwrap();
    assert!(third.is_none(), "half of the limit is on its way");
    drop((first, second));
    assert!(store.begin(&key("/c"), &entry(1)).unwrap().is_some());
    put(&store, &key("/a"), b"a");

    let full = store_in(&dir, LIMIT, u64::MAX);
    assert!(full.begin(&key("/b"), &entry(1)).unwrap().is_none());
    assert_eq!(files(&full), 1);
    full.make_room().unwrap();
    assert_eq!((files(&full), full.used_bytes.get()), (0, 0));
    let gauge = IntGauge::new("bytes", "Bytes.").unwrap();
    let closed = Arc::new(Store::new(dir.path().join("cache"), LIMIT, 0, gauge));
    assert!(closed.begin(&key("/b"), &entry(1)).unwrap().is_none());
}
