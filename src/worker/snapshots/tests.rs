use super::*;
use crate::api::time::Time;

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

#[test]
fn only_complete_snapshots_are_found() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("snapshots");
    let (first, second) = ("a".repeat(64), "b".repeat(64));
    write(&dir, &first, 1, snapshot(IMAGE, &first, 5));
    write(&dir, ".new-x", 1, snapshot(IMAGE, &second, 5));
    write(&dir, &second, 2, snapshot(IMAGE, &second, 5));
    fs::create_dir(dir.join("empty")).unwrap();
    let (snapshots, mut unfinished) = Snapshots::open(dir.clone(), 100).unwrap();
    unfinished.sort();
    let expected = [".new-x", second.as_str(), "empty"].map(|name| dir.join(name));
    assert_eq!(unfinished, expected);
    assert_eq!(snapshots.list(), [snapshot(IMAGE, &first, 5)]);
    assert_eq!(snapshots.totals(), (1, 5));
    assert!(snapshots.has_content && snapshots.is_known(&first));
    assert_eq!(snapshots.forget(&first), dir.join(&first));
    assert!(!snapshots.is_known(&first));
}

#[test]
fn replaced_snapshot_makes_room() {
    let home = tempfile::tempdir().unwrap();
    let (snapshots, _) = Snapshots::open(home.path().join("s"), 100).unwrap();
    assert!(!snapshots.has_content);
    snapshots.insert(snapshot(image("a").as_str(), "1", 60));
    snapshots.insert(snapshot(image("b").as_str(), "2", 40));
    assert_eq!(snapshots.budget(&image("a")), Ok(60));
    assert_eq!(snapshots.ids_of(&image("b")), ["2"]);
    let problem = snapshots.budget(&image("c")).unwrap_err();
    assert_eq!(problem.kind, ProblemKind::InsufficientStorage);
    assert!(problem.detail.contains("--snapshot-quota"), "{problem:?}");
}

#[test]
fn number_of_snapshots_is_bounded() {
    let home = tempfile::tempdir().unwrap();
    let (snapshots, _) = Snapshots::open(home.path().join("s"), u64::MAX).unwrap();
    for n in 0..MAX_SNAPSHOTS {
        let name = format!("n{n}");
        snapshots.insert(snapshot(image(&name).as_str(), &name, 1));
    }
    assert!(snapshots.budget(&image("n0")).is_ok(), "it replaces one");
    let problem = snapshots.budget(&image("other")).unwrap_err();
    assert!(problem.detail.contains("maximum"), "{problem:?}");
}

#[test]
fn one_is_made_at_a_time() {
    let home = tempfile::tempdir().unwrap();
    let (snapshots, _) = Snapshots::open(home.path().join("s"), 1).unwrap();
    let turn = snapshots.try_turn().unwrap();
    let problem = snapshots.try_turn().unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Conflict);
    drop(turn);
    assert!(snapshots.try_turn().is_ok());
}
