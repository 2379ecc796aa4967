//! Supervision of one container: feeds the [lifecycle](super::lifecycle) with what happens, and does what it says.
//!
//! The exit is known as soon as init reports it; podman then takes some 50 ms more to remove the container, for
//! which [`ContainerCleanup::wait_until_removed`] waits while the result is already on its way.

use super::{
    Exec, OutputSink, SandboxConfig,
    exit::{SandboxExit, refused_by_init},
    lifecycle::{Action, ENGINE_KILL_TIMEOUT, Event, LastWords, Lifecycle, Phase, Step},
    listeners,
    ordered_sink::OrderedSink,
    stdin::{FeedStep, StdinFeed},
    stop::{StopReason, StopRequest, Stops},
    streams::{OutputPipe, ReportReader, pipe_pair},
};
use crate::{
    api::events::Stream,
    background,
    engine::{Container, ContainerSpec, Engine, EngineError, Root, labels},
    sandbox_init::wire::{ExecId, Hello, InitRequest, Report},
};
use bytes::BytesMut;
use std::{io, os::fd::OwnedFd, time::Instant};
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixStream, unix::OwnedWriteHalf},
    time::sleep_until,
};

/// A container whose exit is known, and which podman still has to remove.
pub(crate) struct ContainerCleanup {
    engine: Engine,
    container: Container,
    name: String,
    life: Lifecycle,
    is_oom_killed: bool,
}

/// Supervisor of a sandbox until its exit is known.
struct Supervisor<'a> {
    config: &'a SandboxConfig,
    exec: &'a Exec,
    sink: OrderedSink<'a>,
    cleanup: ContainerCleanup,
    reports: ReportReader,
    to_init: OwnedWriteHalf,
    /// Messages that init hasn't read yet.
    unsent: BytesMut,
    /// Request to stop that the lifecycle has.
    stop: Option<StopRequest>,
    stdin: Option<StdinFeed>,
    stdout: OutputPipe,
    stderr: OutputPipe,
}

/// Starts a container, and runs the command in it to its end or to a stop.
pub(super) async fn run_container(
    config: &SandboxConfig,
    exec: &Exec,
    sink: &dyn OutputSink,
    stops: &Stops,
) -> Result<(SandboxExit, ContainerCleanup), EngineError> {
    let (control, init_end) = UnixStream::pair()?;
    let (stdout, stdout_end) = pipe_pair()?;
    let (stderr, stderr_end) = pipe_pair()?;
    let hello = Hello::of_this_process()?.encode();
    let init_end = init_end.into_std()?;
    init_end.set_nonblocking(false)?;
    let inference = config.inference.then(|| receive_listeners(exec));
    let name = config.id.container_name();
    let labels = container_labels(config);
    let container = config.engine.spawn(&ContainerSpec {
        name: &name,
        root: Root::Image(&config.image_id),
        init: &config.init,
        workspace: Some(&config.workspace),
        labels: &labels,
        limits: config.limits.clone(),
        device_args: &config.device_args,
        descriptors: [init_end.into(), stdout_end, stderr_end],
        inference: inference.transpose()?,
    })?;
    let (from_init, to_init) = control.into_split();
    let supervisor = Supervisor {
        config,
        exec,
        sink: OrderedSink::new(sink),
        cleanup: ContainerCleanup {
            engine: config.engine.clone(),
            container,
            name,
            life: Lifecycle::new(exec.limits, Instant::now()),
            is_oom_killed: false,
        },
        reports: ReportReader::new(from_init),
        to_init,
        unsent: BytesMut::from(hello.as_slice()),
        stop: None,
        stdin: exec.stdin.as_ref().map(StdinFeed::new),
        stdout: OutputPipe::new(stdout, Stream::Stdout),
        stderr: OutputPipe::new(stderr, Stream::Stderr),
    };
    Ok(supervisor.run(stops).await)
}

/// Receives the listeners of init in the background; the end of the socket for init.
fn receive_listeners(exec: &Exec) -> io::Result<OwnedFd> {
    let (ours, init_end) = UnixStream::pair()?;
    let init_end = init_end.into_std()?;
    init_end.set_nonblocking(false)?;
    let received = exec.listeners.clone();
    background::spawn("receive_listeners", async move {
        listeners::receive_into(&ours, &received).await;
    });
    Ok(init_end.into())
}

fn container_labels(config: &SandboxConfig) -> Vec<(&str, String)> {
    let own = [
        (labels::NODE, config.node_uuid.clone()),
        (labels::SANDBOX, config.id.to_string()),
    ];
    let more = config.labels.iter();
    own.into_iter()
        .chain(more.map(|(name, value)| (name.as_str(), value.clone())))
        .collect()
}

impl Supervisor<'_> {
    async fn run(mut self, stops: &Stops) -> (SandboxExit, ContainerCleanup) {
        loop {
            let mut next = self.next_event(stops).await;
            while let Some(event) = next {
                next = match self.cleanup.step(event) {
                    Action::SendExec => Some(self.send_exec().await),
                    Action::CollectLastWords => Some(self.last_words().await),
                    Action::SendTerm => {
                        // A stopped process handles no signal before it continues.
                        for signal in [libc::SIGTERM, libc::SIGCONT] {
                            self.send(&InitRequest::Signal(signal).encode(ExecId::FIRST));
                        }
                        None
                    }
                    Action::SendKill => {
                        self.send(&InitRequest::Kill.encode(ExecId::SANDBOX));
                        None
                    }
                    Action::KillContainer => {
                        self.cleanup.kill();
                        None
                    }
                    Action::Exit(exit) => {
                        self.drain();
                        return (exit, self.cleanup);
                    }
                    Action::EndClient(exit) => {
                        self.cleanup.container.terminate().await;
                        self.drain();
                        return (exit, self.cleanup);
                    }
                    // The removal is the cleanup's.
                    Action::Wait | Action::RemoveContainer => None,
                };
            }
        }
    }

    /// Waits for something to happen; `None` for what concerns only this supervisor.
    async fn next_event(&mut self, stops: &Stops) -> Option<Event> {
        let life = self.cleanup.life;
        tokio::select! {
            // The socket's buffer may be smaller than the message.
            sent = self.to_init.write_buf(&mut self.unsent), if !self.unsent.is_empty() => {
                if sent.is_err() {
                    // Init reads no more; the podman client's end says why.
                    self.unsent.clear();
                }
                None
            }
            step = next_stdin(&mut self.stdin), if life.is_running() => self.on_stdin_step(step),
            report = self.reports.next(), if self.reports.is_open() => self.on_report(report),
            // Not before the command is reported to run: events come in that order.
            () = self.stdout.pump(&self.sink), if life.is_running() && self.stdout.is_open() => None,
            () = self.stderr.pump(&self.sink), if life.is_running() && self.stderr.is_open() => None,
            _ = self.cleanup.container.wait_exit(), if !life.is_client_killed() => {
                let by_signal = self.cleanup.container.was_killed();
                let is_reporting = self.reports.is_open();
                Some(Event::ClientExited { by_signal, is_reporting })
            }
            request = stops.next(self.stop), if life.is_stoppable() => {
                self.stop = Some(request);
                Some(Event::StopRequested(request))
            }
            () = sleep_until(life.deadline().into()) => Some(Event::DeadlinePassed),
        }
    }

    fn on_report(&mut self, report: Option<(ExecId, Report)>) -> Option<Event> {
        match report {
            Some((ExecId::SANDBOX, Report::Ready { upper })) => {
                let ContainerCleanup { engine, name, .. } = &self.cleanup;
                engine.detach_upper(name, &upper);
                Some(Event::InitReady)
            }
            Some((ExecId::FIRST, Report::Started)) => {
                self.sink.exec_started();
                Some(Event::ExecStarted)
            }
            Some((ExecId::FIRST, report @ (Report::StdinTaken(_) | Report::StdinClosed))) => {
                self.on_stdin(&report);
                None
            }
            Some((ExecId::FIRST, Report::Signaled)) => Some(Event::ExecSignaled),
            Some((ExecId::FIRST, Report::Ended(end))) => Some(Event::ExecEnded(end)),
            Some((ExecId::SANDBOX, Report::Refused(refusal))) => {
                Some(Event::InitRefused(refused_by_init(refusal)))
            }
            // Never asked for, or about what it can't be about.
            Some(_) => None,
            None => Some(Event::ReportsClosed),
        }
    }

    fn on_stdin_step(&mut self, step: io::Result<FeedStep>) -> Option<Event> {
        match step {
            Ok(FeedStep::Send(request)) => {
                self.send(&request.encode(ExecId::FIRST));
                None
            }
            Ok(FeedStep::Recorded) => {
                self.sink.stdin_taken();
                None
            }
            Err(error) => {
                tracing::error!(%error, "stdin of the command can't be read; stopping it");
                let stop = StopRequest::new(StopReason::StdinUnreadable);
                Some(Event::StopRequested(stop))
            }
        }
    }

    fn on_stdin(&mut self, report: &Report) {
        let Some(stdin) = &mut self.stdin else { return };
        let is_due = match report {
            Report::StdinTaken(bytes) => stdin.record_taken(*bytes),
            _ => {
                stdin.record_closed();
                true
            }
        };
        if is_due {
            self.sink.stdin_taken();
        }
    }

    fn send(&mut self, message: &[u8]) {
        self.unsent.extend_from_slice(message);
    }

    /// Hands the command over, after the last look at what it would run in.
    async fn send_exec(&mut self) -> Event {
        if let Some(exit) = self.image_fault().await {
            return Event::ExecRefused(exit);
        }
        if let Err(error) = self.sink.exec_starting() {
            let message = format!("the job's directory can't be written: {error}");
            return Event::ExecRefused(SandboxExit::EngineFailed(message));
        }
        self.send(&self.exec.spec.encode(ExecId::FIRST));
        Event::ExecSent
    }

    /// Reason for which nothing may run in the container, if its image was replaced since it was checked.
    async fn image_fault(&self) -> Option<SandboxExit> {
        let engine = &self.config.engine;
        let checked = self.config.image_index;
        if checked.is_some() && checked == engine.index_stamp().await {
            return None;
        }
        match engine.container_fault(&self.cleanup.name).await {
            Ok(fault) => fault.map(SandboxExit::ImageNotRunnable),
            Err(error) => Some(SandboxExit::EngineFailed(error.to_string())),
        }
    }

    /// Evidence of the end, once no client is left. Init reports before it ends, so its report may just be unread.
    async fn last_words(&mut self) -> Event {
        let report = match self.reports.last().await {
            Some((ExecId::SANDBOX, Report::Refused(refusal))) => {
                return Event::InitRefused(refused_by_init(refusal));
            }
            Some((ExecId::FIRST, Report::Ended(end))) => Some(end),
            _ => None,
        };
        let ContainerCleanup {
            container, life, ..
        } = &mut self.cleanup;
        if report.is_some() {
            self.sink.exec_started();
        }
        // A client that was killed says nothing about the sandbox, which went on without it.
        if life.is_client_killed() {
            return Event::ClientGone(LastWords {
                report,
                ..LastWords::default()
            });
        }
        Event::ClientGone(LastWords {
            report,
            message: container.wait_exit().await.err(),
            client_code: container.exit_code(),
        })
    }

    /// Reads what is left in the pipes, and keeps what is to be known of the end. All who could write are dead, though
    /// conmon may still hold them open.
    fn drain(&mut self) {
        self.cleanup.is_oom_killed = self.reports.is_oom_killed();
        self.stdout.drain(&self.sink);
        self.stderr.drain(&self.sink);
    }
}

/// Waits for the next step of a command's stdin, for ever where there is none. Cancel-safe.
async fn next_stdin(stdin: &mut Option<StdinFeed>) -> io::Result<FeedStep> {
    match stdin {
        Some(stdin) if stdin.is_open() => stdin.next().await,
        _ => std::future::pending().await,
    }
}

impl ContainerCleanup {
    /// Takes an event now.
    fn step(&mut self, event: Event) -> Action {
        let was_client_killed = self.life.is_client_killed();
        let (life, action) = self.life.on(event, Instant::now());
        self.life = life;
        if life.is_client_killed() && !was_client_killed {
            tracing::warn!(
                container = self.name,
                "podman client was killed; sandbox continues"
            );
        }
        action
    }

    /// Asks podman in the background to kill what init could not.
    fn kill(&self) {
        tracing::warn!(
            container = self.name,
            "init does not end the sandbox; podman kills it"
        );
        let (engine, name) = (self.engine.clone(), self.name.clone());
        background::spawn("sandbox-kill", async move {
            let killed = engine.kill_container(&name, ENGINE_KILL_TIMEOUT);
            if let Err(error) = killed.await {
                tracing::warn!(%error, container = name, "podman could not kill a sandbox");
            }
        });
    }

    /// Whether the kernel killed a process of the sandbox for want of memory.
    pub(crate) fn is_oom_killed(&self) -> bool {
        self.is_oom_killed
    }

    /// Waits until podman has removed the container, and removes it where podman doesn't by itself. False where
    /// something is left of it.
    pub(crate) async fn wait_until_removed(&mut self) -> bool {
        let mut action = self.step(Event::RemovalAwaited);
        if self.life.phase() == Phase::Ending(Step::ClientRemoves) {
            let event = self.client_removes().await;
            action = self.step(event);
        }
        while action == Action::RemoveContainer {
            let is_removed = self.engine.remove_container(&self.name).await;
            action = self.step(Event::Removed(is_removed));
        }
        self.life.phase() == Phase::Cleared
    }

    /// Waits for the podman client, which removes the container, until the deadline.
    async fn client_removes(&mut self) -> Event {
        tokio::select! {
            outcome = self.container.wait_exit() => {
                if let Err(message) = &outcome {
                    tracing::debug!(container = self.name, message, "the podman client ended with an error");
                }
                Event::Removed(outcome.is_ok())
            }
            () = sleep_until(self.life.deadline().into()) => {
                self.container.terminate().await;
                Event::DeadlinePassed
            }
        }
    }
}
