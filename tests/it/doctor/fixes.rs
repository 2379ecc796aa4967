//! Changes: those of `--fix`, and none besides.

use super::{Corner, files};
use crate::support::image::podman;
use std::{fs, os::unix::fs::PermissionsExt as _};

#[test]
fn open_data_directory_is_closed_on_request() {
    let corner = Corner::new();
    let path = corner.data_dir();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("addresses.json"), "unchanged").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;

    let report = corner.report(&[]);
    let (detail, fix) = report.check("data-dir", "warn");
    assert!(
        detail.contains("0755") && fix.contains("--fix"),
        "{detail} {fix}"
    );
    assert_eq!((mode(), report.is_fixed("data-dir")), (0o755, false));
    assert_eq!(report.done.stderr, "");

    let report = corner.report(&["--fix"]);
    report.check("data-dir", "ok");
    assert_eq!((mode(), report.is_fixed("data-dir")), (0o700, true));
    let note = format!("fix: restrict {}", path.display());
    assert!(report.done.stderr.contains(&note), "{}", report.done.stderr);

    let again = corner.report(&["--fix"]);
    assert!(!again.is_fixed("data-dir"), "nothing is left to fix");
    assert_eq!(again.done.stderr, "");
    // The probe containers ran in there.
    assert_eq!(files(&path), ["addresses.json"]);
    assert_eq!(
        fs::read_to_string(path.join("addresses.json")).unwrap(),
        "unchanged"
    );
}

#[test]
fn doctor_leaves_no_container() {
    let corner = Corner::new();
    fs::create_dir(corner.data_dir()).unwrap();
    // A program in podman's place records the names of the containers that it runs.
    let (watch, names) = (
        corner.home.path().join("watch"),
        corner.home.path().join("names"),
    );
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in --name=*) echo \"${{word#--name=}}\" >> '{}';; esac; done\nexec podman \"$@\"\n",
        names.display()
    );
    fs::write(&watch, script).unwrap();
    fs::set_permissions(&watch, fs::Permissions::from_mode(0o755)).unwrap();
    let report = corner.report(&["--engine", watch.to_str().unwrap()]);
    report.check("sandbox", "ok");
    let ran = fs::read_to_string(names).unwrap();
    assert!(ran.lines().count() > 0);
    let left = podman(&["ps", "--all", "--format={{.Names}}"]).unwrap();
    for name in ran.lines() {
        assert!(!left.contains(name), "{name} is left");
    }
    assert_eq!(files(&corner.data_dir()), [""; 0]);
}
