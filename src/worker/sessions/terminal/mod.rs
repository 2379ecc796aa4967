//! Terminals over a WebSocket (RFC 6455): `GET …/terminal`.
//!
//! ```text
//! binary, both ways   bytes of the terminal
//! text, client        {"resize":{"cols":80,"rows":24}}, {"detach":true}
//! text, server        {"exec_id":"…"} first, {"warning":"…"}, {"exit_code":0} last
//! ```
//!
//! A connection starts an exec with a terminal, or attaches to the one whose `exec_id` it names. Each connection reads the
//! exec's log at its own pace, so one that stalls holds up neither the exec nor another connection.
//!
//! A terminal that is closed hangs up: the exec gets HUP, unless the client has detached, or another terminal is attached.
//! A connection that breaks off hangs up a little later, so that its client can come back; one that ends with this process
//! does not.

mod bridge;
mod handshake;
mod input;
mod output;

use super::{
    exec::ensure_started,
    protocol::{ExecCall, SessionRequest},
    session_long, signals, socket,
};
use crate::{
    api::{
        ExecId, JobId,
        error::ApiError,
        jobs,
        problem::Problem,
        sandboxes::exec::{Exec, StartExec, TerminalSize},
    },
    background,
    http::{request::Request, response::Reply, upgrade},
    worker::{api::Api, ledger::Job},
};
use http::{HeaderValue, header};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::runtime::Handle;

/// Time in which the client of a connection that broke off can attach again before its exec gets HUP.
const LOST_GRACE: Duration = Duration::from_secs(30);
/// Login shell: the first of these two that is there.
const LOGIN_SHELL: [&str; 3] = [
    "/bin/sh",
    "-c",
    "[ -x /bin/bash ] && exec /bin/bash -l; exec /bin/sh -l",
];
/// Kind of terminal that programs take it for, unless the sandbox's own environment names one.
const TERM: &str = "xterm-256color";

/// Connections that are attached to execs; cheap to clone.
#[derive(Clone, Default)]
pub(in crate::worker) struct Terminals(Arc<Attachments>);

/// Exec, together with its sandbox.
type Key = (JobId, ExecId);

#[derive(Default)]
struct Attachments {
    execs: Mutex<AttachedExecs>,
    is_closing: AtomicBool,
}

#[derive(Default)]
struct AttachedExecs {
    counts: HashMap<Key, usize>,
    /// Number of the pending hang-up of each exec whose last connection is gone. A later connection cancels it.
    hangups: HashMap<Key, u64>,
    last_hangup: u64,
}

impl Terminals {
    /// Hangs up no exec from now on: execs go on when this process ends, and their clients attach again.
    pub(in crate::worker) fn close(&self) {
        self.0.is_closing.store(true, Ordering::SeqCst);
    }

    fn is_closing(&self) -> bool {
        self.0.is_closing.load(Ordering::SeqCst)
    }

    /// Counts a connection of an exec and cancels the pending hang-up of that. Returns whether there was one.
    fn attach(&self, key: Key) -> bool {
        let mut execs = self.0.execs.lock();
        *execs.counts.entry(key).or_default() += 1;
        execs.hangups.remove(&key).is_some()
    }

    /// Counts a connection no more. Returns the number and the delay of the hang-up where the last one of an exec has
    /// ended so.
    fn detach(&self, key: Key, ending: Ending) -> Option<(u64, Duration)> {
        let mut execs = self.0.execs.lock();
        let left = execs.counts.get(&key).map_or(0, |count| count - 1);
        if left > 0 {
            execs.counts.insert(key, left);
            return None;
        }
        execs.counts.remove(&key);
        let delay = ending.hangup_delay()?;
        execs.last_hangup += 1;
        let number = execs.last_hangup;
        execs.hangups.insert(key, number);
        Some((number, delay))
    }

    /// Takes a pending hang-up, which its caller then sends; false where it was canceled.
    fn take_hangup(&self, key: Key, number: u64) -> bool {
        let mut execs = self.0.execs.lock();
        let is_pending = execs.hangups.get(&key) == Some(&number);
        if is_pending {
            execs.hangups.remove(&key);
        }
        is_pending
    }
}

pub(super) async fn open(api: Arc<Api>, request: Request) -> Reply {
    let job = session_long(&api, &request).await?;
    connect(&api.terminals, job, &request).await
}

/// Starts an exec with a terminal, or finds it, and upgrades the connection.
pub(super) async fn connect(terminals: &Terminals, job: Arc<Job>, request: &Request) -> Reply {
    let accept_key = handshake::accept_key(request)?;
    let call = exec_call(request)?;
    // Before the start, so that the end of another connection does not hang up the exec meanwhile.
    let attachment = Attachment::new(terminals, &job, call.exec_id);
    let started = start(Arc::clone(&job), call, attachment);
    // An exec that is started for a client that has left meanwhile is hung up.
    let started = background::run_to_end("terminal_start", started).await;
    let (exec, mut attachment) = started.map_err(ApiError::internal)??;
    attachment.ending = Ending::Lost;
    let websocket = HeaderValue::from_static("websocket");
    let mut answer = upgrade::accept(websocket, move |stream| {
        bridge::serve(stream, job, exec, attachment)
    });
    if let Ok(accept_key) = HeaderValue::try_from(accept_key) {
        let headers = answer.headers_mut();
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept_key);
    }
    Ok(answer)
}

/// Starts an exec, or finds it, for a connection that is attached to it meanwhile.
async fn start(
    job: Arc<Job>,
    call: ExecCall,
    mut attachment: Attachment,
) -> Result<(Exec, Attachment), ApiError> {
    let (exec, is_new) = ensure_started(&job, call).await?;
    if is_new {
        attachment.ending = Ending::Lost;
    }
    Ok((exec, attachment))
}

/// Exec that a request asks for.
fn exec_call(request: &Request) -> Result<ExecCall, Problem> {
    let cells = |name| request.query_as::<u16>(name, "a number from 1 to 10000");
    let default = TerminalSize::default();
    let size = TerminalSize {
        cols: cells("cols")?.unwrap_or(default.cols),
        rows: cells("rows")?.unwrap_or(default.rows),
    };
    let exec_id = request.query_as("exec_id", "a UUID")?;
    let mut command = request.query_all("command");
    if command.is_empty() {
        command = LOGIN_SHELL.map(str::to_owned).into();
    }
    let env = [("TERM".to_owned(), TERM.to_owned())];
    let start = StartExec {
        command: Some(command),
        cwd: request.query("cwd"),
        tty: true,
        size: Some(size),
        ..StartExec::default()
    };
    let command = start.resolve_command()?;
    Ok(ExecCall {
        exec_id: exec_id.unwrap_or_else(ExecId::new),
        command,
        env: jobs::Env::from(env),
        cwd: start.cwd.unwrap_or_default(),
        tty: Some(size),
        interactive: true,
        stdin: None,
        timeout_seconds: None,
        detached: false,
    })
}

/// How a connection has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// It broke off, or was never opened.
    Lost,
    /// Its client closed it, or spoke no WebSocket.
    Closed,
    /// Its client detached, or the exec has ended.
    Detached,
}

impl Ending {
    /// Time after which the exec gets HUP; `None` where it gets none.
    fn hangup_delay(self) -> Option<Duration> {
        match self {
            Self::Lost => Some(LOST_GRACE),
            Self::Closed => Some(Duration::ZERO),
            Self::Detached => None,
        }
    }
}

/// Connection that is attached to an exec. When the last one is dropped, the exec is hung up, as its ending says.
struct Attachment {
    terminals: Terminals,
    job: Arc<Job>,
    exec_id: ExecId,
    ending: Ending,
}

impl Attachment {
    fn new(terminals: &Terminals, job: &Arc<Job>, exec_id: ExecId) -> Self {
        let had_hangup = terminals.attach((job.accepted.job_id, exec_id));
        Self {
            terminals: terminals.clone(),
            job: Arc::clone(job),
            exec_id,
            // A call that fails has nothing to hang up, except for the connection before it.
            ending: if had_hangup {
                Ending::Lost
            } else {
                Ending::Detached
            },
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let key = (self.job.accepted.job_id, self.exec_id);
        let Some((number, delay)) = self.terminals.detach(key, self.ending) else {
            return;
        };
        if self.terminals.is_closing() || Handle::try_current().is_err() {
            return;
        }
        let (terminals, job) = (self.terminals.clone(), Arc::clone(&self.job));
        let exec_id = self.exec_id;
        background::spawn("terminal_hangup", async move {
            tokio::time::sleep(delay).await;
            if !terminals.take_hangup(key, number) || terminals.is_closing() || job.has_ended() {
                return;
            }
            let signal = signals::HUP;
            let hangup = SessionRequest::Signal { exec_id, signal };
            if let Err(error) = socket::call(&job, &hangup).await {
                let error = error.problem().detail.as_str();
                tracing::debug!(%exec_id, error, "exec of a closed terminal not hung up");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_connection_cancels_pending_hangup() {
        let (terminals, key) = (Terminals::default(), (JobId::new(), ExecId::new()));
        assert!(!terminals.attach(key));
        let (stale, delay) = terminals.detach(key, Ending::Lost).unwrap();
        assert_eq!(delay, LOST_GRACE);
        assert!(terminals.attach(key));
        assert!(!terminals.attach(key));
        assert!(terminals.detach(key, Ending::Closed).is_none(), "not last");
        assert!(terminals.detach(key, Ending::Detached).is_none());
        assert!(!terminals.take_hangup(key, stale));
        terminals.attach(key);
        let (newest, _) = terminals.detach(key, Ending::Closed).unwrap();
        assert!(!terminals.take_hangup(key, stale));
        assert!(terminals.take_hangup(key, newest));
        assert!(!terminals.take_hangup(key, newest));
    }
}
