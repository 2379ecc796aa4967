//! One podman process: ended with TERM, then KILL, and never left behind.
//!
//! A podman that hangs may ignore TERM or be stopped, its children may keep its pipes open, and inside the kernel it
//! doesn't react to KILL either. No caller waits for any of these forever: every wait here has an end.
//!
//! A podman has a process group of its own. The whole group is signaled and has to be empty: a rootless podman is two
//! processes, and the second could still create a container when the first is gone. Conmon, which outlives podman,
//! has left that group.

use super::{EngineError, Program};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::{
    io,
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};
use tokio::{
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

/// Time between TERM and KILL.
const TERM_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for KILL to take effect, and between TERM and KILL where a process is dropped.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
const GROUP_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A running podman, which is ended when dropped.
pub(super) struct Process {
    child: Child,
    group: Option<Pid>,
    /// Whether not even KILL has ended it.
    is_abandoned: bool,
}

impl Process {
    pub(super) fn start(program: &Program, command: &mut Command) -> Result<Self, EngineError> {
        let child = command.spawn().map_err(|source| EngineError::NotStarted {
            program: program.path().to_owned(),
            source,
        })?;
        let group = child.id().map(u32::cast_signed).and_then(Pid::from_raw);
        Ok(Self {
            child,
            group,
            is_abandoned: false,
        })
    }

    /// Pipe of its stdout; the first time only.
    pub(super) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Pipe of its stderr; the first time only.
    pub(super) fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Waits for its end. Can be dropped and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Exit status, once it has ended.
    pub(super) fn try_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends the process group with TERM, or with KILL where TERM has no effect.
    pub(super) async fn terminate(&mut self) {
        if self.child.id().is_none() {
            // It has been waited for: the number of its group may belong to another one by now.
            return;
        }
        self.signal(Signal::TERM);
        if timeout(TERM_TIMEOUT, self.wait_for_group()).await.is_ok() {
            return;
        }
        let group = self.group.map(|group| group.as_raw_nonzero().get());
        tracing::warn!(group, "podman ignores TERM; sending KILL");
        self.signal(Signal::KILL);
        let is_killed = timeout(KILL_TIMEOUT, self.wait_for_group()).await.is_ok();
        // The rest of a group whose leader has ended is dead, and only not reaped.
        if !is_killed && self.child.id().is_some() {
            tracing::error!(
                group,
                "podman can't be killed and is left running; see the kernel's messages about its disk (dmesg)"
            );
            self.is_abandoned = true;
        }
    }

    /// Waits for the end of the process, and of all of its children in its group.
    async fn wait_for_group(&mut self) {
        // A process that can't be waited for has ended.
        let _ = self.child.wait().await;
        while self.is_group_alive() {
            tokio::time::sleep(GROUP_POLL_INTERVAL).await;
        }
    }

    /// Whether its group has members. Until it has none, its number is not reused.
    fn is_group_alive(&self) -> bool {
        self.group
            .is_some_and(|group| test_kill_process_group(group).is_ok())
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may just have ended. A stopped process handles no signal before it continues.
            let _ = kill_process_group(group, signal);
            let _ = kill_process_group(group, Signal::CONT);
        }
    }
}

/// Mostly at the end of cynode itself, so that there is little time for TERM.
impl Drop for Process {
    fn drop(&mut self) {
        if self.is_abandoned || self.child.id().is_none() {
            return;
        }
        self.signal(Signal::TERM);
        let began = Instant::now();
        while self.try_status().is_none() || self.is_group_alive() {
            if began.elapsed() > KILL_TIMEOUT {
                self.signal(Signal::KILL);
                return;
            }
            thread::sleep(GROUP_POLL_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::call::tests::sh;
    use std::fs;

    /// Whether a process runs, and is not only unreaped.
    fn lives(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    }

    /// Waits for the end of a process that was killed.
    fn ends(pid: &str) -> bool {
        (0..200).any(|_| {
            thread::sleep(Duration::from_millis(10));
            !lives(pid)
        })
    }

    #[tokio::test]
    async fn hanging_podman_ends_with_its_children() {
        let home = tempfile::tempdir().unwrap();
        let pids = home.path().join("pids");
        let script = format!(
            "trap '' TERM; sleep 1000 & echo $$ $! >{}; wait",
            pids.display()
        );
        let outcome = sh(&script, Duration::from_secs(2)).await;
        assert!(matches!(outcome, Err(EngineError::TimedOut { .. })));
        let pids = fs::read_to_string(pids).unwrap();
        assert!(pids.split_whitespace().all(ends), "{pids}");
    }

    #[tokio::test]
    async fn second_process_ends_with_first() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pid");
        let deaf = format!("trap '' TERM; echo $$ >{}; exec sleep 1000", path.display());
        let script = format!("sh -c \"{}\" & wait", deaf.replace('$', "\\$"));
        let outcome = sh(&script, Duration::from_secs(2)).await;
        assert!(matches!(outcome, Err(EngineError::TimedOut { .. })));
        assert!(ends(&fs::read_to_string(path).unwrap()));
    }

    #[tokio::test]
    async fn stopped_podman_ends_by_term() {
        let began = Instant::now();
        let outcome = sh("kill -STOP $$", Duration::from_millis(500)).await;
        assert!(matches!(outcome, Err(EngineError::TimedOut { .. })));
        assert!(began.elapsed() < TERM_TIMEOUT);
    }

    #[tokio::test]
    async fn dropped_podman_is_ended() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pid");
        let script = format!("trap '' TERM; echo $$ >{}; exec sleep 1000", path.display());
        let call = sh(&script, Duration::from_secs(60));
        assert!(timeout(Duration::from_secs(2), call).await.is_err());
        let pid = fs::read_to_string(path).unwrap();
        assert!(ends(&pid), "{pid}");
    }
}
