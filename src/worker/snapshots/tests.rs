use super::*;
use crate::api::time::Time;
use tokio::time::sleep;

const IMAGE: &str = "localhost/cynode-snapshots/01a22660-6f24-77f8-92cd-eb2128634ef9:base";

fn snapshot(image: &str, id: &str, size_bytes: u64) -> StoredSnapshot {
    StoredSnapshot {
        image: image.to_owned(),
        image_id: id.to_owned(),
        size_bytes,
        created_at: Time::from_millis(1),
    }
}

fn write(dir: &Path, name: &str, version: u64, snapshot: StoredSnapshot) {
    let path = dir.join(name);
    fs::create_dir_all(path.join(WORKSPACE_DIR)).unwrap();
    let record = Record { version, snapshot };
    let text = serde_json::to_vec(&record).unwrap();
    fs::write(path.join(RECORD_FILE), text).unwrap();
}

fn image(name: &str) -> ImageRef {
    IMAGE.replace("base", name).parse().unwrap()
}

fn named(id: &str, name: Option<&str>) -> SnapshotImage {
    SnapshotImage {
        id: id.to_owned(),
        name: name.map(str::to_owned),
        layer_bytes: 1,
    }
}

#[test]
fn only_complete_snapshots_are_found() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("snapshots");
    let (first, second) = ("a".repeat(64), "b".repeat(64));
    write(&dir, &first, 1, snapshot(IMAGE, &first, 5));
    write(&dir, ".new-x", 1, snapshot(IMAGE, &second, 5));
    write(&dir, &second, 2, snapshot(IMAGE, &second, 5));
    write(&dir, "other", 1, snapshot(IMAGE, &first, 5));
    fs::create_dir(dir.join("empty")).unwrap();
    fs::create_dir(dir.join("torn")).unwrap();
    fs::write(dir.join("torn").join(RECORD_FILE), "{").unwrap();
    fs::create_dir_all(dir.join("unreadable").join(RECORD_FILE)).unwrap();
    fs::write(dir.join("file"), "").unwrap();
    let (snapshots, mut unfinished) = Snapshots::open(dir.clone(), 100).unwrap();
    unfinished.sort();
    let expected = [".new-x", "empty"].map(|name| dir.join(name));
    assert_eq!(unfinished, expected, "what can't be read is left alone");
    assert_eq!(snapshots.list(), [snapshot(IMAGE, &first, 5)]);
    assert_eq!(snapshots.totals(), (1, 5));
    assert!(snapshots.is_known(&first));
    assert_eq!(snapshots.forget(&first), dir.join(&first));
    assert!(!snapshots.is_known(&first));
}

#[test]
fn replaced_snapshot_makes_room() {
    let home = tempfile::tempdir().unwrap();
    let (snapshots, _) = Snapshots::open(home.path().join("s"), 100).unwrap();
    snapshots.insert(snapshot(image("a").as_str(), "1", 60));
    snapshots.insert(snapshot(image("b").as_str(), "2", 40));
    assert_eq!(snapshots.budget(&image("a")), Ok(60));
    assert_eq!(snapshots.ids_of(&image("b")), ["2"]);
    let problem = snapshots.budget(&image("c")).unwrap_err();
    assert_eq!(problem.kind, ProblemKind::InsufficientStorage);
    assert!(problem.detail.contains("--snapshot-quota"), "{problem:?}");
}

#[test]
fn removed_snapshot_counts_while_it_is_in_use() {
    let home = tempfile::tempdir().unwrap();
    let (snapshots, _) = Snapshots::open(home.path().join("s"), 100).unwrap();
    snapshots.insert(snapshot(image("a").as_str(), "1", 60));
    snapshots.retired.lock().insert("0".to_owned(), 30);
    assert_eq!(snapshots.totals(), (1, 90));
    assert_eq!(snapshots.budget(&image("a")), Ok(70));
    assert_eq!(snapshots.budget(&image("b")), Ok(10));
}

#[test]
fn snapshot_is_over_only_where_its_image_says_so() {
    let (other, own) = (image("other").to_string(), snapshot(IMAGE, "1", 5));
    let fate = |images: &[SnapshotImage]| fate(&own, images);
    assert_eq!(fate(&[named("1", Some(IMAGE))]), Fate::Whole);
    let replaced = [named("1", None), named("2", Some(IMAGE))];
    assert_eq!(fate(&replaced), Fate::Over);
    assert_eq!(fate(&[named("1", None)]), Fate::Over);
    assert_eq!(fate(&[]), Fate::Missing);
    let others = [named("1", Some(&other)), named("2", None)];
    assert_eq!(fate(&others), Fate::Missing);
}

#[test]
fn number_of_snapshots_is_bounded() {
    let home = tempfile::tempdir().unwrap();
    let (snapshots, _) = Snapshots::open(home.path().join("s"), u64::MAX).unwrap();
    let of = |user: usize, name: &str| -> ImageRef {
        let image = format!("localhost/cynode-snapshots/u{user}:{name}");
        image.parse().unwrap()
    };
    for n in 0..MAX_SNAPSHOTS {
        let image = of(n / MAX_SNAPSHOTS_PER_USER, &format!("n{n}"));
        snapshots.insert(snapshot(image.as_str(), &n.to_string(), 1));
        let others = snapshots.budget(&of(99, "x"));
        assert_eq!(others.is_ok(), n + 1 < MAX_SNAPSHOTS, "{n}");
    }
    assert!(snapshots.budget(&of(0, "n0")).is_ok(), "it replaces one");
    let problem = snapshots.budget(&of(0, "other")).unwrap_err();
    assert!(problem.detail.contains("this user has"), "{problem:?}");
    let problem = snapshots.budget(&of(99, "x")).unwrap_err();
    assert!(problem.detail.contains("this node has"), "{problem:?}");
}

#[tokio::test(start_paused = true)]
async fn one_is_made_at_a_time() {
    let home = tempfile::tempdir().unwrap();
    let (snapshots, _) = Snapshots::open(home.path().join("s"), 1).unwrap();
    let turn = snapshots.turn().await.unwrap();
    let problem = snapshots.turn().await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict);
    let round = async {
        sleep(TURN_TIMEOUT / 2).await;
        drop(turn);
    };
    let (next, ()) = tokio::join!(snapshots.turn(), round);
    assert!(next.is_ok(), "a short round is waited for");
}
