//! One job's sandbox: a container, its pipes, its end.
//!
//! The end is known as soon as init tells it (see [`sandbox_init`](crate::sandbox_init)); podman
//! then takes some 50 ms more to clear the container away, which [`ContainerCleanup::wait_until_removed`] waits for
//! while the result is already on its way.
//!
//! Init asks for the request once it runs. Until then the command can't have begun, and the
//! request stays in the spool; after that, the end is what init reports, or is not known.
//!
//! What podman refuses before init runs is started once more, to know whether it is the image that can't be
//! run: see [`start`](super::start).

use super::{
    exit::{SandboxExit, StopReason, classify_exit, stop_requested},
    pipes::{Pipe, ReportReader, pipe_pair},
    sink::OutputSink,
};
use crate::{
    api::events::Stream,
    background,
    engine::{Container, ContainerSpec, Engine, EngineError, IndexStamp, Root},
    sandbox_init::wire::{self, ExecSpec, Hello, Report},
    spool::Spool,
};
use bytes::BytesMut;
use std::{path::Path, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::watch,
    time::{Instant, sleep_until},
};

/// How long podman may take until the command runs.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long init may take to end everything before podman is asked to.
const INIT_END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long podman may take after that.
const PODMAN_END_TIMEOUT: Duration = Duration::from_secs(15);

/// What is to be run.
pub(super) struct Sandbox<'a> {
    pub(super) engine: &'a Engine,
    pub(super) init: &'a Path,
    pub(super) spool: &'a Spool,
    pub(super) name: String,
    pub(super) image_id: &'a str,
    /// The image index by which the image was looked at.
    pub(super) image_index: Option<IndexStamp>,
    pub(super) node_uuid: &'a str,
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) request: &'a ExecSpec,
    pub(super) timeout: Duration,
}

/// What podman still has to clear away.
pub(super) struct ContainerCleanup {
    engine: Engine,
    container: Container,
    name: String,
}

impl Sandbox<'_> {
    /// Runs the command to its end, or to the order to reason.
    pub(super) async fn run(
        &self,
        sink: &OutputSink,
        stops: watch::Receiver<Option<StopReason>>,
    ) -> Result<(SandboxExit, ContainerCleanup), EngineError> {
        let (control, init_end) = UnixStream::pair()?;
        let (stdout, out) = pipe_pair()?;
        let (stderr, err) = pipe_pair()?;
        let greeting = Hello::of_this_process()?.encode();
        let init_end = init_end.into_std()?;
        init_end.set_nonblocking(false)?;
        let container = self.engine.spawn(&ContainerSpec {
            name: &self.name,
            root: Root::Image(self.image_id),
            init: self.init,
            workspace: Some(&self.spool.workspace()),
            labels: &self.labels,
            descriptors: [init_end.into(), out, err],
        })?;
        let mut cleanup = ContainerCleanup {
            engine: self.engine.clone(),
            container,
            name: self.name.clone(),
        };
        let (from_init, to_init) = control.into_split();
        let supervisor = Supervisor {
            reports: ReportReader::new(from_init),
            to_init,
            request: self.request,
            image_index: self.image_index,
            unsent: BytesMut::from(greeting.as_slice()),
            spool: self.spool,
            stdout: Pipe::new(stdout, Stream::Stdout),
            stderr: Pipe::new(stderr, Stream::Stderr),
            sink,
            timeout: self.timeout,
            phase: Phase::Starting,
            deadline: Instant::now() + START_TIMEOUT,
            exec_sent: false,
            started: false,
            client_killed: false,
        };
        let end = supervisor.run(stops, &mut cleanup).await;
        Ok((end, cleanup))
    }
}

/// Where a sandbox stands; what its deadline means.
#[derive(Clone, Copy)]
enum Phase {
    /// Podman is at work; at the deadline it has failed.
    Starting,
    /// The command runs; the deadline is its time limit.
    Running,
    /// Init was told to end everything; at the deadline podman is.
    Ending(StopReason),
    /// Podman was told; at the deadline we give up on it.
    Killing(StopReason),
}

impl Phase {
    fn stop_reason(self) -> Option<StopReason> {
        match self {
            Self::Starting | Self::Running => None,
            Self::Ending(reason) | Self::Killing(reason) => Some(reason),
        }
    }
}

struct Supervisor<'a> {
    reports: ReportReader,
    to_init: OwnedWriteHalf,
    request: &'a ExecSpec,
    image_index: Option<IndexStamp>,
    /// What init hasn't read yet: the greeting, the request, and behind it the order to end.
    unsent: BytesMut,
    stdout: Pipe,
    stderr: Pipe,
    spool: &'a Spool,
    sink: &'a OutputSink,
    timeout: Duration,
    phase: Phase,
    deadline: Instant,
    /// Init has asked for the request: the command may run.
    exec_sent: bool,
    /// Init has said that the command runs.
    started: bool,
    /// Somebody killed podman, and the container goes on.
    client_killed: bool,
}

impl Supervisor<'_> {
    async fn run(
        mut self,
        mut stops: watch::Receiver<Option<StopReason>>,
        cleanup: &mut ContainerCleanup,
    ) -> SandboxExit {
        loop {
            tokio::select! {
                // The socket's buffer may be smaller than the request.
                sent = self.to_init.write_buf(&mut self.unsent), if !self.unsent.is_empty() => {
                    if sent.is_err() {
                        // Nobody reads any more; podman's end tells why.
                        self.unsent.clear();
                    }
                }
                report = self.reports.next(), if self.reports.is_open() => match report {
                    Some(Report::Ready(_)) => {
                        cleanup.engine.detach_upper(&cleanup.name, self.reports.text());
                        let ready = match self.image_fault(cleanup).await {
                            None => self.hand_over_exec(),
                            Some(end) => Err(end),
                        };
                        if let Err(end) = ready {
                            cleanup.container.terminate().await;
                            return end;
                        }
                    }
                    Some(Report::Started) => self.note_started(),
                    Some(last) => return self.finish(last),
                    None if self.client_killed => return self.client_gone(Ok(()), None).await,
                    None => {}
                },
                // Not before it is told that the command runs: events come in that order.
                () = self.stdout.pump(self.sink), if self.started && self.stdout.open => {}
                () = self.stderr.pump(self.sink), if self.started && self.stderr.open => {}
                gone = cleanup.container.wait_exit(), if !self.client_killed => {
                    // Without its podman a container goes on, and so does what init has to tell.
                    let was_killed = cleanup.container.was_killed();
                    if self.exec_sent && self.reports.is_open() && was_killed {
                        tracing::warn!("somebody killed podman; the sandbox goes on");
                        self.client_killed = true;
                    } else {
                        return self.client_gone(gone, cleanup.container.exit_code()).await;
                    }
                }
                reason = stop_requested(&mut stops), if self.phase.stop_reason().is_none() => self.begin_stop(reason),
                () = sleep_until(self.deadline) => {
                    if let Some(end) = self.deadline_passed(cleanup).await {
                        return end;
                    }
                }
            }
        }
    }

    /// Why nothing may run in the container, if its image has become another one since it was looked at.
    async fn image_fault(&self, cleanup: &ContainerCleanup) -> Option<SandboxExit> {
        if self.image_index.is_some() && self.image_index == cleanup.engine.index_stamp().await {
            return None;
        }
        match cleanup.engine.container_fault(&cleanup.name).await {
            Ok(fault) => fault.map(SandboxExit::ImageNotRunnable),
            Err(error) => Some(SandboxExit::EngineFailed(error.to_string())),
        }
    }

    /// Init runs and asks what to do. What is to be halted already is not begun any more.
    fn hand_over_exec(&mut self) -> Result<(), SandboxExit> {
        if self.phase.stop_reason().is_some() {
            self.unsent.clear();
            self.unsent.extend_from_slice(&wire::EXIT);
            return Ok(());
        }
        self.spool.mark_started().map_err(|error| {
            SandboxExit::EngineFailed(format!("the job's directory can't be written: {error}"))
        })?;
        self.exec_sent = true;
        self.unsent.extend_from_slice(&self.request.encode());
        Ok(())
    }

    fn note_started(&mut self) {
        self.sink.mark_started();
        self.started = true;
        if matches!(self.phase, Phase::Starting) {
            self.phase = Phase::Running;
            self.deadline = Instant::now() + self.timeout;
        }
    }

    fn begin_stop(&mut self, reason: StopReason) {
        if self.exec_sent {
            self.unsent.extend_from_slice(b"k");
        }
        self.phase = Phase::Ending(reason);
        self.deadline = Instant::now() + INIT_END_TIMEOUT;
    }

    async fn deadline_passed(&mut self, cleanup: &mut ContainerCleanup) -> Option<SandboxExit> {
        match self.phase {
            Phase::Running => {
                self.begin_stop(StopReason::Timeout);
                None
            }
            // Init has not even come, so podman hangs: nothing runs that podman could kill.
            Phase::Ending(reason) if !self.exec_sent => {
                cleanup.container.terminate().await;
                Some(SandboxExit::Stopped(reason))
            }
            Phase::Ending(reason) => {
                self.phase = Phase::Killing(reason);
                self.deadline = Instant::now() + PODMAN_END_TIMEOUT;
                cleanup.kill_container();
                None
            }
            Phase::Starting => {
                cleanup.container.terminate().await;
                let seconds = START_TIMEOUT.as_secs();
                let message = format!(
                    "the sandbox did not start within {seconds} s; see what holds podman up with: ps -C podman -o pid,stat,etime,args"
                );
                Some(self.exit_without_report(message))
            }
            Phase::Killing(reason) => {
                cleanup.container.terminate().await;
                self.drain();
                Some(SandboxExit::Stopped(reason))
            }
        }
    }

    /// Podman is gone, by itself with this exit code. Init reports before it ends, so its last words may just
    /// be unread.
    async fn client_gone(mut self, gone: Result<(), String>, code: Option<i32>) -> SandboxExit {
        let last = self.reports.final_report().await;
        if last.is_some() && !self.started {
            self.note_started();
        }
        self.drain();
        match (last, self.phase.stop_reason()) {
            (Some(last), reason) => classify_exit(last, reason),
            (None, Some(reason)) => SandboxExit::Stopped(reason),
            // Init was killed, and the command with it: by the kernel, for memory that the command took, or on
            // purpose. A job that can bring that about must not be run again for it.
            (None, None) if self.exec_sent && code == Some(128 + libc::SIGKILL) => {
                SandboxExit::Signaled(libc::SIGKILL)
            }
            (None, None) => match gone.err() {
                // One that was killed has refused nothing.
                Some(words) if !self.exec_sent && code.is_some() => SandboxExit::Refused(words),
                words => {
                    let unknown = || "the sandbox ended without telling how".to_owned();
                    self.exit_without_report(words.unwrap_or_else(unknown))
                }
            },
        }
    }

    /// Nobody tells how it ended: no harm as long as it can't have begun.
    fn exit_without_report(&self, message: String) -> SandboxExit {
        if self.exec_sent {
            SandboxExit::Lost(message)
        } else {
            SandboxExit::EngineFailed(message)
        }
    }

    fn finish(&self, last: Report) -> SandboxExit {
        self.drain();
        classify_exit(last, self.phase.stop_reason())
    }

    /// Everybody who could write is dead; what they wrote is in the pipes, though conmon may
    /// still hold them open.
    fn drain(&self) {
        self.stdout.drain(self.sink);
        self.stderr.drain(self.sink);
    }
}

impl ContainerCleanup {
    /// Asks podman to kill what init could not.
    fn kill_container(&self) {
        tracing::warn!(
            name = self.name,
            "a sandbox does not end by itself; podman is asked to kill it"
        );
        let (engine, name) = (self.engine.clone(), self.name.clone());
        background::spawn("kill_container", async move {
            if let Err(error) = engine.kill_container(&name).await {
                tracing::warn!(%error, name, "podman could not kill a sandbox");
            }
        });
    }

    /// Waits until podman has removed the container, and makes it do so when it doesn't by itself. Whether nothing
    /// is left of it.
    pub(super) async fn wait_until_removed(&mut self) -> bool {
        match tokio::time::timeout(PODMAN_END_TIMEOUT, self.container.wait_exit()).await {
            Ok(Ok(())) => return true,
            Ok(Err(message)) => {
                tracing::debug!(name = self.name, message, "podman ended with an error")
            }
            Err(_) => self.container.terminate().await,
        }
        self.engine.remove_container(&self.name).await
    }
}
