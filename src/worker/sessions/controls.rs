//! Short calls about a sandbox and its execs.

use super::{
    answers,
    exec::exec_id,
    protocol::{SessionReply, SessionRequest},
    session, signals, socket,
};
use crate::{
    api::{
        problem::Problem,
        sandboxes::{
            RenewSandbox, check_seconds,
            exec::{SignalExec, TerminalSize},
        },
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    worker::{api::Api, ledger::Job},
};
use std::{sync::Arc, time::Duration};

pub(super) async fn state(api: Arc<Api>, request: Request) -> Reply {
    let job = session(&api, &request).await?;
    answer_state(socket::call(&job, &SessionRequest::State).await?)
}

pub(super) async fn end(api: Arc<Api>, request: Request) -> Reply {
    let job = session(&api, &request).await?;
    let is_forced = request.query_as("force", "true or false")?.unwrap_or(false);
    job.cancel(if is_forced {
        Duration::ZERO
    } else {
        Duration::MAX
    });
    response::ok(&job.state())
}

pub(super) async fn renew(api: Arc<Api>, mut request: Request) -> Reply {
    let job = session(&api, &request).await?;
    let RenewSandbox { lifetime_seconds } = request.json().await?;
    check_seconds("/lifetime_seconds", lifetime_seconds)?;
    answer_state(socket::call(&job, &SessionRequest::Renew { lifetime_seconds }).await?)
}

pub(super) async fn signal(api: Arc<Api>, mut request: Request) -> Reply {
    let job = session(&api, &request).await?;
    let exec_id = exec_id(&request)?;
    let SignalExec { signal } = request.json().await?;
    let number = signals::number(&signal);
    let signal = number.ok_or_else(|| Problem::field("/signal", signals::EXPECTED))?;
    control(&job, SessionRequest::Signal { exec_id, signal }).await
}

pub(super) async fn resize(api: Arc<Api>, mut request: Request) -> Reply {
    let job = session(&api, &request).await?;
    let exec_id = exec_id(&request)?;
    let size: TerminalSize = request.json().await?;
    size.check("")?;
    control(&job, SessionRequest::Resize { exec_id, size }).await
}

/// Sends a request whose success says nothing more.
async fn control(job: &Arc<Job>, request: SessionRequest) -> Reply {
    match socket::call(job, &request).await? {
        SessionReply::Done => response::no_content(),
        reply => Err(answers::refused(reply).into()),
    }
}

/// Answer with the state of a sandbox.
pub(super) fn answer_state(reply: SessionReply) -> Reply {
    match reply {
        SessionReply::State { state } => response::ok(&state),
        reply => Err(answers::refused(reply).into()),
    }
}
