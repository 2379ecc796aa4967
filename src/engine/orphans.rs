//! Orphaned containers: those of a podman that was killed while it created them, or whose owner was.
//!
//! Podman starts conmon, and conmon has the runtime create the container. A podman that is killed before it has
//! recorded that leaves a container that is missing in its database: `podman rm` removes only what it knows, and
//! conmon waits forever for a start. Such a conmon is found by the container's name, which is among its
//! arguments with the runtime and the id.
//!
//! A podman outlives a shim that is killed, and would create its container after the removal. It is found by the name,
//! too, and has to end before. A job can give its processes any arguments: only those in our own PID namespace count,
//! in which no job has any.

use super::{Program, call};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Time limit of all attempts together.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);
const RUNTIME_CALL_TIMEOUT: Duration = Duration::from_mins(1);
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Time for a podman without an owner to end by itself: it removes its container, whose init has lost its socket.
const CLIENT_END_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for KILL to take effect on it.
const CLIENT_KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// A container by its runtime, which knows it where podman doesn't.
struct Orphan {
    runtime: PathBuf,
    id: String,
}

/// Waits until the podman that runs the container of this name has ended, and kills it where it doesn't.
pub(super) async fn end_client(name: &str) {
    let start = Instant::now();
    loop {
        let clients = find_clients(name).await;
        if clients.is_empty() {
            return;
        }
        let elapsed = start.elapsed();
        if elapsed > CLIENT_END_TIMEOUT {
            for client in &clients {
                // It may just have ended.
                let _ = pidfd_send_signal(client, Signal::KILL);
            }
        }
        if elapsed > CLIENT_END_TIMEOUT + CLIENT_KILL_TIMEOUT {
            tracing::warn!(
                container = name,
                "podman can't be killed; see the kernel's messages about its disk (dmesg)"
            );
            return;
        }
        sleep(RETRY_DELAY).await;
    }
}

async fn find_clients(name: &str) -> Vec<OwnedFd> {
    let argument = format!("--name={name}");
    let is_client = move |line: &str| line.split('\0').any(|word| word == argument);
    let found = tokio::task::spawn_blocking(move || {
        let of_process = |process: Process| is_client(&process.line).then_some(process.handle);
        processes().filter_map(of_process).collect()
    });
    found.await.unwrap_or_default()
}

/// Has the runtime remove the container of this name, again and again: conmon may just be creating it. Returns
/// whether no conmon is left.
pub(super) async fn remove(name: &str) -> bool {
    let removed = async {
        while let Some(Orphan { runtime, id }) = find(name).await {
            let arguments = ["delete", "--force", &id];
            let runtime = Program::plain(runtime);
            if let Err(error) = call(&runtime, &arguments, RUNTIME_CALL_TIMEOUT, |_| ()).await {
                tracing::debug!(container = name, id, %error, "runtime could not remove a container");
            }
            sleep(RETRY_DELAY).await;
        }
    };
    let is_gone = tokio::time::timeout(REMOVAL_TIMEOUT, removed).await.is_ok();
    if !is_gone {
        tracing::warn!(
            container = name,
            "conmon of a removed container does not end; see: ps ax | grep conmon"
        );
    }
    is_gone
}

async fn find(name: &str) -> Option<Orphan> {
    let name = name.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        processes().find_map(|process| parse(&process.line, &name))
    });
    found.await.ok()?
}

/// A process, and its arguments.
struct Process {
    handle: OwnedFd,
    line: String,
}

/// Processes in our own PID namespace that are still running.
fn processes() -> impl Iterator<Item = Process> {
    let own_namespace = pid_namespace(Path::new("/proc/self"));
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(move |entry| {
        let path = entry.ok()?.path();
        let pid = Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?)?;
        // First of all: later, its number may be another one's.
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let line = fs::read_to_string(path.join("cmdline")).ok()?;
        let own_namespace = own_namespace.as_ref().ok()?;
        let is_ours = pid_namespace(&path).is_ok_and(|namespace| namespace == *own_namespace);
        is_ours.then_some(Process { handle, line })
    })
}

fn pid_namespace(process: &Path) -> io::Result<PathBuf> {
    fs::read_link(process.join("ns/pid"))
}

/// Reads the arguments of a process.
fn parse(line: &str, name: &str) -> Option<Orphan> {
    let words: Vec<_> = line.split('\0').collect();
    let value = |option: &str| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1).copied()
    };
    let is_match = words.first()?.ends_with("conmon") && value("-n") == Some(name);
    is_match.then_some(())?;
    Some(Orphan {
        runtime: value("-r")?.into(),
        id: value("-c")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conmon_is_identified_by_container_name() {
        let line = "/usr/bin/conmon\0--api-version\x001\0-c\0abc\0-u\0abc\0-r\0/usr/bin/runc\0-n\0cynode-a-1.1\0";
        let orphan = parse(line, "cynode-a-1.1").unwrap();
        assert_eq!(
            (orphan.runtime, orphan.id),
            ("/usr/bin/runc".into(), "abc".to_owned())
        );
        assert!(parse(line, "cynode-a-1").is_none());
        assert!(parse(&line.replace("conmon", "grep"), "cynode-a-1.1").is_none());
        assert!(parse("", "x").is_none());
    }
}
