//! Stdin of execs: a body of any size, passed on to the shim as fast as the command reads it.

use super::{
    answers,
    exec::exec_id,
    execs::{self, ExecFollower},
    protocol::{SessionReply, SessionRequest, read_frame},
    session_long,
    socket::{self, REPLY_TIMEOUT, silent},
};
use crate::{
    api::{ExecId, error::ApiError, problem::Problem, sandboxes::exec::StdinTaken},
    http::{
        body::BodyChunks,
        request::Request,
        response::{self, Reply},
    },
    worker::{api::Api, ledger::Job},
};
use std::{io, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    time::sleep,
};

/// Longest pause in a body: a person may type it. The end of the exec ends the call before.
const MAX_PAUSE: Duration = Duration::from_hours(24);

pub(super) async fn receive(api: Arc<Api>, request: Request) -> Reply {
    let job = session_long(&api, &request).await?;
    take(&job, request).await
}

pub(super) async fn take(job: &Arc<Job>, mut request: Request) -> Reply {
    let exec_id = exec_id(&request)?;
    let is_last = request.query_as("eof", "true or false")?.unwrap_or(false);
    let offset = request.query_as("offset", "the number of bytes before these")?;
    let mut body = request.chunks();
    let taken = send(job, exec_id, offset, &mut body).await?;
    // A call of its own, which a body that breaks off never reaches: the command must not take it for whole.
    if is_last {
        close(job, exec_id).await?;
    }
    response::ok(&taken)
}

/// Sends a body to an exec's stdin, until the exec reads no more. Returns the number of bytes that it took.
async fn send(
    job: &Arc<Job>,
    exec_id: ExecId,
    offset: Option<u64>,
    body: &mut BodyChunks,
) -> Result<StdinTaken, ApiError> {
    let exec = execs::find(job, exec_id).await?;
    let (mut read, mut write) = open(job, exec_id, offset).await?;
    let mut reply = pin!(read_frame::<SessionReply>(&mut read));
    let mut ended = pin!(ExecFollower::new(Arc::clone(job), exec).ended());
    let (early_reply, has_ended) = tokio::select! {
        biased;
        reply = &mut reply => (Some(reply), false),
        // The rest of the body is of no use then.
        _ = &mut ended => (None, true),
        sent = send_body(body, &mut write) => {
            sent?;
            (None, false)
        }
    };
    let reply = match early_reply {
        Some(reply) => reply,
        None => {
            // A shim that is gone shows in the reply.
            let _ = write.shutdown().await;
            let ended = async {
                if !has_ended {
                    let _ = ended.await;
                }
            };
            last_reply(reply, ended).await
        }
    };
    match reply.map_err(|error| silent().caused_by(error))? {
        SessionReply::StdinTaken { bytes, offset } => Ok(StdinTaken { bytes, offset }),
        reply => Err(answers::refused(reply).into()),
    }
}

/// Sends a body as far as the shim takes it; one that takes no more has a reply.
async fn send_body(body: &mut BodyChunks, write: &mut OwnedWriteHalf) -> Result<(), Problem> {
    while let Some(chunk) = body.next_within(MAX_PAUSE).await? {
        if write.write_all(&chunk).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Waits for the reply to a whole body, which comes once the exec has read that, or has ended. A process that an exec
/// has left behind may keep its stdin open and read nothing: then stdin counts as closed.
async fn last_reply(
    reply: impl Future<Output = io::Result<SessionReply>>,
    ended: impl Future,
) -> io::Result<SessionReply> {
    let overdue = async {
        ended.await;
        sleep(REPLY_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        reply = reply => reply,
        () = overdue => Ok(SessionReply::StdinClosed { bytes: 0 }),
    }
}

/// Closes an exec's stdin. One that is closed already, or whose exec has ended, is no error: it took all.
async fn close(job: &Arc<Job>, exec_id: ExecId) -> Result<(), ApiError> {
    let exec = execs::find(job, exec_id).await?;
    let request = SessionRequest::Stdin {
        exec_id,
        eof: true,
        offset: None,
    };
    match socket::open(job, &request).await? {
        (SessionReply::Done, stream) => {
            let (mut read, mut write) = stream.into_split();
            // A shim that is gone shows in its answer.
            let _ = write.shutdown().await;
            let ended = ExecFollower::new(Arc::clone(job), exec).ended();
            let reply = last_reply(read_frame(&mut read), ended).await;
            reply.map(drop).map_err(|error| silent().caused_by(error))
        }
        (SessionReply::ExecEnded, _) => Ok(()),
        (reply, _) => Err(answers::refused(reply).into()),
    }
}

/// Opens an exec's stdin.
pub(super) async fn open(
    job: &Arc<Job>,
    exec_id: ExecId,
    offset: Option<u64>,
) -> Result<(OwnedReadHalf, OwnedWriteHalf), ApiError> {
    let request = SessionRequest::Stdin {
        exec_id,
        eof: false,
        offset,
    };
    match socket::open(job, &request).await? {
        (SessionReply::Done, stream) => Ok(stream.into_split()),
        (reply, _) => Err(answers::refused(reply).into()),
    }
}
