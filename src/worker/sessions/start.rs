//! Start of a sandbox that stays, in the form of a session.

use super::{controls::answer_state, protocol::SessionRequest, socket};
use crate::{
    api::{
        TaskId,
        jobs::RunJob,
        problem::{Problem, ProblemKind},
        sandboxes::StartSession,
    },
    http::{request::Request, response::Reply},
    worker::{
        api::{self, Api, wants_stream},
        api_logs::{event_query, stream},
    },
};
use std::sync::Arc;

/// Starts a sandbox, unless it is known. Answers its state once it runs, or streams the events of its job.
pub(super) async fn start(api: Arc<Api>, mut request: Request) -> Reply {
    let owner = api.authorize_long(&request)?;
    let query = event_query(&request)?;
    let start: StartSession = request.payload().await?;
    if start.sandbox.session.is_none() {
        let detail =
            "must have the times of the sandbox, lifetime_seconds and idle_timeout_seconds";
        return Err(Problem::field("/sandbox/session", detail).into());
    }
    let wants_stream = wants_stream(&request);
    drop(request);
    let job = api::admit(&api, owner, run_job(start)).await?;
    if wants_stream {
        return stream(job, query);
    }
    match socket::call(&job, &SessionRequest::State).await {
        Err(error) if error.kind() == ProblemKind::Conflict => {
            let detail = "the sandbox is being started; get its state a little later";
            Err(Problem::new(ProblemKind::Conflict, detail).into())
        }
        state => answer_state(state?),
    }
}

/// Job of a session. Without a task it is one of its own.
fn run_job(start: StartSession) -> RunJob {
    let own_task = || {
        let id = start.session_id.to_string();
        id.parse().unwrap_or_else(|_| TaskId::new())
    };
    RunJob {
        version: start.version,
        task_id: start.task_id.unwrap_or_else(own_task),
        job_id: start.session_id,
        attempt: start.attempt.unwrap_or(1),
        sandbox: start.sandbox,
        secrets: start.secrets,
    }
}
