//! Start of execs: a call waits for the end, follows the output, or returns at once.

use super::{
    answers,
    execs::{self, ExecFollower},
    logs,
    protocol::{ExecCall, SessionReply, SessionRequest},
    session, session_long, socket,
};
use crate::{
    api::{
        ExecId,
        error::ApiError,
        problem::{Problem, ProblemKind},
        sandboxes::exec::{Exec, ExecList, StartExec},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    worker::{api::Api, ledger::Job},
};
use http::StatusCode;
use std::{io, sync::Arc};

pub(super) async fn run(api: Arc<Api>, request: Request) -> Reply {
    let job = session_long(&api, &request).await?;
    start(job, request).await
}

pub(super) async fn start(job: Arc<Job>, mut request: Request) -> Reply {
    let mut wanted: StartExec = request.json().await?;
    let query = logs::query(&request, job.accepted.attempt)?;
    let wants_events = request.accepts("text/event-stream");
    let is_background = wanted.background;
    let call = exec_call(&mut wanted)?;
    // Frees its memory: the exec may run for hours.
    drop((wanted, request));
    let (exec, is_new) = ensure_started(&job, call).await?;
    if wants_events {
        return Ok(logs::events(job, exec, query.followed()));
    }
    if is_background {
        let status = if is_new {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        return response::json(status, &exec);
    }
    let result = ExecFollower::new(job, exec).result().await;
    response::ok(&result.map_err(execs::look_error)?)
}

pub(super) async fn get(api: Arc<Api>, request: Request) -> Reply {
    let job = session(&api, &request).await?;
    response::ok(&execs::find(&job, exec_id(&request)?).await?)
}

pub(super) async fn list(api: Arc<Api>, request: Request) -> Reply {
    let job = session(&api, &request).await?;
    let execs = execs::list(&job).await?;
    response::ok(&ExecList { execs })
}

/// Exec that a path names.
pub(super) fn exec_id(request: &Request) -> Result<ExecId, Problem> {
    request.param("exec", "exec")
}

/// Starts an exec, unless there is one with its id. Returns it, and whether it is new.
pub(super) async fn ensure_started(
    job: &Arc<Job>,
    call: ExecCall,
) -> Result<(Exec, bool), ApiError> {
    let id = call.exec_id;
    match socket::call(job, &SessionRequest::Exec(Box::new(call))).await? {
        SessionReply::Started { exec } => Ok((exec, true)),
        SessionReply::Exists => match execs::find(job, id).await {
            // It has run, and is never started again.
            Err(error) if error.kind() == ProblemKind::NotFound => {
                Err(execs::look_error(io::ErrorKind::NotFound.into()))
            }
            found => Ok((found?, false)),
        },
        reply => Err(answers::refused(reply).into()),
    }
}

/// Call for an exec, once all of it is checked. Takes the large fields out.
fn exec_call(start: &mut StartExec) -> Result<ExecCall, Problem> {
    if start.user.is_some() {
        let detail = "can't be chosen: commands run as the user of the image, which alone the sandbox has; leave it out, or \
                      create the sandbox from an image with another USER";
        return Err(Problem::field("/user", detail));
    }
    let command = start.resolve_command()?;
    Ok(ExecCall {
        exec_id: start.exec_id.unwrap_or_else(ExecId::new),
        command,
        env: start.env.take().unwrap_or_default(),
        cwd: start.cwd.take().unwrap_or_default(),
        tty: start.tty.then(|| start.size.unwrap_or_default()),
        interactive: start.interactive || start.tty,
        stdin: start.stdin.take(),
        timeout_seconds: start.timeout_seconds,
        detached: start.detached,
    })
}
