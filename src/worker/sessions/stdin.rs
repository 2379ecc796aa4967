//! Stdin of execs: a body of any size, passed on to the shim as fast as the command reads it.

use super::{
    answers,
    exec::exec_id,
    execs::{self, ExecFollower},
    protocol::{SessionReply, SessionRequest, read_frame},
    session_long,
    socket::{self, silent},
};
use crate::{
    api::{ExecId, error::ApiError, sandboxes::exec::StdinTaken},
    http::{
        body::BodyChunks,
        request::Request,
        response::{self, Reply},
    },
    worker::{api::Api, ledger::Job},
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
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
    let mut body = request.chunks();
    match send(job, exec_id, &mut body).await {
        Ok(bytes) => {
            // A call of its own, which a body that breaks off never reaches: the command must not take it for whole.
            if is_last {
                close(job, exec_id).await?;
            }
            response::ok(&StdinTaken { bytes })
        }
        Err(error) => {
            body.drain().await;
            Err(error)
        }
    }
}

/// Sends a body to an exec's stdin, until the exec reads no more. Returns the number of bytes that it took.
async fn send(job: &Arc<Job>, exec_id: ExecId, body: &mut BodyChunks) -> Result<u64, ApiError> {
    let exec = execs::find(job, exec_id).await?;
    let (mut read, mut write) = open(job, exec_id).await?;
    let mut reply = pin!(read_frame(&mut read));
    let mut ended = pin!(ExecFollower::new(Arc::clone(job), exec).ended());
    let reply = loop {
        let chunk = tokio::select! {
            biased;
            reply = &mut reply => break reply,
            // The rest of the body is of no use then.
            _ = &mut ended => None,
            chunk = body.next_within(MAX_PAUSE) => chunk?,
        };
        let Some(chunk) = chunk else {
            // A shim that is gone shows in the reply.
            let _ = write.shutdown().await;
            break reply.await;
        };
        tokio::select! {
            written = write.write_all(&chunk) => if written.is_err() {
                break reply.await;
            },
            reply = &mut reply => break reply,
        }
    };
    match reply.map_err(|error| silent().caused_by(error))? {
        SessionReply::StdinTaken { bytes } => Ok(bytes),
        reply => Err(answers::refused(reply).into()),
    }
}

/// Closes an exec's stdin. One that is closed already, or whose exec has ended, is no error: it took all.
async fn close(job: &Arc<Job>, exec_id: ExecId) -> Result<(), ApiError> {
    let request = SessionRequest::Stdin { exec_id, eof: true };
    match socket::open(job, &request).await? {
        (SessionReply::Done, stream) => {
            let (mut read, mut write) = stream.into_split();
            // A shim that is gone shows in its answer.
            let _ = write.shutdown().await;
            let reply = read_frame::<SessionReply>(&mut read).await;
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
) -> Result<(OwnedReadHalf, OwnedWriteHalf), ApiError> {
    let request = SessionRequest::Stdin {
        exec_id,
        eof: false,
    };
    match socket::open(job, &request).await? {
        (SessionReply::Done, stream) => Ok(stream.into_split()),
        (reply, _) => Err(answers::refused(reply).into()),
    }
}
