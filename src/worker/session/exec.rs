//! An exec in its shim: started once, recorded as it prints, and ended with its record.

use super::{
    pipes::{OutputPipe, Streams, discard},
    protocol::ExecCall,
    server::Session,
};
use crate::{
    api::{
        events::Stream,
        sandboxes::exec::{Exec, ExecEndCause, ExecStatus},
        time::Time,
    },
    background,
    backoff::Backoff,
    retry::retry,
    sandbox::{ExecControl, ExecHandle},
    sandbox_init::wire::{ExecEnd, ExecSpec, ExecStreams, InitRequest, Report, Size},
    spool::{ExecRecorder, ExecSpool},
    wait,
    worker::masking::Recording,
};
use parking_lot::Mutex;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe,
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch},
    time::{Instant, sleep_until, timeout_at},
};

/// Time between TERM and KILL at an exec's time limit.
const TIMEOUT_GRACE: Duration = Duration::from_secs(5);
/// Longest wait for output behind the end of an exec: what it has left detached may hold its pipes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Same for one whose processes may live on.
const DETACHED_DRAIN_TIMEOUT: Duration = Duration::from_millis(50);
/// Time for which a terminal waits for the rest of what may be a secret.
const RELEASE_DELAY: Duration = Duration::from_millis(50);
/// Shortest and longest pause before an end is written again for which there was no room.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(100);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Exec that runs, as calls about it find it.
pub(super) struct RunningExec {
    pub(super) control: ExecControl,
    /// Its stdin, while that is open.
    pub(super) stdin: Arc<AsyncMutex<Option<pipe::Sender>>>,
    /// Bytes of stdin from calls with an offset; changed only by the holder of `stdin`.
    pub(super) numbered_bytes: AtomicU64,
    /// Whether a call has sent it a signal.
    pub(super) is_signaled: AtomicBool,
    recording: Mutex<Recording<ExecRecorder>>,
    has_ended: watch::Sender<bool>,
}

/// Result of a start.
pub(super) enum Started {
    New(Box<Exec>),
    Exists,
}

/// Starts an exec, unless there is one with its id. Fails where it is certain that it has not begun.
pub(super) fn start(session: &Arc<Session>, call: ExecCall) -> io::Result<Started> {
    let spool = ExecSpool::at(&session.dir, call.exec_id);
    let exec = Exec {
        exec_id: call.exec_id,
        status: ExecStatus::Running,
        exit_code: None,
        cause: None,
        command: call.command.clone(),
        tty: call.tty.is_some(),
        interactive: call.interactive || call.tty.is_some(),
        started_at: Time::now(),
        ended_at: None,
        duration_ms: None,
    };
    if !spool.create(&exec)? {
        return Ok(Started::Exists);
    }
    let started = start_recorded(session, call, spool.clone(), &exec);
    if started.is_err() {
        // A later call with its id is the first one.
        spool.remove()?;
    }
    started?;
    Ok(Started::New(exec.into()))
}

fn start_recorded(
    session: &Arc<Session>,
    call: ExecCall,
    spool: ExecSpool,
    exec: &Exec,
) -> io::Result<()> {
    let streams = Streams::open(&call)?;
    let recorder = spool.recorder(session.log_bytes)?;
    let recording = Recording::new(recorder, &session.masking);
    let handle = session
        .port
        .start(&spec(session, &call), streams.for_init)?;
    let open = Arc::new(AsyncMutex::new(streams.stdin));
    // Held until they are written, so that what a call sends comes behind the first bytes.
    let held = Arc::clone(&open)
        .try_lock_owned()
        .map_err(io::Error::other)?;
    let running = Arc::new(RunningExec {
        control: handle.control(),
        stdin: open,
        numbered_bytes: AtomicU64::new(0),
        is_signaled: AtomicBool::new(false),
        recording: recording.into(),
        has_ended: watch::Sender::new(false),
    });
    session.enter_exec(call.exec_id, &running);
    let stays_open = exec.interactive;
    if let Some(first) = call.stdin {
        let fed = feed(held, Arc::clone(&running), first, stays_open);
        background::spawn("exec_stdin", fed);
    }
    let guest = Guest {
        session: Arc::clone(session),
        running,
        handle,
        output: streams.output,
        spool,
        exec: exec.clone(),
        is_detached: call.detached,
        is_started: false,
        begun: Instant::now(),
    };
    let timeout = call.timeout_seconds.map(Duration::from_secs);
    session.execs.spawn("exec", guest.run(timeout));
    Ok(())
}

/// Writes the first bytes of stdin, and closes it where no more may come.
async fn feed(
    mut stdin: OwnedMutexGuard<Option<pipe::Sender>>,
    exec: Arc<RunningExec>,
    first: String,
    stays_open: bool,
) {
    if let Some(open) = &mut *stdin {
        let is_written = tokio::select! {
            written = open.write_all(first.as_bytes()) => written.is_ok(),
            // A process that it has left may hold the pipe, and never read.
            () = exec.ended() => false,
        };
        if !is_written || !stays_open {
            // It reads no more, or there is no more.
            *stdin = None;
        }
    }
}

fn spec(session: &Session, call: &ExecCall) -> ExecSpec {
    let own = call.env.iter();
    let own = own.map(|(name, value)| (name.into(), value.into()));
    let terminal = call.tty.map(|_| ("TERM".into(), "xterm-256color".into()));
    ExecSpec {
        command: call.command.iter().map(Into::into).collect(),
        env: terminal
            .into_iter()
            .chain(session.env.iter().cloned())
            .chain(own)
            .collect(),
        cwd: call.cwd.clone().into(),
        streams: match call.tty {
            Some(size) => ExecStreams::Terminal(Size {
                cols: size.cols,
                rows: size.rows,
            }),
            None => ExecStreams::Own,
        },
        is_detached: call.detached,
        ..ExecSpec::default()
    }
}

impl RunningExec {
    /// Waits for the end of the exec.
    pub(super) async fn ended(&self) {
        // The sender lives in `self`.
        let _ = wait::until(&mut self.has_ended.subscribe(), |ended| *ended).await;
    }

    /// Appends a message about the sandbox to the log.
    pub(super) fn announce(&self, message: &str) {
        self.recording.lock().recorder.append_status(message);
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: i32) {
        self.is_signaled.store(true, Ordering::Relaxed);
        self.control.send(&InitRequest::Signal(signal));
    }
}

/// Time limit of an exec.
#[derive(Clone, Copy)]
enum Limit {
    None,
    Term(Instant),
    Kill(Instant),
    Passed,
}

/// An exec in the task that records it.
struct Guest {
    session: Arc<Session>,
    running: Arc<RunningExec>,
    handle: ExecHandle,
    output: [OutputPipe; 2],
    spool: ExecSpool,
    exec: Exec,
    is_detached: bool,
    is_started: bool,
    begun: Instant,
}

/// End of an exec, as far as its guest has learned of it.
#[derive(Default)]
struct Outcome {
    end: Option<ExecEnd>,
    is_oom_killed: bool,
    is_timed_out: bool,
}

impl Guest {
    async fn run(mut self, timeout: Option<Duration>) {
        let outcome = self.follow(timeout).await;
        self.running.has_ended.send_replace(true);
        let drain = if self.is_detached {
            DETACHED_DRAIN_TIMEOUT
        } else {
            DRAIN_TIMEOUT
        };
        self.drain(Instant::now() + drain).await;
        self.finish_recording();
        let exec = self.ended(&outcome);
        let backoff = Backoff::new(MIN_RETRY_INTERVAL, MAX_RETRY_INTERVAL);
        retry(backoff, "write the end of an exec", || {
            let written = self.spool.write_end(&exec);
            async { written }
        })
        .await;
        self.session.leave_exec(exec.exec_id);
        self.session.updates.send_replace(());
        background::spawn("detached_output", discard(self.output));
    }

    /// Records the exec until it has ended, or its sandbox.
    async fn follow(&mut self, timeout: Option<Duration>) -> Outcome {
        let mut outcome = Outcome::default();
        let (mut limit, mut release_at) = (Limit::None, None);
        loop {
            let [stdout, stderr] = &mut self.output;
            let (stream, bytes) = tokio::select! {
                report = self.handle.next_report() => {
                    match report {
                        None => return outcome,
                        Some(Report::Ended(end)) => {
                            outcome.end = Some(end);
                            return outcome;
                        }
                        Some(Report::Started) => {
                            self.mark_started();
                            if let Some(timeout) = timeout {
                                limit = Limit::Term(Instant::now() + timeout);
                            }
                        }
                        Some(Report::OomKilled) => outcome.is_oom_killed = true,
                        Some(_) => {}
                    }
                    continue;
                }
                bytes = stdout.read(), if stdout.is_open() => (Stream::Stdout, bytes),
                bytes = stderr.read(), if stderr.is_open() => (Stream::Stderr, bytes),
                () = reached(limit) => {
                    outcome.is_timed_out = true;
                    limit = self.on_limit(limit);
                    continue;
                }
                () = due(release_at) => {
                    release_at = None;
                    self.running.recording.lock().release(Stream::Stdout);
                    self.session.updates.send_replace(());
                    continue;
                }
            };
            self.record(stream, &bytes);
            let is_typed = self.exec.tty && self.running.recording.lock().may_release(stream);
            release_at = is_typed.then(|| Instant::now() + RELEASE_DELAY);
        }
    }

    fn on_limit(&self, limit: Limit) -> Limit {
        let (signal, next) = match limit {
            Limit::Term(_) => (libc::SIGTERM, Limit::Kill(Instant::now() + TIMEOUT_GRACE)),
            _ => (libc::SIGKILL, Limit::Passed),
        };
        self.running.control.send(&InitRequest::Signal(signal));
        next
    }

    /// Records that the exec runs, once: its output may be here before init's report.
    fn mark_started(&mut self) {
        if !self.is_started {
            self.is_started = true;
            self.running.recording.lock().recorder.mark_started();
            self.session.updates.send_replace(());
        }
    }

    fn record(&mut self, stream: Stream, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.mark_started();
            self.running.recording.lock().append_output(stream, bytes);
            self.session.updates.send_replace(());
        }
    }

    /// Records what is in the pipes. All who print are dead, or have until the deadline.
    async fn drain(&mut self, deadline: Instant) {
        for (at, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            while self.output[at].is_open()
                && let Ok(bytes) = timeout_at(deadline, self.output[at].read()).await
            {
                self.record(stream, &bytes);
            }
        }
    }

    /// Records what waits at the end of the output.
    fn finish_recording(&self) {
        let mut recording = self.running.recording.lock();
        recording.finish_output();
        recording.recorder.finish();
    }

    /// The exec with its end.
    fn ended(&self, outcome: &Outcome) -> Exec {
        let (status, exit_code) = match outcome.end {
            Some(ExecEnd::Exited(code)) => (ExecStatus::Exited, Some(code)),
            Some(ExecEnd::Killed(signal)) => (ExecStatus::Exited, Some(128 + signal)),
            // Its stderr says why; as a shell that can't execute a program.
            Some(ExecEnd::NotStarted(_)) => (ExecStatus::Exited, Some(126)),
            None => (ExecStatus::Lost, None),
        };
        let is_killed = matches!(outcome.end, Some(ExecEnd::Killed(_)));
        let is_signaled = self.running.is_signaled.load(Ordering::Relaxed);
        let cause = match outcome {
            Outcome { end: None, .. } => None,
            Outcome {
                is_timed_out: true, ..
            } => Some(ExecEndCause::Timeout),
            // Before the other: the kernel counts for the whole sandbox.
            _ if is_killed && is_signaled => Some(ExecEndCause::Signal),
            Outcome {
                is_oom_killed: true,
                ..
            } => Some(ExecEndCause::Oom),
            _ => None,
        };
        Exec {
            status,
            exit_code,
            cause,
            ended_at: Some(Time::now()),
            duration_ms: Some(self.begun.elapsed().as_millis() as u64),
            ..self.exec.clone()
        }
    }
}

/// Waits until a time, for ever where there is none.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits until a time limit is reached, for ever where there is none.
async fn reached(limit: Limit) {
    match limit {
        Limit::Term(at) | Limit::Kill(at) => sleep_until(at).await,
        Limit::None | Limit::Passed => std::future::pending().await,
    }
}
