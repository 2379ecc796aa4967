//! One job's sandbox: a container, its pipes, its end.
//!
//! The end is known as soon as init tells it (see [`sandbox_init`](crate::sandbox_init)); podman
//! then takes some 50 ms more to clear the container away, which [`Remains::clear`] waits for
//! while the result is already on its way.
//!
//! Init asks for the request once it runs. Until then the command can't have begun, and the
//! request stays in the spool; after that, the end is what init reports, or is not known.
//!
//! What podman refuses before init runs is started once more, to know whether it is the image that can't be
//! run: see [`start`](super::start).

use super::{
    end::{End, Halt, judge, ordered},
    pipes::{Pipe, Reports, pipe_pair},
    tape::Tape,
};
use crate::{
    api::events::Stream,
    engine::{Container, ContainerSpec, Engine, EngineError, IndexStamp, Root},
    sandbox_init::wire::{self, Greeting, Report, Request},
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
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long init may take to end everything before podman is asked to.
const INIT_GRACE: Duration = Duration::from_secs(2);
/// How long podman may take after that.
const PODMAN_GRACE: Duration = Duration::from_secs(15);

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
    pub(super) request: &'a Request,
    pub(super) timeout: Duration,
}

/// What podman still has to clear away.
pub(super) struct Remains {
    engine: Engine,
    container: Container,
    name: String,
}

impl Sandbox<'_> {
    /// Runs the command to its end, or to the order to halt.
    pub(super) async fn run(
        &self,
        tape: &Tape,
        orders: watch::Receiver<Option<Halt>>,
    ) -> Result<(End, Remains), EngineError> {
        let (control, init_end) = UnixStream::pair()?;
        let (stdout, out) = pipe_pair()?;
        let (stderr, err) = pipe_pair()?;
        let greeting = Greeting::ours()?.encode();
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
        let mut remains = Remains {
            engine: self.engine.clone(),
            container,
            name: self.name.clone(),
        };
        let (from_init, to_init) = control.into_split();
        let watch = Watch {
            reports: Reports::new(from_init),
            to_init,
            request: self.request,
            image_index: self.image_index,
            unsent: BytesMut::from(greeting.as_slice()),
            spool: self.spool,
            stdout: Pipe::new(stdout, Stream::Stdout),
            stderr: Pipe::new(stderr, Stream::Stderr),
            tape,
            timeout: self.timeout,
            phase: Phase::Starting,
            deadline: Instant::now() + START_LIMIT,
            begun: false,
            started: false,
            orphaned: false,
        };
        let end = watch.follow(orders, &mut remains).await;
        Ok((end, remains))
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
    Ending(Halt),
    /// Podman was told; at the deadline we give up on it.
    Killing(Halt),
}

impl Phase {
    fn halt(self) -> Option<Halt> {
        match self {
            Self::Starting | Self::Running => None,
            Self::Ending(halt) | Self::Killing(halt) => Some(halt),
        }
    }
}

struct Watch<'a> {
    reports: Reports,
    to_init: OwnedWriteHalf,
    request: &'a Request,
    image_index: Option<IndexStamp>,
    /// What init hasn't read yet: the greeting, the request, and behind it the order to end.
    unsent: BytesMut,
    stdout: Pipe,
    stderr: Pipe,
    spool: &'a Spool,
    tape: &'a Tape,
    timeout: Duration,
    phase: Phase,
    deadline: Instant,
    /// Init has asked for the request: the command may run.
    begun: bool,
    /// Init has said that the command runs.
    started: bool,
    /// Somebody killed podman, and the container goes on.
    orphaned: bool,
}

impl Watch<'_> {
    async fn follow(
        mut self,
        mut orders: watch::Receiver<Option<Halt>>,
        remains: &mut Remains,
    ) -> End {
        loop {
            tokio::select! {
                // The socket's buffer may be smaller than the request.
                sent = self.to_init.write_buf(&mut self.unsent), if !self.unsent.is_empty() => {
                    if sent.is_err() {
                        // Nobody reads any more; podman's end tells why.
                        self.unsent.clear();
                    }
                }
                report = self.reports.next(), if self.reports.open() => match report {
                    Some(Report::Ready(_)) => {
                        remains.engine.detach_upper(&remains.name, self.reports.text());
                        let ready = match self.unfit(remains).await {
                            None => self.begin(),
                            Some(end) => Err(end),
                        };
                        if let Err(end) = ready {
                            remains.container.end().await;
                            return end;
                        }
                    }
                    Some(Report::Started) => self.started(),
                    Some(last) => return self.ended(last),
                    None if self.orphaned => return self.gone(Ok(()), None).await,
                    None => {}
                },
                // Not before it is told that the command runs: events come in that order.
                () = self.stdout.pump(self.tape), if self.started && self.stdout.open => {}
                () = self.stderr.pump(self.tape), if self.started && self.stderr.open => {}
                gone = remains.container.gone(), if !self.orphaned => {
                    // Without its podman a container goes on, and so does what init has to tell.
                    let was_killed = remains.container.was_killed();
                    if self.begun && self.reports.open() && was_killed {
                        tracing::warn!("somebody killed podman; the sandbox goes on");
                        self.orphaned = true;
                    } else {
                        return self.gone(gone, remains.container.exit_code()).await;
                    }
                }
                halt = ordered(&mut orders), if self.phase.halt().is_none() => self.halt(halt),
                () = sleep_until(self.deadline) => {
                    if let Some(end) = self.expired(remains).await {
                        return end;
                    }
                }
            }
        }
    }

    /// Why nothing may run in the container, if its image has become another one since it was looked at.
    async fn unfit(&self, remains: &Remains) -> Option<End> {
        if self.image_index.is_some() && self.image_index == remains.engine.index_stamp() {
            return None;
        }
        match remains.engine.container_fault(&remains.name).await {
            Ok(fault) => fault.map(End::Image),
            Err(error) => Some(End::Engine(error.to_string())),
        }
    }

    /// Init runs and asks what to do. What is to be halted already is not begun any more.
    fn begin(&mut self) -> Result<(), End> {
        if self.phase.halt().is_some() {
            self.unsent.clear();
            self.unsent.extend_from_slice(&wire::NOTHING);
            return Ok(());
        }
        self.spool.begin().map_err(|error| {
            End::Engine(format!("the job's directory can't be written: {error}"))
        })?;
        self.begun = true;
        self.unsent.extend_from_slice(&self.request.encode());
        Ok(())
    }

    fn started(&mut self) {
        self.tape.started();
        self.started = true;
        if matches!(self.phase, Phase::Starting) {
            self.phase = Phase::Running;
            self.deadline = Instant::now() + self.timeout;
        }
    }

    fn halt(&mut self, halt: Halt) {
        if self.begun {
            self.unsent.extend_from_slice(b"k");
        }
        self.phase = Phase::Ending(halt);
        self.deadline = Instant::now() + INIT_GRACE;
    }

    async fn expired(&mut self, remains: &mut Remains) -> Option<End> {
        match self.phase {
            Phase::Running => {
                self.halt(Halt::Timeout);
                None
            }
            // Init has not even come, so podman hangs: nothing runs that podman could kill.
            Phase::Ending(halt) if !self.begun => {
                remains.container.end().await;
                Some(End::Halted(halt))
            }
            Phase::Ending(halt) => {
                self.phase = Phase::Killing(halt);
                self.deadline = Instant::now() + PODMAN_GRACE;
                remains.kill();
                None
            }
            Phase::Starting => {
                remains.container.end().await;
                let seconds = START_LIMIT.as_secs();
                let message = format!(
                    "the sandbox did not start within {seconds} s; see what holds podman up with: ps -C podman -o pid,stat,etime,args"
                );
                Some(self.unreported(message))
            }
            Phase::Killing(halt) => {
                remains.container.end().await;
                self.drain();
                Some(End::Halted(halt))
            }
        }
    }

    /// Podman is gone, by itself with this exit code. Init reports before it ends, so its last words may just
    /// be unread.
    async fn gone(mut self, gone: Result<(), String>, code: Option<i32>) -> End {
        let last = self.reports.last_words().await;
        if last.is_some() && !self.started {
            self.started();
        }
        self.drain();
        match (last, self.phase.halt()) {
            (Some(last), halt) => judge(last, halt),
            (None, Some(halt)) => End::Halted(halt),
            // Init was killed, and the command with it: by the kernel, for memory that the command took, or on
            // purpose. A job that can bring that about must not be run again for it.
            (None, None) if self.begun && code == Some(128 + libc::SIGKILL) => {
                End::Killed(libc::SIGKILL)
            }
            (None, None) => match gone.err() {
                // One that was killed has refused nothing.
                Some(words) if !self.begun && code.is_some() => End::Refused(words),
                words => {
                    let unknown = || "the sandbox ended without telling how".to_owned();
                    self.unreported(words.unwrap_or_else(unknown))
                }
            },
        }
    }

    /// Nobody tells how it ended: no harm as long as it can't have begun.
    fn unreported(&self, message: String) -> End {
        if self.begun {
            End::Lost(message)
        } else {
            End::Engine(message)
        }
    }

    fn ended(&self, last: Report) -> End {
        self.drain();
        judge(last, self.phase.halt())
    }

    /// Everybody who could write is dead; what they wrote is in the pipes, though conmon may
    /// still hold them open.
    fn drain(&self) {
        self.stdout.drain(self.tape);
        self.stderr.drain(self.tape);
    }
}

impl Remains {
    /// Asks podman to kill what init could not.
    fn kill(&self) {
        tracing::warn!(
            name = self.name,
            "a sandbox does not end by itself; podman is asked to kill it"
        );
        let (engine, name) = (self.engine.clone(), self.name.clone());
        tokio::spawn(async move {
            let killed = engine
                .call(&["kill", "--signal=KILL", &name], PODMAN_GRACE)
                .await;
            if let Err(error) = killed {
                tracing::warn!(%error, name, "podman could not kill a sandbox");
            }
        });
    }

    /// Waits until podman has removed the container, and makes it do so when it doesn't by itself. Whether nothing
    /// is left of it.
    pub(super) async fn clear(&mut self) -> bool {
        match tokio::time::timeout(PODMAN_GRACE, self.container.gone()).await {
            Ok(Ok(())) => return true,
            Ok(Err(message)) => {
                tracing::debug!(name = self.name, message, "podman ended with an error")
            }
            Err(_) => self.container.end().await,
        }
        self.engine.remove_container(&self.name).await
    }
}
