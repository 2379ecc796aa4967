//! `cynode run` with files: a directory goes in, results come out, however the command ended.

use crate::support::{Cluster, process::run};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

/// Directory of the user, made before the cluster runs anything in it.
fn project(cluster: &Cluster) -> PathBuf {
    let project = cluster.home().join("laptop/project");
    fs::create_dir_all(project.join("data")).unwrap();
    fs::write(project.join("data/input.txt"), "one two three\n").unwrap();
    fs::write(
        project.join("count.sh"),
        "#!/bin/sh\nwc -w <data/input.txt >out/words.txt\n",
    )
    .unwrap();
    fs::set_permissions(project.join("count.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(project.join(".gitignore"), "*.log\n").unwrap();
    fs::write(project.join("noise.log"), "left out").unwrap();
    symlink("data/input.txt", project.join("link")).unwrap();
    project
}

#[test]
fn directory_goes_in_and_results_come_out() {
    let cluster = Cluster::start();
    let project = project(&cluster);
    let script = "test ! -e noise.log && test -L link && mkdir out && ./count.sh && \
                  mkdir -p artifacts && cp data/input.txt artifacts/copy && cp count.sh artifacts/tool && exit 3";
    let mut command = cluster.cli(&[
        "run",
        "--upload",
        ".",
        "--download",
        "out/*.txt:results",
        "--download",
        "artifacts",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let done = run(command.current_dir(&project));
    assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
    let read = |path: &str| fs::read_to_string(project.join(path)).unwrap();
    assert_eq!(read("results/out/words.txt").trim(), "3");
    assert_eq!(read("artifacts/copy"), "one two three\n");
    let is_executable = |path: &str| {
        let found = fs::metadata(project.join(path)).unwrap();
        found.permissions().mode() & 0o100 != 0
    };
    assert!(is_executable("artifacts/tool") && !is_executable("artifacts/copy"));

    let tasks = cluster.user.get("/v1/tasks?limit=1").json(200);
    let id = tasks["tasks"][0]["id"].as_str().unwrap().to_owned();
    let list = cluster.run(&["task", "artifacts", &id]);
    assert!(list.stdout.contains("out/words.txt"), "{list:?}");
    let mut again = cluster.cli(&["task", "artifacts", &id, "--out", "all"]);
    assert_eq!(run(again.current_dir(&project)).code, 0);
    assert_eq!(read("all/out/words.txt").trim(), "3");
    cluster.node.assert_clean();
}

#[test]
fn file_keeps_mode_and_missing_result_is_named() {
    let cluster = Cluster::start();
    let project = project(&cluster);
    let mut command = cluster.cli(&[
        "run",
        "--upload",
        "count.sh:bin/count",
        "--upload",
        "data:in",
        "--download",
        "nothing",
        "--",
        "sh",
        "-c",
        "test -x bin/count && cat in/input.txt",
    ]);
    let done = run(command.current_dir(&project));
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (4, "one two three\n"),
        "{done:?}"
    );
    assert!(done.stderr.contains("--download nothing"), "{done:?}");
    cluster.node.assert_clean();
}

#[test]
fn links_are_left_out_with_warning() {
    let cluster = Cluster::start();
    let project = project(&cluster);
    let script = "mkdir ck; echo one >ck/1; ln -s 1 ck/latest";
    let mut command = cluster.cli(&["run", "--download", "ck", "--", "sh", "-c", script]);
    let done = run(command.current_dir(&project));
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stderr.contains("warning: 1 file is missing: "),
        "{done:?}"
    );
    let file = fs::read_to_string(project.join("ck/1"));
    assert_eq!(file.unwrap(), "one\n");
    cluster.node.assert_clean();
}

#[test]
fn download_replaces_only_files() {
    let cluster = Cluster::start();
    let pipe = cluster.home().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let file = cluster.home().join("file");
    fs::write(&file, "content").unwrap();
    let uploaded = cluster.run(&["artifacts", "upload", file.to_str().unwrap()]);
    let id = uploaded.stdout.trim();
    let download =
        |out: &Path| cluster.run(&["artifacts", "download", id, "--out", out.to_str().unwrap()]);
    let directory = cluster.home().join("directory");
    fs::create_dir(&directory).unwrap();
    for place in [&pipe, &directory] {
        let refused = download(place);
        assert_eq!(refused.code, 5, "{refused:?}");
        assert!(
            refused.stderr.contains("is not a regular file"),
            "{refused:?}"
        );
    }
    assert!(directory.is_dir());
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    fs::write(&file, "old").unwrap();
    assert_eq!(download(&file).code, 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
}

#[test]
fn partial_results_are_no_success() {
    let cluster = Cluster::start_with(&["--artifact-limit", "1MiB"]);
    let project = project(&cluster);
    let script = "mkdir out; head -c 2000000 /dev/zero >out/large; echo small >out/small";
    let command = ["--download", "out", "--", "sh", "-c", script];
    let mut partial = cluster.cli(&[&["run"][..], &command].concat());
    let done = run(partial.current_dir(&project));
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("1 file is missing: "), "{done:?}");
    let small = fs::read_to_string(project.join("out/small"));
    assert_eq!(small.unwrap(), "small\n");
    let id = cluster.user.get("/v1/tasks?limit=1").json(200)["tasks"][0]["id"].clone();
    for arguments in [["task", "result"], ["task", "wait"]] {
        let shown = cluster.run(&[&arguments[..], &[id.as_str().unwrap()]].concat());
        assert_eq!(shown.code, 0, "{shown:?}");
        assert!(
            shown.stderr.contains("warning: 1 file is missing: "),
            "{shown:?}"
        );
    }
    cluster.node.assert_clean();
}
