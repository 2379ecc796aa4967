//! Files of a sandbox: calls that are passed on to the file server inside it.
//!
//! The file server runs as the sandbox's user in its namespaces, so this node touches no path that a job controls. What
//! it answers is as untrusted as any output of the sandbox: of a success a few headers and the body pass, of an error
//! its kind and text, as a problem of our own.

mod answer;
mod body;
mod stream;

use super::{
    protocol::{SessionReply, SessionRequest},
    session_long, socket,
};
use crate::{
    api::{
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    http::{client::CallBody, request::Request, response::Reply, untrusted},
    worker::{api::Api, ledger::Job},
};
use body::{Connection, DrivenBody, Upload};
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{pin::pin, sync::Arc, time::Duration};
use stream::AnsweredStream;
use tokio::time::timeout;

/// Most bytes that are buffered of the answer: its head has to fit.
const BUFFER_BYTES: usize = 64 * 1024;
/// Most headers of an answer.
const MAX_HEADERS: usize = 32;
/// Longest time without a byte in either direction.
const SILENCE_TIMEOUT: Duration = Duration::from_mins(2);
/// Time for the body of an error.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Headers of requests that pass.
const REQUEST_HEADERS: [HeaderName; 6] = [
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::RANGE,
];

/// Passes a call on to the file server of a sandbox, and its answer back.
pub(super) async fn pass_on(api: Arc<Api>, request: Request) -> Reply {
    let job = session_long(&api, &request).await?;
    pass(&job, request).await
}

pub(super) async fn pass(job: &Arc<Job>, mut request: Request) -> Reply {
    let path = path_in_sandbox(&request)?;
    let (reply, stream) = socket::open(job, &SessionRequest::Files).await?;
    if !matches!(reply, SessionReply::Done) {
        return Err(super::answers::refused(reply).into());
    }
    let upload = Upload::new(request.chunks());
    let call = call(&request, &path, &upload)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .max_headers(MAX_HEADERS)
        .handshake::<_, CallBody>(TokioIo::new(AnsweredStream::new(stream)))
        .await
        .map_err(broke_off)?;
    // The call that waits for the answer polls it, so it ends with the call.
    let mut connection: Connection = Box::pin(connection.fuse());
    let answer = {
        let mut answered = pin!(sender.send_request(call));
        tokio::select! {
            // An answer may be complete when the connection has ended.
            biased;
            answer = &mut answered => answer,
            ended = &mut connection => match ended {
                Ok(()) => answered.await,
                Err(error) => Err(error),
            },
            () = upload.progress().silence(SILENCE_TIMEOUT) => return Err(stalled().into()),
        }
    };
    let answer = match (answer, upload.take_fault()) {
        (Ok(answer), _) => answer,
        (Err(_), Some(fault)) => return Err(fault.into()),
        (Err(error), None) => return Err(broke_off(error)),
    };
    if answer.status().is_success() {
        let (head, body) = answer.into_parts();
        let head = answer::success_head(&head)?;
        let body = DrivenBody::new(body, connection, SILENCE_TIMEOUT);
        return Ok(http::Response::from_parts(head, body.boxed_unsync()));
    }
    Err(read_problem(answer, connection).await.into())
}

/// Reads the error of the file server.
async fn read_problem(answer: http::Response<Incoming>, mut connection: Connection) -> Problem {
    let (head, body) = answer.into_parts();
    let read = untrusted::error_body(body);
    let driven = async {
        // The body is what ends this, whether the connection does or not.
        let mut read = pin!(read);
        tokio::select! {
            bytes = &mut read => bytes,
            _ = &mut connection => read.await,
        }
    };
    let bytes = timeout(ERROR_BODY_TIMEOUT, driven).await;
    let problem = answer::problem(head.status, &bytes.unwrap_or_default());
    untrusted::with_size(problem, &head.headers)
}

/// Call of the file server.
fn call(
    request: &Request,
    path: &str,
    upload: &Upload,
) -> Result<http::Request<CallBody>, ApiError> {
    let mut call = http::Request::builder()
        .method(request.method().clone())
        .uri(path)
        .body(StreamBody::new(upload.frames()).boxed_unsync())
        .map_err(ApiError::internal)?;
    let headers = call.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("sandbox"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    for name in REQUEST_HEADERS {
        if let Some(value) = request.headers().get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if let Some(length) = upload.announced_size() {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(call)
}

/// Path and query of the call at the file server: what follows the id of the session.
fn path_in_sandbox(request: &Request) -> Result<String, Problem> {
    let target = request.path_and_query();
    let tail = target.splitn(6, '/').nth(5);
    tail.map(|tail| format!("/{tail}"))
        .ok_or_else(|| Problem::not_found("call"))
}

fn broke_off(error: hyper::Error) -> ApiError {
    answer::broken().caused_by(error)
}

fn stalled() -> Problem {
    let seconds = SILENCE_TIMEOUT.as_secs();
    let detail = format!(
        "the file server in the sandbox did not go on for {seconds} s; check whether the sandbox is overloaded, then repeat the call"
    );
    Problem::new(ProblemKind::SandboxFailed, detail)
}
