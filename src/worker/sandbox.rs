//! One job's sandbox: a container, its pipes, its end.
//!
//! The end is known as soon as init tells it (see [`sandbox_init`]); podman then takes some
//! 50 ms more to clear the container away, which [`Remains::clear`] waits for while the result
//! is already on its way.

use super::{
    output::JobLog,
    pipes::{Pipe, Reports, pipe_pair},
};
use crate::{
    api::events::Stream,
    engine::{Container, ContainerSpec, Engine, EngineError, Root},
    sandbox_init::wire::{Report, Request},
};
use bytes::BytesMut;
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
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
    pub(super) name: String,
    pub(super) image_id: &'a str,
    pub(super) workspace: PathBuf,
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) request: Request,
    pub(super) timeout: Duration,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    Exited(i32),
    Killed(i32),
    Timeout,
    Canceled,
    /// podman or init failed; the command may or may not have run.
    Engine(String),
}

/// Why it is being ended before its time.
#[derive(Clone, Copy)]
enum Order {
    Timeout,
    Canceled,
}

/// What podman still has to clear away.
pub(super) struct Remains {
    engine: Engine,
    container: Container,
    name: String,
    /// To be removed once the container is gone.
    pub(super) workspace: PathBuf,
}

impl Sandbox<'_> {
    /// Runs the command to its end, or to the order to end it.
    pub(super) async fn run(
        self,
        log: &JobLog,
        cancel: watch::Receiver<bool>,
    ) -> Result<(End, Remains), EngineError> {
        let (control, init_end) = UnixStream::pair()?;
        let (stdout, out) = pipe_pair()?;
        let (stderr, err) = pipe_pair()?;
        let init_end = init_end.into_std()?;
        init_end.set_nonblocking(false)?;
        let container = self.engine.spawn(&ContainerSpec {
            name: &self.name,
            root: Root::Image(self.image_id),
            init: self.init,
            workspace: Some(&self.workspace),
            labels: &self.labels,
            descriptors: [init_end.into(), out, err],
        })?;
        let mut remains = Remains {
            engine: self.engine.clone(),
            container,
            name: self.name,
            workspace: self.workspace,
        };
        let (from_init, to_init) = control.into_split();
        let watch = Watch {
            reports: Reports::new(from_init),
            to_init,
            unsent: BytesMut::from(self.request.encode().as_slice()),
            stdout: Pipe::new(stdout, Stream::Stdout),
            stderr: Pipe::new(stderr, Stream::Stderr),
            log,
            timeout: self.timeout,
            phase: Phase::Starting,
            deadline: Instant::now() + START_LIMIT,
            started: false,
        };
        let end = watch.follow(cancel, &mut remains).await;
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
    Ending(Order),
    /// Podman was told; at the deadline we give up on it.
    Killing(Order),
}

impl Phase {
    fn order(self) -> Option<Order> {
        match self {
            Self::Starting | Self::Running => None,
            Self::Ending(order) | Self::Killing(order) => Some(order),
        }
    }
}

struct Watch<'a> {
    reports: Reports,
    to_init: OwnedWriteHalf,
    /// What init hasn't read yet: the request, and behind it the order to end.
    unsent: BytesMut,
    stdout: Pipe,
    stderr: Pipe,
    log: &'a JobLog,
    timeout: Duration,
    phase: Phase,
    deadline: Instant,
    started: bool,
}

impl Watch<'_> {
    async fn follow(mut self, mut cancel: watch::Receiver<bool>, remains: &mut Remains) -> End {
        loop {
            tokio::select! {
                // The socket's buffer may be smaller than the request; init reads it once it runs.
                sent = self.to_init.write_buf(&mut self.unsent), if !self.unsent.is_empty() => {
                    if sent.is_err() {
                        // Nobody reads any more; podman's end tells why.
                        self.unsent.clear();
                    }
                }
                report = self.reports.next(), if self.reports.open() => match report {
                    Some(Report::Started) => self.started(),
                    Some(last) => return self.ended(last),
                    None => {}
                },
                // Not before it is told that the command runs: events come in that order.
                () = self.stdout.pump(self.log), if self.started && self.stdout.open => {}
                () = self.stderr.pump(self.log), if self.started && self.stderr.open => {}
                gone = remains.container.gone() => return self.gone(gone).await,
                () = super::job::canceled(&mut cancel), if self.phase.order().is_none() => {
                    self.order(Order::Canceled);
                }
                () = sleep_until(self.deadline) => {
                    if let Some(end) = self.expired(remains).await {
                        return end;
                    }
                }
            }
        }
    }

    fn started(&mut self) {
        self.log.started();
        self.started = true;
        if matches!(self.phase, Phase::Starting) {
            self.phase = Phase::Running;
            self.deadline = Instant::now() + self.timeout;
        }
    }

    fn order(&mut self, order: Order) {
        self.unsent.extend_from_slice(b"k");
        self.phase = Phase::Ending(order);
        self.deadline = Instant::now() + INIT_GRACE;
    }

    async fn expired(&mut self, remains: &mut Remains) -> Option<End> {
        match self.phase {
            Phase::Running => {
                self.order(Order::Timeout);
                None
            }
            Phase::Ending(order) => {
                self.phase = Phase::Killing(order);
                self.deadline = Instant::now() + PODMAN_GRACE;
                remains.kill();
                None
            }
            Phase::Starting => {
                remains.container.end().await;
                let seconds = START_LIMIT.as_secs();
                Some(End::Engine(format!(
                    "the sandbox did not start within {seconds} s; see what holds podman up"
                )))
            }
            Phase::Killing(order) => {
                remains.container.end().await;
                self.drain();
                Some(order.end())
            }
        }
    }

    /// Podman is gone. Init reports before it ends, so its last words may just be unread.
    async fn gone(mut self, gone: Result<(), String>) -> End {
        let last = self.reports.last_words().await;
        self.drain();
        match (last, self.phase.order()) {
            (Some(last), order) => judge(last, order),
            (None, Some(order)) => order.end(),
            (None, None) => End::Engine(
                gone.err()
                    .unwrap_or_else(|| "the sandbox ended without telling how".to_owned()),
            ),
        }
    }

    fn ended(&self, last: Report) -> End {
        self.drain();
        judge(last, self.phase.order())
    }

    /// Everybody who could write is dead; what they wrote is in the pipes, though conmon may
    /// still hold them open.
    fn drain(&self) {
        self.stdout.drain(self.log);
        self.stderr.drain(self.log);
    }
}

impl Order {
    fn end(self) -> End {
        match self {
            Self::Timeout => End::Timeout,
            Self::Canceled => End::Canceled,
        }
    }
}

/// A command that ended before the order reached it ended by itself.
fn judge(last: Report, order: Option<Order>) -> End {
    match (last, order) {
        (Report::Exited(code), _) => End::Exited(code),
        (Report::Killed(libc::SIGKILL), Some(Order::Timeout)) => End::Timeout,
        (Report::Killed(libc::SIGKILL), Some(Order::Canceled)) => End::Canceled,
        (Report::Killed(signal), _) => End::Killed(signal),
        (Report::NotStarted(errno), _) => {
            let reason = io::Error::from_raw_os_error(errno);
            End::Engine(format!("the system could not start the command: {reason}"))
        }
        (Report::Started, _) => End::Engine("init said twice that the command runs".to_owned()),
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

    /// Waits until podman has removed the container, and makes it do so when it doesn't by itself.
    pub(super) async fn clear(&mut self) {
        match tokio::time::timeout(PODMAN_GRACE, self.container.gone()).await {
            Ok(Ok(())) => return,
            Ok(Err(message)) => {
                tracing::debug!(name = self.name, message, "podman ended with an error")
            }
            Err(_) => self.container.end().await,
        }
        remove(&self.engine, &self.name).await;
    }
}

/// Removes a container, whatever its state; one that is gone is fine.
async fn remove(engine: &Engine, name: &str) {
    let removed = engine
        .call(
            &["rm", "--force", "--ignore", "--time=0", name],
            Duration::from_secs(30),
        )
        .await;
    if let Err(error) = removed {
        tracing::warn!(%error, name, "podman could not remove a container; the next start tries again");
    }
}
