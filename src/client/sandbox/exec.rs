//! A command in a sandbox, with the output and the exit code of a local command.

use super::{
    events::{EventPrinter, ExecEnd, Show},
    manage::whole_seconds,
    signals::{self, Forwarding},
    stdin,
    target::Target,
    terminal,
};
use crate::{
    api::{
        ExecId,
        sandboxes::exec::{Exec, ExecResult, StartExec},
    },
    cli::{ClientFlags, ExecFlags, OutputFormat},
    client::{
        api_client::{ApiClient, Payload},
        follow::Outage,
        paths, print,
        task::env_of_flags,
    },
    exit::{Exit, Failure},
};
use http::Method;
use std::{
    io::Read,
    thread,
    time::{Duration, Instant},
};

/// Time for which the orchestrator may be unreachable.
pub(super) const RECONNECT_TIMEOUT: Duration = Duration::from_mins(10);
/// Pause between two attempts to connect.
pub(super) const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Runs a command in a sandbox.
pub(super) fn exec(
    target: &Target,
    client: &ClientFlags,
    flags: ExecFlags,
    command: Vec<String>,
) -> Result<(), Failure> {
    let (is_tty, is_background) = (flags.tty, flags.background);
    let is_passed = !is_tty && !is_background && stdin::is_passed(&flags);
    let start = StartExec {
        exec_id: Some(ExecId::new()),
        command: Some(command),
        env: env_of_flags(flags.env)?,
        cwd: flags.cwd,
        timeout_seconds: flags.timeout.map(whole_seconds),
        interactive: is_passed,
        background: is_background,
        detached: flags.keep_children,
        ..StartExec::default()
    };
    if is_tty {
        return terminal::exec(target, client, start);
    }
    let mut api = ApiClient::from_args(client)?;
    if is_background {
        let exec: Exec = api.call(Method::POST, &target.path("/exec"), Some(&start))?;
        return match client.output {
            OutputFormat::Json => print::json(&exec),
            OutputFormat::Text => print::line(&exec.exec_id.to_string()),
        };
    }
    let target = target.resolve(&mut api)?;
    let mut run = Run::new(api, target.clone(), start)?;
    let show = match client.output {
        OutputFormat::Json => Show::Nothing,
        OutputFormat::Text => Show::Output,
    };
    let ended = run.follow(show);
    if let Err(failure) = &ended
        && failure.message.is_empty()
    {
        // The reader of the output is gone, so the rest of it is not needed.
        signals::send(&mut run.api, &target, &run.id, "TERM")?;
    }
    let exec = ended?;
    if client.output == OutputFormat::Json {
        print::json(&run.result()?)?;
    }
    ExecEnd::from(&exec).exit()
}

/// Command that runs while this process watches.
struct Run {
    api: ApiClient,
    target: Target,
    id: String,
    start: StartExec,
    body: Vec<u8>,
    signals: Forwarding,
}

impl Run {
    fn new(api: ApiClient, target: Target, start: StartExec) -> Result<Self, Failure> {
        let id = start.exec_id.map(|id| id.to_string()).unwrap_or_default();
        // Before the command is started, so that no signal is missed.
        let signals = signals::forward(api.clone(), target.clone(), id.clone())?;
        Ok(Self {
            body: serde_json::to_vec(&start).map_err(Failure::internal)?,
            api,
            target,
            id,
            start,
            signals,
        })
    }

    /// Prints the events of the command until it ends. After a cut it goes on from where the output was.
    fn follow(&mut self, show: Show) -> Result<Exec, Failure> {
        let mut printer = EventPrinter::new(show, false);
        let mut outage = Outage::default();
        let mut is_started = false;
        loop {
            match self.connect(&printer.last_id) {
                Ok(stream) => {
                    if !is_started {
                        is_started = true;
                        self.begin();
                    }
                    if let Some(exec) = printer.print_all(stream, &mut outage)? {
                        return Ok(exec);
                    }
                }
                Err(failure) if !is_passing(&failure) => return Err(failure),
                // The call may have started the command, though its answer is lost.
                Err(failure) if !is_started && !self.is_there()? => return Err(failure),
                Err(_) => outage.note(),
            }
            if outage.begin().elapsed() > RECONNECT_TIMEOUT {
                let text = format!(
                    "the orchestrator at {} is still unreachable; the command goes on. Resume with: {}",
                    self.api.url,
                    self.target.follow_hint(&self.id)
                );
                return Err(Failure::new(Exit::Unreachable, text));
            }
            thread::sleep(RECONNECT_INTERVAL);
        }
    }

    /// Events after this one; all of them, from the start of the command, where there is none yet.
    fn connect(&mut self, last_id: &str) -> Result<Box<dyn Read>, Failure> {
        let accept = ("accept", "text/event-stream");
        let encoding = ("encoding", Some("base64"));
        if last_id.is_empty() {
            let path = paths::with_query(&self.target.path("/exec"), &[encoding]);
            let body = Payload::Bytes(&self.body, "application/json");
            let answer = self.api.exchange(&Method::POST, &path, &[accept], body)?;
            let answer = self.api.check_status(answer)?;
            return Ok(Box::new(answer.into_body().into_reader()));
        }
        let path = self.target.exec(&self.id, "/logs");
        let path = paths::with_query(&path, &[("follow", Some("true")), encoding]);
        let headers = [accept, ("last-event-id", last_id)];
        Ok(Box::new(self.api.stream(&path, &headers)?))
    }

    /// Whether the command was started by a call whose answer is lost.
    fn is_there(&mut self) -> Result<bool, Failure> {
        let began = Instant::now();
        loop {
            match self.api.get::<Exec>(&self.target.exec(&self.id, "")) {
                Ok(_) => return Ok(true),
                Err(failure) if !is_passing(&failure) => return Ok(false),
                Err(_) if began.elapsed() > RECONNECT_INTERVAL => return Ok(false),
                Err(_) => thread::sleep(RECONNECT_INTERVAL / 4),
            }
        }
    }

    /// Has signals and stdin reach the command, which is there now.
    fn begin(&self) {
        self.signals.begin();
        if self.start.interactive {
            stdin::stream(self.api.clone(), self.target.clone(), self.id.clone());
        }
    }

    /// Result of the command, which has ended: the call that started it is answered again.
    fn result(&mut self) -> Result<ExecResult, Failure> {
        self.api
            .call(Method::POST, &self.target.path("/exec"), Some(&self.start))
    }
}

/// Whether a call may succeed when it is repeated.
pub(super) fn is_passing(failure: &Failure) -> bool {
    matches!(failure.exit, Exit::Unreachable | Exit::Internal)
}
