//! Stand-in of a sandbox's shim. Its commands: `print TEXT…`, `flood N` (so many bytes on stdout), `cat` (stdin to stdout),
//! `wait` (runs until a signal), `deaf` (as `wait`, and reads no stdin). A command without a terminal ends by itself.

use super::super::protocol::{
    ExecCall, SOCKET_FILE, SessionReply, SessionRequest, read_frame, write_frame,
};
use crate::{
    api::{
        ExecId, JobId,
        events::Stream,
        sandboxes::{
            SessionState,
            exec::{Exec, ExecStatus, TerminalSize},
        },
        time::Time,
    },
    background,
    sandbox::shim::socket_path,
    spool::{ExecRecorder, ExecSpool, Spool},
    worker::ledger::{Job, tests::accepted},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    sync::watch,
};

/// Bytes of each log that are kept.
const LOG_BYTES: u64 = 64 << 20;

/// Answers a connection to the file server.
pub(super) type FileServer = fn(UnixStream) -> futures_util::future::BoxFuture<'static, ()>;

pub(super) struct StandIn {
    pub(super) job: Arc<Job>,
    pub(super) shim: Arc<Shim>,
    _home: TempDir,
}

pub(super) struct Shim {
    job: Arc<Job>,
    running: Mutex<BTreeMap<ExecId, Running>>,
    /// Number of commands that were started.
    pub(super) starts: AtomicUsize,
    /// Signals, sizes, and ids that were received.
    pub(super) signals: watch::Sender<Vec<i32>>,
    pub(super) sizes: watch::Sender<Vec<TerminalSize>>,
    pub(super) file_server: Mutex<Option<FileServer>>,
}

struct Running {
    exec: Exec,
    recorder: ExecRecorder,
    is_deaf: bool,
}

impl StandIn {
    pub(super) fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::at(home.path().to_owned());
        let job = Arc::new(Job::new(accepted(JobId::new(), 1), spool, None));
        let (_open_dir, path) = socket_path(home.path(), SOCKET_FILE).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let shim = Arc::new(Shim {
            job: Arc::clone(&job),
            running: Mutex::default(),
            starts: AtomicUsize::new(0),
            signals: watch::Sender::new(Vec::new()),
            sizes: watch::Sender::new(Vec::new()),
            file_server: Mutex::new(None),
        });
        let serving = Arc::clone(&shim);
        background::spawn("stand_in", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shim = Arc::clone(&serving);
                background::spawn("stand_in_call", async move { shim.serve(stream).await });
            }
        });
        Self {
            job,
            shim,
            _home: home,
        }
    }
}

impl Shim {
    async fn serve(&self, mut stream: UnixStream) {
        let request: SessionRequest = read_frame(&mut stream).await.unwrap();
        let reply = self.answer(&request);
        let goes_on = matches!(reply, SessionReply::Done);
        write_frame(&mut stream, &reply).await.unwrap();
        match request {
            SessionRequest::Stdin { exec_id, eof, .. } if goes_on => {
                self.receive_stdin(stream, exec_id, eof).await;
            }
            SessionRequest::Files => {
                let serve = self.file_server.lock().unwrap();
                serve(stream).await;
            }
            _ => {}
        }
    }

    fn answer(&self, request: &SessionRequest) -> SessionReply {
        match request {
            SessionRequest::Exec(call) => self.start_exec(call),
            SessionRequest::Stdin { exec_id, .. } => match self.running.lock().get(exec_id) {
                Some(_) => SessionReply::Done,
                None => SessionReply::ExecEnded,
            },
            SessionRequest::Signal { exec_id, signal } => {
                self.signals.send_modify(|all| all.push(*signal));
                self.end(*exec_id, 128 + signal);
                SessionReply::Done
            }
            SessionRequest::Resize { size, .. } => {
                self.sizes.send_modify(|all| all.push(*size));
                SessionReply::Done
            }
            SessionRequest::State => SessionReply::State {
                state: SessionState {
                    session_id: self.job.accepted.job_id,
                    expires_in_ms: 3_600_000,
                    idle_ends_in_ms: None,
                    running_execs: 0,
                },
            },
            SessionRequest::Renew { .. } | SessionRequest::Files => SessionReply::Done,
        }
    }

    fn spool(&self, exec_id: ExecId) -> ExecSpool {
        ExecSpool::at(self.job.spool.path(), exec_id)
    }

    fn start_exec(&self, call: &ExecCall) -> SessionReply {
        let ExecCall {
            exec_id, command, ..
        } = call;
        let (exec_id, tty) = (*exec_id, call.tty.is_some());
        let exec = Exec {
            exec_id,
            status: ExecStatus::Running,
            exit_code: None,
            cause: None,
            command: command.clone(),
            tty,
            interactive: tty,
            started_at: Time::now(),
            ended_at: None,
            duration_ms: None,
        };
        let spool = self.spool(exec_id);
        if !spool.create(&exec).unwrap() {
            return SessionReply::Exists;
        }
        self.starts.fetch_add(1, Ordering::SeqCst);
        let mut recorder = spool.recorder(LOG_BYTES).unwrap();
        recorder.mark_started();
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let goes_on = match words[..] {
            ["print", ref texts @ ..] => {
                for text in texts {
                    recorder.append_output(Stream::Stdout, text.as_bytes());
                }
                tty
            }
            ["flood", bytes] => {
                let block = [b'x'; 4096];
                for _ in 0..bytes.parse::<usize>().unwrap() / block.len() {
                    recorder.append_output(Stream::Stdout, &block);
                }
                tty
            }
            _ => true,
        };
        let is_deaf = words[0] == "deaf";
        let running = Running {
            exec: exec.clone(),
            recorder,
            is_deaf,
        };
        self.running.lock().insert(exec_id, running);
        if goes_on {
            self.job.notify();
        } else {
            self.end(exec_id, 0);
        }
        SessionReply::Started { exec }
    }

    /// Prints on the stdout of an exec that runs.
    pub(super) fn print(&self, exec_id: ExecId, bytes: &[u8]) {
        if let Some(running) = self.running.lock().get_mut(&exec_id) {
            running.recorder.append_output(Stream::Stdout, bytes);
        }
        self.job.notify();
    }

    /// Ends an exec that runs.
    pub(super) fn end(&self, exec_id: ExecId, code: i32) {
        let Some(Running { exec, .. }) = self.running.lock().remove(&exec_id) else {
            return;
        };
        let ended = Exec {
            status: ExecStatus::Exited,
            exit_code: Some(code),
            ended_at: Some(Time::now()),
            duration_ms: Some(1),
            ..exec
        };
        self.spool(exec_id).write_end(&ended).unwrap();
        self.job.notify();
    }

    async fn receive_stdin(&self, mut stream: UnixStream, exec_id: ExecId, eof: bool) {
        let is_deaf = |exec: &Running| exec.is_deaf;
        if self.running.lock().get(&exec_id).is_some_and(is_deaf) {
            return std::future::pending().await;
        }
        let (mut taken, mut buffer) = (0, vec![0; 64 * 1024]);
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    self.print(exec_id, &buffer[..length]);
                    taken += length as u64;
                }
            }
        }
        if eof {
            self.end(exec_id, 0);
        }
        // A caller that is gone needs no answer.
        let reply = SessionReply::StdinTaken {
            bytes: taken,
            offset: None,
        };
        let _ = write_frame(&mut stream, &reply).await;
    }
}
