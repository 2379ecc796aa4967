//! Archives that are cut, damaged or larger than what is allowed.

use super::*;

#[test]
fn archives_cut_anywhere_are_refused() {
    let whole = archive(&[file(b"a", &[7; 700]), file(b"b", b"x")]);
    let zst = zstd::encode_all(&whole[..], 1).unwrap();
    let gz = gzip(&whole);
    // A whole block of zeros is an end mark.
    let end = whole.len() - 512;
    let cuts = (1..end).step_by(97).chain([512, 1024, end - 1]);
    for cut in cuts {
        let (_, done) = extracted(&whole[..cut]);
        assert!(
            matches!(done, Err(PlaceError::Invalid(_))),
            "{cut}: {done:?}"
        );
    }
    for bytes in [zst, gz] {
        extracted(&bytes).1.unwrap();
        for cut in 1..bytes.len() {
            let (_, done) = extracted(&bytes[..cut]);
            assert!(
                matches!(done, Err(PlaceError::Invalid(_))),
                "{cut}: {done:?}"
            );
        }
    }
    for bytes in [b"".as_slice(), b"not a tar", &[7; 4096]] {
        assert!(matches!(extracted(bytes).1, Err(PlaceError::Invalid(_))));
    }
}

#[test]
fn damaged_compression_is_refused() {
    let mut bytes = gzip(&archive(&[file(b"a", b"one")]));
    let at = bytes.len() - 6;
    bytes[at] ^= 1;
    let (_, done) = extracted(&bytes);
    assert!(matches!(done, Err(PlaceError::Invalid(_))), "{done:?}");
}

#[test]
fn bombs_end_at_the_limit() {
    let limits = Limits {
        workspace_bytes: 1 << 20,
        min_free: 0,
    };
    let zeros = vec![0; 3 << 20];
    let bomb = gzip(&archive(&[file(b"small", b"x"), file(b"zeros", &zeros)]));
    let home = home();
    let done = extract_with(home.path(), &bomb, &limits);
    assert!(matches!(done, Err(PlaceError::TooLarge(_))), "{done:?}");
    assert!(
        !home.path().join("workspace/zeros").exists(),
        "refused by its header"
    );
    // A header that says less than follows gives no more than it says; what follows is no header.
    let lie = archive(&[entry(&header(b"a", EntryType::Regular, 1)), vec![7; 4096]]);
    assert!(matches!(extracted(&lie).1, Err(PlaceError::Invalid(_))));
    // A header that says far more than there is.
    let lie = archive(&[entry(&header(b"a", EntryType::Regular, 64 << 20))]);
    assert!(matches!(extracted(&lie).1, Err(PlaceError::Invalid(_))));
}

#[test]
fn data_after_end_mark_is_refused() {
    let one = archive(&[file(b"a", b"one")]);
    let two = archive(&[file(b"b", b"two")]);
    let padded = [one.clone(), vec![0; 10_240]].concat();
    extracted(&padded).1.unwrap();
    for bytes in [
        [one.clone(), two.clone()].concat(),
        [padded, two.clone()].concat(),
        [gzip(&one), gzip(&two)].concat(),
    ] {
        let done = extracted(&bytes).1;
        let Err(PlaceError::Invalid(reason)) = done else {
            panic!("{done:?}");
        };
        assert!(reason.contains("second archive"), "{reason}");
    }
}

#[test]
fn entries_and_time_are_bounded() {
    let home = home();
    let control = Control::default();
    let mut budget = Budget::new(home.path(), &NO_LIMITS, &control);
    budget.count_entries(MAX_ENTRIES).unwrap();
    let done = budget.count_entries(1);
    assert!(matches!(done, Err(PlaceError::Invalid(_))), "{done:?}");
    let mut budget = Budget::new(home.path(), &NO_LIMITS, &control);
    budget.deadline = Instant::now();
    let done = budget.spend(1);
    assert!(matches!(done, Err(PlaceError::Invalid(_))), "{done:?}");
}

#[test]
fn directories_on_the_way_count() {
    let home = home();
    let mut tree = Tree::open(&home.path().join("workspace"), WORKSPACE, Links::Refused).unwrap();
    let path = |path: &str| archive::normalize(path.as_bytes()).unwrap();
    tree.create_file(&path("a/b/c/file")).unwrap();
    assert_eq!(tree.take_made(), 3);
    tree.create_file(&path("a/b/d/file")).unwrap();
    assert_eq!(tree.take_made(), 1);
    assert_eq!(tree.subtree(&path("a/e/f")).unwrap().take_made(), 2);
}

#[test]
fn whole_paths_fit_the_kernel() {
    let home = home();
    let workspace = home.path().join("workspace");
    let mut tree = Tree::open(&workspace, WORKSPACE, Links::Refused).unwrap();
    let parts = |bytes: usize| {
        let path = "d/".repeat((bytes - 2) / 2);
        let name = "x".repeat(bytes - path.len());
        archive::normalize((path + &name).as_bytes()).unwrap()
    };
    let most = 4095 - (workspace.as_os_str().len() + 1);
    tree.create_directory(&parts(most + 1), 0o755).unwrap_err();
    let longest = parts(most);
    tree.create_directory(&longest, 0o755).unwrap();
    let mut below = tree.subtree(&longest).unwrap();
    let done = below
        .create_file(&parts(5))
        .map_err(|error| failure("x", &error));
    assert!(matches!(done, Err(PlaceError::Invalid(_))), "{done:?}");
}

#[test]
fn reserve_of_disk_bounds_placement() {
    let limits = Limits {
        workspace_bytes: u64::MAX,
        min_free: u64::MAX / 2,
    };
    let home = home();
    let done = extract_with(home.path(), &archive(&[file(b"a", b"x")]), &limits);
    assert!(matches!(done, Err(PlaceError::NoSpace(_))), "{done:?}");
}

#[test]
fn huge_name_records_are_refused() {
    for kind in [b'L', b'K', b'x', b'g'] {
        let record = entry(&header(b"././@LongLink", EntryType::new(kind), 2 << 20));
        refused(&[record, vec![b'a'; 2 << 20]]);
    }
    let again = vec![entry(&header(b"x", EntryType::new(b'g'), 0)); 20];
    refused(&again);
}

#[test]
fn pax_records_name_entries() {
    let record = |key: &str, value: &str| {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length.to_string().len() + rest.len() != length {
            length = length.to_string().len() + rest.len();
        }
        format!("{length}{rest}")
    };
    let pax = |records: String| {
        let mut all = entry(&header(b"pax", EntryType::XHeader, records.len() as u64));
        all.extend_from_slice(records.as_bytes());
        all.resize(all.len().next_multiple_of(512), 0);
        all
    };
    let long = format!("{}\n{}", "ä".repeat(60), "b".repeat(100));
    let records = record("path", &long) + &record("mtime", "1234567890.5");
    let (home, done) = extracted(&archive(&[pax(records), file(b"short", b"one")]));
    done.unwrap();
    let placed = home.path().join("workspace").join(&long);
    assert_eq!(fs::read(&placed).unwrap(), b"one");
    assert_eq!(fs::metadata(&placed).unwrap().mtime(), 1_234_567_890);
    refused(&[pax(record("path", "../x")), file(b"a", b"x")]);
    refused(&[pax(record("GNU.sparse.major", "1")), file(b"a", b"x")]);
    refused(&[pax("999 path=x\n".into()), file(b"a", b"x")]);
    refused(&[pax(record("size", "-1")), file(b"a", b"x")]);
}
