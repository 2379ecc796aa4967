//! Time to move real data through a task, over the time of a plain copy through the same machine.
//!
//! A directory of 2,000 files and one of 500 MB, 1 GB in all, goes into a sandbox, and the file of 500 MB
//! comes out of it again. Two ways, in turn:
//!
//! - `copy`: `tar c | socat` over loopback and `socat | tar x`, in and out;
//! - `cynode run`: `--upload` and `--download`, with an orchestrator and a node as processes of their own.
//!
//! A third one repeats the run with the same directory, whose content need not be sent again. Beside these times: the
//! memory of both roles above idle, and the bytes that crossed loopback.

use crate::{
    figures::Figure,
    support::{
        Times,
        processes::{peak, resident},
        roles::System,
        run, time,
    },
};
use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::Command,
};

const ROUNDS: usize = 3;
const SMALL_FILES: usize = 2_000;
const SMALL_BYTES: usize = 250_000;
const LARGE_BYTES: usize = 500_000_000;

pub fn bench() -> Vec<Figure> {
    // Not on a file system in memory.
    let home = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or("/var/tmp".into()));
    let home = home.unwrap();
    let tree = home.path().join("tree");
    let system = System::with_node(home.path(), 2, 0);
    system.api.run_true();
    let roles = [system.orchestrator.id(), system.node_pid()];
    let idle = roles.map(resident);
    let (mut copies, mut runs, mut repeats) =
        (Times::default(), Times::default(), Times::default());
    let mut sent = [0; 2];
    for _ in 0..ROUNDS {
        fill(&tree);
        fs::remove_dir_all(home.path().join("out")).ok();
        copies.push(time(|| copy(home.path(), &tree)));
        let before = loopback_bytes();
        runs.push(time(|| send_and_fetch(&system, home.path(), &tree)));
        let between = loopback_bytes();
        check(home.path(), &tree);
        repeats.push(time(|| send(&system, &tree)));
        sent = [between - before, loopback_bytes() - between];
    }
    let copy = copies.median();
    let [orchestrator, node] = [0, 1].map(|n| peak(roles[n]) - idle[n]);
    vec![
        Figure::plain("plain copy, 1 GB in and 500 MB out", "s", copy),
        Figure::lower("`cynode run`, the same", "× copy", runs.median() / copy),
        Figure::lower(
            "`cynode run`, unchanged, in only",
            "× copy",
            repeats.median() / copy,
        ),
        Figure::lower("over loopback", "MB", sent[0] as f64 / 1e6).within(1.1),
        Figure::plain("over loopback, unchanged", "MB", sent[1] as f64 / 1e6),
        Figure::lower("orchestrator, above idle", "MiB", orchestrator).within(2.0),
        Figure::lower("node, above idle", "MiB", node).within(2.0),
    ]
}

/// Fills the directory with random bytes, new ones at each call.
fn fill(tree: &Path) {
    fs::remove_dir_all(tree).ok();
    fs::create_dir_all(tree).unwrap();
    let mut random = fs::File::open("/dev/urandom").unwrap();
    let mut bytes = vec![0; SMALL_BYTES];
    for n in 0..SMALL_FILES {
        random.read_exact(&mut bytes).unwrap();
        fs::write(tree.join(format!("file-{n:04}")), &bytes).unwrap();
    }
    let mut large = fs::File::create(tree.join("large")).unwrap();
    for _ in 0..LARGE_BYTES / SMALL_BYTES {
        random.read_exact(&mut bytes).unwrap();
        large.write_all(&bytes).unwrap();
    }
}

/// Copies the directory in and the large file out, over loopback.
fn copy(home: &Path, tree: &Path) {
    let (inside, outside) = (home.join("copy-in"), home.join("copy-out"));
    for (from, what, to) in [(tree, ".", &inside), (&inside, "large", &outside)] {
        fs::create_dir_all(to).unwrap();
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let script = format!(
            "socat -u TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr - | tar x -C '{}' & \
             tar c -C '{}' {what} | socat -u - TCP:127.0.0.1:{port},retry=200,interval=0.01; wait",
            to.display(),
            from.display(),
        );
        run(Command::new("bash").args(["-c", &script]));
    }
    fs::remove_dir_all(inside).unwrap();
    fs::remove_dir_all(outside).unwrap();
}

/// The downloaded file has to be the one that was uploaded.
fn check(home: &Path, tree: &Path) {
    let compared = Command::new("cmp")
        .arg(tree.join("large"))
        .arg(home.join("out/large"))
        .status();
    assert!(compared.unwrap().success(), "the files differ");
}

/// Bytes that loopback has carried.
fn loopback_bytes() -> u64 {
    let text = fs::read_to_string("/sys/class/net/lo/statistics/rx_bytes").unwrap();
    text.trim().parse().unwrap()
}

/// Sends the directory, and fetches the large file.
fn send_and_fetch(system: &System, home: &Path, tree: &Path) {
    let mut command = system.client();
    command.arg("run").arg("--upload").arg(tree.join("."));
    command
        .arg("--download")
        .arg(format!("large:{}", home.join("out").display()));
    run(command.args(["--", "true"]));
}

/// Sends the directory, which is unchanged.
fn send(system: &System, tree: &Path) {
    let mut command = system.client();
    command.arg("run").arg("--upload").arg(tree.join("."));
    run(command.args(["--", "true"]));
}
