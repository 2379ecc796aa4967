//! Supervision of one container: feeds the [lifecycle](super::lifecycle) with what happens, and does what it says.

use super::{
    Exec, OutputSink, SandboxConfig,
    cleanup::{ContainerCleanup, reached},
    execs::{ExecPort, ExecRequest},
    exit::{SandboxExit, refused_by_init},
    guest::{Guest, next_stdin, pump},
    lifecycle::{Action, Event, LastWords, Lifecycle},
    listeners,
    ordered_sink::OrderedSink,
    outbox::Outbox,
    stdin::{FeedStep, StdinFeed},
    stop::{StopReason, StopRequest, Stops},
    streams::{OutputPipe, ReportReader, pipe_pair},
};
use crate::{
    api::events::Stream,
    background,
    engine::{ContainerSpec, EngineError, IndexStamp, Root, labels},
    sandbox_init::wire::{ExecNumber, Hello, InitRequest, Report},
};
use std::{io, os::fd::OwnedFd, pin::pin, time::Instant};
use tokio::{
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::mpsc,
};

/// A sandbox until its exit is known, with or without a command.
pub(crate) struct Sandbox {
    cleanup: ContainerCleanup,
    image_index: Option<IndexStamp>,
    reports: ReportReader,
    to_init: OwnedWriteHalf,
    /// Messages that init hasn't read yet.
    unsent: Outbox,
    /// Execs beside the first command.
    execs: ExecPort,
    exec_requests: mpsc::UnboundedReceiver<ExecRequest>,
    /// Request to stop that the lifecycle has.
    stop: Option<StopRequest>,
    stdout: OutputPipe,
    stderr: OutputPipe,
    /// Listeners for models and for the proxy, which init opened.
    listeners: listeners::Received,
}

/// Point to which a sandbox was driven.
pub(super) enum Driven {
    /// Init waits for a command.
    Ready,
    Ended(SandboxExit),
}

/// Starts a container, until its init waits for a command or it has ended.
pub(super) async fn start_container(
    config: &SandboxConfig,
    stops: &Stops,
) -> Result<(Sandbox, Driven), EngineError> {
    let mut sandbox = Sandbox::spawn(config)?;
    let driven = sandbox.drive(&mut None, stops).await;
    Ok((sandbox, driven))
}

/// Receives the listeners of init in the background; the end of the socket for init.
fn receive_listeners(received: listeners::Received) -> io::Result<OwnedFd> {
    let (ours, init_end) = UnixStream::pair()?;
    let init_end = init_end.into_std()?;
    init_end.set_nonblocking(false)?;
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

impl Sandbox {
    fn spawn(config: &SandboxConfig) -> Result<Self, EngineError> {
        let (control, init_end) = UnixStream::pair()?;
        let (stdout, stdout_end) = pipe_pair()?;
        let (stderr, stderr_end) = pipe_pair()?;
        let hello = Hello::of_this_process()?.encode();
        let init_end = init_end.into_std()?;
        init_end.set_nonblocking(false)?;
        let listeners = listeners::Received::new(None);
        let channel =
            (config.inference || config.egress).then(|| receive_listeners(listeners.clone()));
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
            listeners: channel.transpose()?,
            inference: config.inference,
            egress: config.egress,
            detached: true,
        })?;
        let (from_init, to_init) = control.into_split();
        let (execs, exec_requests) = ExecPort::new();
        let mut unsent = Outbox::default();
        unsent.push(&hello, Vec::new());
        Ok(Self {
            cleanup: ContainerCleanup {
                engine: config.engine.clone(),
                container,
                name,
                life: Lifecycle::new(Instant::now()),
                is_oom_killed: false,
            },
            image_index: config.image_index,
            reports: ReportReader::new(from_init, execs.clone()),
            to_init,
            unsent,
            execs,
            exec_requests,
            stop: None,
            stdout: OutputPipe::new(stdout, Stream::Stdout),
            stderr: OutputPipe::new(stderr, Stream::Stderr),
            listeners,
        })
    }

    /// Listeners for models and for the proxy, which init opened; none where the sandbox may use neither.
    pub(crate) fn listeners(&self) -> &listeners::Received {
        &self.listeners
    }

    /// Door to execs beside the first command.
    pub(crate) fn exec_port(&self) -> ExecPort {
        self.execs.clone()
    }

    /// Waits for `wanted` without a command; fails with the exit where the sandbox ends before that.
    pub(crate) async fn wait_for<T>(
        &mut self,
        stops: &Stops,
        wanted: impl Future<Output = T>,
    ) -> Result<T, SandboxExit> {
        let mut wanted = pin!(wanted);
        let mut guest = None;
        loop {
            // What follows an event is never cut off.
            let event = tokio::select! {
                biased;
                event = self.next_event(&mut guest, stops) => event,
                value = &mut wanted => return Ok(value),
            };
            if let Some(Driven::Ended(exit)) = self.on_event(event, &mut guest).await {
                return Err(exit);
            }
        }
    }

    /// Runs a command in a sandbox that waits for one, to its end or to a stop.
    pub(crate) async fn run(
        mut self,
        exec: &Exec,
        sink: &dyn OutputSink,
        stops: &Stops,
    ) -> (SandboxExit, ContainerCleanup) {
        let mut guest = Some(Guest {
            exec,
            sink: OrderedSink::new(sink),
            stdin: exec.stdin.as_ref().map(StdinFeed::new),
        });
        let assigned = Event::Assigned(exec.limits);
        let mut driven = self.on_event(Some(assigned), &mut guest).await;
        loop {
            match driven {
                Some(Driven::Ended(exit)) => return (exit, self.cleanup),
                Some(Driven::Ready) | None => {
                    driven = Some(self.drive(&mut guest, stops).await);
                }
            }
        }
    }

    /// Ends the supervision of a sandbox whose exit is known.
    pub(crate) fn into_cleanup(self) -> ContainerCleanup {
        self.cleanup
    }

    /// Goes on until init waits for a command, or the sandbox has ended.
    async fn drive(&mut self, guest: &mut Option<Guest<'_>>, stops: &Stops) -> Driven {
        loop {
            let event = self.next_event(guest, stops).await;
            if let Some(driven) = self.on_event(event, guest).await {
                return driven;
            }
        }
    }

    /// Does what follows from an event; the point that the sandbox has reached by it, if any.
    async fn on_event(
        &mut self,
        event: Option<Event>,
        guest: &mut Option<Guest<'_>>,
    ) -> Option<Driven> {
        let mut next = event;
        while let Some(event) = next {
            next = match self.cleanup.step(event) {
                Action::BecomeReady => match self.image_fault().await {
                    Some(exit) => Some(Event::ExecRefused(exit)),
                    None => return Some(Driven::Ready),
                },
                Action::SendExec => self.send_exec(guest.as_ref()),
                Action::CollectLastWords => Some(self.last_words(guest.as_ref()).await),
                Action::SendTerm => {
                    // A stopped process handles no signal before it continues.
                    for signal in [libc::SIGTERM, libc::SIGCONT] {
                        self.send(&InitRequest::Signal(signal).encode(ExecNumber::FIRST));
                    }
                    None
                }
                Action::SendKill => {
                    self.send(&InitRequest::Kill.encode(ExecNumber::SANDBOX));
                    None
                }
                Action::KillContainer => {
                    self.cleanup.kill();
                    None
                }
                Action::Exit(exit) => {
                    self.drain(guest.as_ref());
                    return Some(Driven::Ended(exit));
                }
                Action::EndClient(exit) => {
                    self.cleanup.container.terminate().await;
                    self.drain(guest.as_ref());
                    return Some(Driven::Ended(exit));
                }
                // The removal is the cleanup's.
                Action::Wait | Action::RemoveContainer => None,
            };
        }
        None
    }

    /// Waits for something to happen; `None` for what concerns only this supervision. Cancel-safe.
    async fn next_event(&mut self, guest: &mut Option<Guest<'_>>, stops: &Stops) -> Option<Event> {
        let life = self.cleanup.life;
        let (sink, stdin) = match guest {
            Some(guest) => (Some(&guest.sink), guest.stdin.as_mut()),
            None => (None, None),
        };
        tokio::select! {
            // The socket's buffer may be smaller than the message.
            sent = self.unsent.send(&self.to_init), if !self.unsent.is_empty() => {
                if sent.is_err() {
                    // Init reads no more; the podman client's end says why.
                    self.unsent.clear();
                }
                None
            }
            step = next_stdin(stdin), if life.is_running() => self.on_stdin_step(step, sink),
            report = self.reports.next(), if self.reports.is_open() => {
                self.on_report(report, guest.as_mut())
            }
            // Not before the command is reported to run: events come in that order.
            () = pump(&mut self.stdout, sink), if life.is_running() && self.stdout.is_open() => None,
            () = pump(&mut self.stderr, sink), if life.is_running() && self.stderr.is_open() => None,
            end = self.cleanup.container.wait_client(), if life.client().is_none() => {
                let is_reporting = self.reports.is_open();
                Some(Event::ClientExited { end, is_reporting })
            }
            Some(request) = self.exec_requests.recv(), if life.is_running() && life.is_stoppable() => {
                self.unsent.push(&request.message, request.descriptors);
                None
            }
            request = stops.next(self.stop), if life.is_stoppable() => {
                self.stop = Some(request);
                Some(Event::StopRequested(request))
            }
            () = reached(life.deadline()) => Some(Event::DeadlinePassed),
        }
    }

    fn on_report(
        &mut self,
        report: Option<(ExecNumber, Report)>,
        guest: Option<&mut Guest<'_>>,
    ) -> Option<Event> {
        let Some((id, report)) = report else {
            return Some(Event::ReportsClosed);
        };
        match (id, report, guest) {
            (ExecNumber::SANDBOX, Report::Ready { upper }, _) => {
                let ContainerCleanup { engine, name, .. } = &self.cleanup;
                engine.detach_upper(name, &upper);
                Some(Event::InitReady)
            }
            (ExecNumber::SANDBOX, Report::Refused(refusal), _) => {
                Some(Event::InitRefused(refused_by_init(refusal)))
            }
            (ExecNumber::FIRST, report, Some(guest)) => guest.on_report(&report),
            // Never asked for, or about what it can't be about.
            _ => None,
        }
    }

    fn on_stdin_step(
        &mut self,
        step: io::Result<FeedStep>,
        sink: Option<&OrderedSink<'_>>,
    ) -> Option<Event> {
        match step {
            Ok(FeedStep::Send(request)) => {
                self.send(&request.encode(ExecNumber::FIRST));
                None
            }
            Ok(FeedStep::Recorded) => {
                if let Some(sink) = sink {
                    sink.stdin_taken();
                }
                None
            }
            Err(error) => {
                tracing::error!(%error, "stdin of the command can't be read; stopping it");
                let stop = StopRequest::new(StopReason::StdinUnreadable);
                Some(Event::StopRequested(stop))
            }
        }
    }

    fn send(&mut self, message: &[u8]) {
        self.unsent.push(message, Vec::new());
    }

    /// Hands the command over.
    fn send_exec(&mut self, guest: Option<&Guest<'_>>) -> Option<Event> {
        let guest = guest?;
        if let Err(error) = guest.sink.exec_starting() {
            let message = format!("the job's directory can't be written: {error}");
            return Some(Event::ExecRefused(SandboxExit::EngineFailed(message)));
        }
        self.send(&guest.exec.spec.encode(ExecNumber::FIRST));
        Some(Event::ExecSent)
    }

    /// Reason for which nothing may run in the container, if its image was replaced since it was checked. What a
    /// container has mounted doesn't change any more.
    async fn image_fault(&self) -> Option<SandboxExit> {
        let engine = &self.cleanup.engine;
        if self.image_index.is_some() && self.image_index == engine.index_stamp().await {
            return None;
        }
        match engine.container_fault(&self.cleanup.name).await {
            Ok(fault) => fault.map(SandboxExit::ImageNotRunnable),
            Err(error) => Some(SandboxExit::EngineFailed(error.to_string())),
        }
    }

    /// Evidence of the end, once no client is left. Init reports before it ends, so its report may just be unread.
    async fn last_words(&mut self, guest: Option<&Guest<'_>>) -> Event {
        let (report, has_started) = match self.reports.last().await {
            Some((ExecNumber::SANDBOX, Report::Refused(refusal))) => {
                return Event::InitRefused(refused_by_init(refusal));
            }
            Some((ExecNumber::FIRST, Report::Ended(end))) => (Some(end), true),
            Some((ExecNumber::FIRST, _)) => (None, true),
            _ => (None, false),
        };
        if let (true, Some(guest)) = (has_started, guest) {
            guest.sink.exec_started();
        }
        let message = self.cleanup.container.wait_exit().await.err();
        Event::ClientGone(LastWords {
            report,
            has_started,
            message,
        })
    }

    /// Reads what is left in the pipes, and keeps what is to be known of the end. All who could write are dead, though
    /// conmon may still hold them open.
    fn drain(&mut self, guest: Option<&Guest<'_>>) {
        self.cleanup.is_oom_killed = self.reports.is_oom_killed();
        self.execs.close();
        if let Some(guest) = guest {
            self.stdout.drain(&guest.sink);
            self.stderr.drain(&guest.sink);
        }
    }
}
