//! Init does nothing outside of a PID namespace of its own. Each test runs it in a namespace of the test's, where a
//! broken init could kill no other process.

use crate::support::{eventually, process::binary};
use command_fds::{CommandFdExt as _, FdMapping};
use cynode::sandbox_init::wire::{
    ExecNumber, ExecSpec, HEADER_BYTES, Hello, InitRefusal, Report, VERSION, take_report,
};
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    process::{Child, Command, Stdio},
};

/// Shell in a PID namespace of its own, with init's descriptors, and the other end of init's socket.
fn start(script: &str) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["sh", "-c", script, "sh"])
        .arg(binary())
        .arg("__sandbox-init");
    let null = || OwnedFd::from(File::create("/dev/null").unwrap());
    let descriptors = [theirs.into(), null(), null()].into_iter().zip(3..);
    let mappings = descriptors.map(|(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    command.fd_mappings(mappings.collect()).unwrap();
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    (child, ours)
}

fn report(socket: &mut UnixStream) -> Option<Report> {
    let mut bytes = vec![0; HEADER_BYTES];
    socket.read_exact(&mut bytes).ok()?;
    loop {
        if let Some((_, report)) = take_report(&mut bytes).unwrap() {
            return Some(report);
        }
        let mut byte = [0];
        socket.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
}

#[test]
fn init_that_is_not_pid_1_does_nothing() {
    let (child, mut socket) = start("sleep 1000 & \"$@\"; echo init ended $?; kill $!");
    let elsewhere = Hello {
        version: VERSION,
        pid_namespace: (1, 1),
    };
    socket.write_all(&elsewhere.encode()).unwrap();
    // A request on which init would kill all others.
    let request = ExecSpec {
        command: vec!["true".into()],
        ..ExecSpec::default()
    };
    let _ = socket.write_all(&request.encode(ExecNumber::FIRST));
    assert_eq!(
        report(&mut socket),
        Some(Report::Refused(InitRefusal::SharedNamespace))
    );
    assert_eq!(report(&mut socket), None);
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        (printed.trim(), output.status.code()),
        ("init ended 0", Some(0)),
        "another process was killed"
    );
}

#[test]
fn init_in_node_namespace_does_nothing() {
    for is_own in [true, false] {
        let (mut child, mut socket) = start("exec \"$@\"");
        let init = eventually("init is there", || {
            let children = format!("/proc/{0}/task/{0}/children", child.id());
            let pid = fs::read_to_string(children).unwrap();
            let pid = pid.trim().to_owned();
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            line.contains("\0__sandbox-init").then_some(pid)
        });
        let namespace = fs::metadata(format!("/proc/{init}/ns/pid")).unwrap();
        let inode = if is_own {
            namespace.ino()
        } else {
            namespace.ino() + 1
        };
        let greeting = Hello {
            version: VERSION,
            pid_namespace: (namespace.dev(), inode),
        };
        socket.write_all(&greeting.encode()).unwrap();
        let expected = if is_own {
            InitRefusal::SharedNamespace
        } else {
            // This root has no workspace.
            InitRefusal::PathIsLink
        };
        assert_eq!(report(&mut socket), Some(Report::Refused(expected)));
        drop(socket);
        child.wait().unwrap();
    }
}
