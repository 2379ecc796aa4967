//! Server of `session.sock` in the shim of a sandbox.

use super::{
    clock::{Due, SessionClock},
    exec::{self, RunningExec, Started},
    file_server,
    pipes::no_stdin,
    protocol::{ExecCall, SOCKET_FILE, SessionReply, SessionRequest, read_frame, write_frame},
    table::Table,
};
use crate::{
    api::{
        ExecId, JobId,
        sandboxes::{
            SessionSpec, SessionState,
            exec::{MAX_RUNNING_EXECS, TerminalSize},
        },
    },
    background::{self, BackgroundTasks},
    sandbox::{ExecPort, StopRequest, Stops, shim::bind_socket},
    sandbox_files,
    sandbox_init::{
        self,
        wire::{ExecSpec, ExecStreams, InitRequest, Report, Size},
    },
    spool::ExecSpool,
    worker::masking::Masking,
};
use parking_lot::Mutex;
use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

/// Logs of ended execs that are kept at their largest.
const MAX_ENDED_LOGS: u64 = 4;
/// File servers that run at the same time.
const MAX_FILE_SERVERS: usize = 32;
/// Longest wait for one of them to end, so that another one can begin.
const FILE_SERVER_WAIT: Duration = Duration::from_secs(10);
/// Delay after a connection that could not be accepted.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait, at the end of the sandbox, for the records of its execs.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// Execs and times of a sandbox.
pub(in crate::worker) struct Session {
    /// Directory of the job.
    pub(super) dir: PathBuf,
    pub(super) port: ExecPort,
    /// Variables that every exec has, beside those of the image.
    pub(super) env: Vec<(OsString, OsString)>,
    /// Values that are masked in the output of execs.
    pub(super) masking: Masking,
    /// Bytes of each exec's log that are kept.
    pub(super) log_bytes: u64,
    pub(super) updates: watch::Sender<()>,
    /// Execs that run, until their ends are on record.
    pub(super) execs: BackgroundTasks,
    job: JobId,
    /// Times of a sandbox that stays; `None` of one that runs a task.
    clock: Option<watch::Sender<SessionClock>>,
    table: Mutex<Table>,
    file_servers: Semaphore,
}

impl Session {
    pub(in crate::worker) fn new(
        (job, dir): (JobId, PathBuf),
        port: ExecPort,
        (env, masking): (Vec<(OsString, OsString)>, Masking),
        log_bytes: u64,
        spec: Option<&SessionSpec>,
        updates: watch::Sender<()>,
    ) -> Arc<Self> {
        Arc::new(Self {
            dir,
            port,
            env,
            masking,
            log_bytes,
            updates,
            execs: BackgroundTasks::default(),
            job,
            clock: spec.map(|spec| watch::Sender::new(SessionClock::new(spec, Instant::now()))),
            table: Table::new(MAX_ENDED_LOGS * log_bytes).into(),
            file_servers: Semaphore::new(MAX_FILE_SERVERS),
        })
    }

    /// Serves calls in the background, and stops the sandbox when it is idle or too old.
    pub(in crate::worker) fn serve(self: &Arc<Self>, stops: Stops) -> io::Result<()> {
        let listener = bind_socket(&self.dir, SOCKET_FILE)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        background::spawn("session_calls", Arc::clone(self).accept(listener));
        if let Some(clock) = self.clock.clone() {
            background::spawn("session_clock", Arc::clone(self).keep_time(clock, stops));
        }
        Ok(())
    }

    /// Waits, after the end of the sandbox, until the ends of its execs are on record.
    pub(in crate::worker) async fn finish(&self) {
        let left = self.execs.idle(FINISH_TIMEOUT).await;
        if left > 0 {
            tracing::warn!(execs = left, "ends of execs are not on record");
        }
    }

    async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let session = Arc::clone(&self);
                    background::spawn("session_call", async move {
                        if let Err(error) = session.serve_call(stream).await {
                            tracing::debug!(%error, "session call broke off");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "session call can't be accepted; retrying");
                    sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Announces the end of the sandbox, and stops it then.
    async fn keep_time(self: Arc<Self>, clock: watch::Sender<SessionClock>, stops: Stops) {
        let mut changes = clock.subscribe();
        loop {
            let due = changes.borrow_and_update().due(Instant::now());
            match due {
                Due::Stop(reason) => return stops.request(StopRequest::new(reason)),
                Due::Announce => {
                    clock.send_modify(SessionClock::mark_announced);
                    self.announce_end(clock.borrow().expires_in(Instant::now()));
                }
                Due::At(time) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(time.into()) => {}
                        Ok(()) = changes.changed() => {}
                    }
                }
            }
        }
    }

    fn announce_end(&self, left: Duration) {
        let message = format!(
            "the sandbox ends in {} s, at its lifetime; to keep it: cynode sandbox renew",
            left.as_secs()
        );
        for exec in self.table.lock().all_running() {
            exec.announce(&message);
        }
        self.updates.send_replace(());
    }

    async fn serve_call(self: &Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let request = match read_frame(&mut stream).await {
            Ok(request) => request,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => {
                let detail = format!("the request can't be read: {error}");
                return write_frame(&mut stream, &SessionReply::Failed { detail }).await;
            }
        };
        let reply = match request {
            SessionRequest::Exec(call) => self.start_exec(*call),
            SessionRequest::Signal { exec_id, signal } => {
                self.with_exec(exec_id, |exec| exec.signal(signal))
            }
            SessionRequest::Resize { exec_id, size } => self.resize(exec_id, size),
            SessionRequest::Renew { lifetime_seconds } => self.renew(lifetime_seconds),
            SessionRequest::State => self.state(),
            SessionRequest::Stdin {
                exec_id,
                eof,
                offset,
            } => {
                return self.receive_stdin(stream, exec_id, eof, offset).await;
            }
            SessionRequest::Files => return self.serve_files(stream).await,
        };
        write_frame(&mut stream, &reply).await
    }

    fn start_exec(self: &Arc<Self>, call: ExecCall) -> SessionReply {
        let exec_id = call.exec_id;
        if self.table.lock().running() >= MAX_RUNNING_EXECS {
            return if self.is_known(exec_id) {
                SessionReply::Exists
            } else {
                SessionReply::TooManyExecs
            };
        }
        if self.table.lock().is_forgotten(exec_id) {
            return SessionReply::Exists;
        }
        match exec::start(self, call) {
            Ok(Started::New(exec)) => SessionReply::Started { exec: *exec },
            Ok(Started::Exists) => SessionReply::Exists,
            Err(error) if error.kind() == io::ErrorKind::NotConnected => SessionReply::Ended,
            Err(error) => {
                tracing::warn!(exec = %exec_id, %error, "exec can't be started");
                let detail = format!("the exec can't be started: {error}");
                SessionReply::Failed { detail }
            }
        }
    }

    fn is_known(&self, exec_id: ExecId) -> bool {
        if self.table.lock().is_forgotten(exec_id) {
            return true;
        }
        let started = ExecSpool::at(&self.dir, exec_id).started();
        started.is_ok_and(|exec| exec.is_some())
    }

    /// Exec that runs.
    pub(super) fn running(&self, exec_id: ExecId) -> Option<Arc<RunningExec>> {
        self.table.lock().get(exec_id)
    }

    /// Does something with an exec that runs.
    fn with_exec(&self, exec_id: ExecId, action: impl FnOnce(&RunningExec)) -> SessionReply {
        match self.running(exec_id) {
            Some(exec) => {
                action(&exec);
                SessionReply::Done
            }
            None => self.absent(exec_id),
        }
    }

    /// Reply about an exec that does not run.
    pub(super) fn absent(&self, exec_id: ExecId) -> SessionReply {
        if self.is_known(exec_id) {
            SessionReply::ExecEnded
        } else {
            SessionReply::NoSuchExec
        }
    }

    fn resize(&self, exec_id: ExecId, TerminalSize { cols, rows }: TerminalSize) -> SessionReply {
        let request = InitRequest::Resize(Size { cols, rows });
        self.with_exec(exec_id, |exec| exec.control.send(&request))
    }

    fn renew(&self, lifetime_seconds: u64) -> SessionReply {
        let Some(clock) = &self.clock else {
            return SessionReply::NotASession;
        };
        let lifetime = Duration::from_secs(lifetime_seconds);
        clock.send_modify(|clock| clock.renew(lifetime, Instant::now()));
        self.state()
    }

    fn state(&self) -> SessionReply {
        let Some(clock) = &self.clock else {
            return SessionReply::NotASession;
        };
        let (clock, now) = (*clock.borrow(), Instant::now());
        let milliseconds = |time: Duration| time.as_millis() as u64;
        SessionReply::State {
            state: SessionState {
                session_id: self.job,
                expires_in_ms: milliseconds(clock.expires_in(now)),
                idle_ends_in_ms: clock.idle_ends_in(now).map(milliseconds),
                running_execs: self.table.lock().running() as u32,
            },
        }
    }

    /// Runs a file server, whose connection this one becomes.
    async fn serve_files(&self, mut stream: UnixStream) -> io::Result<()> {
        // A command can stop the servers that run.
        let permit = timeout(FILE_SERVER_WAIT, self.file_servers.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return write_frame(&mut stream, &SessionReply::TooManyExecs).await;
        };
        let _use = self.enter();
        write_frame(&mut stream, &SessionReply::Done).await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        let stream = OwnedFd::from(stream);
        let command = [sandbox_init::PATH, sandbox_files::ARGUMENT];
        let spec = ExecSpec {
            command: command.map(OsString::from).to_vec(),
            // The user may have closed the workspace to themselves.
            cwd: "/".into(),
            streams: ExecStreams::Own,
            ..ExecSpec::default()
        };
        let connection = stream.try_clone()?;
        let streams = vec![stream.try_clone()?, stream, no_stdin()?];
        let mut server = self.port.start(&spec, streams)?;
        let control = server.control();
        let ended =
            async { while !matches!(server.next_report().await, None | Some(Report::Ended(_))) {} };
        let kill = || control.send(&InitRequest::Signal(libc::SIGKILL));
        file_server::wait_ended(ended, &connection, kill).await;
        Ok(())
    }

    /// Counts an exec that runs.
    pub(super) fn enter_exec(&self, exec_id: ExecId, exec: &Arc<RunningExec>) {
        self.table.lock().insert(exec_id, Arc::clone(exec));
        if let Some(clock) = &self.clock {
            clock.send_modify(SessionClock::enter);
        }
    }

    /// Counts an exec whose end is on record, and removes the records of the oldest ones.
    pub(super) fn leave_exec(&self, exec_id: ExecId) {
        let bytes = ExecSpool::at(&self.dir, exec_id).log_bytes().unwrap_or(0);
        let outdated = self.table.lock().end(exec_id, bytes);
        let logs = outdated.logs.into_iter().map(|id| (id, false));
        for (oldest, is_whole) in logs.chain(outdated.records.into_iter().map(|id| (id, true))) {
            let spool = ExecSpool::at(&self.dir, oldest);
            let removed = if is_whole {
                spool.remove()
            } else {
                spool.remove_log()
            };
            if let Err(error) = removed {
                tracing::warn!(exec = %oldest, %error, "records of an exec can't be removed");
            }
        }
        if let Some(clock) = &self.clock {
            clock.send_modify(|clock| clock.leave(Instant::now()));
        }
    }

    /// Counts a call as a use.
    pub(super) fn enter(&self) -> Use<'_> {
        if let Some(clock) = &self.clock {
            clock.send_modify(SessionClock::enter);
        }
        Use(self.clock.as_ref())
    }
}

/// Use of the sandbox by a call.
pub(super) struct Use<'a>(Option<&'a watch::Sender<SessionClock>>);

impl Drop for Use<'_> {
    fn drop(&mut self) {
        if let Some(clock) = self.0 {
            clock.send_modify(|clock| clock.leave(Instant::now()));
        }
    }
}
